"""Evaluates a trained network: GAP@20, mAP, Hit@1, PERR.

    python yt8m_distill/eval.py --train_dir=run --run_once \\
        --eval_data_pattern='validate*.tfrecord'

With --segment_labels it evaluates the rated segments of the videos: mAP@K and GAP.

Each evaluation is printed, appended to <train_dir>/eval/metrics.jsonl as one JSON
object, and written for TensorBoard to <train_dir>/eval/<network>. The same pass writes
the Kaggle CSV of inference.py with --output_file=predictions.csv, and the average
precision of each class with --per_class_file.
"""

import contextlib
import logging
import os
import sys
import time

from yt8m_distill import flag_groups, settings, vocabulary

# By name: in a script `__name__` is `__main__`, and only the package's lines are shown.
_LOG = logging.getLogger("yt8m_distill.eval")


class Evaluation:
    """The evaluation of a network on some shards, for any number of its checkpoints.

    Args:
        trained: the network; its weights are those of the checkpoint at hand.
        checkpoint, evaluation, reading: the settings of the program.
    """

    def __init__(self, trained, checkpoint, evaluation, reading):
        from yt8m_distill.evaluation import evaluator
        from yt8m_distill.training import actions

        self.trained, self.checkpoint = trained, checkpoint
        self.evaluation, self.reading = evaluation, reading
        self.names = trained.class_names(evaluation.vocabulary)
        self.log = actions.MetricsLog(os.path.join(checkpoint.train_dir, "eval"))
        self.log.check_writable()
        self.judge = evaluator.build(  # Once: its graph serves every checkpoint.
            trained.runner,
            trained.run.data,
            checkpoint.top_k,
            evaluation.segment_max_pred,
        )

    def run(self, predictions_file=None) -> None:
        """Evaluates the weights at hand, and writes and prints the results.

        The CSV of `predictions_file`, if any, is complete before the metrics are
        written.
        """
        from yt8m_distill.evaluation import per_class
        from yt8m_distill.serving import skips

        trained, pattern = self.trained, self.evaluation.eval_data_pattern
        shards = trained.open_shards(pattern, self.reading, "eval_data_pattern")
        skipped = shards.skipped()
        dataset = trained.dataset(shards, self.checkpoint.batch_size)
        with predictions_file or contextlib.nullcontext() as writer:
            result = self.judge.evaluate(
                dataset,
                progress=sys.stderr.isatty(),
                writer=writer,
                num_skipped=len(skipped.bad),
            )
        if self.evaluation.output_file:
            skips.write_list(self.evaluation.output_file, skipped)
            _LOG.info("The predictions are in %s.", self.evaluation.output_file)
        for reason in skipped.lines():
            _LOG.warning("%s", reason)
        if not result.class_positives.any():
            what = f"{result.num_unlabeled} videos has a label"
            if self.evaluation.segment_labels:
                count = result.metrics.num_segments
                what = f"{count} segments has a class that is present"
            raise ValueError(
                f"--eval_data_pattern={pattern}: none of the {what}, so the "
                "predictions cannot be evaluated."
            )
        of_classes = result.class_precisions, result.class_positives, self.names
        path = self.evaluation.per_class_file
        if path:
            per_class.write(path, *of_classes)
        numbers = result.to_dict()
        self._log(numbers, skipped)
        self._print(numbers)
        if self.names or path:
            print(*per_class.best_and_worst(*of_classes), sep="\n", flush=True)

    def _log(self, numbers: dict, skipped) -> None:
        """Writes to metrics.jsonl and for TensorBoard."""
        from yt8m_distill.training import actions

        trained, given = self.trained, self.evaluation
        line = {
            "network": trained.role,
            "checkpoint": trained.found.prefix,
            "eval_data_pattern": given.eval_data_pattern,
            "asked": self.checkpoint.asked,
            "segment_labels": given.segment_labels,
            "mean_with": given.mean_with,
            "mean_weight": given.mean_weight if given.mean_with else 0.0,
            **numbers,
        }
        if skipped.bad:
            line["skipped"] = skipped.to_dict()["reasons"]
        self.log.line("evaluation", trained.found.step, line)
        # A curve per folder: of each network, and of what else is asked.
        is_as_trained = self.checkpoint.student_k == trained.run.sampling.largest_k
        asked = "" if is_as_trained else self.checkpoint.asked
        words = asked.removeprefix("--").replace("=", "_")
        names = [trained.role, words, "mean" * bool(given.mean_with)]
        self.log.scalars(
            actions.evaluation_scalars(numbers),
            max(trained.found.step, 0),
            subfolder="_".join(filter(None, names)),
        )
        self.log.flush()

    def _print(self, numbers: dict) -> None:
        from yt8m_distill.training import actions

        prefix = f"step {self.trained.found.step} | {self.trained.role}"
        if self.evaluation.mean_with:
            prefix += f" | --mean_with={self.evaluation.mean_with}"
        print(actions.evaluation_line(prefix, numbers), flush=True)
        for name in ("frames_histogram", "stopped_at"):
            if name in numbers:  # With early exit.
                counts = ", ".join(f"{k}: {n}" for k, n in numbers[name].items())
                print(f"{name.replace('_', ' ').capitalize()} | {counts}", flush=True)


def main(
    checkpoint: settings.CheckpointSettings,
    evaluation: settings.EvalSettings,
    reading: settings.ReadingSettings,
    stated: dict,
) -> None:
    """Settings → network → metrics, once or at every new checkpoint."""
    if checkpoint.early_exit and not evaluation.run_once:
        raise ValueError(
            f"{checkpoint.early_exit} goes with --run_once: each checkpoint needs its "
            "own calibration."
        )
    vocabulary.read(evaluation.vocabulary)
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill import file_patterns, files
    from yt8m_distill.serving import predictions
    from yt8m_distill.training import checkpoints
    from yt8m_distill.training import trained as trained_networks

    inputs = file_patterns.expand(evaluation.eval_data_pattern, "eval_data_pattern")
    predictions_file = None
    if evaluation.output_file:
        # Checks the path now, before the network is loaded.
        predictions_file = predictions.PredictionWriter(
            evaluation.output_file, inputs=inputs
        )
    path = evaluation.per_class_file
    if path and not files.is_remote(path):
        files.check_target(path, f"--per_class_file={path}", inputs)
    trained = trained_networks.open_network(
        checkpoint,
        wait=not evaluation.run_once,
        stated=stated,
        segment_context=(
            evaluation.segment_context if evaluation.segment_labels else None
        ),
    )
    if evaluation.mean_with:
        trained.mean_with(checkpoint, evaluation.mean_with, evaluation.mean_weight)
    job = Evaluation(trained, checkpoint, evaluation, reading)
    if evaluation.run_once:
        job.run(predictions_file)
        return
    _LOG.info("Waiting for checkpoints in %s.", checkpoint.train_dir)
    seen = None
    while True:
        found = checkpoints.find(
            checkpoint.train_dir, trained.plan, trained.role, checkpoint.checkpoint
        )
        if found and found != seen:
            seen = found
            try:
                trained.load(found)
            except ValueError as error:  # Training has just replaced it.
                _LOG.warning("%s", error)
                continue
            job.run()
        time.sleep(evaluation.eval_interval_secs)


run = flag_groups.script(
    main,
    (settings.CheckpointSettings, settings.EvalSettings, settings.ReadingSettings),
    of_a_run=True,
)


if __name__ == "__main__":
    run()
