"""The runs that a table needs: cells, and the commands that fill them.

A grid is a request; its cells are the entries of tables and figures, each with its
train_dir, and do not depend on the data. An experiment is a cell with the settings and
the command of its run.
"""

import dataclasses
import fnmatch
import functools
import itertools
import json
import pathlib
import shlex
import sys
from collections.abc import Sequence
from typing import NamedTuple

from absl import flags

from tools.reproduction import published
from yt8m_distill import flag_groups, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGFILES = ROOT / "flags"
# Shard names of make_synthetic_records.py and of the YouTube-8M downloads.
SHARDS = {
    "train_data_pattern": "train*.tfrecord",
    "validation_data_pattern": "valid*.tfrecord",
}
DATA_SET = "dataset.json"
STUDENT_K, MEAN_FRAMES = "--student_k=", "--mean_frames="
# The default of --networks.
PUBLISHED_NETWORKS = f"{published.NETWORK}yt8m_*"
# Prefixes of flagfiles that are not experiments.
_NO_METHODS = ("data_", "preset_", "training_", published.NETWORK)

# Tables and figures of the paper, and the ablation of the best preset.
PAPER = ("1", "2", "3", "4", "figure2", "figure3")
ABLATION = "ablation"
# One student for all of --frames, and early exit.
BUDGETS = "budgets"
# Additional rows of Table 1, from the paper's later version.
LATER = "cvpr_2019"
# Tables whose rows are the networks of --networks, and the family that they accept;
# empty: all families.
FAMILIES = "families"
BY_NETWORK = {"cvpr_5": "NetVLAD", "cvpr_6": "NeXtVLAD", FAMILIES: ""}


def _rows(frames: str, *methods: str) -> list[tuple[str, str]]:
    return [(method, frames) for method in methods]


# Table → its methods, each with its values of k, which are one of Grid.values_of_k.
_TEACHER = _rows("all frames", published.TEACHER)
_MAIN = published.MAIN_STUDENT
_TABLE_1 = (*published.TABLE_1, *published.CVPR_2019, published.BEST_PRESET)
TABLES = {
    "1": _TEACHER + _rows("each", *_TABLE_1),
    "2": _TEACHER
    + _rows("largest", *published.TABLE_2)
    + _rows("largest", *(m + published.INTERMEDIATE for m in published.TABLE_2)),
    "3": _rows(
        "largest",
        *(f"{m}_{p}_percent" for m in published.TABLE_3 for p in published.PERCENTS),
    ),
    "4": _TEACHER + _rows("each", _MAIN),
    "figure2": _TEACHER + _rows("largest", *published.TABLE_2),
    "figure3": _TEACHER + _rows("largest", _MAIN),
    LATER: [],
    ABLATION: _TEACHER
    + _rows("middle", published.UNIFORM, published.BEST_PRESET, *published.ABLATIONS),
    BUDGETS: _TEACHER + _rows("every", published.BEST_PRESET),
    "cvpr_5": _TEACHER + _rows("each", published.UNIFORM, _MAIN),
    "cvpr_6": _TEACHER + _rows("each", published.UNIFORM, _MAIN),
    FAMILIES: _TEACHER + _rows("each", published.UNIFORM),
}


class Cell(NamedTuple):
    """A method at k frames (None for the teacher, on all frames) with a seed.

    For a student for several k these are joined by commas, `10,30`.

    The method is the name of a flagfile, or of a network's flagfile and another one:
    `network_yt8m_NetVLAD/serial_rep`.
    """

    method: str
    k: int | str | None
    seed: int

    @property
    def teacher(self) -> "Cell":
        """The skyline of the same network and seed."""
        network, slash, _ = self.method.rpartition("/")
        return Cell(network + slash + published.TEACHER, None, self.seed)

    @property
    def name(self) -> str:
        """The name, also of the run's folder: `serial_rep/k30/seed0`."""
        frames = () if self.k is None else (f"k{self.k}",)
        return "/".join((self.method, *frames, f"seed{self.seed}"))

    @property
    def role(self) -> str:
        """The network whose scores the cell shows."""
        return "teacher" if self.k is None else "student"


