"""Starts the experiment as a command."""

from experiments import launch
from experiments.latent_vs_pixel import QUICK, Config, compute, plan
from experiments.latent_vs_pixel.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
