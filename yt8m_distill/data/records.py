"""What a native record holds, and what is wrong with one that does not hold it.

A frame-level record is a tf.train.SequenceExample: context `id` and `labels`,
and a feature list a feature with one byte string a frame. A video-level record is
a tf.train.Example: `id`, `labels` and a float vector a feature.
"""

import functools
import os
import re
import struct
import zlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import settings
from yt8m_distill.data import segments

# A record in a TFRecord file stands behind its length with a checksum and before a
# checksum of its own.
HEADER, FRAMING = 12, 16

# Which records belong to a share of the data is decided by their hash.
HASH_BUCKETS = 1 << 30

# Ends the name of a file that says where the frames of a shard are (frame_index).
INDEX_SUFFIX = ".frame_index"

# What stands between these in an error of the graph is meant for the user.
_BEGIN, _END = "<<<", ">>>"


class Parsed(NamedTuple):
    """A batch of records before any frame is decoded.

    Attributes:
        origins: [B] string, where each record stands, for errors.
        video_ids: [B] string, empty where there is none.
        labels: ragged [B, None] int64, unsorted, repeats possible.
        frames: for each feature, in the order of its flag, the byte strings of
            all frames: ragged [B, None] string. Video-level: [B, size] float32.
        num_frames: [B] int32, of the shortest feature; 1 for video-level records.
        ratings: with --segment_labels the three fields of segments.KINDS, each ragged
            [B, None]; otherwise nothing.
    """

    origins: tf.Tensor
    video_ids: tf.Tensor
    labels: tf.RaggedTensor
    frames: tuple
    num_frames: tf.Tensor
    ratings: tuple = ()


def quantize(values: np.ndarray, low: float = -2, high: float = 2) -> np.ndarray:
    """Floats to uint8 as in YouTube-8M: clipped to [low, high], truncated."""
    return ((np.clip(values, low, high) - low) * (255 / (high - low))).astype(np.uint8)


def dequantize(values: np.ndarray, low: float = -2, high: float = 2) -> np.ndarray:
    """The numpy twin of features.dequantize, without the mask."""
    scale, offset = (high - low) / 255, (high - low) / 512 + low
    return values.astype(np.float32) * np.float32(scale) + np.float32(offset)


def add_frames(
    example: tf.train.SequenceExample,
    name: str,
    frames: np.ndarray,
    low_high: tuple[float, float] = settings.YOUTUBE_8M,
) -> np.ndarray:
    """Adds a feature to a record, with its range in the context feature <name>_range.

    Args:
        example: the record.
        name: of the feature.
        frames: [T, size] uint8, already quantized, or floats.
        low_high: the range. YouTube-8M's is the default and is not stored.

    Returns:
        [2] int64: numbers quantized here, and clipped.
    """
    counts = np.zeros(2, np.int64)
    if frames.dtype != np.uint8:
        low, high = low_high
        outside = (frames < low) | (frames > high)
        counts += [frames.size, np.count_nonzero(outside)]
        frames = quantize(frames, low, high)
    if low_high != settings.YOUTUBE_8M:
        stored = tf.train.Feature(float_list=tf.train.FloatList(value=low_high))
        example.context.feature[f"{name}_range"].CopyFrom(stored)
    steps = example.feature_lists.feature_list[name].feature
    for row in frames:
        steps.add().bytes_list.value.append(row.tobytes())
    return counts


def stored_range(context, name: str) -> tuple[float, float]:
    """What a record's context features say of a feature; YouTube-8M's by default."""
    key = f"{name}_range"
    values = tuple(context[key].float_list.value) if key in context else ()
    return values if len(values) == 2 else settings.YOUTUBE_8M


def expand_patterns(patterns: str, flag: str) -> list[str]:
    """Comma separated globs to sorted file names; indices of shards are left out.

    A file or folder of exactly the name given wins over the pattern that it also is,
    commas included; `~` is the home folder.

    Raises:
        ValueError: if a glob matches nothing, or a directory; names the flag.
    """
    files: list[str] = []
    for pattern in _split(patterns):
        expanded = os.path.expanduser(pattern)
        try:
            found = [expanded]
            if not os.path.isfile(expanded):
                found = tf.io.gfile.glob(_with_literal_folder(expanded))
        except tf.errors.OpError as error:
            raise ValueError(f"--{flag}={pattern}: {error.message}") from error
        found = [path for path in found if not path.endswith(INDEX_SUFFIX)]
        if not found:
            raise ValueError(f"--{flag}={pattern} matches no file.")
        _refuse_directories(found, f"--{flag}={pattern}", pattern)
        broken = [p for p in found if os.path.islink(p) and not os.path.exists(p)]
        if broken:
            raise ValueError(
                f"--{flag}={pattern}: {broken[0]} is a link to "
                f"{os.readlink(broken[0])}, which does not exist."
            )
        files.extend(found)
    if not files:
        raise ValueError(f"--{flag} is empty: name the shards.")
    return sorted(set(files))


