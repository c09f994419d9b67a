"""From a video file to a native record, and the description of how it was made."""

import collections
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

from yt8m_distill import file_patterns, files, registry, settings, structures
from yt8m_distill.data import faults, pipeline, records, rewriting
from yt8m_distill.video import decoding, networks, reduction, sound

PARTS_SUFFIX = ".parts"  # Of the folder of finished videos, after --output.
IMAGE, SOUND = "rgb", "audio"  # The features' names in YouTube-8M, and here.


class _Branch:
    """One feature: its network, the PCA after it, and the range of its bytes.

    Args:
        given: the settings of both features.
        flag: of its network.
        pca_flag: of its PCA, whose value is a folder or empty.
        low_high: the range of its numbers.
    """

    def __init__(self, given, flag: str, pca_flag: str, low_high):
        self.flag, self.text, self.range = flag, getattr(given, flag), low_high
        self.network = networks.open_network(self.text, flag)
        self._pca_flag, self._folder = pca_flag, getattr(given, pca_flag)
        self._pca = reduction.read(self._folder, pca_flag) if self._folder else None
        blank = np.zeros([1, *self.network.size], np.float32)
        if flag == "image_network":
            blank = np.zeros([*blank.shape, 3], np.uint8)
        try:
            self.width = self.features(blank).shape[1]
        except (ValueError, tf.errors.OpError) as error:
            reason = str(error).strip().splitlines()[0]
            raise ValueError(f"--{self.flag}={self.text}: {reason}") from error

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """[n, width] uint8, quantized over the range."""
        vectors = self.network.vectors(inputs)
        if self._pca:
            vectors = self._pca.reduce(vectors)
        return records.quantize(vectors, *self.range)

    def hashes(self) -> dict[str, str]:
        """Flag or file → SHA-256 of everything that determines the feature."""
        found = {self.flag: self.network.hash()}
        for name in reduction.FILES if self._pca else ():
            path = os.path.join(self._folder, name)
            found[f"{self._pca_flag}/{name}"] = networks.file_hash(path)
        return found

    def paths(self) -> dict[str, str]:
        """Flag → its value with absolute paths, true in any working directory."""
        text, spec = self.text, registry.parse(self.text)
        paths = self._paths_among(spec.arguments)
        if paths and not os.path.isabs(self.network.path):
            absolute = {name: os.path.abspath(path) for name, path in paths.items()}
            text = str(registry.Specification(spec.name, spec.arguments | absolute))
        folder = os.path.abspath(self._folder) if self._folder else ""
        return {self.flag: text, self._pca_flag: folder}

    def _paths_among(self, arguments: Mapping[str, Any]) -> dict[str, str]:
        """The arguments that are the path of the network's files."""
        return {
            name: value
            for name, value in arguments.items()
            if str(value).rstrip("/") == self.network.path
        }

    def is_at_another_place(self, text: str) -> bool:
        """Whether a specification differs only in the path of the network's files."""
        before, now = registry.parse(text), registry.parse(self.text)
        registered = networks.REGISTERED[self.flag]
        old, new = (registered.arguments(spec) for spec in (before, now))
        return (before.name, old | self._paths_among(new)) == (now.name, new)


