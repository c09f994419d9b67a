"""Converts records of other writers into native records; yt8m-inspect prints how.

    yt8m-convert --input_data_pattern='mediapipe/*.tfrecord' --output_dir=native \\
        --features='rgb=RGB/feature/floats,audio=AUDIO/feature/floats'

What it takes: frames as float lists (quantized to 8 bits as in YouTube-8M), as integer
lists or as byte strings, one Feature per frame or all frames in one Feature; ids as
text or integers; labels as indices, floats or a 0/1 vector over all classes; TFRecord
files or one bare SequenceExample per file.

Or arrays: .npy, .npz, .h5 or .parquet files, one per video, with an array [T, D] per
feature, and a CSV of labels as yt8m-extract takes it:

    yt8m-convert --input_data_pattern='clip/*.npz' --labels=labels.csv \\
        --features=rgb=embeddings --output_dir=native

They are quantized to 8 bits over the range of all their numbers, or over
--feature_ranges; each record says which.

Each shard keeps its name and the order of its records. A record keeps its other context
features. Run again, the program continues with the shards that are missing.
"""

import collections
import itertools
import os
import pathlib
import sys
from collections.abc import Sequence

import numpy as np
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

FLAGS = flags.FLAGS

_VIDEOS_PER_SHARD = 1000  # Of arrays, one file per video.


