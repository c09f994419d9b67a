"""Joins the CSVs of several parts to the CSV that a single process would write.

    yt8m-merge --input=predictions.csv --output_file=merged.csv

--input is the --output_file of every `inference.py --num_shards=N`; the parts in the
same folder are predictions-00000-of-0000N.csv and so on. Each part has a range of the
sorted files, so the rows of all parts are copied in order, byte for byte.

The lists of videos that `--bad_records=skip` skipped (.skipped.txt) are joined, too.

All N parts must exist, and no video may be in two of them. The output is written
atomically. Only the ids of the videos are kept in memory, not their predictions.

The CSVs of `inference.py --segments` are merged class by class, by score; all parts
must have as many segments per class as are asked for.
"""

import dataclasses

from yt8m_distill import flag_groups, settings


def merge(paths: list[str], output_file: str) -> int:
    """Writes the rows of these CSVs into one, in their order.

    Returns:
        The number of videos.

    Raises:
        ValueError: if the output is one of the parts or cannot be written, or for a
            part with another header, an incomplete row, a row without two columns, or a
            repeated video. An existing output then stays unchanged.
    """
    import tensorflow as tf
    import tqdm

    from yt8m_distill.serving import predictions, skips

    part_of: dict[str, str] = {}  # Video id → the CSV that has it.
    total = sum(tf.io.gfile.stat(path).length for path in paths)
    bar = tqdm.tqdm(total=total, unit="B", unit_scale=True, disable=None)
    with predictions.PredictionWriter(output_file, inputs=paths) as writer, bar:
        for path in paths:
            bar.update(len(predictions.HEADER_LINE))
            for row in predictions.read_rows(path):
                _check(row, path, part_of)
                writer.write_text(row.text)
                bar.update(len(row.text))
        if not part_of:
            raise ValueError(f"--input: no videos in {paths[0]} and the other parts.")
    skips.merge_lists(paths, output_file)
    return len(part_of)


def _check(row, path: str, part_of: dict[str, str]) -> None:
    """Raises a ValueError for an incomplete row, or a repeated video."""
    if not row.text.endswith(b"\n"):
        raise ValueError(f"{path}, line {row.line}: the file ends inside this line.")
    video_id = row.columns[0]
    if video_id in part_of:
        other = part_of[video_id]
        where = f"twice in {path}" if other == path else f"in {other} and in {path}"
        raise ValueError(f"Video {video_id!r} is {where}.")
    part_of[video_id] = path


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    input: str = settings.setting(
        "",
        "The --output_file of inference.py, without the number of a part.",
        required="name the CSV without its part.",
        path="file",
    )
    output_file: str = settings.setting(
        "", "The CSV to write.", required="name the CSV to write.", path="file"
    )
    segment_max_pred: int = settings.setting(
        0,
        "For CSVs of inference.py --segments: maximum segments per class. 0: as many "
        "as the parts have.",
        minimum=0,
    )


def main(request: Request) -> None:
    """Settings → merged CSV."""
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill.serving import parts, segments, skips

    paths, output_file = parts.find_parts(request.input), request.output_file
    parts_read = settings.counted(len(paths), "part")
    if segments.part_k(paths[0]):
        classes = segments.merge(paths, output_file, request.segment_max_pred)
        skips.merge_lists(paths, output_file)
        count = settings.counted(classes, "class", "classes")
        print(f"{count} of {parts_read} in {output_file}.")
        return
    if request.segment_max_pred:
        raise ValueError(
            f"--segment_max_pred={request.segment_max_pred} is of segments; "
            f"{paths[0]} is of videos."
        )
    videos = merge(paths, output_file)
    print(f"{settings.counted(videos, 'video')} of {parts_read} in {output_file}.")


run = flag_groups.script(main, (Request,))


if __name__ == "__main__":
    run()
