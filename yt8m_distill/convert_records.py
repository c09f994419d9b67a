"""Converts records of other writers to native records; yt8m-inspect prints the command.

    yt8m-convert --input_data_pattern='mediapipe/*.tfrecord' --output_dir=native \\
        --features='rgb=RGB/feature/floats,audio=AUDIO/feature/floats'

Frames may be lists of floats (quantized to 8 bits as in YouTube-8M), lists of integers
or byte strings, with one Feature per frame or all frames in one; ids may be text or
integers; labels may be indices, floats or a 0/1 vector over all classes. A file is a
TFRecord file or one bare SequenceExample.

Arrays are converted too: .npy, .npz, .h5 or .parquet files, one per video, with an
array [T, D] per feature, and a CSV of labels as for yt8m-extract:

    yt8m-convert --input_data_pattern='clip/*.npz' --labels=labels.csv \\
        --features=rgb=embeddings --output_dir=native

They are quantized to 8 bits over the range of all their numbers, or over
--feature_ranges; each record stores the range. The program prints how much the numbers
changed, and with --model, an exported network, its GAP on the numbers and on their 8
bits.

Shards keep their names, and records their order and their other context features. When
run again, the program continues with the missing shards.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import shlex
from collections.abc import Iterator, Mapping, Sequence

import tqdm

from yt8m_distill import flag_groups, settings

flag_groups.load_tensorflow()

import tensorflow as tf

from yt8m_distill import file_patterns, files, vocabulary
from yt8m_distill.data import arrays, faults, layouts, records, rewriting
from yt8m_distill.data import labels as label_files
from yt8m_distill.serving import exported, quantization

# Flags that apply to one kind of input only.
_OF_ARRAYS = ("labels", "vocabulary")
_OF_RECORDS = ("video_id_key", "labels_key", "missing_feature", "bad_records")
_OF_RECORDS += ("frame_features",)

_VIDEOS_PER_SHARD = 1000  # When converting arrays, one file per video.


@dataclasses.dataclass
class Converted:
    """Counts of what has been converted.

    Attributes:
        videos: number of videos.
        unnamed: number of records without an id.
        changed: feature → what quantization changed.
        skipped: a line for each skipped record.
        unlabeled: files of arrays, or where records are, without labels.
        existing: number of shards that existed already.
    """

    videos: int = 0
    existing: int = 0
    unnamed: int = 0
    changed: dict[str, records.Rounding] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    unlabeled: list[str] = dataclasses.field(default_factory=list)

    def add_video(self, changed: Mapping[str, records.Rounding]) -> None:
        """Counts one video."""
        self.videos += 1
        for name, found in changed.items():
            before = self.changed.get(name, records.Rounding())
            self.changed[name] = before.join(found)

    def report(self, folder: str) -> str:
        """The closing lines."""
        videos = settings.counted(self.videos, "video")
        counts = f"{videos} in {folder}, {len(self.skipped)} skipped."
        if self.existing:
            shards = settings.counted(self.existing, "shard")
            counts = f"{counts[:-1]}; {shards} existed already."
        lines = [*self.skipped, counts]
        if self.unnamed:
            lines.append(
                f"{self.unnamed} had no id and are named <file>:<record number>."
            )
        if self.unlabeled:
            number, first = len(self.unlabeled), self.unlabeled[0]
            lines.append(f"Without labels: {number}; the first: {first}.")
        lines += [
            f"{name}: {changed.count} numbers in 8 bits; {changed}."
            for name, changed in self.changed.items()
            if changed.count
        ]
        return "\n".join(lines)


def parse_features(text: str) -> tuple[layouts.Source, ...]:
    """`"rgb=RGB/feature/floats,audio=a:128"` → Sources.

    Raises:
        ValueError: for any other text.
    """
    sources = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        name, equals, key = part.partition("=")
        key, colon, size = key.partition(":") if equals else (name, "", "")
        if not (name and key) or (colon and not (size.isdigit() and int(size))):
            raise ValueError(
                f"--features={text}: {part!r} is not name, name=key or name=key:size."
            )
        sources.append(layouts.Source(name, key, int(size or 0)))
    if not sources or len({source.name for source in sources}) < len(sources):
        raise ValueError(f"--features={text} must name each native feature once.")
    return tuple(sources)


def convert_record(
    record: faults.Record, layout: layouts.Layout
) -> tuple[bytes, layouts.Video, dict[str, records.Rounding]]:
    """A native record: context `id` and `labels`, and the features by their names.

    Returns:
        The record, the video that it is made of, and name → what quantization changed.

    Raises:
        faults.Invalid: if it cannot be converted.
    """
    video = layouts.read_video(record, layout)
    native = tf.train.SequenceExample(context=record.context)
    context = native.context.feature
    keys = {layout.video_id_key, layout.labels_key, "id", "labels"}
    for key in keys.union(*((s.key, s.name) for s in layout.sources)):
        context.pop(key, None)
    frames = video.frames
    if not layout.frame_features:
        for name, vector in frames.items():
            context[name].float_list.value.extend(vector.ravel())
        frames = {}
    video_id = video.video_id or _default_id(record).encode()
    ranges = [ranges_of(layout)[name] for name in frames]
    made, changed = arrays.make_record(video_id, video.labels, frames, ranges, native)
    return made, video, changed


def _default_id(record: faults.Record) -> str:
    return f"{os.path.basename(record.path)}:{record.number}"


def ranges_of(layout: layouts.Layout) -> quantization.Ranges:
    """Low and high of each feature."""
    ranges = layout.ranges or (settings.YOUTUBE_8M,) * len(layout.sources)
    return {s.name: pair for s, pair in zip(layout.sources, ranges, strict=True)}


def convert(
    paths: Sequence[str],
    folder: str,
    layout: layouts.Layout,
    skip: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Converts shards, each to one of the same name, with atomic writes.

    Args:
        folder: of the native shards.
        skip: whether to continue after a record that cannot be converted.
        overwrite: whether to replace existing shards with other records.

    Raises:
        ValueError: for an invalid record, unless it is skipped, or an existing shard
            with other records; names it.
    """
    done = Converted()
    with rewriting.output_folder(folder, paths):
        for path in tqdm.tqdm(paths, unit="shard", disable=None):
            target = os.path.join(folder, os.path.basename(path))
            with faults.named([path], target):
                _convert_shard(path, target, layout, skip, overwrite, done)
    return done


