"""What the main job trains on: configuration, problems (data, autoencoder, reference), and the list of runs."""

import dataclasses

import numpy as np

from ldmjax import data, gaussians, metrics, schedules, sweeps
from ldmjax import training as training_lib

BLOCKS = 64  # of the jackknife: what samples are reduced to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the main job does; the flags of the same names say more."""

    n: tuple[int, ...] = (500,)
    latent_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    caps: tuple[float, ...] = (np.inf, 20.0)
    learning_rates: tuple[float, ...] | None = None
    linear_steps: int = 2000
    mlp_steps: int = 1000
    batch_size: int = 256
    hidden: int = 64
    samples: int = 4096
    sampling_steps: int = 250
    stops: int = 25
    logsnr_min: float = -10.0
    logsnr_max: float = 9.0
    runs_per_batch: int | None = None
    schedule: schedules.LinearVP = schedules.LinearVP()

    def __post_init__(self):
        if self.samples % BLOCKS or self.samples < 2 * BLOCKS:
            raise ValueError(f"samples must be a multiple of {BLOCKS}, at least {2 * BLOCKS}, got {self.samples}")
        if not 2 <= self.stops <= self.sampling_steps:
            raise ValueError(f"stops must be 2..{self.sampling_steps}, the sampling steps, got {self.stops}")

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


Problems = dict[tuple[str, int, int], Problem]


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
    """All problems of the job, keyed by (data, seed, n): the Gaussian twin, and the data themselves if there are samples.

    Raises:
      ValueError: if a latent dimension lies between the rank of some n samples and D, where PCA's basis is arbitrary.
    """
    names = {f"{dataset.name}_twin": True} | ({} if dataset.samples is None else {dataset.name: False})
    problems = {
        (name, seed, n): make_problem(dataset, is_twin=is_twin, seed=seed, n=n)
        for name, is_twin in names.items()
        for seed in config.seeds
        for n in config.n
    }
    for (name, seed, n), problem in problems.items():
        rank = int(np.count_nonzero(problem.variances))
        arbitrary = [d for d in config.latent_dims if rank < d < dataset.dim]
        if arbitrary:
            raise ValueError(
                f"must be 1..{rank} or {dataset.dim}: {n} samples of {name} (seed {seed}) have rank {rank}, beyond it "
                f"the PCA basis is arbitrary"
            )
    return problems


def make_specs(config: Config, model: str, problems: Problems) -> list[sweeps.RunSpec]:
    """All runs of one model class: the linear class on samples with every cap, the MLP on samples and on fresh draws."""
    twins = {name: problem.is_twin for (name, _, _), problem in problems.items()}
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
        for d in config.latent_dims
        for seed in config.seeds
    ]