class Extractor:
    """What turns frames of a video, and its sound, into features.

    Attributes:
        branches: feature → its network and what follows it.
        ranges: feature → low and high of its numbers.
        widths: feature → numbers per frame.
        description: settings, SHA-256 of all files used, widths; plain values.

    Raises:
        ValueError: for a network or PCA that cannot be read, or do not fit each other.
    """

    def __init__(self, given: settings.FeatureSettings):
        if not given.image_network:
            raise ValueError("--image_network is empty: name the network.")
        self.given = given
        self.branches = {IMAGE: _Branch(given, "image_network", "pca", given.range)}
        if given.audio_network:
            of_sound = "audio_network", "audio_pca", given.sound_range
            self.branches[SOUND] = _Branch(given, *of_sound)
        self.ranges = {name: branch.range for name, branch in self.branches.items()}
        self.widths = {name: branch.width for name, branch in self.branches.items()}
        stated, hashes = dataclasses.asdict(given), {}
        for branch in self.branches.values():
            stated |= branch.paths()
            hashes |= branch.hashes()
        self.description: dict[str, Any] = {
            "settings": stated,
            "sha256": hashes,
            "features": self.widths,
        }

    def frames_of(self, clip: decoding.Clip) -> np.ndarray:
        """The frames of a file that are those of its record, [n] int64."""
        return clip.at_rate(self.given.fps, self.given.max_frames)

    def samples_of(self, clip: decoding.Clip) -> np.ndarray | None:
        """The sound of a file's record, see sound.read; None where none is asked for.

        Not of the whole file: an hour takes 230 MB.
        """
        if SOUND not in self.ranges:
            return None
        # An example is less than a second long.
        return sound.read(clip.path, len(self.frames_of(clip)) / self.given.fps + 1)

    def inputs(
        self,
        clip: decoding.Clip,
        samples: np.ndarray | None,
        positions: Sequence[int],
    ) -> dict[str, np.ndarray]:
        """Feature → inputs of its network; no `audio` for a file without sound.

        Args:
            samples: see samples_of.
            positions: among the frames of its record; ascending.
        """
        frames = self.frames_of(clip)[positions]
        found = {IMAGE: clip.images(frames, self.branches[IMAGE].network.size)}
        if samples is not None:
            times = np.asarray(positions) / self.given.fps
            found[SOUND] = sound.examples(samples, times)
        return found

    def features(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Feature → [n, width] uint8."""
        return {name: self.branches[name].features(x) for name, x in inputs.items()}


def make_record(
    path: str, video_id: str, extractor: Extractor, view: pipeline.ViewSpec | None
) -> bytes:
    """A serialized SequenceExample without labels.

    Args:
        view: the frames to decode and keep; None: all. The record is then as one of
            yt8m-thin, with `num_frames` and `frame_indices` in its context.

    Raises:
        ValueError: for a video that cannot be read; names it.
    """
    example = tf.train.SequenceExample()
    context = example.context.feature
    context["id"].bytes_list.value.append(video_id.encode())
    with decoding.Clip(path) as clip:
        num_frames = len(extractor.frames_of(clip))
        chosen = list(range(num_frames))
        if view:
            (chosen,) = pipeline.pick_frames(
                view, [num_frames], extractor.given.max_frames, [video_id]
            )
            context[structures.NUM_FRAMES].int64_list.value.append(num_frames)
            context[structures.FRAME_INDICES].int64_list.value.extend(chosen)
        if not chosen:
            raise ValueError(
                f"{path}: --frame_sampler={view.sampler} chooses none of its frames."
            )
        samples = extractor.samples_of(clip)
        features = extractor.features(extractor.inputs(clip, samples, chosen))
    for name, rows in features.items():
        records.add_frames(example, name, rows, extractor.ranges[name])
    return example.SerializeToString(deterministic=True)


@dataclasses.dataclass(frozen=True)
class Extraction:
    """Records of many videos, collected in a folder with one part per finished video.

    The name of a part is a hash of all that determines its content, and it appears once
    it is complete. So an interrupted run continues with the missing videos.

    Args:
        videos: path → id.
        view: see make_record.
        folder: of the parts.
    """

    videos: Mapping[str, str]
    extractor: Extractor
    view: pipeline.ViewSpec | None
    folder: str

    def part(self, path: str) -> str:
        """The file of a video's part.

        Raises:
            ValueError: if the video does not exist.
        """
        with decoding.one_line_errors(path):
            stat = os.stat(path)
        file = [os.path.abspath(path), stat.st_size, stat.st_mtime_ns]
        made_by = [self.videos[path], self.extractor.description, self.view]
        text = json.dumps([*file, *made_by], sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:32]
        return os.path.join(self.folder, f"{name}.tfrecord")

    def parts(self) -> list[str]:
        """The parts of all videos, in their order."""
        return [self.part(path) for path in self.videos]

    def make_parts(self, jobs: int, done: Callable[[], Any]) -> dict[str, str]:
        """Makes the parts that are missing.

        Args:
            jobs: videos that are read in parallel.
            done: called after each video.

        Returns:
            Path → what is wrong, of each video that cannot be read.
        """
        problems = {}
        with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
            # Threads suffice: decoder and network release the interpreter's lock.
            tasks = {pool.submit(self.make_part, path): path for path in self.videos}
            try:
                for task in concurrent.futures.as_completed(tasks):
                    if task.result():
                        problems[tasks[task]] = task.result()
                    done()
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise
        return {path: problems[path] for path in self.videos if path in problems}

    def make_part(self, path: str) -> str:
        """Makes a video's part if it is missing; returns why it cannot be made."""
        part = self.part(path)
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

    def reuse(self, source: str, parts: Mapping[str, str]) -> None:
        """Takes parts from an earlier output whose videos and settings are the same.

        Args:
            source: a shard of `join`; its damaged records are left out.
            parts: id → name of the part that its record was made from.
        """
        paths = {video_id: path for path, video_id in self.videos.items()}
        for record in faults.walk(source) if parts else ():
            if isinstance(record, faults.Bad):
                continue
            example = record.example
            (video_id,) = example.context.feature["id"].bytes_list.value
            name, path = parts.get(video_id.decode()), paths.get(video_id.decode())
            part = self.part(path) if path else ""
            if not name or name != os.path.basename(part) or os.path.exists(part):
                continue
            example.context.feature.pop("labels")
            with files.one_line_errors(part), rewriting.writing(part) as writer:
                writer.write(example.SerializeToString(deterministic=True))

    def join(
        self, target: str, labels: Mapping[str, Sequence[int]]
    ) -> tuple[int, dict[str, list[float]]]:
        """Writes the records of all parts as one shard.

        Args:
            target: the shard, written atomically.
            labels: path → classes of a video.

        Returns:
            The number of frames, and feature → smallest and largest number, share of
            the numbers at the low and at the high end of the range, or beyond it.
        """
        num_frames, ranges = 0, self.extractor.ranges
        counts = {name: np.zeros(256, np.int64) for name in ranges}
        with files.one_line_errors(target), rewriting.writing(target) as writer:
            for path, part in zip(self.videos, self.parts(), strict=True):
                if not os.path.exists(part):
                    continue
                (example,) = (record.example for record in faults.sound(part))
                numbers = tf.train.Int64List(value=labels.get(path, ()))
                feature = tf.train.Feature(int64_list=numbers)
                example.context.feature["labels"].CopyFrom(feature)
                lists = example.feature_lists.feature_list
                num_frames += len(lists[IMAGE].feature)
                for name in lists:
                    for step in lists[name].feature:
                        row = np.frombuffer(step.bytes_list.value[0], np.uint8)
                        counts[name] += np.bincount(row, minlength=256)
                writer.write(example.SerializeToString(deterministic=True))
        found = {name: _summary(counts[name], ends) for name, ends in ranges.items()}
        return num_frames, {name: numbers for name, numbers in found.items() if numbers}


def _summary(counts: np.ndarray, low_high: tuple[float, float]) -> list[float]:
    """See Extraction.join; of the number of times that each byte occurs, [256]."""
    found = np.flatnonzero(counts)
    if not found.size:
        return []
    numbers = records.dequantize(found[[0, -1]], *low_high)
    return [*numbers.tolist(), *(counts[[0, 255]] / counts.sum()).tolist()]


def ids_of(paths: Sequence[str]) -> dict[str, str]:
    """Path → id: the name without its extension; where that repeats, the path."""
    stems = {path: pathlib.Path(path).stem for path in paths}
    counts = collections.Counter(stems.values())
    return {path: path if counts[stem] > 1 else stem for path, stem in stems.items()}


def plan(
    given: settings.ExtractionSettings, features: settings.FeatureSettings
) -> Extraction:
    """The extraction that the settings describe.

    Raises:
        ValueError: for settings that cannot be followed.
    """
    videos = file_patterns.expand(given.videos, "videos")
    view = None
    if given.frames:
        sampling = settings.SamplingSettings(
            student_k=str(given.frames), frame_sampler=given.frame_sampler
        )
        view = pipeline.sampled_view(sampling, training=False)
    decoding.import_av()
    folder = given.output + PARTS_SUFFIX
    return Extraction(ids_of(videos), Extractor(features), view, folder)
