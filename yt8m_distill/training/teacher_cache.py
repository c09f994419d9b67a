"""The outputs of a frozen teacher, kept on disk.

In serial mode the teacher says the same of a video in every epoch. A cache computes
it once, and an epoch then costs what the student costs. It stands in a folder of its
own for each teacher (by the values of its variables) and each way of feeding it:

    <teacher_cache>/<key>/key.json          what the key stands for
                         /00000.ids.npz     ids of the videos in part 0
                         /00000.encoding.npy, .logits.npy, .states.npy
                         /00000.fingerprint.npy   of the frames that the teacher saw
                         /complete.json     data sets that are covered whole
                         /lock              held by the run that is filling it

Parts are numpy arrays in float16 without pickles, mapped into memory when they are
read. A part counts once its ids are there, so a killed run goes on behind its last
part; of several runs side by side one fills the cache and the others wait for it. With
top_k the logits of all other classes are replaced by one number a video,
the logit of their mean probability.
"""

import bisect
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import os
import sys
import uuid
import zlib
from collections.abc import Callable, Container, Iterator, Sequence
from typing import BinaryIO

import filelock
import keras
import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill import files, settings, structures
from yt8m_distill.data import frame_sampling, pipeline
from yt8m_distill.training import manifest

_LOG = logging.getLogger(__name__)

LOCK = "lock"
VERSION = 2  # 1 had no fingerprints.
KEY, COMPLETE = "key.json", "complete.json"
PART_VIDEOS = 4096
# Arrays that are mapped at once: each map holds a file descriptor for as long as it
# lives (Python 3.11), and a cache of YouTube-8M has thousands of them.
MAX_OPEN = 64
FINGERPRINT = "fingerprint"

# float16 has 11 bits: cached and fresh numbers differ by half a unit of them, and by
# what another batch size does to a sum.
_TOLERANCE = 2.0**-9


