r"""Which noise levels of a ladder does early stopping make unnecessary, and what does leaving them out save?

Claims. [TS] (arXiv 2508.14413): some 32 noise levels, "latent states", do, and each can have a network of its own, trained
alone. [OS] (arXiv 2510.08409): a latent model may be best stopped before the end. Ours, where they meet: stopping on
level j (1 = cleanest) leaves the states 1..j untrained and unevaluated. How many is best, for which latent dimension d,
number of samples n behind the score, ladder and sampler?

Closed form, in the latent space: kept variances divided by their mean for each d (--norescale keeps them), x_T ~ N(0, I),
diagonal score with lamh_i = lam_i chi2_n / n (n = inf: exact), variances after the updates down to level j divided by
alpha_j^2 + sigma_j^2 (rectified flow is not variance preserving). For finite n the best number is that of the expected
squared W2, by quadrature; draws give the spread, how often dropping helps at all, and whether their mean gain can be told
from 0. exact_flow has no discretisation error: what the estimated score alone asks for. Tolerance: states whose loss costs
1 % of the whole distance (components left out included), and of the variance kept.

Learned: two models of one network per level, all states and only those above the stop (--states=8:32 trains levels 8..32,
both included). Same samples; squared W2 held against the closed form; what was saved.

    python -m experiments.unused_states  # digits, d = 1, 2, 4, ..., 64
    python -m experiments.unused_states --spectrum=exponential:0.25 --latent_dims=4,8,16 \
        --n=inf --nolearned
    python -m experiments.unused_states --spectrum=../shared/data/cifar10_spectrum.npy \
        --latent_dims=16,64,256,1024,3072 --n=inf --ladders=karras,spectral --nolearned

Takes 21 s (--quick 10 s), 4 s and 9 s on two cores. The numbers obtained stand in docs/results.md#unused_states.
"""

import dataclasses
import math
from typing import NamedTuple

import numpy as np

from experiments import launch
from experiments.launch import Results, setting
from experiments.unused_states import laws, learned
from experiments.unused_states.learned import BLOCKS
from ldmjax import chains, gaussians, schedules
from ldmjax.job import Job
from ldmjax.metrics.statistics import wilson_interval
from ldmjax.random_matrices import twin_estimates

DROP, CANNOT_TELL, NO_GAIN = "drop", "cannot tell", "no gain"
LEARNED_DIM = 16  # the largest latent dimension that is trained unless --learned_dims asks for others
QUICK = {"draws": 20, "steps": 200, "samples": 2048}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings, launch.LadderSettings):
    """What is computed."""

    ladders: tuple[str, ...] = launch.ladders_setting(("karras", "linear_beta", "rectified_flow", "spectral"))
    samplers: tuple[str, ...] = setting(("ddim", "dpmpp_2m", "exact_flow"), "Samplers.", choices=laws.SAMPLERS)
    latent_dims: tuple[int, ...] | None = setting(
        None, "Latent dimensions; powers of two up to D if not given.", low=1, high=100_000
    )
    n: tuple[int, ...] = setting(
        (math.inf, 500),
        "Samples that the score is estimated from; inf is the exact score.",
        low=2,
        high=1_000_000,
        infinite=True,
    )
    draws: int = setting(100, "Draws of the estimate for each finite n.", low=2, high=1_000_000)
    seed: int = launch.seed(help="Seed of the first draw, and of training.")
    tolerance: float = setting(0.01, "Share of the distance, or of the variance kept, that dropping may cost.", low=0.0)
    rescale: bool = setting(True, "Divide the kept variances by their mean, for each latent dimension.")
    learned: bool = setting(True, "Train one network per level, for the first of --ladders and --samplers.")
    learned_dims: tuple[int, ...] | None = setting(
        None, f"Trained dimensions; the largest up to {LEARNED_DIM} if not given.", low=1, high=256
    )
    states: tuple[int, int] | None = setting(
        None,
        "Levels to train in the learned part, both included, 1 = cleanest: 8:32 leaves out 1..7. Must end at --levels, where "
        "sampling starts. If not given, all but the number that the closed form drops.",
    )
    steps: int = setting(1000, "Optimiser steps of each network.", low=1, high=10_000_000)
    samples: int = setting(8192, "Samples of each trained model.", low=2 * BLOCKS, high=1_048_576, multiple=BLOCKS)

    def __post_init__(self):
        super().__post_init__()
        if self.states and self.states[1] != self.levels:
            raise self.refuse("states", f"must end at {self.levels}: sampling starts at the noisiest level")
        if not any(self.pairs().values()):
            raise self.refuse("samplers", f"none of them runs on {', '.join(self.ladders)}, which starts at pure noise")

    def load(self) -> "Inputs":
        """Loads the data's spectrum."""
        dataset = super().load()
        # A bare spectrum is diagonal and sorted: no eigenvalues to compute, which takes a while at 3072.
        diagonal = dataset.samples is None
        variances = np.diag(dataset.covariance) if diagonal else gaussians.eigh_descending(dataset.covariance)[0]
        if not variances[0] > 0:
            raise self.refuse("data" if self.spectrum is None else "spectrum", "every variance is 0")
        if self.latent_dims is not None:
            self.check_latent_dims(dataset)
        if max(self.learned_dims or [0]) > dataset.dim:
            raise self.refuse("learned_dims", f"must be 1..{dataset.dim}, the dimension of {dataset.name}")
        return Inputs(dataset.name, dataset.digest, np.array(variances))

    def pairs(self) -> dict[tuple[str, str], bool]:
        """Returns whether they go together, for every (ladder, sampler)."""
        made = {ladder: self.ladder(ladder, np.ones(1)) for ladder in self.ladders}
        return {(name, s): chains.is_defined(s, ladder) for name, ladder in made.items() for s in self.samplers}

    def dims(self, largest: int) -> list[int]:
        """Returns the latent dimensions, rising, of data of dimension ``largest``."""
        return sorted(self.latent_dims or [2**k for k in range(17) if 2**k <= largest])

    def kept(self, variances: np.ndarray, d: int) -> tuple[np.ndarray, float]:
        """Returns the first d of ``variances`` ``[D]`` and the total of the others, both in units of the latents."""
        scale = variances[:d].mean() if self.rescale else 1.0
        return variances[:d] / scale, float(variances[d:].sum() / scale)

    def ladder(self, name: str, variances: np.ndarray) -> schedules.Ladder:
        """Returns the ladder of that name for the kept ``variances`` ``[d]``."""
        return schedules.make_ladder(name, self.levels, variances, **self.limits)

    @property
    def trained_sampler(self) -> str | None:
        """The sampler of the learned part: the first that is one of a network and runs on the first ladder."""
        defined = self.pairs()
        return next((s for s in self.samplers if s in chains.SAMPLERS and defined[self.ladders[0], s]), None)

    def trained_dims(self, largest: int) -> list[int]:
        """Returns the latent dimensions of the learned part; none if nothing can be trained."""
        chosen = self.learned_dims or [d for d in self.dims(largest) if d <= LEARNED_DIM][-1:]
        return list(chosen) if self.learned and self.trained_sampler else []


