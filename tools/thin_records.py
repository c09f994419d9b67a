"""Writes frame-level shards that hold only the sampled frames of each video.

    python tools/thin_records.py --input_data_pattern='yt8m/train*.tfrecord' \\
        --output_dir=thin --student_k=30

The frames are those that a student sees in evaluation: what reading the full shards
with --frame_sampler and --student_k gives, reading the thin ones whole
(--frame_sampler=all --max_frames=k) gives too, bit for bit. Their share of the size
is k by the mean number of frames: about an eighth of YouTube-8M at k=30. Both this
package and the YouTube-8M starter code read them.

What thin shards are not for: the teacher, and so serial and parallel mode, needs all
frames; `random` and `uniform_jitter` in training draw other frames in every epoch,
for which the full shards are needed too; here they are drawn once.

A network trained with --frame_sampler=all takes the first k frames of a full video.
One that is to read full and thin shards alike keeps the flags of the full ones
(--frame_sampler=uniform --max_frames=300): every sampler but `uniform_stride` and
`last_padded` keeps all frames of a video that has k at most.

A shard keeps its name, its records their order. A record keeps its context and the
feature lists of --feature_names; other feature lists are left out. Its context gains
two int64 features, in the place of any of that name: `num_frames`, one number, the
frames of the shortest feature in the full record, and `frame_indices`, k at most, the
positions there of the frames that were kept. Thinned again, both still speak of the
full record.

Every shard is written under a hidden temporary name and renamed when it is whole; a
killed process leaves one such `.*.tmp` at most. Run again, the program goes on with
the shards that are missing.
"""

import concurrent.futures
import functools
import itertools
import multiprocessing
import multiprocessing.connection
import os
import pathlib
import signal
import sys
import threading
import uuid
from collections.abc import Iterator, Sequence

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

import tensorflow as tf
import tqdm
from absl import app, flags

from yt8m_distill import settings
from yt8m_distill.data import frame_sampling, pipeline, records

FLAGS = flags.FLAGS

NUM_FRAMES = "num_frames"
FRAME_INDICES = "frame_indices"

_BATCH = 64  # Records that are parsed together.
_COMPARED = 16  # First records by which a shard shows how it was thinned.


@functools.cache
def _chooser(data: settings.DataSettings, view: pipeline.ViewSpec):
    """A graph: path, number of the first record, serialized [B] → ids, indices, valid.

    Cached, since tracing it takes as long as thinning a few hundred videos.
    """
    sampler = frame_sampling.SAMPLERS.get(view.sampler)

    @tf.function(
        input_signature=[
            tf.TensorSpec([], tf.string),
            tf.TensorSpec([], tf.int64),
            tf.TensorSpec([None], tf.string),
        ]
    )
    def choose(path, first, serialized):
        numbers = first + tf.range(tf.size(serialized, tf.int64))
        numbers = tf.strings.as_string(numbers)
        origins = tf.strings.join([path, ", record ", numbers, " (counted from 0)"])
        is_video = tf.ones_like(serialized, tf.bool)
        parsed = records.parse_batch(serialized, origins, data, is_video)
        video_ids = records.required_ids(parsed, data, is_video)
        keys = pipeline._video_keys(video_ids, 0)  # Salt 0: outside of training.
        return video_ids, *sampler(parsed.num_frames, view.k, data.max_frames, keys)

    return choose


def thin_record(
    serialized: bytes, indices: Sequence[int], names: Sequence[str]
) -> bytes:
    """A serialized SequenceExample with these frames of these features alone.

    Raises:
        ValueError: if its `frame_indices` are not those of its frames.
    """
    full = tf.train.SequenceExample.FromString(serialized)
    lists = full.feature_lists.feature_list
    thin = tf.train.SequenceExample(context=full.context)
    for name in names:
        frames = lists[name].feature
        kept = thin.feature_lists.feature_list[name].feature
        kept.extend([frames[index] for index in indices])
    num_frames = min(len(lists[name].feature) for name in names)
    context = thin.context.feature
    if NUM_FRAMES in context and FRAME_INDICES in context:  # Thinned before.
        original = context[NUM_FRAMES].int64_list.value
        positions = context[FRAME_INDICES].int64_list.value
        if len(original) != 1 or len(positions) != num_frames:
            raise ValueError(
                f"its context has {len(original)} {NUM_FRAMES} and {len(positions)} "
                f"{FRAME_INDICES}, not 1 and {num_frames} as a record thinned to "
                f"{num_frames} frames."
            )
        (num_frames,) = original
        indices = [positions[index] for index in indices]
    for name, values in ((NUM_FRAMES, [num_frames]), (FRAME_INDICES, indices)):
        numbers = tf.train.Int64List(value=values)
        context[name].CopyFrom(tf.train.Feature(int64_list=numbers))
    # Otherwise the order of features changes from process to process.
    return thin.SerializeToString(deterministic=True)


