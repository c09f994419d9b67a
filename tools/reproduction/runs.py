"""Runs and their results: in folders, or together in one small file, runs.jsonl.

The file is next to a report, and `--known_runs` reads it, so that another command, also
on another machine, can continue without the folders, which are large. Each line has a
`kind`:

    settings   the settings that all runs share, and the test data
    run        the name of a cell, its other settings, and its results
    times      the measurements of Table 4
    points     the points of Figure 3
"""

import dataclasses
import functools
import json
import os
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from tools.reproduction import plan
from yt8m_distill import files, settings
from yt8m_distill.training import checkpoints, manifest, modes

RUNS = "runs.jsonl"
# Measurements in the folder of all runs.
TIMING, POINTS = "timing.json", "figure3/points.json"

# Settings that change no number of a run.
_CHANGEABLE = {*manifest.CHANGEABLE, "num_readers"} - {
    *("early_stop_epochs", "max_bad_fraction")
}
_PATTERNS = ("train_data_pattern", "validation_data_pattern")
# Settings that are paths of this machine.
_PLACES = ("train_dir", "teacher_checkpoint", "teacher_cache", "index_dir")
# Entries of a manifest to keep in the file, besides settings and phases.
_KEPT = ("versions", "machine", "data", "replicas")
# Numbers of an epoch to keep.
_OF_EPOCHS = ("epoch", "step", "gap", "map", "hit_at_one", "perr", "loss")
_DIGITS = 8
_ROLES = ("teacher", "student")


class Run:
    """The state and results of a run, from its manifest.

    Args:
        content: of the manifest; empty if the run has not begun.
        evaluations: role, or what eval.py was asked for → its numbers on the test
            shards.
    """

    def __init__(self, content: dict[str, Any], evaluations: dict[str, dict]):
        self.manifest = content
        self.phases = content.get("phases", {})
        self.evaluations = evaluations

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return bool(self.manifest)

    @functools.cached_property
    def settings(self) -> settings.RunSettings:
        """The settings of the run, which must have begun."""
        return settings.RunSettings.from_dict(self.manifest["settings"])

    @property
    def planned(self) -> list[modes.Phase]:
        """The phases of its mode; the run must have begun."""
        return modes.phases(self.settings, resolved=False)

    @property
    def finished(self) -> bool:
        """Whether all phases of its mode are finished."""
        # In a file, which has no plan, all runs are finished.
        names = [entry["phase"] for entry in self.manifest.get("plan", [])]
        names = names or list(self.phases)
        return self.begun and all(
            self.phases.get(name, {}).get("finished") for name in names
        )

    def differences(self, experiment: plan.Experiment) -> str:
        """The settings that differ from an experiment's, and change its results."""
        both = (self.settings, experiment.run)
        return settings.differences(*(_essence(run.to_dict()) for run in both))

    def has(self, experiment: plan.Experiment, is_evaluated: bool = False) -> bool:
        """Whether it is the finished run of an experiment, with the same settings.

        With `is_evaluated`, also whether it has all evaluations on test shards.
        """
        asked = plan.asked(experiment.run) if is_evaluated else ()
        wanted = {flag or experiment.cell.role for flag in asked}
        has_all = wanted <= self.evaluations.keys()
        return self.finished and has_all and not self.differences(experiment)

    def _results(self, role: str) -> list[dict]:
        """What a manifest has of a role, for each phase that trains it."""
        found = (phase.get("results", {}) for phase in self.phases.values())
        return [results[role] for results in found if role in results]

    def epochs(self, role: str) -> list[dict]:
        """Validation results of a role per epoch, over all its phases."""
        return [e for results in self._results(role) for e in results["epochs"]]

    def epochs_done(self, phase: str) -> int:
        """Number of finished epochs of a phase."""
        results = self.phases.get(phase, {}).get("results", {})
        return max((len(entry["epochs"]) for entry in results.values()), default=0)

    def validation(self, role: str) -> dict:
        """The best epoch by validation GAP of a finished run's network, or nothing.

        From the last phase that trains the role, as eval.py does.
        """
        results = self._results(role) if self.finished else []
        return results[-1].get("best", {}) if results else {}

    def network(self, role: str) -> dict:
        """`parameters`, `frames` and `multiply_adds` of a network, or nothing."""
        entries = [phase.get("networks", {}) for phase in self.phases.values()]
        return next((e[role] for e in entries if role in e), {})


