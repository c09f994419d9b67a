"""Byte offsets of the frames in a serialized SequenceExample.

All frames of a feature are byte strings of the same width, so in the serialized record
they are consecutive chunks, header and data, of the same size:

    offset of frame t = first + t * stride

`locate` finds these numbers in a few microseconds and checks the header of every frame.
It supports only the encoding that writers produce; for anything else (a damaged record,
another message type, an unusual but valid encoding) it returns None, and the caller
falls back to a parser. See https://protobuf.dev/programming-guides/encoding.
"""

import functools
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from google.protobuf import message

# Tags of fields 1 and 2, length-delimited, of the messages that contain a frame.
_FIRST, _SECOND = 0x0A, 0x12


class Frames(NamedTuple):
    """The frames of one feature in a record, each preceded by its `frame_header`.

    Attributes:
        first: offset of frame 0 in the record.
        stride: bytes from one frame to the next.
        count: number of frames.
        size: bytes per frame.
    """

    first: int
    stride: int
    count: int
    size: int

    def rows(self, record: bytes | memoryview) -> np.ndarray:
        """[count, size] uint8, the frames in their record, without a copy."""
        shape, strides = (self.count, self.size), (self.stride, 1)
        return np.ndarray(shape, np.uint8, record, self.first, strides)


class Layout(NamedTuple):
    """The contents of a record, with offsets instead of frames.

    Attributes:
        context: the context features.
        features: name → Frames, of the record's feature lists.
        span: begin and end of the context in the record.
    """

    context: tf.train.Features
    features: dict[str, Frames]
    span: tuple[int, int] = (0, 0)

    def floats(self, record: bytes | memoryview, name: str) -> Frames:
        """The floats of a context feature as one frame; an empty one if it has none."""
        at, end = self.span
        while at < end:
            entry, at = _inside(record, at, _FIRST, end)
            key, key_end = _inside(record, entry, _FIRST, at)
            if record[key:key_end] != name.encode():
                continue
            for tag in (_SECOND, _SECOND, _FIRST):  # Feature, FloatList, its values.
                if key_end == at or record[key_end] != tag:
                    break
                key_end, _ = _inside(record, key_end, tag, at)
            else:
                return Frames(key_end, at - key_end, 1, at - key_end)
        return Frames(0, 0, 0, 0)


class _Unusual(Exception):
    """An encoding that writers do not produce."""


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """Decodes a varint: its value, and the offset after it."""
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
    """Begin and end of a length-delimited field, which must not extend beyond `end`."""
    if data[at] != tag:
        raise _Unusual
    length, begin = _varint(data, at + 1)
    if begin + length > end:
        raise _Unusual
    return begin, begin + length


@functools.cache
def frame_header(size: int) -> np.ndarray:
    """The bytes before a frame of `size` bytes: three tags and lengths, uint8."""
    frame = tf.train.Feature(bytes_list=tf.train.BytesList(value=[bytes(size)]))
    chunk = tf.train.FeatureList(feature=[frame]).SerializeToString()
    return np.frombuffer(chunk[: len(chunk) - size], np.uint8)


def _frames(data: memoryview, begin: int, end: int) -> Frames:
    """Parses a FeatureList whose frames all have the same width and header."""
    if begin == end:
        return Frames(begin, 0, 0, 0)
    feature, chunk_end = _inside(data, begin, _FIRST, end)
    value, _ = _inside(data, feature, _FIRST, chunk_end)  # Of its BytesList.
    first, frame_end = _inside(data, value, _FIRST, chunk_end)
    size, stride = frame_end - first, chunk_end - begin
    count, rest = divmod(end - begin, stride)
    header = frame_header(size)
    if rest or stride != size + len(header):
        raise _Unusual
    chunks = np.frombuffer(data[begin:end], np.uint8).reshape(count, stride)
    if not (chunks[:, : len(header)] == header).all():
        raise _Unusual
    return Frames(first, stride, count, size)


def _feature_lists(data: memoryview, begin: int, end: int) -> dict[str, Frames]:
    features: dict[str, Frames] = {}
    while begin < end:
        entry, begin = _inside(data, begin, _FIRST, end)
        key, key_end = _inside(data, entry, _FIRST, begin)
        frames, frames_end = _inside(data, key_end, _SECOND, begin)
        name = str(data[key:key_end], "utf-8")
        if frames_end != begin or name in features:
            raise _Unusual
        features[name] = _frames(data, frames, frames_end)
    return features


def _context(data: memoryview) -> tf.train.Features:
    """Parses context features that every parser reads in the same way.

    Some parsers drop repeated keys, several values of one feature, values before their
    keys and unknown fields; others reject them. All of them change the re-serialized
    size or the order of the fields, so they are detected here.
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
        record: its bytes; only the context is copied.
    """
    context, features, at, end, span = None, None, 0, len(record), (0, 0)
    try:
        while at < end:
            tag = record[at]
            begin, at = _inside(record, at, tag, end)
            if tag == _FIRST and context is None:
                context, span = _context(record[begin:at]), (begin, at)
            elif tag == _SECOND and features is None:
                features = _feature_lists(record, begin, at)
            else:
                return None
    except (_Unusual, IndexError, UnicodeDecodeError, message.DecodeError):
        return None
    return Layout(context or tf.train.Features(), features or {}, span)
