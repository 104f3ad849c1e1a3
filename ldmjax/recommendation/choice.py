"""The best of all candidates, and those that may be as good."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

NEGLIGIBLE = 0.01
ONE_SIDED_95 = 1.645
Record = Mapping[str, Any]


def choose(records: Sequence[Record], at_best: Mapping[tuple[str, str, str], np.ndarray]) -> list[dict]:
    """Returns the records with the field ``choice``: "best" has the smallest distance of its group, "tied" may be as good.

    A record is tied with the best if the 95 % lower bound of its excess, each at its own best stop and paired over reference
    images, is below `NEGLIGIBLE` of the best distance.

    Args:
      records: one per candidate, feature space and metric; ``best`` is None where it is not finite.
      at_best: pseudo-values ``[K]`` at the best stop, by candidate, feature space and metric.
    """
    chosen = {}
    for group in groups(records):
        finite = [r for r in group if r["best"] is not None]
        if not finite:
            continue
        best = min(finite, key=lambda r: r["best"])
        for record in finite:
            p, q = (at_best[r["name"], r["features"], r["metric"]] for r in (record, best))
            error = np.std(p - q, ddof=1) / np.sqrt(len(p))
            if np.mean(p - q) - ONE_SIDED_95 * error < NEGLIGIBLE * abs(best["best"]):
                chosen[id(record)] = "tied"
        chosen[id(best)] = "best"
    return [{**record, "choice": chosen.get(id(record))} for record in records]


def groups(records: Sequence[Record]) -> Iterator[list[Record]]:
    """Records whose distances can be compared: of one feature space and metric, and of one candidate if between latents."""
    found: dict[tuple, list[Record]] = {}
    for record in records:
        alone = (record["name"],) if record["compared"] == "latents" else ()
        found.setdefault((record["features"], record["metric"], *alone), []).append(record)
    yield from found.values()
