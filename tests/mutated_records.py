"""Mutated records for the tests: what no writer makes, and damaged shards.

Records as writers make them get fields left out, doubled, exchanged and of other types,
bits flipped, pieces cut out, doubled or cut off, lengths and tags replaced.
"""

import copy
import pathlib
from collections.abc import Iterator, Sequence

import numpy as np

from tests import record_helpers as helpers
from yt8m_distill import settings
from yt8m_distill.data import framing

DATA = settings.DataSettings(
    feature_names="rgb,audio", feature_sizes="16,4", num_classes=5, max_frames=12
)

# Values that replace a length or a tag: 0, small, wrong wire types, the ends
# of 32 and 64 bits, and one that never ends.
_VARINTS = (
    b"\x00", b"\x01", b"\x09", b"\x0b", b"\x0d", b"\x12", b"\x7f", b"\x80\x01",
    b"\xff\xff\x03", b"\xff\xff\xff\xff\x07", b"\xff\xff\xff\xff\x0f",
    b"\xff" * 8 + b"\x7f", b"\xff" * 9 + b"\x01", b"\xff" * 12,
)  # fmt: skip


_NUMBERS = np.array([0, 1, 4, 5, 255, 2**31, 2**63 - 1, 2**63, 2**64 - 1], np.uint64)


def make_records(count: int, seed: int = 0) -> list[bytes]:
    """Records of 1 to 14 frames with ids, some of them not UTF-8, and labels."""
    random = np.random.default_rng([seed, 1])
    made = []
    for number in range(count):
        name = f"v{number}".encode() + (b"\xff\xfe" if number % 5 == 0 else b"")
        context = {"id": helpers.bytes_feature(name)}
        labels = random.integers(0, 5, random.integers(0, 4)).tolist()
        frames = {
            feature: random.integers(0, 256, (random.integers(1, 15), size))
            for feature, size in zip(DATA.names, DATA.sizes, strict=True)
        }
        made.append(helpers.frame_level(None, labels, frames, context=context))
    return made


def mutations(originals: Sequence[bytes], count: int, seed: int) -> Iterator[bytes]:
    """That many records, each an original with 1 to 3 changes.

    Four of five are changed as messages: whatever is changed, the lengths around it
    are those of what is there. In the others bytes are changed wherever they stand.
    """
    random = np.random.default_rng([seed, 2])
    for number in range(count):
        record = originals[random.integers(len(originals))]
        changes = int(random.choice([1, 1, 2, 3]))
        if number % 5:
            fields = parse_fields(record)
            for _ in range(changes):
                _change_message(fields, random)
            yield join_fields(fields)
        else:
            changed = bytearray(record)
            for _ in range(changes):
                _change_bytes(changed, int(random.integers(7)), random)
            yield bytes(changed)


def parse_fields(message: bytes) -> list | None:
    """A protocol message as [tag, value] pairs, or None if it is not one.

    A value is a number, bytes, or the pairs of what may be a message in turn.
    """
    fields, at = [], 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        if tag is None or not 8 <= tag < 1 << 32:
            return None
        if tag & 7 == 0:
            value, at = _read_varint(message, at)
        elif tag & 7 == 2:
            size, at = _read_varint(message, at)
            if size is None or at + size > len(message):
                return None
            value, at = message[at : at + size], at + size
            inner = parse_fields(value) if value else None
            value = value if inner is None else inner
        else:
            return None
        if value is None:
            return None
        fields.append([tag, value])
    return fields


def join_fields(fields: list) -> bytes:
    """The message of which these are the pairs."""
    made = bytearray()
    for tag, value in fields:
        made += _varint(tag)
        if isinstance(value, int):
            made += _varint(value)
        else:
            content = join_fields(value) if isinstance(value, list) else value
            # Of a tag that has become another type's, only what it says is left.
            made += content if tag & 7 != 2 else _varint(len(content)) + content
    return bytes(made)


def _read_varint(message: bytes, at: int) -> tuple[int | None, int]:
    value = shift = 0
    while at < len(message) and shift < 64:
        value |= (message[at] & 127) << shift
        shift, at = shift + 7, at + 1
        if message[at - 1] < 128:
            return value, at
    return None, at


def _varint(value: int) -> bytes:
    made = bytearray()
    while value > 127:
        made.append(value & 127 | 128)
        value >>= 7
    made.append(value)
    return bytes(made)


def _change_message(fields: list, random) -> None:
    """Changes one field, at whatever depth."""
    while True:
        if not fields:
            fields.append([int(random.integers(8, 40)), b""])
            return
        at = int(random.integers(len(fields)))
        value = fields[at][1]
        if not isinstance(value, list) or random.integers(12) == 0:
            break
        fields = value
    kind = int(random.integers(8))
    if kind == 0:
        del fields[at]
    elif kind == 1:
        fields.insert(int(random.integers(len(fields) + 1)), copy.deepcopy(fields[at]))
    elif kind == 2:
        other = int(random.integers(len(fields)))
        fields[at], fields[other] = fields[other], fields[at]
    elif kind == 3:
        fields[at][0] ^= 8 << int(random.integers(2))  # Another field of the message.
    elif kind == 4:
        fields[at][0] ^= 1 << int(random.integers(3))  # Another type.
    elif kind == 5 and not isinstance(value, int):
        del fields[at:]
    elif isinstance(value, int):
        fields[at][1] = int(random.choice(_NUMBERS))
    else:
        content = bytearray(join_fields(value) if isinstance(value, list) else value)
        _change_bytes(content, int(random.integers(7)), random)
        fields[at][1] = bytes(content)


def _change_bytes(record: bytearray, kind: int, random) -> None:
    if not record:
        record += b"\0"
        return
    at = int(random.integers(len(record)))
    if random.integers(2):  # Half of the changes near the front, where the context is.
        at = min(at, int(random.integers(1, 60)))
    size = int(random.integers(1, 40))
    if kind == 0:
        record[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del record[at : at + size]
    elif kind == 2:
        record[at:at] = record[at : at + size]
    elif kind == 3:
        del record[max(at, 1) :]
    elif kind == 4:
        record[at : at + 1] = _VARINTS[int(random.integers(len(_VARINTS)))]
    elif kind == 5:
        record[at:at] = _VARINTS[int(random.integers(len(_VARINTS)))]
    else:
        record[at] = int(random.integers(256))


def damage(path: str, random) -> None:
    """Flips a byte of a shard, cuts it off, or gives a record a huge length."""
    content = bytearray(pathlib.Path(path).read_bytes())
    at, kind = int(random.integers(len(content))), int(random.integers(3))
    if kind == 0:
        content[at] ^= 1 << int(random.integers(8))
    elif kind == 1:
        del content[at:]
    else:
        # With a checksum that fits, as only a malicious writer makes it.
        length = int(2 ** random.uniform(20, 63)).to_bytes(8, "little")
        content[:12] = length + framing.masked_crc32c(length).to_bytes(4, "little")
    pathlib.Path(path).write_bytes(content)
