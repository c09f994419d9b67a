"""Absl flags from settings, settings from flags, and how scripts and programs run.

Flags have the names, defaults and help texts of the fields in `settings`. They are
defined when a script runs, not on import, and TensorFlow is loaded only after they are
valid, so that `--help` and a wrong flag are answered at once.
"""

import contextlib
import dataclasses
import functools
import logging
import multiprocessing
import os
import re
import signal
import sys
import traceback
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

from absl import app, flags
from absl import logging as absl_logging
from tqdm.contrib import logging as tqdm_logging

from yt8m_distill import command_line, settings
from yt8m_distill.training import interruption

RUN_GROUPS = tuple(f.type for f in dataclasses.fields(settings.RunSettings))

# Preset → defaults that replace the ordinary ones. Flags override the preset.
PRESETS: dict[str, dict[str, Any]] = {
    # The paper's text; these are the ordinary defaults.
    "paper": {},
    # The settings of the published numbers, according to the authors' code.
    "authors": {
        "teacher": "HierarchicalLSTM(num_blocks=20, head='moe(bias_init=0.0)', "
        "dropout=0.0)",
        "frame_sampler": "uniform_stride",
        "prediction_distance": "class_kl",
        "regularization_scope": "classifier",
        "classifier": "own",
    },
    # The best serial student on AudioSet; results/README.md has its ablation.
    "best": {
        "student_loss": "pred",
        "frame_sampler": "uniform_center",
        "train_frame_sampler": "random",
        "student_start": "teacher",
        "learning_rate_schedule": "cosine",
    },
}


@dataclasses.dataclass(frozen=True)
class Preset(settings.Settings):
    """The program itself."""

    preset: str = settings.setting(
        "paper",
        "Defaults: paper (the paper's text), authors (their code, where it differs "
        "from the text) or best (the best serial student on AudioSet). Other flags "
        "override it.",
        choices=tuple(PRESETS),
    )


def define(
    groups: Sequence[type],
    flag_values: flags.FlagValues = flags.FLAGS,
    stated: Sequence[type] = (),
) -> None:
    """Defines a flag for every field of these settings classes.

    Args:
        groups: the classes.
        flag_values: receives the flags.
        stated: classes whose values are known from a run and may be stated again; see
            `read_stated`. Their flags have no defaults.
    """
    for group in groups:
        for field in dataclasses.fields(group):
            _define_one(field, field.default, flag_values)
    for group in stated:
        for field in dataclasses.fields(group):
            if field.name not in flag_values:
                _define_one(field, None, flag_values)


def _define_one(field: dataclasses.Field, default: Any, flag_values) -> None:
    makers = {
        str: flags.DEFINE_string,
        int: flags.DEFINE_integer,
        float: flags.DEFINE_float,
        bool: flags.DEFINE_bool,
    }
    # The --help of absl, used in tools/, lists the flags of the script's module.
    where = {"flag_values": flag_values, "module_name": sys.argv[0]}
    help_text, choices = field.metadata["help"], field.metadata["choices"]
    if choices:
        flags.DEFINE_enum(field.name, default, list(choices), help_text, **where)
    else:
        makers[field.type](field.name, default, help_text, **where)


def read(group: type, flag_values: flags.FlagValues = flags.FLAGS) -> Any:
    """The settings object of a class, from the flags.

    Raises:
        ValueError: for an invalid value.
    """
    values = {}
    preset = PRESETS[flag_values.preset] if "preset" in flag_values else {}
    for field in dataclasses.fields(group):
        flag = flag_values[field.name]
        use_preset = field.name in preset and not flag.present
        values[field.name] = preset[field.name] if use_preset else flag.value
        _refuse_broken_link(field, values[field.name])
    return group(**values)


def _refuse_broken_link(field: dataclasses.Field, value: Any) -> None:
    if field.metadata["path"] in ("file", "checkpoints"):
        path = os.path.expanduser(value)
        if os.path.islink(path) and not os.path.exists(path):
            raise ValueError(
                f"--{field.name}={value} is a link to {os.readlink(path)}, which does "
                "not exist."
            )


def read_stated(flag_values: flags.FlagValues = flags.FLAGS) -> dict[str, Any]:
    """Name → value of the run's settings that the command line states again.

    A flag with a default belongs to a setting of the program itself, even if the run
    has one of the same name, such as `vocabulary`.
    """
    names = {f.name for group in RUN_GROUPS for f in dataclasses.fields(group)}
    stated = [n for n in names if n in flag_values and flag_values[n].default is None]
    return {n: flag_values[n].value for n in stated if flag_values[n].present}


