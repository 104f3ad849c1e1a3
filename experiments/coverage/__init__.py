"""Are the intervals and verdicts on stopping times right? Repeats the analysis on many draws with a known answer.

The product's promise is that a figure it prints can be trusted: the 90 % interval of t* must contain the exact
optimum of that draw's estimate in 90 % of draws, "stop early" must be found where it helps and never where it cannot.
In the first analysis (sampler.py) every draw estimates a spectrum from n samples, samples 250 Euler-Maruyama steps with the
exact plug-in score of that estimate, reads the stopping curve as the main job does (W2, by default at 125 stops: with few
stops the true optimum is more often a grid point that the interval cannot miss), and compares with the exact discretised law
at the same stops. Controls, by W2: the exact score and whitened latents (never "stop early"); --planted=images.npz plants a
large effect (n samples, d near the rank).

The second analysis is that of `recommend`: the noisy autoencoder on n training points, PCA of them, compared with held-out
points only (noisy.py), under every metric; the third the same with few held-out points for many features (few_rows.py). Their
intervals contain the error of the reference.

    python -m experiments.coverage                        # the first two analyses
    python -m experiments.coverage --analyses=few_rows
    python -m experiments.coverage --analyses=noisy_autoencoder --planted=mnist.npz

Takes an hour on two cores, few_rows 50 minutes; the numbers obtained stand in docs/results.md#coverage.
"""

import dataclasses

import numpy as np

from experiments import launch
from experiments.coverage import few_rows, noisy, sampler
from experiments.launch import Results, Stage, setting
from ldmjax import data
from ldmjax.job import NO_JOB, Job

ANALYSES = {"sampler": sampler, "noisy_autoencoder": noisy, "few_rows": few_rows}
PLANTED_N = 500
QUICK = {"draws": 10}
Case = sampler.Case | noisy.Case | few_rows.Choice


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.Settings):
    """What is repeated, and how often."""

    analyses: tuple[str, ...] = setting(("sampler", "noisy_autoencoder"), "What is repeated.", choices=tuple(ANALYSES))
    draws: int = setting(100, "Draws per case; of some that are slow, a fifth.", low=2, high=1_000_000)
    first_seed: int = launch.seed(1000, "Seed of the first draw; 0..159 set the interval's percentiles.")
    n: int = setting(100, "Samples that each estimate sees.", low=32, high=1_000_000)
    planted: str | None = setting(
        None,
        f"Images: adds the planted effect (n = {PLANTED_N}, a tenth of the draws).",
        allowed="an .npz file of images",
        check=lambda path: launch.check_file(path, ".npz"),
    )

    def __post_init__(self):
        super().__post_init__()
        if self.planted is not None and self.analyses == ("few_rows",):
            raise self.refuse("planted", "allowed only with another analysis: few_rows has no such case")

    def load(self) -> data.Dataset | None:
        """The images whose spectrum has the planted effect."""
        if self.planted is None:
            return None
        try:
            dataset = data.load_npz(self.planted)
        except ValueError as error:
            raise self.refuse("planted", f"must be an .npz file of images ({error})") from error
        variances = _spectrum(dataset)
        rank = int(np.count_nonzero(variances > 1e-12 * variances[0]))
        if rank < PLANTED_N:
            raise self.refuse("planted", f"must have a covariance of rank {PLANTED_N} at least, not {rank}")
        return dataset

    def cases(self, planted: data.Dataset | None) -> list[tuple[str, Case]]:
        """All situations with the names of their analyses, the planted ones last."""
        found = [(name, case) for name in self.analyses for case in ANALYSES[name].default_cases(self.n)]
        if planted is not None:
            makers = [(name, ANALYSES[name].planted_case) for name in self.analyses if name != "few_rows"]
            found += [(name, make(_spectrum(planted), PLANTED_N)) for name, make in makers]
        return found

    def draws_of(self, case: Case) -> int:
        """The case's share of the draws."""
        return max(2, round(self.draws * case.share))


def _spectrum(dataset: data.Dataset) -> np.ndarray:
    return np.linalg.eigvalsh(dataset.covariance)[::-1].clip(0.0)


def compute(config: Config, planted: data.Dataset | None, job: Job) -> Results:
    """Every case; a row per draw and metric, or per draw of a choice."""
    rows = []
    for name, case in config.cases(planted):
        how = {"draws": config.draws_of(case), "first_seed": config.first_seed, "job": job.within(name)}
        rows += [{"analysis": name, **row} for row in run_case(case, **how)]
    return Results(rows=rows)


def run_case(case: Case, *, draws: int, first_seed: int = 0, job: Job = NO_JOB) -> list[dict]:
    """The rows of a case, those of every draw kept."""
    analyse, at_once = case.analysis(draws)
    found = job.map(
        lambda places: analyse([first_seed + i for i in places]),
        [f"{type(case).__module__}/{case.name}/seed {first_seed + i}" for i in range(draws)],
        label=f"{case.name}: draws",
        at_once=at_once,
    )
    return [row for rows in found for row in rows]


def plan(config: Config, planted: data.Dataset | None) -> list[Stage]:
    """A stage per case; those of `sampler` alone have a score, which is evaluated."""
    stages = []
    for name, case in config.cases(planted):
        draws, counts = config.draws_of(case), {}
        if isinstance(case, sampler.Case):
            counts = {"programs": 1, "steps": case.steps, "evaluations": draws * case.samples * case.steps}
        stages.append(Stage(stage=f"{name}: {case.name}", runs=draws, **counts))
    return stages