class Inputs(NamedTuple):
    """The spectrum ``[D]`` of the data, largest first."""

    name: str
    digest: str
    variances: np.ndarray


def plan(config: Config, inputs: Inputs) -> list[launch.Stage]:
    """Counts what `compute` does."""
    dims = config.dims(inputs.variances.size)
    closed = launch.Stage(stage="closed forms", runs=len(dims) * len(config.n) * sum(config.pairs().values()))
    return [closed, *learned.plan(inputs.variances, config)]


def compute(config: Config, inputs: Inputs, job: Job) -> Results:
    """Finds the best number of states to drop for every n, ladder, sampler and latent dimension, then trains.

    Arrays, a row per latent dimension: latent_dims; LADDER_SAMPLER_nN_w2_squared and noise_var ``[d, T + 1]``, by states
    dropped; best_of_draw ``[d, R]``. variances ``[D]``, n. learned_dD_w2_squared ``[T + 1]`` of the model of all states stopped
    on every level, and learned_dD_closed_form.
    """
    variances, dims = inputs.variances, config.dims(inputs.variances.size)
    pairs = config.pairs()
    for (ladder, sampler), defined in pairs.items():
        if not defined:
            job.log(f"{sampler} is left out on {ladder}, which starts at pure noise: {sampler} divides by the signal")
    rows, curves = [], {"latent_dims": np.array(dims), "n": np.array(config.n, np.float64), "variances": variances}
    for n in config.n:
        # The same draws for every ladder, sampler and latent dimension, relative to the truth.
        draws = {"n": n, "draws": config.draws, "seed": config.seed}
        drawn = np.ones((1, variances.size)) if np.isinf(n) else twin_estimates(np.ones_like(variances), **draws)
        noise = [_best_noise(config.kept(variances, d)[0], n) for d in dims]
        for ladder, sampler in (pair for pair, defined in pairs.items() if defined):
            found = job.keep(
                f"closed form/n{n}/{ladder}/{sampler}",
                lambda given=(n, ladder, sampler), drawn=drawn, noise=noise: [
                    measure(config, variances, d, *given, drawn[:, :d], best)
                    for d, best in zip(dims, noise, strict=True)
                ],
            )
            rows += [row for row, _ in found]
            for name in found[0][1]:
                curves[f"{ladder}_{sampler}_n{n:g}_{name}"] = np.array([of_dim[name] for _, of_dim in found])
    if config.learned and not config.trained_dims(variances.size):
        job.log(
            f"nothing is trained: no latent dimension up to {LEARNED_DIM} (--learned_dims chooses others), or no sampler"
        )
    trained = learned.compare(variances, config, job)
    return Results(
        rows=rows + trained.rows,
        arrays=curves | trained.arrays,
        metadata={"training_seconds": trained.seconds},
    )