def thin_records(
    path: str, data: settings.DataSettings, view: pipeline.ViewSpec
) -> Iterator[bytes]:
    """The thinned records of a shard, in their order.

    Raises:
        ValueError: for a record of which the sampler chooses no frame.
        tf.errors.OpError: as records.parse_batch, for a record that is none.
    """
    choose, number = _chooser(data, view), 0
    dataset = tf.data.TFRecordDataset(path, buffer_size=1 << 20).batch(_BATCH)
    for batch in dataset.prefetch(1):
        ids, indices, valid = (part.numpy() for part in choose(path, number, batch))
        for row, serialized in enumerate(batch.numpy()):
            where = (
                f"{path}, record {number} (counted from 0), video "
                f"{ids[row].decode(errors='replace')}"
            )
            if not valid[row]:
                raise ValueError(
                    f"{where}: --frame_sampler={view.sampler} chooses none of its "
                    "frames, and a record needs one."
                )
            chosen = indices[row, : valid[row]].tolist()
            try:
                yield thin_record(serialized, chosen, data.names)
            except ValueError as error:
                raise ValueError(f"{where}: {error}") from error
            number += 1


def _first_records(path: str) -> list[bytes]:
    """The first records of a shard, fewer where it is damaged."""
    found = []
    try:
        for record in tf.data.TFRecordDataset(path).take(_COMPARED):
            found.append(record.numpy())
    except tf.errors.DataLossError:
        pass
    return found


def _is_made_already(
    target: str, thinned: Iterator[bytes], count: int, overwrite: bool
) -> bool:
    """Whether this very shard stands there, whole.

    Args:
        target: the shard.
        thinned: the records that it is to hold.
        count: how many these are.
        overwrite: it is to be written anew whatever it is.

    Raises:
        ValueError: if a shard with other records does.
    """
    if overwrite or not tf.io.gfile.exists(target):
        return False
    found = _first_records(target)
    if found != list(itertools.islice(thinned, len(found))):
        raise ValueError(
            f"{target} stands there with other records, perhaps of another "
            "--student_k or --frame_sampler. Use --overwrite or another --output_dir."
        )
    try:
        return records.count_records([target]) == count
    except ValueError:  # Truncated.
        return False


def thin_shard(
    source: str,
    count: int,
    folder: str,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    overwrite: bool = False,
) -> bool:
    """Writes one shard under its final name once it is whole.

    Args:
        source: the full shard.
        count: records in it.
        folder: where the thin one goes, under the same name.
        data: what the records hold.
        view: the sampler and its k.
        overwrite: also where it stands already.

    Returns:
        False if it stood there already.

    Raises:
        ValueError: for a bad record, or another shard in its place. One line.
    """
    name = os.path.basename(source)
    target = os.path.join(folder, name)
    # A name of its own for each process, whatever machine it runs on.
    temporary = os.path.join(folder, f".{name}.{uuid.uuid4().hex}.tmp")
    try:
        thinned = thin_records(source, data, view)
        if _is_made_already(target, thinned, count, overwrite):
            return False
        with tf.io.TFRecordWriter(temporary) as writer:
            for record in thin_records(source, data, view):
                writer.write(record)
        tf.io.gfile.rename(temporary, target, overwrite=True)
    except (tf.errors.OpError, UnicodeDecodeError) as error:
        text = records.describe_error(error, [source]) or f"{target}: {error}"
        raise ValueError(" ".join(text.split())) from error
    finally:
        if tf.io.gfile.exists(temporary):
            tf.io.gfile.remove(temporary)
    return True


def check_places(files: Sequence[str], folder: str) -> None:
    """Raises a ValueError if an output would replace an input or another output."""
    sources: dict[str, str] = {}
    for path in files:
        if os.path.realpath(os.path.dirname(path)) == os.path.realpath(folder):
            raise ValueError(
                f"--output_dir={folder} is the directory of {path}: name another one."
            )
        other = sources.setdefault(os.path.basename(path), path)
        if other != path:
            raise ValueError(
                f"{other} and {path} have the same name: thin them into two "
                "directories."
            )


def _start_process() -> None:
    """Makes a process of the pool end with its parent, and only then."""
    # The parent handles an interrupt: shards at hand are finished.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    # Several processes would each take a GPU's whole memory.
    tf.config.set_visible_devices([], "GPU")
    parent = multiprocessing.parent_process().sentinel

    def end_with_parent():
        multiprocessing.connection.wait([parent])
        os._exit(1)

    # A pool whose parent is killed waits for work forever (seen in Python 3.11).
    threading.Thread(target=end_with_parent, daemon=True).start()