def _convert_shard(path, target, layout, skip, overwrite, done: Converted) -> None:
    """Converts a shard, unless `target` has its records; `done` counts them."""
    if not overwrite and tf.io.gfile.exists(target):
        expected = _native_records(path, layout, skip, Converted())
        if rewriting.is_written(target, expected, layouts.count(path)):
            done.existing += 1
            return
    with rewriting.writing(target) as writer:
        for native in _native_records(path, layout, skip, done):
            writer.write(native)


def _native_records(
    path: str, layout: layouts.Layout, skip: bool, done: Converted
) -> Iterator[bytes]:
    """The native records of a shard; `done` counts them. Arguments as of `convert`."""
    for record in layouts.records_of(path):
        try:
            native, video, changed = convert_record(record, layout)
        except faults.Invalid as error:
            line = record.bad(error).message
            if not skip:
                raise ValueError(line) from error
            done.skipped.append(line)
            continue
        done.add_video(changed)
        done.unnamed += not video.video_id
        if not video.labels:
            done.unlabeled.append(record.where)
        yield native


def convert_arrays(
    paths: Sequence[str],
    folder: str,
    layout: layouts.Layout,
    labels: label_files.Labels,
    overwrite: bool,
) -> Converted:
    """Writes the arrays of all videos as shards of _VIDEOS_PER_SHARD.

    Args:
        paths: one file per video; its name without extension is the id.
        layout: the features, the names of their arrays, and their ranges.
        overwrite: whether to replace existing shards with other records.

    Raises:
        ValueError: for an invalid file, an existing shard with other records, or
            labels of none of the files.
    """
    classes_of = labels.find_each(paths)
    ids = [pathlib.Path(path).stem for path in paths]
    repeated = [stem for stem, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"--input_data_pattern: several files are called {repeated[0]}, which "
            "would be the id of each."
        )
    done = Converted()

    def make(path, video_id):
        classes = classes_of[path]
        if not classes:
            done.unlabeled.append(path)
        found = arrays.read(path, layout.sources)
        given = classes or (), found, layout.ranges
        record, changed = arrays.make_record(video_id, *given)
        done.add_video(changed)
        return record

    bar = tqdm.tqdm(list(zip(paths, ids, strict=True)), unit="video", disable=None)
    made = (make(*video) for video in bar)
    num_shards = -(-len(paths) // _VIDEOS_PER_SHARD)
    for number in range(num_shards):
        target = f"videos-{number:05d}-of-{num_shards:05d}.tfrecord"
        target = os.path.join(folder, target)
        of_shard = list(itertools.islice(made, _VIDEOS_PER_SHARD))
        if not overwrite and tf.io.gfile.exists(target):
            if [record.content for record in faults.sound(target)] == of_shard:
                continue
            raise ValueError(
                f"{target} exists with other records: use --overwrite or another "
                "--output_dir."
            )
        with files.one_line_errors(target), rewriting.writing(target) as writer:
            for record in of_shard:
                writer.write(record)
    return done


def originals(
    paths: Sequence[str], layout: layouts.Layout, labels: label_files.Labels | None
) -> Iterator[quantization.Original]:
    """The videos before conversion: of arrays if `labels` are given, else of records.

    Records that cannot be converted are left out.
    """
    for path in paths:
        if labels is not None:
            video_id, classes = pathlib.Path(path).stem, labels.find(path) or ()
            found = arrays.read(path, layout.sources)
            yield quantization.Original(video_id, classes, found)
            continue
        for record in layouts.records_of(path):
            try:
                video = layouts.read_video(record, layout)
            except faults.Invalid:
                continue
            video_id = video.video_id.decode(errors="replace") or _default_id(record)
            yield quantization.Original(video_id, video.labels, video.frames)


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    input_data_pattern: str = settings.setting(
        "",
        "Glob of the files to convert.",
        required="name the files.",
        path="pattern",
    )
    output_dir: str = settings.setting(
        "",
        "Directory of the native shards.",
        required="name the directory to write to.",
        path="file",
    )
    features: str = settings.setting(
        "rgb,audio",
        "Native features and their sources: name=key, or name=key:size with the width "
        "of a frame, if all frames are in one Feature; comma separated.",
    )
    labels: str = settings.setting(
        "",
        "For arrays: CSV with a header and one row per file: path or name, with or "
        "without extension, then labels: names or numbers, separated by semicolons or "
        "in further columns.",
        path="file",
    )
    vocabulary: str = settings.setting(
        "",
        "For arrays: CSV with the names of the classes in --labels. Empty: those in "
        "--labels, written to <output_dir>/vocabulary.csv.",
        path="file",
    )
    feature_ranges: str = settings.setting(
        "",
        "The values of bytes 0 and 255 of each feature, low:high, comma separated. "
        "Empty: -2:2; for arrays, the smallest and largest number of all files.",
    )
    video_id_key: str = settings.setting("id", "Context key of the id in the input.")
    labels_key: str = settings.setting("labels", "Context key of the input's labels.")
    frame_features: bool = settings.setting(
        True, "False: each feature is one float vector per video."
    )
    missing_feature: str = settings.setting(
        "refuse",
        "How to handle a record that lacks one of several features. refuse: it is "
        "invalid. zeros: convert the others, for training with "
        "--missing_feature=zeros.",
        choices=settings.MISSING_FEATURES,
    )
    bad_records: str = settings.setting(
        "stop",
        "How to handle an invalid record: stop or skip it.",
        choices=settings.BAD_RECORDS,
    )
    overwrite: bool = settings.setting(False, "Replace existing shards.")
    model: str = settings.setting(
        "",
        "Folder of a SavedModel of yt8m-export: prints its GAP on the numbers and on "
        "their 8 bits. Existing shards are kept.",
        path="file",
    )


def _convert_arrays(request: Request, paths, layout: layouts.Layout, network) -> None:
    others = [path for path in paths if not arrays.is_array_file(path)]
    if others:
        raise ValueError(
            f"--input_data_pattern={request.input_data_pattern}: {others[0]} is not a "
            "file of arrays like the others."
        )
    folder, names = request.output_dir, vocabulary.read(request.vocabulary)
    labels = label_files.read(request.labels, names)
    _check_model(network, request, layout, originals(paths, layout, labels))
    ranges = layout.ranges or arrays.ranges_of(paths, layout.sources)
    layout = layout._replace(ranges=ranges)
    with rewriting.output_folder(folder):
        done = convert_arrays(paths, folder, layout, labels, request.overwrite)
    more = []
    if labels.names:
        names_in = os.path.join(folder, "vocabulary.csv")
        files.write_text(names_in, vocabulary.to_text(labels.names))
        more.append(f"--vocabulary={names_in}")
    pattern = f"--data_pattern={folder}/*.tfrecord"
    videos = originals(paths, layout, labels)
    _report(request, done, [pattern, *more], network, videos, layout)


def _check_model(network, request: Request, layout, videos) -> None:
    """Raises ValueError, before anything is written, for a network of other features.

    The widths are those of the first video.
    """
    if not network:
        return
    made = {source.name for source in layout.sources}
    lacking = sorted(network.widths.keys() - made)
    if lacking:
        raise ValueError(
            f"--model={request.model} reads {', '.join(lacking)}, which is not among "
            f"--features={request.features}."
        )
    for video in itertools.islice(videos, 1):
        quantization.check_widths(network, video)


def _report(
    request: Request, done: Converted, words: list[str], network, videos, layout
) -> None:
    """Prints the closing lines; with a network, what 8 bits cost it.

    Args:
        done: what was converted.
        words: arguments of the yt8m-inspect command for it.
        network: an exported network, or None.
        videos: the videos before conversion.
        layout: gives the ranges.
    """
    print(done.report(request.output_dir))
    print(f"Next: {shlex.join(['yt8m-inspect', *words])}")
    if network:
        found = quantization.cost(network, videos, ranges_of(layout))
        videos_read = settings.counted(found.videos, "video")
        print(
            f"--model={request.model} on {videos_read}: GAP "
            f"{found.gap_of_numbers:.5f} on the numbers, {found.gap:.5f} on their 8 "
            f"bits ({found.gap - found.gap_of_numbers:+.5f}); the sorted scores differ "
            f"by up to {found.difference:.2g}."
        )


def main(request: Request) -> None:
    """Settings → native shards."""
    sources = parse_features(request.features)
    paths = file_patterns.expand(request.input_data_pattern, "input_data_pattern")
    ranges = settings.parse_ranges(request.feature_ranges, "feature_ranges")
    if ranges and len(ranges) != len(sources):
        raise ValueError(
            f"--feature_ranges={request.feature_ranges} has {len(ranges)} entries, "
            f"--features={request.features} has {len(sources)}."
        )
    layout = layouts.Layout(
        sources,
        request.video_id_key,
        request.labels_key,
        request.frame_features,
        request.missing_feature,
        ranges,
    )
    if request.model and not layout.frame_features:
        raise ValueError(
            f"--model={request.model} is for frames, not --noframe_features."
        )
    is_arrays = any(map(arrays.is_array_file, paths))
    for name in _OF_RECORDS if is_arrays else _OF_ARRAYS:
        value = getattr(request, name)
        if value != getattr(Request, name):
            kind = "arrays" if is_arrays else "records"
            raise ValueError(f"--{name}={value} does not apply to {kind}.")
    if not sum(tf.io.gfile.stat(path).length for path in paths):
        where = file_patterns.named(paths)
        raise ValueError(f"--input_data_pattern: no records in {where}.")
    # Opened before anything is written.
    network = exported.ExportedNetwork(request.model) if request.model else None
    if is_arrays:
        _convert_arrays(request, paths, layout, network)
        return
    _check_model(network, request, layout, originals(paths, layout, None))
    skip = request.bad_records == "skip"
    done = convert(paths, request.output_dir, layout, skip, request.overwrite)
    pattern = f"--data_pattern={request.output_dir}/*"
    videos = originals(paths, layout, None)
    _report(request, done, [pattern], network, videos, layout)


run = flag_groups.script(
    main,
    (Request,),
    after_a_stop="The same command continues with the missing shards.",
)


if __name__ == "__main__":
    run()
