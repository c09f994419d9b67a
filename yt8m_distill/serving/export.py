"""A trained network as files that programs without this package run.

Each format is a folder: the model, and `model.json`, which says what it reads. It is
written under another name, opened again, run next to the network, and gets its name
only if the scores agree.
"""

import functools
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import tensorflow as tf

import yt8m_distill
from yt8m_distill import files
from yt8m_distill.models import early_exit
from yt8m_distill.serving import converted, parity, saved_model, segments, served

_LOG = logging.getLogger(__name__)


class Format(NamedTuple):
    """One format.

    Attributes:
        file: of the model, by which its folder is known.
        write: (served.Served, folder), into a new folder.
        run: folder → parity.Run, in a program of its own kind.
        bound: largest difference of a score from the network's. float32 sums in another
            order differ by some 1e-7; a wrong conversion moves scores by tenths.
        extra: folder, below the export's, of files that are not the model's own.
    """

    file: str
    write: Callable[..., None]
    run: Callable[[str], parity.Run]
    bound: float = 1e-5
    extra: str = ""


_LITERT = Format(converted.LITERT, converted.write_litert, converted.run_litert)
FORMATS = {
    "saved_model": Format(
        saved_model.FILE, saved_model.write, saved_model.run, extra=saved_model.EXTRA
    ),
    "litert": _LITERT,
    # Weights of 8 bits move the logits of a trained network by about 1 %.
    "litert_int8": _LITERT._replace(
        write=functools.partial(converted.write_litert, int8=True), bound=0.05
    ),
    "onnx": Format(converted.ONNX, converted.write_onnx, converted.run_onnx),
}


def export(
    given: served.Served,
    folder: str,
    name: str = "saved_model",
    videos: Iterable[parity.Videos] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> parity.Result:
    """Writes a network, which appears under its name only if it is whole and right.

    Args:
        folder: of the model; must not exist, or hold one of this format.
        name: of the format, a key of FORMATS.
        videos: on which the written model is run next to the network; None: noise.
        extra_files: name → content, written next to `model.json`.

    Raises:
        ValueError: if something else is there, the file system refuses, the network
            cannot be converted, or the two differ by more than the format's bound. An
            older model is as it was then.
    """
    chosen = FORMATS[name]
    given = given._replace(top_k=min(given.top_k, given.data.num_classes))
    folder = folder.rstrip("/")
    what = f"--export_dir={folder}"
    with files.one_line_errors(what):
        _finish_replacement(folder)
        is_model = tf.io.gfile.exists(os.path.join(folder, chosen.file))
        if tf.io.gfile.exists(folder) and not is_model:
            raise ValueError(f"{what} exists and is not one of --format={name}.")
    number = uuid.uuid4().int
    temporary, old = f"{folder}.tmp-{number}", f"{folder}.old-{number}"
    with files.one_line_errors(what), files.removed_after_errors(temporary):
        chosen.write(given, temporary)
        result = parity.compare(given, chosen.run(temporary), videos)
        if not result.difference <= chosen.bound:  # Nor where it is a NaN.
            raise ValueError(
                f"--format={name}: the scores of the written model differ by up to "
                f"{result.difference:.2g} from the network's, more than "
                f"{chosen.bound:g}; it is not kept."
            )
        text = json.dumps(_describe(name, given, result), indent=1) + "\n"
        every_file = {served.DESCRIPTION: text.encode(), **(extra_files or {})}
        for extra_name, content in every_file.items():
            path = os.path.join(temporary, chosen.extra, extra_name)
            tf.io.gfile.makedirs(os.path.dirname(path))
            with tf.io.gfile.GFile(path, "wb") as file:
                file.write(content)
        try:
            if is_model:
                tf.io.gfile.rename(folder, old)
            tf.io.gfile.rename(temporary, folder)
        finally:  # An error or a signal may come between the two.
            if is_model and not tf.io.gfile.exists(folder):
                tf.io.gfile.rename(old, folder)
            files.remove(old)
    return result


def _describe(name: str, given: served.Served, result: parity.Result) -> dict:
    """What a program has to know in order to use the model alone."""
    data, view = given.data, given.view
    columns = view.columns(data)
    exits = isinstance(given.network, early_exit.EarlyExit)
    of_segments = isinstance(given.network, segments.SegmentNetwork)
    return {
        "format": name,
        "file": FORMATS[name].file,
        "network": type(given.network).__name__,
        # Of the frames that `frames` takes, in the order of time.
        "sampler": "nested" if exits else view.sampler,
        "k": given.num_frames,
        "budgets": list(given.budgets),
        "exit_budgets": list(given.network.policy.budgets) if exits else [],
        # Of those that are scored; empty for whole videos.
        "segment_starts": given.network.grid.starts().tolist() if of_segments else [],
        "frames_dtype": "uint8" if data.frame_features else "float32",
        "feature_names": [data.names[c] for c in columns],
        "feature_sizes": [data.sizes[c] for c in columns],
        "max_frames": data.max_frames,
        "num_classes": data.num_classes,
        "top_k": given.top_k,
        "checked": result._asdict(),
        "versions": {
            "yt8m_distill": yt8m_distill.__version__,
            "tensorflow": tf.__version__,
        },
    }


def _finish_replacement(folder: str) -> None:
    """Completes or undoes a replacement that a killed process left half done.

    Its old SavedModel has the number of the new one, which is whole: it was written
    before the old one was moved.
    """
    parent, name = os.path.split(folder)
    for other in files.names_in(parent or "."):
        number = other.removeprefix(f"{name}.old-")
        if number == other or not number.isdecimal():
            continue
        old, new = os.path.join(parent, other), f"{folder}.tmp-{number}"
        if not tf.io.gfile.exists(folder):
            tf.io.gfile.rename(new if tf.io.gfile.exists(new) else old, folder)
            _LOG.warning("%s is the model of an export that was interrupted.", folder)
        files.remove(new)
        files.remove(old)
