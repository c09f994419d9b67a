#!/usr/bin/env bash
# The experiments of the paper on synthetic videos in YouTube-8M's native format: 300
# frames of 1024 + 128 numbers, 200 classes, 4,000 training videos.
#
#   tools/synthetic.sh [OUTPUT_DIR] [REPRODUCE_FLAG...]     default: synthetic_output
#
# Makes the videos, runs all of Tables 1 to 4 and Figures 2 and 3; writes
# results/synthetic. About an hour and a half on two cores; finished runs are not repeated.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  print_help
  exit 0
fi
cd "$PROJECT_ROOT"
output=synthetic_output
if (($# > 0)) && [[ $1 != -* ]]; then
  output=$1
  shift
fi

ensure_current_environment

if [[ ! -f $output/data/dataset.json ]]; then
  "$CURRENT_VENV/bin/python" tools/make_synthetic_records.py \
    --output_dir="$output/data" --num_train=4000 --num_validate=1000 --num_test=0 \
    --signal=0.5
  "$CURRENT_VENV/bin/python" yt8m_distill/index_records.py \
    --input_data_pattern="$output/data/*.tfrecord"
fi
"$CURRENT_VENV/bin/python" tools/reproduce.py --table=all --data="$output/data" \
  --base_flags=flags/training_synthetic.flags --jobs=2 --output_dir="$output" \
  --teacher_cache="$output/teacher_cache" --report_dir=results/synthetic "$@"
