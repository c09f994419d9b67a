"""From a video file to a native record, and the description of how it was made."""

import concurrent.futures
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m_distill import files, settings, structures
from yt8m_distill.data import layouts, pipeline, records, rewriting
from yt8m_distill.video import decoding, networks, reduction

IMAGE = "rgb"  # The feature's name in YouTube-8M, and here.


class Extractor:
    """What turns frames of a video into features.

    Args:
        given: of the image network and the PCA.

    Attributes:
        given: the same.
        width: numbers per frame.

    Raises:
        ValueError: for a network or PCA that cannot be read, or do not fit each other.
    """

    def __init__(self, given: settings.FeatureSettings):
        if not given.image_network:
            raise ValueError("--image_network is empty: name the network.")
        self.given = given
        self._network = networks.open_network(given.image_network, "image_network")
        self._pca = reduction.read(given.pca, "pca") if given.pca else None
        black = np.zeros([1, *self._network.size, 3], np.uint8)
        try:
            self.width = self.features(black).shape[1]
        except (ValueError, tf.errors.OpError) as error:
            where = f"--image_network={given.image_network}"
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"{where} fails on a black image: {reason}") from error

    def frames_of(self, clip: decoding.Clip) -> np.ndarray:
        """The frames of a file that are those of its record, [n] int64."""
        return clip.at_rate(self.given.fps, self.given.max_frames)

    def images(self, clip: decoding.Clip, frames: np.ndarray) -> np.ndarray:
        """These frames as the network takes them, [n, H, W, 3] uint8."""
        return clip.images(frames, self._network.size)

    def features(self, images: np.ndarray) -> np.ndarray:
        """[n, width] uint8, quantized over --feature_range."""
        vectors = self._network.vectors(images)
        if self._pca:
            vectors = self._pca.reduce(vectors)
        return records.quantize(vectors, *self.given.range)

    def describe(self) -> dict[str, Any]:
        """What made the features: settings and hashes; plain values."""
        return {
            "settings": dataclasses.asdict(self.given),
            "image_network_sha256": self._network.hash(),
            "pca_sha256": {
                name: hashlib.sha256(
                    pathlib.Path(self.given.pca, name).read_bytes()
                ).hexdigest()
                for name in (reduction.FILES if self.given.pca else ())
            },
            "features": {IMAGE: self.width},
        }


def _bytes(*values: bytes) -> tf.train.Feature:
    return tf.train.Feature(bytes_list=tf.train.BytesList(value=values))


def _integers(values: Sequence[int]) -> tf.train.Feature:
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def make_record(
    path: str, video_id: str, extractor: Extractor, view: pipeline.ViewSpec | None
) -> bytes:
    """A serialized SequenceExample without labels.

    Args:
        path: of the video.
        video_id: of the record.
        extractor: what makes the features.
        view: the frames to decode and keep; None: all. The record is then as one of
            yt8m-thin, with `num_frames` and `frame_indices` in its context.

    Raises:
        ValueError: for a video that cannot be read; names it.
    """
    with decoding.Clip(path) as clip:
        frames = extractor.frames_of(clip)
        context = {"id": _bytes(video_id.encode())}
        if extractor.given.range != settings.YOUTUBE_8M:
            key = f"{IMAGE}_range"
            context[key] = records.range_feature(*extractor.given.range)
        if view:
            chosen = pipeline.pick_frames(
                view, len(frames), extractor.given.max_frames, video_id
            )
            context[structures.NUM_FRAMES] = _integers([len(frames)])
            context[structures.FRAME_INDICES] = _integers(chosen)
            frames = frames[chosen]
        if not len(frames):
            raise ValueError(
                f"{path}: --frame_sampler={view.sampler} chooses none of its frames."
            )
        features = extractor.features(extractor.images(clip, frames))
    steps = [_bytes(row.tobytes()) for row in features]
    example = tf.train.SequenceExample(
        context=tf.train.Features(feature=context),
        feature_lists=tf.train.FeatureLists(
            feature_list={IMAGE: tf.train.FeatureList(feature=steps)}
        ),
    )
    return example.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Records of many videos, by way of a folder with one part per finished video.

    A part has its name by all that decides on what is in it, and has it only once it
    is whole. So a run that was stopped goes on with the videos that are missing.

    Args:
        videos: path → id.
        extractor: what makes the features.
        view: see make_record.
        folder: of the parts.
    """

    videos: Mapping[str, str]
    extractor: Extractor
    view: pipeline.ViewSpec | None
    folder: str

    def parts(self) -> dict[str, str]:
        """Path of each video → its part.

        Raises:
            ValueError: for a video that is not there.
        """
        made_by = json.dumps([self.extractor.describe(), self.view], sort_keys=True)
        found = {}
        for path, video_id in self.videos.items():
            with decoding.one_line_errors(path):
                stat = os.stat(path)
            key = [os.path.abspath(path), stat.st_size, stat.st_mtime_ns, video_id]
            text = json.dumps([*key, made_by])
            name = hashlib.sha256(text.encode()).hexdigest()[:32]
            found[path] = os.path.join(self.folder, f"{name}.tfrecord")
        return found

    def make_parts(self, jobs: int, done: Callable[[], Any]) -> dict[str, str]:
        """Makes the parts that are missing.

        Args:
            jobs: videos that are read side by side.
            done: called after each video.

        Returns:
            Path → what is wrong, of each video that cannot be read.
        """
        problems = {}
        parts = self.parts()
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            # Decoder and network leave the interpreter to other threads.
            tasks = {pool.submit(self._make, *item): item[0] for item in parts.items()}
            try:
                for task in concurrent.futures.as_completed(tasks):
                    if task.result():
                        problems[tasks[task]] = task.result()
                    done()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {path: problems[path] for path in parts if path in problems}

    def _make(self, path: str, part: str) -> str:
        if os.path.exists(part):
            return ""
        try:
            record = make_record(path, self.videos[path], self.extractor, self.view)
        except ValueError as error:
            line = " ".join(str(error).split())
            return line if line.startswith(path) else f"{path}: {line}"
        with files.one_line_errors(part), rewriting.writing(part) as writer:
            writer.write(record)
        return ""

    def join(self, target: str, labels: Mapping[str, Sequence[int]]) -> int:
        """Writes the records of all parts as one shard; how many frames they have.

        Args:
            target: the shard, which has its name once it is whole.
            labels: path → classes of a video.
        """
        num_frames = 0
        with files.one_line_errors(target), rewriting.writing(target) as writer:
            for path, part in self.parts().items():
                if not os.path.exists(part):
                    continue
                (serialized,) = layouts.read_serialized(part)
                example = tf.train.SequenceExample.FromString(serialized)
                feature = _integers(labels.get(path, ()))
                example.context.feature["labels"].CopyFrom(feature)
                num_frames += len(example.feature_lists.feature_list[IMAGE].feature)
                writer.write(example.SerializeToString(deterministic=True))
        return num_frames


def ids_of(paths: Sequence[str]) -> dict[str, str]:
    """Path → id: the name without its extension; where that repeats, the path."""
    stems = [pathlib.Path(path).stem for path in paths]
    repeated = {stem for stem in stems if stems.count(stem) > 1}
    return {
        path: path if stem in repeated else stem
        for path, stem in zip(paths, stems, strict=True)
    }
