"""Preprocessing for absl flags: flagfiles by name, renamed flags, `--help`."""

import dataclasses
import difflib
import os
import pathlib
import re
import textwrap
from collections.abc import Mapping, Sequence

from yt8m_distill import settings

PREFIX = "yt8m:"  # Of the flagfiles that come with the package.

# The flagfiles are inside the package in a wheel, and next to it in a clone.
_PACKAGE = pathlib.Path(__file__).resolve().parent
_FOLDERS = (_PACKAGE / "flagfiles", _PACKAGE.parent / "flags")

# Flags of the YouTube-8M starter code that have another name here.
RENAMED = {
    "checkpoint_file": "checkpoint",
    "num_gpu": "num_gpus",
}
# Flags of the starter code that have no equal here, and what replaces them.
_IN_STUDENT = "use an argument of the network: --student='{}' (or --teacher)."
REPLACED = {
    "model": "name the network in --student (with --mode=baseline to train without a "
    "teacher) or --teacher; DbofModel, FrameLevelLogisticModel, LogisticModel, "
    "LstmModel and MoeModel have the same names.",
    "lstm_cells": _IN_STUDENT.format("LstmModel(cells=1024)"),
    "lstm_layers": _IN_STUDENT.format("LstmModel(layers=2)"),
    "moe_num_mixtures": _IN_STUDENT.format('MoeModel(head="moe(num_mixtures=2)")'),
    "video_level_classifier_model": _IN_STUDENT.format('DbofModel(head="moe")'),
    "iterations": "use --student_k, the number of frames that the student reads.",
    "sample_random_frames": "use --frame_sampler=random.",
    "dbof_add_batch_norm": _IN_STUDENT.format("DbofModel(add_batch_norm=False)"),
    "dbof_cluster_size": _IN_STUDENT.format("DbofModel(cluster_size=8192)"),
    "dbof_hidden_size": _IN_STUDENT.format("DbofModel(hidden_size=1024)"),
    "dbof_pooling_method": _IN_STUDENT.format('DbofModel(pooling_method="average")'),
    "dbof_activation": "--student=DbofModel always uses relu6.",
    "export_model_steps": "run export_model.py after training.",
    "log_device_placement": "not supported; the log names the devices.",
    "input_model_tgz": "unpack the run's folder and name it with --train_dir.",
    "untar_model_dir": "unpack the run's folder and name it with --train_dir.",
    "output_model_tgz": "use export_model.py, and pack the folder with tar.",
    "output_dir": "use --export_dir.",
}
_OPTIMIZER = re.compile(
    r"(--?optimizer=)(Adam|Adagrad|RMSProp|GradientDescent)Optimizer"
)
_OPTIMIZERS = {"GradientDescent": "SGD", "RMSProp": "RMSprop"}
_LABEL_LOSS = re.compile(r"(--?label_loss=)CrossEntropyLoss")


def expand(arguments: Sequence[str]) -> list[str]:
    """Replaces renamed flags, and flagfiles by their contents.

    Raises:
        ValueError: for a flagfile that cannot be read, or that includes itself.
    """
    return [_renamed(argument) for argument in _read_flagfiles(arguments)]


def _renamed(argument: str) -> str:
    name = re.match(r"--?(\w+)(?==|$)", argument)
    if name and name[1] in RENAMED:
        return f"--{RENAMED[name[1]]}{argument[name.end() :]}"
    argument = _OPTIMIZER.sub(
        lambda match: match[1] + _OPTIMIZERS.get(match[2], match[2]), argument
    )
    return _LABEL_LOSS.sub(r"\1ce", argument)


def _read_flagfiles(arguments: Sequence[str], depth: int = 0) -> list[str]:
    if depth > 9:
        raise ValueError("--flagfile: flagfiles are nested more than nine deep.")
    expanded, rest = [], list(arguments)
    while rest:
        argument = rest.pop(0)
        if argument == "--":
            return [*expanded, argument, *rest]
        name, separator, path = argument.partition("=")
        if name not in ("--flagfile", "-flagfile"):
            expanded.append(argument)
            continue
        if not separator:
            path = rest.pop(0) if rest else ""
        lines = map(str.strip, _read_flagfile(path).splitlines())
        lines = [line for line in lines if line and not line.startswith(("#", "//"))]
        expanded += _read_flagfiles(lines, depth + 1)
    return expanded


def _read_flagfile(path: str) -> str:
    try:
        # utf-8-sig: Windows editors write a byte order mark.
        return find_flagfile(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"--flagfile={path} is not UTF-8 text.") from error
    except OSError as error:
        reason = error.strerror or error
        raise ValueError(f"--flagfile={path} cannot be read: {reason}.") from error


