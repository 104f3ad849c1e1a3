"""The command."""

from experiments import launch
from experiments.paper_figures import QUICK, Config, compute, plan
from experiments.paper_figures.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
