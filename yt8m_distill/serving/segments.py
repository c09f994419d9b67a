"""All segments of all videos, scored, and the best of each class as a Kaggle CSV.

The CSV of YouTube-8M 2019 has a row per class: `Class,Segments`, the segments
`id:start` separated by spaces, best first. That of a part of the files has a third
column, the scores by which parts are merged; its name, `Scores@K`, says of how many
segments per class.
"""

import itertools
import re
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from yt8m_distill import settings, structures
from yt8m_distill.data import pipeline
from yt8m_distill.data import segments as segment_rules
from yt8m_distill.evaluation import best_per_class
from yt8m_distill.models import replicas, teacher_student
from yt8m_distill.serving import predictions, predictor

HEADER = ("Class", "Segments")

# A reference has the number of a video above so many bits of a start.
_START_BITS = 20
_START = (1 << _START_BITS) - 1
# Videos whose ids are held beyond twice those that a class holds.
_SPARE_IDS = 1 << 16
_UNFIT = re.compile(rb"\s")


def part_header(k: int) -> tuple[str, ...]:
    """The columns of the CSV of a part that has the best k segments of each class."""
    return (*HEADER, f"Scores@{k}")


def part_k(path: str) -> int:
    """The k of part_header; 0 for another CSV."""
    columns = ",".join(predictions.read_header(path))
    match = re.fullmatch(r"Class,Segments,Scores@(\d+)", columns)
    return int(match[1]) if match else 0


class Grid(NamedTuple):
    """Which segments of a video are scored.

    Attributes:
        max_frames: of a video, T.
        stride: frames from the start of a segment to the next.
        context: frames to each side that the network sees.
        margins: segments that are left out at the start and at the end of a video.
    """

    max_frames: int
    stride: int = settings.SEGMENT_FRAMES
    context: int = 3
    margins: tuple[int, int] = (0, 0)

    def starts(self) -> np.ndarray:
        """[W] int64: where the segments of the longest video start."""
        count = self._counts(np.array([self.max_frames]))[0]
        return np.arange(self.margins[0], max(count, 1)) * self.stride

    def _counts(self, num_frames: Any) -> Any:
        """[B]: whole segments of each video, those at its start included.

        Below 1 if there is none; how much below depends on how quotients are rounded.
        """
        whole = (num_frames - settings.SEGMENT_FRAMES + self.stride) // self.stride
        return whole - self.margins[1]

    def scored(self, num_frames: Any) -> Any:
        """[B, W] bool: the segments that each video has; also of a tf.Tensor."""
        ends = self._counts(num_frames) * self.stride
        return ends[:, np.newaxis] > self.starts()

    def bounds(self) -> np.ndarray:
        """[W, 2] int64: first frame and the one after the last, with the context."""
        starts = self.starts()
        ends = starts + settings.SEGMENT_FRAMES + self.context
        begins = np.maximum(starts - self.context, 0)
        return np.stack([begins, np.minimum(ends, self.max_frames)], axis=1)


def make_grid(
    given: settings.SegmentSettings,
    role: str,
    views: Iterable[pipeline.ViewSpec],
    max_frames: int,
) -> Grid:
    """The segments that the network of a role scores.

    Args:
        views: that it reads, with others of a mean; those of segments are alike.

    Raises:
        ValueError: if a view has not all frames of a segment, or nothing is left.
    """
    parts = [view for view in views if view.segment_context is not None]
    context = parts[0].segment_context
    k, width = min(view.k for view in parts), segment_rules.width(context)
    if k < width:
        raise ValueError(
            f"--segments: the {role} reads {k} of the {width} frames that a "
            f"segment has with --segment_context={context}. Train it on all of them or "
            "use a smaller context."
        )
    grid = Grid(max_frames, given.segment_stride, context, given.margins)
    if not grid.scored(np.array([max_frames])).any():
        raise ValueError(
            f"--segment_margins={given.segment_margins} leaves no segment of "
            f"{settings.SEGMENT_FRAMES} frames in videos of "
            f"--max_frames={max_frames}."
        )
    return grid


