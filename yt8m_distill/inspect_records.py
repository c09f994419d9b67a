"""Inspects records and prints the flags for them, and the conversion that they need.

    yt8m-inspect --data_pattern='data/train*.tfrecord' --vocabulary=vocabulary.csv

Prints statistics of features and classes, unusual and invalid records, a yt8m-convert
command for records of other writers, and last the flags of train.py for this data, or
for the converted data.
"""

import collections
import dataclasses
import itertools
import json
import math
import shlex

from yt8m_distill import flag_groups, settings, vocabulary

flag_groups.load_tensorflow()

import numpy as np
import tqdm

from yt8m_distill import file_patterns, files
from yt8m_distill.data import faults, judging, layouts, records, segments
from yt8m_distill.evaluation import per_class

_BARS = 12
_SAMPLE = 100  # Records by which the layout is recognized.
_NAMED = 5  # Classes named at each end.


@dataclasses.dataclass
class Feature:
    """Statistics of one feature.

    Attributes:
        width: of a frame.
        frames: number of frames → number of videos with so many.
        dtypes: `uint8`, `float32`.
        low, high, total: minimum, maximum and sum of all numbers.
        zeros: number of frames of only 0, or of only byte 127, the nearest to 0.
    """

    width: int
    frames: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    dtypes: set = dataclasses.field(default_factory=set)
    low: float = math.inf
    high: float = -math.inf
    total: float = 0.0
    zeros: int = 0

    def add(self, frames: np.ndarray) -> None:
        """Adds the frames [T, width] of a video."""
        self.frames[len(frames)] += 1
        self.dtypes.add(frames.dtype.name)
        low, high = frames.min(axis=1), frames.max(axis=1)
        self.low = min(self.low, float(low.min()))
        self.high = max(self.high, float(high.max()))
        self.total += float(frames.sum(dtype=np.float64))
        zero = (0, 127) if frames.dtype == np.uint8 else (0,)
        self.zeros += int(((low == high) & np.isin(low, zero)).sum())

    def to_dict(self) -> dict:
        """JSON values."""
        num_frames = sum(n * c for n, c in self.frames.items()) or 1
        videos, lengths = self.frames.total(), self.frames or [0]
        return {
            "width": self.width,
            "videos": videos,
            "dtype": "/".join(sorted(self.dtypes)),
            "frames": [min(lengths), num_frames / max(videos, 1), max(lengths)],
            "values": [self.low, self.total / num_frames / self.width, self.high],
            "zero_frames": self.zeros / num_frames,
        }


