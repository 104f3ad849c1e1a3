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

Takes 21 s (--quick 10 s), 4 s and 9 s on two cores. Obtained of 32 levels, exact score, Karras [.002, 80] (2M: DPM-Solver++):

    exponential:0.25, d = 4, 8, 16:         DDIM 12, 10, 8;      2M 9, 8, 7;        exact flow 0
    CIFAR-10, d = 16, 64, 256, 1024, 3072:  DDIM 8, 8, 7, 6, 3;  2M 7, 6, 5, 3, 0;  exact flow 0
    the same with the spectral ladder:      DDIM 2, 2, 2, 1, 0;  2M 0;              exact flow 0
    digits, d = 4, 8, 16, 32:               DDIM 12, 10, 9, 8;   2M 10, 8, 8, 7;    exact flow 0

So with the exact score all of it cures the sampler's error, and 2M on the spectral ladder asks for none (digits: from d =
4). W2 / sqrt(variance kept) moves little (exponential, d = 4, Karras: DDIM .0795 -> .0685, 2M .0137 -> .0095). An estimated
score asks for stopping by itself: digits, n = 500, exact_flow, 10 states at d = 4 (saves 7.7 % of squared W2), 7 at d = 16
(.54 %, which 100 draws cannot tell from 0; dropping helps in 58 % of them). The formula nu* for the best leftover noise
variance gives .083 at d = 4 (exact .077), .0138 at 8 (.0136), .00548 at 16 (.00545). One percent of the variance kept pays
for 12 or 13 of Karras's states at d = 8 and for 11 at 32, whatever the sampler; spectral 13 and 7. With one component N(0,
1) is the data: no state is needed. Learned, d = 16, DDIM: 23 networks in place of 32 (28 % fewer parameters, sample
gradients, evaluations), samples equal bit by bit, squared W2 .103 against .092 with the exact score (all states: .107
against .098).
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from experiments import plans
from experiments.flags import make_ladder
from experiments.phase_diagram import twin_estimates, wilson_interval
from experiments.unused_states import laws
from ldmjax import schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

DROP, CANNOT_TELL, NO_GAIN = "drop", "cannot tell", "no gain"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is computed; the flags of the same names say more."""

    latent_dims: tuple[int, ...]
    n: tuple[float, ...] = (np.inf, 500)
    ladders: tuple[str, ...] = ("karras", "spectral")
    samplers: tuple[str, ...] = ("ddim", "dpmpp_2m", "exact_flow")
    levels: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    draws: int = 100
    seed: int = 0
    tolerance: float = 0.01
    rescale: bool = True

    def __post_init__(self):
        for name, low in [("levels", 1), ("draws", 2)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.n or any(n < 2 or n != np.round(n) for n in self.n):
            raise ValueError(f"n must be whole numbers >= 2 or inf, got {self.n}")
        if not (self.latent_dims and min(self.latent_dims) >= 1):
            raise ValueError(f"latent_dims must be >= 1, got {self.latent_dims}")
        if unknown := sorted(set(self.samplers) - set(laws.SAMPLERS)):
            raise ValueError(f"samplers must be among {', '.join(laws.SAMPLERS)}, got {unknown[0]!r}")
        if not (0 <= self.tolerance < np.inf):
            raise ValueError(f"tolerance must be finite and >= 0, got {self.tolerance}")

    def ladder(self, name: str, variances: np.ndarray) -> schedules.Ladder:
        """The ladder of that name for the kept ``variances`` ``[d]``."""
        return make_ladder(name, self.levels, variances, sigma_min=self.sigma_min, sigma_max=self.sigma_max)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One ladder, sampler, n and latent dimension. T levels; index j = stop on level j, so that j states are dropped.

    Attributes:
      ladder, sampler: names.
      n: samples behind the score, inf for the exact score.
      latent_dim: d.
      kept, left_out: total variance of the d components and of the others, in units of the latents.
      noise_var: ``[T + 1]``, VP noise variance left.
      w2_squared: ``[T + 1]`` in the latent space; for finite n the exact expectation over estimates.
      allowance: tolerance times what it is relative to, by name: "kept" or "total".
      noise_var_formula, noise_var_expected: T_SPACE.md §3's nu*, and the exact minimiser that it approximates.
      best_of_draw: ``[R]``, states best dropped in each draw of the estimate (R = 1 for n = inf).
      gain_of_draw: ``[R]``, squared W2 saved by dropping ``best`` states, the same number in each draw.
      end_of_draw: ``[R]``, squared W2 without dropping any.
    """

    ladder: str
    sampler: str
    n: float
    latent_dim: int
    kept: float
    left_out: float
    noise_var: np.ndarray
    w2_squared: np.ndarray
    allowance: dict[str, float]
    noise_var_formula: float
    noise_var_expected: float
    best_of_draw: np.ndarray
    gain_of_draw: np.ndarray
    end_of_draw: np.ndarray

    @property
    def levels(self) -> int:
        """T."""
        return self.w2_squared.size - 1

    @property
    def best(self) -> int:
        """Number of states whose loss lowers the (expected) squared W2 most; the largest of several."""
        return int(laws.best_dropped(self.w2_squared))

    @property
    def gain_percent(self) -> float:
        """What dropping them saves of the (expected) squared W2 without dropping any."""
        return _percent(self.w2_squared[0] - self.w2_squared[self.best], self.w2_squared[0])

    @property
    def tolerated(self) -> dict[str, int]:
        """States that can be dropped within the tolerance, for each thing it is relative to."""
        return {name: laws.tolerated(self.w2_squared, allowed) for name, allowed in self.allowance.items()}

    @property
    def measured_gain_percent(self) -> tuple[float, float]:
        """Mean gain over draws of dropping ``best`` states, and its standard error, in percent of the mean without."""
        count, mean = self.gain_of_draw.size, self.end_of_draw.mean()
        error = self.gain_of_draw.std(ddof=1) / np.sqrt(count) if count > 1 else 0.0
        return _percent(self.gain_of_draw.mean(), mean), _percent(error, mean)

    @property
    def spread(self) -> tuple[int, int, int]:
        """5 %, 50 % and 95 % quantiles of the draws' own best numbers, each one of them."""
        return tuple(int(q) for q in np.percentile(self.best_of_draw, [5, 50, 95], method="inverted_cdf"))

    @property
    def verdict(self) -> str:
        """What the draws say: "drop", "no gain", or "cannot tell" if the gain lies within two standard errors of 0."""
        mean, error = self.measured_gain_percent
        if self.best == 0:
            return NO_GAIN
        if np.isinf(self.n):
            return DROP if mean > 0 else NO_GAIN
        return DROP if mean > 2 * error else CANNOT_TELL


