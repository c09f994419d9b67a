"""The runs of the tests of training, for the works over their data."""

from tests.training.conftest import data, serial_run, use_policy  # noqa: F401
