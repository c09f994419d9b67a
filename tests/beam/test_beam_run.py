"""tools/beam_run.py on the local runner, with two worker processes."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests import script_helpers, video_helpers
from tests import training_helpers as helpers
from tools import beam_run
from yt8m_distill import settings

pytest.importorskip("apache_beam", reason="the extra [beam] is not installed")

ROOT = pathlib.Path(__file__).resolve().parents[2]
DATA = ["--feature_names=rgb,audio", "--feature_sizes=8,4", "--num_classes=10"]
LOCAL = ["--runner=DirectRunner", "--direct_num_workers=2"]
PROCESSES = [*LOCAL, "--direct_running_mode=multi_processing"]


def call(*words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "CUDA_VISIBLE_DEVICES": "-1"}
    return subprocess.run(
        [sys.executable, "tools/beam_run.py", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def run_here(*words: str) -> str:
    """Runs the tool in this process and returns its output."""
    start = lambda: beam_run.main(sys.argv)  # noqa: E731
    return script_helpers.in_place(start, "beam_run", *words).stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> pathlib.Path:
    """Five training shards of 40 videos, and a trained teacher."""
    folder = tmp_path_factory.mktemp("beam")
    videos = helpers.make_videos(40, seed=4)
    for shard in range(5):
        some = videos[9 * shard : 9 * shard + 9]
        helpers.write_shard(folder / f"train{shard}.tfrecord", some)
    helpers.train(run_of(folder, folder / "run"))
    return folder


def run_of(folder, train_dir, **changes) -> settings.RunSettings:
    given = {"num_epochs": 1, "validation_data_pattern": ""}
    given["train_data_pattern"] = f"{folder}/train*"
    given["teacher"] = "FrameLevelLogisticModel"  # Other processes know it too.
    return helpers.make_run(train_dir, folder, **{**given, **changes})


@pytest.mark.slow
def test_the_csv_of_beam_is_that_of_inference_byte_for_byte(folder, tmp_path):
    flags = [f"--train_dir={folder}/run", f"--input_data_pattern={folder}/train*"]
    # 9 videos per shard: batches of 3 never span two shards, so sums have one order.
    flags.append("--batch_size=3")
    one, many = tmp_path / "one.csv", tmp_path / "many.csv"
    script_helpers.succeed("inference", *flags, f"--output_file={one}")
    done = call(*flags, f"--output_file={many}", *PROCESSES)
    assert done.stdout == f"40 videos of 5 parts in {many}.\n", done.stderr[-3000:]
    assert many.read_bytes() == one.read_bytes()
    # The parts and the merged CSVs; no temporary files.
    assert len(list(tmp_path.iterdir())) == 2 + 5


@pytest.mark.slow
def test_indices_and_thin_shards_of_beam_are_those_of_the_tools(
    folder, tmp_path, monkeypatch
):
    script_helpers.without_processes(monkeypatch)
    common = [f"--input_data_pattern={folder}/train*", *DATA[:2]]
    thin = [*common, "--student_k=3", "--max_frames=20"]
    script_helpers.succeed("thin_records", *thin, f"--output_dir={tmp_path}/a")
    script_helpers.succeed("index_records", *common, f"--index_dir={tmp_path}/c")
    run_here("--work=thin", *thin, f"--output_dir={tmp_path}/b", *LOCAL)
    run_here("--work=index", *common, f"--index_dir={tmp_path}/d", *LOCAL)
    for one, many in (("a", "b"), ("c", "d")):
        first = {p.name: p.read_bytes() for p in (tmp_path / one).iterdir()}
        second = {p.name: p.read_bytes() for p in (tmp_path / many).iterdir()}
        assert len(first) == 5 and first == second


def test_records_of_videos_of_beam_are_those_of_the_tool(tmp_path, image_network):
    video_helpers.import_av()
    (tmp_path / "clips").mkdir()
    for number in range(3):
        path = tmp_path / "clips" / f"v{number}.mp4"
        video_helpers.write_clip(path, 30 + number)
    (tmp_path / "clips" / "broken.mp4").write_bytes(b"x")
    given = [f"--videos={tmp_path}/clips/*", f"--image_network={image_network}"]
    one, many = tmp_path / "one.tfrecord", tmp_path / "many.tfrecord"
    script_helpers.succeed("extract_videos", *given, f"--output={one}")
    done = run_here("--work=extract", *given, f"--output={many}", *LOCAL)
    assert "3 videos" in done and "1 skipped" in done
    assert many.read_bytes() == one.read_bytes()
    assert not (tmp_path / "many.tfrecord.parts").exists()


@pytest.mark.slow
def test_a_teacher_cache_of_beam_is_complete_for_training(folder, tmp_path):
    run = run_of(
        folder,
        tmp_path / "student",
        mode="serial",
        teacher_checkpoint=str(folder / "run"),
        teacher_cache=str(tmp_path / "cache"),
    )
    given = {name: value for name, value in run.to_dict().items() if value != ""}
    words = [f"--{name}={value}" for name, value in given.items()]
    said = run_here("--work=teacher_cache", *words, *LOCAL)
    assert said.startswith("40 videos in ")
    entry = helpers.train(run)["student"]["teacher_cache"]
    assert (entry["videos"], entry["computed"]) == (40, 0)


SCORED = ["--train_dir=x", f"--input_data_pattern={__file__}", "--output_file=x.csv"]


@pytest.mark.parametrize(
    "words, line",
    [
        (["--work=sing"], "--work=sing"),
        (["--shards=3"], "--shards=3"),
        (["--train_dir=x"], "--input_data_pattern"),
        (["--input_data_pattern=/none*"], "--input_data_pattern"),
        ([*SCORED, "--segments"], "--segments"),
        ([*SCORED, "--vocabulary=names.csv"], "--vocabulary=names.csv"),
    ],
)
def test_a_mistake_is_one_line(words, line):
    with pytest.raises(ValueError) as caught:
        run_here(*words)
    assert line in beam_run.one_line(caught.value)


@pytest.mark.slow
def test_nothing_is_printed_but_the_mistake():
    (line,) = call("--nonsense=3").stderr.splitlines()
    assert line.startswith("beam_run.py: ") and "--nonsense=3" in line


@pytest.mark.slow
def test_a_workers_error_is_one_line_and_leaves_no_output(folder, tmp_path):
    spoiled = tmp_path / "train-x.tfrecord"
    spoiled.write_bytes(next(folder.glob("train*")).read_bytes()[:-5])
    output = tmp_path / "out.csv"
    done = call(
        f"--train_dir={folder}/run",
        f"--input_data_pattern={folder}/train*,{spoiled}",
        f"--output_file={output}",
        *LOCAL,
    )
    assert done.returncode == 1
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("beam_run.py: ") and spoiled.name in last
    assert not output.exists()