def _percent(part: float, whole: float) -> float:
    return float(100.0 * part / whole) if whole > 0 else 0.0


def kept_variances(variances: np.ndarray, d: int, *, rescale: bool) -> tuple[np.ndarray, float]:
    """The first d of ``variances`` ``[D]`` and the total of the others, both divided by the mean of the first d."""
    scale = variances[:d].mean() if rescale else 1.0
    return variances[:d] / scale, float(variances[d:].sum() / scale)


def plan(config: Config) -> list[plans.Stage]:
    """The stages of `run`."""
    chosen = pairs(config)
    numbers = [
        d * (config.levels + 1) * (1 if np.isinf(n) else config.draws) for n in config.n for d in config.latent_dims
    ]
    seconds = 2e-3 + 2e-8 * np.mean(numbers)
    return [plans.host("closed forms", runs=len(numbers) * len(chosen), seconds=seconds)]


def run(
    variances: np.ndarray,
    config: Config,
    report: Callable[[str], None] = lambda line: None,
    store: Store = NOTHING_KEPT,
) -> list[Case]:
    """Every case, n outermost, then ladder, sampler and latent dimension; the function behind the command.

    Args:
      variances: ``[D]`` of the data, largest first.
      config: what to compute.
      report: receives a line for each sampler that a ladder does not allow.
      store: where cases are kept.

    Raises:
      ValueError: if a latent dimension exceeds D, no variance is positive, or no sampler runs on any ladder.
    """
    if max(config.latent_dims) > variances.size:
        raise ValueError(f"latent_dims must be 1..{variances.size}, got {config.latent_dims}")
    if not variances[0] > 0:
        raise ValueError("no variance is positive")
    cases, chosen = [], pairs(config, report)
    for n in config.n:
        drawn, latents = _draws(variances, n, config), [_latents(variances, d, n, config) for d in config.latent_dims]
        for ladder, sampler in chosen:
            cases += store.piece(
                f"closed form/n{n}/{ladder}/{sampler}",
                lambda given=(n, drawn, ladder, sampler), latents=latents: [
                    _case(one, *given, config) for one in latents
                ],
            )
    return cases


def pairs(config: Config, report: Callable[[str], None] = lambda line: None) -> list[tuple[str, str]]:
    """(ladder, sampler) for all that go together; ValueError if none does."""
    chosen = []
    for ladder in config.ladders:
        for sampler in config.samplers:
            if laws.is_defined(sampler, config.ladder(ladder, np.ones(1))):
                chosen.append((ladder, sampler))
            else:
                report(
                    f"{sampler} is left out on {ladder}, which starts at pure noise: {sampler} divides by the signal"
                )
    if not chosen:
        raise ValueError(f"none of them runs on {', '.join(config.ladders)}, which starts at pure noise")
    return chosen


