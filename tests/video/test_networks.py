"""Image networks by specification, PCA, and refusals that name what is wrong."""

import sys
import warnings

import keras
import numpy as np
import pytest

from tests import video_helpers as helpers
from yt8m_distill.video import networks, reduction


def images(count: int, size: int = 16) -> np.ndarray:
    random = np.random.default_rng(count)
    return random.integers(0, 256, [count, size, size, 3], np.uint8)


def test_a_saved_model_sees_scaled_pixels(image_network):
    network = networks.open_network(image_network, "image_network")
    assert network.size == (16, 16)
    given = images(3)
    kernel = np.random.default_rng(0).normal(0, 0.3, [8, 8, 3, 6])
    patches = (given / 255 - 0.5) / 0.5
    patches = patches.reshape(3, 2, 8, 2, 8, 3).transpose(0, 1, 3, 2, 4, 5)
    maps = np.tensordot(patches, kernel, 3)  # [3, 2, 2, 6]
    expected = np.maximum(maps, 0).mean(axis=(1, 2))
    # 192 products in float32.
    np.testing.assert_allclose(network.vectors(given), expected, rtol=1e-4, atol=1e-5)


def test_an_image_has_the_same_bits_among_any_others(image_network):
    network = networks.open_network(image_network, "image_network")
    together = network.vectors(images(5))
    for number, image in enumerate(images(5)):
        alone = network.vectors(image[np.newaxis])
        np.testing.assert_array_equal(alone[0], together[number])


@pytest.mark.slow
def test_a_keras_application_is_preprocessed_in_its_own_way(tmp_path):
    model = keras.applications.MobileNet(
        include_top=False, weights=None, input_shape=(32, 32, 3), pooling="avg"
    )
    path = str(tmp_path / "mobilenet.weights.h5")
    model.save_weights(path)
    text = f'keras_application(name="MobileNet", weights={path!r}, size=32)'
    network = networks.open_network(text, "image_network")
    given = images(1, 32)
    expected = model(given.astype(np.float32) / 127.5 - 1).numpy()  # To [-1, 1].
    np.testing.assert_allclose(network.vectors(given), expected, atol=1e-5)


@pytest.mark.slow
def test_weights_of_another_application_are_one_line(tmp_path):
    """Keras 3.15 warns about each layer before its error."""
    path = str(tmp_path / "other.weights.h5")
    size = {"include_top": False, "weights": None, "input_shape": (32, 32, 3)}
    keras.applications.MobileNetV2(**size).save_weights(path)
    text = f'keras_application(name="MobileNetV3Small", weights={path!r}, size=32)'
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        with pytest.raises(ValueError, match="--image_network=.*other.weights.h5"):
            networks.open_network(text, "image_network")
    assert not warned


def test_an_onnx_file_with_channels_first(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime, the extra `edge`")
    onnx = pytest.importorskip("onnx", reason="onnx, which comes with tf2onnx")
    image, vector = (
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
        for name, shape in (("image", ["n", 3, "h", "w"]), ("vector", ["n", 3, 1, 1]))
    )
    node = onnx.helper.make_node("GlobalAveragePool", ["image"], ["vector"])
    graph = onnx.helper.make_graph([node], "means", [image], [vector])
    opset = [onnx.helper.make_opsetid("", 13)]
    path = str(tmp_path / "means.onnx")
    model = onnx.helper.make_model(graph, opset_imports=opset, ir_version=8)
    onnx.save(model, path)
    text = f"onnx(file={path!r}, size=8, mean=[0.1, 0.2, 0.3], std=2)"
    network = networks.open_network(text, "image_network")
    given = images(2, 8)
    expected = (given.mean(axis=(1, 2)) / 255 - [0.1, 0.2, 0.3]) / 2
    np.testing.assert_allclose(network.vectors(given), expected, atol=1e-6)
    with pytest.raises(ValueError, match="size="):
        networks.open_network(f"onnx(file={path!r})", "image_network")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("resnet", "resnet"),
        ("saved_model(folder='nowhere')", "nowhere"),
        ("keras_application(name='Nothing', weights='x')", "Nothing"),
        ("keras_application(name='MobileNet', weights='none.h5')", "none.h5"),
        ("saved_model(folder='nowhere', depth=3)", "depth"),
    ],
)
def test_a_network_that_cannot_be_opened_names_its_flag(text, named):
    with pytest.raises(ValueError) as error:
        networks.open_network(text, "image_network")
    assert str(error.value).startswith(f"--image_network={text}: ")
    assert named in str(error.value).removeprefix(f"--image_network={text}: ")


def test_a_runtime_that_is_not_installed_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(ValueError, match="--image_network=.*yt8m-distill.edge"):
        networks.open_network('onnx(file="x.onnx")', "image_network")


def test_a_changed_file_changes_the_hash(tmp_path):
    texts = [helpers.write_network(tmp_path / name) for name in ("a", "b")]
    first, second = (networks.open_network(t, "image_network") for t in texts)
    assert first.hash() == first.hash()
    path = tmp_path / "b" / "variables" / "variables.data-00000-of-00001"
    before = second.hash()
    path.write_bytes(path.read_bytes() + b"\0")
    assert second.hash() != before


def write_pca(folder, mean, values, vectors) -> str:
    folder.mkdir()
    arrays = (mean, values, vectors)
    for name, array in zip(reduction.FILES, arrays, strict=True):
        np.save(folder / name, array)
    return str(folder)


@pytest.mark.once
def test_pca_whitens_the_data_that_it_was_made_of(tmp_path):
    random = np.random.default_rng(1)
    data = random.normal(3, 1, [500, 6]) @ random.normal(0, 1, [6, 6])
    values, vectors = np.linalg.eigh(np.cov(data.T))
    kept = slice(2, 6)  # The four directions of the largest variance.
    arrays = data.mean(axis=0), values[kept], vectors[:, kept]
    pca = reduction.read(write_pca(tmp_path / "pca", *arrays), "pca")
    reduced = pca.reduce(data.astype(np.float32))
    # float32; variances are l / (l + 1e-4).
    np.testing.assert_allclose(reduced.mean(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(np.cov(reduced.T), np.eye(4), atol=2e-3)
    turned = write_pca(tmp_path / "rows", arrays[0], arrays[1], arrays[2].T)
    again = reduction.read(turned, "pca").reduce(data.astype(np.float32))
    np.testing.assert_array_equal(again, reduced)


@pytest.mark.once
def test_matrices_that_are_no_pca_are_refused(tmp_path):
    wrong = write_pca(tmp_path / "wrong", np.zeros(6), np.ones(4), np.ones([5, 4]))
    strange = write_pca(tmp_path / "nan", np.full(4, np.nan), np.ones(4), np.eye(4))
    text = write_pca(tmp_path / "text", np.array(["a"]), np.ones(4), np.eye(4))
    empty = write_pca(tmp_path / "empty", np.zeros(4), np.ones(4), np.eye(4))
    (tmp_path / "empty" / "mean.npy").write_bytes(b"")
    for folder in (wrong, str(tmp_path / "none"), strange, text, empty):
        with pytest.raises(ValueError) as error:
            reduction.read(folder, "pca")
        assert str(error.value).startswith(f"--pca={folder}")
        assert "Errno" not in str(error.value)


def test_vectors_that_are_not_finite_are_refused():
    network = networks.Network(lambda image: np.float32([[np.nan]]), (4, 4), "x")
    with pytest.raises(ValueError, match="finite"):
        network.vectors(images(1, 4))