_COMMAS = 3  # Commas in one name that are looked for.


def _split(patterns: str) -> list[str]:
    """The patterns between commas; files and folders that exist keep their commas."""
    parts, found = patterns.split(","), []
    while parts:
        joined = [",".join(parts[: n + 1]).strip() for n in range(_COMMAS + 1)]
        files = [name for name in joined if os.path.isfile(os.path.expanduser(name))]
        below = [name for name in joined if "," in _existing_folder(name)]
        chosen = [*files[-1:], *below[:1], joined[0]][0]
        found.append(chosen)
        del parts[: 1 + chosen.count(",")]
    return [pattern for pattern in found if pattern]


def _existing_folder(path: str) -> str:
    """The longest beginning of a path that is a folder; may be empty."""
    folder = os.path.dirname(os.path.expanduser(path))
    while folder and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _with_literal_folder(pattern: str) -> str:
    """The pattern with the folder that exists at its beginning taken literally."""
    folder = _existing_folder(pattern)
    escaped = re.sub(r"([\[*?])", r"[\1]", folder.replace("\\", "\\\\"))
    return escaped + pattern[len(folder) :]


def _refuse_directories(found: Sequence[str], where: str, pattern: str) -> None:
    """Raises a ValueError if a directory is among the matches of a pattern."""
    # Of several only local ones are looked at: elsewhere each look is a request.
    is_directory = os.path.isdir if len(found) > 1 else tf.io.gfile.isdir
    for path in filter(is_directory, found):
        path = path.rstrip("/")
        if path == pattern.rstrip("/"):
            where += " is a directory"
        else:
            where += f" matches the directory {path}"
        raise ValueError(f"{where}: name its shards, as in {path}/*.tfrecord.")


def _crc32c_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_CRC32C = _crc32c_table()


_PACKED_BYTES = 1 << 16  # Read at once; a thousand times that when unpacked, at most.
_ANY_STREAM = 47  # zlib's windowBits: a header of gzip's or zlib's.


def masked_crc32c(content: bytes) -> int:
    """The checksum of a TFRecord file; for a header's 8 bytes, not for a record's."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc = _CRC32C[(crc ^ byte) & 0xFF] ^ crc >> 8
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def header_length(header: bytes) -> int | None:
    """The length of a record by the 12 bytes before it; None where they are none."""
    if len(header) < HEADER:
        return None
    length, crc = struct.unpack("<QI", header)
    return length if masked_crc32c(header[:8]) == crc else None


def compression_of(path: str) -> str:
    """How a shard is compressed, by its first bytes: `GZIP`, `ZLIB` or ``.

    A checksum that fits comes first: a record can be as long as gzip's mark says.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            begin = file.read(HEADER)
    except tf.errors.OpError:
        return ""  # Whoever reads it says what is wrong.
    if header_length(begin) is not None:
        return ""
    if begin[:3] == b"\x1f\x8b\x08":
        return "GZIP"
    sum_fits = len(begin) > 1 and (begin[0] * 256 + begin[1]) % 31 == 0
    return "ZLIB" if sum_fits and begin[0] == 0x78 else ""


def count_records(files: Sequence[str]) -> int:
    """Records in local TFRecord files, from the lengths in their headers alone.

    Compressed files are unpacked for that, remote ones read.

    Raises:
        ValueError: for a file that ends inside a record, or is no TFRecord file.
    """
    return sum(_count_in_file(path) for path in files)


def _count_in_file(path: str) -> int:
    compression, local = compression_of(path), os.path.isfile(path)
    if compression and local:
        count, end, problem = packed_end(path)
        if problem == "":
            return count
        if problem:
            raise ValueError(_located(path, count, unread(end, problem)))
    if compression or not local:
        dataset = tf.data.TFRecordDataset(path, compression)
        return int(dataset.reduce(np.int64(0), lambda n, _: n + 1))
    count = end = 0
    for _, begin, header in _headers(path):
        count, end = count + 1, _end_of(begin, header)
    if end != os.path.getsize(path):
        line = (
            f"{path} ends inside record {count - 1} (counted from 0): it is truncated "
            "or not a TFRecord file."
        )
        raise ValueError(_broken_length(path) or line)
    return count


