"""Which runs a table needs: cells, and the commands that fill them.

A grid says what was asked for; its cells are the entries of tables and figures, each
with its train_dir, and need no data to be named. An experiment is a cell with the
settings and the command of its run.
"""

import dataclasses
import fnmatch
import json
import pathlib
import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from absl import flags

from tools.reproduction import published
from yt8m_distill import flag_groups, settings

ROOT = pathlib.Path(__file__).resolve().parents[2]
FLAGFILES = ROOT / "flags"
PLAN = "plan.json"
# The paper's, and what the best preset is made of.
PAPER = ("1", "2", "3", "4", "figure2", "figure3")
ABLATION = "ablation"
# More rows for Table 1: those of the paper's later version.
LATER = "cvpr_2019"
# Tables whose rows are networks of --networks, and the family that they take; empty:
# all of them.
FAMILIES = "families"
BY_NETWORK = {"cvpr_5": "NetVLAD", "cvpr_6": "NeXtVLAD", FAMILIES: ""}
TABLES = (*PAPER, LATER, ABLATION, *BY_NETWORK)
# --networks, unless it is given.
PUBLISHED_NETWORKS = (f"{published.NETWORK}yt8m_*",)
# What make_synthetic_records.py and the YouTube-8M downloads call their shards.
TRAIN_SHARDS, VALIDATION_SHARDS = "train*.tfrecord", "valid*.tfrecord"
SHARDS = {
    "train_data_pattern": TRAIN_SHARDS,
    "validation_data_pattern": VALIDATION_SHARDS,
}
DATA_SET = "dataset.json"
# Flagfiles that are no experiments by themselves.
_NO_METHODS = ("data_", "preset_", "training_", published.NETWORK)


class Cell(NamedTuple):
    """A method at k frames (None: all of them, the teacher) under a seed.

    The method is a flagfile's name, or two of them, `network_yt8m_NetVLAD/serial_rep`:
    that of the network first.
    """

    method: str
    k: int | None
    seed: int

    @property
    def teacher(self) -> "Cell":
        """The skyline of the same network and seed."""
        network, slash, _ = self.method.rpartition("/")
        return Cell(network + slash + published.TEACHER, None, self.seed)

    @property
    def name(self) -> str:
        """Also the run's folder: `serial_rep/k30/seed0`."""
        frames = () if self.k is None else (f"k{self.k}",)
        return "/".join((self.method, *frames, f"seed{self.seed}"))