def describe(
    network: tf.keras.Model,
    role,
    run: settings.RunSettings,
    states_of: pipeline.ViewSpec | None,
) -> dict:
    """All that a teacher's outputs depend on.

    Args:
        network: with the teacher's variables, of which the statistics are a part.
        role: its modes.Role.
        run: names of the features, cuts and precision.
        states_of: the view at whose frames the states are wanted, or None.
    """
    digest = hashlib.sha256()
    for variable in network.weights:
        value = variable.numpy()
        digest.update(str((value.shape, str(value.dtype))).encode())
        digest.update(value.tobytes())
    described = {
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
        described["states_of"] = [states_of.sampler, states_of.k]
    return described


@dataclasses.dataclass
class Arrays:
    """Outputs of N videos as they are stored.

    Attributes:
        values: name (`encoding`, `logits`, `states`, `fingerprint`, and with top_k
            `classes` and `rest`) → [N, ...].
    """

    values: dict[str, np.ndarray]

    def __len__(self) -> int:
        return len(self.values["encoding"])


def _stored(outputs: structures.Outputs, top_k: int) -> dict[str, tf.Tensor]:
    """In the graph: what is kept of a batch."""
    kept = {"encoding": outputs.encoding}
    if outputs.states is not None:
        kept["states"] = outputs.states
    logits, classes = outputs.logits, outputs.logits.shape[-1]
    if top_k and top_k < classes:
        best, chosen = tf.math.top_k(logits, top_k)
        total = tf.reduce_sum(tf.sigmoid(logits), 1) - tf.reduce_sum(
            tf.sigmoid(best), 1
        )
        mean = tf.clip_by_value(total / (classes - top_k), 1e-7, 1 - 1e-7)
        kept["rest"] = tf.math.log(mean) - tf.math.log1p(-mean)
        kept["logits"] = best
        kept = {name: tf.cast(value, tf.float16) for name, value in kept.items()}
        kept["classes"] = chosen
        return kept
    kept["logits"] = logits
    return {name: tf.cast(value, tf.float16) for name, value in kept.items()}


def restored(guide: dict[str, tf.Tensor], num_classes: int) -> structures.Outputs:
    """In the graph: a batch's rows of the cache as the teacher's Outputs.

    Args:
        guide: name → [B, ...], as in `Arrays`.
        num_classes: C.
    """
    values = {k: tf.cast(v, tf.float32) for k, v in guide.items() if k != "classes"}
    logits = values["logits"]
    if "classes" in guide:
        rest = tf.repeat(values["rest"][:, tf.newaxis], num_classes, axis=1)
        rows = tf.range(tf.shape(logits)[0])[:, tf.newaxis]
        rows = tf.broadcast_to(rows, tf.shape(logits))
        places = tf.stack([rows, guide["classes"]], axis=-1)
        logits = tf.tensor_scatter_nd_update(rest, places, logits)
    return structures.Outputs(logits, values["encoding"], values.get("states"))


class TeacherCache:
    """The parts of one teacher's cache.

    Args:
        directory: `--teacher_cache`.
        key: see `describe`.

    Raises:
        ValueError: if a part is damaged, or an id is in it twice.
    """

    def __init__(self, directory: str, key: dict):
        text = json.dumps(key, sort_keys=True)
        name = hashlib.sha256(text.encode()).hexdigest()[:16]
        self.folder = os.path.join(directory, name)
        self.key = key
        # The outputs of video i are in the part that starts last of those up to i.
        self._starts = [0]
        self._places: dict[bytes, int] = {}
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
        """Holds the right to add parts; those that others have added are here then.

        Waits for another run that has it. The system takes it back when a process
        ends, however it ends.

        Raises:
            ValueError: if the disk refuses.
        """
        lock = filelock.FileLock(os.path.join(self.folder, LOCK))
        with contextlib.ExitStack() as stack:
            try:
                os.makedirs(self.folder, exist_ok=True)
                try:
                    stack.enter_context(lock.acquire(timeout=0))
                except filelock.Timeout:
                    _LOG.info("Another run is filling %s: waiting.", self.folder)
                    stack.enter_context(lock.acquire())
            except OSError as error:
                raise self._unwritable(error) from error
            self._open_new_parts()
            yield

    def _unwritable(self, error: OSError) -> ValueError:
        return ValueError(
            f"--teacher_cache: {self.folder} cannot be written: {files.reason(error)}."
        )

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, video_id: bytes) -> bool:
        return video_id in self._places

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
            if self._places.setdefault(video_id, number) != number:
                raise ValueError(_repeated(video_id))
        self._starts.append(len(self))
        self._shapes = {
            n: (a.shape[1:], a.dtype) for n, a in arrays.items() if n != FINGERPRINT
        }

    def add(self, ids: Sequence[bytes], arrays: Arrays) -> None:
        """Writes a part; it counts only once it is whole.

        Raises:
            ValueError: if an id is there already, or the disk refuses.
        """
        _check_distinct(ids, self._places)
        self.write_part(self._num_parts, ids, arrays)
        self._open_part()

    def write_part(self, part: int, ids: Sequence[bytes], arrays: Arrays) -> None:
        """Writes a part of a given number, which `add` would give it.

        Every file has its name only once it is whole, and has a temporary name of its
        own before: a part may be written twice at once if the content is the same.

        Raises:
            ValueError: if the disk refuses.
        """
        ends = np.cumsum([len(video_id) for video_id in ids], dtype=np.int64)
        stored = {
            "id_bytes": np.frombuffer(b"".join(ids), np.uint8),
            "id_ends": ends,
            "names": np.array(list(arrays.values)),
        }
        try:
            os.makedirs(self.folder, exist_ok=True)
            if not os.path.exists(os.path.join(self.folder, KEY)):
                manifest.write_json(os.path.join(self.folder, KEY), self.key)
            for name, value in arrays.values.items():
                _save(
                    self._path(f"{name}.npy", part),
                    lambda file, v=value: np.save(_Plain(file), v, allow_pickle=False),
                )
            _save(  # The part counts now.
                self._path("ids.npz", part), lambda file: np.savez(file, **stored)
            )
        except OSError as error:
            raise self._unwritable(error) from error

    def has_part(self, part: int) -> bool:
        """Whether a part of this number is on the disk."""
        return os.path.exists(self._path("ids.npz", part))

    def covers(self, data: dict) -> bool:
        """Whether every video of a data set is known to be here, and open."""
        path = os.path.join(self.folder, COMPLETE)
        if not os.path.exists(path) or data not in manifest.read_json(path, list):
            return False
        self._open_new_parts()  # Another run may have added them since.
        return True

    def note_covered(self, data: dict) -> None:
        """Notes that every video of a data set is here."""
        path = os.path.join(self.folder, COMPLETE)
        known = manifest.read_json(path, list) if os.path.exists(path) else []
        manifest.write_json(path, [*known, data])

    def rows(self, video_ids: Sequence[bytes]) -> dict[str, np.ndarray]:
        """Name → [B, ...]: the outputs of these videos, 0 for an empty id.

        Raises:
            KeyError: for a video that is not here, naming it.
        """
        found = {
            name: np.zeros((len(video_ids), *shape), dtype)
            for name, (shape, dtype) in self._shapes.items()
        }
        rows = [row for row, video_id in enumerate(video_ids) if video_id]
        places = np.array([self._place(video_ids[row]) for row in rows], np.int64)
        parts = np.searchsorted(self._starts, places, side="right") - 1
        for part in np.unique(parts):
            chosen = np.flatnonzero(parts == part)
            sources = places[chosen] - self._starts[part]
            targets = np.array(rows)[chosen]
            for name, target in found.items():
                target[targets] = self._array(name, int(part))[sources]
        return found

    def _place(self, video_id: bytes) -> int:
        place = self._places.get(video_id)
        if place is None:
            name = video_id.decode(errors="backslashreplace")
            raise KeyError(f"{self.folder} has no outputs for video {name}.")
        return place

    def fingerprint(self, video_id: bytes) -> int:
        """Of the frames that the teacher saw of a video that is here."""
        place = self._place(video_id)
        part = bisect.bisect_right(self._starts, place) - 1
        return int(self._array(FINGERPRINT, part)[place - self._starts[part]])

    def attach(self, dataset: tf.data.Dataset, role: str) -> tf.data.Dataset:
        """Batches with a role's outputs of their videos under GUIDES."""
        names = list(self._shapes)
        dtypes = [tf.as_dtype(dtype) for _, dtype in self._shapes.values()]

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


