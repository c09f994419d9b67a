"""Combines pairs of videos of a training batch before views are cut: `--mix`.

Each video a is combined with another video b of the batch, labeled with labeled and
unlabeled with unlabeled; a video without a partner stays as it is. The share of a is
s / 256, where s is drawn uniformly from 0..255 for each video and epoch. b is the next
row, since the batch is shuffled already.

Samplers pick among the frames of the altered video, each of which is made of a frame of
a and one of b; so all views of it agree.
"""

import abc

import tensorflow as tf

NONE = "none"
# Shares are multiples of 1/256: then bytes are mixed in integers.
_PARTS = 256


def partners(groups: tf.Tensor) -> tf.Tensor:
    """[B] int32: the next row of the same group; the first one follows the last.

    Args:
        groups: [B] integers; rows of group 0 are their own partners.
    """
    rows = tf.range(tf.size(groups))
    order = tf.argsort(groups, stable=True)
    ordered = tf.gather(groups, order)
    following = tf.roll(order, -1, axis=0)
    is_last = tf.not_equal(ordered, tf.gather(groups, following))
    first = tf.searchsorted(ordered, ordered)  # Where the group of each begins.
    following = tf.where(is_last, tf.gather(order, first), following)
    found = tf.gather(following, tf.argsort(order))
    return tf.where(tf.equal(groups, 0), rows, found)


class Mixture(abc.ABC):
    """The altered videos of a batch.

    Args:
        groups: [B], see partners.
        keys: [B] int64, hashes of the video and the epoch.
        num_frames: [B] int32, frames of the original videos.

    Attributes:
        partner: [B] int32, the row of b.
        num_frames: [B] int32, frames of the altered videos, at most those of the longer
            original.
        share: [B] float32, share of a in the altered video and in its labels.
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
        """`num_frames` and `share`."""

    @abc.abstractmethod
    def places(self, indices: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Indices [B, K] in the altered videos → indices in a and in b, int32."""

    @abc.abstractmethod
    def join(self, indices: tf.Tensor, own: tf.Tensor, other: tf.Tensor) -> tf.Tensor:
        """Frames [B, K, D] of the altered videos, from those of a and b."""

    def labels(self, labels: tf.Tensor) -> tf.Tensor:
        """[B, C] labels of the altered videos: those of a and b, weighted."""
        share = self.share[:, tf.newaxis]
        return share * labels + (1 - share) * tf.gather(labels, self.partner)


class Mixup(Mixture):
    """Frame t is s/256 a_t + (1 - s/256) b_u, u = floor(t |b| / |a|).

    The altered video is as long as a and covers all of b. Bytes are mixed and rounded;
    dequantization is affine, so the error is at most half a quantization step.
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

    Labels are weighted by the lengths of the parts, not united: what a label refers to
    may be in the part that was cut off.
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
