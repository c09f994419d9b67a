"""Settings become flags and come back; errors become one line."""

import os
import re
import signal

import keras
import pytest
import tensorflow as tf
from absl import flags

from tests import record_helpers, script_helpers
from yt8m_distill import flag_groups, settings

GIVEN = ("--train_dir=run", "--train_data_pattern=train*")


def parse(*arguments: str, preset: bool = True) -> flags.FlagValues:
    """The flags of train.py after such a command line."""
    flag_values = flags.FlagValues()
    flag_groups.define([flag_groups.Preset] * preset, flag_values)
    flag_groups.define(flag_groups.RUN_GROUPS, flag_values)
    flag_values(["train.py", *GIVEN, *arguments])
    return flag_values


def test_a_programs_own_setting_is_not_one_of_the_run_that_is_stated_again():
    # Each of a process's programs for itself: calibration has no vocabulary of its own.
    found = []
    for own in (settings.CalibrationSettings, settings.EvalSettings):
        flag_values = flags.FlagValues()
        groups = (settings.CheckpointSettings, own)
        flag_groups.define(groups, flag_values, stated=flag_groups.RUN_GROUPS)
        flag_values(["any.py", *GIVEN[:1], "--vocabulary=names.csv", "--num_classes=3"])
        found.append(flag_groups.read_stated(flag_values))
    assert found == [{"vocabulary": "names.csv", "num_classes": 3}, {"num_classes": 3}]


def test_defaults_give_the_default_settings():
    run = flag_groups.read_run(parse())
    expected = settings.RunSettings.from_dict(
        {"train_dir": "run", "train_data_pattern": "train*"}
    )
    assert run == expected


def test_values_come_back_with_their_types():
    run = flag_groups.read_run(
        parse(
            "--mode=parallel",
            "--batch_size=64",
            "--base_learning_rate=1e-2",
            "--start_new_model",
            "--noframe_features",
            "--feature_names=mean_rgb,mean_audio",
            '--teacher=HierarchicalLSTM(cells=4, head="moe")',
        )
    )
    assert run.distillation.mode == "parallel"
    assert run.training.batch_size == 64
    assert run.optimization.base_learning_rate == 0.01
    assert run.training.start_new_model is True
    assert run.data.frame_features is False
    assert run.data.names == ("mean_rgb", "mean_audio")
    assert run.networks.teacher == 'HierarchicalLSTM(cells=4, head="moe")'


@pytest.mark.parametrize("preset", flag_groups.PRESETS)
def test_a_preset_changes_what_it_lists_and_nothing_else(preset):
    before = flag_groups.read_run(parse()).to_dict()
    after = flag_groups.read_run(parse(f"--preset={preset}")).to_dict()
    changed = {k: v for k, v in after.items() if v != before[k]}
    assert changed == flag_groups.PRESETS[preset]


def test_a_flag_wins_over_the_preset_even_with_its_default():
    run = flag_groups.read_run(parse("--preset=authors", "--frame_sampler=uniform"))
    assert run.sampling.frame_sampler == "uniform"
    assert run.networks.teacher == flag_groups.PRESETS["authors"]["teacher"]


def test_a_conflict_with_the_preset_names_the_preset():
    with pytest.raises(ValueError) as caught:
        flag_groups.read_run(parse("--preset=best", "--mode=parallel"))
    assert "--student_start comes from --preset=best." in str(caught.value)
    given = parse("--preset=best", "--mode=parallel", "--student_start=teacher")
    with pytest.raises(ValueError) as caught:
        flag_groups.read_run(given)
    assert "comes from" not in str(caught.value)