def _headers(path: str) -> Iterator[tuple[int, int, bytes]]:
    """Number, place and header of each record of a local shard.

    Goes by the lengths as they are, whether or not their checksums fit; the last header
    may be cut short.
    """
    size, number, position = os.path.getsize(path), 0, 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER)
            yield number, position, header
            number, position = number + 1, _end_of(position, header)


def _end_of(begin: int, header: bytes) -> int:
    """Where a record ends; behind the file, if its header is cut short."""
    (length,) = struct.unpack("<Q", header[:8].ljust(8, b"\0"))
    return begin + length + FRAMING


def _broken_length(path: str) -> str | None:
    """The line about the first length that fails its checksum, or None.

    Behind it other bytes were taken for lengths, so it is not the last one found.
    """
    for number, begin, header in _headers(path):
        if len(header) == HEADER and header_length(header) is None:
            return _located(path, number, damaged(path, begin)[0])
    return None


def remote_size(path: str) -> int:
    """Bytes of a shard that is not local, if it is there; otherwise -1."""
    if os.path.isfile(path) or not tf.io.gfile.exists(path):
        return -1
    return tf.io.gfile.stat(path).length


def cut_short(path: tf.Tensor, number: tf.Tensor, offset: tf.Tensor) -> tf.Tensor:
    """A message for `describe_error`: a remote shard ends inside a record's length."""
    parts = [
        path,
        ", record ",
        tf.strings.as_string(number),
        " (counted from 0): damaged at byte ",
        tf.strings.as_string(offset),
        ", and nothing after it is read: it is truncated.",
    ]
    return marked_in_graph(parts)


def unread(offset: int, what: str) -> str:
    """What is wrong with a shard of which nothing is read from a record on."""
    return f"damaged at byte {offset}, and nothing after it is read: {what}."


def _located(path: str, number: int, detail: str) -> str:
    return f"{path}, record {number} (counted from 0): {detail}"


def early_end(path: str, compression: str, offset: int) -> str:
    """What is wrong where the reader of a compressed or remote shard came to its end.

    Args:
        path: the shard.
        compression: of it.
        offset: where the reader ended, after unpacking; empty where all is well.
    """
    if compression and os.path.isfile(path):
        _, end, problem = packed_end(path)
        return unread(end, problem) if problem else ""
    if not compression and offset < remote_size(path):
        return unread(offset, "it is truncated")
    return ""


def packed_end(path: str) -> tuple[int, int, str | None]:
    """Goes over a local packed shard, by the lengths in it, to where it ends.

    TensorFlow's reader says nothing of a shard that ends in a record's length, of a
    stream that ends before its end, and of what stands behind the end of a zlib stream
    (gzip's may follow one another): it reads the shard as if it ended before.

    Returns:
        The number of records, where the last one ends (after unpacking), and what is
        wrong with such an end; empty where all is well, None where the reader will say
        what is wrong. Kept while the shard is the same.
    """
    found = os.stat(path)
    return _packed_end(path, (found.st_size, found.st_mtime_ns))


@functools.lru_cache(maxsize=1 << 14)
def _packed_end(path: str, identity: tuple) -> tuple[int, int, str | None]:
    del identity
    is_zlib = compression_of(path) == "ZLIB"
    inflater, header, ahead = zlib.decompressobj(_ANY_STREAM), b"", 0
    number = end = 0
    goes_on = False
    with open(path, "rb") as file:
        for packed in iter(lambda: file.read(_PACKED_BYTES), b""):
            while packed and not goes_on:
                if inflater.eof and is_zlib:
                    goes_on = True
                    break
                if inflater.eof:
                    inflater = zlib.decompressobj(_ANY_STREAM)
                try:
                    content = memoryview(inflater.decompress(packed))
                except zlib.error:
                    return number, end, None
                packed = inflater.unused_data
                while content:
                    if ahead:
                        met = min(ahead, len(content))
                        ahead, content = ahead - met, content[met:]
                        continue
                    missing = HEADER - len(header)
                    header += bytes(content[:missing])
                    content = content[missing:]
                    if len(header) == HEADER:
                        ahead = _end_of(0, header) - HEADER
                        number, end, header = number + 1, _end_of(end, header), b""
    if ahead:
        return number, end, None
    if goes_on:
        return number, end, "it goes on after the end of its zlib stream"
    if header or not inflater.eof:
        return number, end, "it is truncated"
    return number, end, ""


