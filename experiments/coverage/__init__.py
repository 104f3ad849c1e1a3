"""Are the intervals and verdicts on stopping times right? Repeats the analysis on many draws with a known answer.

The product's promise is that a figure it prints can be trusted: the 90 % interval of t* must contain the exact
optimum of that draw's estimate in 90 % of draws, "stop early" must be found where it helps and never where it cannot.
Every draw estimates a spectrum from n samples, samples 250 Euler-Maruyama steps with the exact plug-in score of that
estimate, reads the stopping curve as the main job does (W2, by default at 125 stops: with few stops the true optimum
is more often a grid point that the interval cannot miss), and compares with the exact discretised law at the same
stops. Controls, by W2: the exact score and whitened latents (never "stop early"); --planted=images.npz plants a large effect
(n samples, d near the rank).

The second analysis is that of `recommend`: the noisy autoencoder on n training points, PCA of them, compared with held-out
points only (noisy.py), under every metric; the third the same with few held-out points for many features (few_rows.py). Their
intervals contain the error of the reference.

    python -m experiments.coverage                        # the first two analyses
    python -m experiments.coverage --analyses=few_rows
    python -m experiments.coverage --analyses=noisy_autoencoder --planted=mnist.npz

Obtained for the sampler with --draws=200 (seeds 1000..1199): the interval of t* held an interior optimum in 94.2, 94.6,
91.2, 93.3 % of draws (173, 167, 193, 15 of them) and an optimum at the end in 96.3, 100, 85.7, 97.3 % (27, 33, 7,
185); median widths 1.8, 3.0, 1.7, 1.7 in logsnr. "Stop early" with the exact score: 0 of 200; on whitened latents, a
flat curve: 1 of 200. Planted effect (MNIST's spectrum, exact gain 7.1 %): "stop early" in 12 of 12 draws. The others: README.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments import pieces, plans
from experiments.tables import align
from ldmjax import data, devices, metrics, oracle, samplers, schedules, stopping, threefry
from ldmjax.checkpoints import NOTHING_KEPT, Store

STEPS = 250  # of Euler-Maruyama
LARGE_GAIN = 0.1
SUMMARY = 'metric|t* covered, mean of cases|least|gain covered|least|"stop early" where nothing is gained|where 10 % or more is'


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One repeated situation: a true covariance, and how each draw estimates it.

    Attributes:
      name: in the table.
      covariance: ``[D, D]``.
      latent_dim: d.
      estimate: "pca" (of n draws), "exact" (the truth), or "whitened" (latents divided by their own deviation).
      n: draws that the estimate sees.
      samples, stops, blocks: generated samples, recorded stops, jackknife blocks.
      share: of --draws: a planted effect is large, and slow to repeat.
    """

    name: str
    covariance: np.ndarray
    latent_dim: int
    estimate: str = "pca"
    n: int = 100
    samples: int = 4096
    stops: int = 125
    blocks: int = 64
    share: float = 1.0


def make_sampler(case: Case, steps: int) -> tuple[Callable, np.ndarray, np.ndarray]:
    """Compiled (estimated variances, latent noise key) -> block moments at the stops; times; stop steps."""
    schedule = schedules.LinearVP()
    times = schedules.uniform_logsnr_times(schedule, steps, logsnr_min=-10.0, logsnr_max=9.0)
    stops = np.unique(np.round(np.linspace(0, steps, case.stops + 1)[1:]).astype(int))

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
            x0, noise = threefry.normal(start_key, *shape), threefry.normal(chain_key, *shape)
            stop_times = jnp.asarray(times[stops], jnp.float32)
            return jax.lax.map(lambda t: statistic(schedule.alpha(t) * x0 + schedule.sigma(t) * noise, t), stop_times)
        t = jnp.asarray(times[0], jnp.float32)
        std = jnp.sqrt(schedule.alpha(t) ** 2 * estimated + schedule.sigma(t) ** 2)
        start = std * threefry.normal(start_key, *shape)
        return samplers.sample(
            denoiser,
            schedule,
            start,
            chain_key,
            times=times,
            stops=stops,
            sampler="euler_maruyama",
            statistic=statistic,
        )

    mapped = devices.map_runs(one)
    return lambda *rows: devices.collect(mapped(0, rows), len(rows[0])), times, stops


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


def plan(case: Case, *, draws: int) -> list[plans.Stage]:
    """The stages of `run_case`."""
    # The score is diagonal; block moments take 2 d operations for every entry, at every second step.
    sampling = plans.sampling(
        f"sample {case.name}", runs=draws, steps=STEPS, samples=case.samples, flops=2.0 * case.latent_dim**2,
        entries=case.latent_dim, noise=True,
    )  # fmt: skip
    return [sampling, plans.host(f"read {case.name}", runs=draws, seconds=0.1 + 0.02 * case.latent_dim)]


