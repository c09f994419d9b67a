"""Distillation for video classification that looks at a tenth of the frames."""

__version__ = "0.1.0"
