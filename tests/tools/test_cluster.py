"""tools/cluster: the Slurm script makes a TF_CONFIG, the manifest fits itself."""

import json
import os
import pathlib
import subprocess

import pytest

from yt8m_distill.training import distribution

ROOT = pathlib.Path(__file__).resolve().parents[2]
SLURM = ROOT / "tools" / "cluster" / "train.slurm"
MANIFEST = ROOT / "tools" / "cluster" / "train.kubernetes.yaml"


def write_command(path: pathlib.Path, text: str) -> None:
    path.write_text(f"#!/usr/bin/env bash\n{text}\n")
    path.chmod(0o755)


def test_every_task_of_the_slurm_script_has_its_index(tmp_path):
    # Stand-ins: two hosts, and an srun that runs the command once for each.
    write_command(tmp_path / "scontrol", "printf 'n1\\nn2\\n'")
    write_command(
        tmp_path / "srun",
        "while [[ $1 == --* ]]; do shift; done\n"
        'for i in 0 1; do SLURM_PROCID=$i "$@"; done',
    )
    write_command(
        tmp_path / "python", "printf '%s\\n' \"${TF_CONFIG//$'\\n'/ }\" \"$@\""
    )
    environment = {
        **os.environ,
        "PATH": f"{tmp_path}:{os.environ['PATH']}",
        "PYTHON": str(tmp_path / "python"),
        "SLURM_JOB_NODELIST": "n[1-2]",
        "SLURM_JOB_ID": "7",
    }
    flags = ["--train_dir=a b", "--train_data_pattern=x*"]
    done = subprocess.run(
        ["bash", str(SLURM), *flags],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        cwd=tmp_path,
    )
    lines = done.stdout.splitlines()
    expected = ["-m", "yt8m_distill.train", *flags]
    for index in range(2):
        config, *words = lines[5 * index : 5 * index + 5]
        assert words == expected
        assert distribution.read_cluster(config) == (
            {"worker": ["n1:20007", "n2:20007"]},
            "worker",
            index,
        )


def test_the_pods_of_the_manifest_find_each_other():
    yaml = pytest.importorskip("yaml", reason="PyYAML is not installed")
    service, job = yaml.safe_load_all(MANIFEST.read_text())
    assert (service["kind"], job["kind"]) == ("Service", "Job")
    pod = job["spec"]["template"]["spec"]
    assert pod["subdomain"] == service["metadata"]["name"]
    labels = job["spec"]["template"]["metadata"]["labels"]
    assert service["spec"]["selector"].items() <= labels.items()
    (container,) = pod["containers"]
    workers = container["env"][0]["value"]
    count = job["spec"]["completions"]
    assert job["spec"]["parallelism"] == count
    # A pod of an Indexed Job is <job>-<index>.<subdomain>.
    name = f"{job['metadata']['name']}-{{}}.{pod['subdomain']}:2222"
    assert json.loads(workers) == [name.format(index) for index in range(count)]
    # What the pod runs makes a TF_CONFIG that holds.
    words = [*container["command"], *container["args"]]
    script = words.index("-ceu") + 1
    words[script] = words[script].replace(
        "exec yt8m-train", "printf '%s\\n' \"$TF_CONFIG\"; :"
    )
    environment = {**os.environ, "WORKERS": workers, "JOB_COMPLETION_INDEX": "1"}
    done = subprocess.run(
        words, env=environment, capture_output=True, text=True, check=True
    )
    assert distribution.read_cluster(done.stdout)[1:] == ("worker", 1)