def check_lengths(path: str) -> None:
    """Refuses a local shard with a record that TensorFlow's reader does not refuse.

    Where a record says that it is longer than the file, it (seen in 2.21) asks for that
    much memory, and the process dies. A file that ends inside of a record's length is
    taken for one that ends before it. A packed shard is unpacked for this once more.

    Raises:
        ValueError: naming the shard and the record.
    """
    if not os.path.isfile(path):
        return
    if compression_of(path):
        count, end, problem = packed_end(path)
        if problem:
            raise ValueError(_located(path, count, unread(end, problem)))
        return
    size = os.path.getsize(path)
    for number, begin, header in _headers(path):
        if len(header) < HEADER:
            refused = _broken_length(path) is None
        else:
            # TensorFlow finds a wrong checksum before it asks for memory.
            too_long = _end_of(0, header) - FRAMING > size
            refused = too_long and header_length(header) is not None
        if refused:
            raise ValueError(_located(path, number, damaged(path, begin)[0]))


def marked(message: str) -> str:
    """A message that `describe_error` finds in an error of the graph."""
    return f"{_BEGIN}{message}{_END}"


def marked_in_graph(parts: Sequence) -> tf.Tensor:
    """The same of strings and of [N] string tensors, which are joined: [N]."""
    return tf.strings.join([_BEGIN, *parts, _END])


def _require(condition, splits, origins, video_ids, what: list) -> tf.Operation:
    """Fails where `condition` is false for the first time, naming the record.

    Args:
        condition: [N] bool.
        splits: [B + 1] int64, where each record's part of `condition` begins and
            the last one ends; None where it has one entry each.
        origins: [B] string.
        video_ids: [B] string.
        what: strings, and [N] tensors of which the offending value is shown.
    """
    # No tf.cond: around so little work it costs more than the work itself.
    at = tf.where(~condition)[:1, 0]  # [1], or [0] where all is well
    row = at if splits is None else tf.searchsorted(splits, at, side="right") - 1
    parts = [
        part if isinstance(part, str) else tf.strings.as_string(tf.gather(part, at))
        for part in what
    ]
    # An error whose message is not UTF-8 reaches Python as one about the codec.
    video_id = tf.strings.unicode_transcode(tf.gather(video_ids, row), "UTF-8", "UTF-8")
    names = [tf.gather(origins, row), ", video ", video_id, ": "]
    message = marked_in_graph([*names, *parts])
    return tf.debugging.Assert(tf.reduce_all(condition), [message])


def parse_batch(
    serialized: tf.Tensor,
    origins: tf.Tensor,
    data: settings.DataSettings,
    is_video: tf.Tensor,
    is_sound: bool = False,
) -> Parsed:
    """Parses a batch of serialized records.

    Args:
        serialized: [B] string.
        origins: [B] string, what an error calls each record.
        data: what the records hold.
        is_video: [B] bool, False for the filling rows, which are not checked.
        is_sound: whether the records are known to be messages, see `sound`.

    Raises (when the graph runs):
        tf.errors.InvalidArgumentError, tf.errors.DataLossError: for a record that is
            not of its kind; `describe_error` turns it into one line.
    """
    if not is_sound:
        serialized = sound(serialized, data)
    parse = _parse_frame_level if data.frame_features else _parse_video_level
    return parse(serialized, origins, data, is_video)


def sound(serialized: tf.Tensor, data: settings.DataSettings) -> tf.Tensor:
    """The same records, which protobuf can read; fails in the graph for others.

    TensorFlow's parser (seen in 2.15 and 2.21) believes a length of 2**31 or more
    inside of a record, and the process dies.

    Raises (when the graph runs):
        tf.errors.DataLossError: if one of them is no message.
    """
    kind, field = (
        ("SequenceExample", "context")
        if data.frame_features
        else ("Example", "features")
    )
    read = tf.io.decode_proto(
        serialized, f"tensorflow.{kind}", [field], [tf.string], sanitize=True
    )
    # Something has to use what it read: tf.data drops what nothing uses.
    known = tf.debugging.Assert(tf.reduce_all(read.sizes >= 0), [read.sizes])
    with tf.control_dependencies([known]):
        return tf.identity(serialized)


