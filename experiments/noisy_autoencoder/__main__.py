"""Starts the experiment as a command."""

from experiments import launch
from experiments.noisy_autoencoder import QUICK, Config, compute, plan
from experiments.noisy_autoencoder.report import report

if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
