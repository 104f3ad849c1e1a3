"""Exact distances of chains on Gaussian data: what T noise levels cost, and the floor that no number of levels removes.

Chains start from N(0, I), and their last update is the denoiser of the cleanest level, whatever T. The *floor* is the distance
that infinitely many levels between the ladder's ends leave (`chains.limit_variances`), the *mismatch* what is left of it when
the cleanest level is clean data: the start. relW2 = W2 / sqrt(trace of the covariance).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from ldmjax import chains, oracle, schedules
from ldmjax.job import NO_JOB, Job

SAMPLERS = ("ddim", "ddpm", "heun", "dpmpp_2m")
OPTIMISED_UP_TO = 128  # levels; the search takes minutes beyond
USUAL = ("linear_beta", "ddpm", 1000)  # the states that the claim reduces: Ho et al., arXiv 2006.11239


def relative_w2(variances: np.ndarray, generated: np.ndarray) -> float:
    """Returns relW2 of N(0, diag(generated)) from N(0, diag(variances)), both ``[D]``."""
    return float(np.sqrt(np.sum((np.sqrt(generated) - np.sqrt(variances)) ** 2) / np.sum(variances)))


def measure(variances: np.ndarray, name: str, ladder: schedules.Ladder, sampler: str) -> dict:
    """Returns the row of one sampler on the ladder of that name; distances are relW2.

    Fields: evaluations of the network per sample; effective_states, N_eff of the ladder; rel_w2 from N(0, I);
    rel_w2_exact_start from the exact law of level T, what the updates alone cost; mismatch, what the start alone costs; floor.
    """
    alpha, sigma = np.array(ladder.alpha_levels), np.array(ladder.sigma_levels)

    def reached(start):
        return relative_w2(variances, chains.variances(variances, ladder, sampler, start=start)[-1])

    def limit(**options):
        return relative_w2(variances, chains.limit_variances(variances, ladder, sampler, **options))

    return {
        "kind": "exact",
        "ladder": name,
        "sampler": sampler,
        "levels": len(alpha),
        "evaluations": chains.evaluations(sampler, len(alpha)),
        "effective_states": oracle.effective_states(oracle.discretisation_weights(alpha, sigma)),
        "rel_w2": reached("standard"),
        "rel_w2_exact_start": reached("marginal"),
        "mismatch": limit(truncated=False),
        "floor": limit(),
    }


def usual_distance(variances: np.ndarray) -> float:
    """Returns relW2 of the usual chain, `USUAL`."""
    name, sampler, levels = USUAL
    return measure(variances, name, schedules.make_ladder(name, levels, variances), sampler)["rel_w2"]


def measure_all(
    variances: np.ndarray,
    ladders: Sequence[str],
    levels: Sequence[int],
    *,
    limits: Mapping[str, float],
    job: Job = NO_JOB,
) -> list[dict]:
    """Measures every sampler on every ladder at every T, then on the levels optimised for DDIM, the bound.

    Args:
      variances: covariance spectrum ``[D]``.
      ladders: names out of `schedules.LADDERS`.
      levels: numbers of levels T, rising.
      limits: sigma_min and sigma_max of `schedules.make_ladder`.
      job: keeps the rows of each ladder.
    """
    rows = []
    for name in (*ladders, "optimised"):
        rows += job.keep(f"exact/{name}", lambda name=name: _on_ladder(variances, name, levels, limits))
        job.log(f"exact: {name}, {variances.size} components, T = {', '.join(map(str, levels))}")
    return rows


def _on_ladder(variances, name, levels, limits):
    """Measures every sampler at every T."""
    rows = []
    for count in levels:
        if name != "optimised":
            ladder = schedules.make_ladder(name, count, variances, **limits)
        elif count <= OPTIMISED_UP_TO:
            ladder = schedules.Ladder(*oracle.optimised_levels(variances, count))
        else:
            continue
        rows += [measure(variances, name, ladder, s) for s in SAMPLERS if chains.is_defined(s, ladder)]
    return rows


def verdict(few: float, many: float, floor: float, tolerance: float) -> str:
    """Says whether few levels do what many do, from their distances.

    Returns:
      "does not": few is farther than ``tolerance`` times many, or not finite. Otherwise "only the floor" where both are within
      ``tolerance`` times the floor, and "matches" where they are not.
    """
    if not (np.isfinite(few) and few <= tolerance * many):
        return "does not"
    return "only the floor" if max(few, many) <= tolerance * floor else "matches"


def compare(rows: Sequence[Mapping], *, few: int, many: int, usual: float, tolerance: float) -> list[dict]:
    """Compares few levels with many for every ladder and sampler that has both.

    Fields: ratio of relW2, and without the start's mismatch; floor, at many; verdict; levels_needed, the smallest T of those
    computed from which on relW2 is within the tolerance of that at many; usual_ratio, relW2 at few over that of the usual
    chain, and whether it is at most the tolerance.

    Args:
      rows: from `measure_all`.
      few: a number of levels among them.
      many: another.
      usual: from `usual_distance`.
      tolerance: ratio of relW2 that counts as equal, >= 1.
    """
    found = []
    for ladder, sampler in dict.fromkeys((row["ladder"], row["sampler"]) for row in rows):
        own = {row["levels"]: row for row in rows if (row["ladder"], row["sampler"]) == (ladder, sampler)}
        if not {few, many} <= set(own):
            continue
        low, high = own[few], own[many]
        far = [T for T, row in own.items() if not row["rel_w2"] <= tolerance * high["rel_w2"]]
        found.append(
            {
                "kind": "verdict",
                "tolerance": tolerance,
                "usual_rel_w2": usual,
                "ladder": ladder,
                "sampler": sampler,
                "few": few,
                "many": many,
                "ratio": low["rel_w2"] / high["rel_w2"],
                "ratio_exact_start": low["rel_w2_exact_start"] / high["rel_w2_exact_start"],
                "floor": high["floor"],
                "verdict": verdict(low["rel_w2"], high["rel_w2"], high["floor"], tolerance),
                "levels_needed": min(T for T in own if T > max(far, default=0)),
                "usual_ratio": low["rel_w2"] / usual,
                "matches_usual": low["rel_w2"] <= tolerance * usual,
            }
        )
    return found
