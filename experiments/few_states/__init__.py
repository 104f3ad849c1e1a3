r"""Asks whether 32 well-chosen noise levels match 1000: which ladder, which sampler, which floor.

Claim ([TS], arXiv 2508.14413): some 32 well-chosen latent states do what 1000 do. Made precise here: a chain with T = 32
*matches* one with T = 1000 if its W2 distance to the data is at most 1.2 times as large (--tolerance). A match can come from
a *floor* that no number of levels removes: the start from N(0, I) in place of the law of the noisiest level, the last update,
the finite number of samples, the network's error.

- exact: exact score and closed forms on the spectrum of --data or --spectrum, every sampler on every ladder; relW2 = W2 over
  the data's standard deviation
- mixture: exact score on an 8-D mixture, all chains from the same noise, compared with the exact flow from that noise
- learned: one network of 1000 levels sampled with T of them, and one trained on the 32 levels only, three seeds
- with --mixture_samples: a larger network (v-prediction, K = 2, width 128) against the exact score by many samples

    python -m experiments.few_states                                             # digits
    python -m experiments.few_states --quick
    python -m experiments.few_states --parts=exact --spectrum=cifar10_spectrum.npy
    python -m experiments.few_states --parts=mixture --samples=32768 \
        --ladders=karras,uniform_logsnr,spectral --levels=8,16,32,64,128,256
    python -m experiments.few_states --parts=exact --mixture_samples=100000

Takes 190 s of processor time on two cores, and --quick 26 s; the other lines 29 s (CIFAR-10), 114 s and 275 s.

Obtained. *Exact*, digits: 32 states match 1000 in 0 of 27 chains, their relW2 is 10 to 486 times as large; first-order chains
fall as 1/T (DDIM at T = 32: .0431 on the spectral ladder, .0403 on optimised levels, .0807 on Karras). What 32 second-order
states do match is the *usual* 1000, DDPM on linear beta (.0070): DPM-Solver++(2M) on uniform logsnr (.0070), spectral (.0070)
and rectified-flow levels (.0074), Heun on spectral levels (.0082, 63 evaluations). CIFAR-10 spectrum: 32 match 1000 in 6 of
27, each time because both sit on the floor of the start: .172 for Stable Diffusion's ladder (DDIM, Heun, 2M), .0094 for
sigma_max = 80 (Heun and 2M on Karras, ratios 1.10 and 1.15; 2M on uniform logsnr, .80). Started from the exact law none
does: 5 to 539 times. Heun explodes on the cosine ladder (relW2 2.4). DDPM's floor is lower than the flows', its
noise forgets the start.
*Mixture*, 4096 samples: from T = 16 on 2M is within 1.2 of the floor (spectral 8; Karras and scaled linear 32), Heun 8 to 32,
DDIM 32 (Karras and uniform logsnr 64), DDPM 32 to 128. With 32768 samples the floor is lower and 2M needs 16 (spectral) or
32, DDIM 64 (spectral), 128 (Karras), 256 (uniform logsnr): "2M by 16, DDIM more than 64" holds for some ladders and sample
counts, not for all.
*Learned*, Karras: with 2M 32 states match 1000 on digits (relFD above the floor .0089 against .0097, interval of the
difference -.0008 ± .0002) and on the mixture (.0019 against .0023), "cannot tell" on the Gaussian (.0005, both); with DDIM
they differ (.0213 against .0100, .0097 against .0024, .0071 against .0005). Training on 32 instead of 1000 levels makes no
difference where 32 are sampled: 11 of 12 comparisons match, one cannot tell, none differs.
*100,032 samples* of the mixture, T = 32, squared sliced W2 above the floor (8e-5), learned against exact score: DDIM .00378
against .00388 (difference -.00010, .00047 allowed), 2M .00011 against .00007 (.00004, .00015 allowed): both within 10 % + 2
standard errors. With --seeds=1: -.00023 (.00048) and .00012 (.00013), which is just within.
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from experiments import flags as shared
from experiments import plans
from experiments import tasks as tasks_lib
from experiments.few_states import acceptance as acceptance_lib
from experiments.few_states import exact as exact_lib
from experiments.few_states import learned as learned_lib
from experiments.few_states import mixture as mixture_lib
from ldmjax import data, gaussians
from ldmjax.checkpoints import NOTHING_KEPT, Store

__all__ = ["PARTS", "Config", "Outcome", "plan", "run"]

PARTS = ("exact", "mixture", "learned")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is computed; the flags of the same names say more."""

    parts: tuple[str, ...] = PARTS
    ladders: tuple[str, ...] = shared.LADDERS
    levels: tuple[int, ...] = (8, 16, 32, 64, 128, 1000)
    few: int = 32
    sigma_min: float = 0.002
    sigma_max: float = 80.0
    tolerance: float = 1.2
    samples: int = 4096
    tasks: tuple[str, ...] = ("data", "mixture", "gaussian")
    latent_dim: int = 32
    learned_ladder: str = "karras"
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int = 6000
    batch_size: int = 256
    hidden: int = 64
    mixture_samples: int = 0
    mixture_steps: int = acceptance_lib.AcceptanceConfig.steps

    def __post_init__(self):
        if self.few not in self.levels or self.few == max(self.levels):
            raise ValueError(f"few must be one of the levels below the largest, {list(self.levels)}, got {self.few}")
        if not 1.0 <= self.tolerance < np.inf:
            raise ValueError(f"tolerance must be a finite number >= 1, got {self.tolerance}")
        if self.samples % tasks_lib.BLOCKS:
            raise ValueError(f"samples must be a multiple of {tasks_lib.BLOCKS}, got {self.samples}")

    @property
    def many(self) -> int:
        """The largest number of levels."""
        return max(self.levels)

    @property
    def limits(self) -> dict[str, float]:
        """Range of the ladders that have none of their own."""
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}

    @property
    def learned(self) -> learned_lib.LearnedConfig:
        """How scores are learned."""
        names = ("levels", "few", "tolerance", "samples", "seeds", "steps", "batch_size", "hidden")
        return learned_lib.LearnedConfig(
            ladder=self.learned_ladder, **self.limits, **{name: getattr(self, name) for name in names}
        )

    @property
    def acceptance(self) -> acceptance_lib.AcceptanceConfig:
        """How the larger network on the mixture is learned."""
        return acceptance_lib.AcceptanceConfig(
            samples=self.mixture_samples, steps=self.mixture_steps, levels=self.few, ladder=self.learned_ladder,
            seed=self.seeds[0], **self.limits,
        )  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results; parts that were not asked for are empty.

    Attributes:
      chains: exact distances on the data's spectrum.
      comparisons: few against many levels there.
      usual: relW2 of `exact.USUAL`, None without chains.
      mixture: exact-score chains on the mixture.
      known: squared sliced W2 of its exact flow's samples ("flow") and of draws of the law ("floor").
      learned: learned scores, one entry per chain and seed.
      differences: few against many levels there.
      acceptance: learned against exact scores with many samples.
    """

    chains: list[exact_lib.Chain]
    comparisons: list[exact_lib.Comparison]
    usual: float | None
    mixture: list[mixture_lib.MixtureChain]
    known: dict[str, float]
    learned: list[learned_lib.LearnedChain]
    differences: list[learned_lib.Difference]
    acceptance: list[acceptance_lib.Acceptance]


def plan(dataset: data.Dataset, config: Config, tasks: Sequence[tasks_lib.Task]) -> list[plans.Stage]:
    """The stages of `run`, with the tasks that it makes."""
    levels, stages = sorted(config.levels), []
    if "exact" in config.parts:
        stages += exact_lib.plan(dataset.dim, config.ladders, levels)
    if "mixture" in config.parts:
        stages += mixture_lib.plan(config.ladders, levels, samples=config.samples, limits=config.limits)
    if "learned" in config.parts:
        stages += [stage for task in tasks for stage in learned_lib.plan(task, config.learned)]
    if config.mixture_samples:
        stages += acceptance_lib.plan(config.acceptance)
    return [*stages, plans.host("tables, figures", runs=1, seconds=4.0)]


def run(
    dataset: data.Dataset,
    config: Config,
    report: Callable[[str], None] = print,
    tasks: list[tasks_lib.Task] | None = None,
    store: Store = NOTHING_KEPT,
) -> Outcome:
    """Computes every part that ``config`` names; the function behind the command.

    Args:
      dataset: its covariance gives the spectrum of the exact part.
      config: what to compute.
      report: receives progress lines.
      tasks: what scores are learned on; made from ``dataset`` and ``config`` if None.
      store: where trainings and finished chains are kept.
    """
    levels, chains, usual = sorted(config.levels), [], None
    if "exact" in config.parts:
        variances = gaussians.eigh_descending(dataset.covariance)[0]
        usual = exact_lib.usual_distance(variances)
        chains = exact_lib.run(variances, config.ladders, levels, limits=config.limits, store=store, report=report)
    on_mixture, known = [], {}
    if "mixture" in config.parts:
        on_mixture, known = mixture_lib.run(
            config.ladders, levels, samples=config.samples, seed=0, tolerance=config.tolerance, limits=config.limits,
            store=store, report=report,
        )  # fmt: skip
    found = []
    if "learned" in config.parts:
        if tasks is None:
            tasks = tasks_lib.make_tasks(config.tasks, dataset, latent_dim=config.latent_dim)
        for task in tasks:
            found += learned_lib.run_task(task, config.learned, report, store)
    return Outcome(
        chains=chains,
        comparisons=exact_lib.compare(chains, config.few, config.many, usual=usual, tolerance=config.tolerance),
        usual=usual,
        mixture=on_mixture,
        known=known,
        learned=found,
        differences=learned_lib.compare(found, config.learned),
        acceptance=acceptance_lib.run(config.acceptance, report, store) if config.mixture_samples else [],
    )