class Findings:
    """Statistics of the records read so far.

    Attributes:
        layout, unused: see layouts.recognize.
        bare: whether files have no TFRecord framing.
        names: class → name, may be incomplete.
        videos: number of usable records, converted or not.
        features: name → its statistics.
        ranges: the features' ranges (low:high, comma separated) → number of records.
        frames, labels, labels_per_video: number of frames (of the shortest feature),
            label, number of labels → number of videos.
        segments: rated segments of YouTube-8M 2019: number of videos with any, of
            ratings, and of ratings as present.
        problems: unusual property → number of videos.
        foreign: fault → number of videos that must be converted because of it.
        bad: unusable records.
    """

    def __init__(self, layout: layouts.Layout, unused: dict, bare: bool, names: dict):
        self.layout, self.unused, self.bare, self.names = layout, unused, bare, names
        self.videos = self._vector = 0
        self.features = {source.name: Feature(source.size) for source in layout.sources}
        counters = [collections.Counter() for _ in range(6)]
        self.frames, self.labels, self.labels_per_video = counters[:3]
        self.problems, self.foreign, self.ranges = counters[3:]
        self.bad: list[faults.Bad] = []
        self.segments = collections.Counter(videos=0, ratings=0, present=0)
        self._ids: set[bytes] = set()
        self._native = settings.DataSettings(
            feature_names=",".join(source.key for source in layout.sources),
            feature_sizes=",".join(str(source.size) for source in layout.sources),
            num_classes=layouts.MAX_CLASSES,
            max_frames=layouts.MAX_FRAMES,
            video_id_key=layout.video_id_key,
            labels_key=layout.labels_key,
            missing_feature="zeros",
            frame_features=layout.frame_features,
        )

    def add(self, record: faults.Record) -> None:
        """Adds one record."""
        try:
            video = layouts.read_video(record, self.layout)
        except faults.Invalid as error:
            self.bad.append(record.bad(error))
            return
        self.videos += 1
        context = record.context.feature
        vector = layouts.label_vector(context.get(self.layout.labels_key))
        self._vector = max(self._vector, vector)
        stored = [records.stored_range(context, s.key) for s in self.layout.sources]
        self.ranges[",".join(f"{low:g}:{high:g}" for low, high in stored)] += 1
        lengths = {len(frames) for frames in video.frames.values()}
        ratings, wrong = segments.read(record.context)
        if wrong or segments.problem(ratings, min(lengths), self._native):
            self.problems["have invalid rated segments"] += 1
        if ratings:
            present = sum(rating.score for rating in ratings)
            self.segments.update(videos=1, ratings=len(ratings), present=present)
        try:
            judging.judge(record, self._native)
            if vector:
                self.foreign[faults.Fault.LABEL_VECTOR] += 1
        except faults.Invalid as error:
            # The record was read, so yt8m-convert can convert it.
            self.foreign[error.fault] += 1
        if video.video_id and video.video_id in self._ids:
            self.problems["repeat an id"] += 1
        self._ids.add(video.video_id)
        self.labels.update(set(video.labels))
        self.labels_per_video[len(set(video.labels))] += 1
        for name, frames in video.frames.items():
            self.features[name].add(frames)
            if _look_like_floats(frames):
                self.problems[
                    f"have {name} frames that look like {frames.shape[1] // 4} float32 "
                    "stored as bytes, which train as 8-bit numbers: write float lists"
                ] += 1
        self.frames[min(lengths)] += 1
        if len(lengths) > 1:
            self.problems["have features of different length"] += 1
        if self.ranges.most_common(1)[0][1] < self.ranges.total():
            self.problems["are quantized over other ranges"] = (
                self.ranges.total() - self.ranges.most_common(1)[0][1]
            )
        for name in self.features.keys() - video.frames.keys():
            self.problems[f"have no {name}"] += 1

    @property
    def convert(self) -> bool:
        """Whether the records must be converted for training."""
        tolerated = settings.ReadingSettings.max_bad_fraction * self.videos
        return self.bare or self.foreign.total() > tolerated

    def conversion(self, pattern: str) -> list[str]:
        """The command that makes native records, as words; empty if not needed."""
        if not self.convert:
            return []
        layout = self.layout
        sources = [f"{name}={key}:{size}" for name, key, size in layout.sources]
        return [
            "yt8m-convert",
            f"--input_data_pattern={pattern}",
            "--output_dir=native",
            f"--features={','.join(sources)}",
            f"--video_id_key={layout.video_id_key}",
            f"--labels_key={layout.labels_key}",
            *(["--noframe_features"] * (not layout.frame_features)),
            *(["--missing_feature=zeros"] * self._lacks_a_feature()),
            *(["--bad_records=skip"] * bool(self.bad)),
        ]

    def _lacks_a_feature(self) -> bool:
        return any(f.frames.total() < self.videos for f in self.features.values())

    def skipped(self) -> faults.Skipped:
        """The records that training skips; none if yt8m-convert skips them before."""
        bad = () if self.convert else tuple(self.bad)
        lost = 0 if self.convert else len(bad) + self.foreign.total()
        return faults.Skipped(self.videos + len(bad) - lost, bad, lost)

    def suggestion(self) -> list[str]:
        """The flags of train.py for this data, after the conversion if needed."""
        layout = self.layout
        names = [s.name if self.convert else s.key for s in layout.sources]
        id_key, labels_key = layout.video_id_key, layout.labels_key
        if self.convert:
            id_key, labels_key = "id", "labels"
        num_classes, max_frames = self.published()
        suggested = [
            f"--feature_names={','.join(names)}",
            f"--feature_sizes={self._native.feature_sizes}",
            f"--num_classes={num_classes}",
            f"--video_id_key={id_key}",
            *([f"--labels_key={labels_key}"] * (labels_key != "labels")),
            *(["--missing_feature=zeros"] * self._lacks_a_feature()),
            *(["--bad_records=skip"] * bool(self.skipped().num_lost)),
        ]
        ((stored, _),) = self.ranges.most_common(1)
        if set(stored.split(",")) != {"-2:2"} and not self.convert:
            suggested.append(f"--feature_ranges={stored}")
        if not layout.frame_features:
            # A student would read the same single vector as the teacher.
            alone = ("--mode=teacher", "--teacher=FrameLevelLogisticModel")
            return [*suggested, "--noframe_features", *alone]
        suggested.append(f"--max_frames={max_frames}")
        if max_frames < settings.SamplingSettings().largest_k:
            suggested.append(f"--student_k={max(max_frames // 3, 1)}")
        return suggested

    def published(self) -> tuple[int, int]:
        """Classes and frames of a matching published data set, or the maximum found."""
        needed = max(self._vector - 1, 0, *self.labels, *self.names) + 1
        widths = {source.name: source.size for source in self.layout.sources}
        for known, versions, max_frames in layouts.PUBLISHED:
            for classes in versions:
                if widths.items() <= known.items() and needed <= classes:
                    return needed if self._vector else classes, max_frames
        return needed, max(self.frames)

    def to_dict(self, pattern: str = "", names_from: str = "") -> dict:
        """JSON values, for --json; `names_from` is the file of `names`."""
        layout, bad = self.layout, faults.Skipped(self.videos, tuple(self.bad), 0)
        return {
            "videos": self.videos,
            "kind": "frame level" if layout.frame_features else "video level",
            "video_id_key": layout.video_id_key,
            "labels_key": layout.labels_key,
            "features": {name: f.to_dict() for name, f in self.features.items()},
            "unused": self.unused,
            "frames": dict(sorted(self.frames.items())),
            "labels": dict(sorted(self.labels.items())),
            "labels_per_video": dict(sorted(self.labels_per_video.items())),
            "segments": dict(self.segments),
            "problems": dict(self.problems.most_common()),
            "foreign": {fault.value: n for fault, n in self.foreign.most_common()},
            "bad": bad.to_dict()["reasons"],
            "convert": self.conversion(pattern),
            "flags": [
                *self.suggestion(),
                *([f"--vocabulary={names_from}"] * bool(names_from)),
            ],
        }


