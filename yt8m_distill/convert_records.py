"""Converts records of other writers to native records; yt8m-inspect prints the command.

    yt8m-convert --input_data_pattern='mediapipe/*.tfrecord' --output_dir=native \\
        --features='rgb=RGB/feature/floats,audio=AUDIO/feature/floats'

Supported are frames as float lists (quantized to 8 bits as in YouTube-8M), integer
lists or byte strings, with one Feature per frame or all frames in one; ids as text or
integers; labels as indices, floats or a 0/1 vector over all classes; and TFRecord files
or one bare SequenceExample per file.

Arrays are supported too: .npy, .npz, .h5 or .parquet files, one per video, with an
array [T, D] per feature, and a CSV of labels as for yt8m-extract:

    yt8m-convert --input_data_pattern='clip/*.npz' --labels=labels.csv \\
        --features=rgb=embeddings --output_dir=native

They are quantized to 8 bits over the range of all their numbers, or over
--feature_ranges; each record says which. It prints by how much they changed, and with
--model, an exported network, its GAP on the numbers and on their 8 bits.

Each shard keeps its name and the order of its records. A record keeps its other context
features. When run again, the program continues with the missing shards.
"""

import collections
import dataclasses
import itertools
import os
import pathlib
import shlex
import sys
from collections.abc import Iterator, Mapping, Sequence

import tqdm
from absl import flags

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups, settings

flag_groups.load_tensorflow()

import tensorflow as tf

from yt8m_distill import files, vocabulary
from yt8m_distill.data import arrays, layouts, records, rewriting
from yt8m_distill.data import labels as label_files
from yt8m_distill.serving import exported, quantization

FLAGS = flags.FLAGS

# Flags that say nothing of the other kind of input.
_OF_ARRAYS = ("labels", "vocabulary")
_OF_RECORDS = ("video_id_key", "labels_key", "missing_feature", "bad_records")
_OF_RECORDS += ("frame_features",)

_VIDEOS_PER_SHARD = 1000  # When converting arrays, one file per video.


@dataclasses.dataclass
class Converted:
    """What has been converted.

    Attributes:
        videos: how many.
        unnamed: of these, records without an id of their own.
        changed: feature → what quantization changed.
        skipped: a line for each record that was skipped.
        unlabeled: files of arrays without labels.
        shards: that were made, or are there already.
    """

    videos: int = 0
    unnamed: int = 0
    changed: dict[str, records.Rounding] = dataclasses.field(default_factory=dict)
    skipped: list[str] = dataclasses.field(default_factory=list)
    unlabeled: list[str] = dataclasses.field(default_factory=list)
    shards: list[str] = dataclasses.field(default_factory=list)

    def add_video(self, changed: Mapping[str, records.Rounding]) -> None:
        """Counts one video."""
        self.videos += 1
        for name, found in changed.items():
            before = self.changed.get(name, records.Rounding())
            self.changed[name] = before.join(found)

    def quantized(self) -> list[str]:
        """A line for each feature that was quantized."""
        return [
            f"{name}: {changed.count} numbers in 8 bits; {changed}."
            for name, changed in self.changed.items()
            if changed.count
        ]


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
    serialized: bytes, layout: layouts.Layout, default_id: str
) -> tuple[bytes, bool, dict[str, records.Rounding]]:
    """One native record: context `id` and `labels`, and the features by their names.

    Returns:
        The record, whether it had an id, and name → what quantization changed.

    Raises:
        ValueError: for an invalid record, without the name of the file.
    """
    video = layouts.read_video(serialized, layout)
    native = tf.train.SequenceExample(context=video.example.context)
    context, changed = native.context.feature, {}
    low_high = ranges_of(layout)
    keys = {layout.video_id_key, layout.labels_key, "id", "labels"}
    for key in keys.union(*((s.key, s.name) for s in layout.sources)):
        context.pop(key, None)
    context["id"].bytes_list.value.append(video.video_id or default_id.encode())
    context["labels"].int64_list.value.extend(video.labels)
    for name, frames in video.frames.items():
        if not layout.frame_features:
            context[name].float_list.value.extend(frames.ravel())
            continue
        changed[name] = records.add_frames(native, name, frames, low_high[name])
    content = native.SerializeToString(deterministic=True)
    return content, bool(video.video_id), changed


