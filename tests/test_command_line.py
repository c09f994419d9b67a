"""The preprocessing of a command line before absl parses it."""

import dataclasses
import pathlib
import re
import subprocess
import sys

import pytest

from tests import script_helpers, test_settings
from yt8m_distill import command_line, flag_groups, settings
from yt8m_distill.models import builder

ROOT = pathlib.Path(__file__).resolve().parent.parent


def test_a_flagfile_of_the_package_is_found_by_name():
    flags = (ROOT / "flags" / "data_audioset.flags").read_text()
    expected = [x for x in flags.splitlines() if x.startswith("--")]
    for name in ("yt8m:audioset", "yt8m:data_audioset", "yt8m:data_audioset.flags"):
        assert command_line.expand([f"--flagfile={name}"]) == expected
    with pytest.raises(ValueError) as error:
        command_line.expand(["--flagfile=yt8m:audioste"])
    assert "yt8m:audioste" in str(error.value)


def test_flagfiles_are_expanded_in_place_with_any_encoding_of_lines(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("HOME", str(tmp_path))
    inner = tmp_path / "inner file.flags"
    inner.write_bytes("\ufeff--seed=2\r\n\r\n# --seed=3\r\n// no\r\n".encode())
    outer = tmp_path / "outer.flags"
    outer.write_text(f"--seed=1\n  --flagfile={inner}\n--mode=teacher\n")
    flags = ["--seed=1", "--seed=2", "--mode=teacher"]
    for arguments in (
        [f"--flagfile={outer}"],
        ["--flagfile", str(outer)],
        ["--flagfile=~/outer.flags"],
    ):
        assert command_line.expand(["--a", *arguments, "--b"]) == ["--a", *flags, "--b"]
    assert command_line.expand(["--", "--flagfile=x"]) == ["--", "--flagfile=x"]


def test_a_flagfile_that_cannot_be_read_is_one_line(tmp_path):
    itself, foreign = tmp_path / "itself", tmp_path / "foreign"
    itself.write_text(f"--flagfile={itself}")
    foreign.write_bytes("--seed=1".encode("utf-16"))
    for path in (itself, foreign, tmp_path, tmp_path / "none", ""):
        with pytest.raises(ValueError) as error:
            command_line.expand([f"--flagfile={path}"])
        assert str(error.value).startswith("--flagfile")
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("--num_gpu=1", "--num_gpus=1"),
        ("-num_gpu=1", "--num_gpus=1"),
        ("--checkpoint_file=a", "--checkpoint=a"),
        ("--optimizer=AdamOptimizer", "--optimizer=Adam"),
        ("--optimizer=GradientDescentOptimizer", "--optimizer=SGD"),
        ("--optimizer=RMSPropOptimizer", "--optimizer=RMSprop"),
        ("--label_loss=CrossEntropyLoss", "--label_loss=ce"),
        ("--optimizer=Adam(beta_1=0.8)", "--optimizer=Adam(beta_1=0.8)"),
        ("--num_gpus=1", "--num_gpus=1"),
        ("--train_dir=num_gpu=1", "--train_dir=num_gpu=1"),
    ],
)
def test_flags_of_the_starter_code_are_renamed(old, new):
    assert command_line.expand([old]) == [new]


# Flags of the starter code's train.py, eval.py, inference.py, export_model.py and
# models, as of its last version and the one of 2017.
STARTER = """
train_dir train_data_pattern feature_names feature_sizes frame_features segment_labels
start_new_model model batch_size label_loss regularization_penalty base_learning_rate
learning_rate_decay learning_rate_decay_examples num_epochs max_steps num_gpu
export_model_steps num_readers optimizer clip_gradient_norm log_device_placement
eval_data_pattern run_once top_k input_data_pattern input_model_tgz untar_model_dir
segment_max_pred segment_label_ids_file output_file output_model_tgz checkpoint_file
output_dir iterations dbof_add_batch_norm sample_random_frames dbof_cluster_size
dbof_hidden_size dbof_pooling_method dbof_activation video_level_classifier_model
lstm_cells lstm_layers moe_num_mixtures
""".split()


def test_every_flag_of_the_starter_code_is_accepted_or_explained():
    groups = (*flag_groups.RUN_GROUPS, *test_settings.GROUPS)
    known = {f.name for group in groups for f in dataclasses.fields(group)}
    for name in STARTER:
        tables = (known, command_line.RENAMED, command_line.REPLACED)
        assert sum(name in table for table in tables) == 1, name
    assert set(command_line.RENAMED.values()) <= known
    for name, how in command_line.REPLACED.items():
        line = command_line.explain_unknown(name, [])
        assert line.startswith(f"--{name} ") and "\n" not in line
        # Every flag that it mentions exists.
        assert set(re.findall(r"--(\w+)", how)) <= {*known, "help"}
        # The network that it names exists and takes the argument.
        for text in re.findall(r"--student='(.*?)'", how):
            builder.parse("student", text)


