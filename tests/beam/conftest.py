"""Reuses the trained runs of the training tests."""

from tests.training.conftest import serial_run  # noqa: F401
