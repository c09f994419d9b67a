"""The state and results of a run, read from its files."""

import functools
import json
import os
import pathlib

from yt8m_distill import settings
from yt8m_distill.training import checkpoints, manifest, modes


class Run:
    """A train_dir: settings, phases, results; reads the files once.

    Args:
        train_dir: may be missing or contain an unfinished run.
    """

    def __init__(self, train_dir: str | os.PathLike):
        self.train_dir = pathlib.Path(train_dir)
        path = self.train_dir / manifest.MANIFEST
        self.manifest = json.loads(path.read_text()) if path.is_file() else {}
        self.phases = self.manifest.get("phases", {})

    @property
    def begun(self) -> bool:
        """Whether there is a manifest."""
        return bool(self.manifest)

    @functools.cached_property
    def settings(self) -> settings.RunSettings:
        """The settings of the run, which must have begun."""
        return settings.RunSettings.from_dict(self.manifest["settings"])

    @functools.cached_property
    def planned(self) -> list[modes.Phase]:
        """The phases of its mode; the run must have begun."""
        return modes.phases(self.settings, resolved=False)

    @functools.cached_property
    def finished(self) -> bool:
        """Whether all phases of its mode are finished."""
        return self.begun and all(
            self.phases.get(phase.name, {}).get("finished") for phase in self.planned
        )

    def epochs(self, role: str) -> list[dict]:
        """Validation results of a role per epoch, over all its phases."""
        if not self.begun:
            return []
        phases = self._phases_of(role)
        return [epoch for p in phases for epoch in self._results(p.name, role)]

    def _phases_of(self, role: str) -> list[modes.Phase]:
        """The phases that train a role."""
        return [p for p in self.planned if any(r.name == role for r in p.trained)]

    def _results(self, phase: str, role: str) -> list[dict]:
        results = self.phases.get(phase, {}).get("results", {})
        return results.get(role, {}).get("epochs", [])

    def epochs_done(self, phase: modes.Phase) -> int:
        """Number of finished epochs of a phase."""
        return max(len(self._results(phase.name, r.name)) for r in phase.trained)

    def validation(self, role: str) -> dict | None:
        """The best epoch by validation GAP of a finished run's network, or None.

        From the last phase that trains the role, as eval.py does.
        """
        if not self.finished:
            return None
        phases = self._phases_of(role)
        results = self.phases[phases[-1].name]["results"][role] if phases else {}
        return results.get("best")

    def evaluation(self, role: str, data_pattern: str, asked: str = "") -> dict | None:
        """eval.py's newest evaluation of that network on that data, or None.

        Args:
            role: of the network.
            data_pattern: as passed to eval.py; other evaluations are ignored.
            asked: likewise; one of plan.asked.
        """
        path = self.train_dir / "eval" / "metrics.jsonl"
        prefix = best_prefix(self.train_dir, role) if self.finished else None
        if prefix is None or not path.is_file():
            return None
        lines = [json.loads(line) for line in path.read_text().splitlines()]
        # The folder may have been moved or renamed since.
        tail = os.path.relpath(prefix, self.train_dir)
        evaluations = [
            line
            for line in lines
            if line["network"] == role
            and line["checkpoint"].endswith(tail)
            and line.get("eval_data_pattern") == data_pattern
            and line.get("asked", "") == asked
        ]
        return evaluations[-1] if evaluations else None

    def network(self, role: str) -> dict | None:
        """`parameters`, `frames` and `multiply_adds` of a network, or None."""
        entries = [phase.get("networks", {}) for phase in self.phases.values()]
        return next((e[role] for e in entries if role in e), None)


def best_prefix(train_dir: str | os.PathLike, role: str) -> str | None:
    """The checkpoint of a run's best network, or None."""
    train_dir = str(train_dir)
    best = checkpoints.find(train_dir, manifest.read_plan(train_dir), role)
    return best.prefix if best else None
