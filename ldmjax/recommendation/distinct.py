"""Which images are used: shuffled, each once, however often it or a near copy of it is there."""

import numpy as np

from ldmjax.metrics import exact_repeats, near_repeats, repeats_by_chance

BEYOND_CHANCE = 2.0  # times the repeats that independent entries make


def choose_distinct(samples: np.ndarray, *, most: int, seed: int, noun: str = "images") -> tuple[np.ndarray, list[str]]:
    """Shuffles samples by ``seed`` and leaves out all but one of those that are equal, or nearly so.

    Args:
      samples: ``[N, ...]``.
      most: how many are used at most: near repeats, whose search takes the square of it, are sought among so many, and
        others take their place.
      seed: of the order, which is that of `Dataset.split_indices` if nothing is left out.
      noun: what a line calls the samples.

    Returns:
      Indices ``[K]`` in random order, and a line on each kind of repeat that was found.
    """
    order, lines = np.random.default_rng(seed).permutation(len(samples)), []
    repeats = exact_repeats(samples)
    if repeats.any():
        if repeats.sum() <= BEYOND_CHANCE * repeats_by_chance(samples):
            return order, []  # of a few coarse numbers: leaving them out would change the law
        lines.append(f"{repeats.sum()} of {len(samples)} {noun} repeat another one exactly: each is used once")
        order = order[~repeats[order]]
    searched, rest, left_out, smallest = order[:most], order[most:], 0, 1.0
    while True:
        kept, ratio = near_repeats(samples[searched])
        missing = len(searched) - len(kept)
        if missing == 0:
            break
        left_out, smallest = left_out + missing, min(smallest, ratio)
        searched, rest = np.append(searched[kept], rest[:missing]), rest[missing:]
    if left_out:
        lines.append(
            f"{left_out} of {len(searched) + left_out} {noun} nearly repeat another one (the distance is below "
            f"{smallest:.2g} of that to the 10th nearest): each is used once"
        )
    return np.append(searched, rest), lines


def choose_distinct_latents(
    arrays: dict[str, np.ndarray], *, most: int, seed: int
) -> tuple[dict[str, np.ndarray], list[str]]:
    """The same for latents that belong together row by row: (arrays without the rows left out, lines)."""
    joined = np.concatenate([standardised(array) for array in arrays.values()], axis=1)
    order, lines = choose_distinct(joined, most=most, seed=seed, noun="latents")
    return ({name: array[order] for name, array in arrays.items()} if lines else arrays), lines


def standardised(array: np.ndarray) -> np.ndarray:
    """``[N, D]`` of one deviation over all, so that no array outweighs another; zeros where nothing varies."""
    rows = array.reshape(len(array), -1).astype(np.float64)
    rows -= rows.mean(axis=0)
    deviation = rows.std()
    return rows / deviation if deviation > 0.0 else rows
