"""Looks at native records and suggests the flags for them.

    yt8m-inspect --data_pattern='data/train*.tfrecord'

Prints counts, frame histogram, features with their widths, the range of the labels
and what is odd, and ends with the flags of train.py for this data.
"""

import collections
import dataclasses
import json
import os
import sys

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups, settings

flag_groups.load_tensorflow()

import tensorflow as tf
import tqdm
from absl import flags

from yt8m_distill.data import faults, records

FLAGS = flags.FLAGS

# Published data sets: widths of their features, classes of their versions, frames.
_PUBLISHED = (
    ({"inc3": 1024, "mean_inc3": 1024}, (4800,), 300),
    ({"rgb": 1024, "audio": 128}, (3862, 4716, 4800), 300),
    ({"mean_rgb": 1024, "mean_audio": 128}, (3862, 4716, 4800), 300),
    ({"audio_embedding": 128}, (527,), 10),
)
_ID_KEYS = ("id", "video_id")
_BARS = 12
_NO_EXAMPLE = "this is neither a SequenceExample nor an Example"


@dataclasses.dataclass
class Findings:
    """What is in the records seen so far.

    Attributes:
        videos: records.
        kind: `frame level` or `video level`.
        id_key: context key of the id.
        widths: feature → width → how many frames (or vectors) have it.
        holders: feature → how many videos have it.
        frames: frames → how many videos have so many.
        labels: label → how many videos have it.
        labels_a_video: number of labels → how many videos.
        problems: what is odd → how many videos.
        ids: all ids seen, to find repeated ones.
    """

    videos: int = 0
    kind: str = ""
    id_key: str = ""
    widths: dict = dataclasses.field(default_factory=dict)
    holders: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    frames: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    labels: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    labels_a_video: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    problems: collections.Counter = dataclasses.field(
        default_factory=collections.Counter
    )
    ids: set = dataclasses.field(default_factory=set)

    def add(self, serialized: bytes, id_key: str) -> None:
        """Takes in one record.

        Raises:
            ValueError: if it is neither of the two kinds.
        """
        example = _parse(serialized)
        context = example.context.feature
        lists = example.feature_lists.feature_list
        if not context and not lists:
            raise ValueError(_NO_EXAMPLE)
        self.videos += 1
        self._add_context(context, id_key)
        kind = "frame level" if lists else "video level"
        self.kind = self.kind or kind
        if kind != self.kind:
            self.problems[f"is {kind}, unlike the first"] += 1
        elif lists:
            self._add_lists(lists)
        else:
            self._add_vectors(context)

    def _add_context(self, context, id_key: str) -> None:
        keys = [key for key in ((id_key,) if id_key else _ID_KEYS) if key in context]
        if keys:
            self.id_key = self.id_key or keys[0]
            values = context[keys[0]].bytes_list.value
            video_id = values[0] if values else b""
            if video_id in self.ids:
                self.problems["repeats an id"] += 1
            self.ids.add(video_id)
        else:
            self.problems["has no id"] += 1
        labels = set(context["labels"].int64_list.value) if "labels" in context else ()
        self.labels.update(labels)
        self.labels_a_video[len(labels)] += 1
        if any(label < 0 for label in labels):
            self.problems["has a negative label"] += 1

    def _add_lists(self, lists) -> None:
        lengths = set()
        for name, feature_list in lists.items():
            found = [
                len(value)
                for frame in feature_list.feature
                for value in frame.bytes_list.value
            ]
            self._add_widths(name, found)
            lengths.add(len(found))
        self.frames[min(lengths)] += 1
        if len(lengths) > 1:
            self.problems["has features of different length"] += 1
        if not min(lengths):
            self.problems["has no frames"] += 1

    def _add_vectors(self, context) -> None:
        for name, feature in context.items():
            if feature.WhichOneof("kind") == "float_list":
                self._add_widths(name, [len(feature.float_list.value)])

    def _add_widths(self, name: str, found: list[int]) -> None:
        if not found:
            return
        self.holders[name] += 1
        known = self.widths.setdefault(name, collections.Counter())
        known.update(found)
        if set(found) != {next(iter(known))}:
            self.problems[f"has {name} of another width than the first"] += 1

    def all_problems(self) -> dict[str, int]:
        """What is odd → how many videos, the most frequent first."""
        problems = collections.Counter(self.problems)
        for name, count in self.holders.items():
            if self.kind and count < self.videos:
                problems[f"has no {name}"] = self.videos - count
        return dict(problems.most_common())

    def suggestion(self) -> list[str]:
        """The flags of train.py for this data."""
        widths = {
            name: self.widths[name].most_common(1)[0][0]
            for name in sorted(self.widths, key=lambda name: ("audio" in name, name))
        }
        num_classes, max_frames = self._published(widths)
        suggested = [
            f"--feature_names={','.join(widths)}",
            f"--feature_sizes={','.join(map(str, widths.values()))}",
            f"--num_classes={num_classes}",
            f"--video_id_key={self.id_key or 'id'}",
        ]
        if self.kind == "video level":
            # A student would see the one vector that the teacher sees.
            alone = ("--mode=teacher", "--teacher=FrameLevelLogisticModel")
            return [*suggested, "--noframe_features", *alone]
        suggested.append(f"--max_frames={max_frames}")
        if max_frames < settings.SamplingSettings().largest_k:
            suggested.append(f"--student_k={max(max_frames // 3, 1)}")
        return suggested

    def _published(self, widths: dict[str, int]) -> tuple[int, int]:
        """Classes and frames of the data set that this seems to be, or just enough."""
        needed = max(self.labels, default=0) + 1
        for known, versions, max_frames in _PUBLISHED:
            for classes in versions:
                if widths.items() <= known.items() and 0 < needed <= classes:
                    return classes, max_frames
        return max(needed, 1), max(self.frames, default=1) or 1

    def to_dict(self) -> dict:
        """Plain numbers, for --json."""
        return {
            "videos": self.videos,
            "kind": self.kind,
            "video_id_key": self.id_key,
            "features": {n: dict(sorted(w.items())) for n, w in self.widths.items()},
            "frames": dict(sorted(self.frames.items())),
            "labels": len(self.labels),
            "label_range": [min(self.labels), max(self.labels)] if self.labels else [],
            "labels_a_video": dict(sorted(self.labels_a_video.items())),
            "problems": self.all_problems(),
            "flags": self.suggestion(),
        }


