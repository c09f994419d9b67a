"""What tools/benchmark.py measures, a module an area."""
