"""The analysis of the main job: an estimated spectrum, samples of its exact plug-in score, W2 at every stop."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax import data, devices, metrics, oracle, random, samplers, schedules, stopping

LOGSNR_MIN, LOGSNR_MAX = -10.0, 9.0


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One repeated situation: a true covariance, and how each draw estimates it.

    Attributes:
      name: in the table.
      covariance: ``[D, D]``.
      latent_dim: d.
      estimate: "pca" (of n draws), "exact" (the truth), or "whitened" (latents divided by their own deviation).
      n: draws that the estimate sees.
      samples, steps, stops, blocks: generated samples, Euler-Maruyama steps, recorded stops, jackknife blocks.
      share: of --draws: a planted effect is large, and slow to repeat.
    """

    name: str
    covariance: np.ndarray
    latent_dim: int
    estimate: str = "pca"
    n: int = 100
    samples: int = 4096
    steps: int = 250
    stops: int = 125
    blocks: int = 64
    share: float = 1.0

    @property
    def times(self) -> np.ndarray:
        """Of the sampler ``[steps + 1]``."""
        limits = {"logsnr_min": LOGSNR_MIN, "logsnr_max": LOGSNR_MAX}
        return schedules.uniform_logsnr_times(schedules.LinearVP(), self.steps, **limits)

    @property
    def stop_steps(self) -> np.ndarray:
        """Steps after which the sampler may stop, the last one its end."""
        return np.unique(np.round(np.linspace(0, self.steps, self.stops + 1)[1:]).astype(int))

    @property
    def logsnrs(self) -> np.ndarray:
        """Of the stops."""
        return np.linspace(LOGSNR_MIN, LOGSNR_MAX, self.steps + 1)[self.stop_steps]

    def analysis(self, draws: int) -> tuple[Callable[[Sequence[int]], Iterator[list[dict]]], int]:
        """The function from seeds to the row of each; and how many seeds it takes."""
        sample = make_sampler(self)

        def analyse(seeds):
            laws = [estimate(self, seed) for seed in seeds]
            latent = [np.ones(self.latent_dim) if self.estimate == "whitened" else v for v, _ in laws]
            keys = jnp.stack([random.stream(random.key(seed), "starts") for seed in seeds])
            moments = zip(*sample(np.stack(latent).astype(np.float32), keys), strict=True)
            for row in zip(seeds, laws, latent, moments, strict=True):
                yield [make_row(self, *row)]

        return analyse, devices.items_at_once(draws, 4.0 * self.samples * self.latent_dim * (len(self.logsnrs) + 8))


def make_sampler(case: Case) -> Callable:
    """Compiled (estimated variances, latent noise key) -> block moments at the stops."""
    schedule, times, stops = schedules.LinearVP(), case.times, case.stop_steps

    def one(_, packed):
        estimated, key = packed
        start_key, chain_key = jax.random.split(key)

        def denoiser(z, t):
            alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
            return alpha * estimated / (alpha**2 * estimated + sigma**2) * z

        def statistic(z, _):
            return metrics.block_moments(z, blocks=case.blocks)

        shape = case.samples, case.latent_dim
        if case.estimate == "whitened":
            # The continuous law, which is exactly flat: Euler-Maruyama's own error is not.
            x0, noise = random.normal(start_key, *shape), random.normal(chain_key, *shape)
            stop_times = jnp.asarray(times[stops], jnp.float32)
            return jax.lax.map(lambda t: statistic(schedule.alpha(t) * x0 + schedule.sigma(t) * noise, t), stop_times)
        t = jnp.asarray(times[0], jnp.float32)
        std = jnp.sqrt(schedule.alpha(t) ** 2 * estimated + schedule.sigma(t) ** 2)
        start = std * random.normal(start_key, *shape)
        how = {"times": times, "stops": stops, "sampler": "euler_maruyama", "statistic": statistic}
        return samplers.sample(denoiser, schedule, start, chain_key, **how)

    mapped = devices.map_runs(one)
    return lambda *rows: devices.collect(mapped(0, rows), len(rows[0]))