def ranges_of(layout: layouts.Layout) -> quantization.Ranges:
    """Low and high of each feature."""
    ranges = layout.ranges or (settings.YOUTUBE_8M,) * len(layout.sources)
    return {s.name: pair for s, pair in zip(layout.sources, ranges, strict=True)}


def convert_shard(
    path: str,
    target: str,
    layout: layouts.Layout,
    done: Converted,
    skip: bool = False,
) -> None:
    """Writes one native shard, which appears under its name once it is whole.

    Args:
        path, target: the shard, and the native one.
        layout: of its records.
        done: counts them.
        skip: whether to go on after a record that cannot be converted.

    Raises:
        ValueError: for an invalid record, unless it is skipped.
    """
    with rewriting.named_errors(path, target), rewriting.writing(target) as writer:
        for number, serialized in enumerate(layouts.read_serialized(path)):
            default = f"{os.path.basename(path)}:{number}"
            try:
                content, named, changed = convert_record(serialized, layout, default)
            except ValueError as error:
                line = f"{path}, record {number} (counted from 0): {error}."
                if not skip:
                    raise ValueError(line) from error
                done.skipped.append(line)
                continue
            writer.write(content)
            done.add_video(changed)
            done.unnamed += not named


def convert(
    paths: Sequence[str],
    folder: str,
    layout: layouts.Layout,
    skip: bool = False,
    overwrite: bool = False,
) -> Converted:
    """Converts all shards; see convert_shard for what is raised."""
    rewriting.check_places(paths, folder)
    with files.one_line_errors(f"--output_dir={folder}"):
        tf.io.gfile.makedirs(folder)
    done = Converted()
    for path in tqdm.tqdm(paths, unit="shard", disable=None):
        target = os.path.join(folder, os.path.basename(path))
        if not overwrite and tf.io.gfile.exists(target):
            continue
        convert_shard(path, target, layout, done, skip)
    return done


