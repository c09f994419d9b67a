"""Writes frame-level shards that hold only the sampled frames of each video.

    yt8m-thin --input_data_pattern='yt8m/train*.tfrecord' \\
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
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import threading
from collections.abc import Sequence

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups, settings

flag_groups.load_tensorflow()

import tensorflow as tf
import tqdm
from absl import flags

from yt8m_distill.data import pipeline, records, rewriting
from yt8m_distill.serving import thinning

FLAGS = flags.FLAGS


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
    """Thins all shards; the arguments are those of thinning.thin_shard.

    Returns:
        The videos in all, and how many shards stood there already.

    Raises:
        ValueError: as thinning.thin_shard; a truncated shard before any is written.
    """
    rewriting.check_places(files, folder)
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
            tasks[pool.submit(thinning.thin_shard, *job)] = count
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
        f"--num_classes={data.num_classes}",
        f"--video_id_key={data.video_id_key}",
    ]
    return (
        f"{videos} videos, {before} bytes before, {after} after{ratio}{stood}.\n"
        f"Flags for train.py: {' '.join(suggested)}"
    )


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string(
        "input_data_pattern", "", "Glob of the full shards; several by commas."
    )
    flags.DEFINE_string("output_dir", "", "Directory of the thin shards.")
    flags.DEFINE_integer("jobs", 2, "Processes.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Replace shards that stand there already.")
    flag_groups.define((settings.DataSettings, settings.SamplingSettings))


def main() -> None:
    """Flags → thin shards."""
    data = flag_groups.read(settings.DataSettings)
    data.require_frames("A thin shard")
    sampling = flag_groups.read(settings.SamplingSettings)
    view = thinning.view_to_keep(sampling, data.max_frames)
    files = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
    folder = FLAGS.output_dir
    if not folder:
        raise ValueError("--output_dir is empty: name the directory to write to.")
    try:
        done = thin_shards(files, folder, data, view, FLAGS.jobs, FLAGS.overwrite)
    except concurrent.futures.BrokenExecutor as error:
        raise ValueError(f"A process ended: {error}") from error
    print(report(files, folder, data, view, *done))


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags)


if __name__ == "__main__":
    run()
