"""Modules of tools/reproduce.py: running and reporting the paper's experiments."""