def thin_shards(
    files: Sequence[str],
    folder: str,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    jobs: int = 1,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Thins all shards; the arguments are those of thin_shard.

    Returns:
        The videos in all, and how many shards stood there already.

    Raises:
        ValueError: as thin_shard, and for a truncated shard before any is written.
    """
    check_places(files, folder)
    counts = {path: records.count_records([path]) for path in files}
    tf.io.gfile.makedirs(folder)
    videos, kept = sum(counts.values()), 0
    bar = tqdm.tqdm(total=videos, unit="video", disable=not sys.stderr.isatty())
    # spawn: TensorFlow's threads do not survive a fork.
    context = multiprocessing.get_context("spawn")
    jobs = min(jobs, len(files))
    with (
        bar,
        concurrent.futures.ProcessPoolExecutor(jobs, context, _start_process) as pool,
    ):
        tasks = {}
        for path, count in counts.items():
            job = (path, count, folder, data, view, overwrite)
            tasks[pool.submit(thin_shard, *job)] = count
        try:
            for task in concurrent.futures.as_completed(tasks):
                kept += not task.result()
                bar.update(tasks[task])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return videos, kept


def report(
    files: Sequence[str],
    folder: str,
    data: settings.DataSettings,
    view: pipeline.ViewSpec,
    videos: int,
    kept: int,
) -> str:
    """The closing lines: sizes before and after, and the flags of train.py."""
    targets = [os.path.join(folder, os.path.basename(path)) for path in files]
    before, after = (
        sum(tf.io.gfile.stat(path).length for path in paths)
        for paths in (files, targets)
    )
    ratio = f" ({after / before:.1%})" if before else ""
    stood = f"; {kept} of {len(files)} shards stood there already" if kept else ""
    suggested = [
        "--mode=baseline",
        f"--student_k={view.k}",
        f"--max_frames={view.k}",
        "--frame_sampler=all",
        f"--feature_names={data.feature_names}",
        f"--feature_sizes={data.feature_sizes}",
        f"--video_id_key={data.video_id_key}",
    ]
    return (
        f"{videos} videos, {before} bytes before, {after} after{ratio}{stood}.\n"
        f"Flags for train.py: {' '.join(suggested)}"
    )


def view_to_keep(
    sampling: settings.SamplingSettings, max_frames: int
) -> pipeline.ViewSpec:
    """The view of a video that a thin shard holds.

    Raises:
        ValueError: for an unknown sampler, `all`, or a k above max_frames.
    """
    view = pipeline.sampled_view(sampling, training=False)
    if view.sampler == "all":
        raise ValueError("--frame_sampler=all leaves no frame out: name another one.")
    if view.k > max_frames:
        raise ValueError(
            f"--student_k={view.k} is more than --max_frames={max_frames}."
        )
    return view


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string(
        "input_data_pattern", "", "Glob of the full shards; several by commas."
    )
    flags.DEFINE_string("output_dir", "", "Directory of the thin shards.")
    flags.DEFINE_integer("student_k", 30, "Frames of a video to keep.")
    flags.DEFINE_string(
        "frame_sampler",
        "uniform",
        "How they are chosen, as in evaluation; any sampler but all.",
    )
    flags.DEFINE_string("feature_names", "rgb,audio", "Names of the features to keep.")
    flags.DEFINE_string("feature_sizes", "1024,128", "Their widths, bytes a frame.")
    flags.DEFINE_integer(
        "max_frames",
        300,
        "Frames of a full video that are looked at, as in evaluation; the rest is cut.",
    )
    flags.DEFINE_string("video_id_key", "id", "Context key of the video's id.")
    flags.DEFINE_integer("jobs", 2, "Processes.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace shards that stand there already.")


def main(argv: list[str]) -> None:
    """Flags → thin shards."""
    try:
        if len(argv) > 1:
            raise ValueError(f"Not a flag: {' '.join(argv[1:])}")
        data = settings.DataSettings(
            feature_names=FLAGS.feature_names,
            feature_sizes=FLAGS.feature_sizes,
            max_frames=FLAGS.max_frames,
            video_id_key=FLAGS.video_id_key,
        )
        sampling = settings.SamplingSettings(FLAGS.student_k, FLAGS.frame_sampler)
        view = view_to_keep(sampling, data.max_frames)
        files = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
        folder = FLAGS.output_dir
        if not folder:
            raise ValueError("--output_dir is empty: name the directory to write to.")
        done = thin_shards(files, folder, data, view, FLAGS.jobs, FLAGS.overwrite)
        print(report(files, folder, data, view, *done))
    except (
        ValueError,
        OSError,
        tf.errors.OpError,
        concurrent.futures.BrokenExecutor,
    ) as error:
        sys.exit(f"thin_records.py: {' '.join(str(error).split())}")


if __name__ == "__main__":
    define_flags()
    app.run(main)
