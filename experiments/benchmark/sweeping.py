"""Our side of trainings: sweeps of score models on Gaussian latents, and how their cost grows with the runs."""

import dataclasses
import functools
import math

import numpy as np

from experiments.benchmark.contest import Sides, Sizes
from ldmjax import devices, sweeps, training
from ldmjax.job import Job

DIM, POINTS, BATCH, LATENT_DIMS, HIDDEN = 16, 1024, 256, (2, 4, 8, 16), 128
RATES, CAP = {"mlp": 0.005, "linear": 0.05, "expert": 0.003, "unet": 0.001}, 20.0
LINEAR_STEPS = 20  # times those of the MLP


@dataclasses.dataclass(frozen=True, kw_only=True)
class UNet:
    """A U-Net and the most that is asked of it: maps per training step, steps a round; samples of a chain and its steps."""

    map_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    batch: int
    steps: int
    samples: int
    sampling_steps: int

    @property
    def dim(self) -> int:
        """Numbers of a map."""
        return math.prod(self.map_shape)

    def config(self, precision: str) -> training.TrainingConfig:
        """Our training of it."""
        return training.TrainingConfig(
            model="unet",
            steps=self.steps,
            batch_size=self.batch,
            map_shape=self.map_shape,
            channels=self.channels,
            precision=precision,
        )


UNETS = {
    "digits": UNet(map_shape=(8, 8, 1), channels=(8, 16), batch=64, steps=1000, samples=4096, sampling_steps=200),
    "cifar": UNet(map_shape=(32, 32, 3), channels=(32, 64, 128), batch=128, steps=100, samples=512, sampling_steps=50),
}
# A contest on a CPU is to take less than a minute.
ON_CPU = {
    "digits": {"steps": 25, "samples": 512, "sampling_steps": 50},
    "cifar": {"batch": 8, "steps": 4, "samples": 8, "sampling_steps": 10},
}


def unet_here(name: str, sizes: Sizes) -> UNet:
    """What is asked of a U-Net on this device: no more than ``sizes`` says, and less on a CPU."""
    unet = dataclasses.replace(UNETS[name], **ON_CPU[name] if devices.platform() == "cpu" else {})
    limited = {
        field: min(getattr(unet, field), getattr(sizes, field)) for field in ("steps", "samples", "sampling_steps")
    }
    return dataclasses.replace(unet, **limited)


@functools.cache
def points(seed: int, dim: int = DIM) -> np.ndarray:
    """Gaussian latents ``[POINTS, dim]`` with variances 1/k^1.5."""
    normals = np.random.default_rng(seed).standard_normal((POINTS, dim))
    return (normals / np.arange(1, dim + 1) ** 0.75).astype(np.float32)


def runs_on_points(
    model: str, runs: int, latent_dims: tuple[int, ...] = LATENT_DIMS
) -> tuple[list[sweeps.RunSpec], dict[tuple[str, int, int], sweeps.Latents]]:
    """Specs of runs and their latents, one data set for every ``len(latent_dims)`` runs."""
    specs, latents, width = [], {}, max(latent_dims)
    for i in range(runs):
        seed, place = divmod(i, len(latent_dims))
        latents["gaussian", seed, POINTS] = sweeps.Latents(
            sample=points(seed, width), fresh_factor=np.zeros((width, 0))
        )
        spec = sweeps.RunSpec(
            model=model,
            data="gaussian",
            training_draws="sample",
            latent_dim=latent_dims[place],
            seed=seed,
            n=POINTS,
            learning_rate=RATES[model],
            cap=CAP if model == "linear" else np.inf,
        )
        specs.append(spec)
    return specs, latents


def sweep_config(model: str, steps: int, hidden: int = HIDDEN) -> training.TrainingConfig:
    """Of a sweep of MLPs or linear scores."""
    return training.TrainingConfig(model=model, steps=steps, batch_size=BATCH, hidden=hidden, blocks=1)


def sweep_rate(
    model: str, runs: int, steps: int, *, hidden: int = HIDDEN, latent_dims: tuple[int, ...] = LATENT_DIMS
) -> float:
    """Seconds per run and step of our sweep, compilation left out."""
    specs, latents = runs_on_points(model, runs, latent_dims)
    return sweeps.train_scores(specs, latents, sweep_config(model, steps, hidden), chunk=steps).seconds / (runs * steps)


def steps_of(model: str, sizes: Sizes) -> int:
    """Steps a round."""
    return sizes.steps * (LINEAR_STEPS if model == "linear" else 1)


def growth_sides(model: str, sizes: Sizes, job: Job) -> Sides:
    """Four times the runs ("theirs") against as many runs: the cost of 256 over that of 64."""
    del job
    few, many = (
        lambda runs=runs: runs * sweep_rate(model, runs, steps_of(model, sizes))
        for runs in (sizes.runs, 4 * sizes.runs)
    )
    return Sides(
        ours=few,
        theirs=many,
        unit="step of all runs",
        options=options(),
        opponent="the same",
        agreement=0.0,
        agreement_in="one program",
    )


def options() -> str:
    """How our side trains here."""
    at_once = "one run" if devices.default_runs_per_batch() == 1 else "all runs"
    precision = devices.product_precision()
    return f"runs spread over all devices, {at_once} at a time on each, float32 with products {precision}"