@dataclasses.dataclass(frozen=True)
class Grid:
    """What is asked for.

    Attributes:
        tables: among TABLES.
        frames: the k, rising; the largest one stands in Tables 2, 3 and the figures,
            the middle one in the ablation.
        seeds: of the runs of every cell; Figure 3 takes the first.
        methods: those that are to be run; empty: all of the paper's.
        left_out: those that are not, whatever else is asked for.
        networks: flagfiles of the networks in the tables of BY_NETWORK.
    """

    tables: tuple[str, ...] = PAPER
    frames: tuple[int, ...] = published.FRAMES
    seeds: tuple[int, ...] = (0,)
    methods: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    networks: tuple[str, ...] = dataclasses.field(
        default_factory=lambda: find_networks(PUBLISHED_NETWORKS)
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
                    f"--table={table} is none of {', '.join(TABLES)} and all."
                )
            if table in BY_NETWORK and not self.networks_of(table):
                raise ValueError(
                    f"--table={table} takes a {BY_NETWORK[table]}; "
                    f"--networks={','.join(self.networks)} has none."
                )
        if LATER in self.tables and "1" not in self.tables:
            raise ValueError(f"--table={LATER} has rows of Table 1: name 1, too.")
        if not self.frames or min(self.frames) < 1:
            raise ValueError("--frames takes numbers from 1 on.")
        if not self.seeds or min(self.seeds) < 0:
            raise ValueError("--seeds takes numbers from 0 on.")

    @property
    def largest(self) -> int:
        """The k of everything that the paper did at k = 30."""
        return max(self.frames)

    @property
    def middle(self) -> int:
        """The k of the ablation."""
        return self.frames[len(self.frames) // 2]

    def networks_of(self, table: str) -> list[str]:
        """The networks of a table in BY_NETWORK."""
        wanted = BY_NETWORK[table]
        return [n for n in self.networks if wanted in ("", published.family(n))]

    def rows(self, table: str) -> list[tuple[str, int | None]]:
        """(method, k) of one table, as far as the methods are asked for."""
        largest = self.largest
        teacher = [(published.TEACHER, None)]
        guided = [(m, largest) for m in published.TABLE_2]
        main = published.MAIN_STUDENT
        if table == "1":
            best = [published.BEST_PRESET] if best_preset().is_file() else []
            later = LATER in self.tables
            wished = [m for m in published.CVPR_2019 if later or m in self.methods]
            names = [*published.TABLE_1, *wished, *best]
            rows = teacher + [(m, k) for m in names for k in self.frames]
        elif table == "2":
            other = [(m + published.INTERMEDIATE, k) for m, k in guided]
            rows = teacher + guided + other
        elif table == "3":
            rows = [
                (f"{name}_{percent}_percent", largest)
                for name in published.TABLE_3
                for percent in published.PERCENTS
            ]
        elif table == "4":
            rows = teacher + [(main, k) for k in self.frames]
        elif table == "figure2":
            rows = teacher + guided
        elif table == ABLATION:
            names = (published.UNIFORM, published.BEST_PRESET, *published.ABLATIONS)
            rows = teacher + [(m, self.middle) for m in names]
        elif table in BY_NETWORK:
            names = [published.UNIFORM, main][: 1 if table == FAMILIES else 2]
            of_one = teacher + [(m, k) for k in self.frames for m in names]
            rows = [
                (f"{network}/{method}", k)
                for network in self.networks_of(table)
                for method, k in of_one
            ]
        elif table == LATER:
            rows = []
        else:
            rows = [*teacher, (main, largest)]
        wanted = set(self.methods)
        if any(map(_takes_the_skyline, wanted)):
            # Trained for these students, it is reported too.
            wanted.add(published.TEACHER)
        return [
            row
            for row in rows
            if row[0] not in self.left_out
            and (not wanted or row[0].rpartition("/")[2] in wanted)
        ]

    def unused_methods(self) -> list[str]:
        """The methods that are asked for, but in none of the tables."""
        rows = (row for table in self.tables for row in self.rows(table))
        found = {method.rpartition("/")[2] for method, _ in rows}
        return [m for m in self.methods if m not in found and m not in self.left_out]

    def cells(self) -> list[Cell]:
        """All cells of all tables, each once; the teachers of others come first."""
        found: dict[Cell, None] = {}
        for table in self.tables:
            seeds = self.seeds[:1] if table == "figure3" else self.seeds
            for method, k in self.rows(table):
                found.update({Cell(method, k, seed): None for seed in seeds})
        return sorted(found, key=lambda cell: cell.k is not None)


@dataclasses.dataclass(frozen=True)
class Experiment:
    """A run of train.py that fills a cell.

    Attributes:
        cell: what it fills.
        train_dir: absolute.
        command: words of the command.
        run: the settings that the command gives.
        teacher: the experiment whose teacher it uses, or None.
    """

    cell: Cell
    train_dir: str
    command: tuple[str, ...]
    run: settings.RunSettings
    teacher: "Experiment | None" = None

    @property
    def role(self) -> str:
        """The network whose scores the cell shows."""
        return "teacher" if self.cell.k is None else "student"


def best_preset() -> pathlib.Path:
    """The flagfile of the best student; it need not exist."""
    return FLAGFILES / f"{published.BEST_PRESET}.flags"


def known_methods() -> list[str]:
    """Names that --methods takes: those of the flagfiles of experiments."""
    names = [path.stem for path in sorted(FLAGFILES.glob("*.flags"))]
    known = [name for name in names if not name.startswith(_NO_METHODS)]
    return known + [published.BEST_PRESET] * best_preset().is_file()


def find_networks(patterns: Sequence[str]) -> tuple[str, ...]:
    """Names of flagfiles of networks; a `*` in a pattern stands for anything.

    Raises:
        ValueError: if a pattern finds none.
    """
    known = sorted(path.stem for path in FLAGFILES.glob(f"{published.NETWORK}*.flags"))
    found: dict[str, None] = {}
    for pattern in patterns:
        names = fnmatch.filter(known, pattern)
        if not names:
            raise ValueError(
                f"--networks={pattern} is unknown. Known: {', '.join(known)}."
            )
        found |= dict.fromkeys(names)
    return tuple(found)


def _takes_the_skyline(method: str) -> bool:
    """Whether a method's flagfile asks for a teacher that saw all training videos."""
    text = (FLAGFILES / f"{method}.flags").read_text("utf-8")
    words = [line for line in text.splitlines() if not line.startswith("#")]
    fraction = any(word.startswith("--train_fraction") for word in words)
    modes = [word for word in words if word.startswith("--mode=")]
    serial = modes == ["--mode=serial"] or (not modes and "--preset=best" in words)
    return serial and not fraction


def train_dir(output_dir: str, cell: Cell) -> pathlib.Path:
    """Where a cell's run is."""
    return pathlib.Path(output_dir) / "runs" / cell.name


def data_flags(data: str) -> list[str]:
    """The flags that `--data` stands for: a flagfile, or a folder of shards.

    A folder that make_synthetic_records.py filled also says what its records hold.

    Raises:
        ValueError: if it is neither, or the folder lacks shards.
    """
    path = pathlib.Path(data).absolute()
    if path.is_file():
        return [f"--flagfile={path}"]
    if not path.is_dir():
        raise ValueError(f"--data={data} is neither a folder nor a flagfile.")
    found = []
    if (path / DATA_SET).is_file():
        recipe = json.loads((path / DATA_SET).read_text()).get("recipe", {})
        names = [field.name for field in dataclasses.fields(settings.DataSettings)]
        found += [f"--{name}={recipe[name]}" for name in names if name in recipe]
    for flag, pattern in SHARDS.items():
        if not any(path.glob(pattern)):
            raise ValueError(f"--data={data} has no {pattern}.")
        found.append(f"--{flag}={path / pattern}")
    return found


def split_flags(text: str) -> list[str]:
    """`--base_flags`: flags as in a shell; a file's name alone is a flagfile.

    Raises:
        ValueError: for quotes without an end.
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


def suited(grid: Grid, base: Sequence[str]) -> Grid:
    """The grid without the best preset's rows, if the base flags have a preset.

    A run has one preset. Beside a base of `--preset=authors` the best one would have
    another teacher than the skyline of the same report.

    Raises:
        ValueError: if just these rows are asked for.
    """
    name = parse(base)["preset"]
    if not name.present or name.value == "paper":
        return grid
    ours = (published.BEST_PRESET, *published.ABLATIONS)
    asked = [ABLATION] * (ABLATION in grid.tables)
    asked += [method for method in grid.methods if method in ours]
    if asked:
        raise ValueError(
            f"{asked[0]} is of the best preset, which does not go together with "
            f"--preset={name.value} in --base_flags."
        )
    return dataclasses.replace(grid, left_out=ours)


def parse(arguments: Sequence[str]) -> flags.FlagValues:
    """The flags of train.py on a command line.

    Raises:
        ValueError: for a flag or a value that train.py would refuse.
    """
    values = flags.FlagValues()
    flag_groups.define(flag_groups.RUN_GROUPS, values)
    flag_groups.define_preset(values)
    try:
        strange = values(["train.py", *arguments])[1:]
    except flags.Error as error:
        raise ValueError(" ".join(str(error).split())) from error
    if strange:
        raise ValueError(f"--base_flags: not a flag: {' '.join(strange)}")
    return values


def read_settings(arguments: Sequence[str]) -> settings.RunSettings:
    """The settings that a command line of train.py gives.

    Raises:
        ValueError: for a flag or a value that train.py would refuse.
    """
    return flag_groups.read_run(parse(arguments))


def _experiment(
    cell: Cell,
    output_dir: str,
    base: Sequence[str],
    teacher: Experiment | None = None,
    teacher_cache: str = "",
) -> Experiment:
    folder = str(train_dir(output_dir, cell))
    names = cell.method.split("/")
    arguments = [*base, *(f"--flagfile={FLAGFILES / name}.flags" for name in names)]
    if cell.k is not None:
        arguments.append(f"--student_k={cell.k}")
    arguments += [f"--seed={cell.seed}", f"--train_dir={folder}"]
    run = read_settings(arguments)
    if teacher and _may_use(run, teacher.run):
        arguments.append(f"--teacher_checkpoint={teacher.train_dir}")
        if teacher_cache:
            arguments.append(f"--teacher_cache={teacher_cache}")
        run = read_settings(arguments)
    else:
        teacher = None
    command = (sys.executable, str(ROOT / "yt8m_distill" / "train.py"), *arguments)
    return Experiment(cell, folder, command, run, teacher)


def _may_use(run: settings.RunSettings, teacher: settings.RunSettings) -> bool:
    """Whether a run can take its teacher from the skyline's.

    Not in Table 3: there the teacher too sees a share of the training data.
    """
    return (
        run.distillation.mode == "serial"
        and settings.is_same("teacher", run.networks.teacher, teacher.networks.teacher)
        and run.training.train_fraction == teacher.training.train_fraction
    )


def make_experiments(
    grid: Grid, output_dir: str, base: Sequence[str], teacher_cache: str = ""
) -> list[Experiment]:
    """The runs of a grid, each once, every teacher before its students.

    Args:
        grid: what is asked for.
        output_dir: its folder `runs` holds the train_dirs.
        base: flags of every run: data, sizes, epochs.
        teacher_cache: of the serial students that share a teacher; empty: none.

    Raises:
        ValueError: for settings that train.py would refuse.
    """
    cells = grid.cells()
    teachers = {
        teacher: _experiment(teacher, output_dir, base)
        for teacher in {cell.teacher: None for cell in cells}
    }
    made = [
        teachers[cell]
        if cell.k is None
        else _experiment(cell, output_dir, base, teachers[cell.teacher], teacher_cache)
        for cell in cells
    ]
    # Figure 3 takes one seed's cells alone, a serial student its own teacher.
    needed = [e.teacher for e in made if e.teacher]
    return list({e.cell: e for e in [*needed, *made]}.values())


def common_settings(output_dir: str, base: Sequence[str]) -> settings.RunSettings:
    """The settings that all runs have in common, in those of a teacher.

    Raises:
        ValueError: for settings that train.py would refuse.
    """
    return read_settings([*base, "--mode=teacher", f"--train_dir={output_dir}"])


def check_settings(
    output_dir: str, run: settings.RunSettings, test_data_pattern: str
) -> None:
    """Compares with the settings under which an output_dir began.

    Raises:
        ValueError: if some differ; the message lists them.
    """
    path = pathlib.Path(output_dir) / PLAN
    if not path.is_file():
        return
    before = json.loads(path.read_text())
    stored = settings.RunSettings.from_dict(before["settings"]).to_dict()
    stored["test_data_pattern"] = before["test_data_pattern"] or test_data_pattern
    wanted = {**run.to_dict(), "test_data_pattern": test_data_pattern}
    different = settings.differences(*(deciding(v) for v in (stored, wanted)))
    if different:
        raise ValueError(
            f"--output_dir={output_dir} was made with other settings: {different}. Use "
            "the old ones or another --output_dir."
        )


# Settings that change no result, and those that every cell has for itself.
CHANGEABLE = {
    *("train_dir", "seed", "student_k", "num_gpus", "num_readers", "use_index"),
    *("index_dir", "log_steps", "steps_per_loop", "save_checkpoint_minutes"),
    *("max_checkpoints",),
}


def deciding(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell's settings, those that all cells share and that decide results."""
    return {name: v for name, v in values.items() if name not in CHANGEABLE}


def write(
    output_dir: str, grid: Grid, run: settings.RunSettings, test_data_pattern: str
) -> None:
    """Notes in plan.json what was asked for, and the settings of every run."""
    path = pathlib.Path(output_dir) / PLAN
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "grid": dataclasses.asdict(grid),
        "test_data_pattern": test_data_pattern,
        "settings": run.to_dict(),
    }
    path.write_text(json.dumps(content, indent=2) + "\n")


def read(output_dir: str) -> tuple[Grid, settings.RunSettings, str]:
    """The grid, the common settings and the test_data_pattern of an output_dir.

    Raises:
        ValueError: if there was no plan yet.
    """
    path = pathlib.Path(output_dir) / PLAN
    if not path.is_file():
        raise ValueError(f"--output_dir={output_dir} has no {PLAN}: nothing ran there.")
    content = json.loads(path.read_text())
    grid = {name: tuple(value) for name, value in content["grid"].items()}
    common = settings.RunSettings.from_dict(content["settings"])
    return Grid(**grid), common, content["test_data_pattern"]
