"""What the main job trains on: settings, problems (data, autoencoder, reference), and the list of runs."""

import dataclasses

import numpy as np

from experiments import launch
from experiments.launch import setting
from ldmjax import data, gaussians, metrics, schedules, sweeps
from ldmjax import training as training_lib

BLOCKS = 64  # of the jackknife: what samples are reduced to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings):
    """What the main job does.

    Attributes:
      usual_dims: latent dimensions to choose from where none are given.
      logsnr_min, logsnr_max: where training and sampling begin and end.
      schedule: of both.
    """

    n: tuple[int, ...] = setting((500,), "Samples that PCA and the scores see.", low=2, high=1_000_000)
    latent_dims: tuple[int, ...] | None = setting(
        None, "Latent dimensions; those of 1,2,4,8,16,32,64 that the data have if not given.", low=1, high=100_000
    )
    seeds: tuple[int, ...] = launch.seeds((0, 1, 2), "Each seed has its own subset, initialisation and noise.")
    caps: tuple[float, ...] = setting(
        (np.inf, 20.0), "Bounds of the linear scores.", low=1, low_open=True, infinite=True
    )
    learning_rates: tuple[float, ...] | None = setting(
        None, "Peak rates; 0.05 (linear) and 0.005 (MLP) if not given.", low=0, low_open=True
    )
    linear_steps: int = setting(2000, "Optimiser steps of the linear scores.", low=1, high=10_000_000)
    mlp_steps: int = setting(1000, "Optimiser steps of the MLPs.", low=1, high=10_000_000)
    batch_size: int = setting(256, "Latents per step of the MLPs.", low=2, high=65_536)
    hidden: int = setting(64, "Width of the MLPs.", low=1, high=16_384)
    samples: int = setting(4096, "Generated samples per run.", low=2 * BLOCKS, high=1_048_576, multiple=BLOCKS)
    sampling_steps: int = setting(250, "Euler-Maruyama steps, uniform in logsnr from -10 to 9.", low=2, high=100_000)
    stops: int = setting(25, "Recorded stopping times, evenly spaced steps; the last is the end.", low=2, high=10_000)
    runs_per_batch: int | None = launch.per_batch_setting()
    usual_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    logsnr_min: float = -10.0
    logsnr_max: float = 9.0
    schedule: schedules.LinearVP = schedules.LinearVP()

    def __post_init__(self):
        super().__post_init__()
        if self.stops > self.sampling_steps:
            raise self.refuse("stops", f"must be 2..{self.sampling_steps}, the number of sampling steps")

    def load(self) -> "Problems":
        """The problems; `SettingError` where the data lack samples or dimensions that are asked for."""
        dataset = super().load()
        self.check_n(dataset, held_out=BLOCKS)
        return make_problems(dataset, self)

    @property
    def times(self) -> np.ndarray:
        """Sampling times ``[sampling_steps + 1]``, uniform in logsnr."""
        return schedules.uniform_logsnr_times(
            self.schedule, self.sampling_steps, logsnr_min=self.logsnr_min, logsnr_max=self.logsnr_max
        )

    @property
    def stop_steps(self) -> np.ndarray:
        """Step counts at which sampling may stop, evenly spaced; the last is the end."""
        return np.round(np.linspace(0, self.sampling_steps, self.stops + 1)[1:]).astype(int)

    @property
    def stop_logsnrs(self) -> np.ndarray:
        """Logsnr at each stop ``[stops]``."""
        return np.linspace(self.logsnr_min, self.logsnr_max, self.sampling_steps + 1)[self.stop_steps]

    def training(self, model: str) -> training_lib.TrainingConfig:
        """The training configuration of one model class."""
        steps = {"linear": self.linear_steps, "mlp": self.mlp_steps}[model]
        return training_lib.TrainingConfig(
            model=model,
            steps=steps,
            batch_size=128 if model == "linear" else self.batch_size,
            hidden=self.hidden,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
            schedule=self.schedule,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One (data, seed, n): its PCA autoencoder, its training latents, and what samples are compared with.

    Attributes:
      is_twin: whether the data are draws of the Gaussian twin.
      variances: ``[D]``, PCA variances of the n samples.
      basis: ``[D, D]``, PCA components as columns.
      latents: what runs train on.
      reference: twin: the full-data covariance and fresh draws; real data: the held-out samples.
    """

    is_twin: bool
    variances: np.ndarray
    basis: np.ndarray
    latents: sweeps.Latents
    reference: metrics.Reference


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problems:
    """All problems of a job: the Gaussian twin, and the data themselves if there are samples.

    Attributes:
      name, digest: of the data.
      latent_dims: those that are trained.
      by_key: the problems by (data, seed, n).
    """

    name: str
    digest: str
    latent_dims: tuple[int, ...]
    by_key: dict[tuple[str, int, int], Problem]

    def of(self, spec: sweeps.RunSpec) -> Problem:
        """The problem of a run."""
        return self.by_key[spec.data, spec.seed, spec.n]

    @property
    def latents(self) -> dict[tuple[str, int, int], sweeps.Latents]:
        """Training latents by (data, seed, n)."""
        return {key: problem.latents for key, problem in self.by_key.items()}


def make_problem(dataset: data.Dataset, *, is_twin: bool, seed: int, n: int) -> Problem:
    """Draws the n samples (of the data, or of its Gaussian twin), fits PCA, and sets the reference."""
    if is_twin:
        train, fresh = dataset.twin_draws(n, seed=seed), dataset.twin_draws(4096, seed=seed, stream=1)
        reference = metrics.Reference(mean=np.zeros(dataset.dim), covariance=dataset.covariance, samples=fresh)
    else:
        train, held_out = dataset.split(n=n, seed=seed)
        covariance = np.cov(held_out.T, bias=True)
        reference = metrics.Reference(mean=held_out.mean(axis=0), covariance=covariance, samples=held_out)
    variances, basis = data.principal_components(train)
    factor = basis.T @ gaussians.covariance_factor(dataset.covariance)
    latents = sweeps.Latents(sample=train @ basis, fresh_factor=factor)
    return Problem(is_twin=is_twin, variances=variances, basis=basis, latents=latents, reference=reference)


def make_problems(dataset: data.Dataset, config: Config) -> Problems:
    """All problems of the job; `SettingError` for a latent dimension between the rank of some n samples and D.

    There PCA's basis is arbitrary. Where no latent dimensions are given, the usual ones outside that gap are trained.
    """
    names = {f"{dataset.name}_twin": True} | ({} if dataset.samples is None else {dataset.name: False})
    if config.latent_dims is not None:
        config.check_latent_dims(dataset)
    problems = {
        (name, seed, n): make_problem(dataset, is_twin=is_twin, seed=seed, n=n)
        for name, is_twin in names.items()
        for seed in config.seeds
        for n in config.n
    }
    ranks = {key: int(np.count_nonzero(problem.variances)) for key, problem in problems.items()}
    name, seed, n = smallest = min(ranks, key=ranks.get)
    rank = ranks[smallest]
    dims = tuple(d for d in config.latent_dims or config.usual_dims if d <= rank or d == dataset.dim)
    if config.latent_dims is not None and dims != config.latent_dims:
        raise config.refuse(
            "latent_dims",
            f"must be 1..{rank} or {dataset.dim}: {n} samples of {name} (seed {seed}) have rank {rank}, beyond it "
            "the PCA basis is arbitrary",
        )
    return Problems(name=dataset.name, digest=dataset.digest, latent_dims=dims, by_key=problems)


def make_specs(config: Config, model: str, problems: Problems) -> list[sweeps.RunSpec]:
    """All runs of one model class: the linear class on samples with every cap, the MLP on samples and on fresh draws."""
    twins = {name: problem.is_twin for (name, _, _), problem in problems.by_key.items()}
    draws_of = {name: ("fresh", "sample") if twin and model == "mlp" else ("sample",) for name, twin in twins.items()}
    rates = config.learning_rates or (training_lib.DEFAULT_LEARNING_RATES[model],)
    return [
        sweeps.RunSpec(
            model=model, data=name, training_draws=draws, latent_dim=d, seed=seed, n=n, cap=cap, learning_rate=rate
        )
        for name in twins
        for draws in draws_of[name]
        for cap in (config.caps if model == "linear" else (np.inf,))
        for n in config.n
        for rate in rates
        for d in problems.latent_dims
        for seed in config.seeds
    ]