def find_flagfile(name: str) -> pathlib.Path:
    """The path of a flagfile; the package's are named like `yt8m:audioset`.

    Raises:
        ValueError: if the package has no flagfile of that name.
    """
    if not name.startswith(PREFIX):
        return pathlib.Path(os.path.expanduser(name))
    stem = name.removeprefix(PREFIX).removesuffix(".flags")
    known = {path.stem: path for folder in _FOLDERS for path in folder.glob("*.flags")}
    for candidate in (stem, f"data_{stem}", f"training_{stem}"):
        if candidate in known:
            return known[candidate]
    near = difflib.get_close_matches(stem, known, 3) or sorted(known)[:3]
    raise ValueError(f"--flagfile={name}: no such flagfile; near: {', '.join(near)}.")


def explain_unknown(name: str, known: Sequence[str], words: str = "") -> str:
    """One line about a flag that the script does not define.

    Args:
        name: of the flag.
        known: names of the script's flags.
        words: that of its input files, if it has one kind; a pattern of another
            program is meant to be this one.
    """
    if name in REPLACED:
        return f"--{name} of the YouTube-8M starter code: {REPLACED[name]}"
    near = difflib.get_close_matches(name, known, 1)
    if words and name.endswith("_pattern"):
        near = [words]
    hint = f" Did you mean --{near[0]}?" if near else " --help lists the flags."
    return f"--{name} is not a flag of this script.{hint}"


# absl's message about an invalid value, in the words of Python.
_NOT_A_VALUE = re.compile(
    r"flag (--\w+=.*): (?:(invalid literal for int|Exceeds the limit)"
    r"|(could not convert string to float)|(\('Non-boolean)).*",
    re.DOTALL,
)


def explain_value(text: str) -> str:
    """One line about a value that absl cannot parse.

    Args:
        text: of absl's error.
    """
    found = _NOT_A_VALUE.fullmatch(text)
    if not found:
        return text.removeprefix("flag ")
    kind = ("a whole number", "a number", "true or false")
    (rule,) = (k for k, part in zip(kind, found.groups()[1:], strict=True) if part)
    return f"{found[1][:200]} is not {rule}."


def check_values(values: Mapping[str, object]) -> None:
    """Refuses what no flag means; the settings have rules of their own.

    Raises:
        ValueError: for a value that begins with two hyphens (a flag without its value
            takes the next flag for it), is not text, or has more than 32 bits.
    """
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("--"):
            raise ValueError(f"--{name} has no value: {value} follows it.")
        if isinstance(value, str) and not settings.is_text(value):
            raise ValueError(f"--{name}={ascii(value)} is not valid UTF-8.")
        if isinstance(value, int) and value > settings.MAX_INT:
            raise ValueError(f"--{name}={value} is more than {settings.MAX_INT}.")


def help_text(
    doc: str, groups: Sequence[type], unlisted: Sequence[str] = (), words: str = ""
) -> str:
    """The text of `--help`: required flags first, then group by group.

    Args:
        doc: of the program.
        groups: settings classes.
        unlisted: names to leave out.
        words: the flag whose files may be named without it; empty: there is none.
    """
    fields = [
        (group, field)
        for group in groups
        for field in dataclasses.fields(group)
        if field.name not in unlisted
    ]
    parts = {"Required": [_help_of(f) for _, f in fields if f.metadata["required"]]}
    for group, field in fields:
        if not field.metadata["required"]:
            title = (group.__doc__ or "").splitlines()[0].rstrip(".")
            parts.setdefault(title, []).append(_help_of(field))
    has_marks = any(field.name in settings.IMPORTANT for _, field in fields)
    marks = " (* marks the most important)" * has_marks
    also = f" Words without a flag are files of --{words}." * bool(words)
    lines = [doc.strip(), "", f"Flags{marks}:{also}"]
    for title, members in parts.items():
        lines += ["", f"{title}:", *members] if members else []
    return "\n".join(lines)


def _help_of(field: dataclasses.Field) -> str:
    metadata, default, text = field.metadata, field.default, field.metadata["help"]
    name = f"[no]{field.name}" if field.type is bool else field.name
    if metadata["choices"]:
        text = f"<{'|'.join(metadata['choices'])}> {text}"
    if not metadata["required"]:
        text += f" (default: {repr(default) if default == '' else default})"
    lines = textwrap.wrap(
        f"--{name}: {text}", 86, break_long_words=False, break_on_hyphens=False
    )
    mark = "*" if field.name in settings.IMPORTANT else " "
    return "\n".join([f"{mark} {lines[0]}", *(f"      {line}" for line in lines[1:])])