@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("thin_records", ["--student_k=2", "--jobs=1", "--output_dir=~/made"]),
        ("convert_records", ["--output_dir=~/made"]),
        ("inspect_records", ["--per_class_file=~/made"]),
    ],
)
def test_a_path_may_begin_with_the_home_folder(tmp_path, monkeypatch, program, flags):
    """A shell replaces ~ in `--output_dir ~/made`, but not after an equals sign."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    record_helpers.write_shards(tmp_path, [3])
    if program == "thin_records":
        script_helpers.without_processes(monkeypatch)
        flags = [*flags, "--feature_sizes=4,3", "--num_classes=5"]
    pattern = "data_pattern" if "inspect" in program else "input_data_pattern"
    script_helpers.succeed(program, f"--{pattern}=~/*.tfrecord", *flags)
    assert (tmp_path / "made").exists() and not (tmp_path / "~").exists()


def test_a_broken_link_is_named(tmp_path):
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "nowhere")
    for flag in ("train_dir", "index_dir", "teacher_checkpoint", "teacher_cache"):
        with pytest.raises(ValueError) as error:
            flag_groups.read_run(parse(f"--{flag}={link}"))
        assert f"--{flag}={link}" in str(error.value)
        assert str(tmp_path / "nowhere") in str(error.value)


def test_want_of_memory_names_the_flag_that_helps():
    text = "{{x}} OOM when allocating tensor with shape[12,4000000000] and type float"
    line = flag_groups._one_line(tf.errors.ResourceExhaustedError(None, None, text))
    assert "shape[12,4000000000]" in line and "--batch_size" in line


def test_an_error_is_shown_as_one_line():
    assert flag_groups._one_line(ValueError("two\n  lines")) == "two lines"
    assert flag_groups._one_line(KeyError()) == "KeyError"
    refused = PermissionError(13, "Permission denied", "a.tfrecord")
    assert flag_groups._one_line(refused) == "a.tfrecord: Permission denied."
    text = "{{function_node x}} a.tfrecord; Permission denied [Op:GetNext] name:"
    refused = tf.errors.PermissionDeniedError(None, None, text)
    assert flag_groups._one_line(refused) == "a.tfrecord; Permission denied"


def test_an_error_while_tracing_is_shown_without_the_call_stack():
    @tf.function
    def broken(x):
        if x > 0:  # Makes AutoGraph rewrite the function.
            x = x + 1
        raise ValueError("--student_k=3 is odd.")

    with pytest.raises(ValueError) as error:
        broken(tf.constant(1))
    assert flag_groups._one_line(error.value).endswith("--student_k=3 is odd.")
    assert "in user code" not in flag_groups._one_line(error.value)


@pytest.mark.parametrize("in_graph", [False, True])
def test_an_error_in_a_network_is_shown_without_what_keras_says(in_graph):
    class Network(keras.Model):
        def call(self, inputs):
            raise ValueError("--match=final is needed.")

    network = Network()
    call = tf.function(network) if in_graph else network
    with pytest.raises(ValueError) as error:
        call(tf.constant([1.0]))
    assert "Arguments received" in str(error.value) or "Call arg" in str(error.value)
    line = flag_groups._one_line(error.value)
    assert line.endswith("--match=final is needed.")
    # AutoGraph names the kind of error.
    assert line.removeprefix("ValueError: ") == "--match=final is needed."


@pytest.mark.parametrize(
    "error, expected",
    [
        (ValueError("x"), True),
        (OSError("x"), True),
        (FloatingPointError("x"), True),
        (tf.errors.DataLossError(None, None, "x"), True),
        (KeyError("x"), False),
        (TypeError("x"), False),
        (RuntimeError("x"), False),
    ],
)
def test_a_defect_keeps_its_traceback(error, expected):
    assert flag_groups._is_expected(error) is expected


def test_files_without_a_flag_are_read_in_addition_to_those_of_the_flag(tmp_path):
    # What a shell makes of `--data_pattern *.tfrecord`: a value, and a word.
    first, second = record_helpers.write_shards(tmp_path, [4, 3])
    for words in ([first, second], ["--data_pattern", first, second]):
        found = script_helpers.succeed("inspect_records", *words).stdout
        assert found.startswith("7 videos,")
    sizes = "--feature_sizes=4,3"
    built = script_helpers.succeed("index_records", sizes, first, second).stdout
    assert "7 videos" in built
    # A run reads shards for training and others for validation: which are these?
    error = script_helpers.refuse("train", *GIVEN, second)
    assert second in error


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_any_program_is_one_line_and_128_plus_its_number(number):
    program = flag_groups.script(lambda: os.kill(os.getpid(), number), ())
    done = script_helpers.in_place(program, "program")
    assert done.returncode == 128 + number
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"program.py: stopped by {number.name}.")


def test_programs_speak_of_one_video_and_not_of_others(tmp_path):
    (shard,) = record_helpers.write_shards(tmp_path, [1])
    (tmp_path / "empty").touch()
    sizes, thin = "--feature_sizes=4,3", ("--student_k=1", f"--output_dir={tmp_path}/x")
    for program, *more in (
        ("inspect_records",),
        ("index_records", sizes),
        ("thin_records", sizes, *thin),
    ):
        said = script_helpers.succeed(program, shard, *more).stdout
        assert "1 video" in said
        assert not re.search(r"\b1 (videos|frames|indices|records)\b", said), said
        error = script_helpers.refuse(program, f"{tmp_path}/empty", *more)
        assert f"{tmp_path}/empty" in error and "others" not in error