def estimate(case: Case, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One draw's (estimated variances ``[d]``, decoder basis ``[D, d]``)."""
    d = case.latent_dim
    if case.estimate == "exact":
        variances, vectors = np.linalg.eigh(case.covariance)
        return variances[::-1][:d].clip(0.0), vectors[:, ::-1][:, :d]
    rng = np.random.default_rng([seed, case.n])
    factor = np.linalg.cholesky(case.covariance + 1e-12 * np.trace(case.covariance) * np.eye(len(case.covariance)))
    variances, basis = data.principal_components(rng.standard_normal((case.n, len(factor))) @ factor.T)
    return variances[:d], basis[:, :d]


def make_row(case: Case, seed: int, law, latent_variances: np.ndarray, moments) -> dict:
    """Exact and estimated best stops, interval, gain, verdict of one draw.

    Args:
      case: what is repeated.
      seed: of the draw.
      law: estimated variances and basis.
      latent_variances: of what was sampled.
      moments: its block moments at the stops.
    """
    (variances, basis), logsnrs = law, case.logsnrs
    if case.estimate == "whitened":  # the decoder undoes the whitening
        scale = np.sqrt(variances)
        moments = [moments[0] * scale, moments[1] * scale[:, None] * scale]
        stepped = np.broadcast_to(variances, (len(logsnrs), len(variances)))
    else:
        stepped = oracle.sampler_variances(
            latent_variances, schedules.LinearVP(), case.times, scheme="euler_maruyama", start="marginal"
        )[case.stop_steps]
    zeros = np.zeros(len(basis))
    reference = metrics.Reference(mean=zeros, covariance=case.covariance, samples=np.zeros((2, len(basis))))
    pseudo = metrics.moment_pseudo_values(*moments, reference, basis, with_kl=False)["w2"]
    result = stopping.read_stopping_curve(pseudo)
    exact = oracle.w2_squared_projected(case.covariance, basis, stepped.T)
    end = len(logsnrs) - 1
    # Of equally good stops the last: on a flat curve the answer is not to stop.
    best = end - int(np.argmin(exact[::-1]))

    def logsnr(stop):
        return None if stop == end else logsnrs[stop]

    return {
        "case": case.name,
        "metric": "w2",
        "seed": seed,
        "latent_dim": case.latent_dim,
        "interior": best < end,
        "exact_logsnr_best": logsnr(best),
        "exact_gain": (exact[-1] - exact[best]) / exact[-1],
        "logsnr_best_low": logsnr(result.best_stop_low),
        "logsnr_best": logsnr(result.best_stop),
        "logsnr_best_high": logsnr(result.best_stop_high),
        "interval_width": logsnrs[result.best_stop_high] - logsnrs[result.best_stop_low],
        "covered": bool(result.best_stop_low <= best <= result.best_stop_high),
        "gain_covered": bool(result.gain_low <= exact[-1] - exact[best] <= result.gain_high),
        "verdict": result.verdict,
        "worst_deviation": float(np.max(np.abs(result.curve - exact) / result.standard_error)),
    }


def default_cases(n: int) -> list[Case]:
    """Four spectra with an estimated score (the last rarely gains), then the two controls that can never gain."""
    power = np.diag(data.spectrum_variances("power:1.5", 32))
    exponential = np.diag(data.spectrum_variances("exponential:0.5", 32))
    return [
        Case(name="power:1.5, d = 24", covariance=power, latent_dim=24, n=n),
        Case(name="exponential:0.5, d = 8", covariance=exponential, latent_dim=8, n=n),
        Case(name="digits, d = 16", covariance=data.digits().covariance, latent_dim=16, n=n),
        Case(name="power:1.5, d = 8", covariance=power, latent_dim=8, n=n),
        Case(name="exact score, power:1.5, d = 8", covariance=power, latent_dim=8, estimate="exact", n=n),
        Case(name="whitened, power:1.5, d = 8", covariance=power, latent_dim=8, estimate="whitened", n=n),
    ]


def planted_case(variances: np.ndarray, n: int) -> Case:
    """The images' spectrum, n draws, d = n - 1: stopping early fills in the variance that n draws do not show."""
    shape = {"latent_dim": n - 1, "n": n, "stops": 8, "blocks": 16, "share": 0.1}
    return Case(name=f"planted, n = {n}", covariance=np.diag(variances), **shape)
