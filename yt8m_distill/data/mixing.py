"""Two videos as one, before any view is cut: `--mix`.

Each video a of a training batch becomes one with another video b of the batch. Both
have labels or neither has; a video that is alone in this stays as it is. The share of a
is s / 256, with s drawn uniformly from 0..255 by the video and the epoch. Which video b
is follows from the order of the batch, which is shuffled already: b is the next one.

The altered video has a number of frames, and each of its frames comes from one of a and
one of b. So a sampler picks among *its* frames, and all views of it agree.
"""

import abc

import tensorflow as tf

NONE = "none"
# Shares are multiples of 1/256: then bytes are mixed in integers.
_PARTS = 256


def partners(groups: tf.Tensor) -> tf.Tensor:
    """[B] int32: the next row of the same group; of the last one the first.

    Args:
        groups: [B] integers; each row of group 0 is its own partner.
    """
    rows = tf.range(tf.size(groups))
    order = tf.argsort(groups, stable=True)
    ordered = tf.gather(groups, order)
    following = tf.roll(order, -1, axis=0)
    is_last = tf.not_equal(ordered, tf.gather(groups, following))
    first = tf.searchsorted(ordered, ordered)  # Where each one's group begins.
    following = tf.where(is_last, tf.gather(order, first), following)
    found = tf.gather(following, tf.argsort(order))
    return tf.where(tf.equal(groups, 0), rows, found)


class Mixture(abc.ABC):
    """A batch of videos, each with its partner.

    Args:
        groups: [B], see partners.
        keys: [B] int64, of each video and the epoch.
        num_frames: [B] int32, of the videos as they are.

    Attributes:
        partner: [B] int32, the row of b.
        num_frames: [B] int32, of the altered videos; at most as many as a video may
            have.
        share: [B] float32, of a in the altered video and in its labels.
    """

    def __init__(self, groups: tf.Tensor, keys: tf.Tensor, num_frames: tf.Tensor):
        salted = tf.strings.join([tf.strings.as_string(keys), "#mix"])
        drawn = tf.strings.to_hash_bucket_fast(salted, _PARTS)
        self._parts = tf.cast(drawn, tf.int32)
        self._own = num_frames
        self.partner = partners(groups)
        self._other = tf.gather(num_frames, self.partner)
        self.num_frames, self.share = self._altered()

    @abc.abstractmethod
    def _altered(self) -> tuple[tf.Tensor, tf.Tensor]:
        """The numbers of frames, and the shares."""

    @abc.abstractmethod
    def places(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Frames [B, K] of the altered videos → of a, and of b; int32."""

    @abc.abstractmethod
    def join(self, indices: tf.Tensor, own: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """The altered videos' frames [B, K, D] at these indices, from a's and b's."""

    def labels(self, labels: tf.Tensor) -> tf.Tensor:
        """[B, C]: those of a and of b, weighed by their shares."""
        share = self.share[:, tf.newaxis]
        return share * labels + (1 - share) * tf.gather(labels, self.partner)


class Mixup(Mixture):
    """Frame t is s/256 a_t + (1 - s/256) b_u, u = floor(t |b| / |a|).

    The altered video is as long as a and goes through all of b. Bytes stay bytes,
    rounded: dequantization is linear, so the error is at most half a step of it.
    """

    def _altered(self):
        return self._own, tf.cast(self._parts, tf.float32) / _PARTS

    def places(self, indices):
        own = tf.cast(tf.maximum(self._own, 1), tf.int64)[:, tf.newaxis]
        other = tf.cast(self._other, tf.int64)[:, tf.newaxis]
        return indices, tf.cast(tf.cast(indices, tf.int64) * other // own, tf.int32)

    def join(self, indices, own, other):
        share = self._parts[:, tf.newaxis, tf.newaxis]
        if own.dtype.is_floating:
            share = tf.cast(share, own.dtype) / _PARTS
            return share * own + (1 - share) * other
        share = tf.cast(share, tf.uint16)
        total = tf.cast(own, tf.uint16) * share + _PARTS // 2
        total += tf.cast(other, tf.uint16) * (_PARTS - share)  # Below 2**16.
        return tf.cast(total // _PARTS, own.dtype)


class Cut(Mixture):
    """a's first floor(s |a| / 256) frames, then b's from floor(s |b| / 256) on.

    Labels are weighed by the lengths of the parts, not united: of a class that was seen
    in the other part of a video alone, nothing may be left.
    """

    def _altered(self):
        self._end = self._parts * self._own // _PARTS
        self._begin = self._parts * self._other // _PARTS
        num_frames = self._end + self._other - self._begin
        share = tf.math.divide_no_nan(
            tf.cast(self._end, tf.float32), tf.cast(num_frames, tf.float32)
        )
        return num_frames, share

    def places(self, indices):
        own = tf.minimum(indices, tf.maximum(self._own - 1, 0)[:, tf.newaxis])
        other = indices + (self._begin - self._end)[:, tf.newaxis]
        return own, tf.maximum(other, 0)

    def join(self, indices, own, other):
        is_own = indices < self._end[:, tf.newaxis]
        return tf.where(is_own[..., tf.newaxis], own, other)


KINDS = {"cut": Cut, "mixup": Mixup}
