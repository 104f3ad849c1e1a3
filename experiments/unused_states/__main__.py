"""python -m experiments.unused_states."""

from experiments import launch
from experiments.unused_states import QUICK, Config, compute, plan
from experiments.unused_states.report import report

launch.main(Config, compute, report, quick=QUICK, plan=plan)
