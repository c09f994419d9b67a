"""Image networks of the user's choice: from pixels to one vector per image.

A network is a registered function, named with its arguments in `--image_network`:

    keras_application(name="InceptionV3", weights="inception.weights.h5")
    saved_model(folder="clip_image_encoder", std=0.5, mean=0.5)
    onnx(file="mobilenet.onnx", mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])

It takes float32 images of one size; (pixel / 255 - mean) / std for the last two, per
channel where they are lists, and Keras' own preprocessing for the first. Nothing is
downloaded. Each image is a batch of its own, so that its vector does not depend, not
even in the last bit, on the images around it.
"""

import hashlib
import os
import pathlib
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from yt8m_distill import registry
from yt8m_distill.video import sound

NETWORKS = registry.Registry("image network")
SOUND_NETWORKS = registry.Registry("audio network")
REGISTERED = {"image_network": NETWORKS, "audio_network": SOUND_NETWORKS}  # By flag.

Run = Callable[[np.ndarray], np.ndarray]

_PIECE_BYTES = 1 << 20


class Network(NamedTuple):
    """An opened network.

    Attributes:
        run: [1, H, W, 3] uint8 → [1, ...] floats, the numbers of one image; of a
            network for sound, [1, 96, 64] float32 → [1, ...].
        size: H and W.
        path: the file or folder that it was read from.
    """

    run: Run
    size: tuple[int, int]
    path: str

    def vectors(self, images: np.ndarray) -> np.ndarray:
        """[N, D] float32 of N images or examples of sound, N at least 1.

        Raises:
            ValueError: for numbers that are not finite.
        """
        rows = [np.ravel(self.run(image[np.newaxis])) for image in images]
        vectors = np.stack(rows).astype(np.float32)
        if not np.isfinite(vectors).all():
            raise ValueError("the network gives numbers that are not finite")
        return vectors

    def hash(self) -> str:
        """SHA-256 of the file; of a folder's files with their names below it."""
        if os.path.isfile(self.path):
            return file_hash(self.path)
        lines = [
            f"{os.path.relpath(path, self.path)} {file_hash(path)}\n"
            for path in sorted(map(str, pathlib.Path(self.path).rglob("*")))
            if os.path.isfile(path)
        ]
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def open_network(text: str, flag: str) -> Network:
    """The network of a specification.

    Raises:
        ValueError: naming the flag, for one that is unknown or cannot be read.
    """
    where = f"--{flag}={text}"
    try:
        return REGISTERED[flag].create(text)
    except (ValueError, OSError, ImportError, tf.errors.OpError) as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0]
        if isinstance(error, ImportError):
            reason += "; pip install 'yt8m-distill[edge]' has it."
        raise ValueError(f"{where}: {reason}") from error


@NETWORKS.register("keras_application")
def keras_application(
    name: str, weights: str, size: int = 224, pooling: str = "avg"
) -> Network:
    """A network of keras.applications without its classifier.

    Args:
        name: such as `InceptionV3` or `MobileNetV3Small`.
        weights: a local file of its weights without the top (`..._notop.h5`).
        size: height and width of its images.
        pooling: of the last feature map, `avg` or `max`.
    """
    import keras

    build = getattr(keras.applications, name, None)
    if not callable(build):
        raise ValueError(f"keras.applications has no {name}.")
    _require(weights)
    if pooling not in ("avg", "max"):
        raise ValueError(f"pooling={pooling!r} is not 'avg' or 'max'.")
    shape = (size, size, 3)
    model = build(include_top=False, weights=None, input_shape=shape, pooling=pooling)
    with warnings.catch_warnings(record=True) as warned:
        try:
            model.load_weights(weights)
        except ValueError as error:  # Keras 3.15 warns about each layer before it.
            reason = str(error).strip().splitlines()[0].partition(" Example error")[0]
            raise ValueError(f"{weights} does not fit {name}: {reason}") from error
    for warning in warned:
        warnings.warn(warning.message, stacklevel=1)
    preprocess = sys.modules[build.__module__].preprocess_input

    @tf.function(input_signature=[tf.TensorSpec([1, *shape], tf.uint8)])
    def run(images):
        return model(preprocess(tf.cast(images, tf.float32)), training=False)

    return Network(lambda images: run(images).numpy(), (size, size), weights)


@NETWORKS.register("saved_model")
def saved_model(
    folder: str,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    size: int = 0,
    signature: str = "serving_default",
    output: str = "",
) -> Network:
    """A SavedModel with a signature of one float32 input, images of 3 channels.

    Args:
        folder: of the SavedModel.
        mean, std: see the module.
        size: height and width, where the signature leaves them open.
        signature: its name.
        output: which of several outputs.
    """
    shape, run = _open_saved_model(folder, signature, output)
    return _of_images(shape, run, folder.rstrip("/"), mean, std, size)