def _joined(found: Sequence[dict[str, np.ndarray]]) -> Arrays:
    """The outputs of several batches as those of one."""
    return Arrays({n: np.concatenate([f[n] for f in found]) for n in found[0]})


def _check_distinct(ids: Sequence[bytes], known: Container[bytes] = ()) -> None:
    """Raises ValueError if an id is there twice, or is known already."""
    seen: set[bytes] = set()
    for video_id in ids:
        if video_id in seen or video_id in known:
            raise ValueError(_repeated(video_id))
        seen.add(video_id)


def _repeated(video_id: bytes) -> str:
    name = video_id.decode(errors="backslashreplace")
    return (
        f"--teacher_cache goes by the ids of videos, and {name} is the id of more "
        "than one."
    )


class _Plain:
    """A file that numpy only writes to: what the system says of it is not replaced.

    To a file of Python numpy writes by itself, and then "24 requested and 8 written" is
    all that is left of a full disk (seen in numpy 2.4).
    """

    def __init__(self, file: BinaryIO):
        self.write = file.write


def _save(path: str, write: Callable[[BinaryIO], None]) -> None:
    """Writes a file that has its name only once it is whole and on the disk."""
    temporary = f"{path}.{uuid.uuid4().hex}.tmp"
    with files.removed_after_errors(temporary):
        with open(temporary, "xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)


class Builder:
    """Fills a cache with what the teacher says.

    Args:
        cache: to be filled.
        networks: the run's; the teacher's is used.
        strategy: the devices, of one process.
        role: the teacher's.
        states_of: also the states at the frames of this view; None: without.
    """

    def __init__(
        self,
        cache: TeacherCache,
        networks,
        strategy,
        role: str,
        states_of: str | None = None,
    ):
        self.role = role
        self.cache = cache
        self.networks = networks
        self.strategy = strategy
        self.states_of = states_of
        self.policy = keras.mixed_precision.global_policy()
        self._step = tf.function(self._distributed_step)

    def _distributed_step(self, batch):
        def replica_step(batch):
            # Keras 3 (3.15) has a policy a thread, and a replica runs in its own.
            keras.mixed_precision.set_global_policy(self.policy)
            outputs = self.networks.forward(
                self.role, batch[structures.VIEWS], states_of=self.states_of
            )
            return _stored(outputs, self.cache.key["top_k"])

        return self.strategy.run(replica_step, args=(batch,))

    def _local(self, value) -> np.ndarray:
        parts = self.strategy.experimental_local_results(value)
        return np.concatenate([part.numpy() for part in parts])

    def outputs(self, batch) -> dict[str, np.ndarray]:
        """What is kept of a batch, name → [B, ...]."""
        return {name: self._local(v) for name, v in self._step(batch).items()}

    def fill(self, dataset, num_videos: int) -> None:
        """Adds the videos of a distributed dataset that are not there yet.

        Raises:
            ValueError: for an output that is not a number in float16, an id that
                occurs twice, or one that is there already, of other frames; all name
                the video.
        """
        bar = tqdm.tqdm(
            total=num_videos,
            desc="teacher cache",
            unit="video",
            disable=not sys.stderr.isatty(),
        )
        ids: list[bytes] = []
        waiting: list[dict[str, np.ndarray]] = []
        with bar:
            for batch in dataset:
                names = self._local(batch[structures.VIDEO_ID])
                real = names != b""
                new = np.array([n not in self.cache for n in names]) & real
                bar.update(int(real.sum()))
                self._check_frames(batch, names, real & ~new)
                if not new.any():
                    continue
                waiting.append(self._checked_outputs(batch, names, new))
                ids += names[new].tolist()
                if len(ids) >= PART_VIDEOS:
                    self._add(ids, waiting)
            if ids:
                self._add(ids, waiting)

    def collect(self, dataset) -> tuple[list[bytes], Arrays]:
        """The ids and outputs of all videos of a distributed dataset, in its order.

        Raises:
            ValueError: as `fill`.
        """
        ids: list[bytes] = []
        found: list[dict[str, np.ndarray]] = []
        for batch in dataset:
            names = self._local(batch[structures.VIDEO_ID])
            real = names != b""
            if real.any():
                found.append(self._checked_outputs(batch, names, real))
                ids += names[real].tolist()
        _check_distinct(ids)
        return ids, _joined(found)

    def _checked_outputs(self, batch, names, chosen) -> dict[str, np.ndarray]:
        """What is kept of the chosen rows [B] of a batch, all of it finite."""
        found = {name: v[chosen] for name, v in self.outputs(batch).items()}
        _check_finite(names[chosen], found)
        return {**found, FINGERPRINT: self._fingerprints(batch)[chosen]}

    def _fingerprints(self, batch) -> np.ndarray:
        """[B] uint32 of the frames of a batch."""
        view = self.networks.views[self.role]
        frames = self._local(batch[structures.VIEWS][view][structures.FRAMES])
        rows = np.ascontiguousarray(frames)
        return np.array([zlib.crc32(row) for row in rows], np.uint32)

    def _check_frames(self, batch, names, known) -> None:
        """Raises ValueError if known videos [B] are of other frames than before."""
        if not known.any():
            return
        fingerprints = self._fingerprints(batch)[known]
        for video_id, now in zip(names[known], fingerprints, strict=True):
            if self.cache.fingerprint(video_id) != now:
                raise ValueError(
                    f"--teacher_cache: {self.cache.folder} has the outputs for other "
                    f"frames of video {video_id.decode(errors='backslashreplace')}. If "
                    "its shard was written anew, remove that folder."
                )

    def _add(self, ids: list, waiting: list) -> None:
        self.cache.add(ids, _joined(waiting))
        ids.clear()
        waiting.clear()

    def check(self, batch) -> None:
        """Compares the cache with what the teacher says of a batch now.

        Raises:
            ValueError: if they differ by more than float16 explains.
        """
        names = self._local(batch[structures.VIDEO_ID])
        kept, fresh = self.cache.rows(names), self.outputs(batch)
        for name in ("encoding", "logits", "states"):
            if name not in kept:
                continue
            real = names != b""
            old, new = (x[name][real].astype(np.float32) for x in (kept, fresh))
            slack = _TOLERANCE * (1 + np.abs(new).max(initial=0))
            if self.cache.key["dtype_policy"] != "float32":
                slack *= 16
            worst = np.abs(old - new).max(initial=0)
            if not worst <= slack:
                raise ValueError(
                    f"{self.cache.folder} does not hold what the teacher says: the "
                    f"{name} differ by up to {worst:g}. Remove that folder."
                )


def _check_finite(names: np.ndarray, found: dict[str, np.ndarray]) -> None:
    for name, values in found.items():
        if values.dtype.kind != "f":
            continue
        flat = values.reshape(len(values), -1)
        bad = ~np.isfinite(flat).all(axis=1)
        if bad.any():
            video = names[bad.argmax()].decode(errors="backslashreplace")
            raise ValueError(
                f"The teacher's {name} of video {video} do not fit float16."
            )


def data_key(shards: Sequence[str], fraction: float) -> dict:
    """What tells a data set from others: names, sizes and times of its shards."""
    digest = hashlib.sha256()
    for path in shards:
        found = tf.io.gfile.stat(path)
        digest.update(f"{path} {found.length} {found.mtime_nsec}\n".encode())
    return {"files": len(shards), "digest": digest.hexdigest(), "fraction": fraction}


def check_same_frames(view, max_frames: int) -> None:
    """Raises ValueError unless a student sees what a cache of states is made of.

    Args:
        view: modes.View of the student; the cache has the frames of evaluation.
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
            "--teacher_cache cannot hold the intermediate states at frames that "
            f"change from epoch to epoch, as with --frame_sampler={sampler}."
        )