class SegmentNetwork(keras.layers.Layer):
    """A network of segments as one of whole videos, to be exported.

    Its logits are [B, W, C]; a segment that a video does not have has -inf. `networks`
    may be a mean.MeanNetworks.
    """

    def __init__(self, networks: teacher_student.TeacherStudent, role: str, grid: Grid):
        super().__init__(dtype="float32")
        self.networks = networks
        self.role = role
        self.grid = grid
        self.feature_size = networks.network(role).feature_size
        self.built = True

    def starts_of(self, num_frames: tf.Tensor) -> tf.Tensor:
        """[B, W] int32: first frame of each segment; -1: the video does not have it."""
        starts = self.grid.starts().astype(np.int32)
        return tf.where(self.grid.scored(num_frames), starts, -1)

    def call(self, inputs: structures.View, training: bool = False):
        """View of whole videos → Outputs with logits alone; not for training."""
        frames, num_frames = inputs[structures.FRAMES], inputs[structures.NUM_FRAMES]
        max_frames = self.grid.max_frames
        if frames.shape[1] != max_frames:
            missing = tf.maximum(max_frames - tf.shape(frames)[1], 0)
            frames = tf.pad(frames, [[0, 0], [0, missing], [0, 0]])[:, :max_frames]
            frames = tf.ensure_shape(frames, [None, max_frames, self.feature_size])
        num_frames = tf.minimum(num_frames, max_frames)
        view = {structures.FRAMES: frames, structures.NUM_FRAMES: num_frames}
        views = {structures.ALL: view}
        logits = self.networks.parts_logits(self.role, views, self.grid.bounds())
        scored = self.grid.scored(num_frames)[..., tf.newaxis]
        return structures.Outputs(tf.where(scored, logits, -np.inf), None)


class Scores(NamedTuple):
    """The segments of some videos.

    Attributes:
        video_ids: [N] bytes, the video of each segment.
        starts: [N] int64.
        scores: [N, C'] float32 in [0, 1], of the classes that are asked for.
        batch_ids: [B] bytes, each video once.
    """

    video_ids: np.ndarray
    starts: np.ndarray
    scores: np.ndarray
    batch_ids: np.ndarray

    def name(self, row: int) -> str:
        """Which segment a row is, for an error."""
        video = structures.readable_id(self.video_ids[row])
        return f"Segment {video}:{self.starts[row]}"


class SegmentPredictor(predictor.Predictor):
    """A Predictor of all segments of whole videos; its rows are Scores.

    `classes` are those that are asked for; None: all.
    """

    def __init__(
        self,
        runner: replicas.Runner,
        grid: Grid,
        classes: Sequence[int] | None = None,
    ):
        super().__init__(runner)
        self.grid = grid
        self.classes = classes

    def _replica_step(self, batch) -> tuple:
        views = batch[structures.VIEWS]
        networks, role, _ = self.runner
        logits = networks.parts_logits(role, views, self.grid.bounds())
        if self.classes is not None:
            logits = tf.gather(logits, self.classes, axis=2)
        finite = tf.math.is_finite(logits)
        return (tf.where(finite, tf.sigmoid(logits), float("nan")),)

    def _rows(self, batch, scores) -> Scores:
        local = self.runner.local_rows
        view = batch[structures.VIEWS][structures.ALL]
        num_frames = local(view[structures.NUM_FRAMES])
        rows, places = np.nonzero(self.grid.scored(num_frames))
        ids = local(batch[structures.VIDEO_ID])
        own = ids[local(batch[structures.WEIGHTS]) > 0]
        starts = self.grid.starts()[places]
        return Scores(ids[rows], starts, local(scores)[rows, places], own)


