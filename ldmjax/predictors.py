"""Predictors of the best (latent dimension, stop), and what their choices cost on trained diffusion models."""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy.spatial import KDTree

from ldmjax import stopping

PREDICTORS = ("noisy autoencoder", "reconstruction distance", "reconstruction error", "interpolated latents")
REPLICATES = 1000
NEIGHBOURS = 2048


class Case(NamedTuple):
    """One seed and latent dimension in one feature space and metric.

    Attributes:
      seed, latent_dim, features, metric: which.
      model: pseudo-values of the diffusion model ``[K, S]``.
      noisy: those of the noisy autoencoder ``[K, S]``, at the same stops.
      earlier: pseudo-values of the model after 80 % of its training, end of sampling ``[K]``.
      reconstruction_error: mean squared error of held-out images, per pixel.
      interpolation: distance of decoded midpoints of latent neighbours.
      floor: distance of the training images, bias-corrected as if they were fresh draws.
      memorisation: see `latent_diffusion.memorisation`.
      failed_at: training step at which the model diverged, or None.
    """

    seed: int
    latent_dim: int
    features: str
    metric: str
    model: np.ndarray
    noisy: np.ndarray
    earlier: np.ndarray
    reconstruction_error: float
    interpolation: float
    floor: float
    memorisation: float
    failed_at: int | None

    @property
    def improvement(self) -> float:
        """Relative improvement of the distance at the end of sampling over the last fifth of training."""
        return 1.0 - float(self.model[:, -1].mean() / self.earlier.mean())

    @property
    def excess(self) -> float:
        """Distance at the end of sampling over the autoencoder's own, infinite where that cannot be told from 0."""
        own = self.noisy[:, -1].mean()
        return float(self.model[:, -1].mean() / own) if own > 0 else np.inf

    @property
    def diverged(self) -> bool:
        """Whether training failed, or samples end further off than noise that is decoded (the noisiest level)."""
        return self.failed_at is not None or not self.model[:, -1].mean() < self.noisy.mean(axis=0).max()

    def prediction(self, predictor: str) -> tuple[float, int]:
        """Returns (predicted distance or its substitute, predicted stop)."""
        curve, end = self.noisy.mean(axis=0), self.noisy.shape[1] - 1
        if predictor == "noisy autoencoder":
            return float(curve.min()), int(curve.argmin())
        values = {
            "reconstruction distance": curve[-1],
            "reconstruction error": self.reconstruction_error,
            "interpolated latents": self.interpolation,
        }
        return float(values[predictor]), end


class Comparison(NamedTuple):
    """One predictor in one feature space and metric.

    Attributes:
      features, metric, predictor: which.
      scope: "trained" (only models that count) or "all" (that did not diverge).
      dims: latent dimensions compared, by seed.
      chosen: (latent dimension, stop) by seed.
      best: the trained models' own best (latent dimension, stop) by seed.
      regret, regret_low, regret_high: mean over seeds and its 90 % interval, shares of the best distance. The best model
        is the smallest of many measured values, so the regret is rather too large than too small. NaN where that value,
        bias-corrected, is not above 0.
      tau, tau_low, tau_high: Kendall's rank correlation over latent dimensions, each at its best stop; mean over seeds; NaN
        with fewer than three dimensions. The interval holds the models' error and that of the first two predictors; those of
        the other two are taken as they are.
    """

    features: str
    metric: str
    predictor: str
    scope: str
    dims: dict[int, list[int]]
    chosen: dict[int, tuple[int, int]]
    best: dict[int, tuple[int, int]]
    regret: float
    regret_low: float
    regret_high: float
    tau: float
    tau_low: float
    tau_high: float


class Claims(NamedTuple):
    """What the noisy autoencoder says of stopping, in one feature space and metric, against trained models.

    Attributes:
      features, metric: which.
      models: trained ones, over seeds and latent dimensions.
      early, confirmed, contradicted: "stop early" of the noisy autoencoder; of these, those where the model says so too, and
        those where it says "no gain from stopping".
      never, never_confirmed, never_contradicted: the same for "no gain from stopping".
      at_stop, at_end: mean regret in the model's distance, at the noisy autoencoder's t* and without stopping, over the model's
        own best stop; NaN where that is not above 0.
    """

    features: str
    metric: str
    models: int
    early: int
    confirmed: int
    contradicted: int
    never: int
    never_confirmed: int
    never_contradicted: int
    at_stop: float
    at_end: float