def parse_features(text: str) -> tuple[layouts.Source, ...]:
    """`"rgb=RGB/feature/floats,audio=a:128"` → Sources.

    Raises:
        ValueError: if the text is anything else.
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
) -> tuple[bytes, np.ndarray]:
    """One native record: context `id` and `labels`, and the features by their names.

    Returns:
        The record, and [4] int64 as convert_shard counts.

    Raises:
        ValueError: for what cannot be read, without the name of the file.
    """
    video = layouts.read_video(serialized, layout)
    native = tf.train.SequenceExample(context=video.example.context)
    context, counts = native.context.feature, np.zeros(2, np.int64)
    ranges = layout.ranges or (settings.YOUTUBE_8M,) * len(layout.sources)
    low_high = {s.name: pair for s, pair in zip(layout.sources, ranges, strict=True)}
    keys = {layout.video_id_key, layout.labels_key, "id", "labels"}
    for key in keys.union(*((s.key, s.name) for s in layout.sources)):
        context.pop(key, None)
    context["id"].bytes_list.value.append(video.video_id or default_id.encode())
    context["labels"].int64_list.value.extend(video.labels)
    for name, frames in video.frames.items():
        if not layout.frame_features:
            context[name].float_list.value.extend(frames.ravel())
            continue
        counts += records.add_frames(native, name, frames, low_high[name])
    content = native.SerializeToString(deterministic=True)
    return content, np.int64([1, not video.video_id, *counts])


def convert_shard(
    path: str, target: str, layout: layouts.Layout, skip: bool = False
) -> tuple[np.ndarray, list[str]]:
    """Writes one native shard, which appears under its name once it is whole.

    Returns:
        [4] int64: records, records without an id of their own, quantized numbers and
        clipped ones; and a line for each record that was skipped.

    Raises:
        ValueError: for a record that cannot be converted, unless it is skipped.
    """
    counts, skipped = np.zeros(4, np.int64), []
    with rewriting.named_errors(path, target), rewriting.writing(target) as writer:
        for number, serialized in enumerate(layouts.read_serialized(path)):
            default = f"{os.path.basename(path)}:{number}"
            try:
                content, found = convert_record(serialized, layout, default)
            except ValueError as error:
                line = f"{path}, record {number} (counted from 0): {error}."
                if not skip:
                    raise ValueError(line) from error
                skipped.append(line)
                continue
            writer.write(content)
            counts += found
    return counts, skipped


def convert(
    paths: Sequence[str],
    folder: str,
    layout: layouts.Layout,
    skip: bool = False,
    overwrite: bool = False,
) -> tuple[np.ndarray, list[str]]:
    """Converts all shards; see convert_shard for what is returned and raised."""
    rewriting.check_places(paths, folder)
    with files.one_line_errors(f"--output_dir={folder}"):
        tf.io.gfile.makedirs(folder)
    total, skipped = np.zeros(4, np.int64), []
    for path in tqdm.tqdm(paths, unit="shard", disable=None):
        target = os.path.join(folder, os.path.basename(path))
        if not overwrite and tf.io.gfile.exists(target):
            continue
        found = convert_shard(path, target, layout, skip)
        total += found[0]
        skipped += found[1]
    return total, skipped


def convert_arrays(
    paths: Sequence[str],
    folder: str,
    sources: Sequence[layouts.Source],
    labels: label_files.Labels,
    ranges: Sequence[tuple[float, float]] = (),
    overwrite: bool = False,
) -> tuple[list[str], np.ndarray, list[str]]:
    """Writes the arrays of many videos as shards of _VIDEOS_PER_SHARD.

    Args:
        paths: a file per video, whose name without extension is the id.
        folder: of the shards.
        sources: the features, and the names of their arrays.
        labels: of the files.
        ranges: of the features; empty: those of all their numbers.
        overwrite: replace shards that are there and hold something else.

    Returns:
        The shards; [2] int64, numbers that were quantized and clipped; and files
        without labels.

    Raises:
        ValueError: for a file that cannot be used, or a shard that is there already
            with other records.
    """
    ids = [pathlib.Path(path).stem for path in paths]
    repeated = [stem for stem, count in collections.Counter(ids).items() if count > 1]
    if repeated:
        raise ValueError(
            f"--input_data_pattern: several files are called {repeated[0]}, which is "
            "to be the id."
        )
    ranges = ranges or arrays.ranges_of(paths, sources)
    with files.one_line_errors(f"--output_dir={folder}"):
        tf.io.gfile.makedirs(folder)
    counts, unlabeled, shards = np.zeros(2, np.int64), [], []

    def make(path, video_id):
        nonlocal counts
        classes = labels.find(path)
        unlabeled.extend([path] * (not classes))
        found = arrays.read(path, sources)
        record, added = arrays.make_record(video_id, classes or (), found, ranges)
        counts += added
        return record

    bar = tqdm.tqdm(list(zip(paths, ids, strict=True)), unit="video", disable=None)
    made = (make(*video) for video in bar)
    num_shards = -(-len(paths) // _VIDEOS_PER_SHARD)
    for number in range(num_shards):
        target = f"videos-{number:05d}-of-{num_shards:05d}.tfrecord"
        target = os.path.join(folder, target)
        shards.append(target)
        of_shard = list(itertools.islice(made, _VIDEOS_PER_SHARD))
        if not overwrite and tf.io.gfile.exists(target):
            if list(layouts.read_serialized(target)) == of_shard:
                continue
            raise ValueError(
                f"{target} is there with other records: use --overwrite or another "
                "--output_dir."
            )
        with files.one_line_errors(target), rewriting.writing(target) as writer:
            for record in of_shard:
                writer.write(record)
    return shards, counts, unlabeled


def report_arrays(
    shards: Sequence[str], counts: np.ndarray, unlabeled: Sequence[str], folder: str
) -> str:
    """The closing lines after convert_arrays."""
    values, clipped = counts.tolist()
    lines = [f"{len(shards)} shards in {folder}."]
    if unlabeled:
        lines.append(
            f"{len(unlabeled)} videos have no labels; the first: {unlabeled[0]}."
        )
    lines.append(
        f"Quantized to 8 bits; {clipped / values:.2%} of the numbers were outside of "
        "the ranges and were clipped."
    )
    lines.append(f"Next: yt8m-inspect --data_pattern='{folder}/*.tfrecord'")
    return "\n".join(lines)


def report(counts: np.ndarray, skipped: Sequence[str], folder: str) -> str:
    """The closing lines."""
    videos, named, values, clipped = counts.tolist()
    lines = [*skipped, f"{videos} records in {folder}, {len(skipped)} skipped."]
    if named:
        lines.append(f"{named} had no id and are named <file>:<record number>.")
    if values:
        lines.append(
            f"Quantized to 8 bits; {clipped / values:.2%} of the numbers were outside "
            "of the ranges and were clipped."
        )
    lines.append(f"Next: yt8m-inspect --data_pattern='{folder}/*'")
    return "\n".join(lines)


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string("input_data_pattern", "", "Glob of the files to convert.")
    flags.DEFINE_string("output_dir", "", "Directory of the native shards.")
    flags.DEFINE_string(
        "features",
        "rgb,audio",
        "Native features and where they are: name=key, or name=key:size with the width "
        "of a frame, by which frames in one Feature are split; comma separated.",
    )
    flags.DEFINE_string(
        "labels",
        "",
        "Of arrays: CSV with a header; each row has a file, by its path or name with "
        "or without extension, and its labels: names or numbers, several separated by "
        "semicolons or in more columns.",
    )
    flags.DEFINE_string(
        "vocabulary",
        "",
        "Of arrays: CSV with the names of the classes that --labels may name. Empty: "
        "the names in --labels, written to <output_dir>/vocabulary.csv.",
    )
    flags.DEFINE_string(
        "feature_ranges",
        "",
        "What the bytes 0 and 255 of each feature stand for, low:high, by commas. "
        "Empty: -2:2, and of arrays the smallest and largest number of all files.",
    )
    flags.DEFINE_string("video_id_key", "id", "Context key of the id in the input.")
    flags.DEFINE_string("labels_key", "labels", "Context key of the labels there.")
    flags.DEFINE_bool(
        "frame_features", True, "False: each feature is one float vector per video."
    )
    flags.DEFINE_enum(
        "missing_feature",
        "refuse",
        settings.MISSING_FEATURES,
        "What to do about a record that lacks one of several features. zeros: it is "
        "written without, for training with --missing_feature=zeros.",
    )
    flags.DEFINE_enum(
        "bad_records",
        "stop",
        ["stop", "skip"],
        "What to do about a record that cannot be converted: stop or skip.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace shards that are there already.")


def _convert_arrays(paths, sources, ranges) -> str:
    others = [path for path in paths if not arrays.is_array_file(path)]
    if others:
        raise ValueError(
            f"--input_data_pattern={FLAGS.input_data_pattern}: {others[0]} is no file "
            "of arrays, as others are."
        )
    folder = FLAGS.output_dir
    labels = label_files.read(FLAGS.labels, vocabulary.read(FLAGS.vocabulary))
    done = convert_arrays(paths, folder, sources, labels, ranges, FLAGS.overwrite)
    if labels.names:
        names = vocabulary.to_text(labels.names)
        files.write_text(os.path.join(folder, "vocabulary.csv"), names)
    return report_arrays(*done, folder)


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
    if any(map(arrays.is_array_file, paths)):
        print(_convert_arrays(paths, sources, ranges))
        return
    layout = layouts.Layout(
        sources,
        FLAGS.video_id_key,
        FLAGS.labels_key,
        FLAGS.frame_features,
        FLAGS.missing_feature,
        ranges,
    )
    skip = FLAGS.bad_records == "skip"
    done = convert(paths, FLAGS.output_dir, layout, skip, FLAGS.overwrite)
    print(report(*done, FLAGS.output_dir))


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags)


if __name__ == "__main__":
    run()
