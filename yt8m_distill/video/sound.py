"""The sound of a video file as log-mel examples, the input of networks like VGGish.

VGGish's published parameters: 16 kHz, mono; a magnitude spectrogram of periodic Hann
windows of 25 ms every 10 ms; 64 mel bands from 125 to 7500 Hz; log(x + 0.01); examples
of 96 windows, 0.96 s.
"""

import functools
import itertools

import numpy as np

from yt8m_distill.video import decoding

RATE = 16_000
_WINDOW, _HOP, _FFT = 400, 160, 512  # Samples.
SIZE = WINDOWS, BANDS = 96, 64  # Of an example.
_LOWEST, _HIGHEST = 125.0, 7500.0  # Hz
_LOG_OFFSET = 0.01
_SAMPLES = _WINDOW + (WINDOWS - 1) * _HOP  # Of an example.


def read(path: str, seconds: float) -> np.ndarray | None:
    """[N] float32 samples in [-1, 1] at 16 kHz; None for a file without sound.

    Of several streams the one that a player would take; its channels are mixed.

    Args:
        seconds: how much of it is decoded at least, if it has so much.

    Raises:
        ValueError: for sound that cannot be decoded; names the file.
    """
    av = decoding.import_av()
    with decoding.one_line_errors(path), decoding.open_container(path) as container:
        stream = container.streams.best("audio")
        if stream is None:
            return None
        resampler = av.AudioResampler(format="flt", layout="mono", rate=RATE)
        pieces, missing = [np.zeros(0, np.float32)], seconds * RATE
        for frame in itertools.chain(container.decode(stream), [None]):
            for piece in resampler.resample(frame):
                pieces.append(piece.to_ndarray()[0])
                missing -= piece.samples
            if missing <= 0:
                break
    return np.concatenate(pieces)


def examples(samples: np.ndarray, seconds: np.ndarray) -> np.ndarray:
    """The log-mel example that begins at each time; silence after the last sample.

    Args:
        samples: [N] float32 at 16 kHz.
        seconds: [n] times, at least one.

    Returns:
        [n, 96, 64] float32. Each depends on its own 0.975 s alone.
    """
    starts = np.round(np.asarray(seconds) * RATE).astype(np.int64)
    end = starts.max() + _SAMPLES
    padded = np.pad(samples, (0, max(end - len(samples), 0)))
    inside = np.arange(WINDOWS)[:, np.newaxis] * _HOP + np.arange(_WINDOW)
    return np.stack([log_mel(padded[start + inside]) for start in starts])


def log_mel(windows: np.ndarray) -> np.ndarray:
    """[T, 64] float32 of windows [T, 400] of samples."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_WINDOW) / _WINDOW)
    spectrum = np.abs(np.fft.rfft(windows * hann, _FFT))
    return np.log(spectrum @ mel_matrix() + _LOG_OFFSET).astype(np.float32)


@functools.cache
def mel_matrix() -> np.ndarray:
    """[257, 64]: triangles over the mel scale, 1127 ln(1 + f / 700), of height 1."""
    bins = _mel(np.linspace(0, RATE / 2, _FFT // 2 + 1))[:, np.newaxis]
    edges = np.linspace(_mel(_LOWEST), _mel(_HIGHEST), BANDS + 2)
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(np.minimum(rising, falling), 0)


def _mel(frequency):
    return 1127 * np.log1p(np.asarray(frequency) / 700)
