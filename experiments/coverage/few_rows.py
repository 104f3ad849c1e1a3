"""The noisy autoencoder's analysis with few held-out points for many features: .5 to 8 points for each of 256.

Three spectra, three numbers of training points, two latent dimensions; and, with a fourth spectrum, the choice between the two
dimensions, of which the larger is better.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from experiments.coverage import noisy
from experiments.coverage.laws import Law
from ldmjax import data, recommendation

DIM = 256
RATIOS = (0.5, 1.0, 2.0, 8.0)
LATENT_DIMS = (128, 256)  # of the choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """Two PCA dimensions of n = 400 points, compared with m held-out ones by squared Fréchet distance."""

    name: str
    reference: int
    n: int = 400
    share: float = 0.2
    law: Law = Law(variances=np.geomspace(4.0, 0.004, DIM) * DIM / np.geomspace(4.0, 0.004, DIM).sum())

    def analysis(self, draws: int) -> tuple[Callable[[Sequence[int]], Iterator[list[dict]]], int]:
        """The function from seeds to the row of each, which dimension was chosen and which is better; and its seeds, 1."""
        return lambda seeds: ([choose(self, seed)] for seed in seeds), 1


def choose(choice: Choice, seed: int) -> dict:
    """The row of one draw."""
    shape = {"law": choice.law, "n": choice.n, "reference": choice.reference, "stops": 6, "metrics": ("w2",)}
    problems = [noisy.make_problem(noisy.Case(name=str(d), latent_dim=d, **shape), seed) for d in LATENT_DIMS]
    outcome = recommendation.compare([problem.candidate for problem in problems], problems[0].config)
    (chosen,) = outcome.recommendations
    best = [float(problem.truth.w2().min()) for problem in problems]
    right = str(LATENT_DIMS[int(np.argmin(best))])
    return {
        "case": choice.name,
        "choice": True,
        "seed": seed,
        "n": choice.n,
        "reference": choice.reference,
        "exact_best": best,
        "best": [record["best"] for record in outcome.records],
        "chosen": chosen["name"],
        "right": chosen["name"] == right,
        "tied": len(chosen["tied"]) > 1,
    }


def default_cases(n: int) -> list[noisy.Case | Choice]:
    """All of them; ``n`` is not used, it varies."""
    spectra = {name: data.spectrum_variances(name, DIM) for name in ("power:1.5", "power:0.5", "exponential:0.027")}
    rows = [int(ratio * DIM) for ratio in RATIOS]
    return [
        *(
            noisy.Case(
                name=f"{name}, d = {min(d, n - 1)}, n = {n}, m = {m}",
                law=Law(variances=variances),
                latent_dim=min(d, n - 1),
                n=n,
                reference=m,
                stops=14,
                share=0.2,
            )
            for name, variances in spectra.items()
            for d in (32, 128)
            for n in (100, 500, 2000)
            for m in rows
        ),
        *(Choice(name=f"choice of d, m = {m}", reference=m) for m in rows),
    ]
