"""Areas of a tool, each with rows of its own: which were asked for, and a store.

benchmark.py and torture.py run areas one by one. What an area found is kept in a JSON
file, in which the others stay as they were.
"""

import argparse
import json
import pathlib
import time
from collections.abc import Sequence
from typing import Any


def read_names(
    parser: argparse.ArgumentParser, text: str, known: Sequence[str]
) -> list[str]:
    """The areas of --areas; ends the program if one is unknown, or there is none."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names or not set(names) <= set(known):
        parser.error(f"--areas={text}: known are {', '.join(known)}.")
    return names


def keep(
    path: pathlib.Path, known: Sequence[str], areas: dict[str, list], **facts: Any
) -> dict[str, dict]:
    """Puts areas into a store; all that it holds comes back.

    Args:
        path: of the store, which need not exist.
        known: names of areas, in their order; others in the store are dropped.
        areas: name → rows, which are dataclasses.
        facts: what stands beside the rows of each of them, with today's date.

    Returns:
        Name → facts, `date` and `rows`, in the order of `known`.
    """
    content = json.loads(path.read_text("utf-8")) if path.exists() else {}
    date = time.strftime("%Y-%m-%d")
    for name, rows in areas.items():
        content[name] = {**facts, "date": date, "rows": [vars(row) for row in rows]}
    content = {name: content[name] for name in known if name in content}
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    return content
