"""What happens around the steps: log lines, TensorBoard, JSON lines."""

import logging
import math
import os
import time

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.training import manifest

_LOG = logging.getLogger(__name__)


class MetricsLog:
    """Writes one set of numbers to TensorBoard and to metrics.jsonl.

    Args:
        folder: of the phase.
        writes: False on workers that are not the chief.
    """

    def __init__(self, folder: str, writes: bool = True):
        self.folder = folder
        self.writes = writes
        self._writers: dict[str, tf.summary.SummaryWriter] = {}

    @property
    def _lines_path(self) -> str:
        return os.path.join(self.folder, "metrics.jsonl")

    def check_writable(self) -> None:
        """Makes the folder and the file for the lines now, before any work.

        Raises:
            ValueError: if the file system refuses.
        """
        with files.one_line_errors(self._lines_path):
            tf.io.gfile.makedirs(self.folder)
            tf.io.gfile.GFile(self._lines_path, "a").close()

    def go_back_to(self, step: int, epoch: int) -> None:
        """Drops the lines that a resumed run is going to write again.

        Args:
            step: done when the state was saved.
            epoch: epochs that were finished then.
        """
        if self.writes:
            manifest.keep_json_lines(
                self._lines_path,
                lambda line: (
                    line.get("step", 0) <= step and line.get("epoch", 0) <= epoch
                ),
            )

    def _writer(self, subfolder: str):
        if subfolder not in self._writers:
            path = os.path.join(self.folder, subfolder)
            self._writers[subfolder] = tf.summary.create_file_writer(path)
        return self._writers[subfolder]

    def scalars(self, values: dict[str, float], step: int, subfolder: str = "") -> None:
        """TensorBoard scalars by name."""
        if not self.writes:
            return
        with (
            files.one_line_errors(self.folder),
            self._writer(subfolder).as_default(),
        ):
            for name, value in values.items():
                tf.summary.scalar(name, value, step=step)

    def line(self, kind: str, step: int, values: dict) -> None:
        """One JSON object in metrics.jsonl."""
        if self.writes:
            record = {"kind": kind, "step": step, "time": round(time.time(), 3)}
            manifest.append_json_line(self._lines_path, {**record, **values})

    def flush(self) -> None:
        """Brings everything to disk."""
        with files.one_line_errors(self.folder):
            for writer in self._writers.values():
                writer.flush()


def training_scalars(means: dict[str, float], rate: float, speed: float) -> dict:
    """TensorBoard names of a training log point: the starter code's, and the parts.

    With two learners the starter's names carry the student's numbers, and each
    role's own stand under its name.
    """
    main = (
        "student" if any(name.startswith("student/") for name in means) else ("teacher")
    )
    named = {
        "learning_rate": rate,
        "global_step/Examples/Second": speed,
        "label_loss": means[f"{main}/label_loss"],
        "reg_loss": means[f"{main}/reg_loss"],
        "model/Training_Hit@1": means[f"{main}/Hit@1"],
        "model/Training_Perr": means[f"{main}/PERR"],
        "model/Training_GAP": means[f"{main}/GAP"],
    }
    return {**named, **means}


def evaluation_scalars(numbers: dict[str, float]) -> dict[str, float]:
    """TensorBoard names of an evaluation, as in the starter code."""
    return {
        "Epoch/Eval_Avg_Hit@1": numbers["hit_at_one"],
        "Epoch/Eval_Avg_Perr": numbers["perr"],
        "Epoch/Eval_Avg_Loss": numbers["loss"],
        "Epoch/Eval_MAP": numbers["map"],
        "Epoch/Eval_MAP_all_classes": numbers["map_all_classes"],
        "Epoch/Eval_GAP": numbers["gap"],
        "Epoch/Eval_Skipped": numbers.get("num_skipped", 0),
        "Epoch/Eval_Repeated_Ids": numbers.get("num_repeated_ids") or 0,
    }


def log_training(step: int, means: dict[str, float], speed: float) -> None:
    """The starter code's log line, once a learner."""
    for role in sorted({name.split("/")[0] for name in means}):
        _LOG.info(
            "training step %d | %s | Loss: %.4g Examples/sec: %.1f | Hit@1: %.3f "
            "PERR: %.3f GAP: %.3f",
            step,
            role,
            means[f"{role}/loss"],
            speed,
            means[f"{role}/Hit@1"],
            means[f"{role}/PERR"],
            means[f"{role}/GAP"],
        )


def evaluation_line(prefix: str, numbers: dict[str, float]) -> str:
    """The starter code's evaluation line, and what was skipped if anything was."""
    skipped = numbers.get("num_skipped")
    tail = f" | Skipped: {skipped}" if skipped else ""
    return (
        f"{prefix} | Avg_Hit@1: {numbers['hit_at_one']:.3f} | Avg_PERR: "
        f"{numbers['perr']:.3f} | MAP: {numbers['map']:.3f} | GAP: "
        f"{numbers['gap']:.3f} | Avg_Loss: {numbers['loss']:.4f}{tail}"
    )


def check_finite(means: dict[str, float], first_bad_step: int) -> None:
    """Stops a run whose loss or gradient is no longer a number.

    Raises:
        FloatingPointError: naming the step and the parts.
    """
    if first_bad_step < 0:
        return
    bad = [name for name, value in means.items() if not math.isfinite(value)]
    raise FloatingPointError(
        f"Step {first_bad_step}: {', '.join(bad) or 'the gradient'} is not a finite "
        "number. Nothing was saved since; the last checkpoint is intact. Try a lower "
        "--base_learning_rate or smaller weights in --student_loss."
    )