def _draws(variances, n, config):
    """Estimates relative to the truth ``[R, D]``: the same draws for every ladder, sampler and latent dimension."""
    if np.isinf(n):
        return np.ones((1, variances.size))
    return twin_estimates(np.ones_like(variances), n=int(n), draws=config.draws, seed=config.seed)


class _Latents(NamedTuple):
    """What one latent dimension and n have in common over ladders and samplers."""

    variances: np.ndarray
    left_out: float
    noise_var_formula: float
    noise_var_expected: float


def _latents(variances, d, n, config):
    kept, left_out = kept_variances(variances, d, rescale=config.rescale)
    return _Latents(kept, left_out, laws.formula_noise_var(kept, n), laws.expected_best_noise_var(kept, n))


def _case(latents, n, drawn, ladder_name, sampler, config):
    kept = latents.variances
    ladder, total = config.ladder(ladder_name, kept), float(kept.sum())
    expected = laws.expected_w2_squared(kept, n, ladder, sampler)
    curves = laws.w2_squared(kept, kept * drawn[:, : kept.size], ladder, sampler)
    return Case(
        ladder=ladder_name,
        sampler=sampler,
        n=n,
        latent_dim=kept.size,
        kept=total,
        left_out=latents.left_out,
        noise_var=laws.noise_vars(ladder),
        w2_squared=expected,
        allowance={
            "kept": config.tolerance * total,
            "total": config.tolerance * (float(expected[0]) + latents.left_out),
        },
        noise_var_formula=latents.noise_var_formula,
        noise_var_expected=latents.noise_var_expected,
        best_of_draw=laws.best_dropped(curves),
        gain_of_draw=curves[:, 0] - curves[:, int(laws.best_dropped(expected))],
        end_of_draw=curves[:, 0],
    )


def make_records(cases: list[Case], config: Config) -> list[dict]:
    """Lines of records.jsonl: one per case."""
    rows = []
    for case in cases:
        best, nu, count = case.best, case.noise_var, case.best_of_draw.size
        helped = int(np.sum(case.best_of_draw > 0))
        low, high = wilson_interval(helped, count)
        gain, error = case.measured_gain_percent
        used = laws.evaluations(case.sampler, case.levels, best)
        row = {
            "kind": "closed_form",
            "ladder": case.ladder,
            "sampler": case.sampler,
            "levels": case.levels,
            "n": case.n,
            "latent_dim": case.latent_dim,
            "rescaled": config.rescale,
            "w2_squared_end": case.w2_squared[0],
            "w2_squared_best": case.w2_squared[best],
            "relative_w2_end": np.sqrt(case.w2_squared[0] / case.kept),
            "relative_w2_best": np.sqrt(case.w2_squared[best] / case.kept),
            "states_dropped_best": best,
            "noise_var_best": nu[best],
            "gain_percent": case.gain_percent,
            "networks": case.levels - best,
            "network_evaluations": used,
            "network_evaluations_all_states": laws.evaluations(case.sampler, case.levels, 0),
            "tolerance": config.tolerance,
            "states_dropped_tolerance_total": case.tolerated["total"],
            "states_dropped_tolerance_kept": case.tolerated["kept"],
        }  # fmt: skip
        if np.isfinite(case.n):
            row |= {
                "noise_var_formula": case.noise_var_formula,
                "noise_var_expected": case.noise_var_expected,
                "draws": count,
                "states_dropped_low": case.spread[0],
                "states_dropped_median": case.spread[1],
                "states_dropped_high": case.spread[2],
                "helped_count": helped,
                "helped_share": helped / count,
                "helped_low": low,
                "helped_high": high,
                "measured_gain_percent": gain,
                "measured_gain_standard_error": error,
            }  # fmt: skip
        rows.append(row | {"verdict": case.verdict})
    return rows


def make_curves(cases: list[Case], config: Config) -> dict[str, np.ndarray]:
    """Arrays of curves.npz, a row per latent dimension: squared W2 and noise variance by states dropped, draws' optima."""
    curves = {"latent_dims": np.array(config.latent_dims), "n": np.array(config.n, np.float64)}
    for case in cases:
        name = f"{case.ladder}_{case.sampler}_n{case.n:g}"
        for field in ("w2_squared", "noise_var", "best_of_draw"):
            curves.setdefault(f"{name}_{field}", []).append(getattr(case, field))
    return {name: np.array(rows) for name, rows in curves.items()}
