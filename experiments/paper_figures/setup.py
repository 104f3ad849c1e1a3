"""What the paper's figures show: settings, and the panels with their covariances."""

import dataclasses

import numpy as np

from experiments import launch
from experiments.launch import setting
from ldmjax import schedules
from ldmjax.training import DEFAULT_LEARNING_RATES

BLOCKS = 64  # of the jackknife: what samples are reduced to


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel.

    Attributes:
      title: over it.
      variances: ``[D]`` of the data.
      t_max: T.
      n: sample size, None for the exact score.
      latent_dims: those drawn.
      counted_dim: the dimension whose minima before the end are counted over draws, or None.
      yscale: "linear" or "log".
    """

    title: str
    variances: np.ndarray
    t_max: float = 2.0
    n: int | None = None
    latent_dims: tuple[int, ...]
    counted_dim: int | None = None
    yscale: str = "linear"


PANELS = {
    "fig3_low_rank": Panel(
        title="isotropic, rank 6 of 10, n = 30",
        variances=np.append(np.full(6, 0.3), np.zeros(4)),
        n=30,
        latent_dims=(2, 4, 5, 6, 7, 8, 10),
        counted_dim=6,
    ),
    "fig3_decaying": Panel(
        title="decaying, 0.6^(i-1), n = 30",
        variances=0.6 ** np.arange(10.0),
        n=30,
        latent_dims=(1, 2, 4, 6, 8, 10),
        counted_dim=6,
        yscale="log",
    ),
    "fig4_left": Panel(
        title="diag(1, 0.6, ..., 0.6^6, 1e-10, 1e-10), exact score",
        variances=np.append(0.6 ** np.arange(7.0), [1e-10, 1e-10]),
        latent_dims=(1, 2, 3, 4, 5, 6, 7, 8),
    ),
    "fig4_right": Panel(
        title="diag(10, 0.2, 0.2, 0.2, 0, 0), n = 1000",
        variances=np.array([10.0, 0.2, 0.2, 0.2, 0.0, 0.0]),
        t_max=3.0,
        n=1000,
        latent_dims=(1, 2, 3, 4, 5, 6),
        counted_dim=4,
        yscale="log",
    ),
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.Settings):
    """What is computed."""

    draws: int = setting(1000, "Draws of the estimated variances behind each share.", low=1, high=1_000_000)
    seed: int = launch.seed(help="Seed of the first draw of the estimated variances, and of training.")
    levels: int = setting(801, "Stopping times of a line, and as many more towards the end.", low=2, high=100_000)
    learned: bool = setting(True, "Train a score for every curve and draw its samples' distances over it.")
    steps: int = setting(1500, "Optimiser steps.", low=1, high=10_000_000)
    batch_size: int = setting(256, "Latents per step.", low=2, high=65_536)
    learning_rate: float = setting(DEFAULT_LEARNING_RATES["linear"], "Its peak.", low=0, low_open=True)
    logsnr_max: float = setting(
        9.0, "Cleanest level trained, and where sampling ends, as logsnr.", low=0, low_open=True, high=100
    )
    samples: int = setting(8192, "Generated per score.", low=2 * BLOCKS, high=1_048_576, multiple=BLOCKS)
    sampling_steps: int = setting(300, "Euler-Maruyama steps, uniform in logsnr.", low=2, high=100_000)
    stops: int = setting(10, "Stopping times of the samples, closer together towards the end.", low=2, high=10_000)

    def __post_init__(self):
        super().__post_init__()
        if self.stops > self.sampling_steps:
            raise self.refuse("stops", f"must be 2..{self.sampling_steps}, the number of sampling steps")

    def times(self, t_max: float) -> np.ndarray:
        """Forward sampling times ``[sampling_steps + 1]`` from T down."""
        schedule = schedules.OrnsteinUhlenbeck(t_max=t_max)
        return schedules.uniform_logsnr_times(
            schedule, self.sampling_steps, logsnr_min=float(schedule.logsnr(t_max)), logsnr_max=self.logsnr_max
        )

    def stop_steps(self, t_max: float) -> np.ndarray:
        """Step counts whose times are nearest to T (1 - u)^1.5, u evenly spread over [0, 1]."""
        wanted = t_max * np.linspace(1.0, 0.0, self.stops) ** 1.5
        return np.unique(np.argmin(np.abs(self.times(t_max)[:, None] - wanted), axis=0))
