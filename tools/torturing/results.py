"""Rows of the torture's table."""

import dataclasses


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
