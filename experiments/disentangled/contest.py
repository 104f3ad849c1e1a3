"""The honest contest: what a run costs, which target it sets, how much faster another one gets there, and what is chosen.

The speed-up of a setting over a reference, at a target error, in any unit of cost:

    (1)  cost of the reference at its first crossing of the target / cost of the setting at its first crossing,

crossings interpolated linearly in (log cost, log error) between checkpoints. Units: sequential steps (one device per
expert), sample gradients (total work), seconds on this machine.
"""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

SAMPLERS = ("ddim", "dpmpp_2m")
ALL_CHAINS = (*SAMPLERS, "ddim_all")
UNITS = ("sequential_steps", "sample_gradients", "wall_clock")
PARAMETERISATIONS = ("noise", "v")
GOAL = {"sequential_steps": 6.0, "sample_gradients": 4.0}  # what the paper's 4-6 x would have to mean, at its most


class Setting(NamedTuple):
    """One way to train: ladder, T levels, K experts, samples per state and step, parameterisation, rate, seed."""

    ladder: str
    levels: int
    experts: int
    samples_per_state: int
    parameterisation: str
    learning_rate: float
    seed: int

    @property
    def kind(self) -> tuple:
        """All but the learning rate and the seed."""
        return tuple(self[:5])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """A trained setting.

    Attributes:
      setting: what was trained.
      steps: optimiser steps at each checkpoint ``[C]``.
      sample_gradients: samples whose gradient was taken, all experts together ``[C]``.
      seconds: training time on this machine ``[C]``, its share of the program that trained it.
      errors: ``{chain: {metric: [C]}}``; "ddim_all" is DDIM on all levels of the long ladder, at the last checkpoint.
      parameters: number of parameters, all experts together.
      training_bytes: memory of parameters, Adam and EMA.
      diverged: some expert stopped at a value that was not finite.
    """

    setting: Setting
    steps: np.ndarray
    sample_gradients: np.ndarray
    seconds: np.ndarray
    errors: dict[str, dict[str, np.ndarray]]
    parameters: int
    training_bytes: int
    diverged: bool

    @property
    def costs(self) -> dict[str, np.ndarray]:
        """``{unit: [C]}`` at each checkpoint."""
        return dict(zip(UNITS, (self.steps, self.sample_gradients, self.seconds), strict=True))


class Target(NamedTuple):
    """What a reference run reached and what that cost it.

    Attributes:
      error: its final error by its best chain.
      chain: that chain, a sampler or "ddim_all".
      cost: ``{unit: cost}`` at the first crossing; of the whole run if the chain was measured at its end only.
    """

    error: float
    chain: str
    cost: dict[str, float]


class SpeedUp(NamedTuple):
    """One setting against a target.

    Attributes:
      reached: "yes", "never" or "at once".
      ratio: ``{unit: speed-up}``, NaN if the target was not crossed between checkpoints.
      bound: ``{unit: what the speed-up is below}`` if the target was never reached, above if it was reached at once.
    """

    reached: str
    ratio: dict[str, float]
    bound: dict[str, float]


def first_crossing(cost: np.ndarray, error: np.ndarray, target: float) -> float:
    """Cost at which ``error`` ``[C]`` first reaches ``target``; NaN if never, or by the first checkpoint already."""
    reached = np.flatnonzero(error <= target)
    if not reached.size or reached[0] == 0:
        return np.nan
    k = reached[0]
    if not np.isfinite(error[k - 1]) or error[k] <= 0:
        return float(cost[k])
    share = np.log(error[k - 1] / target) / np.log(error[k - 1] / error[k])
    return float(cost[k - 1] * (cost[k] / cost[k - 1]) ** share)


def final_target(run: Run, metric: str, *, share: float = 1.0, chains: Sequence[str] = ALL_CHAINS) -> Target:
    """The target that a reference sets after ``share`` of its training: the best of ``chains`` at that checkpoint."""
    index = int(np.argmin(np.abs(run.steps - share * run.steps[-1])))
    finals = {s: run.errors[s][metric][index] for s in chains if s in SAMPLERS}
    if index == len(run.steps) - 1 and "ddim_all" in chains and "ddim_all" in run.errors:
        finals["ddim_all"] = run.errors["ddim_all"][metric][0]
    chain = min(finals, key=finals.get)
    spent = {unit: float(cost[index]) for unit, cost in run.costs.items()}
    if chain != "ddim_all":
        crossings = {u: first_crossing(cost, run.errors[chain][metric], finals[chain]) for u, cost in run.costs.items()}
        # A curve that starts at its final error reached it by the first checkpoint.
        spent = {unit: float(run.costs[unit][0]) if np.isnan(c) else c for unit, c in crossings.items()}
    return Target(error=float(finals[chain]), chain=chain, cost=spent)


def speed_up(run: Run, sampler: str, metric: str, target: Target) -> SpeedUp:
    """Equation (1) for one run."""
    error = run.errors[sampler][metric]
    at_once = error[0] <= target.error
    ratio = {u: target.cost[u] / first_crossing(cost, error, target.error) for u, cost in run.costs.items()}
    bound = {u: target.cost[u] / cost[0 if at_once else -1] for u, cost in run.costs.items()}
    reached = "at once" if at_once else "yes" if np.isfinite(ratio[UNITS[0]]) else "never"
    return SpeedUp(reached, ratio, bound)


def best_rates(selection: Iterable[Run], metric: str) -> dict[tuple, Run]:
    """The run of every kind with the least final error by its better sampler; a diverged one only if all diverged."""

    def final(run):
        return np.inf if run.diverged else min(_finite_or_inf(run.errors[s][metric][-1]) for s in SAMPLERS)

    return {run.setting.kind: run for run in sorted(selection, key=lambda run: -final(run))}


def choose_setting(chosen: Mapping[tuple, Run], baseline: tuple, metric: str, *, levels: int) -> tuple[tuple, str]:
    """The (kind, sampler) on ``levels`` levels that does best on the goal it does worse on: `GOAL`, against the baseline."""
    target, scores = final_target(chosen[baseline], metric), {}
    for kind, run in chosen.items():
        for sampler in SAMPLERS if kind[1] == levels else ():
            found = speed_up(run, sampler, metric, target)
            values = found.bound if found.reached == "at once" else found.ratio
            score = min(values[unit] / goal for unit, goal in GOAL.items())
            # A setting that never gets there ranks behind all that do; ties go to the smaller final error.
            final = _finite_or_inf(run.errors[sampler][metric][-1])
            scores[kind, sampler] = (score if np.isfinite(score) else -1.0, -final)
    return max(scores, key=scores.get)


def _finite_or_inf(error: float) -> float:
    return float(error) if np.isfinite(error) else np.inf
