"""The outputs of a frozen teacher, cached on disk.

In serial mode the outputs of the frozen teacher do not change between epochs. With the
cache they are computed once, and an epoch costs no more than the student. The key, and
with it the folder, depends on the values of the teacher's variables and on its inputs:

    <teacher_cache>/<key>/key.json          contents of the key
                         /00000.ids.npz     ids of the videos in part 0
                         /00000.encoding.npy, .logits.npy, .states.npy
                         /00000.fingerprint.npy   of the frames that the teacher read
                         /complete.json     data sets that are fully covered
                         /lock              held by the run that is filling the cache

Parts are memory-mapped float16 numpy arrays without pickles. The ids of a part are
written last and make it valid, so a killed run continues after its last part. Of
several concurrent runs, one fills the cache and the others wait. With top_k the logits
of all other classes are replaced by one number per video, the logit of their mean
probability.
"""

import contextlib
import functools
import hashlib
import io
import json
import logging
import os
import sys
import zlib
from collections.abc import Container, Iterable, Iterator, Sequence

import filelock
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import files, settings, structures
from yt8m_distill.data import frame_sampling, pipeline, shards
from yt8m_distill.models import replicas
from yt8m_distill.training import inputs, manifest, roles

_LOG = logging.getLogger(__name__)

LOCK = "lock"
VERSION = 2  # 1 had no fingerprints.
KEY, COMPLETE = "key.json", "complete.json"
PART_VIDEOS = 4096
# Arrays mapped at the same time. Each map holds a file descriptor (Python 3.11), and a
# cache of YouTube-8M has thousands of arrays.
MAX_OPEN = 64
FINGERPRINT = "fingerprint"

# float16 has an 11-bit significand: cached and new outputs differ by rounding to it,
# and by the order of summation, which depends on the batch size.
_TOLERANCE = 2.0**-9


def describe(
    network: tf.keras.Model,
    role: roles.Role,
    run: settings.RunSettings,
    states_of: pipeline.ViewSpec | None,
) -> dict:
    """The key of a cache: everything that a teacher's outputs depend on.

    Args:
        network: the teacher; all its variables enter the key, trainable or not.
        states_of: the view at whose frames the states are cached, or None.
    """
    digest = hashlib.sha256()
    for variable in network.weights:
        value = variable.numpy()
        digest.update(str((value.shape, str(value.dtype))).encode())
        digest.update(value.tobytes())
    key = {
        "version": VERSION,
        "network": str(role.network),
        "variables": digest.hexdigest(),
        "feature_names": run.data.feature_names,
        "feature_sizes": run.data.feature_sizes,
        "max_frames": run.data.max_frames,
        "frame_features": run.data.frame_features,
        "video_id_key": run.data.video_id_key,
        "dtype_policy": run.networks.dtype_policy,
        "top_k": run.distillation.teacher_cache_top_k,
    }
    if states_of:
        key["states_of"] = [states_of.sampler, states_of.k]
    return key


# Outputs of N videos in their stored form: name (`encoding`, `logits`, `states`,
# `fingerprint`, and with top_k `classes` and `rest`) → [N, ...].
Arrays = dict[str, np.ndarray]


def _stored(outputs: structures.Outputs, top_k: int) -> dict[str, tf.Tensor]:
    """The part of a batch's outputs that is cached; runs in the graph."""
    kept, exact = {"encoding": outputs.encoding, "logits": outputs.logits}, {}
    if outputs.states is not None:
        kept["states"] = outputs.states
    logits, classes = outputs.logits, outputs.logits.shape[-1]
    if top_k and top_k < classes:
        best, exact["classes"] = tf.math.top_k(logits, top_k)
        total = tf.reduce_sum(tf.sigmoid(logits), 1) - tf.reduce_sum(
            tf.sigmoid(best), 1
        )
        mean = tf.clip_by_value(total / (classes - top_k), 1e-7, 1 - 1e-7)
        kept["rest"] = tf.math.log(mean) - tf.math.log1p(-mean)
        kept["logits"] = best
    return {name: tf.cast(value, tf.float16) for name, value in kept.items()} | exact


