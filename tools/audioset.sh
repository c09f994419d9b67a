#!/usr/bin/env bash
# The four scripts on real data: AudioSet's balanced train set as native records (10
# frames of 128 bytes a clip, 527 classes). Files 0-13 train, 14-15 validate.
#
#   tools/audioset.sh DATA_DIR [OUTPUT_DIR]        default: audioset_output
#
# Trains a teacher on 10 frames, a serial student and two baselines on 3 of them,
# evaluates, predicts, exports, and writes the table into results/audioset.md and
# README.md. About 15 minutes on two processors; finished parts are not run again.
set -euo pipefail

if (($# < 1)) || [[ $1 == --help ]]; then
  sed -n '2,/^set /{/^#/s/^# \{0,1\}//p;}' "${BASH_SOURCE[0]}"
  exit 0
fi
data=$(cd "$1" && pwd)
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=tools/environment.sh
source tools/environment.sh
output=${2:-audioset_output}
network="HierarchicalLSTM(cells=256, block_len=5, head='logistic(bias_init=-5)')"
validate="$data/bal_train-0001[45]-of-00016.tfrecord"
training=(
  --feature_names=audio_embedding --feature_sizes=128 --num_classes=527
  --max_frames=10 --video_id_key=video_id --student_k=3
  --train_data_pattern="$data/bal_train-0000?-of-*,$data/bal_train-0001[0-3]-of-*"
  --validation_data_pattern="$validate"
  --teacher="$network" --student="$network"
  --batch_size=128 --num_epochs=15 --learning_rate_schedule=cosine --log_steps=152
)
run() { "$CURRENT_VENV/bin/python" "$@"; }

ensure_current_environment

# The student learns from the teacher's predictions alone, on three frames that
# differ from epoch to epoch, for twice as long; it is evaluated on uniform frames.
run yt8m_distill/train.py "${training[@]}" --mode=serial --train_dir="$output/serial" \
  --student_loss="pred" --train_frame_sampler=random --student_epochs=30
run yt8m_distill/train.py "${training[@]}" --mode=baseline \
  --train_dir="$output/uniform"
# The same change of frames without a teacher: what the frames alone are worth.
run yt8m_distill/train.py "${training[@]}" --mode=baseline --num_epochs=30 \
  --train_frame_sampler=random --train_dir="$output/random_frames"

for part in serial:teacher serial:student uniform:student random_frames:student; do
  run yt8m_distill/eval.py --run_once --train_dir="$output/${part%:*}" \
    --network="${part#*:}" --eval_data_pattern="$validate"
done
run yt8m_distill/inference.py --train_dir="$output/serial" \
  --input_data_pattern="$validate" --output_file="$output/predictions.csv"
run yt8m_distill/export_model.py --train_dir="$output/serial" \
  --export_dir="$output/saved_model"
run tools/classify_records.py --model="$output/saved_model" --count=3 \
  --records="$data/bal_train-00015-of-00016.tfrecord"
for file in results/audioset.md README.md; do
  run tools/summarize_runs.py "$output/serial" "$output/uniform" \
    "$output/random_frames" --write_to="$file" --section=audioset
done