_RATINGS = {
    name: tf.io.RaggedFeature(
        tf.int64 if kind == "int64_list" else tf.float32, row_splits_dtype=tf.int64
    )
    for name, kind in segments.KINDS.items()
}


def _context(data: settings.DataSettings) -> dict:
    return {
        data.video_id_key: tf.io.FixedLenFeature([], tf.string, default_value=""),
        data.labels_key: tf.io.RaggedFeature(tf.int64, row_splits_dtype=tf.int64),
        **(_RATINGS if data.segment_labels else {}),
    }


def keeps_labels(video_ids, fraction: float) -> tf.Tensor:
    """[N] bool: the videos whose labels count under `--label_fraction`.

    By the id alone, so that it is the same in all shards, in any order, on any
    machine; those of a smaller share are among those of a larger one.
    """
    salted = tf.strings.join([video_ids, "#labels"])
    buckets = tf.strings.to_hash_bucket_fast(salted, HASH_BUCKETS)
    return buckets < int(fraction * HASH_BUCKETS)


def in_share(
    serialized: tf.Tensor, data: settings.DataSettings, fraction: float, labeled: float
) -> tf.Tensor:
    """Which records belong to a share of the data, whatever their order: [N] bool.

    Args:
        serialized: [N] string.
        data: what the records hold.
        fraction: share of the records, by their content.
        labeled: share of the videos, by their ids; see keeps_labels.
    """
    buckets = tf.strings.to_hash_bucket_fast(serialized, HASH_BUCKETS)
    kept = buckets < int(fraction * HASH_BUCKETS)
    if labeled < 1:
        key = {data.video_id_key: _context(data)[data.video_id_key]}
        if data.frame_features:
            found, *_ = tf.io.parse_sequence_example(serialized, context_features=key)
        else:
            found = tf.io.parse_example(serialized, key)
        video_ids = found[data.video_id_key]
        # Without an id a record is invalid, and whoever reads it says so.
        kept &= keeps_labels(video_ids, labeled) | (video_ids == "")
    return kept


def _read_frame_level(serialized, origins, data):
    """Context and feature lists [B, frames, strings], as they are."""
    context, lists, _ = tf.io.parse_sequence_example(
        serialized,
        context_features=_context(data),
        sequence_features={
            name: tf.io.RaggedFeature(tf.string, row_splits_dtype=tf.int64)
            for name in data.names
        },
        example_names=tf.strings.join([_BEGIN, origins, _END]),
    )
    return context, lists


def _read_video_level(serialized, origins, data):
    """Context and vectors [B, numbers], as they are."""
    return tf.io.parse_example(
        serialized,
        {
            **_context(data),
            **{
                name: tf.io.RaggedFeature(tf.float32, row_splits_dtype=tf.int64)
                for name in data.names
            },
        },
        example_names=tf.strings.join([_BEGIN, origins, _END]),
    )


# What is wrong with a record that the parser does not take.
NOT_AN_EXAMPLE = (
    "this is not an example of the expected kind, or a feature is of another type."
)


def find_faults(serialized: tf.Tensor, data: settings.DataSettings) -> tf.Tensor:
    """What is wrong with each record, in the graph, without failing.

    For a server: labels and ids are not checked.

    Args:
        serialized: [B] string.
        data: what the records are to hold.

    Returns:
        [B] string, empty for a record that `parse_batch` takes.
    """
    can_parse = _can_parse(serialized, data)
    readable = tf.where(can_parse, serialized, "")
    check = _frame_level_faults if data.frame_features else _video_level_faults
    return tf.where(can_parse, check(readable, data), NOT_AN_EXAMPLE)


def _can_parse(serialized: tf.Tensor, data: settings.DataSettings) -> tf.Tensor:
    """[B] bool: whether the parser takes each record.

    The parser fails for a batch as a whole, so each record is parsed alone in a dataset
    that drops failures. Its one element is taken by get_single_element: `reduce` and
    iterators prepare the dataset anew in each call, which costs 10 to 100 times as much
    CPU (measured with TF 2.21).
    """
    read = _read_frame_level if data.frame_features else _read_video_level

    def number_if_parsed(number, record):
        record = sound(record[tf.newaxis], data)
        parsed = read(record, tf.zeros_like(record), data)
        # Depends on what was parsed: tf.data drops what nothing uses.
        sizes = [tf.size(part) for part in tf.nest.flatten(parsed, True)]
        return number + 0 * tf.cast(tf.add_n(sizes), tf.int64)

    options = tf.data.Options()
    options.autotune.enabled = False
    options.experimental_optimization.apply_default_optimizations = False
    dataset = tf.data.Dataset.from_tensor_slices(serialized).enumerate()
    numbers = dataset.map(number_if_parsed).ignore_errors().batch(1 << 30)
    nothing = tf.data.Dataset.from_tensors(tf.zeros([0], tf.int64))
    numbers = numbers.concatenate(nothing).take(1).with_options(options)
    rows = tf.reshape(numbers.get_single_element(), [-1, 1])
    return (
        tf.scatter_nd(rows, tf.ones_like(rows[:, 0]), tf.shape(serialized, tf.int64))
        > 0
    )


