"""The same question for `recommend`: Gaussian points, PCA of n of them, the noisy autoencoder against m held-out points.

The law of the decoded noisy latents is known exactly: with c the latents' standard deviation and S the training points' second
moment, component i has variance S_i + nu (c^2 - S_i) (ldmjax.oracle). Its squared W2 to the *true* Gaussian gives the optimum
that the interval must hold, though the analysis sees held-out points only. Controls: training points recoloured to have the
true covariance exactly, where no stop can gain, and an encoder that whitens, where the curve is flat.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments import pieces, plans, recommend
from experiments.recommend import candidates
from ldmjax import autoencoders, data, metrics, oracle, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One repeated situation.

    Attributes:
      name: in the table.
      covariance: ``[D, D]``, the truth.
      latent_dim: d.
      estimate: "pca", "exact" (recoloured points) or "whitened" (latents divided by their own deviations).
      n: training points.
      reference: held-out points.
      stops: noise levels, from logsnr -2 to 11 and the end.
      samples: decoded points per level.
    """

    name: str
    covariance: np.ndarray
    latent_dim: int
    estimate: str = "pca"
    n: int = 100
    reference: int = 2000
    stops: int = 60
    samples: int = 4096


def plan(case: Case, *, draws: int) -> list[plans.Stage]:
    """The stage of `run_case`."""
    dim = len(case.covariance)
    seconds = case.stops * (5e-3 + 2e-4 * dim + 2e-10 * dim**3)
    return [plans.host(f"noisy autoencoder, {case.name}", runs=draws, seconds=seconds)]


def run_case(
    case: Case,
    *,
    draws: int,
    first_seed: int = 0,
    store: Store = NOTHING_KEPT,
    report: Callable[[str], None] = print,
) -> list[dict]:
    """One record per draw, each kept, as in the sampler's analysis."""
    values, vectors = np.linalg.eigh(case.covariance)
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T
    names = [f"noisy autoencoder/{case.name}/seed {first_seed + i}" for i in range(draws)]
    return pieces.finish(
        names, lambda jobs: [_draw(case, root, first_seed + i) for i in jobs], store=store, at_once=1,
        label=f"{case.name}: draws", report=report,
    )  # fmt: skip


def _draw(case, root, seed):
    rng = np.random.default_rng([seed, case.n])
    training, held_out = (rng.standard_normal((count, len(root))) @ root for count in (case.n, case.reference))
    mean = training.mean(axis=0)
    centred = training - mean
    if case.estimate == "exact":
        mean, centred = np.zeros_like(mean), _recoloured(centred, root)
    variances, basis = data.principal_components(centred)
    variances, basis = variances[: case.latent_dim], basis[:, : case.latent_dim]
    scale = np.sqrt(variances) if case.estimate == "whitened" else np.ones_like(variances)
    candidate = candidates.Candidate(
        name="pca",
        latents=centred @ basis / scale,
        decode=lambda z: (z * scale) @ basis.T + mean,
        measures={"data": metrics.Measure(lambda x: x, metrics.FeatureReference(held_out, metrics=("w2",)))},
        training=None,
    )
    config = recommend.Config(stops=case.stops, samples=case.samples, seed=seed)
    outcome = recommend.run([candidate], config, comparable=True, report=lambda line: None)
    noise_var = schedules.noise_var_from_logsnr(config.logsnrs)
    if case.estimate == "whitened":
        generated = np.broadcast_to(variances[:, None], (len(variances), case.stops))
    else:
        c = autoencoders.LatentScale.measure(candidate.latents).std
        generated = variances[:, None] + noise_var * (c**2 - variances[:, None])
    exact = oracle.w2_squared_projected(case.covariance, basis, generated) + mean @ mean
    return _record(case, seed, outcome, exact, config.logsnrs)


def _recoloured(points, root):
    """Points ``[n, D]``, n > D, turned into ones with second moment exactly root^2."""
    values, vectors = np.linalg.eigh(points.T @ points / len(points))
    return points @ (vectors / np.sqrt(values)) @ vectors.T @ root


def _record(case, seed, outcome, exact, logsnrs):
    found, end = outcome.records[0], case.stops - 1
    # Of equally good stops the last: on a flat curve the answer is not to stop.
    best = end - int(np.argmin(exact[::-1]))
    # The end is drawn one step behind the last level with noise.
    axis = np.append(logsnrs[:-1], 2 * logsnrs[-2] - logsnrs[-3])
    low, high = (axis[-1] if found[key] is None else found[key] for key in ("low", "high"))
    gain = exact[-1] - exact[best]
    deviation = (outcome.curves["pca/data/w2"] - exact) / outcome.curves["pca/data/w2/standard_error"]
    return {
        "case": case.name, "seed": seed, "latent_dim": case.latent_dim, "interior": best < end,
        "exact_logsnr_best": None if best == end else logsnrs[best], "exact_gain": gain / exact[-1],
        "logsnr_best_low": found["low"], "logsnr_best": found["logsnr"], "logsnr_best_high": found["high"],
        "interval_width": high - low, "covered": bool(low <= axis[best] <= high),
        "gain_covered": bool(found["gain_low"] <= gain <= found["gain_high"]), "verdict": found["verdict"],
        "worst_deviation": float(np.max(np.abs(deviation))),
    }  # fmt: skip


def default_cases(n: int) -> list[Case]:
    """Four situations with estimated covariances, then the two controls that can never gain."""
    power = np.diag(data.spectrum_variances("power:1.5", 32))
    exponential = np.diag(data.spectrum_variances("exponential:0.5", 32))
    return [
        Case(name="power:1.5, d = 24", covariance=power, latent_dim=24, n=n),
        Case(name="power:1.5, d = 24, m = 10000", covariance=power, latent_dim=24, n=n, reference=10_000),
        Case(name="exponential:0.5, d = 8", covariance=exponential, latent_dim=8, n=n),
        Case(name="digits, d = 16", covariance=data.digits().covariance, latent_dim=16, n=n),
        Case(name="exact, power:1.5, d = 24", covariance=power, latent_dim=24, estimate="exact", n=n),
        Case(name="whitened, power:1.5, d = 24", covariance=power, latent_dim=24, estimate="whitened", n=n),
    ]


def planted_case(path: str, n: int) -> Case:
    """The images' spectrum, n points, d = n - 1: noise fills in the variance that n points do not show."""
    spectrum = np.linalg.eigvalsh(data.load_npz(path).covariance)[::-1].clip(0.0)
    if np.count_nonzero(spectrum > 1e-12 * spectrum[0]) < n:
        raise ValueError(f"{path!r} has a covariance of lower rank than the {n} that the planted effect needs")
    return Case(name=f"planted, n = {n}", covariance=np.diag(spectrum), latent_dim=n - 1, n=n, reference=5000, stops=14)
