"""Areas of tools/torture.py: what is done to the package, and whether it survives."""