def _frame_level_faults(serialized, data) -> tf.Tensor:
    """[B] string; fails for what is no SequenceExample."""
    _, lists = _read_frame_level(serialized, tf.zeros_like(serialized), data)
    faults = tf.zeros_like(serialized)
    may_lack = _may_lack([lists[name].row_lengths() for name in data.names], data)
    for name, size in zip(data.names, data.sizes, strict=True):
        feature = lists[name]
        frames = feature.with_values(feature.values.row_lengths() != 1)
        widths = tf.strings.length(feature.flat_values) != size
        widths = feature.with_flat_values(widths).merge_dims(1, 2)
        for bad, what in (
            ((feature.row_lengths() == 0) & ~may_lack, "has no frames."),
            (tf.reduce_any(frames, axis=1), "has a frame that is not 1 byte string."),
            (
                tf.reduce_any(widths, axis=1),
                f"has a frame that is not {size} bytes wide.",
            ),
        ):
            fault = tf.where(bad, f"feature {name} {what}", "")
            faults = tf.where(faults == "", fault, faults)
    return faults


def _video_level_faults(serialized, data) -> tf.Tensor:
    """[B] string; fails for what is no Example."""
    parsed = _read_video_level(serialized, tf.zeros_like(serialized), data)
    faults = tf.zeros_like(serialized)
    for name, size in zip(data.names, data.sizes, strict=True):
        bad = parsed[name].row_lengths() != size
        fault = tf.where(bad, f"feature {name} has not {size} numbers.", "")
        faults = tf.where(faults == "", fault, faults)
        finite = parsed[name].with_flat_values(
            tf.cast(tf.math.is_finite(parsed[name].flat_values), tf.int32)
        )
        bad = tf.reduce_min(finite, axis=1) == 0
        fault = tf.where(bad, f"feature {name} has a number that is not finite.", "")
        faults = tf.where(faults == "", fault, faults)
    return faults


def _may_lack(counts: list[tf.Tensor], data: settings.DataSettings) -> tf.Tensor:
    """[B] bool: whether a feature may be missing, by --missing_feature."""
    some = tf.reduce_any(tf.stack([count > 0 for count in counts]), axis=0)
    return some & (data.missing_feature == "zeros")


def _parse_frame_level(serialized, origins, data, is_video) -> Parsed:
    context, lists = _read_frame_level(serialized, origins, data)
    video_ids = context[data.video_id_key]
    counts = [lists[name].row_lengths() for name in data.names]
    may_lack = _may_lack(counts, data)
    frames = tuple(
        _checked_frames(
            lists[name], name, size, origins, video_ids, ~is_video | may_lack
        )
        for name, size in zip(data.names, data.sizes, strict=True)
    )
    # A feature that may be missing has no say in the number of frames.
    counts = [tf.where((c == 0) & may_lack, tf.int64.max, c) for c in counts]
    num_frames = tf.reduce_min(tf.stack(counts), axis=0)
    num_frames = tf.cast(tf.minimum(num_frames, data.max_frames), tf.int32)
    ratings = tuple(context[name] for name in (_RATINGS if data.segment_labels else ()))
    labels = context[data.labels_key]
    return Parsed(origins, video_ids, labels, frames, num_frames, ratings)