def run_case(
    case: Case,
    *,
    draws: int,
    first_seed: int = 0,
    steps: int = STEPS,
    store: Store = NOTHING_KEPT,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """One record per draw, each kept: exact and estimated best stops, interval, gain, verdict."""
    sampler, times, stops = make_sampler(case, steps)
    logsnrs = np.linspace(-10.0, 9.0, steps + 1)[stops]

    def compute(jobs):
        seeds = [first_seed + i for i in jobs]
        laws = [estimate(case, seed) for seed in seeds]
        latent = [np.ones(case.latent_dim) if case.estimate == "whitened" else v for v, _ in laws]
        keys = jnp.stack([jax.random.fold_in(threefry.key(seed), 7) for seed in seeds])
        moments = zip(*sampler(np.stack(latent).astype(np.float32), keys), strict=True)
        for row in zip(seeds, laws, latent, moments, strict=True):
            yield _record(case, *row, times, stops, logsnrs)

    names = [f"sampler/{case.name}/seed {first_seed + i}" for i in range(draws)]
    at_once = devices.items_at_once(draws, 4.0 * case.samples * case.latent_dim * (len(stops) + 8))
    return pieces.finish(names, compute, store=store, label=f"{case.name}: draws", report=report, at_once=at_once)


def _record(case, seed, law, latent_variances, moments, times, stops, logsnrs):
    variances, basis = law
    whitened = case.estimate == "whitened"
    if whitened:  # the decoder undoes the whitening
        scale = np.sqrt(variances)
        moments = [moments[0] * scale, moments[1] * scale[:, None] * scale]
    reference = metrics.Reference(
        mean=np.zeros(len(basis)), covariance=case.covariance, samples=np.zeros((2, len(basis)))
    )
    pseudo = metrics.moment_pseudo_values(*moments, reference, basis, with_kl=False)["w2"]
    result = stopping.read_stopping_curve(pseudo)
    if whitened:
        stepped = np.broadcast_to(variances, (len(stops), len(variances)))
    else:
        stepped = oracle.sampler_variances(
            latent_variances, schedules.LinearVP(), times, scheme="euler_maruyama", start="marginal"
        )[stops]
    exact = oracle.w2_squared_projected(case.covariance, basis, stepped.T)
    end = len(stops) - 1
    # Of equally good stops the last: on a flat curve the answer is not to stop.
    best = end - int(np.argmin(exact[::-1]))

    def logsnr(stop):
        return None if stop == end else logsnrs[stop]

    return {
        "case": case.name, "metric": "w2", "seed": seed, "latent_dim": case.latent_dim, "interior": best < end,
        "exact_logsnr_best": logsnr(best), "exact_gain": (exact[-1] - exact[best]) / exact[-1],
        "logsnr_best_low": logsnr(result.best_stop_low), "logsnr_best": logsnr(result.best_stop),
        "logsnr_best_high": logsnr(result.best_stop_high),
        "interval_width": logsnrs[result.best_stop_high] - logsnrs[result.best_stop_low],
        "covered": bool(result.best_stop_low <= best <= result.best_stop_high),
        "gain_covered": bool(result.gain_low <= exact[-1] - exact[best] <= result.gain_high),
        "verdict": result.verdict,
        "worst_deviation": float(np.max(np.abs(result.curve - exact) / result.standard_error)),
    }  # fmt: skip


def table(rows: list[dict]) -> str:
    """One line per case and metric; then, per metric, what all cases together show."""
    rows = [row for row in rows if not row.get("choice")]
    if not rows:
        return ""
    head = "case|metric|draws|interior|covered|at end|covered|width|gain covered|exact gain %|stop early|no gain|cannot tell"
    lines = [head.split("|")]
    for (name, metric), own in _groups(rows, "case", "metric").items():
        inside, edge = [r for r in own if r["interior"]], [r for r in own if not r["interior"]]
        verdicts = [_share([r["verdict"] == v for r in own]) for v in stopping.VERDICTS]
        lines.append(
            [
                name, metric, str(len(own)), str(len(inside)), _share([r["covered"] for r in inside]), str(len(edge)),
                _share([r["covered"] for r in edge]), f"{np.median([r['interval_width'] for r in own]):.2f}",
                _share([r["gain_covered"] for r in own]), f"{100 * np.mean([r['exact_gain'] for r in own]):.3f}", *verdicts,
            ]
        )  # fmt: skip
    summary = [SUMMARY.split("|")]
    for (metric,), own in _groups(rows, "metric").items():
        cases = _groups(own, "case").values()
        stops, gains = ([np.mean([r[key] for r in case]) for case in cases] for key in ("covered", "gain_covered"))
        none, large = [r for r in own if r["exact_gain"] <= 0], [r for r in own if r["exact_gain"] >= LARGE_GAIN]
        early = [_share([r["verdict"] == "stop early" for r in group]) for group in (none, large)]
        summary.append(
            [
                metric, f"{100 * np.mean(stops):.1f} %", f"{100 * np.min(stops):.0f} %", f"{100 * np.mean(gains):.1f} %",
                f"{100 * np.min(gains):.0f} %", f"{early[0]} of {len(none)}", f"{early[1]} of {len(large)}",
            ]
        )  # fmt: skip
    about = "Share of draws whose 90 % interval of t* holds the exact optimum; width: median, in logsnr."
    return "\n".join(["", about, *align(lines, left=2), "", *align(summary, left=1)])


def _groups(rows, *keys):
    found = {}
    for row in rows:
        found.setdefault(tuple(row[key] for key in keys), []).append(row)
    return found


def _share(values):
    return f"{100 * np.mean(values):.1f} %" if len(values) else "-"


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


def planted_case(path: str, n: int) -> Case:
    """The images' spectrum, n draws, d = n - 1: stopping early fills in the variance that n draws do not show."""
    spectrum = np.linalg.eigvalsh(data.load_npz(path).covariance)[::-1].clip(0.0)
    rank = int(np.count_nonzero(spectrum > 1e-12 * spectrum[0]))
    if rank < n:
        raise ValueError(f"{path!r} has a covariance of rank {rank}; the planted effect needs at least {n}")
    return Case(
        name=f"planted, n = {n}", covariance=np.diag(spectrum), latent_dim=n - 1, n=n, stops=8, blocks=16, share=0.1
    )
