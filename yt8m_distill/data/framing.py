"""TFRecord framing: lengths and checksums of records, compression, damaged shards.

The contents of records are in records.py.
"""

import functools
import os
import struct
import zlib
from collections.abc import Iterator

import numpy as np
import tensorflow as tf

# Bytes of the header before each record in a TFRecord file (its length, and a checksum
# of that), and of the header with the checksum after the record.
HEADER, FRAMING = 12, 16


NOT_RECORDS = (
    "this is not a TFRecord file (yt8m-convert makes them of arrays, yt8m-extract of "
    "videos)"
)
_PACKED_BYTES = 1 << 16  # Read at a time; at most a thousand times that decompressed.
_ANY_STREAM = 47  # zlib's windowBits for a gzip or zlib header.


def masked_crc32c(content: bytes) -> int:
    """The checksum of TFRecord files; slow, so only for the 8 bytes of a length."""
    crc = 0xFFFFFFFF
    for byte in content:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    crc ^= 0xFFFFFFFF
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def header_length(header: bytes) -> int | None:
    """Parses a record header; returns None if its checksum does not match."""
    if len(header) < HEADER:
        return None
    length, crc = struct.unpack("<QI", header)
    return length if masked_crc32c(header[:8]) == crc else None


def compression_of(path: str) -> str:
    """The compression of a shard, from its first bytes: `GZIP`, `ZLIB` or ``.

    A valid record header is checked first: it can begin like a gzip header.
    """
    try:
        with tf.io.gfile.GFile(path, "rb") as file:
            begin = file.read(HEADER)
    except tf.errors.OpError:
        return ""  # The reader will report the error.
    if header_length(begin) is not None:
        return ""
    if begin[:3] == b"\x1f\x8b\x08":
        return "GZIP"
    sum_fits = len(begin) > 1 and (begin[0] * 256 + begin[1]) % 31 == 0
    return "ZLIB" if sum_fits and begin[0] == 0x78 else ""


def count_records(path: str) -> int:
    """Counts the records of a TFRecord file, from the lengths in their headers.

    A compressed file must be decompressed for that, and a remote one read.

    Raises:
        ValueError: for a file that is truncated or not a TFRecord file.
    """
    count = check_lengths(path)
    if count is None:
        dataset = tf.data.TFRecordDataset(path, compression_of(path))
        count = int(dataset.reduce(np.int64(0), lambda n, _: n + 1))
    return count


def check_lengths(path: str) -> int | None:
    """Rejects a local shard with an error that TensorFlow's reader does not handle.

    If the length of a record exceeds the file, the reader (seen in 2.21) allocates that
    much memory and the process dies. A file that ends inside a record header is read as
    if it ended before. A compressed shard is decompressed once more for this check.

    Returns:
        The number of records; None of a remote shard, or if the reader will report an
        error.

    Raises:
        ValueError: naming the shard and the record.
    """
    if not os.path.isfile(path):
        return None
    count, problem = follow_lengths(path)
    if problem:
        raise ValueError(problem)
    return count


def follow_lengths(path: str) -> tuple[int | None, str]:
    """Follows the lengths of the records of a local shard, as they are stored.

    Returns:
        The number of records, None if TensorFlow's reader will report an error; and the
        error line if the lengths do not lead to the end of the file, otherwise empty.
    """
    if compression_of(path):
        count, end, problem = packed_end(path)
        if problem:
            return count, f"{place(path, count)}: {unread(end, problem)}"
        return (None if problem is None else count), ""
    count = end = 0
    for begin, header in _headers(path):
        count, end = count + 1, _end_of(begin, header)
    if end == os.path.getsize(path):
        return count, ""
    # After a wrong length, other bytes are misread as lengths, so the first one counts.
    headers = list(_headers(path))
    broken = (n for n, (_, head) in enumerate(headers) if header_length(head) is None)
    number = next(broken, len(headers) - 1)
    detail, _ = damaged(path, headers[number][0])
    return count, f"{place(path, number)}: {detail}"


