"""The folder of an export: what is stored next to the model, and its use from Python.

    model.json               what the network reads, see export.py
    vocabulary.csv           names of the classes
    features.json            how frames become features, from a manifest of yt8m-extract
    pca/, audio_pca/         mean.npy, eigenvals.npy, eigenvecs.npy of its PCA

In a SavedModel they are in `assets.extra/`.
"""

import itertools
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from yt8m_distill import settings, vocabulary
from yt8m_distill.data import pipeline
from yt8m_distill.models import early_exit
from yt8m_distill.serving import saved_model, served
from yt8m_distill.video import reduction

VOCABULARY, FEATURES = "vocabulary.csv", "features.json"
PCAS = ("pca", "audio_pca")  # Settings that name a folder.


def extra_files(
    data: settings.DataSettings, names: Mapping[int, str], manifest: str = ""
) -> dict[str, bytes]:
    """Name → content of the files that are written next to `model.json`.

    Args:
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


def _read(model: str, name: str, otherwise: str) -> dict[str, Any]:
    path = os.path.join(folder_in(model), name)
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (OSError, ValueError) as error:
        raise ValueError(f"--model={model} has no {name}: {otherwise}.") from error


class ExportedNetwork:
    """An exported network, and which frames of a video it reads.

    Args:
        folder: of the SavedModel.
        student_k: frames to read; 0: as exported.

    Attributes:
        widths: feature → numbers per frame.
        max_frames: frames of a video from which it chooses.
        budgets: of early exit; otherwise empty.

    Raises:
        ValueError: for a folder that is not one of yt8m-export, or a `student_k` that
            the network cannot read.
    """

    def __init__(self, folder: str, student_k: int = 0):
        model = _read(folder, served.DESCRIPTION, "it is not of yt8m-export")
        made_with = f"--format={model['format']}"
        made_with += " --segments" * bool(model.get("segment_starts"))
        if made_with != "--format=saved_model":
            raise ValueError(
                f"--model={folder} is of yt8m-export {made_with}; this program needs "
                "--format=saved_model of whole videos."
            )
        self.max_frames = model["max_frames"]
        names, sizes = model["feature_names"], model["feature_sizes"]
        self.widths = dict(zip(names, sizes, strict=True))
        self.budgets = tuple(model.get("exit_budgets", ()))
        view = pipeline.ViewSpec(model["sampler"], model["k"])
        if self.budgets:
            view = pipeline.ViewSpec(early_exit.SAMPLER, self.budgets[-1])
        refused = ""
        if self.budgets and student_k:
            refused = "stops by itself (early exit)"
        elif view.sampler == "all" and student_k:
            refused = "reads all frames"
        elif student_k > view.k:
            refused = f"reads {view.k} frames"
        if refused:
            raise ValueError(
                f"--student_k={student_k}: the network of --model={folder} {refused}."
            )
        self._view = view._replace(k=student_k or view.k)
        # The user names a model that they trust.
        self._serve = tf.saved_model.load(folder).signatures["frames"]  # noqa: TID251

    def choose(self, num_frames: int, video_id: str) -> list[int]:
        """The frames that it reads of a video, in evaluation.

        In the order of time; with early exit those of each budget before those that a
        larger one adds. Some samplers may choose none.
        """
        given = self._view, [num_frames], self.max_frames, [video_id]
        return pipeline.pick_frames(*given)[0]

    def classify(self, frames: np.ndarray) -> dict[str, np.ndarray]:
        """The answers of the signature `frames`.

        Args:
            frames: [N, T, D] float32, dequantized: the chosen ones; with early exit all
                frames of the videos.
        """
        count = tf.fill([len(frames)], frames.shape[1])
        found = self._serve(frames=tf.constant(frames), num_frames=count)
        return {name: value.numpy() for name, value in found.items()}