def _checked_frames(
    feature: tf.RaggedTensor, name: str, size: int, origins, video_ids, may_lack
) -> tf.RaggedTensor:
    """A feature's byte strings [B, None], one per frame, all of the right width."""
    splits = feature.row_splits
    counts = feature.values.row_lengths()  # Byte strings in each frame: 1.
    strings = feature.flat_values

    def require(condition, splits, what):
        return _require(condition, splits, origins, video_ids, what)

    some = require(
        (feature.row_lengths() > 0) | may_lack,
        None,
        [
            f"feature {name} has no frames. Is --feature_names right, and is this "
            "frame-level data?"
        ],
    )
    what = [f"a frame of feature {name} is ", counts, " byte strings, not 1."]
    single = require(counts == 1, splits, what)
    with tf.control_dependencies([some, single]):
        widths = tf.strings.length(strings)
        what = [f"a frame of feature {name} is ", widths]
        what += [f" bytes wide, not the {size} of --feature_sizes."]
        width = require(widths == size, splits, what)
    with tf.control_dependencies([width]):
        strings = tf.identity(strings)
    return tf.RaggedTensor.from_row_splits(strings, splits, validate=False)


def _parse_video_level(serialized, origins, data, is_video) -> Parsed:
    parsed = _read_video_level(serialized, origins, data)
    video_ids = parsed[data.video_id_key]
    vectors, checks = [], []
    for name, size in zip(data.names, data.sizes, strict=True):
        widths, numbers = parsed[name].row_lengths(), parsed[name].flat_values
        what = [f"feature {name} has ", widths, f" numbers, not the {size} of "]
        what += ["--feature_sizes. Is --feature_names right, and is this video-level "]
        what += ["data?"]
        checks.append(
            _require((widths == size) | ~is_video, None, origins, video_ids, what)
        )
        what = [f"a number of feature {name} is ", numbers, "."]
        splits = parsed[name].row_splits
        checks.append(
            _require(tf.math.is_finite(numbers), splits, origins, video_ids, what)
        )
        with tf.control_dependencies(checks):
            vectors.append(parsed[name].to_tensor(shape=[None, size]))
    num_frames = tf.cast(is_video, tf.int32)
    labels = parsed[data.labels_key]
    return Parsed(origins, video_ids, labels, tuple(vectors), num_frames)


def required_ids(
    parsed: Parsed, data: settings.DataSettings, is_video: tf.Tensor
) -> tf.Tensor:
    """[B] string.

    Raises (when the graph runs):
        tf.errors.InvalidArgumentError: for a video without an id.
    """
    check = _require(
        (parsed.video_ids != "") | ~is_video,
        None,
        parsed.origins,
        parsed.video_ids,
        [f"there is no id. Is --video_id_key={data.video_id_key} right?"],
    )
    with tf.control_dependencies([check]):
        return tf.identity(parsed.video_ids)


def checked_labels(parsed: Parsed, data: settings.DataSettings) -> tf.RaggedTensor:
    """The labels of parsed records.

    Raises (when the graph runs):
        tf.errors.InvalidArgumentError: for a label outside [0, C), or a vector of C
            zeros and ones in the place of indices.
    """
    labels, classes = parsed.labels, data.num_classes

    def require(condition, splits, what):
        return _require(condition, splits, parsed.origins, parsed.video_ids, what)

    outside = (labels.values < 0) | (labels.values >= classes)
    what = ["label ", labels.values]
    what += [f" is not in 0..{classes - 1}, the range of --num_classes."]
    checks = [require(~outside, labels.row_splits, what)]
    if classes > 2:
        largest = tf.reduce_max(labels, axis=1)
        is_vector = (labels.row_lengths() == classes) & (largest <= 1)
        what = [f"--labels_key={data.labels_key} holds a vector of {classes} zeros "]
        what += ["and ones, not the indices of the labels."]
        checks.append(require(~is_vector, None, what))
    with tf.control_dependencies(checks):
        values = tf.identity(labels.values)
    return tf.RaggedTensor.from_row_splits(values, labels.row_splits, validate=False)


def rated_starts(serialized: tf.Tensor, origins: tf.Tensor) -> tf.Tensor:
    """[S] int64, ascending: where the rated segments of one record start.

    Args:
        serialized: [1] string.
        origins: [1] string, what an error calls it.
    """
    context, _, _ = tf.io.parse_sequence_example(
        serialized,
        context_features=_RATINGS,
        example_names=tf.strings.join([_BEGIN, origins, _END]),
    )
    return tf.unique(tf.sort(context[segments.START_TIMES].flat_values))[0]


