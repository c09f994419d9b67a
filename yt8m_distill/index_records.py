"""Builds the index of every shard ahead of time (training builds them on first use).

    yt8m-index --input_data_pattern='train*.tfrecord'
    yt8m-index --input_data_pattern='bal_train*.tfrecord' \\
        --flagfile=flags/data_audioset.flags

Each shard is read once and its checksums are verified. Up-to-date indices are kept, so
an interrupted run continues where it stopped; stale ones are replaced. All flags of a
data flagfile are accepted; --num_classes and --max_frames have no effect.
"""

import dataclasses

from yt8m_distill import flag_groups, settings

# Accepted because the scripts share flagfiles.
_IGNORED = tuple(f.name for f in dataclasses.fields(settings.SamplingSettings))


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    input_data_pattern: str = settings.setting(
        "",
        "Globs of the shards, comma separated.",
        required="name the files.",
        path="pattern",
    )


def main(
    request: Request,
    data: settings.DataSettings,
    reading: settings.ReadingSettings,
    sampling: settings.SamplingSettings,
) -> None:
    """Settings → indices."""
    del sampling
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill import file_patterns
    from yt8m_distill.data import index

    shards = file_patterns.expand(request.input_data_pattern, "input_data_pattern")
    found = index.find_all(shards, data, reading.index_dir)
    given = shards, data, reading.index_dir
    indices = index.load_or_build(*given, required=True, found=found)
    bad = [
        b for path, i in zip(shards, indices, strict=True) for b in i.bad_records(path)
    ]
    videos = sum(len(i.numbers) for i in indices)
    if not videos:
        where = file_patterns.named(shards)
        why = bad[0].message if bad else f"no records in {where}."
        raise ValueError(f"--input_data_pattern: {why}")
    for record in bad:
        print(record.message)
    missing = found.count(None)
    print(
        f"{settings.counted(missing, 'index', 'indices')} built, "
        f"{len(shards) - missing} up to date: {settings.counted(videos, 'video')}, "
        f"{settings.counted(len(bad), 'invalid record')}."
    )


run = flag_groups.script(
    main,
    (
        Request,
        settings.DataSettings,
        settings.ReadingSettings,
        settings.SamplingSettings,
    ),
    after_a_stop="The same command continues with the missing indices.",
    unlisted=_IGNORED,
)


if __name__ == "__main__":
    run()