def _best_noise(kept, n):
    return {
        "noise_var_formula": laws.formula_noise_var(kept, n),
        "noise_var_expected": laws.expected_best_noise_var(kept, n),
    }


def measure(config, variances, d, n, ladder_name, sampler, drawn, noise) -> tuple[dict, dict[str, np.ndarray]]:
    """Returns row and curves of one case.

    Args:
      config: says which states are tolerated.
      variances: ``[D]`` of the data, largest first.
      d: latent dimension.
      n: samples behind the score, inf for the exact score.
      ladder_name: of T levels.
      sampler: one of `laws.SAMPLERS`.
      drawn: estimates relative to the truth ``[R, d]``, R = 1 for n = inf.
      noise: fields on the leftover noise that is best without discretisation.
    """
    kept, left_out = config.kept(variances, d)
    ladder, total, levels = config.ladder(ladder_name, kept), float(kept.sum()), config.levels
    curve = laws.expected_w2_squared(kept, n, ladder, sampler)
    of_draws = laws.w2_squared(kept, kept * drawn, ladder, sampler)
    nu, best, best_of_draw = laws.noise_vars(ladder), int(laws.best_dropped(curve)), laws.best_dropped(of_draws)
    gain, error = _measured_gain(of_draws[:, 0] - of_draws[:, best], of_draws[:, 0])
    tolerance = config.tolerance
    row = {
        "kind": "closed_form",
        "ladder": ladder_name,
        "sampler": sampler,
        "levels": levels,
        "n": n,
        "latent_dim": d,
        "rescaled": config.rescale,
        "w2_squared_end": curve[0],
        "w2_squared_best": curve[best],
        "relative_w2_end": np.sqrt(curve[0] / total),
        "relative_w2_best": np.sqrt(curve[best] / total),
        "states_dropped_best": best,
        "noise_var_best": nu[best],
        "gain_percent": _percent(curve[0] - curve[best], curve[0]),
        "networks": levels - best,
        "network_evaluations": chains.evaluations(sampler, levels - best),
        "network_evaluations_all_states": chains.evaluations(sampler, levels),
        "tolerance": tolerance,
        "states_dropped_tolerance_total": laws.tolerated(curve, tolerance * (float(curve[0]) + left_out)),
        "states_dropped_tolerance_kept": laws.tolerated(curve, tolerance * total),
    }
    if np.isfinite(n):
        measured = {"measured_gain_percent": gain, "measured_gain_standard_error": error}
        row |= noise | _spread(best_of_draw) | measured
    row["verdict"] = verdict(best, gain, error if np.isfinite(n) else None)
    return row, {"w2_squared": curve, "noise_var": nu, "best_of_draw": best_of_draw}


def _percent(part: float, whole: float) -> float:
    return float(100.0 * part / whole) if whole > 0 else 0.0


def _measured_gain(gains, ends):
    """Returns the mean gain over draws ``[R]`` and its standard error, in percent of the mean squared W2 without dropping."""
    error = gains.std(ddof=1) / np.sqrt(gains.size) if gains.size > 1 else 0.0
    return _percent(gains.mean(), ends.mean()), _percent(error, ends.mean())


def _spread(best_of_draw):
    """Returns fields on the draws' own best numbers: quantiles, each one of them, and how often dropping helps at all."""
    count, helped = best_of_draw.size, int(np.sum(best_of_draw > 0))
    low, middle, high = (int(q) for q in np.percentile(best_of_draw, [5, 50, 95], method="inverted_cdf"))
    helped_low, helped_high = wilson_interval(helped, count)
    return {
        "draws": count,
        "states_dropped_low": low,
        "states_dropped_median": middle,
        "states_dropped_high": high,
        "helped_count": helped,
        "helped_share": helped / count,
        "helped_low": helped_low,
        "helped_high": helped_high,
    }


def verdict(best: int, gain: float, error: float | None) -> str:
    """Says what the draws say of dropping ``best`` states.

    Args:
      best: states whose loss is best on average.
      gain: what it saves on average over draws.
      error: standard error of the gain, None for the exact score.

    Returns:
      "drop", "no gain", or "cannot tell" if the gain lies within two standard errors of 0.
    """
    if best == 0 or error is None and not gain > 0:
        return NO_GAIN
    return DROP if error is None or gain > 2 * error else CANNOT_TELL
