"""Diagonal linear scores trained by denoising score matching for every curve of Figs. 3 and 4, and stopped early."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pieces, plans
from experiments.paper_figures import Panel
from ldmjax import devices, metrics, oracle, plotting, samplers, schedules, sweeps, threefry, training
from ldmjax.checkpoints import NOTHING_KEPT, Store

BLOCKS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """How the scores are trained and sampled.

    Attributes:
      steps: optimiser steps.
      batch_size: latents per step.
      learning_rate: its peak.
      logsnr_max: cleanest level trained, and where sampling ends; the noisiest is that of the largest T.
      samples: generated per score, a multiple of `BLOCKS`.
      sampling_steps: Euler-Maruyama steps, uniform in logsnr.
      stops: stopping times recorded, from the start of sampling to its end, closer together towards the end.
      seed: of the training samples, of training and of sampling.
    """

    steps: int = 1500
    batch_size: int = 256
    learning_rate: float = training.DEFAULT_LEARNING_RATES["linear"]
    logsnr_max: float = 9.0
    samples: int = 8192
    sampling_steps: int = 300
    stops: int = 10
    seed: int = 0

    def __post_init__(self):
        if self.samples < 2 * BLOCKS or self.samples % BLOCKS:
            raise ValueError(f"samples must be a multiple of {BLOCKS}, at least {2 * BLOCKS}, got {self.samples}")
        if not 2 <= self.stops <= self.sampling_steps:
            raise ValueError(f"stops must be 2..{self.sampling_steps}, the sampling steps, got {self.stops}")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedCurve:
    """The stopping curve of one trained score. S stops; distances are squared W2 to the data.

    Attributes:
      panel: name of the panel.
      latent_dim: d.
      backward_times: ``[S]``, T minus the time at which sampling stops.
      w2_squared: ``[S]``, from samples, debiased.
      standard_error: ``[S]``.
      exact_w2_squared: ``[S]``, of the same Euler-Maruyama chain with the exact plug-in score: no Monte Carlo error.
      failed_at: training step that first was not finite, -1 for none.
    """

    panel: str
    latent_dim: int
    backward_times: np.ndarray
    w2_squared: np.ndarray
    standard_error: np.ndarray
    exact_w2_squared: np.ndarray
    failed_at: int

    @property
    def deviation(self) -> np.ndarray:
        """``[S]``, learned minus exact, in standard errors."""
        return (self.w2_squared - self.exact_w2_squared) / self.standard_error


def training_latents(panel: Panel, seed: int) -> sweeps.Latents:
    """What a panel's scores are trained on: n samples with the panel's estimated variances, or its exact law.

    The panel's estimate is a draw of lam chi2_n / n. The samples are Gaussian draws with every column rescaled so that
    (1/n) sum x^2 is exactly that draw: given its second moments a Gaussian sample has a direction independent of them,
    and the linear class sees second moments only (Prop. 4).
    """
    n = panel.n or 2
    sample = np.random.default_rng([seed, n]).standard_normal((n, panel.variances.size))
    sample *= np.sqrt(panel.estimated_variances / np.mean(sample**2, axis=0))
    return sweeps.Latents(sample=sample, fresh_factor=np.diag(np.sqrt(panel.estimated_variances)))


def make_specs(panels: Mapping[str, Panel], config: LearnedConfig) -> list[sweeps.RunSpec]:
    """One score per panel and latent dimension drawn."""
    return [
        sweeps.RunSpec(
            model="linear", data=name, training_draws="sample" if p.n else "fresh", latent_dim=d, seed=config.seed,
            n=p.n or 2, learning_rate=config.learning_rate,
        )
        for name, p in panels.items()
        for d in p.latent_dims
    ]  # fmt: skip


def train(
    panels: Mapping[str, Panel],
    config: LearnedConfig,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> sweeps.TrainedRuns:
    """Trains all scores in one program."""
    latents = {(name, config.seed, p.n or 2): training_latents(p, config.seed) for name, p in panels.items()}
    schedule = schedules.OrnsteinUhlenbeck(t_max=max(p.t_max for p in panels.values()))
    training_config = training.TrainingConfig(
        model="linear", steps=config.steps, batch_size=config.batch_size, schedule=schedule,
        logsnr_min=float(schedule.logsnr(schedule.t_max)), logsnr_max=config.logsnr_max,
    )  # fmt: skip
    return sweeps.train(make_specs(panels, config), latents, training_config, chunk=300, store=store, report=report)


def _sampler(trained, config, t_max, width):
    """Maps runs to block means ``[runs, S, K, width]`` and second moments ``[runs, S, K, width, width]`` at every stop."""
    schedule = schedules.OrnsteinUhlenbeck(t_max=t_max)
    times, stops = config.times(t_max), config.stop_steps(t_max)

    def moments_of(denoiser, run, sources, _):
        start_key, noise_key, chain_key = jax.random.split(jax.random.fold_in(run.key, 3), 3)
        x0 = sweeps.draw_latents(sources, run, start_key, config.samples)
        noise = threefry.normal(noise_key, *x0.shape) * run.inputs.mask
        t = jnp.asarray(times[0], x0.dtype)
        return samplers.sample(
            denoiser, schedule, schedule.alpha(t) * x0 + schedule.sigma(t) * noise, chain_key, times=times,
            stops=stops, sampler="euler_maruyama", mask=run.inputs.mask,
            statistic=lambda z, _: metrics.block_moments(z, blocks=BLOCKS),
        )  # fmt: skip

    return sweeps.map_trained(trained, moments_of, np.zeros(len(trained.specs)), width=width)


def plan(panels: Mapping[str, Panel], config: LearnedConfig) -> list[plans.Stage]:
    """The stages of `measure`."""
    specs = make_specs(panels, config)
    width = max(spec.latent_dim for spec in specs)
    size = {"runs": len(specs), "flops": 2 * 128 * width, "entries": width}
    return [
        plans.training("train", steps=config.steps, batch=config.batch_size, parameters=128 * width, **size),
        plans.sampling("sample", steps=config.sampling_steps, samples=config.samples, noise=True, programs=2, **size),
    ]


def measure(
    panels: Mapping[str, Panel],
    config: LearnedConfig,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> list[LearnedCurve]:
    """Trains, samples and reads one score per panel and latent dimension drawn.

    Args:
      panels: from `experiments.paper_figures.run`.
      config: how.
      report: receives progress lines.
      store: where the training and every curve are kept.
    """
    trained = train(panels, config, report, store)
    specs, curves = trained.specs, {}
    for t_max in sorted({p.t_max for p in panels.values()}):
        runs = np.array([i for i, spec in enumerate(specs) if panels[spec.data].t_max == t_max])
        sampler = _sampler(trained, config, t_max, max(specs[i].latent_dim for i in runs))

        entries = config.samples * max(specs[i].latent_dim for i in runs)
        at_once = devices.items_at_once(len(runs), 4.0 * entries * (config.stops + 8))

        def compute(jobs, runs=runs, sampler=sampler):
            for i, *moments in zip(runs[jobs], *sampler(runs[jobs]), strict=True):
                yield _read(panels[specs[i].data], specs[i].latent_dim, config, *moments, int(trained.failed_at[i]))

        names = [f"learned/{specs[i].data}/d{specs[i].latent_dim}" for i in runs]
        label = f"linear: sampled runs with T = {t_max:g}"
        found = pieces.finish(names, compute, store=store, label=label, report=report, at_once=at_once)
        curves |= dict(zip(runs.tolist(), found, strict=True))
    return [curves[i] for i in range(len(specs))]


def _read(panel, d, config, mean, second, failed_at):
    """One run's curve from its block moments ``[S, K, ...]``."""
    schedule = schedules.OrnsteinUhlenbeck(t_max=panel.t_max)
    times, stops = config.times(panel.t_max), config.stop_steps(panel.t_max)
    dim = panel.variances.size
    # Only w2 is read: it needs no reference samples.
    reference = metrics.Reference(mean=np.zeros(dim), covariance=np.diag(panel.variances), samples=np.zeros((2, dim)))
    pseudo = metrics.moment_pseudo_values(mean, second, reference, np.eye(dim)[:, :d])["w2"]
    law = oracle.sampler_variances(
        panel.estimated_variances, schedule, times, scheme="euler_maruyama", start="marginal"
    )[stops]
    return LearnedCurve(
        panel=panel.name,
        latent_dim=d,
        backward_times=panel.t_max - times[stops],
        w2_squared=pseudo.mean(axis=0),
        standard_error=pseudo.std(axis=0, ddof=1) / np.sqrt(BLOCKS),
        exact_w2_squared=oracle.w2_squared_from_variances(panel.variances, law.T)[d - 1],
        failed_at=failed_at,
    )


def points(curves: Sequence[LearnedCurve]) -> dict[str, list[plotting.Points]]:
    """What is drawn over the exact lines, by panel."""
    by_panel = {}
    for c in curves:
        by_panel.setdefault(c.panel, []).append(
            plotting.Points(
                latent_dim=c.latent_dim, x=c.backward_times, w2_squared=c.w2_squared, standard_error=c.standard_error
            )
        )
    return by_panel


def make_records(curves: Sequence[LearnedCurve]) -> list[dict]:
    """Lines of records.jsonl: one per panel, latent dimension and stop."""
    return [
        {
            "kind": "learned",
            "panel": curve.panel,
            "latent_dim": curve.latent_dim,
            "backward_time": curve.backward_times[k],
            "w2_squared": curve.w2_squared[k],
            "standard_error": curve.standard_error[k],
            "exact_w2_squared": curve.exact_w2_squared[k],
            "deviation_in_standard_errors": curve.deviation[k],
            "diverged_at_step": None if curve.failed_at < 0 else curve.failed_at,
        }
        for curve in curves
        for k in range(curve.backward_times.size)
    ]  # fmt: skip
