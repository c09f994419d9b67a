"""Two real processes through TF_CONFIG take the same steps as one."""

import json
import os
import pathlib
import socket
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf

ROOT = pathlib.Path(__file__).resolve().parents[2]
SECONDS = 300


def free_ports(count: int) -> list[int]:
    """Ports of this machine that nobody listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> pathlib.Path:
    folder = tmp_path_factory.mktemp("data")
    subprocess.run(
        [
            sys.executable,
            str(ROOT / "tools/make_synthetic_records.py"),
            f"--output_dir={folder}",
            "--num_train=28",  # 4 batches of 8, the last one half filled
            "--num_validate=12",
            "--num_test=0",
            "--num_classes=10",
            "--max_frames=12",
            "--feature_names=rgb",
            "--feature_sizes=8",
            "--videos_per_shard=14",
            "--jobs=1",
        ],
        check=True,
        timeout=SECONDS,
        capture_output=True,
    )
    return folder


def start(data: pathlib.Path, train_dir: pathlib.Path, cluster: dict | None):
    """A training process, as a user starts it."""
    environment = {k: v for k, v in os.environ.items() if k != "TF_CONFIG"}
    environment["CUDA_VISIBLE_DEVICES"] = "-1"
    if cluster:
        environment["TF_CONFIG"] = json.dumps(cluster)
    command = [
        sys.executable,
        str(ROOT / "yt8m_distill/train.py"),
        "--mode=parallel",
        f"--train_dir={train_dir}",
        f"--train_data_pattern={data}/train*.tfrecord",
        f"--validation_data_pattern={data}/validate*.tfrecord",
        "--feature_names=rgb",
        "--feature_sizes=8",
        "--num_classes=10",
        "--max_frames=12",
        "--student_k=4",
        "--teacher=HierarchicalLSTM(cells=6, block_len=4)",
        "--batch_size=8",
        "--num_epochs=2",
        "--optimizer=SGD",
        "--base_learning_rate=0.5",
    ]
    return subprocess.Popen(
        command,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def finish(processes: list) -> None:
    try:
        outputs = [process.communicate(timeout=SECONDS)[0] for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0] * len(processes), (
        outputs
    )


def best_weights(train_dir: pathlib.Path, role: str) -> dict[str, np.ndarray]:
    folder = train_dir / "parallel" / "best" / role
    name = json.loads((folder / "best.json").read_text())["name"]
    reader = tf.train.load_checkpoint(str(folder / name))
    return {
        key: reader.get_tensor(key)
        for key in reader.get_variable_to_shape_map()
        if key.startswith(role)
    }


@pytest.mark.slow
def test_two_processes_train_the_same_weights_as_one(data, tmp_path):
    finish([start(data, tmp_path / "one", None)])
    workers = [f"127.0.0.1:{port}" for port in free_ports(2)]
    finish(
        [
            start(
                data,
                tmp_path / "two",
                {
                    "cluster": {"worker": workers},
                    "task": {"type": "worker", "index": index},
                },
            )
            for index in range(2)
        ]
    )
    for role in ("teacher", "student"):
        one = best_weights(tmp_path / "one", role)
        two = best_weights(tmp_path / "two", role)
        assert one.keys() == two.keys() and one
        for key, value in one.items():
            # Float32 sums in another order, over eight steps.
            np.testing.assert_allclose(two[key], value, atol=2e-6, err_msg=key)
    # The chief alone leaves files.
    left = {path.name for path in (tmp_path / "two" / "parallel").iterdir()}
    assert not {name for name in left if "worker" in name}
