"""Checkpoints that are damaged: is it seen, named, and the one before taken?"""

import contextlib
import logging
import os
import pathlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterator

import numpy as np
import tensorflow as tf
import tqdm

from tools.torturing import results, runs
from yt8m_distill import settings
from yt8m_distill.models import builder
from yt8m_distill.training import checkpoints, digests, optimizers

PARTS = (".data-00000-of-00001", ".index", digests.SUFFIX)
STATE_FILES = {
    "empty": b"",
    "garbage": bytes(range(256)),
    "pointing to nothing": b'model_checkpoint_path: "ckpt-9"\n',
    "pointing to the one before": b'model_checkpoint_path: "ckpt-1"\n',
    "gone": None,
}


def flip(content: bytes, rng: random.Random) -> bytes:
    """One bit of one byte."""
    position = rng.randrange(len(content))
    changed = content[position] ^ (1 << rng.randrange(8))
    return content[:position] + bytes([changed]) + content[position + 1 :]


def cut(content: bytes, rng: random.Random) -> bytes:
    """A part of it from its beginning, as a full disk leaves it."""
    return content[: rng.randrange(1, len(content))]


def zeros(content: bytes, rng: random.Random) -> bytes:
    """Zeros from somewhere on, as a power failure leaves it."""
    begin = rng.randrange(len(content))
    return content[:begin] + bytes(len(content) - begin)


HARMS: dict[str, Callable] = {
    "with a flipped bit": flip,
    "cut short": cut,
    "with zeros at the end": zeros,
    "empty": lambda content, rng: b"",
    "gone": lambda content, rng: None,
}


class _Lines(logging.Handler):
    """Keeps the package's warnings."""

    def __init__(self):
        super().__init__()
        self.text = ""

    def emit(self, record: logging.LogRecord) -> None:
        self.text += record.getMessage() + "\n"


class Subject:
    """A network, its optimizer and the state that holds them.

    Attributes:
        folder: of a phase with two checkpoints.
        expected: step → every number of the state.
    """

    def __init__(self, folder: pathlib.Path):
        run = settings.RunSettings.from_dict(
            {
                "mode": "baseline",
                "student": "HierarchicalLSTM(cells=8, layers=1, block_len=3)",
                "feature_names": "rgb,audio",
                "feature_sizes": "16,8",
                "num_classes": 10,
                "max_frames": 24,
                "student_k": 6,
                "train_dir": str(folder),
                "train_data_pattern": "none",
            }
        )
        self.network = builder.build_networks(run, ["student"]).student
        rate = optimizers.LearningRate(run.optimization, 8, 10)
        self.optimizer = optimizers.build_optimizer(run.optimization, rate)
        optimizers.build_variables(self.optimizer, self.network.trainable_variables)
        self.folder = folder
        self.expected = {}
        state = self.state(folder)
        for step in (1, 2):
            self.fill(step)
            state.step.assign(step)
            state.save()
            self.expected[step] = self.numbers()
        checkpoints.write_best(
            str(folder / "best"), "student", self.network, {"epoch": 1, "step": 2}
        )

    def state(self, folder: pathlib.Path) -> checkpoints.State:
        """As another process would make it."""
        objects = {"student": self.network, "student_optimizer": self.optimizer}
        return checkpoints.State(str(folder), objects, 3)

    def fill(self, seed: int) -> None:
        """Other numbers."""
        random_ = np.random.default_rng(seed)
        for variable in self.variables:
            if "float" in str(variable.dtype):
                variable.assign(random_.normal(size=variable.shape))

    @property
    def variables(self) -> list:
        """Of the network and the optimizer."""
        slots = self.optimizer.variables
        return [*self.network.weights, *(slots() if callable(slots) else slots)]

    def numbers(self) -> list[bytes]:
        """Their values."""
        return [variable.numpy().tobytes() for variable in self.variables]


@contextlib.contextmanager
def _damaged(
    subject: Subject, part: str, harm: Callable, rng: random.Random, prefix: str
) -> Iterator[pathlib.Path]:
    """A copy of the subject's folder in which one file is damaged; removed then."""
    copy = runs.copy(subject.folder, subject.folder.with_name("copy"))
    path = copy / (prefix + part)
    before = path.read_bytes()
    content = harm(before, rng)
    if content == before:  # Zeros were there before.
        content = flip(content, rng)
    if content is None:
        path.unlink()
    else:
        path.write_bytes(content)
    try:
        yield copy
    finally:
        shutil.rmtree(copy)


def resume(subject: Subject, folder: pathlib.Path, lines: _Lines, path: str, step: int):
    """What is lost when a run goes on from a folder; None if nothing is.

    Args:
        subject: whose variables are restored.
        folder: of the phase.
        lines: the warnings.
        path: the file that must be named; empty: none.
        step: of the checkpoint that is to be taken.
    """
    subject.fill(99)
    lines.text = ""
    try:
        prefix = subject.state(folder).restore()
    except ValueError as error:
        return f"refused: {error}"
    if prefix is None or not prefix.endswith(f"ckpt-{step}"):
        return f"took {prefix}"
    if subject.numbers() != subject.expected[step]:
        return f"{prefix} was restored with other numbers"
    if path not in lines.text:
        return f"{path} was not named"
    return None


