"""Small video files whose frames tell their number, and an image network for them."""

import fractions
import pathlib
from collections.abc import Sequence

import numpy as np
import pytest
import tensorflow as tf

WIDTH, HEIGHT = 64, 48
STEP = 5  # Levels of gray from one frame to the next.
RATE = 25
_OPTIONS = {"crf": "12", "sc_threshold": "0"}  # `gop` alone sets the key frames.


def import_av():
    """PyAV; without it the test, or the module of tests, is skipped."""
    return pytest.importorskip("av", reason="needs PyAV, the extra `video`")


def level(number: int) -> int:
    """The gray level of a frame; 40 levels stay distinct after compression."""
    return 20 + STEP * number


def picture(number: int, width: int = WIDTH, height: int = HEIGHT) -> np.ndarray:
    """[height, width, 3] uint8: a plain gray, and a white corner at the top left."""
    image = np.full([height, width, 3], level(number), np.uint8)
    image[: height // 4, : width // 4] = 255
    return image


def numbers_in(images: np.ndarray) -> list[int]:
    """The frames' numbers by the gray in their lower halves."""
    grays = images[:, images.shape[1] // 2 :].astype(np.float64).mean(axis=(1, 2, 3))
    return [round((gray - level(0)) / STEP) for gray in grays]


def write_clip(
    path: pathlib.Path,
    num_frames: int = 40,
    gop: int = 12,
    times: Sequence[float] | None = None,
    codec: str = "libx264",
    size: tuple[int, int] = (WIDTH, HEIGHT),
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    audio_streams: int = 0,
    title: str = "",
    options: dict | None = None,
    container_options: dict | None = None,
) -> str:
    """Writes a video of `picture`s at 25 frames per second, or at these seconds."""
    av = import_av()
    with av.open(str(path), "w", container_options=container_options or {}) as file:
        stream = file.add_stream(
            codec, rate=RATE, options={**_OPTIONS, **(options or {})}
        )
        stream.width, stream.height = size
        stream.pix_fmt = pix_fmt
        stream.gop_size = gop
        file.metadata["title"] = title
        ticks = RATE if times is None else 1000
        stream.codec_context.time_base = fractions.Fraction(1, ticks)
        if rotation:
            stream.set_display_rotation(rotation)
        sounds = [file.add_stream("aac", rate=16000) for _ in range(audio_streams)]
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(number, *size), format="rgb24")
            frame.pts = number if times is None else round(times[number] * ticks)
            frame.time_base = fractions.Fraction(1, ticks)
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        for pitch, sound in enumerate(sounds, 1):
            wave = np.sin(np.arange(16000 * 2) * 2 * np.pi * 220 * pitch / 16000)
            frame = av.AudioFrame.from_ndarray(
                np.float32(wave / 2)[np.newaxis], format="fltp", layout="mono"
            )
            frame.rate, frame.pts = 16000, 0
            file.mux(sound.encode(frame))
            file.mux(sound.encode(None))
    return str(path)


class _Patches(tf.Module):
    """The mean over patches of a rectified linear map, as a small CNN ends with."""

    def __init__(self, width: int, seed: int):
        super().__init__()
        values = np.random.default_rng(seed).normal(0, 0.3, [8, 8, 3, width])
        self.kernel = tf.Variable(values.astype(np.float32))

    @tf.function(input_signature=[tf.TensorSpec([None, 16, 16, 3], tf.float32)])
    def __call__(self, images):
        maps = tf.nn.conv2d(images, self.kernel, 8, "VALID")
        return {"vectors": tf.reduce_mean(tf.nn.relu(maps), axis=[1, 2])}


class _Bands(tf.Module):
    """The mean of each mel band over an example."""

    @tf.function(input_signature=[tf.TensorSpec([None, 96, 64], tf.float32)])
    def __call__(self, examples):
        return {"vectors": tf.reduce_mean(examples, axis=1) / 4}


def write_sound_network(folder: pathlib.Path) -> str:
    """Writes a network for sound as a SavedModel; its specification comes back."""
    return _save(_Bands(), folder)


def write_network(folder: pathlib.Path, seed: int = 0) -> str:
    """Writes an image network as a SavedModel; its specification comes back."""
    return _save(_Patches(6, seed), folder, ", mean=0.5, std=0.5")


def _save(network: tf.Module, folder: pathlib.Path, more: str = "") -> str:
    signature = network.__call__.get_concrete_function()
    tf.saved_model.save(network, str(folder), signatures=signature)
    return f"saved_model(folder={str(folder)!r}{more})"
