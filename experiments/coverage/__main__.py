"""The command."""

from experiments import launch
from experiments.coverage import QUICK, Config, compute, plan
from experiments.coverage.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