def _headers(path: str) -> Iterator[tuple[int, bytes]]:
    """Offset and header of each record of a local shard; the last may be truncated.

    Follows the stored lengths without verifying checksums.
    """
    size, position = os.path.getsize(path), 0
    with open(path, "rb") as file:
        while position < size:
            file.seek(position)
            header = file.read(HEADER)
            yield position, header
            position = _end_of(position, header)


def _end_of(begin: int, header: bytes) -> int:
    """Offset of the end of a record; beyond the file if its header is truncated."""
    (length,) = struct.unpack("<Q", header[:8].ljust(8, b"\0"))
    return begin + length + FRAMING


def remote_size(path: str) -> int:
    """Size of a remote shard in bytes; -1 if it is local or missing."""
    if os.path.isfile(path) or not tf.io.gfile.exists(path):
        return -1
    return tf.io.gfile.stat(path).length


def unread(offset: int, what: str) -> str:
    """The message for a shard that is unreadable from an offset on."""
    return f"damaged at byte {offset}, and nothing after it is read: {what}."


def place(path: str, number: int) -> str:
    """Where a record is, for messages."""
    return f"{path}, record {number} (counted from 0)"


def early_end(path: str, compression: str, offset: int) -> str:
    """The error of a compressed or remote shard whose reader ended early, or empty.

    Args:
        offset: where the reader ended, after decompression.
    """
    if compression and os.path.isfile(path):
        _, end, problem = packed_end(path)
        return unread(end, problem) if problem else ""
    if not compression and offset < remote_size(path):
        return unread(offset, "it is truncated")
    return ""


def packed_end(path: str) -> tuple[int, int, str | None]:
    """Scans a local compressed shard by its record lengths, to its end.

    TensorFlow's reader silently ignores a shard that ends inside a record header, a
    truncated stream, and data after the end of a zlib stream (gzip streams may be
    concatenated).

    Returns:
        The number of records, the end of the last one (after decompression), and the
        error at the end; empty if there is none, None if TensorFlow's reader will
        report it. Cached while the shard is unchanged.
    """
    status = os.stat(path)
    return _packed_end(path, (status.st_size, status.st_mtime_ns))


@functools.lru_cache(maxsize=1 << 14)
def _packed_end(path: str, identity: tuple) -> tuple[int, int, str | None]:
    del identity
    is_zlib = compression_of(path) == "ZLIB"
    inflater, rest = zlib.decompressobj(_ANY_STREAM), b""
    number = end = size = 0  # Records, end of the last one, and bytes unpacked.
    has_more = False
    with open(path, "rb") as file:
        for packed in iter(lambda: file.read(_PACKED_BYTES), b""):
            while packed and not has_more:
                if inflater.eof and is_zlib:
                    has_more = True
                    break
                if inflater.eof:
                    inflater = zlib.decompressobj(_ANY_STREAM)
                try:
                    content = inflater.decompress(packed)
                except zlib.error:
                    return number, end, None
                packed, rest = inflater.unused_data, rest + content
                size += len(content)
                begin = size - len(rest)
                while end + HEADER <= size:
                    header = rest[end - begin : end - begin + HEADER]
                    number, end = number + 1, _end_of(end, header)
                rest = rest[end - begin :]  # A part of a header, or nothing.
    if end > size:
        return number, end, None
    if has_more:
        return number, end, "it goes on after the end of its zlib stream"
    if rest or not inflater.eof:
        return number, end, "it is truncated"
    return number, end, ""


def damaged(path: str, offset: int) -> tuple[str, int | None]:
    """The error at an offset of a local shard, and the offset of the next record.

    The offset is None if the length of the damaged record is unknown, so that nothing
    after it can be read.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as file:
        file.seek(offset)
        length = header_length(file.read(HEADER))
    lost = f"the last {size - offset} bytes of the file are lost"
    where = f"damaged at byte {offset}"
    if length is None and offset == 0:
        return f"{where}: {NOT_RECORDS}; {lost}.", None
    if length is None and offset + HEADER <= size:
        return f"{where}: its length is not known; {lost}.", None
    if length is None or offset + length + FRAMING > size:
        return f"{where}: the file is truncated; {lost}.", None
    line = f"{where}: its checksum does not match."
    return line, offset + length + FRAMING
