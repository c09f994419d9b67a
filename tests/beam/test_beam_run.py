"""tools/beam_run.py on the local runner, with two worker processes."""

import os
import pathlib
import subprocess
import sys

import pytest

pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ["--feature_names=rgb", "--feature_sizes=8", "--num_classes=10"]
LOCAL = ["--runner=DirectRunner", "--direct_num_workers=2"]
PROCESSES = [*LOCAL, "--direct_running_mode=multi_processing"]


def call(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, *map(str, words)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def check_call(*words: str) -> str:
    done = call(*words)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Data and a trained teacher."""
    folder = tmp_path_factory.mktemp("beam")
    check_call(
        "tools/make_synthetic_records.py",
        f"--output_dir={folder}",
        "--num_train=40",
        "--num_validate=0",
        "--num_test=0",
        "--num_classes=10",
        "--max_frames=12",
        *DATA[:2],
        "--videos_per_shard=9",
        "--jobs=1",
    )
    check_call(
        "yt8m_distill/train.py", "--mode=teacher", *training(folder / "run", folder)
    )
    return folder


def training(train_dir, folder) -> list[str]:
    return [
        f"--train_dir={train_dir}",
        f"--train_data_pattern={folder}/train*",
        *DATA,
        "--max_frames=12",
        "--student_k=4",
        "--teacher=HierarchicalLSTM(cells=4, block_len=4)",
        "--batch_size=8",
        "--num_epochs=1",
    ]


@pytest.mark.slow
def test_the_csv_of_beam_is_that_of_inference_byte_for_byte(folder, tmp_path):
    flags = [f"--train_dir={folder}/run", f"--input_data_pattern={folder}/train*"]
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    check_call("yt8m_distill/inference.py", *flags, f"--output_file={one}")
    said = check_call("tools/beam_run.py", *flags, f"--output_file={many}", *PROCESSES)
    assert said == f"40 videos of 5 parts in {many}.\n"
    assert many.read_bytes() == one.read_bytes()
    # Parts and their sum; no temporary files.
    assert len(list(tmp_path.iterdir())) == 2 + 5


@pytest.mark.slow
def test_indices_and_thin_shards_of_beam_are_those_of_the_tools(folder, tmp_path):
    common = [f"--input_data_pattern={folder}/train*", *DATA[:2]]
    thin = [*common, "--student_k=3", "--max_frames=12"]
    check_call(
        "yt8m_distill/thin_records.py", *thin, f"--output_dir={tmp_path}/a", "--jobs=1"
    )
    check_call(
        "yt8m_distill/index_records.py",
        *common,
        f"--index_dir={tmp_path}/c",
    )
    beam = ["tools/beam_run.py", *LOCAL]
    check_call(*beam, "--work=thin", *thin, f"--output_dir={tmp_path}/b")
    check_call(*beam, "--work=index", *common, f"--index_dir={tmp_path}/d")
    for one, many in (("a", "b"), ("c", "d")):
        first = {p.name: p.read_bytes() for p in (tmp_path / one).iterdir()}
        second = {p.name: p.read_bytes() for p in (tmp_path / many).iterdir()}
        assert len(first) == 5 and first == second


@pytest.mark.slow
def test_a_teacher_cache_of_beam_is_complete_for_training(folder, tmp_path):
    flags = [
        "--mode=serial",
        f"--teacher_checkpoint={folder}/run",
        f"--teacher_cache={tmp_path}/cache",
        *training(tmp_path / "student", folder),
    ]
    said = check_call("tools/beam_run.py", "--work=teacher_cache", *flags, *LOCAL)
    assert said.startswith("40 videos in ")
    done = call("yt8m_distill/train.py", *flags)
    assert done.returncode == 0, done.stderr
    assert "outputs are collected" not in done.stderr


@pytest.mark.parametrize(
    "words, line",
    [
        (["--work=sing"], "flag --work=sing: value should be one of"),
        (["--shards=3"], "Neither a flag of this work nor Beam's: --shards=3"),
        (["--train_dir=x"], "--input_data_pattern is empty"),
        (["--input_data_pattern=/none*"], "--input_data_pattern"),
    ],
)
def test_a_mistake_is_one_line(words, line):
    done = call("tools/beam_run.py", *words)
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("beam_run.py: ") and line in last
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_a_workers_error_is_one_line_and_leaves_no_output(folder, tmp_path):
    spoiled = tmp_path / "train-x.tfrecord"
    spoiled.write_bytes(next(folder.glob("train*")).read_bytes()[:-5])
    output = tmp_path / "out.csv"
    done = call(
        "tools/beam_run.py",
        f"--train_dir={folder}/run",
        f"--input_data_pattern={folder}/train*,{spoiled}",
        f"--output_file={output}",
        *LOCAL,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("beam_run.py: ") and spoiled.name in last
    assert not output.exists()
