#!/usr/bin/env bash
# The whole workflow from a fresh clone: sets up .venv, makes synthetic videos in the
# native format, trains a teacher, a Uniform-k baseline, a serial and a parallel student,
# evaluates each, writes a Kaggle CSV, exports the student, loads the export, classifies
# a record, and prints a table.
#
#   tools/demo.sh [OUTPUT_DIR]        default: demo_output
#
# Takes about three minutes on two cores, without the installation. A second run reuses
# the environment, the data and the trained networks; remove OUTPUT_DIR to start over.
set -euo pipefail

# shellcheck source=tools/environment.sh
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
if [[ ${1:-} == --help || ${1:-} == -h ]]; then
  print_help
  exit 0
fi
cd "$PROJECT_ROOT"

output=${1:-demo_output}
data=$output/data
frames=150
k=10
cells=64
network() { # BLOCK_LEN: a small HierarchicalLSTM
  echo "HierarchicalLSTM(cells=$cells, block_len=$1, head='logistic(bias_init=-3)')"
}
features=(--feature_names=rgb,audio --feature_sizes=256,64)
world=("${features[@]}" --num_classes=100 --max_frames=$frames)
training=(
  "${world[@]}"
  --train_data_pattern="$data/train*.tfrecord"
  --validation_data_pattern="$data/validate*.tfrecord"
  --teacher="$(network 10)" --student="$(network 5)" --student_k=$k
  --batch_size=32 --num_epochs=8 --base_learning_rate=0.003
  --log_steps=47 --steps_per_loop=47
)

heading() { printf '\n== [%4d s] %s\n' "$SECONDS" "$*"; }
run() { "$CURRENT_VENV/bin/python" "$@"; }

heading "Environment"
ensure_current_environment

heading "Synthetic videos in YouTube-8M's native format"
run tools/make_synthetic_records.py --output_dir="$data" "${world[@]}" \
  --num_train=3000 --num_validate=600 --num_test=600 --signal=0.8

heading "Serial: a teacher on all $frames frames, then a student on $k of them"
run yt8m_distill/train.py --mode=serial --train_dir="$output/serial" "${training[@]}"

heading "Uniform-$k: the same network on $k frames, from scratch"
run yt8m_distill/train.py --mode=baseline --train_dir="$output/uniform" \
  "${training[@]}"

heading "Parallel: teacher and student in the same steps"
run yt8m_distill/train.py --mode=parallel --train_dir="$output/parallel" \
  "${training[@]}"

heading "Evaluation on the test videos"
evaluate() { # RUN NETWORK
  run yt8m_distill/eval.py --train_dir="$output/$1" --network="$2" --run_once \
    --batch_size=64 --eval_data_pattern="$data/test*.tfrecord"
}
evaluate serial teacher
evaluate serial student
evaluate uniform student
evaluate parallel student

heading "Kaggle CSV"
run yt8m_distill/inference.py --train_dir="$output/serial" \
  --input_data_pattern="$data/test*.tfrecord" --output_file="$output/predictions.csv"
head -n 2 "$output/predictions.csv" | cut -c 1-70

heading "SavedModel of the student, loaded back"
run yt8m_distill/export_model.py --train_dir="$output/serial" \
  --export_dir="$output/saved_model"
run yt8m_distill/classify_records.py --model="$output/saved_model" \
  --records="$data/test0000.tfrecord"

heading "Result, on the test videos"
run tools/summarize_runs.py "$output/serial" "$output/uniform" "$output/parallel"
