"""From a video file to its classes, by way of the network's frames alone."""

import dataclasses
import time
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import pipeline, records
from yt8m_distill.serving import extras
from yt8m_distill.video import decoding, extraction


class Tagged(NamedTuple):
    """What was found of a video, and what it cost.

    Attributes:
        classes, scores: [k] of the best, best first.
        frames: positions among those that records would hold, of the frames used.
        num_frames: how many records would hold.
        num_decoded: frames of the file that were decoded.
        num_in_file: frames of the file.
        seconds: name of each part → how long it took.
    """

    classes: np.ndarray
    scores: np.ndarray
    frames: list[int]
    num_frames: int
    num_decoded: int
    num_in_file: int
    seconds: dict[str, float]


class Tagger:
    """An exported network and the image network whose features it was trained on.

    Args:
        folder: exported with --extraction_manifest.
        image_network: a specification, where the files of the network are not where
            they were when the features were made.
        student_k: frames to read; 0: as exported.

    Raises:
        ValueError: for a folder or network that cannot be used, or another image
            network than the one that made the features.
    """

    def __init__(self, folder: str, image_network: str = "", student_k: int = 0):
        model = extras.read_description(folder)
        made_by = extras.read_features(folder)
        self._max_frames = model["max_frames"]
        self._view = pipeline.ViewSpec(model["sampler"], model["k"])
        if student_k:
            if self._view.sampler == "all" or student_k > self._view.k:
                frames = "all" if self._view.sampler == "all" else self._view.k
                raise ValueError(
                    f"--student_k={student_k}: the network of --model={folder} reads "
                    f"{frames} frames."
                )
            self._view = self._view._replace(k=student_k)
        given = settings.FeatureSettings(**made_by["settings"])
        if image_network:
            given = dataclasses.replace(given, image_network=image_network)
        if given.pca:
            given = dataclasses.replace(given, pca=extras.folder_in(folder))
        self._range = given.range
        self._extractor = extraction.Extractor(given)
        now = self._extractor.describe()
        for part in ("image_network_sha256", "pca_sha256"):
            if now[part] != made_by[part]:
                raise ValueError(
                    f"--image_network={given.image_network} is not the one that made "
                    f"the features: {part} {now[part]} instead of {made_by[part]}."
                )
        # The user names a model that they trust.
        self._serve = tf.saved_model.load(folder).signatures["frames"]  # noqa: TID251
        self._classify(np.zeros([1, self._extractor.width], np.uint8))  # Warms up.

    def _classify(self, features: np.ndarray) -> dict[str, np.ndarray]:
        frames = tf.constant(records.dequantize(features, *self._range)[np.newaxis])
        count = tf.constant([len(features)], tf.int32)
        return {
            k: v.numpy()
            for k, v in self._serve(frames=frames, num_frames=count).items()
        }

    def tag(self, path: str) -> Tagged:
        """Decodes the network's frames of a video and classifies them.

        Raises:
            ValueError: for a video that cannot be read; names it.
        """
        marks = [time.perf_counter()]
        with decoding.Clip(path) as clip:
            frames = self._extractor.frames_of(clip)
            (video_id,) = extraction.ids_of([path]).values()
            chosen = pipeline.pick_frames(
                self._view, len(frames), self._max_frames, video_id
            )
            if not chosen:
                sampler = self._view.sampler
                raise ValueError(f"{path}: the sampler {sampler} chooses no frame.")
            images = self._extractor.images(clip, frames[chosen])
        marks.append(time.perf_counter())
        features = self._extractor.features(images)
        marks.append(time.perf_counter())
        found = self._classify(features)
        marks.append(time.perf_counter())
        parts = ("decode", "features", "network")
        return Tagged(
            found["class_indexes"][0],
            found["predictions"][0],
            chosen,
            len(frames),
            clip.num_decoded,
            len(clip.seconds),
            dict(zip(parts, np.diff(marks).tolist(), strict=True)),
        )
