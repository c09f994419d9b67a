"""Rows of the torture's table."""

import dataclasses
from collections.abc import Iterable

import tqdm


@dataclasses.dataclass(frozen=True)
class Row:
    """What was done to the package, and how often it survived.

    Attributes:
        name: what was done, and to what.
        tried: how often.
        survived: how often the package did what it promises then.
        remark: for the reader; for a loss, what was lost and how to see it again.
    """

    name: str
    tried: int
    survived: int
    remark: str = ""

    @property
    def lost(self) -> int:
        """How often it did not."""
        return self.tried - self.survived


def judged(name: str, problems: Iterable[str | None]) -> Row:
    """The row of some tries, printed as soon as it is there.

    Args:
        name: of the row.
        problems: for each try what is wrong with its end, or None.
    """
    found = list(problems)
    lost = [problem for problem in found if problem]
    remark = "; ".join(lost)
    tqdm.tqdm.write(f"{name}: {remark or f'{len(found)} survived'}")
    return Row(name, len(found), len(found) - len(lost), remark)
