"""Can float32, in which networks and distances compute, hold these numbers, and their squares?"""

import numpy as np

LARGEST = 1e18  # its square is still in float32
COARSEST = 0.1  # step of float32, in standard deviations: its rounding adds a thousandth of the variance
ROUNDING = 2e-15  # relative deviation of what is constant, in float64


def float32_problem(samples: np.ndarray, *, mean: np.ndarray | float = 0.0) -> str | None:
    """Says what float32 cannot hold of samples ``[N, ...]`` to which ``mean`` ``[D]`` is added, and what to do; None if it can.

    Entries that are the same in all samples do not matter: constants are not what is compared.
    """
    rows = samples.reshape(len(samples), -1)
    with np.errstate(all="ignore"):
        largest = np.maximum(rows.max(axis=0) + mean, -(rows.min(axis=0) + mean)).astype(np.float64)
        variances = rows.var(axis=0, dtype=np.float64)
    if not np.max(largest) <= LARGEST:
        return f"has values up to {np.max(largest):.3g}, whose squares float32 cannot hold: rescale them"
    varying = variances > (ROUNDING * largest) ** 2
    if not varying.any():
        return None
    deviation = np.sqrt(np.mean(variances[varying]))
    if deviation < 1.0 / LARGEST:
        return f"varies by {deviation:.3g}, whose square float32 cannot hold: rescale it"
    steps = np.spacing(largest[varying].astype(np.float32)).astype(np.float64)
    if np.sqrt(np.mean(steps**2)) > COARSEST * deviation:
        return (
            f"varies by {deviation:.3g} around {largest[varying].max():.3g}, where float32 has steps of {steps.max():.2g}: "
            "subtract the offset"
        )
    return None
