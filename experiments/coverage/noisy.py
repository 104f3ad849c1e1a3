"""The same question for `recommend`: points, PCA of n of them, the noisy autoencoder against m held-out points.

The truth is the law of *the model*: latents with the mean and covariance of the training points' latents, noise, decoded. For
Gaussian points it is known exactly: with c the latents' standard deviation and S the training points' second moment,
component i has variance S_i + nu (c^2 - S_i) (ldmjax.oracle). For others it is the law of the points with their latents
recoloured to the training mean and covariance, a mixture like the law itself (laws.py), of which only the MMD is taken from
many points. Its distances to the *true* law give the optimum that the interval must hold, though the analysis sees held-out
points only. Controls that cannot gain: training points recoloured to have the true covariance exactly, with all components
kept, and an encoder that whitens, where the curve is flat.
"""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np

from experiments.coverage.laws import SHAPES, Law
from ldmjax import autoencoders, data, gaussians, metrics, oracle, recommendation, schedules

POPULATION = 30_000
RANKS = 4_000  # of the quantiles that sliced W2 compares
BATCH = 1_500  # of them, in each factor of a mean of kernels, which is averaged over batches
TRUTH_SEED = 2**32 - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """One repeated situation.

    Attributes:
      name: in the table.
      law: the truth.
      latent_dim: d.
      estimate: "pca", "exact" (recoloured points) or "whitened" (latents divided by their own deviations).
      n: training points.
      reference: held-out points.
      stops: noise levels, from logsnr -2 to 11 and the end.
      samples: decoded points per level.
      metrics: to look at.
      share: of --draws: less where a draw takes long.
    """

    name: str
    law: Law
    latent_dim: int
    estimate: str = "pca"
    n: int = 100
    reference: int = 2000
    stops: int = 40
    samples: int = 2048
    metrics: tuple[str, ...] = metrics.FEATURE_METRICS
    share: float = 1.0

    def analysis(self, draws: int) -> tuple[Callable[[Sequence[int]], Iterator[list[dict]]], int]:
        """The function from seeds to the rows of each, one per metric; and how many seeds it takes."""
        return lambda seeds: (analyse(self, seed) for seed in seeds), 1


class Problem(NamedTuple):
    """A draw of a case: what is analysed, how, and the truth."""

    candidate: recommendation.Candidate
    config: recommendation.RecommendationConfig
    truth: "Truth"


def make_problem(case: Case, seed: int) -> Problem:
    """Draws training and held-out points; equal seeds and numbers give equal points, whatever the latent dimension."""
    rng = np.random.default_rng([seed, case.n])
    training, held_out = (case.law.draw(rng, count) for count in (case.n, case.reference))
    mean = training.mean(axis=0)
    centred = training - mean
    if case.estimate == "exact":
        mean, centred = np.zeros_like(mean), _recoloured(centred, case.law.covariance)
    variances, basis = data.principal_components(centred)
    variances, basis = variances[: case.latent_dim], basis[:, : case.latent_dim]
    scale = np.sqrt(variances) if case.estimate == "whitened" else np.ones_like(variances)
    reference = metrics.FeatureReference(held_out, metrics=case.metrics)
    candidate = recommendation.Candidate(
        name=case.name,
        latents=centred @ basis / scale,
        decode=lambda z: (z * scale) @ basis.T + mean,
        measures={"data": metrics.Measure(lambda x: x, reference)},
        training=None,
    )
    # One pass: the truth is known at the levels that are given beforehand, which the optimum is one of.
    config = recommendation.RecommendationConfig(stops=case.stops, samples=case.samples, seed=seed, passes=1)
    noise_var = schedules.noise_var_from_logsnr(config.logsnrs)
    c = autoencoders.LatentScale.measure(candidate.latents).std
    return Problem(candidate, config, Truth(case.law, reference, mean, basis, variances, scale, c, noise_var))


def analyse(case: Case, seed: int) -> list[dict]:
    """The row of every metric of one draw."""
    candidate, config, truth = make_problem(case, seed)
    outcome = recommendation.compare([candidate], config)
    return [
        _make_row(case, metric, seed, found, outcome.curves, getattr(truth, metric)(), config.logsnrs)
        for metric, found in zip(case.metrics, outcome.records, strict=True)
    ]


