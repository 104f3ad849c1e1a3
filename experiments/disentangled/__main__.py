"""The command."""

from experiments import launch
from experiments.disentangled import QUICK, Config, compute, plan
from experiments.disentangled.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
