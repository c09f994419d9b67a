"""Converts records of other writers into native frame-level records.

    yt8m-convert --input_data_pattern='mediapipe/*.tfrecord' --output_dir=native \\
        --features='rgb=RGB/feature/floats,audio=AUDIO/feature/floats'

What it takes: frames as float lists (quantized to 8 bits as in YouTube-8M), as integer
lists or as byte strings, one Feature per frame or all frames in one Feature; ids as
text or integers; labels as indices, floats or a 0/1 vector over all classes; TFRecord
files or one bare SequenceExample per file.

Each shard keeps its name and the order of its records. A record keeps its other context
features. Run again, the program continues with the shards that are missing.
"""

import os
import sys
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tqdm
from absl import flags

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

import tensorflow as tf

from yt8m_distill import files
from yt8m_distill.data import records, rewriting

FLAGS = flags.FLAGS


class Source(NamedTuple):
    """Where a native feature comes from.

    Attributes:
        name: of the native feature list.
        key: of the feature list, or of the context feature, in the input.
        size: width of a frame; 0: each Feature is one frame.
    """

    name: str
    key: str
    size: int = 0


class Converted(NamedTuple):
    """A converted record.

    Attributes:
        serialized: the native SequenceExample.
        has_id: False where the id is the default.
        values, clipped: numbers that were quantized, and those outside of [-2, 2].
    """

    serialized: bytes
    has_id: bool
    values: int
    clipped: int


def parse_features(text: str) -> tuple[Source, ...]:
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
        sources.append(Source(name, key, int(size or 0)))
    if not sources or len({source.name for source in sources}) < len(sources):
        raise ValueError(f"--features={text} must name each native feature once.")
    return tuple(sources)


def read_id(feature: tf.train.Feature | None) -> bytes:
    """The id: one byte string as it is, one integer in decimals, else empty."""
    if feature is None:
        return b""
    values = feature.bytes_list.value or feature.int64_list.value
    if len(values) != 1:
        return b""
    return values[0] if isinstance(values[0], bytes) else str(values[0]).encode()


def read_labels(feature: tf.train.Feature | None) -> list[int]:
    """Label indices from a list of indices or a 0/1 vector over all classes.

    A list of three or more numbers that are all 0 or 1 is a vector: as indices some
    of them would repeat.

    Raises:
        ValueError: for text, or floats that are not whole numbers.
    """
    if feature is None:
        return []
    if feature.bytes_list.value:
        raise ValueError("labels are text, not numbers")
    values = list(feature.int64_list.value) or list(feature.float_list.value)
    for value in values:
        if not float(value).is_integer():
            raise ValueError(f"label {value} is not whole")
    labels = [int(value) for value in values]
    if len(labels) > 2 and set(labels) <= {0, 1}:
        return [index for index, value in enumerate(labels) if value]
    return labels


def _rows(feature: tf.train.Feature, size: int) -> list[np.ndarray]:
    """The frames in one Feature, each uint8 (bytes, integers) or float32."""
    strings = feature.bytes_list.value
    if strings:
        flat = [np.frombuffer(string, np.uint8) for string in strings]
    elif feature.int64_list.value:
        numbers = np.array(feature.int64_list.value, np.int64)
        if numbers.min() < 0 or numbers.max() > 255:
            raise ValueError("an integer of a frame is not in 0..255")
        flat = [numbers.astype(np.uint8)]
    else:
        flat = [np.array(feature.float_list.value, np.float32)]
    if not size:
        return flat
    joint = np.concatenate(flat)
    if joint.size % size:
        raise ValueError(f"{joint.size} numbers are not frames of {size}")
    return list(joint.reshape(-1, size))


def _frames(example: tf.train.SequenceExample, source: Source) -> list[np.ndarray]:
    """All frames of a feature, of one width.

    Raises:
        ValueError: if there are none, their widths differ, or a number is not finite.
    """
    lists, context = example.feature_lists.feature_list, example.context.feature
    if source.key in lists:
        features = lists[source.key].feature
    elif source.key in context:
        features = [context[source.key]]
    else:
        raise ValueError(f"there is no feature {source.key}")
    try:
        frames = [row for feature in features for row in _rows(feature, source.size)]
    except ValueError as error:
        raise ValueError(f"feature {source.key}: {error}") from error
    widths = sorted({frame.size for frame in frames})
    if len(widths) != 1 or not widths[0]:
        raise ValueError(f"feature {source.key} has frames of widths {widths}")
    if not all(np.isfinite(frame).all() for frame in frames):
        raise ValueError(f"feature {source.key} has a number that is not finite")
    return frames


