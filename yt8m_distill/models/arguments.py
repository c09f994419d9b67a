"""Checks of the constructor arguments of networks."""

import numbers


def require_counts(**arguments: int) -> None:
    """Raises a ValueError for an argument that is not a positive integer."""
    for name, value in arguments.items():
        is_integer = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        if not is_integer or value < 1:
            raise ValueError(f"{name}={value!r} is not a whole number above 0.")


def require_divisor(divisor: int, number: int, name: str, of: str) -> None:
    """Raises a ValueError unless `divisor`, called `name`, divides `number`."""
    if number % divisor:
        raise ValueError(f"{name} ({divisor}) must divide {of} ({number}).")


def require_rate(**rates: float) -> float:
    """Returns a dropout rate; raises a ValueError if it is not in [0, 1)."""
    ((name, rate),) = rates.items()
    if not 0 <= rate < 1:
        raise ValueError(f"{name}={rate} is not in [0, 1).")
    return rate
