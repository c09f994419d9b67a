"""Embeddings that people have already: one file per video, an array [T, D] per feature.

An .npy file holds one feature, an .npz file any number by their names, an .h5 file
(read with h5py) likewise, and a .parquet file (with pyarrow) a column of lists for each
feature, one row per frame.
"""

import importlib
import math
import os
from collections.abc import Callable, Sequence

import numpy as np
import tensorflow as tf
import tqdm

from yt8m_distill.data import layouts, records

SUFFIXES = (".npy", ".npz", ".h5", ".hdf5", ".parquet")
# First bytes; NumPy takes files without them for pickles.
_STARTS = {".npy": b"\x93NUMPY", ".npz": b"PK"}


def is_array_file(path: str) -> bool:
    """Whether a file is one of arrays, by its name."""
    return os.path.splitext(path)[1].lower() in SUFFIXES


def read(path: str, sources: Sequence[layouts.Source]) -> dict[str, np.ndarray]:
    """Name → [T, D] float32 of each feature.

    Args:
        sources: names of the features, and of the arrays in the file; a `size` is the
            D that is expected.

    Raises:
        ValueError: for a file that cannot be read, or an array that is missing, of
            another shape, empty, or not finite; names the file.
    """
    found = {}
    try:
        arrays = _open(path, [source.key for source in sources])
    except Exception as error:  # Damaged files raise many, such as zlib.error.
        reason = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path}: {reason}.") from error
    for source in sources:
        array = np.asarray(arrays[source.key])
        where = f"{path}, {source.key}"
        if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "fiu":
            raise ValueError(
                f"{where}: {array.dtype} {list(array.shape)} is not [frames, numbers]."
            )
        if source.size and array.shape[1] != source.size:
            raise ValueError(
                f"{where}: frames are {array.shape[1]} wide, not {source.size}."
            )
        with np.errstate(over="ignore"):  # Inf is refused below.
            found[source.name] = array.astype(np.float32)
        if not np.isfinite(found[source.name]).all():
            raise ValueError(f"{where}: it has a number that is not finite.")
    return found


def _open(path: str, keys: list[str]) -> dict[str, np.ndarray]:
    suffix = os.path.splitext(path)[1].lower()
    start = _STARTS.get(suffix, b"")
    with open(path, "rb") as file:
        if file.read(len(start)) != start:
            raise ValueError(f"it is not an {suffix} file")
    if suffix == ".npy":
        if len(keys) > 1:
            names = " and ".join(keys)
            raise ValueError(
                f"an .npy file holds one feature, not {names}: name it, --features=rgb"
            )
        return {keys[0]: np.load(path, allow_pickle=False)}
    if suffix == ".npz":
        with np.load(path, allow_pickle=False) as file:
            _require(keys, file.files)
            return {key: file[key] for key in keys}
    if suffix == ".parquet":
        parquet = _load("pyarrow.parquet")
        _require(keys, parquet.read_schema(path).names)
        table = parquet.read_table(path, columns=keys)
        return {key: np.stack(table[key].to_numpy()) for key in keys}
    with _load("h5py").File(path, "r") as file:
        _require([key.split("/")[0] for key in keys], list(file))
        groups = [key for key in keys if not hasattr(file[key], "dtype")]
        if groups:
            inside = ", ".join(f"{groups[0]}/{name}" for name in file[groups[0]])
            raise ValueError(f"--features: {groups[0]} is a group of {inside}")
        return {key: file[key][()] for key in keys}


def _load(module: str):
    """A reader that the package does not bring along."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        name = module.partition(".")[0]
        raise ValueError(f"{error}; pip install {name} has it") from error


def _require(keys: Sequence[str], names: Sequence[str]) -> None:
    missing = [key for key in keys if key not in names]
    if missing:
        hint = f", as in --features=rgb={names[0]}" if names else ""
        raise ValueError(
            f"--features: there is no {missing[0]}; the file has "
            f"{', '.join(names)}{hint}"
        )


def ranges_of(
    paths: Sequence[str], sources: Sequence[layouts.Source]
) -> tuple[tuple[float, float], ...]:
    """The smallest and largest number of each feature in all files.

    Six digits, as a flag is written. A feature of one number gets a range around it.

    Raises:
        ValueError: as read, or for features whose width varies.
    """
    lows, highs, widths = {}, {}, {}
    for path in tqdm.tqdm(paths, "ranges", unit="video", disable=None):
        for name, array in read(path, sources).items():
            lows[name] = min(lows.get(name, np.inf), float(array.min()))
            highs[name] = max(highs.get(name, -np.inf), float(array.max()))
            if widths.setdefault(name, array.shape[1]) != array.shape[1]:
                raise ValueError(
                    f"{path}, {name}: frames are {array.shape[1]} wide, and "
                    f"{widths[name]} in {paths[0]}."
                )
    found = []
    for source in sources:
        low = _rounded(lows[source.name], math.floor)
        high = _rounded(highs[source.name], math.ceil)
        found.append((low, high) if low < high else (low - 1, low + 1))
    return tuple(found)


def _rounded(value: float, to_whole: Callable[[float], int]) -> float:
    """A number to six digits, down or up."""
    if not value:
        return 0.0
    last_digit = 10.0 ** (math.floor(math.log10(abs(value))) - 5)
    return float(f"{to_whole(value / last_digit) * last_digit:.6g}")


def make_record(
    video_id: str | bytes,
    labels: Sequence[int],
    arrays: dict[str, np.ndarray],
    ranges: Sequence[tuple[float, float]],
    example: tf.train.SequenceExample | None = None,
) -> tuple[bytes, dict[str, records.Rounding]]:
    """A native record, in which each feature has its range.

    Args:
        arrays: name → [T, D] float32, or uint8 that is quantized already.
        ranges: low and high of each, in the same order.
        example: the record to fill; by default an empty one.

    Returns:
        The record, and name → what quantization changed.
    """
    example = example or tf.train.SequenceExample()
    context = example.context.feature
    context["id"].bytes_list.value.append(tf.compat.as_bytes(video_id))
    context["labels"].int64_list.value.extend(labels)
    changed = {
        name: records.add_frames(example, name, array, low_high)
        for (name, array), low_high in zip(arrays.items(), ranges, strict=True)
    }
    return example.SerializeToString(deterministic=True), changed
