"""The faults that `planted_faults.py` plants."""

from tests.benchmarks.faults import programs, training
from tests.benchmarks.faults.fault import Fault

FAULTS = (*training.FAULTS, *programs.FAULTS)

__all__ = ["FAULTS", "Fault"]