class TopSegments:
    """The best k segments of each class; memory does not grow with the videos."""

    def __init__(self, classes: Sequence[int], k: int):
        self.classes = classes
        self._best = best_per_class.BestPerClass(len(classes), k)
        self._ids: list[bytes] = []
        self._limit = _SPARE_IDS

    def update(self, found: Scores) -> None:
        """Takes in some segments, those of one video next to one another.

        Raises:
            ValueError: for a video whose id the CSV cannot hold.
        """
        ids = found.video_ids
        if not len(ids):
            return
        is_first = np.append(True, ids[1:] != ids[:-1])
        new = ids[is_first].tolist()
        for video_id in new:
            if _UNFIT.search(video_id):
                raise ValueError(
                    f"Video '{structures.readable_id(video_id)}' has a space in its "
                    "id, which separates the segments of the CSV."
                )
        numbers = len(self._ids) + np.cumsum(is_first) - 1
        self._ids += new
        self._best.update(found.scores, numbers << _START_BITS | found.starts)
        if len(self._ids) > self._limit:
            self._forget()

    def _forget(self) -> None:
        """Drops the ids of videos that no class holds."""
        held = self._best.references()
        videos, places = np.unique(held >> _START_BITS, return_inverse=True)
        self._ids = [self._ids[video] for video in videos]
        renamed = places.astype(np.int64) << _START_BITS | held & _START
        self._best.rename(held, renamed)
        self._limit = 2 * len(self._ids) + _SPARE_IDS

    def write(self, writer: predictions.PredictionWriter) -> None:
        """Writes a row per class; nothing if there was no segment."""
        for place, label in enumerate(self.classes if self._ids else ()):
            scores, references = self._best.best(place)
            names = [
                b"%s:%d" % (self._ids[r >> _START_BITS], r & _START)
                for r in references.tolist()
            ]
            _write_row(writer, label, names, scores)


def _write_row(writer: predictions.PredictionWriter, label, names, scores) -> None:
    """Writes the row of a class, with scores if the header has them."""
    cells = [b"%d" % label, predictions.quoted(b" ".join(names))]
    if writer.header != HEADER:
        # Nine digits tell float32 numbers apart.
        cells.append(b" ".join(b"%.9g" % score for score in scores.tolist()))
    writer.write_text(b",".join(cells) + b"\n")


def merge(paths: Sequence[str], output_file: str, k: int = 0) -> int:
    """Joins the CSVs of parts to that of a single process; one class is in memory.

    Args:
        paths: with scores, in the order of the parts.
        output_file: the CSV to write, without scores.
        k: segments per class; 0: as many as the parts have.

    Returns:
        The number of classes.

    Raises:
        ValueError: for parts of fewer segments or of other classes, a row that is not
            whole, or a segment that is in two of them.
    """
    limits = [part_k(path) for path in paths]
    k = k or max(limits)
    for path, limit in zip(paths, limits, strict=True):
        if 0 < limit < k:
            raise ValueError(
                f"{path} has the best {limit} segments of each class, fewer than "
                f"--segment_max_pred={k}."
            )
    headers = [part_header(limit or k) for limit in limits]
    readers = map(predictions.read_rows, paths, headers)
    count, used = 0, []
    with predictions.PredictionWriter(output_file, HEADER, paths) as writer:
        for rows in itertools.zip_longest(*readers):
            # A part without files has the header alone.
            used = used or [n for n, row in enumerate(rows) if row is not None]
            own = [paths[n] for n in used], [rows[n] for n in used]
            _write_row(writer, *_merge_class(*own, k))
            count += 1
    return count


def _merge_class(paths, rows, k: int) -> tuple[int, list[bytes], np.ndarray]:
    """One class of all parts: its segments, best first, and their scores."""
    names, scores, labels = [], [], []
    for path, row in zip(paths, rows, strict=True):
        if row is None:
            raise ValueError(f"{path} has fewer classes than the other parts.")
        label, own, found = (cell.split() for cell in row.columns)
        if len(own) != len(found) or not row.text.endswith(b"\n"):
            raise ValueError(
                f"{path}, line {row.line}: {len(own)} segments and {len(found)} scores."
            )
        labels += label
        names += own
        scores += map(float, found)
    (label, *others) = dict.fromkeys(labels)
    if others:
        raise ValueError(
            f"{', '.join(paths)} have classes {label} and {others[0]} in one line."
        )
    if len(set(names)) < len(names):
        raise ValueError(f"{', '.join(paths)}: class {label} has a segment twice.")
    order = np.argsort(-np.array(scores), kind="stable")[:k]
    chosen = [names[n].encode("utf-8", "surrogateescape") for n in order]
    return int(label), chosen, np.array(scores)[order]
