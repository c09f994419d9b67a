"""Classifies records with an exported model, as a server would.

    yt8m-classify --model=run/export/student --records=a.tfrecord

Prints the best classes of each record, or why it cannot be read; exit code 1 if that
is so of any. The model needs nothing of this package; the client has only the reading
of shards from it.
"""

import dataclasses
import itertools
import os
import re
from collections.abc import Sequence

from yt8m_distill import flag_groups, settings, vocabulary

_SIGNATURE = "serving_default"


def open_model(folder: str):
    """The signature of a SavedModel that takes records.

    Raises:
        ValueError: if there is no such model, or it has no such signature.
    """
    import tensorflow as tf

    if not tf.io.gfile.exists(os.path.join(folder, "saved_model.pb")):
        raise ValueError(f"--model={folder} has no saved_model.pb.")
    # The user names a model that they trust.
    signatures = tf.saved_model.load(folder).signatures  # noqa: TID251
    if _SIGNATURE not in signatures:
        raise ValueError(f"--model={folder} has no signature {_SIGNATURE}.")
    if "segment_starts" in signatures[_SIGNATURE].structured_outputs:
        raise ValueError(f"--model={folder} classifies segments, not whole videos.")
    return signatures[_SIGNATURE]


def read_records(files: Sequence[str], count: int) -> list[tuple[str, bytes]]:
    """The first records of all shards together, each with what to call it.

    Raises:
        ValueError: if there are none, or at a damage.
    """
    from yt8m_distill.data import faults

    records = itertools.chain.from_iterable(map(faults.sound, files))
    records = itertools.islice(records, count)
    found = [(record.where, record.content) for record in records]
    if not found:
        raise ValueError(f"--records={','.join(files)} has no records.")
    return found


def classify(
    serve, found: Sequence[tuple[str, bytes]], num_classes: int, names: dict[int, str]
) -> tuple[list[str], int]:
    """One line per record, and how many of them cannot be read.

    Args:
        serve: see open_model.
        found: see read_records.
        num_classes: how many classes a line has, the best first.
        names: of the classes; a class without one is shown by its number.
    """
    import tensorflow as tf

    answer = serve(example_bytes=tf.constant([record for _, record in found]))
    answer = {name: value.numpy() for name, value in answer.items()}
    # Models exported by earlier versions fail as a whole instead.
    errors = answer.get("error", [b""] * len(found))
    lines = []
    for row, (where, _) in enumerate(found):
        if errors[row]:
            reason = errors[row].decode(errors="replace")
            # Exports of earlier versions name flags of the programs that train.
            reason = re.sub(r" of --\w+| Is --.*", "", reason)
            lines.append(f"{where}: {reason}")
            continue
        classes, scores = answer["class_indexes"][row], answer["predictions"][row]
        best = ", ".join(
            f"{names.get(int(c), int(c))} {s:.3f}"
            for c, s in zip(classes[:num_classes], scores, strict=False)
        )
        lines.append(f"{answer['video_id'][row].decode(errors='replace')}: {best}")
    return lines, sum(bool(error) for error in errors)


@dataclasses.dataclass(frozen=True)
class Request(settings.Settings):
    """The program itself."""

    model: str = settings.setting(
        "",
        "Folder of the SavedModel.",
        required="name the folder of the SavedModel.",
        path="file",
    )
    records: str = settings.setting(
        "",
        "Globs of the shards, comma separated.",
        required="name the files.",
        path="pattern",
    )
    count: int = settings.setting(1, "How many of their records.", minimum=1)
    classes: int = settings.setting(5, "How many classes of each.", minimum=1)
    vocabulary: str = settings.setting(
        "",
        "CSV with the names of the classes, such as YouTube-8M's vocabulary.csv. "
        "Empty: those stored with the model; without them numbers are shown.",
        path="file",
    )


def main(request: Request) -> None:
    """Settings → one line per record."""
    names = vocabulary.read(request.vocabulary)
    flag_groups.load_tensorflow()  # Only once the flags are right.
    from yt8m_distill import file_patterns
    from yt8m_distill.serving import exported

    names = names or exported.read_names(request.model)
    files = file_patterns.expand(request.records, "records")
    found = read_records(files, request.count)
    serve = open_model(request.model)
    lines, unread = classify(serve, found, request.classes, names)
    print("\n".join(lines))
    if unread:
        total = settings.counted(len(found), "record")
        raise ValueError(f"{unread} of {total} cannot be read.")


run = flag_groups.script(main, (Request,))


if __name__ == "__main__":
    run()
