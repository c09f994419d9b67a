"""Modes, steps and the loops around them."""
