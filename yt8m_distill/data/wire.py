"""Where the frames are inside a serialized SequenceExample.

Every frame of a feature is a byte string of one width, so on the wire the frames are
chunks of one size, header and data, one after another:

    first + t * stride   is where frame t begins

`locate` finds these numbers in some microseconds and checks the header of every frame.
It knows only the records that writers make; of anything else (a damaged record, one of
another kind, an unusual but valid encoding) it returns None, and a parser decides. See
https://protobuf.dev/programming-guides/encoding.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import message

# Tags (field number, length-delimited) of the messages on the way to a frame.
_FIRST, _SECOND = 0x0A, 0x12


class Frames(NamedTuple):
    """Frames of one feature in a record, with the `frame_header` before each.

    Attributes:
        first: position of frame 0 in the record.
        stride: bytes from a frame to the next.
        count: number of frames.
        size: bytes of a frame.
    """

    first: int
    stride: int
    count: int
    size: int


class Layout(NamedTuple):
    """What a record says without its frames.

    Attributes:
        context: the context features.
        features: name → Frames, of the record's feature lists.
    """

    context: tf.train.Features
    features: dict[str, Frames]


class _Unusual(Exception):
    """Not what writers make."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a position, and the position after it."""
    byte = data[at]
    if byte < 128:
        return byte, at + 1
    number, shift = byte & 127, 7
    while byte >= 128:
        at += 1
        byte = data[at]
        number |= (byte & 127) << shift
        shift += 7
        if shift > 63:
            raise _Unusual
    return number, at + 1


def _inside(data: memoryview, at: int, tag: int, end: int) -> tuple[int, int]:
    """Begin and end of a message field, which must lie within `end`."""
    if data[at] != tag:
        raise _Unusual
    length, begin = _varint(data, at + 1)
    if begin + length > end:
        raise _Unusual
    return begin, begin + length


def _one_frame(data: memoryview, at: int, end: int) -> tuple[int, int, int]:
    """Begin of a frame's bytes, their number and the end of its chunk."""
    begin, chunk_end = _inside(data, at, _FIRST, end)  # Feature
    begin, bytes_end = _inside(data, begin, _FIRST, chunk_end)  # BytesList
    begin, value_end = _inside(data, begin, _FIRST, bytes_end)  # its only value
    if not value_end == bytes_end == chunk_end:
        raise _Unusual
    return begin, value_end - begin, chunk_end


@functools.cache
def frame_header(size: int) -> bytes:
    """The bytes before a frame of that many bytes: three tags with lengths."""
    header = b""
    for _ in range(3):
        length, spelled = size + len(header), bytearray()
        while length >= 128:
            spelled.append(length & 127 | 128)
            length >>= 7
        spelled.append(length)
        header = bytes([_FIRST]) + bytes(spelled) + header
    return header


@functools.cache
def _header_array(size: int) -> np.ndarray:
    return np.frombuffer(frame_header(size), np.uint8)


def _frames(data: memoryview, begin: int, end: int) -> Frames:
    """A FeatureList whose frames are all of one width, each after the same header."""
    if begin == end:
        return Frames(begin, 0, 0, 0)
    first, size, chunk_end = _one_frame(data, begin, end)
    stride = chunk_end - begin
    count, rest = divmod(end - begin, stride)
    header = _header_array(size)
    if rest or stride != size + len(header):
        raise _Unusual
    chunks = np.frombuffer(data[begin:end], np.uint8).reshape(count, stride)
    if not (chunks[:, : len(header)] == header).all():
        raise _Unusual
    return Frames(first, stride, count, size)


def _feature_lists(data: memoryview, begin: int, end: int) -> dict[str, Frames]:
    found: dict[str, Frames] = {}
    while begin < end:
        entry, begin = _inside(data, begin, _FIRST, end)
        key, key_end = _inside(data, entry, _FIRST, begin)
        frames, frames_end = _inside(data, key_end, _SECOND, begin)
        name = str(data[key:key_end], "utf-8")
        if frames_end != begin or name in found:
            raise _Unusual
        found[name] = _frames(data, frames, frames_end)
    return found


def _context(data: memoryview) -> tf.train.Features:
    """Context features that every parser reads in the same way.

    A key that comes twice, two kinds in one feature and unknown fields are dropped by
    one parser and refused by another; without them the size is that of the bytes. So
    is a value before its key.
    """
    at = 0
    while at < len(data):
        entry, at = _inside(data, at, _FIRST, len(data))
        _inside(data, entry, _FIRST, at)
    context = tf.train.Features.FromString(bytes(data))
    context.DiscardUnknownFields()
    if context.ByteSize() != len(data):
        raise _Unusual
    return context


def locate(record: memoryview) -> Layout | None:
    """The layout of a serialized SequenceExample, or None if it is unusual.

    Args:
        record: its bytes, as a view: nothing of it is copied but the context.
    """
    context, features, at, end = None, None, 0, len(record)
    try:
        while at < end:
            tag = record[at]
            begin, at = _inside(record, at, tag, end)
            if tag == _FIRST and context is None:
                context = _context(record[begin:at])
            elif tag == _SECOND and features is None:
                features = _feature_lists(record, begin, at)
            else:
                return None
    except (_Unusual, IndexError, UnicodeDecodeError, message.DecodeError):
        return None
    return Layout(context or tf.train.Features(), features or {})
