"""Diagonal linear scores trained by denoising score matching for every curve of Figs. 3 and 4, and stopped early."""

from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
import numpy as np

from experiments.paper_figures.setup import BLOCKS, Config, Panel
from ldmjax import devices, metrics, oracle, random, samplers, schedules, sweeps, training
from ldmjax.job import NO_JOB, Job


def training_latents(panel: Panel, estimated_variances: np.ndarray, seed: int) -> sweeps.Latents:
    """What a panel's scores are trained on: n samples with the estimated variances, or their exact law.

    The panel's estimate is a draw of lam chi2_n / n. The samples are Gaussian draws with every column rescaled so that
    (1/n) sum x^2 is exactly that draw: given its second moments a Gaussian sample has a direction independent of them,
    and the linear class sees second moments only (Prop. 4).
    """
    n = panel.n or 2
    sample = np.random.default_rng([seed, n]).standard_normal((n, panel.variances.size))
    sample *= np.sqrt(estimated_variances / np.mean(sample**2, axis=0))
    return sweeps.Latents(sample=sample, fresh_factor=np.diag(np.sqrt(estimated_variances)))


def make_specs(panels: Mapping[str, Panel], config: Config) -> list[sweeps.RunSpec]:
    """One score per panel and latent dimension drawn."""
    return [
        sweeps.RunSpec(
            model="linear",
            data=name,
            training_draws="sample" if p.n else "fresh",
            latent_dim=d,
            seed=config.seed,
            n=p.n or 2,
            learning_rate=config.learning_rate,
        )
        for name, p in panels.items()
        for d in p.latent_dims
    ]


def training_config(panels: Mapping[str, Panel], config: Config) -> training.TrainingConfig:
    """Of all scores: the noisiest level is that of the largest T."""
    schedule = schedules.OrnsteinUhlenbeck(t_max=max(p.t_max for p in panels.values()))
    return training.TrainingConfig(
        model="linear",
        steps=config.steps,
        batch_size=config.batch_size,
        schedule=schedule,
        logsnr_min=float(schedule.logsnr(schedule.t_max)),
        logsnr_max=config.logsnr_max,
    )


def measure(
    panels: Mapping[str, Panel], estimates: Mapping[str, np.ndarray], config: Config, job: Job = NO_JOB
) -> list[dict]:
    """Trains, in one program, samples and reads one score per panel and latent dimension drawn.

    Args:
      panels: by name.
      estimates: the estimated variances ``[D]`` of each, that of its curves.
      config: how.
      job: keeps the training and every curve.

    Returns:
      A row per run and stop.
    """
    specs, curves = make_specs(panels, config), {}
    latents = {(s.data, s.seed, s.n): training_latents(panels[s.data], estimates[s.data], s.seed) for s in specs}
    trained = sweeps.train_scores(specs, latents, training_config(panels, config), chunk=300, job=job)
    for t_max in sorted({p.t_max for p in panels.values()}):
        runs = np.array([i for i, spec in enumerate(specs) if panels[spec.data].t_max == t_max])
        width = max(specs[i].latent_dim for i in runs)
        sampler = _sampler(trained, config, t_max, width)

        def compute(batch, runs=runs, sampler=sampler):
            for i, *moments in zip(runs[batch], *sampler(runs[batch]), strict=True):
                name = specs[i].data
                yield _read(specs[i], panels[name], estimates[name], config, *moments, int(trained.failed_at[i]))

        found = job.map(
            compute,
            [f"learned/{specs[i].data}/d{specs[i].latent_dim}" for i in runs],
            label=f"linear: sampled runs with T = {t_max:g}",
            at_once=devices.items_at_once(len(runs), 4.0 * config.samples * width * (config.stops + 8)),
        )
        curves |= zip(runs.tolist(), found, strict=True)
    return [row for i in range(len(specs)) for row in curves[i]]


def _sampler(trained: sweeps.TrainedRuns, config: Config, t_max: float, width: int) -> Callable:
    """Maps runs to block means ``[runs, S, K, width]`` and second moments ``[runs, S, K, width, width]`` at every stop."""
    schedule = schedules.OrnsteinUhlenbeck(t_max=t_max)
    times, stops = config.times(t_max), config.stop_steps(t_max)

    def moments_of(denoiser, run, sources, _):
        start_key, noise_key, chain_key = jax.random.split(random.stream(run.key, "sampling"), 3)
        x0 = sweeps.draw_latents(sources, run, start_key, config.samples)
        noise = random.normal(noise_key, *x0.shape) * run.inputs.mask
        t = jnp.asarray(times[0], x0.dtype)
        return samplers.sample(
            denoiser,
            schedule,
            schedule.alpha(t) * x0 + schedule.sigma(t) * noise,
            chain_key,
            times=times,
            stops=stops,
            sampler="euler_maruyama",
            mask=run.inputs.mask,
            statistic=lambda z, _: metrics.block_moments(z, blocks=BLOCKS),
        )

    return sweeps.map_trained(trained, moments_of, np.zeros(len(trained.specs)), width=width)


def _read(
    spec: sweeps.RunSpec, panel: Panel, estimated: np.ndarray, config: Config, mean, second, failed_at: int
) -> list[dict]:
    """The rows of one run from its block moments ``[S, K, ...]``."""
    d, dim, stops = spec.latent_dim, panel.variances.size, config.stop_steps(panel.t_max)
    schedule, times = schedules.OrnsteinUhlenbeck(t_max=panel.t_max), config.times(panel.t_max)
    # Only w2 is read: it needs no reference samples.
    reference = metrics.Reference(mean=np.zeros(dim), covariance=np.diag(panel.variances), samples=np.zeros((2, dim)))
    pseudo = metrics.moment_pseudo_values(mean, second, reference, np.eye(dim)[:, :d])["w2"]
    # Of the same chain with the exact plug-in score: no Monte Carlo error.
    law = oracle.sampler_variances(estimated, schedule, times, scheme="euler_maruyama", start="marginal")[stops]
    exact = oracle.w2_squared_from_variances(panel.variances, law.T)[d - 1]
    curve, error = pseudo.mean(axis=0), pseudo.std(axis=0, ddof=1) / np.sqrt(BLOCKS)
    return [
        {
            "kind": "learned",
            "panel": spec.data,
            "latent_dim": d,
            "backward_time": panel.t_max - times[stop],
            "w2_squared": curve[k],
            "standard_error": error[k],
            "exact_w2_squared": exact[k],
            "deviation_in_standard_errors": (curve[k] - exact[k]) / error[k],
            "diverged_at_step": None if failed_at < 0 else failed_at,
        }
        for k, stop in enumerate(stops)
    ]