def _parse(serialized: bytes) -> tf.train.SequenceExample:
    """A record of either kind: an Example reads as a context without lists."""
    try:
        return tf.train.SequenceExample.FromString(serialized)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise ValueError(_NO_EXAMPLE) from error


def histogram(counts: collections.Counter) -> list[str]:
    """Text bars of how many videos have how many frames."""
    low, high = min(counts), max(counts)
    step = max(-(-(high - low + 1) // _BARS), 1)
    bins = collections.Counter()
    for value, count in counts.items():
        bins[(value - low) // step] += count
    most = max(bins.values())
    lines = []
    for number in range((high - low) // step + 1):
        first = low + number * step
        last = min(first + step - 1, high)
        name = f"{first}" if first == last else f"{first}-{last}"
        bar = "#" * round(40 * bins[number] / most)
        lines.append(f"  {name:>9} {bins[number]:>8} {bar}")
    return lines


def report(findings: Findings) -> str:
    """The findings as text."""
    numbers = findings.labels_a_video
    mean = sum(n * c for n, c in numbers.items()) / findings.videos
    lines = [f"{findings.videos} videos, {findings.kind}, id under {findings.id_key!r}"]
    for name, widths in findings.widths.items():
        shown = ", ".join(f"{w} wide ({c} times)" for w, c in widths.most_common(3))
        lines.append(f"feature {name}: {shown}")
    if findings.labels:
        lines.append(
            f"labels {min(findings.labels)} to {max(findings.labels)}, "
            f"{len(findings.labels)} different, {mean:.2f} a video, "
            f"{numbers[0]} videos without"
        )
    else:
        lines.append("no labels")
    if findings.frames:
        total = sum(n * c for n, c in findings.frames.items())
        lines.append(f"frames: {total / findings.videos:.1f} a video")
        lines += histogram(findings.frames)
    for problem, count in findings.all_problems().items():
        lines.append(f"odd: {count} x a video {problem}")
    lines.append("flags: " + " ".join(findings.suggestion()))
    return "\n".join(lines)


def inspect(files: list[str], id_key: str = "", max_records: int = 0) -> Findings:
    """Reads the records of these files.

    Raises:
        ValueError: for a damaged file or record, naming both.
    """
    findings = Findings()
    total = records.count_records(files)
    total = min(total, max_records) if max_records else total
    with tqdm.tqdm(total=total, unit="video", disable=not sys.stderr.isatty()) as bar:
        for path in files:
            shard = tf.data.TFRecordDataset(path, records.compression_of(path))
            for number, record in enumerate(shard):
                if findings.videos >= total:
                    break
                try:
                    findings.add(record.numpy(), id_key)
                except ValueError as error:
                    where = f"{path}, record {number} (counted from 0)"
                    raise ValueError(f"{where}: {error}.") from error
                bar.update()
    if not findings.videos:
        raise ValueError(f"{', '.join(files)}: there are no records.")
    return findings


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string("data_pattern", "", "Glob of the shards; several by commas.")
    flags.DEFINE_string(
        "video_id_key", "", "Context key of the id. Empty: id or video_id."
    )
    flags.DEFINE_integer("max_records", 0, "Look at that many at most. 0: all.")
    flags.DEFINE_bool("json", False, "Print the findings as JSON.")


def main() -> None:
    """Flags → report."""
    files = records.expand_patterns(FLAGS.data_pattern, "data_pattern")
    try:
        findings = inspect(files, FLAGS.video_id_key, FLAGS.max_records)
    except tf.errors.OpError as error:
        raise ValueError(faults.describe_error(error, files) or str(error)) from error
    if not findings.widths:
        raise ValueError(f"{files[0]}: no record has a feature.")
    print(json.dumps(findings.to_dict()) if FLAGS.json else report(findings))


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags, words="data_pattern")


if __name__ == "__main__":
    run()