def use_best(subject: Subject, folder: pathlib.Path, path: str) -> str | None:
    """What is lost when a damaged best network is used; None if it is refused."""
    subject.fill(99)
    try:
        prefix = str(folder / "best" / "network-2")
        checkpoints.restore_network(prefix, "student", subject.network)
    except ValueError as error:
        return None if path in str(error) else f"{path} was not named: {error}"
    return "it was loaded"


def without_digest(subject: Subject, folder: pathlib.Path) -> str:
    """What TensorFlow alone makes of it: `seen`, `harmless` or `silent`."""
    subject.fill(99)
    state = subject.state(folder)
    try:
        prefix = str(folder / "checkpoints" / "ckpt-2")
        state.checkpoint.read(prefix).assert_existing_objects_matched()
    except Exception:  # Whatever it is: it was seen.
        return "seen"
    return "harmless" if subject.numbers() == subject.expected[2] else "silent"


def rows(quick: bool, seed: int = 0) -> list[results.Row]:
    """The table's rows; `quick`: one time each."""
    table = []
    log = logging.getLogger("yt8m_distill")
    lines = _Lines()
    log.addHandler(lines)
    tf.get_logger().setLevel(logging.ERROR)
    propagated, log.propagate = log.propagate, False
    bar = tqdm.tqdm(total=len(HARMS) * 2 + 1, unit="kind of damage")
    try:
        with bar, tempfile.TemporaryDirectory() as name:
            subject = Subject(pathlib.Path(name) / "phase")
            for row in (_resume_row, _best_row):
                for what, harm in HARMS.items():
                    table.append(row(subject, what, harm, quick, seed, lines))
                    bar.update()
            table.append(_state_file_row(subject, lines))
            bar.update()
    finally:
        log.removeHandler(lines)
        log.propagate = propagated
    return table


def _times(what: str, quick: bool) -> int:
    """How often: what is not random need not be repeated."""
    return 1 if quick or what in ("empty", "gone") else 100


def _resume_row(subject, what, harm, quick, seed, lines) -> results.Row:
    rng = random.Random(f"{seed} state {what}")
    lost, alone, tried = [], [], 0
    for part in PARTS:
        # Without its digest a checkpoint is as one of an earlier version.
        gone = part == digests.SUFFIX and what == "gone"
        for _ in range(_times(what, quick)):
            tried += 1
            with _damaged(subject, part, harm, rng, "checkpoints/ckpt-2") as copy:
                path = str(copy / f"checkpoints/ckpt-2{part}")
                step, named = (2, "") if gone else (1, path)
                problem = resume(subject, copy, lines, named, step)
                lost += [problem] if problem else []
                if part != digests.SUFFIX:
                    os.remove(copy / f"checkpoints/ckpt-2{digests.SUFFIX}")
                    alone.append(without_digest(subject, copy))
    seen, harmless, silent = map(alone.count, ("seen", "harmless", "silent"))
    remark = (
        f"named, and the one before taken. Without digests, of {len(alone)} in data or "
        f"index TensorFlow sees {seen}, restores the right numbers in {harmless} and "
        f"wrong ones in {silent}"
    )
    if what == "gone":
        remark += "; without the digest alone the checkpoint itself is taken"
    return results.Row(
        f"state: data, index or digest {what}",
        tried,
        tried - len(lost),
        "; ".join([*lost[:1], remark]),
    )


def _best_row(subject, what, harm, quick, seed, lines) -> results.Row:
    rng = random.Random(f"{seed} best {what}")
    lost, tried = [], 0
    for part in PARTS:
        if part == digests.SUFFIX and what == "gone":
            continue
        for _ in range(_times(what, quick)):
            tried += 1
            with _damaged(subject, part, harm, rng, "best/network-2") as copy:
                problem = use_best(subject, copy, str(copy / f"best/network-2{part}"))
                lost += [problem] if problem else []
    remark = lost[0] if lost else "refused in a line that names the file"
    name = f"best network: data, index or digest {what}"
    return results.Row(name, tried, tried - len(lost), remark)


def _state_file_row(subject, lines) -> results.Row:
    lost = []
    for what, content in STATE_FILES.items():
        copy = runs.copy(subject.folder, subject.folder.with_name("copy"))
        path = copy / "checkpoints" / "checkpoint"
        path.unlink()
        if content is not None:
            path.write_bytes(content)
        problem = resume(subject, copy, lines, "", 2)
        lost += [f"{what}: {problem}"] if problem else []
        shutil.rmtree(copy)
    return results.Row(
        f"TensorFlow's file `checkpoint`: {', '.join(STATE_FILES)}",
        len(STATE_FILES),
        len(STATE_FILES) - len(lost),
        "; ".join(lost) or "the newest is taken",
    )
