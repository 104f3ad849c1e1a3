"""The command."""

import os

from experiments import benchmark, launch
from experiments.benchmark.report import report

if __name__ == "__main__":
    # Both sides share a GPU's memory.
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    launch.main(benchmark.Config, benchmark.compute, report, quick=benchmark.QUICK, plan=benchmark.plan)
