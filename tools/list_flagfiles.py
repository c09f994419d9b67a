"""Makes the table of flags/README.md and the cost lines of the flagfiles.

python tools/list_flagfiles.py            # prints the table
python tools/list_flagfiles.py --write    # updates flags/README.md and the cost lines

A `# Cost:` line is computed from the flags of the `# Command:` line.
"""

import argparse
import dataclasses
import pathlib
import shlex
import sys

# Run as a file, the root is one folder up.
sys.path.insert(0, str(pathlib.Path(__file__).resolve().parent.parent))

from tools.reproduction import document, plan, published
from yt8m_distill import flag_groups, settings

FOLDER = plan.FLAGFILES
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
    """A Markdown row for every flagfile; its first line says what it is."""
    rows = ["| flagfile | what | published GAP/mAP |", "|---|---|---|"]
    for path in sorted(FOLDER.glob("*.flags")):
        header = read_header(path)
        purpose = next(iter(header.values()))
        published = header.get("Published GAP/mAP", "").replace(" | ", ", ")
        rows.append(f"| [{path.stem}]({path.name}) | {purpose} | {published} |")
    return "\n".join(rows)


def read_command(command: str) -> settings.RunSettings:
    """The settings of a Command, from any working directory.

    Raises:
        ValueError: if it is not a valid command of train.py.
    """
    words = shlex.split(command)
    if words[:2] != PROGRAM:
        raise ValueError(f"The Command does not begin with {' '.join(PROGRAM)}.")
    # The paths in a Command are relative to the project root.
    here = f"--flagfile={plan.FLAGFILES.name}/"
    there = f"--flagfile={plan.FLAGFILES}/"
    return plan.read_settings(
        [there + w.removeprefix(here) if w.startswith(here) else w for w in words[2:]]
    )


def describe(run: settings.RunSettings) -> str:
    """The cost of a run: the forward pass of each network, and training by phase.

    The student's forward pass is given for every k of the paper if the run's k is one
    of them, otherwise only for the run's k.
    """
    from tools.reproduction import cost
    from yt8m_distill.training import modes

    phases = modes.phases(run, resolved=False)
    roles = {role.name for phase in phases for role in phase.roles}
    forward, k = [], run.sampling.largest_k
    if "teacher" in roles:
        forward.append(f"teacher {_amount(_forward(run, 'teacher'))}")
    if "student" in roles:
        all_k = published.FRAMES if k in published.FRAMES else (k,)
        costs = [_amount(_forward(_at(run, frames), "student")) for frames in all_k]
        rows = [f"k={frames} {text}" for frames, text in zip(all_k, costs, strict=True)]
        forward.append(f"student {', '.join(rows)}")
    where = f" at k={k}" * ("student" in roles)
    fraction = run.training.train_fraction
    if fraction < 1:
        where += f" on {100 * fraction:g} % of the videos, per video of the whole set"
    training = cost.training_cost(run)
    steps = [_describe_phase(phase, training[phase.name]) for phase in phases]
    if len(steps) > 1:
        steps.append(f"{_amount(sum(training.values()))} in all")
    return (
        f"multiply-adds per video, forward: {', '.join(forward)}; "
        f"training{where}: {', '.join(steps)}"
    )


def _at(run: settings.RunSettings, k: int) -> settings.RunSettings:
    sampling = dataclasses.replace(run.sampling, student_k=k)
    return dataclasses.replace(run, sampling=sampling)


def _forward(run: settings.RunSettings, role: str) -> int:
    from tools.reproduction import cost

    return sum(cost.multiply_adds(run, role).values())


def _amount(number: float) -> str:
    """`0.18 G` or `13.4 M`: at least two significant digits from 1e6 on."""
    return f"{number / 1e9:.2f} G" if number >= 1e8 else f"{number / 1e6:.1f} M"


def _describe_phase(phase, number: float) -> str:
    """`student with the frozen teacher 38.90 G (5 epochs)`."""
    frozen = "".join(f" with the frozen {r.name}" for r in phase.roles if r.frozen)
    epochs = f"{phase.epochs} epoch" + "s" * (phase.epochs > 1)
    return f"{phase.name}{frozen} {_amount(number)} ({epochs})"


def with_cost(text: str) -> str:
    """The text of a flagfile with an updated Cost line before its Command.

    Raises:
        ValueError: if its header has no valid Command.
    """
    lines = [line for line in text.splitlines() if not line.startswith(COST)]
    commands = [i for i, line in enumerate(lines) if line.startswith(COMMAND)]
    if not commands:
        raise ValueError(f"The header has no line {COMMAND.strip()}")
    run = read_command(lines[commands[0]].removeprefix(COMMAND))
    lines.insert(commands[0], COST + describe(run))
    return "\n".join(lines) + "\n"


def main() -> None:
    """Prints the table, or writes the table and the costs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true", help="update the files")
    if not parser.parse_args().write:
        print(make_table())
        return
    flag_groups.load_tensorflow()
    for path in sorted(FOLDER.glob("*.flags")):
        try:
            path.write_text(with_cost(path.read_text("utf-8")), encoding="utf-8")
        except ValueError as error:
            sys.exit(f"list_flagfiles.py: flags/{path.name}: {error}")
    document.write_section(FOLDER / "README.md", "table", make_table())


if __name__ == "__main__":
    main()