def count_claims(cases: Sequence[Case], trained: set[tuple[int, int, str]]) -> list[Claims]:
    """Counts them for every feature space and metric."""
    groups = {}
    for case in cases:
        if (case.seed, case.latent_dim, case.features) in trained:
            groups.setdefault((case.features, case.metric), []).append(case)
    found = []
    for (features, metric), group in groups.items():
        said, own = (
            np.array([stopping.read_stopping_curve(getattr(c, name)).verdict for c in group])
            for name in ("noisy", "model")
        )
        early, none = stopping.VERDICTS[:2]
        curves = [c.model.mean(axis=0) for c in group]
        at_stop = [_regret(m[c.prediction(PREDICTORS[0])[1]], m.min()) for m, c in zip(curves, group, strict=True)]
        counts = [
            count
            for claim, other in ((early, none), (none, early))
            for count in (np.sum(said == claim), *(np.sum((said == claim) & (own == v)) for v in (claim, other)))
        ]
        found.append(
            Claims(
                features, metric, len(group), *map(int, counts), float(np.mean(at_stop)),
                float(np.mean([_regret(m[-1], m.min()) for m in curves])),
            )
        )  # fmt: skip
    return found


def interpolated_latents(latents: np.ndarray) -> np.ndarray:
    """Midpoints of latents ``[n, ...]`` and their nearest neighbours, for at most `NEIGHBOURS` of them."""
    flat = latents.reshape(len(latents), -1)
    nearest = KDTree(flat).query(flat[:NEIGHBOURS], k=2)[1][:, 1]
    return 0.5 * (latents[: len(nearest)] + latents[nearest])


def compare(cases: Sequence[Case], trained: set[tuple[int, int, str]]) -> list[Comparison]:
    """Compares every predictor in every feature space and metric, over the trained models and over all."""
    groups = {}
    for case in cases:
        groups.setdefault((case.features, case.metric), []).append(case)
    found = []
    for (features, metric), group in groups.items():
        kept = [c for c in group if (c.seed, c.latent_dim, features) in trained]
        for scope, members in (("trained", kept), ("all", [c for c in group if not c.diverged])):
            by_seed = {}
            for case in members:
                by_seed.setdefault(case.seed, []).append(case)
            if by_seed:
                found += [_compare(features, metric, p, scope, by_seed) for p in PREDICTORS]
    return found


def _compare(features, metric, predictor, scope, by_seed: Mapping[int, list[Case]]) -> Comparison:
    """Returns regret and rank correlation; intervals by resampling seeds, and within a seed blocks of samples."""
    rng = np.random.default_rng(0)
    chosen, best, regrets, taus, regret_draws, tau_draws = {}, {}, [], [], [], []
    for seed, members in by_seed.items():
        scores, stops = zip(*(c.prediction(predictor) for c in members), strict=True)
        curves = np.stack([c.model.mean(axis=0) for c in members])
        pick = int(np.argmin(scores))
        i, k = np.unravel_index(np.argmin(curves), curves.shape)
        chosen[seed], best[seed] = (members[pick].latent_dim, stops[pick]), (members[i].latent_dim, int(k))
        regrets.append(_regret(curves[pick, stops[pick]], curves[i, k]))
        taus.append(_kendall(np.array(scores), curves.min(axis=1)))
        blocks = len(members[0].model)
        weights = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), REPLICATES) / blocks
        at_pick, at_best = weights @ members[pick].model[:, stops[pick]], weights @ members[i].model[:, k]
        regret_draws.append(_regret(at_pick, at_best))
        smallest = np.stack([(weights @ c.model).min(axis=1) for c in members], axis=1)
        if predictor == "noisy autoencoder":
            predicted = np.stack([(weights @ c.noisy).min(axis=1) for c in members], axis=1)
        elif predictor == "reconstruction distance":
            predicted = np.stack([weights @ c.noisy[:, -1] for c in members], axis=1)
        else:
            predicted = np.broadcast_to(scores, smallest.shape)
        tau_draws.append(_kendall(predicted, smallest))
    resampled = rng.integers(len(by_seed), size=(REPLICATES, len(by_seed))), np.arange(REPLICATES)[:, None]
    intervals = [
        np.quantile(np.stack(draws)[resampled].mean(axis=1), [0.05, 0.95]) for draws in (regret_draws, tau_draws)
    ]
    return Comparison(
        features, metric, predictor, scope, {seed: [c.latent_dim for c in m] for seed, m in by_seed.items()}, chosen, best,
        float(np.mean(regrets)), *map(float, intervals[0]), float(np.mean(taus)), *map(float, intervals[1]),
    )  # fmt: skip


def _regret(chosen, best):
    """Returns share of ``best``; NaN where a bias-corrected estimate of it is not above 0."""
    return np.where(best > 0, chosen / np.where(best > 0, best, 1.0) - 1.0, np.nan)


def _kendall(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Returns Kendall's tau-a along the last axis ``[..., d]``; NaN for fewer than three values."""
    i, j = np.triu_indices(a.shape[-1], 1)
    if a.shape[-1] < 3:
        return np.full(a.shape[:-1], np.nan)
    return np.mean(np.sign(a[..., i] - a[..., j]) * np.sign(b[..., i] - b[..., j]), axis=-1)
