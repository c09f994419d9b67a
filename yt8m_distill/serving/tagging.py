"""Classifies a video file from the frames that an exported network reads."""

import dataclasses
import os
import time
from typing import NamedTuple

import numpy as np

from yt8m_distill import settings
from yt8m_distill.data import records
from yt8m_distill.serving import exported
from yt8m_distill.video import decoding, extraction


class Tagged(NamedTuple):
    """The classes of a video, and the cost.

    Attributes:
        classes, scores: [k] of the best, best first.
        frames: positions of the frames used, among those of a full record; ascending.
        num_frames: frames of a full record.
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

    Of a network with early exit the frames of each budget are decoded only once it asks
    for more than those before.

    Args:
        folder: exported with --extraction_manifest.
        student_k: frames to read; 0: as exported.
        image_network, audio_network: specifications, where the files of a network are
            not where they were when the features were made.

    Raises:
        ValueError: for a folder or network that cannot be used, or another image
            network than the one that made the features.
    """

    def __init__(
        self,
        folder: str,
        student_k: int = 0,
        image_network: str = "",
        audio_network: str = "",
    ):
        self._network = exported.ExportedNetwork(folder, student_k)
        made_by = exported.read_features(folder)
        given = settings.FeatureSettings(**made_by["settings"])
        moved = {
            flag: os.path.join(exported.folder_in(folder), flag)
            for flag in exported.PCAS
            if getattr(given, flag)
        }
        moved["image_network"] = image_network or given.image_network
        moved["audio_network"] = audio_network or given.audio_network
        given = dataclasses.replace(given, **moved)
        self._extractor = extraction.Extractor(given)
        self._widths = self._extractor.widths
        self._may_lack = made_by["missing_feature"] == "zeros"
        now = self._extractor.description["sha256"]
        for name, value in now.items():
            expected = made_by["sha256"].get(name)
            if value != expected:
                raise ValueError(
                    f"--{name}={getattr(given, name, '')} is not the one that made the "
                    f"features: its SHA-256 is {value}, not {expected}."
                )
        for branch in self._extractor.branches.values():
            before = made_by["settings"][branch.flag]
            if not branch.is_at_another_place(before):
                raise ValueError(
                    f"--{branch.flag}={branch.text} is not the one that made the "
                    f"features, {before}; only the path of its files may differ."
                )
        blank = {n: np.zeros([1, w], np.uint8) for n, w in self._widths.items()}
        self._classify(blank)  # Warms up.
        self._network.choose(1, "")  # Makes the table of `nested`.

    def _classify(self, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        ranges = self._extractor.ranges
        parts = [records.dequantize(x, *ranges[n]) for n, x in features.items()]
        return self._network.classify(np.concatenate(parts, axis=1)[np.newaxis])

    def _features(self, path: str, inputs: dict, count: int) -> dict[str, np.ndarray]:
        """Feature → [count, width] uint8, also of those that the file lacks."""
        features = self._extractor.features(inputs)
        for name in self._widths.keys() - features.keys():
            if not self._may_lack:
                raise ValueError(f"{path}: it has no {name}, which the network reads.")
            shape = [count, self._widths[name]]
            blank = records.zero_byte(*self._extractor.ranges[name])
            features[name] = np.full(shape, blank, np.uint8)
        return features

    def tag(self, path: str) -> Tagged:
        """Decodes the network's frames of a video and classifies them.

        Raises:
            ValueError: for a video that cannot be read; names it.
        """
        began, seconds = time.perf_counter(), np.zeros(3)
        with decoding.Clip(path) as clip:
            frames = self._extractor.frames_of(clip)
            (video_id,) = extraction.ids_of([path]).values()
            chosen = self._network.choose(len(frames), video_id)
            if not chosen:
                raise ValueError(f"{path}: the network's sampler chooses no frame.")
            samples = self._extractor.samples_of(clip)
            budgets, length = (len(chosen),), len(chosen)
            early_exit = self._network.budgets
            if early_exit:
                # The network gets a whole video, and looks at the frames of a budget
                # only if it has not stopped before; until then they are blank.
                budgets = early_exit
                length = min(len(frames), self._network.max_frames)
            features = {
                n: np.zeros([length, w], np.uint8) for n, w in self._widths.items()
            }
            for start, stop in zip((0, *budgets), budgets, strict=False):
                positions = sorted(chosen[start:stop])
                inputs = self._extractor.inputs(clip, samples, positions)
                marks = [began, time.perf_counter()]
                rows = positions if early_exit else slice(None)
                found = self._features(path, inputs, len(positions))
                for name, vectors in found.items():
                    features[name][rows] = vectors
                marks.append(time.perf_counter())
                answer = self._classify(features)
                marks.append(began := time.perf_counter())
                seconds += np.diff(marks)
                (used,) = answer.get("num_frames_used", [len(chosen)])
                if used <= stop:
                    break
        parts = ("decode", "features", "network")
        return Tagged(
            answer["class_indexes"][0],
            answer["predictions"][0],
            sorted(chosen[:used]),
            len(frames),
            clip.num_decoded,
            len(clip.seconds),
            dict(zip(parts, seconds.tolist(), strict=True)),
        )