def read_run(flag_values: flags.FlagValues = flags.FLAGS) -> settings.RunSettings:
    """The settings of a training run, from the flags.

    Raises:
        ValueError: for an invalid value or combination; the error names the values
            that come from the preset.
    """
    fields = dataclasses.fields(settings.RunSettings)
    try:
        groups = {field.name: read(field.type, flag_values) for field in fields}
        return settings.RunSettings(**groups)
    except ValueError as error:
        name = flag_values.preset if "preset" in flag_values else "paper"
        from_preset = [
            f"--{flag} comes from --preset={name}."
            for flag in PRESETS[name]
            if not flag_values[flag].present and f"--{flag}=" in str(error)
        ]
        if not from_preset:
            raise
        raise ValueError(" ".join([str(error), *from_preset])) from error


# The text that Keras 3 (with bold letters for a terminal) and Keras 2 put around the
# message of an error in `call`.
_KERAS_FRAME = (
    r"Exception encountered when calling [^\n]*\s*?\n\s*\n\s*(?:\x1b\[1m)?(.*?)"
    r"(?:\x1b\[0m)?\s*\n\s*\n\s*(?:Call a|A)rguments received by"
)


def _one_line(error: BaseException) -> str:
    """An error as one line for the user."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.filename and error.strerror:
        text = f"{error.filename}: {error.strerror}."  # Not the number of the error.
    # TensorFlow fails to decode its own message about a damaged record.
    if _is_of_tensorflow(error) or isinstance(error, UnicodeDecodeError):
        from yt8m_distill.data import faults  # TensorFlow is loaded already.

        text = faults.describe_error(error, _shards()) or text
        # Without the names of operations around the words that say what it is.
        text = re.sub(r"\{\{.*?\}\} ?| ?\[Op:.*", "", text, flags=re.DOTALL)
    shape = re.search(r"OOM when allocating tensor with (shape\[[\d,]*\])", text)
    if shape:
        return (
            f"There is not enough memory for a tensor of {shape[1]}: use a smaller "
            "--batch_size or network."
        )
    # Keras adds the arguments with which it called the network.
    of_keras = re.search(_KERAS_FRAME, text, re.DOTALL)
    if of_keras:
        text = of_keras[1]
    if of_keras or hasattr(error, "ag_error_metadata"):
        # Raised during tracing: AutoGraph prepends the call stack.
        text = text.strip().splitlines()[-1].strip()
    return " ".join(text.split())


def _shards() -> list[str]:
    """The shards that the flags name, one of which may be damaged."""
    from yt8m_distill import file_patterns

    patterns = {
        name: flags.FLAGS[name].value
        for name in flags.FLAGS
        if name.endswith("data_pattern") and flags.FLAGS[name].value
    }
    return [p for n, v in patterns.items() for p in file_patterns.expand(v, n)]


def _is_of_tensorflow(error: BaseException) -> bool:
    # An error of TensorFlow's implies that it is loaded.
    tensorflow = sys.modules.get("tensorflow")
    return tensorflow is not None and isinstance(error, tensorflow.errors.OpError)


@contextlib.contextmanager
def _logging() -> Iterator[None]:
    """Shows the log lines of this package, above any progress bar."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s", "%H:%M:%S"))
    log = logging.getLogger("yt8m_distill")
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    log.propagate = False
    with tqdm_logging.logging_redirect_tqdm(loggers=[log]):
        yield