def _look_like_floats(frames: np.ndarray) -> bool:
    """Whether bytes [T, width] are more likely little-endian float32 numbers.

    Nine in ten of the numbers other than 0 are of 1e-6 to 1e4 then; of random bytes
    one in eight is.
    """
    if frames.dtype != np.uint8 or frames.shape[1] % 4:
        return False
    size = np.abs(np.ascontiguousarray(frames).view("<f4"))
    size = size[size != 0]  # NaN stays, and is not between.
    return size.size > 0 and np.mean((size > 1e-6) & (size < 1e4)) > 0.9


def histogram(counts: collections.Counter) -> list[str]:
    """A bar chart of the number of frames per video, as text."""
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


def _class_lines(findings: Findings) -> list[str]:
    """Labels per video, and the most and least frequent classes."""
    labels, numbers = findings.labels, findings.labels_per_video
    num_classes, _ = findings.published()
    if not labels:
        return [
            f"no labels under {findings.layout.labels_key!r}: use such videos in "
            "addition to labeled ones, with --unlabeled_data_pattern"
        ]
    names = [findings.names.get(c, "") for c in range(num_classes)]
    named = [f"{c} {name}".strip() for c, name in enumerate(names)]
    counted = [f"{named[c]} ({n})" for c, n in labels.most_common()]
    unseen = [name for c, name in enumerate(named) if c not in labels]
    mean = labels.total() / findings.videos
    return [
        f"labels {min(labels)} to {max(labels)}, {min(numbers)} to {max(numbers)} per "
        f"video (mean {mean:.2f}), {numbers[0]} videos without",
        f"{len(labels)} classes seen; most frequent: {', '.join(counted[:_NAMED])}; "
        f"least: {', '.join(counted[: -_NAMED - 1 : -1])}",
        f"{len(unseen)} of {num_classes} classes without a video"
        + (f": {', '.join(unseen[:_NAMED])}" if unseen else ""),
    ]


