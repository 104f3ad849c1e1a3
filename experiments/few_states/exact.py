"""Exact distances of chains on Gaussian data: what T noise levels cost, and the floor that no number of levels removes.

With g_i = alpha_i^2 lam + sigma_i^2 the variance of a component on level i (1 = cleanest, T = noisiest, 0 = clean data),
chains start from N(0, I) and their last update is the denoiser of level 1, whatever T. Infinitely many levels between level T
and level 1 leave

    (1)  flow (ddim, heun, dpmpp_2m)   v_1 = g_1 / g_T
    (2)  reverse SDE (ddpm)            v_1 = g_1 + (alpha_T g_1 / (alpha_1 g_T))^2 (1 - g_T)
    (3)  last update                   v_0 = (alpha_1 lam / g_1)^2 v_1

The *floor* is the distance of (3) from lam, the *mismatch* its limit as level 1 tends to clean data: g_T = 1 is what the start
assumes. Both hold with alpha^2 + sigma^2 = 1 or without. relW2 = W2 / sqrt(trace of the covariance).
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments import flags as shared
from experiments import plans
from experiments.unused_states.laws import CHAINS, evaluations, is_defined
from ldmjax import oracle, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

SAMPLERS = ("ddim", "ddpm", "heun", "dpmpp_2m")
OPTIMISED_UP_TO = 128  # levels; the search takes minutes beyond
USUAL = ("linear_beta", "ddpm", 1000)  # the states that the claim reduces: Ho et al., arXiv 2006.11239


@dataclasses.dataclass(frozen=True, kw_only=True)
class Chain:
    """One sampler on one ladder; distances are relW2.

    Attributes:
      ladder: its name.
      sampler: one of `SAMPLERS`.
      levels: T.
      evaluations: of the network, per sample.
      effective_states: N_eff of the ladder (T_SPACE.md §2).
      rel_w2: from N(0, I).
      rel_w2_exact_start: from the exact law of level T: what the updates alone cost.
      mismatch: what the start alone costs.
      floor: with infinitely many levels between this ladder's two ends.
    """

    ladder: str
    sampler: str
    levels: int
    evaluations: int
    effective_states: float
    rel_w2: float
    rel_w2_exact_start: float
    mismatch: float
    floor: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Few levels against many for one sampler and ladder.

    Attributes:
      ladder: its name.
      sampler: one of `SAMPLERS`.
      few, many: numbers of levels.
      ratio: relW2 at few over relW2 at many.
      ratio_exact_start: the same without the start's mismatch.
      floor: at many.
      verdict: "does not", "only the floor" or "matches" (`verdict`).
      levels_needed: the smallest T of those computed from which on relW2 is within the tolerance of that at many.
      usual_ratio: relW2 at few over that of the usual chain, DDPM on 1000 levels linear in beta.
      matches_usual: whether that is at most the tolerance.
    """

    ladder: str
    sampler: str
    few: int
    many: int
    ratio: float
    ratio_exact_start: float
    floor: float
    verdict: str
    levels_needed: int
    usual_ratio: float
    matches_usual: bool


def relative_w2(variances: np.ndarray, generated: np.ndarray) -> float:
    """RelW2 of N(0, diag(generated)) from N(0, diag(variances)), both ``[D]``."""
    return float(np.sqrt(np.sum((np.sqrt(generated) - np.sqrt(variances)) ** 2) / np.sum(variances)))


def limit_variances(
    variances: np.ndarray, ladder: schedules.Ladder, sampler: str, *, truncated: bool = True
) -> np.ndarray:
    """Equation (3) ``[D]``.

    Args:
      variances: ``[D]``.
      ladder: only its two ends matter.
      sampler: one of `SAMPLERS`.
      truncated: False moves level 1 to clean data.
    """
    alpha_t, sigma_t = ladder.alpha_levels[0], ladder.sigma_levels[0]
    alpha_1, sigma_1 = (ladder.alpha_levels[-1], ladder.sigma_levels[-1]) if truncated else (1.0, 0.0)
    noisy, clean = alpha_t**2 * variances + sigma_t**2, alpha_1**2 * variances + sigma_1**2
    if sampler == "ddpm":
        reached = clean + (alpha_t * clean / (alpha_1 * noisy)) ** 2 * (1.0 - noisy)
    else:
        reached = clean / noisy
    # Where nothing is left to denoise (lam = 0 at sigma = 0) the last update changes nothing.
    return np.divide(alpha_1 * variances, clean, out=np.ones_like(clean), where=clean > 0) ** 2 * reached