def checked_segments(
    parsed: Parsed, data: settings.DataSettings, starts: tf.Tensor
) -> segments.Segments:
    """The ratings of one segment of each parsed record.

    Args:
        parsed: with --segment_labels.
        data: what the records hold.
        starts: [B] int64, where the segment of each row starts.

    Raises (when the graph runs):
        tf.errors.InvalidArgumentError: for ratings that break a rule, see
            segments.read and segments.problem.
    """
    times, labels, scores = parsed.ratings

    def require(condition, splits, what):
        return _require(condition, splits, parsed.origins, parsed.video_ids, what)

    counts = [field.row_lengths() for field in parsed.ratings]
    mark = "\0"  # Where the numbers of the line are.
    line = segments.unequal(mark, mark, mark).split(mark)
    what = [line[0], counts[0], line[1], counts[1], line[2], counts[2], line[3]]
    same = (counts[0] == counts[1]) & (counts[0] == counts[2])
    with tf.control_dependencies([require(same, None, what)]):
        rows = times.value_rowids()
        values, classes, splits = times.values, labels.values, times.row_splits
        ends = tf.cast(tf.gather(parsed.num_frames, rows), tf.int64)
        what = [
            "a segment starts at ",
            values,
            ", the video has ",
            ends,
            " frames.",
        ]
        checks = [require((values >= 0) & (values < ends), splits, what)]
        what = [f"{segments.LABELS} has ", classes, ", which is not in 0.."]
        what += [f"{data.num_classes - 1}, the range of --num_classes."]
        inside = (classes >= 0) & (classes < data.num_classes)
        checks.append(require(inside, splits, what))
        what = [f"a number of {segments.SCORES} is ", scores.values, ", not 0 or 1."]
        known = (scores.values == 0) | (scores.values == 1)
        checks.append(require(known, splits, what))
    with tf.control_dependencies(checks):
        chosen = tf.where(values == tf.gather(starts, rows))[:, 0]
    return segments.Segments(
        tf.cast(starts, tf.int32),
        tf.gather(rows, chosen),
        tf.gather(classes, chosen),
        tf.cast(tf.gather(scores.values, chosen), tf.int32),
    )


def multi_hot(rows: tf.Tensor, labels: tf.Tensor, size: int, num_classes: int):
    """[B, C] float32 of 0 and 1; repeated labels count once.

    Args:
        rows: [L] int64 in [0, B), the video of each label.
        labels: [L] int64 in [0, C).
        size: B.
        num_classes: C.
    """
    nothing = tf.zeros([size, num_classes])
    ones = tf.ones_like(rows, tf.float32)
    return tf.tensor_scatter_nd_update(nothing, tf.stack([rows, labels], 1), ones)


def marked_line(text: str) -> str | None:
    """The line in an error of the graph that is meant for the user, or None."""
    marked = re.search(f"{_BEGIN}(.*?){_END}", text, re.DOTALL)
    if not marked:
        return None
    kind = re.search(r"(?:feature|list|Key): (\S+?)[,.] .*Expected type: (\w+)", text)
    if kind:
        name, expected = kind.groups()
        return f"{marked[1]}: {name} is not of type {expected}."
    if "Invalid protocol message" in text:
        return f"{marked[1]}: this is not an example."
    broken = re.search(
        r"sequence feature (\S+) in example|(?:elements in example)", text
    )
    if broken:
        what = f"feature {broken[1]}" if broken[1] else "a context feature"
        return f"{marked[1]}: {what} is broken and cannot be parsed."
    return marked[1]


def damaged(
    path: str, offset: int, error: tf.errors.OpError | None = None
) -> tuple[str, int | None]:
    """What is wrong where a shard cannot be read on, and where the next record is.

    Args:
        path: the shard.
        offset: where the record begins, in a compressed shard after unpacking.
        error: of the reader; only of a compressed or remote shard it is needed.

    Returns:
        What is wrong, and the offset after the record; None where its length is not to
        be trusted, and nothing after it can be read.
    """
    if compression_of(path) or not os.path.isfile(path):
        # Without the names of operations around the words that say what it is.
        what = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", error.message).strip()
        what = what.replace("' failed with", ":")  # TensorFlow opens no quote.
        return unread(offset, what), None
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(offset)
        length = header_length(file.read(HEADER))
    lost = f"the last {size - offset} bytes of the file are lost"
    where = f"damaged at byte {offset}"
    if length is None and offset == 0:
        return f"{where}: this is not a TFRecord file; {lost}.", None
    if length is None and offset + HEADER <= size:
        return f"{where}: its length is not known; {lost}.", None
    if length is None or offset + length + FRAMING > size:
        return f"{where}: the file is truncated; {lost}.", None
    line = f"{where}: its checksum does not match."
    return line, offset + length + FRAMING