def open_run(train_dir: str | os.PathLike, test_data_pattern: str = "") -> Run:
    """The run in a folder, which may be missing.

    With eval.py's newest evaluations of the best network on the test shards, if any.
    """
    train_dir = pathlib.Path(train_dir)
    path = train_dir / manifest.MANIFEST
    run = Run(json.loads(path.read_text()) if path.is_file() else {}, {})
    path = train_dir / "eval" / "metrics.jsonl"
    if not (test_data_pattern and run.finished and path.is_file()):
        return run
    best = {role: best_prefix(train_dir, role) for role in _ROLES}
    for line in map(json.loads, path.read_text().splitlines()):
        role = line["network"]
        # The folder may have been moved or renamed since.
        tail = os.path.relpath(best[role], train_dir) if best[role] else None
        if (
            tail
            and line["checkpoint"].endswith(tail)
            and line.get("eval_data_pattern") == test_data_pattern
            and not line.get("mean_with")
        ):
            run.evaluations[line.get("asked") or role] = line
    return run


def best_prefix(train_dir: str | os.PathLike, role: str) -> str | None:
    """The checkpoint of a run's best network, or None."""
    train_dir = str(train_dir)
    best = checkpoints.find(train_dir, manifest.read_plan(train_dir), role)
    return best.prefix if best else None


@dataclasses.dataclass
class Archive:
    """Runs and measurements.

    Attributes:
        runs: cell's name → its run.
        times: cell's name → result of measures.time_network.
        points: result of measures.embed, or None.
    """

    runs: dict[str, Run] = dataclasses.field(default_factory=dict)
    times: dict[str, dict] = dataclasses.field(default_factory=dict)
    points: dict[str, Any] | None = None

    def run(self, cell: plan.Cell) -> Run:
        """A cell's run, which may not have begun."""
        return self.runs.get(cell.name) or Run({}, {})

    def missing(
        self, experiments: Sequence[plan.Experiment], is_evaluated: bool = False
    ) -> list[plan.Experiment]:
        """The missing experiments with their teachers, in the same order.

        Those that are not evaluated on test shards are missing, too, if `is_evaluated`.
        """
        wanted = [e for e in experiments if not self.run(e.cell).has(e, is_evaluated)]
        cells = {e.cell for e in wanted} | {e.teacher.cell for e in wanted if e.teacher}
        return [e for e in experiments if e.cell in cells]


def collect(
    output_dir: str,
    cells: Iterable[plan.Cell],
    test_data_pattern: str,
    known: Archive,
) -> Archive:
    """What is in an output_dir, and what is known where it has no finished run."""

    def read_json(name: str) -> dict | None:
        path = pathlib.Path(output_dir) / name
        return json.loads(path.read_text()) if path.is_file() else None

    found = dict(known.runs)
    for cell in cells:
        run = open_run(plan.train_dir(output_dir, cell), test_data_pattern)
        if run.finished or cell.name not in found:
            found[cell.name] = run
    times = {**known.times, **(read_json(TIMING) or {})}
    return Archive(found, times, read_json(POINTS) or known.points)


# ------------------------------------------------------------------------ the file


def file_names(pattern: str) -> str:
    """The patterns of a flag without their folders."""
    names = (pathlib.PurePath(part).name for part in pattern.split(","))
    return ",".join(dict.fromkeys(names))


def portable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Settings without folders; the name of the teacher's folder is kept."""
    teacher = pathlib.PurePath(values["teacher_checkpoint"]).name
    names = {name: file_names(values[name]) for name in _PATTERNS}
    return {
        **values,
        **names,
        **dict.fromkeys(_PLACES, ""),
        "train_dir": ".",  # Required.
        "teacher_checkpoint": teacher,
    }


def _essence(values: Mapping[str, Any]) -> dict[str, Any]:
    """The settings on which the numbers of a run depend."""
    values = {n: v for n, v in portable(values).items() if n not in _CHANGEABLE}
    # Whether the teacher is that of another run.
    return {**values, "teacher_checkpoint": bool(values["teacher_checkpoint"])}


def _rounded(value: Any) -> Any:
    """The same JSON value with numbers of _DIGITS digits."""

    def shorter(number: str) -> float:
        return float(f"{float(number):.{_DIGITS}g}")

    return json.loads(json.dumps(value), parse_float=shorter)


