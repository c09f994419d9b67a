#!/usr/bin/env bash
# The main job from a fresh clone: sets up .venv, makes synthetic videos in the native
# format, trains a teacher, a Uniform-k baseline, a serial and a parallel student,
# evaluates each, writes a Kaggle CSV, exports the student, loads it back and
# classifies a record. Ends with a table.
#
#   tools/demo.sh [OUTPUT_DIR]        default: demo_output
#
# About ten minutes on two processors. A second run reuses the environment, the data
# and what is already trained; remove OUTPUT_DIR to begin anew.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/environment.sh
source tools/environment.sh

if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit 0
fi
output=${1:-demo_output}
data=$output/data
k=10

heading() { printf '\n== [%4d s] %s\n' "$SECONDS" "$*"; }

heading "Environment"
ensure_current_environment
python=$CURRENT_VENV/bin/python

heading "Synthetic videos in the native format"
"$python" tools/make_synthetic_records.py --output_dir="$data" "${DEMO_DATA[@]:-}"

