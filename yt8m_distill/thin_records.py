"""Writes frame-level shards that contain only the sampled frames of each video.

    yt8m-thin --input_data_pattern='yt8m/train*.tfrecord' \\
        --output_dir=thin --student_k=30

The frames are those that a student reads in evaluation: reading the full shards with
--frame_sampler and --student_k, and the thin shards with --frame_sampler=all and
--max_frames=k, gives the same frames, bit for bit. The relative size is k divided by
the mean number of frames, about an eighth for YouTube-8M at k=30. This package and the
YouTube-8M starter code both read thin shards.

Thin shards do not suit the teacher, and so serial and parallel mode, which need all
frames, nor training with `random` or `uniform_jitter`, which draw new frames in every
epoch; in thin shards they are drawn once.

A network trained with --frame_sampler=all reads the first k frames of a full video. To
read both full and thin shards, keep the flags of the full ones (--frame_sampler=uniform
--max_frames=300): every sampler except `uniform_stride` and `last_padded` keeps all
frames of a video with at most k.

Shards keep their file names, and records their order, context and the feature lists of
--feature_names; other feature lists are dropped. Two int64 context features are added
or replaced: `num_frames`, the number of frames of the shortest feature in the full
record, and `frame_indices`, the positions of the kept frames in it. After thinning
again, both still refer to the full record.

Every shard is written atomically; a killed process leaves at most one hidden `.*.tmp`.
When run again, the program continues with the missing shards.
"""

import dataclasses
import os
import shlex
from collections.abc import Sequence

from yt8m_distill import flag_groups, processes, settings


def thin_shards(
    files: Sequence[str],
    folder: str,
    data: settings.DataSettings,
    view,
    jobs: int = 1,
    overwrite: bool = False,
) -> tuple[int, int]:
    """Thins all shards; arguments as in thinning.thin_shard.

    Returns:
        The number of videos, and the number of shards that existed already.

    Raises:
        ValueError: as thinning.thin_shard; for a truncated shard before any writing.
    """
    import tqdm

    from yt8m_distill import file_patterns
    from yt8m_distill.data import framing, rewriting
    from yt8m_distill.serving import thinning

    with rewriting.output_folder(folder, files):
        counts = {path: framing.count_records(path) for path in files}
        videos, kept = sum(counts.values()), 0
        if not videos:
            where = file_patterns.named(files)
            raise ValueError(f"--input_data_pattern: no records in {where}.")
        tasks = [(p, n, folder, data, view, overwrite) for p, n in counts.items()]
        jobs = min(jobs, len(files))
        with tqdm.tqdm(total=videos, unit="video", disable=None) as bar:
            for task, is_new in processes.call_all(thinning.thin_shard, tasks, jobs):
                kept += not is_new
                bar.update(counts[task[0]])
    return videos, kept


def report(
    files: Sequence[str],
    folder: str,
    data: settings.DataSettings,
    view,
    videos: int,
    kept: int,
) -> str:
    """The summary: sizes before and after, and flags for train.py."""
    import tensorflow as tf

    targets = [os.path.join(folder, os.path.basename(path)) for path in files]
    before, after = (
        sum(tf.io.gfile.stat(path).length for path in paths)
        for paths in (files, targets)
    )
    ratio = f" ({after / before:.1%})" if before else ""
    existing = f"; {kept} of {len(files)} shards existed already" if kept else ""
    suggested = {
        "mode": "baseline",
        "student_k": view.k,
        "max_frames": view.k,
        "frame_sampler": "all",
    }
    always = ("feature_names", "feature_sizes", "num_classes", "video_id_key")
    for field in dataclasses.fields(data):
        value = getattr(data, field.name)
        if field.name in always or value != field.default:
            # A thin record has no segments.
            if not field.name.startswith("segment_"):
                suggested.setdefault(field.name, value)
    words = shlex.join(f"--{name}={value}" for name, value in suggested.items())
    return (
        f"{settings.counted(videos, 'video')}, {before} bytes before, {after} after"
        f"{ratio}{existing}.\n"
        f"Flags for train.py: {words}"
    )


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    input_data_pattern: str = settings.setting(
        "",
        "Globs of the full shards, comma separated.",
        required="name the files.",
        path="pattern",
    )
    output_dir: str = settings.setting(
        "",
        "Directory of the thin shards.",
        required="name the directory to write to.",
        path="file",
    )
    jobs: int = settings.setting(2, "Number of processes.", minimum=1)
    overwrite: bool = settings.setting(False, "Replace existing thin shards.")


def main(
    request: Request, data: settings.DataSettings, sampling: settings.SamplingSettings
) -> None:
    """Settings → thin shards."""
    data.require_frames("A thin shard")
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill import file_patterns
    from yt8m_distill.serving import thinning

    view = thinning.view_to_keep(sampling, data.max_frames)
    files = file_patterns.expand(request.input_data_pattern, "input_data_pattern")
    folder, how = request.output_dir, (request.jobs, request.overwrite)
    counts = thin_shards(files, folder, data, view, *how)
    print(report(files, folder, data, view, *counts))


run = flag_groups.script(
    main,
    (Request, settings.DataSettings, settings.SamplingSettings),
    after_a_stop="The same command continues with the missing shards.",
)


if __name__ == "__main__":
    run()