@NETWORKS.register("onnx")
def onnx(
    file: str,
    mean: float | Sequence[float] = 0.0,
    std: float | Sequence[float] = 1.0,
    size: int = 0,
    output: str = "",
) -> Network:
    """An ONNX file, run by onnxruntime (extra `edge`); arguments as of saved_model."""
    shape, run = _open_onnx(file, output)
    return _of_images(shape, run, file, mean, std, size)


@SOUND_NETWORKS.register("saved_model")
def sound_saved_model(
    folder: str, signature: str = "serving_default", output: str = ""
) -> Network:
    """A SavedModel whose signature has one float32 input, log-mel examples.

    [N, 96, 64], [N, 96, 64, 1] or [N, 1, 96, 64].
    """
    shape, run = _open_saved_model(folder, signature, output)
    return _of_sounds(shape, run, folder.rstrip("/"))


@SOUND_NETWORKS.register("onnx")
def sound_onnx(file: str, output: str = "") -> Network:
    """An ONNX file whose input is as that of a SavedModel."""
    shape, run = _open_onnx(file, output)
    return _of_sounds(shape, run, file)


def _open_saved_model(folder: str, signature: str, output: str) -> tuple[list, Run]:
    """The shape of its input, and what runs it."""
    _require(os.path.join(folder, "saved_model.pb"))
    # The user names a model that they trust.
    signatures = tf.saved_model.load(folder).signatures  # noqa: TID251
    serve = signatures[_chosen("signature", list(signatures), signature)]
    inputs = serve.structured_input_signature[1]
    name = _chosen("input", list(inputs))
    output = _chosen("output", list(serve.structured_outputs), output)

    def run(values):
        return serve(**{name: tf.constant(values)})[output].numpy()

    return inputs[name].shape.as_list(), run


def _open_onnx(file: str, output: str) -> tuple[list, Run]:
    import onnxruntime

    _require(file)
    try:
        session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    except Exception as error:  # Its errors have no common base but this one.
        raise ValueError(f"{file} is not an ONNX network: {error}") from error
    shapes = {entry.name: entry.shape for entry in session.get_inputs()}
    name = _chosen("input", list(shapes))
    outputs = [entry.name for entry in session.get_outputs()]
    output = _chosen("output", outputs, output)
    return shapes[name], lambda values: session.run([output], {name: values})[0]


def _of_images(shape: Sequence, run: Run, path: str, mean, std, size: int) -> Network:
    """A network whose input is [N, H, W, 3] or [N, 3, H, W] of scaled pixels."""
    if len(shape) != 4 or 3 not in (shape[1], shape[3]):
        raise ValueError(
            f"the input is {list(shape)}, not images [N, H, W, 3] or [N, 3, H, W]."
        )
    channels_first = shape[3] != 3
    sides = shape[2:] if channels_first else shape[1:3]
    known = tuple(side for side in sides if isinstance(side, int) and side > 0)
    if len(known) < 2 and not size:
        raise ValueError("the input leaves the size of images open: give size=.")
    mean, std = np.float32(mean), np.float32(std)
    if {mean.shape, std.shape} - {(), (3,)} or not (std > 0).all():
        raise ValueError("mean= and std= are numbers, or lists of 3; std is above 0.")

    def run_scaled(images):
        scaled = (images.astype(np.float32) / np.float32(255) - mean) / std
        if channels_first:
            scaled = scaled.transpose(0, 3, 1, 2)
        return run(np.ascontiguousarray(scaled))

    return Network(run_scaled, known if len(known) == 2 else (size, size), path)


def _of_sounds(shape, run: Run, path: str) -> Network:
    if len(shape) == 3:
        wanted = (1, *sound.SIZE)
    elif len(shape) == 4 and 1 in (shape[1], shape[3]):
        wanted = (1, 1, *sound.SIZE) if shape[1] == 1 else (1, *sound.SIZE, 1)
    else:
        raise ValueError(f"the input is {list(shape)}, not examples [N, 96, 64].")
    return Network(lambda x: run(x.reshape(wanted)), sound.SIZE, path)


def _chosen(kind: str, names: list[str], name: str = "") -> str:
    """The only one of these names, or the one that is asked for."""
    if name in names or len(names) == 1 and not name:
        return name or names[0]
    asked = f"no {kind} {name!r}" if name else f"{len(names)} {kind}s, not one"
    raise ValueError(f"it has {asked}; {kind}s: {', '.join(names) or 'none'}.")


def _require(path: str) -> None:
    if not os.path.isfile(path):
        raise ValueError(f"there is no file {path}.")


def file_hash(path: str) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for piece in iter(lambda: file.read(_PIECE_BYTES), b""):
            digest.update(piece)
    return digest.hexdigest()
