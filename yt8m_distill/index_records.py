"""Builds the index of every shard ahead of time (training builds them on first use).

    yt8m-index --input_data_pattern='train*.tfrecord'
    yt8m-index --input_data_pattern='bal_train*.tfrecord' \\
        --flagfile=flags/data_audioset.flags

Shards are read once and their checksums verified. An index that is up to date is left
alone, so a stopped run continues where it was; a stale one is replaced. All flags of a
data flagfile are taken; --num_classes and --max_frames make no difference.
"""

import os
import sys

# Run as a file, the package is one folder up.
if __package__ in (None, ""):
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

from yt8m_distill import flag_groups, settings

flag_groups.load_tensorflow()

from absl import flags

from yt8m_distill.data import index, records

FLAGS = flags.FLAGS


def define_flags() -> None:
    """Defines this program's flags; not on import, where they might meet others."""
    flags.DEFINE_string(
        "input_data_pattern", "", "Glob of the shards; several: commas."
    )
    flag_groups.define(
        (settings.DataSettings, settings.ReadingSettings, settings.SamplingSettings)
    )


def main() -> None:
    """Flags → indices."""
    data = flag_groups.read(settings.DataSettings)
    reading = flag_groups.read(settings.ReadingSettings)
    shards = records.expand_patterns(FLAGS.input_data_pattern, "input_data_pattern")
    known = [index.find(path, data, reading.index_dir) is not None for path in shards]
    found = index.load_or_build(shards, data, reading.index_dir, required=True)
    bad = [
        b for path, i in zip(shards, found, strict=True) for b in i.bad_records(path)
    ]
    for record in bad:
        print(record.message)
    print(
        f"{len(shards) - sum(known)} indices built, {sum(known)} were up to date: "
        f"{sum(len(i.numbers) for i in found)} videos, {len(bad)} invalid records."
    )


def run() -> None:
    """Console entry point."""
    flag_groups.run_program(main, define_flags)


if __name__ == "__main__":
    run()