def restored(guide: dict[str, tf.Tensor], num_classes: int) -> structures.Outputs:
    """The teacher's Outputs from cached rows; runs in the graph.

    Args:
        guide: name → [B, ...], as in `Arrays`.
    """
    values = {k: tf.cast(v, tf.float32) for k, v in guide.items() if k != "classes"}
    logits = values["logits"]
    if "classes" in guide:
        rest = tf.repeat(values["rest"][:, tf.newaxis], num_classes, axis=1)
        rows = tf.range(tf.shape(logits)[0])[:, tf.newaxis]
        rows = tf.broadcast_to(rows, tf.shape(logits))
        indices = tf.stack([rows, guide["classes"]], axis=-1)
        logits = tf.tensor_scatter_nd_update(rest, indices, logits)
    return structures.Outputs(logits, values["encoding"], values.get("states"))


class TeacherCache:
    """The parts of one teacher's cache, in a folder for its key (see `describe`).

    Raises:
        ValueError: if a part is damaged, or an id occurs twice.
    """

    def __init__(self, directory: str, key: dict):
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = os.path.join(directory, name)
        self.key = key
        # Part p has the outputs of videos _starts[p] to _starts[p + 1] - 1.
        self._starts = [0]
        self._offsets: dict[bytes, int] = {}
        self._array = functools.lru_cache(MAX_OPEN)(self._open_array)
        self._shapes: dict[str, tuple] = {}
        self._open_new_parts()

    def _open_new_parts(self) -> None:
        while self.has_part(self._num_parts):
            self._open_part()

    @property
    def _num_parts(self) -> int:
        return len(self._starts) - 1

    @contextlib.contextmanager
    def filling(self) -> Iterator[None]:
        """Holds the lock for adding parts, and opens the parts that others added.

        Waits for the run that holds the lock. The operating system releases it when
        the process ends, even after a crash.

        Raises:
            ValueError: if the folder cannot be written.
        """
        lock = filelock.FileLock(os.path.join(self.folder, LOCK))
        with files.one_line_errors(self._where):
            os.makedirs(self.folder, exist_ok=True)
            try:
                held = lock.acquire(timeout=0)
            except filelock.Timeout:
                _LOG.info("Another run is filling %s: waiting.", self.folder)
                held = lock.acquire()
        with held:
            self._open_new_parts()
            yield

    @property
    def _where(self) -> str:
        """Flag and folder, for errors."""
        return f"--teacher_cache: {self.folder}"

    def __len__(self) -> int:
        return len(self._offsets)

    def __contains__(self, video_id: bytes) -> bool:
        return video_id in self._offsets

    def _path(self, name: str, part: int) -> str:
        return os.path.join(self.folder, f"{part:05d}.{name}")

    def _open_array(self, name: str, part: int) -> np.ndarray:
        path = self._path(f"{name}.npy", part)
        try:
            return np.load(path, mmap_mode="r", allow_pickle=False)
        except Exception as error:
            raise ValueError(f"{path} is damaged or missing: {error}.") from error

    def _open_part(self) -> None:
        part, start = self._num_parts, len(self)
        path = self._path("ids.npz", part)
        try:
            with np.load(path, allow_pickle=False) as stored:
                text, ends = stored["id_bytes"].tobytes(), stored["id_ends"].tolist()
                names = stored["names"].tolist()
        except Exception as error:
            raise ValueError(f"{path} is damaged or missing: {error}.") from error
        arrays = {name: self._array(name, part) for name in names}
        ids = [text[a:b] for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        if any(len(array) != len(ids) for array in arrays.values()):
            raise ValueError(f"{self.folder}: part {part} has arrays of other lengths.")
        for number, video_id in enumerate(ids, start):
            if self._offsets.setdefault(video_id, number) != number:
                raise ValueError(_repeated(video_id))
        self._starts.append(len(self))
        self._shapes = {n: (a.shape[1:], a.dtype) for n, a in arrays.items()}

    def add(self, ids: Sequence[bytes], arrays: Arrays) -> None:
        """Writes a new part, atomically.

        Raises:
            ValueError: if an id is cached already, or the folder cannot be written.
        """
        _check_distinct(ids, self._offsets)
        self.write_part(self._num_parts, ids, arrays)
        self._open_part()

    def write_part(self, part: int, ids: Sequence[bytes], arrays: Arrays) -> None:
        """Writes part number `part`, which `add` increments by itself.

        Every file is written atomically under a unique temporary name, so several
        processes may write the same part at the same time.

        Raises:
            ValueError: if the folder cannot be written.
        """
        with files.one_line_errors(self._where):
            os.makedirs(self.folder, exist_ok=True)
            if not os.path.exists(os.path.join(self.folder, KEY)):
                manifest.write_json(os.path.join(self.folder, KEY), self.key)
        for name, value in arrays.items():
            path = self._path(f"{name}.npy", part)
            with files.writing(path, "wb", self._where) as file:
                np.save(file, value, allow_pickle=False)
        # Last: the ids make the part valid.
        content = io.BytesIO()
        np.savez(
            content,
            id_bytes=np.frombuffer(b"".join(ids), np.uint8),
            id_ends=np.cumsum([len(video_id) for video_id in ids], dtype=np.int64),
            names=np.array(list(arrays)),
        )
        with files.writing(self._path("ids.npz", part), "wb", self._where) as file:
            file.write(content.getvalue())

    def has_part(self, part: int) -> bool:
        """Whether part number `part` is on disk."""
        return os.path.exists(self._path("ids.npz", part))

    def covers(self, data: dict) -> bool:
        """Whether every video of a data set is cached; opens its parts if so."""
        path = os.path.join(self.folder, COMPLETE)
        if not os.path.exists(path) or data not in manifest.read_json(path, list):
            return False
        self._open_new_parts()  # Another run may have added them since.
        return True

    def note_covered(self, data: dict) -> None:
        """Records that every video of a data set is cached."""
        path = os.path.join(self.folder, COMPLETE)
        covered = manifest.read_json(path, list) if os.path.exists(path) else []
        manifest.write_json(path, [*covered, data])

    @property
    def outputs(self) -> list[str]:
        """Names of the cached outputs."""
        return [name for name in self._shapes if name != FINGERPRINT]

    def rows(self, video_ids: Sequence[bytes], names: Sequence[str] = ()) -> Arrays:
        """Name → [B, ...] of these videos, or all outputs; 0 for an empty id.

        Raises:
            KeyError: naming the video, if it is not cached.
        """
        shapes = {name: self._shapes[name] for name in names or self.outputs}
        outputs = {n: np.zeros((len(video_ids), *s), t) for n, (s, t) in shapes.items()}
        rows = [row for row, video_id in enumerate(video_ids) if video_id]
        try:
            found = [self._offsets[video_ids[row]] for row in rows]
        except KeyError as error:
            name = structures.readable_id(error.args[0])
            raise KeyError(f"{self.folder} has no outputs for video {name}.") from error
        offsets = np.array(found, np.int64)
        parts = np.searchsorted(self._starts, offsets, side="right") - 1
        for part in np.unique(parts):
            in_part = np.flatnonzero(parts == part)
            sources = offsets[in_part] - self._starts[part]
            targets = np.array(rows)[in_part]
            for name, target in outputs.items():
                target[targets] = self._array(name, int(part))[sources]
        return outputs

    def attach(self, dataset: tf.data.Dataset, role: str) -> tf.data.Dataset:
        """Adds the cached outputs of a role to each batch, under GUIDES."""
        names = self.outputs
        dtypes = [tf.as_dtype(self._shapes[name][1]) for name in names]

        def look_up(batch):
            video_ids = batch[structures.VIDEO_ID]
            values = tf.numpy_function(
                lambda ids: list(self.rows(ids).values()), [video_ids], dtypes
            )
            for name, value in zip(names, values, strict=True):
                value.set_shape([*video_ids.shape, *self._shapes[name][0]])
            guides = batch.get(structures.GUIDES, {})
            guides = {**guides, role: dict(zip(names, values, strict=True))}
            return {**batch, structures.GUIDES: guides}

        return dataset.map(
            tf.autograph.experimental.do_not_convert(look_up),  # As in pipeline.
            num_parallel_calls=pipeline.PARALLEL_BATCHES,
            deterministic=True,
        ).prefetch(pipeline.BATCHES_AHEAD)


def _joined(batches: Sequence[Arrays]) -> Arrays:
    """Concatenates the outputs of several batches."""
    return {n: np.concatenate([b[n] for b in batches]) for n in batches[0]}


def _check_distinct(ids: Sequence[bytes], known: Container[bytes] = ()) -> None:
    """Raises ValueError if an id occurs twice or is in `known`."""
    seen: set[bytes] = set()
    for video_id in ids:
        if video_id in seen or video_id in known:
            raise ValueError(_repeated(video_id))
        seen.add(video_id)


def _repeated(video_id: bytes) -> str:
    name = structures.readable_id(video_id)
    return f"--teacher_cache needs unique ids; {name} is the id of more than one video."


class Builder:
    """Opens the cache of a teacher, and fills it with the teacher's outputs.

    Args:
        phase: the phase that the teacher guides.
        networks: of the run; the teacher has its weights.
        strategy: the devices, of one process.

    Attributes:
        cache: the opened cache.

    Raises:
        ValueError: as `check_same_frames` and `TeacherCache`.
    """

    def __init__(
        self,
        phase: roles.Phase,
        role: roles.Role,
        run: settings.RunSettings,
        networks,
        strategy,
    ):
        self.runner = replicas.Runner(networks, role.name, strategy)
        self.states_of = phase.states_of
        if self.states_of:
            check_same_frames(phase.views[self.states_of], run.data.max_frames)
        self._views = phase.view_specs({role.view, self.states_of})
        self._batch_size = run.training.batch_size
        states_of = self._views.get(self.states_of)
        key = describe(networks.network(role.name), role, run, states_of)
        self.cache = TeacherCache(run.distillation.teacher_cache, key)
        self._step = self.runner.on_replicas(self._replica_step)

    def dataset(
        self, opened: shards.Shards, train_fraction: float, num_batches: int = -1
    ):
        """A distributed dataset with the views that the teacher needs; -1: all."""
        return inputs.evaluation_dataset(
            self.runner.strategy,
            opened,
            self._views,
            self._batch_size,
            train_fraction,
            num_batches,
        )

    def _replica_step(self, batch):
        outputs = self.runner.forward(batch, states_of=self.states_of)
        return _stored(outputs, self.cache.key["top_k"])

    def outputs(self, batch) -> Arrays:
        """The values to cache for a batch, name → [B, ...]."""
        return {
            name: self.runner.local_rows(v) for name, v in self._step(batch).items()
        }

    def fill(self, dataset, num_videos: int) -> None:
        """Adds the videos of a distributed dataset that are not cached yet.

        Raises:
            ValueError: naming the video, if an output is not finite in float16, an id
                occurs twice, or a cached video had other frames.
        """
        bar = tqdm.tqdm(
            total=num_videos,
            desc="teacher cache",
            unit="video",
            disable=not sys.stderr.isatty(),
        )
        ids: list[bytes] = []
        pending: list[Arrays] = []
        with bar:
            for names, arrays in self._computed(dataset, self.cache, bar):
                ids += names
                pending.append(arrays)
                if len(ids) >= PART_VIDEOS:
                    self.cache.add(ids, _joined(pending))
                    ids, pending = [], []
            if ids:
                self.cache.add(ids, _joined(pending))

    def collect(self, dataset) -> tuple[list[bytes], Arrays]:
        """The ids and outputs of all videos of a distributed dataset, in order.

        Raises:
            ValueError: as `fill`.
        """
        found = list(self._computed(dataset))
        ids = [video_id for names, _ in found for video_id in names]
        _check_distinct(ids)
        return ids, _joined([arrays for _, arrays in found])

    def _computed(self, dataset, known: Container[bytes] = (), bar=None) -> Iterator:
        """Ids and values to cache of the videos that are not known, batch by batch."""
        for batch in dataset:
            names = self.runner.local_rows(batch[structures.VIDEO_ID])
            real = names != b""
            new = real & np.array([name not in known for name in names])
            if bar:
                bar.update(int(real.sum()))
            self._check_frames(batch, names, real & ~new)
            if new.any():
                outputs = {name: v[new] for name, v in self.outputs(batch).items()}
                _check_finite(names[new], outputs)
                fingerprints = self._fingerprints(batch)[new]
                yield names[new].tolist(), {**outputs, FINGERPRINT: fingerprints}

    def _fingerprints(self, batch) -> np.ndarray:
        """[B] uint32, the CRC of each video's frames."""
        view = self.runner.networks.views[self.runner.role]
        frames = self.runner.local_rows(
            batch[structures.VIEWS][view][structures.FRAMES]
        )
        rows = np.ascontiguousarray(frames)
        return np.array([zlib.crc32(row) for row in rows], np.uint32)

    def _check_frames(self, batch, names, mask) -> None:
        """Raises ValueError if a cached video in `mask` [B] has other frames now."""
        if not mask.any():
            return
        cached = self.cache.rows(names[mask], [FINGERPRINT])[FINGERPRINT]
        for video_id in names[mask][cached != self._fingerprints(batch)[mask]]:
            raise ValueError(
                f"--teacher_cache: {self.cache.folder} has the outputs for other "
                f"frames of video {structures.readable_id(video_id)}. If "
                "its shard was written anew, remove that folder."
            )

    def check(self, batch) -> None:
        """Compares the cache with the teacher's outputs for one batch.

        Raises:
            ValueError: if they differ by more than float16 rounding explains.
        """
        names = self.runner.local_rows(batch[structures.VIDEO_ID])
        cached, computed = self.cache.rows(names), self.outputs(batch)
        for name in ("encoding", "logits", "states"):
            if name not in cached:
                continue
            real = names != b""
            old, new = (x[name][real].astype(np.float32) for x in (cached, computed))
            tolerance = _TOLERANCE * (1 + np.abs(new).max(initial=0))
            if self.cache.key["dtype_policy"] != "float32":
                tolerance *= 16
            difference = np.abs(old - new).max(initial=0)
            if not difference <= tolerance:
                raise ValueError(
                    f"{self.cache.folder} does not match the teacher: the {name} "
                    f"differ by up to {difference:g}. Remove that folder."
                )


def _check_finite(names: np.ndarray, outputs: Arrays) -> None:
    for name, values in outputs.items():
        if values.dtype.kind != "f":
            continue
        flat = values.reshape(len(values), -1)
        bad = ~np.isfinite(flat).all(axis=1)
        if bad.any():
            video = structures.readable_id(names[bad.argmax()])
            raise ValueError(
                f"The teacher's {name} of video {video} do not fit float16."
            )


def data_key(
    paths: Sequence[str], identities: Iterable[tuple[int, int]], fraction: float
) -> dict:
    """Identifies a data set by the names of its shards and index.identity of each."""
    digest = hashlib.sha256()
    for path, (size, changed) in zip(paths, identities, strict=True):
        digest.update(f"{path} {size} {changed}\n".encode())
    return {"files": len(paths), "digest": digest.hexdigest(), "fraction": fraction}


def check_same_frames(view: roles.View, max_frames: int) -> None:
    """Raises ValueError unless cached states match the frames that the student reads.

    Args:
        view: of the student; states are cached at its evaluation frames.
        max_frames: T of the data.
    """
    if view.evaluation.segment_context is not None:
        raise ValueError(
            "--teacher_cache cannot hold the intermediate states at the frames of "
            "segments: it has one entry per video."
        )
    sampler, trained = view.evaluation.sampler, view.training.sampler
    if not settings.is_same("frame_sampler", trained, sampler):
        raise ValueError(
            "--teacher_cache cannot hold the intermediate states at the frames of "
            f"--train_frame_sampler={trained}: it has those of "
            f"--frame_sampler={sampler}."
        )
    if frame_sampling.changes_between_epochs(sampler, view.evaluation.k, max_frames):
        raise ValueError(
            "--teacher_cache cannot hold intermediate states at frames that change "
            f"between epochs, as with --frame_sampler={sampler}."
        )