def load_tensorflow() -> None:
    """Imports TensorFlow without its native messages.

    They are printed before logging can be configured (seen in 2.21), and look like
    errors on a machine without a GPU. A signal that nothing handles yet, in a program
    that needs TensorFlow before its flags, is one line, too.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    sys.stderr.flush()
    shown = os.dup(2)
    with open(os.devnull, "wb") as nothing:
        os.dup2(nothing.fileno(), 2)
    is_handled = (
        signal.getsignal(signal.SIGINT) is not signal.default_int_handler
        or multiprocessing.parent_process() is not None
    )
    handler = contextlib.nullcontext if is_handled else interruption.raised
    try:
        with handler("Nothing has begun."):
            import tensorflow  # noqa: F401
    except interruption.Interrupted as stop:
        if is_handled:
            raise
        os.dup2(shown, 2)
        _exit(str(stop), 128 + stop.signal_number)
    finally:
        os.dup2(shown, 2)
        os.close(shown)


def script(
    main: Callable[..., None],
    groups: Sequence[type],
    *,
    after_a_stop: str = "The same command begins anew.",
    preset: bool = False,
    of_a_run: bool = False,
    unlisted: Sequence[str] = (),
) -> Callable[[], None]:
    """The console entry point of a program: flags → settings → `main`.

    An error in the flags or the data is one line and exit code 1, without a traceback;
    `--verbosity=1` adds the traceback. SIGTERM and Ctrl-C give one line and exit code
    128 plus the signal's number. Words without a flag are files of the pattern that the
    program requires, in addition to those of its flag; an error where it has several.

    Args:
        main: called with the settings of each group, in order; with RunSettings alone
            for RUN_GROUPS.
        groups: settings classes whose fields are the program's flags. Those that are no
            settings of others are one in its own module, `Request`.
        after_a_stop: a sentence about how to continue after a signal.
        preset: whether there is a `--preset`.
        of_a_run: whether it reads a trained run, whose settings may be stated again;
            `main` gets those of `read_stated`, too.
        unlisted: flags that are accepted and ignored, for flagfiles that the programs
            share; `--help` omits them.
    """

    def run() -> None:
        os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
        defined = (Preset, *groups) if preset else groups
        define(defined, stated=RUN_GROUPS if of_a_run else ())
        doc = sys.modules[main.__module__].__doc__ or ""
        fields = [f for group in groups for f in dataclasses.fields(group)]
        patterns = [f for f in fields if f.metadata["path"] == "pattern"]
        alone = len(patterns) == 1 and patterns[0].metadata["required"]
        words = patterns[0].name if alone else ""
        parts = (doc, defined, unlisted, words)
        help_text = functools.partial(command_line.help_text, *parts)
        _run(read_and_call, help_text, words)

    def read_and_call() -> None:
        with interruption.raised(after_a_stop), _logging():
            if groups == RUN_GROUPS:
                return main(read_run())
            given = [read(group) for group in groups]
            main(*given, *([read_stated()] if of_a_run else []))

    return run


def _run(main: Callable[[], None], help_text: Callable[[], str], words: str) -> None:
    """Parses the command line and runs `main`; an error is one line."""

    def parse(argv: list[str]) -> list[str]:
        if {"--help", "-help", "-h", "-?", "--helpshort"} & {*argv[1:]}:
            with contextlib.suppress(BrokenPipeError):  # `--help | head`
                print(help_text(), flush=True)
            os._exit(0)  # Without another flush.
        try:
            rest = flags.FLAGS([argv[0], *command_line.expand(argv[1:])])
            command_line.check_values(flags.FLAGS.flag_values_dict())
            return rest
        except flags.UnrecognizedFlagError as error:
            known = list(flags.FLAGS)
            _exit(command_line.explain_unknown(error.flagname, known, words))
        except (flags.Error, ValueError) as error:
            _exit(command_line.explain_value(_one_line(error)))

    def guarded(argv: list[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            absl_logging.set_verbosity(absl_logging.WARNING)
        try:
            if words and len(argv) > 1:
                # A shell splits `--videos *.mp4` into the flag's value and words.
                named = [flags.FLAGS[words].value, *argv[1:]]
                flags.FLAGS[words].value = ",".join(filter(None, named))
            elif len(argv) > 1:
                raise ValueError(
                    f"Not a flag: {' '.join(argv[1:])}. Put quotes around a pattern "
                    "of files or a value with spaces."
                )
            main()
        except interruption.Interrupted as stop:
            # The convention after a signal.
            _exit(str(stop), 128 + stop.signal_number)
        except Exception as error:
            if not _is_expected(error) or flags.FLAGS.verbosity > 0:
                raise
            module = _module_of_user(error)
            where = f" (--verbosity=1 shows where in {module})" if module else ""
            _exit(_one_line(error) + where)

    app.run(guarded, flags_parser=parse)


def _exit(line: str, code: int = 1) -> NoReturn:
    print(f"{os.path.basename(sys.argv[0])}: {line}", file=sys.stderr)
    sys.exit(code)


def _module_of_user(error: BaseException | None) -> str:
    """The module of `--import_modules` that the error went through, or ""."""
    given = getattr(flags.FLAGS, "import_modules", "") or ""  # None: not stated.
    names = settings.split_names(given)
    while error is not None:
        for frame, _ in traceback.walk_tb(error.__traceback__):
            module = f"{frame.f_globals.get('__name__')}."
            for name in names:
                if module.startswith(f"{name}."):  # Or is inside this package.
                    return name
        error = error.__cause__ or error.__context__
    return ""


def _is_expected(error: BaseException) -> bool:
    """Whether an error is about settings, data or the disk, not a bug."""
    ordinary = isinstance(error, ValueError | OSError | FloatingPointError)
    return ordinary or _is_of_tensorflow(error)
