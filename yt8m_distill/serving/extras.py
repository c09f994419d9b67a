"""Files stored with an exported network: class names, and how to make its features.

    vocabulary.csv           names of the classes
    features.json            how frames become features, from a manifest of yt8m-extract
    pca/, audio_pca/         mean.npy, eigenvals.npy, eigenvecs.npy of its PCA

They are next to `model.json`, which says what the network reads.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

from yt8m_distill import settings, vocabulary
from yt8m_distill.serving import saved_model, served
from yt8m_distill.video import reduction

VOCABULARY, FEATURES = "vocabulary.csv", "features.json"
PCAS = ("pca", "audio_pca")  # Settings that name a folder.


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
        extraction["missing_feature"] = data.missing_feature
        found[FEATURES] = (json.dumps(extraction, indent=1) + "\n").encode()
        for flag, name in itertools.product(PCAS, reduction.FILES):
            folder = extraction["settings"][flag]
            try:
                if folder:
                    path = pathlib.Path(folder, name)
                    found[f"{flag}/{name}"] = path.read_bytes()
            except OSError as error:
                where = f"--extraction_manifest={manifest}: {folder}/{name}"
                raise ValueError(f"{where}: {error.strerror}.") from error
    return found


def _read_manifest(path: str, data: settings.DataSettings) -> dict[str, Any]:
    where = f"--extraction_manifest={path}"
    try:
        with open(path, encoding="utf-8") as file:
            extraction = json.load(file)["extraction"]
        made = extraction["features"]
        given = settings.FeatureSettings(**extraction["settings"])
    except OSError as error:
        raise ValueError(f"{where} cannot be read: {error.strerror}.") from error
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(f"{where} is not a manifest of yt8m-extract.") from error
    read = dict(zip(data.names, data.sizes, strict=True))
    if list(made.items()) != list(read.items()):
        raise ValueError(f"{where} made {made}; the network reads {read}.")
    ranges = (given.range, given.sound_range)[: len(made)]
    if data.ranges != ranges:
        raise ValueError(
            f"{where} has --feature_range={given.feature_range} (and --audio_range="
            f"{given.audio_range}); the network was trained with --feature_ranges="
            f"{data.feature_ranges}."
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
    """How frames become features; see video.extraction.Extractor.description.

    Raises:
        ValueError: if the folder does not say it.
    """
    return _read(model, FEATURES, "export it with --extraction_manifest")


def read_description(model: str) -> dict[str, Any]:
    """The `model.json` of an exported folder.

    Raises:
        ValueError: if there is none.
    """
    return _read(model, served.DESCRIPTION, "it is not of yt8m-export")


def _read(model: str, name: str, otherwise: str) -> dict[str, Any]:
    path = os.path.join(folder_in(model), name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model={model} has no {name}: {otherwise}.") from error
