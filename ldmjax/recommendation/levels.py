"""Noise levels that a first pass shows to be missing: beyond the grid's edges, and where an interval of t* is one cell.

A stop that is best at the noisiest or at the cleanest level with noise may be better still beyond it; so may one between the
cleanest level and the end, if the distance still falls there. An interval of one cell says where t* is to a cell only,
however sure the curve is. A second pass decodes the same latents with the same noise at more
levels, so that its pseudo-values are paired with the first's, and all of them are read as one curve.
"""

from collections.abc import Sequence

import numpy as np

from ldmjax.stopping import Chain, StoppingResult

WITHIN = 3  # levels in a cell, at most
WIDEST = 2.0  # step beyond an edge, in logsnr, at most
EDGES = ("first", "last", "end")


def edge_of(
    result: StoppingResult,
    logsnrs: np.ndarray,
    *,
    chain: Chain | None = None,
    span: tuple[float, float] = (-np.inf, np.inf),
    negligible: float,
) -> str | None:
    """Names the edge of the levels tried at which the best stop is, so that a better one may lie beyond.

    Returns:
      One of `EDGES`: the noisiest level, the cleanest with noise, or the end where the cleanest level is farther from it than
      the share ``negligible`` of its distance. None for another stop, and where the sampler has no stop beyond: its stops are
      those of ``chain``, after whose last one more steps would have later ones, or any within ``span``.
    """
    end = len(logsnrs) - 1
    first, last = span if chain is None else (chain.logsnrs[0], chain.logsnrs[-2])
    if result.best_stop == 0 and logsnrs[0] > first:
        return EDGES[0]
    between = last > logsnrs[-2]
    if result.best_stop == end - 1 and (between or chain is not None):
        return EDGES[1]
    if result.best_stop != end:
        return None
    fall = result.curve[-2] - result.curve[-1]
    scale = max(abs(result.curve[-1]), 2.0 * result.standard_error[-1])
    return EDGES[2] if between and fall > negligible * scale else None


def missing_levels(
    logsnrs: np.ndarray,
    results: Sequence[StoppingResult],
    *,
    most: int,
    chain: Chain | None = None,
    span: tuple[float, float] = (-np.inf, np.inf),
    negligible: float,
) -> np.ndarray:
    """Levels to add for the curves of one candidate, which share their decodings.

    Args:
      logsnrs: those measured, ``[S]``, rising, the last +inf.
      results: the curves, read.
      most: how many may be added; cells next to a best stop come first.
      chain: a sampler, none but whose own levels can be added.
      span: logsnr of the noisiest and the cleanest level that can be added.
      negligible: as in `edge_of`.

    Returns:
      Rising and finite, none of them in ``logsnrs``; empty if nothing is missing or can be added.
    """
    edges = [edge_of(result, logsnrs, chain=chain, span=span, negligible=negligible) for result in results]
    counts = _levels_by_cell(results, edges, most)
    bounds = np.concatenate([[-np.inf], logsnrs])
    own = None if chain is None else chain.logsnrs[:-1]
    found = []
    for cell, count in counts.items():
        low, high = bounds[cell : cell + 2]
        targets = _spread(low, high, count, step=_step(logsnrs[:-1]))
        targets = targets[(targets >= span[0]) & (targets < span[1])]
        if own is not None:
            within = own[(own > low) & (own < high)]
            nearest = np.abs(within - targets[:, None]).argmin(axis=1) if len(within) and len(targets) else []
            targets = within if len(within) <= count else within[np.unique(nearest)]
        found.extend(targets)
    return np.sort(np.array(found))


def _levels_by_cell(results, found, most):
    """How many levels each cell wants; cell k ends at level k, so that cell 0 is beyond the noisiest level."""
    edges, cells = set(), {}
    for result, edge in zip(results, found, strict=True):
        if result.best_stop is None:
            continue
        low, best, high = result.best_stop_low, result.best_stop, result.best_stop_high
        wanted = set(range(low, high + 2)) if high - low <= 1 else set()
        if edge is not None:  # the optimum may not be near what is best so far
            wanted = {0 if edge == "first" else len(result.curve) - 1}
            if not (edge == "last" and high == len(result.curve) - 1):  # there it is the end as well
                edges |= wanted
        for cell in wanted & set(range(len(result.curve))):
            cells[cell] = min(cells.get(cell, np.inf), abs(cell - 0.5 - best))
    chosen = sorted(cells, key=lambda cell: (cells[cell], cell))[:most]
    share = most // max(len(chosen), 1)
    return {cell: share if cell in edges else min(share, WITHIN) for cell in chosen}


def _step(finite):
    return min(float(np.median(np.diff(finite))), WIDEST) if len(finite) > 1 else 1.0


def _spread(low, high, count, *, step):
    """``count`` numbers between the bounds, in equal steps; from the finite one if the other is infinite."""
    if np.isinf(low):
        return high - step * np.arange(count, 0, -1)
    if np.isinf(high):
        return low + step * np.arange(1, count + 1)
    return np.linspace(low, high, count + 2)[1:-1]