def report(findings: Findings, pattern: str = "", names_from: str = "") -> str:
    """The statistics as text."""
    found = findings.to_dict(pattern, names_from)
    lines = [
        f"{settings.counted(found['videos'], 'video')}, {found['kind']}, id under "
        f"{found['video_id_key']!r}, labels under {found['labels_key']!r}"
    ]
    for name, feature in found["features"].items():
        frames, values = feature["frames"], feature["values"]
        lines.append(
            f"feature {name}: {feature['width']} wide, {feature['dtype']}, "
            f"{settings.counted(feature['videos'], 'video')}, {frames[0]} to "
            f"{settings.counted(frames[2], 'frame')} (mean "
            f"{frames[1]:.1f}), values {values[0]:.4g} to {values[2]:.4g} (mean "
            f"{values[1]:.4g}), {feature['zero_frames']:.2%} of the frames all zero"
        )
    lines += [f"not read: {key}: {why}" for key, why in found["unused"].items()]
    lines += _class_lines(findings)
    if found["segments"]["videos"]:
        lines.append(
            "rated segments: {ratings} in {counted}, of {present} the class is "
            "present; --segment_labels trains and evaluates on them".format(
                counted=settings.counted(found["segments"]["videos"], "video"),
                **found["segments"],
            )
        )
    if findings.layout.frame_features:
        lines += ["frames per video:", *histogram(findings.frames)]
    lines += [
        f"odd: {count} of {settings.counted(found['videos'], 'video')} {what}"
        for what, count in found["problems"].items()
    ]
    for reason, of_reason in found["bad"].items():
        count = settings.counted(of_reason["count"], "record")
        lines.append(f"invalid: {count}, {reason}; the first: {of_reason['first']}")
    lines += [
        f"not native: {settings.counted(count, 'video')}, {why}"
        for why, count in found["foreign"].items()
    ]
    try:
        findings.skipped().check_fraction(settings.ReadingSettings.max_bad_fraction)
    except ValueError as error:
        lines.append(f"training with these flags will stop: {error}")
    if found["convert"]:
        lines.append("convert: " + shlex.join(found["convert"]))
    lines.append("flags: " + shlex.join(found["flags"]))
    return "\n".join(lines)


def inspect(
    paths: list[str], id_key="", max_records=0, labels_key="", names: dict | None = None
) -> Findings:
    """Reads the records of these files.

    Raises:
        ValueError: for a damaged file, or if no record is usable.
    """
    total = sum(map(layouts.count, paths))
    total = min(total, max_records) if max_records else total
    records_of_all = itertools.chain.from_iterable(map(layouts.records_of, paths))
    first = list(itertools.islice(records_of_all, min(_SAMPLE, total)))
    samples = [record for record in first if record.is_example]
    layout, unused = layouts.recognize(samples, id_key, labels_key)
    if not first:
        raise ValueError(f"{', '.join(paths)}: there are no records.")
    if not layout.sources:
        why = [f"{key}: {why}" for key, why in unused.items()]
        why += [] if samples else ["none is a SequenceExample or an Example"]
        raise ValueError(". ".join([f"{paths[0]}: no record has a feature", *why]))
    bare = any(map(layouts.is_bare, paths))
    findings = Findings(layout, unused, bare, names or {})
    rest = itertools.islice(records_of_all, total - len(first))
    with tqdm.tqdm(total=total, unit="video", disable=None) as bar:
        for record in itertools.chain(first, rest):
            findings.add(record)
            bar.update()
    if not findings.videos:
        raise ValueError(findings.bad[0].message)
    return findings


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    data_pattern: str = settings.setting(
        "",
        "Globs of the shards, comma separated.",
        required="name the files.",
        path="pattern",
    )
    video_id_key: str = settings.setting("", "Context key of the id. Empty: detect it.")
    labels_key: str = settings.setting(
        "", "Context key of the labels. Empty: detect it."
    )
    vocabulary: str = settings.setting(
        "", "CSV with the names of the classes.", path="file"
    )
    max_records: int = settings.setting(
        0, "Maximum number of records. 0: all.", minimum=0
    )
    per_class_file: str = settings.setting(
        "", "CSV to write with the number of videos of each class.", path="file"
    )
    json: bool = settings.setting(False, "Print the results as JSON.")


def main(request: Request) -> None:
    """Settings → report."""
    paths = file_patterns.expand(request.data_pattern, "data_pattern")
    target = request.per_class_file
    if target:
        files.check_target(target, f"--per_class_file={target}", paths)
    names = vocabulary.read(request.vocabulary)
    given = (request.video_id_key, request.max_records, request.labels_key, names)
    findings = inspect(paths, *given)
    if target:
        count, _ = findings.published()
        videos = np.array([findings.labels[c] for c in range(count)])
        per_class.write(target, np.full(count, np.nan), videos, names)
    where = request.data_pattern, request.vocabulary
    if request.json:
        print(json.dumps(findings.to_dict(*where)))
    else:
        print(report(findings, *where))


run = flag_groups.script(main, (Request,))


if __name__ == "__main__":
    run()