def _without(values: Mapping[str, Any], *names: str) -> dict[str, Any]:
    return {name: value for name, value in values.items() if name not in names}


def _kept_phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    """A phase's entry in a manifest, without folders."""
    kept = dict(phase)
    if "teacher_cache" in kept:
        kept["teacher_cache"] = _without(kept["teacher_cache"], "folder")
    kept["results"] = {
        role: {
            **found,
            "epochs": [
                {n: epoch[n] for n in _OF_EPOCHS if n in epoch}
                for epoch in found.get("epochs", [])
            ],
        }
        for role, found in phase.get("results", {}).items()
    }
    return kept


def _line(name: str, run: Run, shared: Mapping[str, Any]) -> dict[str, Any]:
    """The line of a finished run."""
    values = portable(run.settings.to_dict())
    keys = (*_ROLES, *plan.asked(run.settings)[1:])
    return {
        "kind": "run",
        "name": name,
        "settings": {n: v for n, v in values.items() if shared[n] != v},
        **{n: run.manifest[n] for n in _KEPT if n in run.manifest},
        "phases": {n: _kept_phase(phase) for n, phase in run.phases.items()},
        "evaluations": {
            key: {
                **_without(numbers, "checkpoint"),
                "eval_data_pattern": file_names(numbers["eval_data_pattern"]),
            }
            for key in keys
            if (numbers := run.evaluations.get(key))
        },
    }


def write(
    path: pathlib.Path,
    common: settings.RunSettings,
    test_data_pattern: str,
    found: Archive,
) -> None:
    """Writes the file with the finished runs, atomically.

    Raises:
        ValueError: if the file cannot be written.
    """
    shared, names = portable(common.to_dict()), file_names(test_data_pattern)
    times = {n: _without(rates, "checkpoint") for n, rates in found.times.items()}
    lines = [
        {"kind": "settings", "settings": shared, "test_data_pattern": names},
        *(_line(name, run, shared) for name, run in found.runs.items() if run.finished),
        {"kind": "times", "times": times},
    ]
    if found.points:
        lines.append({"kind": "points", "points": _without(found.points, "source")})
    path.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(_rounded(line)) + "\n" for line in lines)
    files.write_text(str(path), text)


def read(
    path: str, common: settings.RunSettings | None = None, test_data_pattern: str = ""
) -> Archive:
    """Reads the file.

    Args:
        path: of the file; empty for no runs.
        common: required settings; None for any.
        test_data_pattern: shards of the evaluations to take, by their names: folders
            are not kept.

    Raises:
        ValueError: for another file, or other settings.
    """
    found = Archive()
    if not path:
        return found
    where, test = f"--known_runs={path}", file_names(test_data_pattern)
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{where} is not a file.")
    shared: dict[str, Any] = {}
    for number, text in enumerate(pathlib.Path(path).read_text("utf-8").splitlines()):
        try:
            line = json.loads(text)
            if line["kind"] == "settings":
                shared = line["settings"]
                if common is not None:
                    _check(where, line, common, test)
            elif line["kind"] == "run":
                line["settings"] = {**shared, **line["settings"]}
                evaluations = {
                    key: numbers
                    for key, numbers in line["evaluations"].items()
                    if numbers["eval_data_pattern"] == test
                }
                found.runs[line["name"]] = Run(line, evaluations)
            elif line["kind"] == "times":
                found.times = line["times"]
            else:
                found.points = line["points"]
        except (KeyError, TypeError, json.JSONDecodeError) as error:
            raise ValueError(
                f"{where}, line {number + 1}: not written by this program."
            ) from error
    if not shared:
        raise ValueError(f"{where} has no settings: not written by this program.")
    return found


def _check(where: str, line: dict, common: settings.RunSettings, test: str) -> None:
    """Raises ValueError if a file has other settings than required."""
    stored = settings.RunSettings.from_dict(line["settings"]).to_dict()
    # Runs without an evaluation on test data are evaluated later.
    stored_test = line["test_data_pattern"] or test
    before = {**_essence(stored), "test_data_pattern": stored_test}
    now = {**_essence(common.to_dict()), "test_data_pattern": test}
    for of_cells in ("seed", "student_k"):
        before[of_cells] = now[of_cells]
    different = settings.differences(before, now)
    if different:
        raise ValueError(f"{where} was made with other settings: {different}.")
