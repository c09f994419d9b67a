"""The parts of tools/reproduce.py: the paper's experiments, run and reported."""