def convert_arrays(
    paths: Sequence[str],
    folder: str,
    sources: Sequence[layouts.Source],
    labels: label_files.Labels,
    ranges: Sequence[tuple[float, float]],
    overwrite: bool = False,
) -> Converted:
    """Writes the arrays of many videos as shards of _VIDEOS_PER_SHARD.

    Args:
        paths: a file per video, whose name without extension is the id.
        folder: of the shards.
        sources: the features, and the names of their arrays.
        labels: of the files.
        ranges: of the features.
        overwrite: replace shards that are there and hold something else.

    Raises:
        ValueError: for an invalid file, or an existing shard with other records.
    """
    ids = [pathlib.Path(path).stem for path in paths]
    repeated = [stem for stem, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"--input_data_pattern: several files are called {repeated[0]}, which "
            "would be the id of each."
        )
    with files.one_line_errors(f"--output_dir={folder}"):
        tf.io.gfile.makedirs(folder)
    done = Converted()

    def make(path, video_id):
        classes = labels.find(path)
        done.unlabeled.extend([path] * (not classes))
        found = arrays.read(path, sources)
        record, changed = arrays.make_record(video_id, classes or (), found, ranges)
        done.add_video(changed)
        return record

    bar = tqdm.tqdm(list(zip(paths, ids, strict=True)), unit="video", disable=None)
    made = (make(*video) for video in bar)
    num_shards = -(-len(paths) // _VIDEOS_PER_SHARD)
    for number in range(num_shards):
        target = f"videos-{number:05d}-of-{num_shards:05d}.tfrecord"
        target = os.path.join(folder, target)
        done.shards.append(target)
        of_shard = list(itertools.islice(made, _VIDEOS_PER_SHARD))
        if not overwrite and tf.io.gfile.exists(target):
            if list(layouts.read_serialized(target)) == of_shard:
                continue
            raise ValueError(
                f"{target} exists with other records: use --overwrite or another "
                "--output_dir."
            )
        with files.one_line_errors(target), rewriting.writing(target) as writer:
            for record in of_shard:
                writer.write(record)
    return done


def report_arrays(done: Converted, folder: str, names_in: str = "") -> str:
    """The closing lines after convert_arrays; `names_in` is the CSV of the names."""
    lines = [f"{len(done.shards)} shards in {folder}."]
    if done.unlabeled:
        first = done.unlabeled[0]
        lines.append(
            f"{len(done.unlabeled)} videos have no labels; the first: {first}."
        )
    lines += done.quantized()
    words = ["yt8m-inspect", f"--data_pattern={folder}/*.tfrecord"]
    words += [f"--vocabulary={names_in}"] * bool(names_in)
    lines.append(f"Next: {shlex.join(words)}")
    return "\n".join(lines)


def report(done: Converted, folder: str) -> str:
    """The closing lines."""
    skipped = done.skipped
    lines = [*skipped, f"{done.videos} records in {folder}, {len(skipped)} skipped."]
    if done.unnamed:
        lines.append(f"{done.unnamed} had no id and are named <file>:<record number>.")
    lines += done.quantized()
    pattern = shlex.quote(f"--data_pattern={folder}/*")
    lines.append(f"Next: yt8m-inspect {pattern}")
    return "\n".join(lines)


def originals(
    paths: Sequence[str], layout: layouts.Layout, labels: label_files.Labels | None
) -> Iterator[quantization.Original]:
    """The videos before conversion: of arrays where there are labels of files.

    Records that cannot be converted are left out.
    """
    for path in paths:
        if labels is not None:
            video_id, classes = pathlib.Path(path).stem, labels.find(path) or ()
            found = arrays.read(path, layout.sources)
            yield quantization.Original(video_id, classes, found)
            continue
        for number, serialized in enumerate(layouts.read_serialized(path)):
            try:
                video = layouts.read_video(serialized, layout)
            except ValueError:
                continue
            default = f"{os.path.basename(path)}:{number}"
            video_id = video.video_id.decode(errors="replace") or default
            yield quantization.Original(video_id, video.labels, video.frames)


def report_cost(found: quantization.Cost, model: str) -> str:
    """What 8 bits cost the network."""
    return (
        f"--model={model} on {found.videos} videos: GAP {found.gap_of_numbers:.5f} on "
        f"the numbers, {found.gap:.5f} on their 8 bits "
        f"({found.gap - found.gap_of_numbers:+.5f}); the sorted scores differ by up to "
        f"{found.difference:.2g}."
    )


def define_flags() -> None:
    """Defines the flags; not on import, where they could clash with others."""
    flags.DEFINE_string("input_data_pattern", "", "Glob of the files to convert.")
    flags.DEFINE_string("output_dir", "", "Directory of the native shards.")
    flags.DEFINE_string(
        "features",
        "rgb,audio",
        "Native features and their sources: name=key, or name=key:size with the width "
        "of a frame, if all frames are in one Feature; comma separated.",
    )
    flags.DEFINE_string(
        "labels",
        "",
        "For arrays: CSV with a header and a row per file: its path or name, with or "
        "without extension, and its labels: names or numbers, separated by semicolons "
        "or in further columns.",
    )
    flags.DEFINE_string(
        "vocabulary",
        "",
        "For arrays: CSV with the names of the classes that --labels may name. Empty: "
        "the names in --labels, written to <output_dir>/vocabulary.csv.",
    )
    flags.DEFINE_string(
        "feature_ranges",
        "",
        "The values of bytes 0 and 255 of each feature, low:high, comma separated. "
        "Empty: -2:2; for arrays, the smallest and largest number of all files.",
    )
    flags.DEFINE_string("video_id_key", "id", "Context key of the id in the input.")
    flags.DEFINE_string("labels_key", "labels", "Context key of the input's labels.")
    flags.DEFINE_bool(
        "frame_features", True, "False: each feature is one float vector per video."
    )
    flags.DEFINE_enum(
        "missing_feature",
        "refuse",
        settings.MISSING_FEATURES,
        "How to handle a record that lacks one of several features. refuse: it is "
        "invalid. zeros: convert the others, for training with "
        "--missing_feature=zeros.",
    )
    flags.DEFINE_enum(
        "bad_records",
        "stop",
        ["stop", "skip"],
        "How to handle an invalid record: stop or skip it.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace shards that are there already.")
    flags.DEFINE_string(
        "model",
        "",
        "Folder of a SavedModel of yt8m-export: its GAP is printed, on the numbers and "
        "on their 8 bits. Shards that are there already are kept.",
    )


def _convert_arrays(paths, layout: layouts.Layout, network) -> None:
    others = [path for path in paths if not arrays.is_array_file(path)]
    if others:
        raise ValueError(
            f"--input_data_pattern={FLAGS.input_data_pattern}: {others[0]} is not a "
            "file of arrays like the others."
        )
    folder = FLAGS.output_dir
    labels = label_files.read(FLAGS.labels, vocabulary.read(FLAGS.vocabulary))
    sources = layout.sources
    ranges = layout.ranges or arrays.ranges_of(paths, sources)
    layout = layout._replace(ranges=ranges)
    done = convert_arrays(paths, folder, sources, labels, ranges, FLAGS.overwrite)
    names_in = os.path.join(folder, "vocabulary.csv") if labels.names else ""
    if names_in:
        files.write_text(names_in, vocabulary.to_text(labels.names))
    print(report_arrays(done, folder, names_in))
    _print_cost(network, paths, layout, labels)


def _print_cost(network, paths, layout: layouts.Layout, labels=None) -> None:
    if network:
        videos = originals(paths, layout, labels)
        cost = quantization.cost(network, videos, ranges_of(layout))
        print(report_cost(cost, FLAGS.model))


def main() -> None:
    """Flags → native shards."""
    if not FLAGS.output_dir:
        raise ValueError("--output_dir is empty: name the directory to write to.")
    sources = parse_features(FLAGS.features)
    paths = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
    ranges = settings.parse_ranges(FLAGS.feature_ranges, "feature_ranges")
    if ranges and len(ranges) != len(sources):
        raise ValueError(
            f"--feature_ranges={FLAGS.feature_ranges} has {len(ranges)} entries, "
            f"--features={FLAGS.features} has {len(sources)}."
        )
    layout = layouts.Layout(
        sources,
        FLAGS.video_id_key,
        FLAGS.labels_key,
        FLAGS.frame_features,
        FLAGS.missing_feature,
        ranges,
    )
    if FLAGS.model and not layout.frame_features:
        raise ValueError(
            f"--model={FLAGS.model} is for frames, not --noframe_features."
        )
    is_arrays = any(map(arrays.is_array_file, paths))
    for name in _OF_RECORDS if is_arrays else _OF_ARRAYS:
        if FLAGS[name].value != FLAGS[name].default:
            kind = "arrays" if is_arrays else "records"
            raise ValueError(f"--{name}={FLAGS[name].value} says nothing of {kind}.")
    if not sum(tf.io.gfile.stat(path).length for path in paths):
        raise ValueError(f"--input_data_pattern: no records in {paths[0]} and others.")
    # Opened before anything is written.
    network = exported.ExportedNetwork(FLAGS.model) if FLAGS.model else None
    if is_arrays:
        _convert_arrays(paths, layout, network)
        return
    skip = FLAGS.bad_records == "skip"
    done = convert(paths, FLAGS.output_dir, layout, skip, FLAGS.overwrite)
    print(report(done, FLAGS.output_dir))
    _print_cost(network, paths, layout)


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags)


if __name__ == "__main__":
    run()
