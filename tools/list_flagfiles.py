"""The table of flags/README.md from the headers of the flagfiles, and their costs.

python tools/list_flagfiles.py            # prints the table
python tools/list_flagfiles.py --write    # into flags/README.md; Cost lines too

A `# Cost:` line is made by closed formulas from the flags of the Command beside it.
"""

import dataclasses
import pathlib
import shlex
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from yt8m_distill import flag_groups

flag_groups.load_tensorflow()

from tools.reproduction import cost, document, plan, published
from yt8m_distill import settings
from yt8m_distill.training import modes

FOLDER = plan.FLAGFILES
# What a flagfile says it is, in its header.
KINDS = ("Reproduces", "Data", "Preset", "Training", "Network", "Ablation")
PROGRAM = ["python", "yt8m_distill/train.py"]
COST, COMMAND = "# Cost: ", "# Command: "


def read_header(path: pathlib.Path) -> dict[str, str]:
    """The `# Name: value` lines at the top of a flagfile."""
    header = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("# "):
            break
        name, _, value = line[2:].partition(": ")
        header[name] = value
    return header


def make_table() -> str:
    """A Markdown row for every flagfile."""
    rows = ["| flagfile | what | published GAP/mAP |", "|---|---|---|"]
    for path in sorted(FOLDER.glob("*.flags")):
        header = read_header(path)
        what = next(header[name] for name in KINDS if name in header)
        published = header.get("Published GAP/mAP", "").replace(" | ", ", ")
        rows.append(f"| [{path.stem}]({path.name}) | {what} | {published} |")
    return "\n".join(rows) + "\n"


def replaced(text: str, table: str) -> str:
    """The text with the table between its marks."""
    return document.replace_section(text, "table", table.rstrip("\n"))


def read_command(command: str) -> settings.RunSettings:
    """The settings of a Command, wherever this runs.

    Raises:
        ValueError: if it is no command of train.py, or one that train.py would refuse.
    """
    words = shlex.split(command)
    if words[:2] != PROGRAM:
        raise ValueError(f"The Command does not begin with {' '.join(PROGRAM)}.")
    # The paths in a Command begin at the root of the project.
    here = f"--flagfile={plan.FLAGFILES.name}/"
    there = f"--flagfile={plan.FLAGFILES}/"
    return plan.read_settings(
        [there + w.removeprefix(here) if w.startswith(here) else w for w in words[2:]]
    )


def describe(run: settings.RunSettings) -> str:
    """What a run costs: forward of each network, and training phase by phase.

    The student's forward pass stands at every k of the paper if the run's k is one of
    them, and otherwise at the run's alone.
    """
    phases = modes.phases(run, resolved=False)
    roles = {role.name for phase in phases for role in phase.roles}
    forward, k = [], run.sampling.largest_k
    if "teacher" in roles:
        forward.append(f"teacher {_amount(_forward(run, 'teacher'))}")
    if "student" in roles:
        every = published.FRAMES if k in published.FRAMES else (k,)
        costs = [_amount(_forward(_at(run, frames), "student")) for frames in every]
        rows = [f"k={frames} {text}" for frames, text in zip(every, costs, strict=True)]
        forward.append(f"student {', '.join(rows)}")
    where = f" at k={k}" * ("student" in roles)
    fraction = run.training.train_fraction
    if fraction < 1:
        where += f" on {100 * fraction:g} % of the videos, a video of the whole set"
    training = cost.training_cost(run)
    steps = [_describe_phase(phase, training[phase.name]) for phase in phases]
    if len(steps) > 1:
        steps.append(f"{_amount(sum(training.values()))} in all")
    return (
        f"multiply-adds a video, forward: {', '.join(forward)}; "
        f"training{where}: {', '.join(steps)}"
    )


def _at(run: settings.RunSettings, k: int) -> settings.RunSettings:
    sampling = dataclasses.replace(run.sampling, student_k=k)
    return dataclasses.replace(run, sampling=sampling)


def _forward(run: settings.RunSettings, role: str) -> int:
    return sum(cost.multiply_adds(run, role).values())


def _amount(number: float) -> str:
    """`0.18 G` or `13.4 M`: at least two digits count from 1e6 on."""
    return f"{number / 1e9:.2f} G" if number >= 1e8 else f"{number / 1e6:.1f} M"


def _describe_phase(phase: modes.Phase, number: float) -> str:
    """`student with the frozen teacher 38.90 G (5 epochs)`."""
    frozen = "".join(f" with the frozen {r.name}" for r in phase.roles if r.frozen)
    epochs = f"{phase.epochs} epoch" + "s" * (phase.epochs > 1)
    return f"{phase.name}{frozen} {_amount(number)} ({epochs})"


def with_cost(text: str) -> str:
    """A flagfile's text with its Cost line, made anew, before its Command.

    Raises:
        ValueError: if its header has no Command, or one that train.py would refuse.
    """
    lines = [line for line in text.splitlines() if not line.startswith(COST)]
    places = [i for i, line in enumerate(lines) if line.startswith(COMMAND)]
    if not places:
        raise ValueError(f"The header has no line {COMMAND.strip()}")
    run = read_command(lines[places[0]].removeprefix(COMMAND))
    lines.insert(places[0], COST + describe(run))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, or writes it and the costs."""
    if "--write" not in sys.argv[1:]:
        print(make_table(), end="")
        return
    for path in sorted(FOLDER.glob("*.flags")):
        try:
            path.write_text(with_cost(path.read_text("utf-8")), encoding="utf-8")
        except ValueError as error:
            sys.exit(f"list_flagfiles.py: flags/{path.name}: {error}")
    path = FOLDER / "README.md"
    path.write_text(replaced(path.read_text("utf-8"), make_table()), encoding="utf-8")


if __name__ == "__main__":
    main()