def _recoloured(points, covariance):
    """Points ``[n, D]`` turned into ones with mean 0 and the given second moment exactly."""
    centred = points - points.mean(axis=0)
    (values, vectors), (own, axes) = np.linalg.eigh(covariance), np.linalg.eigh(centred.T @ centred / len(points))
    kept = own > 1e-12 * own[-1]
    root = vectors * np.sqrt(values.clip(0.0)) @ vectors.T
    return centred @ (axes[:, kept] / np.sqrt(own[kept])) @ axes[:, kept].T @ root


class Truth:
    """Distances ``[stops]`` of the model's law to the truth, a method per metric."""

    def __init__(self, law, reference, mean, basis, variances, scale, c, noise_var):
        self.law, self.reference, self.mean, self.basis = law, reference, mean, basis
        self.noise_var, self.noise = noise_var, c**2
        #: Of the decoded components ``[d, stops]``.
        stopped = oracle.stopped_variances(variances / scale**2, noise_var, latent_scale=c)
        self.generated = scale[:, None] ** 2 * stopped
        self._decoder = basis * scale
        # The law of the points, moved and recoloured in the latent space to the training latents' mean 0 and covariance.
        latent = law.mixture.mapped((basis / scale).T)
        values, vectors = np.linalg.eigh(latent.covariance)
        whiten = (vectors / np.sqrt(values)) @ vectors.T
        recolour = np.diag(np.sqrt(variances) / scale) @ whiten
        self._latents = latent.mapped(recolour, -recolour @ latent.mean)

    def w2(self) -> np.ndarray:
        """Exact for every law."""
        exact = oracle.w2_squared_projected(self.law.covariance, self.basis, self.generated)
        return exact + self.mean @ self.mean

    def sliced_w2(self) -> np.ndarray:
        """Along the reference's directions, exact to the grid of the distribution functions."""
        if self.law.shape == "gaussian":
            return self._of_gaussians(gaussians.sliced_w2_squared, directions=self.reference.directions)
        ranks = (np.arange(RANKS) + 0.5) / RANKS
        truth, found = self.law.mixture, []
        targets = [truth.quantiles(u, ranks) for u in self.reference.directions]
        for nu in self.noise_var:
            state = self._latents.mapped(np.sqrt(1.0 - nu) * np.eye(len(self.generated)), noise=nu * self.noise)
            gaps = []
            for u, target in zip(self.reference.directions, targets, strict=True):
                along = state.mapped((u @ self._decoder)[None], u @ self.mean)
                gaps.append(np.mean((along.quantiles(np.ones(1), ranks) - target) ** 2))
            found.append(np.mean(gaps))
        return np.array(found)

    def mmd(self) -> np.ndarray:
        """With the reference's kernel; of laws that are not Gaussian from `POPULATION` points."""
        if self.law.shape == "gaussian":
            return self._of_gaussians(gaussians.mmd_squared, bandwidth=self.reference.bandwidth)
        truth = self.law.draw(np.random.default_rng([TRUTH_SEED, 0]), POPULATION)
        own = self._kernel(truth[::2], truth[1::2])
        return np.array(
            [self._kernel(x[::2], x[1::2]) - 2.0 * self._kernel(x, truth) + own for x in self._population()]
        )

    def _of_gaussians(self, distance, **how):
        zero, truth = np.zeros_like(self.mean), self.law.covariance
        return np.array(
            [distance(self.mean, self.basis * g @ self.basis.T, zero, truth, **how) for g in self.generated.T]
        )

    def _kernel(self, a, b):
        batches = zip(*(np.split(x, len(x) // BATCH) for x in (a, b)), strict=True)
        return np.mean([self.reference.kernel_means(x, y)[0].mean() for x, y in batches])

    def _population(self):
        """Decoded points of the model at every stop, from the same latents and noise."""
        rng, law = np.random.default_rng([TRUTH_SEED, 1]), self._latents
        component = rng.integers(len(law.means), size=POPULATION)
        factors = np.linalg.cholesky(law.covariances)
        draws = rng.standard_normal((POPULATION, law.means.shape[1]))
        latents = np.empty_like(draws)
        for k, factor in enumerate(factors):
            own = component == k
            latents[own] = law.means[k] + draws[own] @ factor.T
        noise = np.sqrt(self.noise) * rng.standard_normal(latents.shape)
        for nu in self.noise_var:
            yield (np.sqrt(1.0 - nu) * latents + np.sqrt(nu) * noise) @ self._decoder.T + self.mean


def _make_row(case, metric, seed, found, curves, exact, logsnrs):
    end = case.stops - 1
    exact = np.where(np.abs(exact) < 1e-9 * exact.max(), 0.0, exact)
    # Of equally good stops the last: on a flat curve the answer is not to stop.
    best = end - int(np.argmin(exact[::-1]))
    if exact[end] - exact[best] <= 1e-9 * exact[end]:
        best = end
    # The end is drawn one step behind the last level with noise.
    axis = np.append(logsnrs[:-1], 2 * logsnrs[-2] - logsnrs[-3])
    low, high = (axis[-1] if found[key] is None else found[key] for key in ("low", "high"))
    gain = exact[-1] - exact[best]
    key = f"{case.name}/data/{metric}"
    return {
        "case": case.name,
        "metric": metric,
        "seed": seed,
        "latent_dim": case.latent_dim,
        "n": case.n,
        "reference": case.reference,
        "interior": best < end,
        "exact_end": exact[-1],
        "exact_gain": gain / exact[-1] if exact[-1] > 0 else 0.0,
        "exact_logsnr_best": None if best == end else logsnrs[best],
        "logsnr_best_low": found["low"],
        "logsnr_best": found["logsnr"],
        "logsnr_best_high": found["high"],
        "interval_width": high - low,
        "covered": bool(low <= axis[best] <= high),
        "gain_covered": bool(found["gain_low"] <= gain <= found["gain_high"]),
        "verdict": found["verdict"],
        "gain_width": found["gain_high"] - found["gain_low"],
        "end": found["end"],
        "end_deviation": float((curves[key][-1] - exact[-1]) / curves[f"{key}/standard_error"][-1]),
        "worst_deviation": float(np.max(np.abs((curves[key] - exact) / curves[f"{key}/standard_error"]))),
    }


def default_cases(n: int) -> list[Case]:
    """Situations with estimated covariances, Gaussian and not, then the controls that can never gain."""
    power, exponential = data.spectrum_variances("power:1.5", 32), data.spectrum_variances("exponential:0.5", 32)
    small = data.spectrum_variances("exponential:0.69", 8)
    digits = gaussians.eigh_descending(data.digits().covariance)[0]
    gaussian, slow = Law(variances=power), {"n": 1000, "stops": 20, "share": 0.2}
    of_shape = [(shape, Law(variances=power, shape=shape), d) for shape in SHAPES for d in (8, 24)]
    many = slow | {"n": 10_000, "reference": 10_000, "metrics": ("sliced_w2",)}
    exact = slow | {"latent_dim": 8, "estimate": "exact"}
    return [
        Case(name="power:1.5, d = 24", law=gaussian, latent_dim=24, n=n),
        Case(name="power:1.5, d = 24, m = 10000", law=gaussian, latent_dim=24, n=n, reference=10_000),
        Case(name="exponential:0.5, d = 8", law=Law(variances=exponential), latent_dim=8, n=n),
        Case(name="digits' spectrum, d = 16", law=Law(variances=digits), latent_dim=16, n=n),
        *(Case(name=f"{shape}, d = {d}, n = 1000", law=law, latent_dim=d, **slow) for shape, law, d in of_shape),
        *(Case(name=f"{shape}, d = {d}, n = m = 10000", law=law, latent_dim=d, **many) for shape, law, d in of_shape),
        *(
            Case(name=f"exact, {shape}, d = D, n = 1000", law=Law(variances=small, shape=shape), **exact)
            for shape in SHAPES
        ),
        Case(name="whitened, power:1.5, d = 24", law=gaussian, latent_dim=24, estimate="whitened", n=n),
    ]


def planted_case(variances: np.ndarray, n: int) -> Case:
    """The images' spectrum, n points, d = n - 1: noise fills in the variance that n points do not show."""
    shape = {"latent_dim": n - 1, "n": n, "reference": 5000, "stops": 14, "metrics": ("w2",), "share": 0.1}
    return Case(name=f"planted, n = {n}", law=Law(variances=variances), **shape)
