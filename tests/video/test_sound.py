"""Log-mel examples with VGGish's parameters, of files with any sound or none."""

import numpy as np
import pytest
import tensorflow as tf

from tests import video_helpers as helpers
from yt8m_distill.video import networks, sound

pytestmark = pytest.mark.once


def test_log_mel_is_that_of_tf_signal():
    samples = np.random.default_rng(0).normal(0, 0.3, 20_000).astype(np.float32)
    spectrum = tf.abs(tf.signal.stft(samples, 400, 160, 512))  # A periodic Hann window.
    matrix = tf.signal.linear_to_mel_weight_matrix(64, 257, 16_000, 125.0, 7500.0)
    expected = tf.math.log(spectrum @ matrix + 0.01)
    found = sound.examples(samples, [0.0, 0.1])
    assert found.shape == (2, 96, 64) and found.dtype == np.float32
    # float32 sums of 257 numbers there.
    np.testing.assert_allclose(found[0], expected[:96], atol=2e-4)
    np.testing.assert_allclose(found[1], expected[10:106], atol=2e-4)


def test_an_example_depends_on_its_own_second_alone():
    samples = np.random.default_rng(1).normal(0, 0.3, 64_000).astype(np.float32)
    expected = sound.examples(samples, [1.0])[0]
    other = samples.copy()
    other[:16_000], other[16_000 + 15_600 :] = 0, 1
    for found in (
        sound.examples(samples, [0.0, 1.0, 3.0])[1],
        sound.examples(other, [1.0])[0],
    ):
        np.testing.assert_array_equal(found, expected)
    silence = sound.examples(samples, [10.0])[0]  # After the end.
    np.testing.assert_allclose(silence, np.log(0.01), rtol=1e-6)


@pytest.mark.parametrize("streams", [0, 1, 2])
def test_sound_of_a_file_is_its_first_streams(tmp_path, streams):
    helpers.import_av()
    path = helpers.write_clip(tmp_path / "x.mp4", audio_streams=streams)
    samples = sound.read(path, seconds=60)
    if not streams:
        assert samples is None
        return
    assert abs(len(samples) - 32_000) <= 2048  # 2 s, and what AAC adds.
    middle = samples[8000:24_000]
    spectrum = np.abs(np.fft.rfft(middle * np.hanning(len(middle))))
    assert abs(int(spectrum.argmax()) - 220) <= 1  # Hz; the second has 440.
    part = sound.read(path, seconds=0.5)
    assert 8000 <= len(part) < len(samples) / 2
    np.testing.assert_array_equal(part, samples[: len(part)])


def test_examples_have_the_shape_that_the_network_takes(tmp_path):
    given = np.random.default_rng(2).normal(0, 1, [2, 96, 64]).astype(np.float32)
    text = helpers.write_sound_network(tmp_path / "bands")
    network = networks.open_network(text, "audio_network")
    expected = given.mean(axis=1) / 4
    np.testing.assert_allclose(network.vectors(given), expected, atol=1e-6)
    for shape in ([None, 96, 64, 1], [None, 1, 96, 64]):
        seen = []
        run = networks._of_sounds(shape, lambda x, s=seen: s.append(x) or x, "x").run
        run(given[:1])
        assert list(seen[0].shape[1:]) == shape[1:]
        np.testing.assert_array_equal(np.ravel(seen[0]), given[0].ravel())
    image = helpers.write_network(tmp_path / "cnn")
    with pytest.raises(ValueError) as error:
        networks.open_network(image, "audio_network")
    assert str(error.value).startswith("--audio_network=")
