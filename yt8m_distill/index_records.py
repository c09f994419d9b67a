"""Writes the index of every shard: where each frame of each video stands.

    yt8m-index --input_data_pattern='train*.tfrecord'
    yt8m-index --input_data_pattern='bal_train*.tfrecord' \\
        --flagfile=flags/data_audioset.flags

With an index beside every shard (or in --index_dir), train.py, eval.py and
inference.py read the frames that they need and nothing around them; see
`--use_index`. Shards are read once and their checksums verified. An index that is up
to date is left alone, so a stopped run goes on where it was; a stale one is replaced.
All flags of a data flagfile are taken; --num_classes, --max_frames and which frames a
student sees make no difference to an index.
"""

import concurrent.futures
import multiprocessing
import os
import sys

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

import tensorflow as tf
import tqdm
from absl import app, flags

from yt8m_distill import settings
from yt8m_distill.data import frame_index, records

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string(
        "input_data_pattern", None, "Glob of the shards; several: commas."
    )
    flags.mark_flag_as_required("input_data_pattern")
    flags.DEFINE_string(
        "index_dir", "", "Folder of the indices. Empty: beside the shards."
    )
    flags.DEFINE_integer("jobs", os.cpu_count() or 1, "Processes.", lower_bound=1)
    flags.DEFINE_bool("overwrite", False, "Write also those that are up to date.")
    flag_groups.define((settings.DataSettings, settings.SamplingSettings))


def is_current(shard: str, index_dir: str, data: settings.DataSettings) -> bool:
    """Whether the shard has an index that serves these features."""
    try:
        index = frame_index.read(shard, index_dir)
        frame_index.check(index, shard, data)
    except frame_index.Unusable:
        return False
    return True


def index_shard(shard: str, index_dir: str, data: settings.DataSettings) -> int:
    """Writes the index of a shard; its number of videos comes back.

    Raises:
        ValueError: if the shard is damaged or the index cannot be written.
    """
    index = frame_index.build(shard, data)
    path = frame_index.index_path(shard, index_dir)
    try:
        frame_index.write(index, path)
    except (OSError, tf.errors.OpError) as error:
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        raise ValueError(f"{path} cannot be written: {reason}.") from error
    return len(index.id_ends)


def write_all() -> None:
    """Flags → indices."""
    data = flag_groups.read(settings.DataSettings)
    data.require_frames("An index")
    shards = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
    check_names(shards, FLAGS.index_dir)
    if FLAGS.index_dir:
        tf.io.gfile.makedirs(FLAGS.index_dir)
    left = [
        shard
        for shard in shards
        if FLAGS.overwrite or not is_current(shard, FLAGS.index_dir, data)
    ]
    videos, failures = 0, []
    bar = tqdm.tqdm(
        total=len(left), unit="shard", disable=not (left and sys.stderr.isatty())
    )
    with bar, pool(min(FLAGS.jobs, len(left))) as workers:
        waiting = {
            workers.submit(index_shard, shard, FLAGS.index_dir, data): shard
            for shard in left
        }
        for done in concurrent.futures.as_completed(waiting):
            try:
                videos += done.result()
            except ValueError as error:
                failures.append(str(error))
            bar.update()
    print(
        f"{len(left) - len(failures)} indices written for {videos} videos; "
        f"{len(shards) - len(left)} were up to date."
    )
    if failures:
        raise ValueError("\n".join(sorted(failures)))


def check_names(shards: list[str], index_dir: str) -> None:
    """Raises ValueError where two shards would have one index."""
    seen: dict[str, str] = {}
    for shard in shards:
        path = frame_index.index_path(shard, index_dir)
        if path in seen:
            raise ValueError(
                f"{seen[path]} and {shard} would both have the index {path}: give "
                "each folder of shards an --index_dir of its own."
            )
        seen[path] = shard


def pool(processes: int) -> concurrent.futures.Executor:
    """Processes, or this one's thread where one is enough."""
    if processes <= 1:
        return concurrent.futures.ThreadPoolExecutor(1)
    # TensorFlow does not survive a fork.
    context = multiprocessing.get_context("spawn")
    return concurrent.futures.ProcessPoolExecutor(processes, mp_context=context)


def main(argv: list[str]) -> None:
    """Runs the tool; an error is a line a shard and exit code 1."""
    try:
        if len(argv) > 1:
            raise ValueError(f"Not a flag: {' '.join(argv[1:])}")
        write_all()
    except (ValueError, OSError) as error:
        lines = str(error).splitlines()
        sys.exit("\n".join(f"{os.path.basename(argv[0])}: {line}" for line in lines))


def run() -> None:
    """Console entry point."""
    define_flags()
    app.run(main)


if __name__ == "__main__":
    run()
