"""What an exported folder holds next to the network, for programs that use it alone.

    vocabulary.csv           names of the classes
    features.json            how frames become features, from a manifest of yt8m-extract
    mean.npy, eigenvals.npy, eigenvecs.npy      its PCA

They are next to `model.json`, which says what the network reads.
"""

import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from yt8m_distill import settings, vocabulary
from yt8m_distill.serving import saved_model
from yt8m_distill.video import reduction

_DESCRIPTION = "model.json"  # Of serving/export.py.
VOCABULARY, FEATURES = "vocabulary.csv", "features.json"


def make(
    data: settings.DataSettings, names: Mapping[int, str], manifest: str = ""
) -> dict[str, bytes]:
    """Name → content of the files.

    Args:
        data: what the network's records hold.
        names: of the classes; may be empty.
        manifest: of yt8m-extract; empty: the records were made in another way.

    Raises:
        ValueError: for a manifest that cannot be read, or of other features.
    """
    found = {}
    if names:
        found[VOCABULARY] = vocabulary.to_text(names).encode()
    if manifest:
        extraction = _read_manifest(manifest, data)
        found[FEATURES] = (json.dumps(extraction, indent=1) + "\n").encode()
        pca = extraction["settings"]["pca"]
        for name in reduction.FILES if pca else ():
            try:
                found[name] = pathlib.Path(pca, name).read_bytes()
            except OSError as error:
                where = f"--extraction_manifest={manifest}: {pca}/{name}"
                raise ValueError(f"{where}: {error.strerror}.") from error
    return found


def _read_manifest(path: str, data: settings.DataSettings) -> dict[str, Any]:
    where = f"--extraction_manifest={path}"
    try:
        with open(path, encoding="utf-8") as file:
            extraction = json.load(file)["extraction"]
        made = extraction["features"]
        low_high = settings.FeatureSettings(**extraction["settings"]).range
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is no manifest of yt8m-extract.") from error
    read = dict(zip(data.names, data.sizes, strict=True))
    if made != read:
        raise ValueError(f"{where} made {made}; the network reads {read}.")
    if {*data.ranges} != {low_high}:
        raise ValueError(
            f"{where} has --feature_range={low_high[0]:g}:{low_high[1]:g}; the network "
            f"was trained with --feature_ranges={data.feature_ranges}."
        )
    return extraction


def folder_in(model: str) -> str:
    """Where the files of an exported folder are."""
    inside = os.path.join(model, saved_model.EXTRA)
    return inside if os.path.isdir(inside) else model


def read_names(model: str) -> dict[int, str]:
    """The names of the classes in an exported folder; empty where there are none."""
    path = os.path.join(folder_in(model), VOCABULARY)
    return vocabulary.read(path, flag="model") if os.path.exists(path) else {}


def read_features(model: str) -> dict[str, Any]:
    """How frames become features; see video.extraction.Extractor.describe.

    Raises:
        ValueError: if the folder does not say it.
    """
    return _read(model, FEATURES, "export it with --extraction_manifest")


def read_description(model: str) -> dict[str, Any]:
    """The `model.json` of an exported folder.

    Raises:
        ValueError: if there is none.
    """
    return _read(model, _DESCRIPTION, "it is not of yt8m-export")


def _read(model: str, name: str, otherwise: str) -> dict[str, Any]:
    path = os.path.join(folder_in(model), name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model={model} has no {name}: {otherwise}.") from error