@dataclasses.dataclass(frozen=True)
class Grid:
    """The tables, values of k, seeds and methods of a report.

    Attributes:
        tables: among TABLES.
        frames: the values of k, ascending; Tables 2 and 3 and the figures use the
            largest, the ablation the middle one.
        seeds: of the runs of every cell; Figure 3 uses the first.
        methods: methods to run; empty for all of the paper's.
        networks: flagfiles of the networks in the tables of BY_NETWORK.
    """

    tables: tuple[str, ...] = PAPER
    frames: tuple[int, ...] = published.FRAMES
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = ()
    networks: tuple[str, ...] = dataclasses.field(
        default_factory=lambda: find_networks([PUBLISHED_NETWORKS])
    )

    def __post_init__(self) -> None:
        known = known_methods()
        for method in self.methods:
            if method not in known:
                raise ValueError(
                    f"--methods={method} is unknown. Known: {', '.join(known)}."
                )
        for table in self.tables:
            if table not in TABLES:
                raise ValueError(
                    f"--table={table} is not one of {', '.join(TABLES)}, all."
                )
            if table in BY_NETWORK and not self.networks_of(table):
                raise ValueError(
                    f"--table={table} needs a {BY_NETWORK[table]}; "
                    f"--networks={','.join(self.networks)} has none."
                )
        if LATER in self.tables and "1" not in self.tables:
            raise ValueError(f"--table={LATER} adds rows to Table 1: name 1, too.")
        if BUDGETS in self.tables and len(self.frames) < 2:
            raise ValueError(
                f"--table={BUDGETS} needs several --frames; received {self.every_k}."
            )

    @property
    def every_k(self) -> str:
        """All values of k, as in --student_k."""
        return ",".join(map(str, self.frames))

    @property
    def largest(self) -> int:
        """The k that is used where the paper has k = 30."""
        return max(self.frames)

    @property
    def middle(self) -> int:
        """The k of the ablation."""
        return self.frames[len(self.frames) // 2]

    @property
    def values_of_k(self) -> dict[str, tuple[int | str | None, ...]]:
        """The values of k that a row of TABLES stands for."""
        return {
            "all frames": (None,),
            "each": self.frames,
            "largest": (self.largest,),
            "middle": (self.middle,),
            "every": (self.every_k,),
        }

    def networks_of(self, table: str) -> list[str]:
        """The networks of a table in BY_NETWORK."""
        family = BY_NETWORK[table]
        return [n for n in self.networks if family in ("", published.family(n))]

    def rows(self, table: str) -> list[tuple[str, int | str | None]]:
        """(method, k) of the rows of a table, restricted to `methods`."""
        wanted = set(self.methods)
        if any(map(_takes_the_skyline, wanted)):
            # The skyline is trained for these students, so it is reported too.
            wanted.add(published.TEACHER)
        hidden = () if LATER in self.tables else published.CVPR_2019
        rows = [
            (method, k)
            for method, frames in TABLES[table]
            for k in self.values_of_k[frames]
            if (method in wanted if wanted else method not in hidden)
        ]
        if table not in BY_NETWORK:
            return rows
        rows.sort(key=lambda row: row[1] or 0)
        return [
            (f"{n}/{method}", k) for n in self.networks_of(table) for method, k in rows
        ]

    def unused_methods(self) -> list[str]:
        """The methods of --methods that are in none of the tables."""
        used = {method for table in self.tables for method, _ in TABLES[table]}
        return [m for m in self.methods if m not in used]

    def cells(self) -> list[Cell]:
        """The distinct cells of all tables, teachers first."""
        cells: dict[Cell, None] = {}
        for table in self.tables:
            seeds = self.seeds[:1] if table == "figure3" else self.seeds
            for method, k in self.rows(table):
                cells.update({Cell(method, k, seed): None for seed in seeds})
        return sorted(cells, key=lambda cell: cell.k is not None)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run of train.py that fills a cell.

    Attributes:
        command: the command as a list of arguments.
        run: the settings of the command.
        teacher: the experiment whose teacher it uses, or None.
    """

    cell: Cell
    command: tuple[str, ...]
    run: settings.RunSettings
    teacher: "Experiment | None" = None

    @property
    def train_dir(self) -> str:
        """The folder of the run."""
        return self.run.training.train_dir


def asked(run: settings.RunSettings) -> tuple[str, ...]:
    """The flags with which eval.py evaluates a run's network, one after another.

    Empty for its largest k; a student for several k is evaluated at each of them and,
    with early exit, at the means between the largest and the smallest.
    """
    numbers = run.sampling.budgets
    means = {sum(pair) / 2 for pair in itertools.pairwise(numbers)} | {*numbers[1:-1]}
    return (
        "",
        *(f"{STUDENT_K}{k}" for k in numbers[:-1]),
        *(f"{MEAN_FRAMES}{mean:g}" for mean in sorted(means)),
    )


def known_methods() -> list[str]:
    """The values of --methods: names of the flagfiles of experiments."""
    names = [path.stem for path in sorted(FLAGFILES.glob("*.flags"))]
    known = [name for name in names if not name.startswith(_NO_METHODS)]
    return [*known, published.BEST_PRESET]


def read_numbers(name: str, text: str, minimum: int) -> tuple[int, ...]:
    """The distinct numbers of a flag's value, ascending.

    Raises:
        ValueError: if it is not a list of whole numbers, or has one below the minimum.
    """
    words = settings.split_names(text)
    if not words or not all(w.isdecimal() and int(w) >= minimum for w in words):
        raise ValueError(
            f"--{name}={text} is not a list of whole numbers of at least {minimum}."
        )
    return tuple(sorted({int(word) for word in words}))


def find_networks(patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of flagfiles of networks that match shell patterns.

    Raises:
        ValueError: if a pattern matches none.
    """
    known = sorted(path.stem for path in FLAGFILES.glob(f"{published.NETWORK}*.flags"))
    matches: dict[str, None] = {}
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise ValueError(
                f"--networks={pattern} is unknown. Known: {', '.join(known)}."
            )
        matches |= dict.fromkeys(names)
    return tuple(matches)


@functools.cache
def _takes_the_skyline(method: str) -> bool:
    """Whether a method's teacher is trained on all training videos."""
    flagfile = f"--flagfile={FLAGFILES / method}.flags"
    run = read_settings([flagfile, "--train_dir=.", "--train_data_pattern=."])
    return run.distillation.mode == "serial" and run.training.train_fraction == 1


def train_dir(output_dir: str, cell: Cell) -> pathlib.Path:
    """The folder of a cell's run."""
    return pathlib.Path(output_dir) / "runs" / cell.name


def data_flags(data: str) -> list[str]:
    """The flags for `--data`, a flagfile or a folder of shards.

    For a folder written by make_synthetic_records.py these include the data settings.

    Raises:
        ValueError: if it is neither, or the folder lacks shards.
    """
    path = pathlib.Path(data).absolute()
    if path.is_file():
        return [f"--flagfile={path}"]
    if not path.is_dir():
        raise ValueError(f"--data={data} is neither a folder nor a flagfile.")
    arguments = []
    if (path / DATA_SET).is_file():
        recipe = json.loads((path / DATA_SET).read_text()).get("recipe", {})
        names = [field.name for field in dataclasses.fields(settings.DataSettings)]
        arguments += [f"--{name}={recipe[name]}" for name in names if name in recipe]
    for flag, pattern in SHARDS.items():
        if not any(path.glob(pattern)):
            raise ValueError(f"--data={data} has no {pattern}.")
        arguments.append(f"--{flag}={path / pattern}")
    return arguments


def split_flags(text: str) -> list[str]:
    """Splits `--base_flags` as a shell does; a file name alone is a flagfile.

    Raises:
        ValueError: for unbalanced quotes.
    """
    try:
        words = shlex.split(text)
    except ValueError as error:
        raise ValueError(f"--base_flags={text}: {error}.") from error
    return [
        f"--flagfile={pathlib.Path(word).absolute()}"
        if not word.startswith("-") and pathlib.Path(word).is_file()
        else word
        for word in words
    ]


def read_settings(arguments: Sequence[str]) -> settings.RunSettings:
    """The settings of a command line of train.py.

    Raises:
        ValueError: for an invalid flag or value.
    """
    values = flags.FlagValues()
    flag_groups.define([flag_groups.Preset, *flag_groups.RUN_GROUPS], values)
    try:
        positional = values(["train.py", *arguments])[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    if positional:
        raise ValueError(f"--base_flags: not a flag: {' '.join(positional)}")
    return flag_groups.read_run(values)


def _experiment(
    cell: Cell,
    output_dir: str,
    base: Sequence[str],
    teacher: Experiment | None = None,
    teacher_cache: str = "",
) -> Experiment:
    names = cell.method.split("/")
    arguments = [*base, *(f"--flagfile={FLAGFILES / name}.flags" for name in names)]
    if cell.k is not None:
        arguments.append(f"--student_k={cell.k}")
    arguments += [f"--seed={cell.seed}", f"--train_dir={train_dir(output_dir, cell)}"]
    run = read_settings(arguments)
    if teacher and _may_use(run, teacher.run):
        arguments.append(f"--teacher_checkpoint={teacher.train_dir}")
        if teacher_cache:
            arguments.append(f"--teacher_cache={teacher_cache}")
        run = read_settings(arguments)
    else:
        teacher = None
    command = (sys.executable, str(ROOT / "yt8m_distill" / "train.py"), *arguments)
    return Experiment(cell, command, run, teacher)


def _may_use(run: settings.RunSettings, teacher: settings.RunSettings) -> bool:
    """Whether a run can use the skyline as its teacher.

    Not in Table 3, where the teacher is trained on a share of the data, too.
    """
    return (
        run.distillation.mode == "serial"
        and settings.is_same("teacher", run.networks.teacher, teacher.networks.teacher)
        and run.training.train_fraction == teacher.training.train_fraction
    )


def make_experiments(
    grid: Grid, output_dir: str, base: Sequence[str], teacher_cache: str = ""
) -> list[Experiment]:
    """The distinct runs of a grid, every teacher before its students.

    Args:
        grid: the tables to fill.
        output_dir: its folder `runs` contains the train_dirs.
        base: flags of every run: data, sizes, epochs.
        teacher_cache: of the serial students that share a teacher; empty for none.

    Raises:
        ValueError: for invalid settings.
    """
    cells = grid.cells()
    teachers = {
        teacher: _experiment(teacher, output_dir, base)
        for teacher in {cell.teacher: None for cell in cells}
    }
    experiments = [
        teachers[cell]
        if cell.k is None
        else _experiment(cell, output_dir, base, teachers[cell.teacher], teacher_cache)
        for cell in cells
    ]
    # Needed also where no table has the teacher as a row.
    needed = [e.teacher for e in experiments if e.teacher]
    return list({e.cell: e for e in [*needed, *experiments]}.values())


def common_settings(output_dir: str, base: Sequence[str]) -> settings.RunSettings:
    """The settings that all runs share, as settings of a teacher's run.

    Raises:
        ValueError: for invalid settings.
    """
    return read_settings([*base, "--mode=teacher", f"--train_dir={output_dir}"])
