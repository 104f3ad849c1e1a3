"""The command."""

from experiments import launch
from experiments.optimal_stopping import QUICK, Config, compute, plan
from experiments.optimal_stopping.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
