"""Samplers: one file each, all of the same shape (`Solver`), all driven by `run_steps`."""