def test_a_misspelled_flag_is_named_with_the_nearest():
    assert "--batch_size" in command_line.explain_unknown("bach_size", ["batch_size"])
    assert "--help" in command_line.explain_unknown("qqq", ["batch_size"])
    # yt8m-inference knows --validation_data_pattern of its run, too; it reads others.
    for program, flag in (
        ("inference", "--input_data_pattern"),
        ("tag_videos", "--vi"),
    ):
        line = script_helpers.refuse(program, "--eval_data_pattern=x")
        assert line.startswith("--eval_data_pattern ") and f" {flag}" in line


def test_a_flag_that_took_the_next_one_for_its_value_is_refused():
    done = script_helpers.call("train", "--train_dir=x", "--teacher_cache", "--mix=cut")
    assert done.returncode == 1
    assert "--teacher_cache" in done.stderr and "--mix=cut" in done.stderr
    command_line.check_values({"a": "-1:1", "b": "", "c": None, "d": 3})
    for value in ("a\0b", "\udcff"):
        with pytest.raises(ValueError, match="--some="):
            command_line.check_values({"some": value})
    with pytest.raises(ValueError, match="--some=2147483648 "):
        command_line.check_values({"some": 2**31})


@pytest.mark.parametrize(
    ("flag", "rule"),
    [
        ("--student_k=2,5", "a whole number"),
        ("--top_k=", "a whole number"),
        ("--mean_frames=1e", "a number"),
        ("--deterministic=perhaps", "true or false"),
        ("--student_k=" + "9" * 5000, "a whole number"),
    ],
)
def test_a_value_of_another_type_is_a_rule_in_one_short_line(flag, rule):
    line = script_helpers.refuse("export_model", "--train_dir=x", flag)
    assert line.startswith(flag[:50]) and rule in line and len(line) < 300


def test_no_program_loads_tensorflow_before_its_flags_are_right():
    """TensorFlow takes seconds, for a misspelled flag, too."""
    names = re.findall(r"=(yt8m_distill\.\w+):run", (ROOT / "setup.py").read_text())
    assert len(names) > 12
    # Most functions of these two need it; they load it before all that import it, since
    # it is load_tensorflow that keeps native messages from stderr.
    early = [n for n in names if n.endswith((".convert_records", ".inspect_records"))]
    names = [n for n in names if n not in early]
    code = f"""
import importlib, sys
from absl import flags
for name in {names}:
    module = importlib.import_module(name)
    sys.argv = [name, "--nope=1"]
    try:
        module.run()
    except SystemExit as end:
        assert end.code == 1, name
    for flag in list(flags.FLAGS):
        delattr(flags.FLAGS, flag)
    assert "tensorflow" not in sys.modules, name

from yt8m_distill import flag_groups
def load():
    raise LookupError
flag_groups.load_tensorflow = load
for name in {early}:
    try:
        importlib.import_module(name)
    except LookupError:
        pass
    assert "tensorflow" not in sys.modules, name
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("--nope ") == len(names)


def test_no_tool_on_runs_loads_tensorflow_for_an_unknown_argument():
    names = ["list_flagfiles", "reproduce", "summarize_runs"]
    code = f"""
import importlib, sys
for name in {names}:
    module = importlib.import_module("tools." + name)
    sys.argv = [name, "x", "--nope"]
    try:
        getattr(module, "run", module.main)()
    except SystemExit as end:
        assert end.code, name
    else:
        raise AssertionError(name)
    assert "tensorflow" not in sys.modules, name
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr.count("--nope") == 3, done.stderr


def test_help_has_required_flags_first_and_every_flag_once():
    text = command_line.help_text("Doc.", flag_groups.RUN_GROUPS, ["seed"])
    names = re.findall(r"^[ *] --(?:\[no\])?(\w+):", text, re.MULTILINE)
    run = settings.RunSettings.from_dict(
        {"train_dir": "x", "train_data_pattern": "y"}
    ).to_dict()
    assert sorted([*names, "seed"]) == sorted(run)
    assert names[:2] == ["train_dir", "train_data_pattern"]
    marked = re.findall(r"^\* --(\w+):", text, re.MULTILINE)
    assert len(marked) == 11 and set(marked) <= set(settings.IMPORTANT)
    assert max(map(len, text.splitlines())) <= 100


def test_a_program_run_as_a_file_imports_the_package_around_it(tmp_path):
    """Also where another one is installed, and in a process that it starts."""
    package = tmp_path / "yt8m_distill"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "names.py").write_text("")
    stand_in = ROOT / "yt8m_distill" / "yt8m_distill.py"
    (package / stand_in.name).write_text(stand_in.read_text())
    program = """
import multiprocessing

from yt8m_distill import names

if __name__ == "__main__":
    print(names.__file__)
    process = multiprocessing.get_context("spawn").Process(target=print, args=("so",))
    process.start()
    process.join()
"""
    (package / "program.py").write_text(program)
    command = [sys.executable, str(package / "program.py")]
    done = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert done.stdout.split() == [str(package / "names.py"), "so"], done.stderr
