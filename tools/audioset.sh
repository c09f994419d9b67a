#!/usr/bin/env bash
# The experiments on real data: AudioSet's balanced train set as native records (10
# frames of 128 bytes per clip, 527 classes). Files 0-13 train, 14-15 validate.
#
#   tools/audioset.sh DATA_DIR [OUTPUT_DIR] [REPRODUCE_FLAG...]
#
# OUTPUT_DIR is audioset_output by default. Trains the teacher, all baselines, the
# parallel and serial students and that of --preset=best on 1, 2, 3 and 5 frames with
# three seeds, and runs the ablation of the preset; writes results/audioset and the table
# in README.md. About eight hours on two cores; finished runs are not repeated, and
# --known_runs=results/audioset/runs.jsonl counts those of that report as finished.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if (($# < 1)) || [[ $1 == --help ]]; then
  print_help
  exit 0
fi
if [[ ! -d $1 ]]; then
  echo "$1 is no folder: name the one with bal_train-00000-of-00016.tfrecord to 00015." >&2
  exit 1
fi
data=$(cd "$1" && pwd)
cd "$PROJECT_ROOT"
shift
output=audioset_output
if (($# > 0)) && [[ $1 != -* ]]; then
  output=$1
  shift
fi

ensure_current_environment

# With an index only the frames of a view are read: a quarter of the time at k=2.
mkdir -p "$output"
index=$(cd "$output" && pwd)/index
"$CURRENT_VENV/bin/python" yt8m_distill/index_records.py --flagfile=flags/data_audioset.flags \
  --input_data_pattern="$data/bal_train-*" --index_dir="$index"

train="$data/bal_train-0000?-of-*,$data/bal_train-0001[0-3]-of-*"
validate="$data/bal_train-0001[45]-of-*"
"$CURRENT_VENV/bin/python" tools/reproduce.py --table=1,ablation \
  --data=flags/data_audioset.flags \
  --base_flags="flags/training_audioset.flags '--index_dir=$index' \
'--train_data_pattern=$train' \
'--validation_data_pattern=$validate'" \
  --frames=1,2,3,5 --seeds=0,1,2 --jobs=2 --output_dir="$output" \
  --teacher_cache="$output/teacher_cache" --report_dir=results/audioset \
  --write_to=README.md --section=audioset "$@"
