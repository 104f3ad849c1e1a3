"""python -m experiments.few_states."""

from experiments import launch
from experiments.few_states import QUICK, Config, compute, plan
from experiments.few_states.report import report

launch.main(Config, compute, report, quick=QUICK, plan=plan)