def make_chain(variances: np.ndarray, name: str, ladder: schedules.Ladder, sampler: str) -> Chain:
    """All of one chain's numbers; ``name`` is the ladder's."""
    alpha, sigma = np.array(ladder.alpha_levels), np.array(ladder.sigma_levels)

    def distance(start):
        return relative_w2(
            variances, oracle.chain_variances(variances, alpha, sigma, start=start, **CHAINS[sampler])[-1]
        )

    return Chain(
        ladder=name,
        sampler=sampler,
        levels=len(alpha),
        evaluations=evaluations(sampler, len(alpha), 0),
        effective_states=oracle.effective_states(oracle.discretisation_weights(alpha, sigma)),
        rel_w2=distance("standard"),
        rel_w2_exact_start=distance("marginal"),
        mismatch=relative_w2(variances, limit_variances(variances, ladder, sampler, truncated=False)),
        floor=relative_w2(variances, limit_variances(variances, ladder, sampler)),
    )


def usual_distance(variances: np.ndarray) -> float:
    """RelW2 of the usual chain, `USUAL`."""
    name, sampler, levels = USUAL
    return make_chain(variances, name, shared.make_ladder(name, levels, variances), sampler).rel_w2


def plan(dim: int, ladders: Sequence[str], levels: Sequence[int]) -> list[plans.Stage]:
    """The stages of `run` on ``dim`` components."""
    # Every sampler from two starts, a vector operation or two per level.
    updates = 2 * len(SAMPLERS) * sum(levels)
    return [plans.host("exact distances", runs=len(ladders) + 1, seconds=updates * (6e-6 + 1.3e-7 * dim))]


def run(
    variances: np.ndarray,
    ladders: Sequence[str],
    levels: Sequence[int],
    *,
    limits: Mapping[str, float],
    store: Store = NOTHING_KEPT,
    report: Callable[[str], None] = lambda line: None,
) -> list[Chain]:
    """Every sampler on every ladder at every T, then on the levels optimised for DDIM, the bound.

    Args:
      variances: covariance spectrum ``[D]``.
      ladders: names out of `experiments.flags.LADDERS`.
      levels: numbers of levels T, rising.
      limits: sigma_min and sigma_max of `experiments.flags.make_ladder`.
      store: where the chains of each ladder are kept.
      report: receives progress lines.
    """
    chains = []
    for name in (*ladders, "optimised"):
        chains += store.piece(f"exact/{name}", lambda name=name: _on_ladder(variances, name, levels, limits))
        report(f"exact: {name}, {variances.size} components, T = {', '.join(map(str, levels))}")
    return chains


def _on_ladder(variances, name, levels, limits):
    """Every sampler at every T."""
    chains = []
    for count in levels:
        if name != "optimised":
            ladder = shared.make_ladder(name, count, variances, **limits)
        elif count <= OPTIMISED_UP_TO:
            ladder = schedules.Ladder(*oracle.optimised_levels(variances, count))
        else:
            continue
        chains += [make_chain(variances, name, ladder, s) for s in SAMPLERS if is_defined(s, ladder)]
    return chains


def verdict(few: float, many: float, floor: float, tolerance: float) -> str:
    """Whether few levels do what many do, from their distances.

    Returns:
      "does not": few is farther than ``tolerance`` times many, or not finite. Otherwise "only the floor" where both are within
      ``tolerance`` times the floor, and "matches" where they are not.
    """
    if not (np.isfinite(few) and few <= tolerance * many):
        return "does not"
    return "only the floor" if max(few, many) <= tolerance * floor else "matches"


def compare(chains: Sequence[Chain], few: int, many: int, *, usual: float, tolerance: float) -> list[Comparison]:
    """Few levels against many for every ladder and sampler that has both.

    Args:
      chains: from `run`.
      few: a number of levels among them.
      many: another.
      usual: from `usual_distance`.
      tolerance: ratio of relW2 that counts as equal, >= 1.
    """
    found = []
    for ladder, sampler in dict.fromkeys((c.ladder, c.sampler) for c in chains):
        own = {c.levels: c for c in chains if (c.ladder, c.sampler) == (ladder, sampler)}
        if not {few, many} <= set(own):
            continue
        low, high = own[few], own[many]
        far = [T for T, c in own.items() if not c.rel_w2 <= tolerance * high.rel_w2]
        found.append(
            Comparison(
                ladder=ladder,
                sampler=sampler,
                few=few,
                many=many,
                ratio=low.rel_w2 / high.rel_w2,
                ratio_exact_start=low.rel_w2_exact_start / high.rel_w2_exact_start,
                floor=high.floor,
                verdict=verdict(low.rel_w2, high.rel_w2, high.floor, tolerance),
                levels_needed=min(T for T in own if T > max(far, default=0)),
                usual_ratio=low.rel_w2 / usual,
                matches_usual=low.rel_w2 <= tolerance * usual,
            )
        )
    return found
