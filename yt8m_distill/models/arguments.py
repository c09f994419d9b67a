"""Checks of what a network is given."""

import numbers


def require_counts(**arguments: int) -> None:
    """Raises a ValueError for an argument that is no whole number above 0."""
    for name, value in arguments.items():
        whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not whole or value < 1:
            raise ValueError(f"{name}={value!r} is not a whole number above 0.")


def require_divisor(divisor: int, number: int, name: str, of: str) -> None:
    """Raises a ValueError unless `divisor`, called `name`, divides `number`."""
    if number % divisor:
        raise ValueError(f"{name} ({divisor}) must divide {of} ({number}).")


def require_rate(**rates: float) -> float:
    """Raises a ValueError for a dropout that is not in [0, 1); returns it."""
    ((name, rate),) = rates.items()
    if not 0 <= rate < 1:
        raise ValueError(f"{name}={rate} is not in [0, 1).")
    return rate