def convert_record(
    serialized: bytes,
    sources: Sequence[Source],
    video_id_key: str,
    labels_key: str,
    default_id: str,
) -> Converted:
    """One native record: context `id` and `labels`, a feature list per source.

    Raises:
        ValueError: for what cannot be read, without the name of the file.
    """
    try:
        example = tf.train.SequenceExample.FromString(serialized)
    except Exception as error:  # protobuf's DecodeError has no public home
        raise ValueError("this is not an example") from error
    given = example.context.feature
    video_id = read_id(given[video_id_key] if video_id_key in given else None)
    labels = read_labels(given[labels_key] if labels_key in given else None)
    native = tf.train.SequenceExample(context=example.context)
    context, values, clipped = native.context.feature, 0, 0
    for key in {video_id_key, labels_key, *(source.key for source in sources)}:
        context.pop(key, None)
    context["id"].bytes_list.value.append(video_id or default_id.encode())
    context["labels"].int64_list.value.extend(labels)
    for source in sources:
        steps = native.feature_lists.feature_list[source.name].feature
        for frame in _frames(example, source):
            if frame.dtype != np.uint8:
                values += frame.size
                clipped += int((np.abs(frame) > 2).sum())
                frame = records.quantize(frame)
            steps.add().bytes_list.value.append(frame.tobytes())
    content = native.SerializeToString(deterministic=True)
    return Converted(content, bool(video_id), values, clipped)


def read_serialized(path: str) -> Iterator[bytes]:
    """The records of a TFRecord file, or the whole of a file that is no TFRecord.

    Raises:
        tf.errors.OpError: for a file that cannot be read or is damaged.
    """
    compression = records.compression_of(path)
    with tf.io.gfile.GFile(path, "rb") as file:
        header = file.read(records.HEADER)
        framed = not header or records.header_length(header) is not None
        if not (framed or compression):
            file.seek(0)
            yield file.read()
            return
    for record in tf.data.TFRecordDataset(path, compression):
        yield record.numpy()


def convert_shard(
    path: str,
    target: str,
    sources: Sequence[Source],
    video_id_key: str,
    labels_key: str,
    skip: bool = False,
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
        for number, serialized in enumerate(read_serialized(path)):
            default = f"{os.path.basename(path)}:{number}"
            try:
                found = convert_record(
                    serialized, sources, video_id_key, labels_key, default
                )
            except ValueError as error:
                line = f"{path}, record {number} (counted from 0): {error}."
                if not skip:
                    raise ValueError(line) from error
                skipped.append(line)
                continue
            writer.write(found.serialized)
            counts += [1, not found.has_id, found.values, found.clipped]
    return counts, skipped


def convert(
    paths: Sequence[str],
    folder: str,
    sources: Sequence[Source],
    video_id_key: str,
    labels_key: str,
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
        found = convert_shard(path, target, sources, video_id_key, labels_key, skip)
        total += found[0]
        skipped += found[1]
    return total, skipped


def report(counts: np.ndarray, skipped: Sequence[str], folder: str) -> str:
    """The closing lines."""
    videos, named, values, clipped = counts.tolist()
    lines = [*skipped, f"{videos} records in {folder}, {len(skipped)} skipped."]
    if named:
        lines.append(f"{named} had no id and are named <file>:<record number>.")
    if values:
        lines.append(
            f"Quantized to 8 bits over [-2, 2]; {clipped / values:.2%} of the numbers "
            "were outside and were clipped."
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
        "Native features and where they are: name=key, or name=key:size where all "
        "frames are in one Feature; comma separated.",
    )
    flags.DEFINE_string("video_id_key", "id", "Context key of the id in the input.")
    flags.DEFINE_string("labels_key", "labels", "Context key of the labels there.")
    flags.DEFINE_enum(
        "bad_records",
        "stop",
        ["stop", "skip"],
        "What to do about a record that cannot be converted: stop or skip.",
    )
    flags.DEFINE_bool("overwrite", False, "Replace shards that are there already.")


def main() -> None:
    """Flags → native shards."""
    if not FLAGS.output_dir:
        raise ValueError("--output_dir is empty: name the directory to write to.")
    sources = parse_features(FLAGS.features)
    paths = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
    done = convert(
        paths,
        FLAGS.output_dir,
        sources,
        FLAGS.video_id_key,
        FLAGS.labels_key,
        FLAGS.bad_records == "skip",
        FLAGS.overwrite,
    )
    print(report(*done, FLAGS.output_dir))


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags)


if __name__ == "__main__":
    run()
