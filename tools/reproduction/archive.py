"""The finished runs of a report in one small file, runs.jsonl.

It is next to the report, and `--known_runs` reads it, so that another command, also on
another machine, can continue without the folders of the runs, which are large. Each
line has a `kind`:

    settings   the settings that all runs share, and the test data
    run        the name of a cell, its other settings, and its results
    times      the measurements of Table 4
    points     the points of Figure 3
"""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from tools.reproduction import plan, runs
from yt8m_distill import files, settings

RUNS = "runs.jsonl"
# Entries of a manifest to keep, besides settings and phases.
_KEPT = ("versions", "machine", "data", "replicas")
_PATTERNS = ("train_data_pattern", "validation_data_pattern")
# Numbers of an epoch to keep.
_OF_EPOCHS = ("epoch", "step", "gap", "map", "hit_at_one", "perr", "loss")
# Settings that are paths of this machine and affect no result.
_PLACES = ("train_dir", "teacher_checkpoint", "teacher_cache", "index_dir")
# Settings that affect no result of a run, besides those.
_CHANGEABLE = (
    *("num_gpus", "num_readers", "use_index", "log_steps", "steps_per_loop"),
    *("save_checkpoint_minutes", "max_checkpoints"),
)
_DIGITS = 8
_ROLES = ("teacher", "student")


class KeptRun(runs.Run):
    """A finished run, read from a file.

    Args:
        content: as in a manifest, with `evaluations`: role, or what eval.py was asked
            for → its numbers.
    """

    def __init__(self, content: dict[str, Any]):
        self.manifest = content
        self.phases = content["phases"]

    def evaluation(self, role: str, data_pattern: str, asked: str = "") -> dict | None:
        """eval.py's evaluation of the role's network on that data, or None.

        The names of the shards are compared; their folder is not kept.
        """
        found = self.manifest["evaluations"].get(asked or role, {})
        same = found.get("eval_data_pattern") == file_names(data_pattern)
        return found if same else None


@dataclasses.dataclass
class Archive:
    """The contents of such a file.

    Attributes:
        runs: cell's name → its run.
        times: cell's name → rates, as in measures.TIMING.
        points: as in figures.POINTS, or None.
    """

    runs: dict[str, KeptRun] = dataclasses.field(default_factory=dict)
    times: dict[str, dict] = dataclasses.field(default_factory=dict)
    points: dict[str, Any] | None = None

    def has(self, experiment: plan.Experiment, test_data_pattern: str = "") -> bool:
        """Whether it has the run of an experiment, with the same settings.

        Args:
            experiment: the experiment.
            test_data_pattern: the data of its evaluation; empty for none.
        """
        run, test = self.runs.get(experiment.cell.name), test_data_pattern
        if run is None:
            return False
        asked = plan.asked(experiment.run) if test else ()
        if not all(run.evaluation(experiment.role, test, flag) for flag in asked):
            return False
        found, wanted = (_essence(r.to_dict()) for r in (run.settings, experiment.run))
        return not settings.differences(found, wanted)

    def missing(
        self, experiments: Sequence[plan.Experiment], test_data_pattern: str = ""
    ) -> list[plan.Experiment]:
        """The missing experiments with their teachers, in the same order."""
        wanted = [e for e in experiments if not self.has(e, test_data_pattern)]
        cells = {e.cell for e in wanted} | {e.teacher.cell for e in wanted if e.teacher}
        return [e for e in experiments if e.cell in cells]


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
    values, left_out = portable(values), (*_CHANGEABLE, *_PLACES)
    essence = {name: v for name, v in values.items() if name not in left_out}
    # Whether the teacher is that of another run.
    return {**essence, "teacher_checkpoint": bool(values["teacher_checkpoint"])}


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.{_DIGITS}g}")
    if isinstance(value, Mapping):
        return {key: _rounded(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_rounded(entry) for entry in value]
    return value


def _kept_evaluation(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """An evaluation by eval.py, without folders."""
    kept = {name: value for name, value in numbers.items() if name != "checkpoint"}
    return {**kept, "eval_data_pattern": file_names(numbers["eval_data_pattern"])}


def _kept_phase(phase: Mapping[str, Any]) -> dict[str, Any]:
    """A phase's entry in a manifest, without folders."""
    kept = dict(phase)
    if "teacher_cache" in kept:
        cache = kept["teacher_cache"]
        kept["teacher_cache"] = {n: v for n, v in cache.items() if n != "folder"}
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


def write(
    path: pathlib.Path,
    common: settings.RunSettings,
    test_data_pattern: str,
    found: Archive,
) -> None:
    """Writes the file, atomically.

    Args:
        path: of the file.
        common: see plan.common_settings.
        test_data_pattern: shards of the evaluations, or empty.
        found: finished runs, from folders or from such a file.

    Raises:
        ValueError: if the file cannot be written.
    """
    shared = portable(common.to_dict())
    lines: list[dict[str, Any]] = [
        {
            "kind": "settings",
            "settings": shared,
            "test_data_pattern": file_names(test_data_pattern),
        }
    ]
    for name, run in found.runs.items():
        values = portable(run.settings.to_dict())
        evaluations = {r: run.evaluation(r, test_data_pattern) for r in _ROLES}
        for asked in plan.asked(run.settings)[1:]:
            of_student = (_ROLES[-1], test_data_pattern, asked)
            evaluations[asked] = run.evaluation(*of_student)
        lines.append(
            {
                "kind": "run",
                "name": name,
                "settings": {n: v for n, v in values.items() if shared[n] != v},
                **{n: run.manifest[n] for n in _KEPT if n in run.manifest},
                "phases": {n: _kept_phase(phase) for n, phase in run.phases.items()},
                "evaluations": {
                    role: _kept_evaluation(numbers)
                    for role, numbers in evaluations.items()
                    if numbers
                },
            }
        )
    times = {
        name: {n: v for n, v in rates.items() if n != "checkpoint"}
        for name, rates in found.times.items()
    }
    lines.append({"kind": "times", "times": times})
    if found.points:
        points = {n: v for n, v in found.points.items() if n != "source"}
        lines.append({"kind": "points", "points": points})
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
        test_data_pattern: see `common`.

    Raises:
        ValueError: for another file, or other settings.
    """
    found = Archive()
    if not path:
        return found
    where = f"--known_runs={path}"
    if not pathlib.Path(path).is_file():
        raise ValueError(f"{where} is not a file.")
    shared: dict[str, Any] = {}
    for number, text in enumerate(pathlib.Path(path).read_text("utf-8").splitlines()):
        try:
            line = json.loads(text)
            if line["kind"] == "settings":
                shared = line["settings"]
                if common is not None:
                    _check(where, line, common, test_data_pattern)
            elif line["kind"] == "run":
                line["settings"] = {**shared, **line["settings"]}
                found.runs[line["name"]] = KeptRun(line)
            elif line["kind"] == "times":
                found.times = line["times"]
            elif line["kind"] == "points":
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
    before = {**_essence(stored), "test_data_pattern": line["test_data_pattern"]}
    now = {**_essence(common.to_dict()), "test_data_pattern": file_names(test)}
    # Runs without an evaluation on test data are evaluated later.
    before["test_data_pattern"] = before["test_data_pattern"] or file_names(test)
    for of_cells in ("seed", "student_k"):
        before[of_cells] = now[of_cells]
    different = settings.differences(before, now)
    if different:
        raise ValueError(f"{where} was made with other settings: {different}.")
