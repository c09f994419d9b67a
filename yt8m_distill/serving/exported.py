"""A SavedModel of yt8m-export, used from Python on the frames that it reads."""

import numpy as np
import tensorflow as tf

from yt8m_distill.data import pipeline
from yt8m_distill.models import early_exit
from yt8m_distill.serving import extras


class ExportedNetwork:
    """An exported network, and which frames of a video it reads.

    Args:
        folder: of the SavedModel.
        student_k: frames to read; 0: as exported.

    Attributes:
        widths: feature → numbers per frame.
        max_frames: frames of a video from which it chooses.
        budgets: of early exit; otherwise empty.

    Raises:
        ValueError: for a folder that is not one of yt8m-export, or a `student_k` that
            the network cannot read.
    """

    def __init__(self, folder: str, student_k: int = 0):
        model = extras.read_description(folder)
        if model["format"] != "saved_model":
            raise ValueError(
                f"--model={folder} is of yt8m-export --format={model['format']}; this "
                "program needs --format=saved_model."
            )
        if model.get("segment_starts"):
            raise ValueError(
                f"--model={folder} is of yt8m-export --segments; this program needs a "
                "network of whole videos."
            )
        self.max_frames = model["max_frames"]
        names, sizes = model["feature_names"], model["feature_sizes"]
        self.widths = dict(zip(names, sizes, strict=True))
        self.budgets = tuple(model.get("exit_budgets", ()))
        view = pipeline.ViewSpec(model["sampler"], model["k"])
        if self.budgets:
            view = pipeline.ViewSpec(early_exit.SAMPLER, self.budgets[-1])
        refused = ""
        if self.budgets and student_k:
            refused = "stops by itself (early exit)"
        elif view.sampler == "all" and student_k:
            refused = "reads all frames"
        elif student_k > view.k:
            refused = f"reads {view.k} frames"
        if refused:
            raise ValueError(
                f"--student_k={student_k}: the network of --model={folder} {refused}."
            )
        self._view = view._replace(k=student_k or view.k)
        # The user names a model that they trust.
        self._serve = tf.saved_model.load(folder).signatures["frames"]  # noqa: TID251

    def choose(self, num_frames: int, video_id: str) -> list[int]:
        """The frames that it reads of a video, in evaluation.

        In the order of time; with early exit those of each budget before those that a
        larger one adds. Some samplers may choose none.
        """
        given = self._view, [num_frames], self.max_frames, [video_id]
        return pipeline.pick_frames(*given)[0]

    def classify(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The answers of the signature `frames`.

        Args:
            frames: [N, T, D] float32, dequantized: the chosen ones; with early exit all
                frames of the videos.
        """
        count = tf.fill([len(frames)], frames.shape[1])
        found = self._serve(frames=tf.constant(frames), num_frames=count)
        return {name: value.numpy() for name, value in found.items()}
