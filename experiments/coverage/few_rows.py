"""The noisy autoencoder's analysis with few held-out points for many features: .5 to 8 points for each of 256.

Three spectra, three numbers of training points, two latent dimensions; and, with a fourth spectrum, the choice between the two
dimensions, of which the larger is better.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments import pieces, plans, recommend
from experiments.coverage import noisy
from experiments.coverage.laws import Law
from ldmjax import data
from ldmjax.checkpoints import NOTHING_KEPT, Store

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


def default_cases(n: int) -> list:
    """All of them; ``n`` is not used, it varies."""
    spectra = {name: data.spectrum_variances(name, DIM) for name in ("power:1.5", "power:0.5", "exponential:0.027")}
    rows = [int(ratio * DIM) for ratio in RATIOS]
    return [
        *(
            noisy.Case(
                name=f"{name}, d = {min(d, n - 1)}, n = {n}, m = {m}", law=Law(variances=variances),
                latent_dim=min(d, n - 1), n=n, reference=m, stops=14, share=0.2,
            )
            for name, variances in spectra.items()
            for d in (32, 128)
            for n in (100, 500, 2000)
            for m in rows
        ),
        *(Choice(name=f"choice of d, m = {m}", reference=m) for m in rows),
    ]  # fmt: skip


def plan(case: noisy.Case | Choice, *, draws: int) -> list[plans.Stage]:
    """The stage of `run_case`."""
    if isinstance(case, noisy.Case):
        return noisy.plan(case, draws=draws)
    return [plans.host(case.name, runs=draws, seconds=3.0)]


def run_case(
    case: noisy.Case | Choice,
    *,
    draws: int,
    first_seed: int = 0,
    store: Store = NOTHING_KEPT,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """Records of a case, as `noisy.run_case`, or one per draw of a choice."""
    if isinstance(case, noisy.Case):
        return noisy.run_case(case, draws=draws, first_seed=first_seed, store=store, report=report)
    names = [f"{case.name}/seed {first_seed + i}" for i in range(draws)]
    return pieces.finish(
        names, lambda jobs: [_choose(case, first_seed + i) for i in jobs], store=store, at_once=1,
        label=f"{case.name}: draws", report=report,
    )  # fmt: skip


def _choose(case, seed):
    problems = [
        noisy.make_problem(
            noisy.Case(
                name=str(d), law=case.law, latent_dim=d, n=case.n, reference=case.reference, stops=6, metrics=("w2",)
            ),
            seed,
        )
        for d in LATENT_DIMS
    ]  # fmt: skip
    outcome = recommend.run(
        [problem.candidate for problem in problems], problems[0].config, comparable=True, report=lambda line: None
    )
    (chosen,) = outcome.recommendations
    best = [float(problem.truth.w2().min()) for problem in problems]
    right = str(LATENT_DIMS[int(np.argmin(best))])
    return {
        "case": case.name, "choice": True, "seed": seed, "n": case.n, "reference": case.reference,
        "exact_best": best, "best": [record["best"] for record in outcome.records],
        "chosen": chosen["name"], "right": chosen["name"] == right, "tied": len(chosen["tied"]) > 1,
    }  # fmt: skip


def choices(rows: list[dict]) -> str:
    """A line per number of held-out points: how often the better dimension was chosen."""
    lines = ['Two latent dimensions, the better one chosen; "tied": the other may be as good.']
    for name in dict.fromkeys(row["case"] for row in rows if row.get("choice")):
        own = [row for row in rows if row["case"] == name]
        right, tied = (np.mean([row[key] for row in own]) for key in ("right", "tied"))
        wrong = np.mean([not row["right"] and not row["tied"] for row in own])
        exact, found = (np.mean([row[key] for row in own], axis=0) for key in ("exact_best", "best"))
        dims = ", ".join(
            f"d = {d}: {a:.2f} (exactly {b:.2f})" for d, a, b in zip(LATENT_DIMS, found, exact, strict=True)
        )
        lines.append(
            f"{name}: right {100 * right:.0f} %, tied {100 * tied:.0f} %, wrong and not tied {100 * wrong:.0f} % "
            f"of {len(own)}; {dims}"
        )
    return "\n".join(lines) if len(lines) > 1 else ""
