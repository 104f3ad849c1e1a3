"""Predictors of the best latent dimension and stop of a diffusion model, and what their choices cost on trained ones.

A *candidate* is one trained model, of a latent dimension and a seed, seen through one measure (a feature space and a metric).
A predictor gives every candidate a number, smaller is better, and a stop, without its diffusion model; of one seed's
candidates it selects the smallest. Its *regret* is the distance of the trained model that it selects, at the stop that it
says, over the smallest of all trained models and stops, minus 1. The predictors:

- "noisy autoencoder": the smallest value of its stopping curve, at the stop where it is (stopping.py)
- "reconstruction distance": the end of that curve, without noise
- "reconstruction error": the mean squared error of held-out images
- "interpolated latents": the distance of decoded midpoints of latent neighbours

The last three never stop early.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float
from scipy.spatial import KDTree

from ldmjax import stopping

PREDICTORS = ("noisy autoencoder", "reconstruction distance", "reconstruction error", "interpolated latents")
REPLICATES = 1000
NEIGHBOURS = 2048
STILL_IMPROVING = 0.02  # a model counts as trained below this improvement
FAR_FROM_AUTOENCODER = 2.0  # and up to this multiple of its autoencoder's own distance

Item = TypeVar("Item")


class Candidate(NamedTuple):
    """One trained model, of a seed and a latent dimension, in one feature space and metric.

    Attributes:
      seed, latent_dim, features, metric: which.
      model: pseudo-values of the diffusion model ``[K, S]``.
      noisy: those of the noisy autoencoder ``[K, S]``, at the same stops.
      earlier: pseudo-values of the model before the last fifth of its training, end of sampling ``[K]``.
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
    def identity(self) -> tuple[int, int, str]:
        """(seed, latent dimension, feature space): what is trained or not."""
        return self.seed, self.latent_dim, self.features

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

    @property
    def is_trained(self) -> bool:
        """Whether the model counts: it has not diverged, hardly improves any more, and is near its autoencoder."""
        return not self.diverged and self.improvement < STILL_IMPROVING and self.excess <= FAR_FROM_AUTOENCODER

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

    def resampled_prediction(self, predictor: str, weights: Float[np.ndarray, "R K"]) -> np.ndarray:
        """Returns the predicted distance ``[R]`` with weights on the blocks; what has no blocks stays as it is."""
        if predictor == "noisy autoencoder":
            return (weights @ self.noisy).min(axis=1)
        if predictor == "reconstruction distance":
            return weights @ self.noisy[:, -1]
        return np.full(len(weights), self.prediction(predictor)[0])


class Selection(NamedTuple):
    """What one predictor selects in one feature space and metric.

    Attributes:
      features, metric, predictor: which.
      scope: "trained" (only models that count) or "all" (that did not diverge).
      dims: latent dimensions to choose from, by seed.
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


def trained_models(candidates: Iterable[Candidate]) -> set[tuple[int, int, str]]:
    """Returns the `Candidate.identity` of all models that count as trained, by their squared Fréchet distance."""
    return {c.identity for c in candidates if c.metric == "w2" and c.is_trained}


def interpolated_latents(latents: Float[np.ndarray, "n ..."]) -> np.ndarray:
    """Returns midpoints of latents and their nearest neighbours, for at most `NEIGHBOURS` of them."""
    flat = latents.reshape(len(latents), -1)
    nearest = KDTree(flat).query(flat[:NEIGHBOURS], k=2)[1][:, 1]
    return 0.5 * (latents[: len(nearest)] + latents[nearest])


def count_claims(candidates: Sequence[Candidate], trained: set[tuple[int, int, str]]) -> list[Claims]:
    """Counts the noisy autoencoder's claims on trained models: one result per feature space and metric."""
    kept = [c for c in candidates if c.identity in trained]
    return [_count_claims(*key, group) for key, group in _grouped(kept, "features", "metric").items()]


def _count_claims(features: str, metric: str, group: Sequence[Candidate]) -> Claims:
    said, own = (
        np.array([stopping.read_stopping_curve(getattr(c, name)).verdict for c in group]) for name in ("noisy", "model")
    )
    early, none = stopping.VERDICTS[:2]
    curves = [c.model.mean(axis=0) for c in group]
    at_stop = [_regret(m[c.prediction(PREDICTORS[0])[1]], m.min()) for m, c in zip(curves, group, strict=True)]
    counts = [
        int(count)
        for claim, other in ((early, none), (none, early))
        for count in (np.sum(said == claim), *(np.sum((said == claim) & (own == v)) for v in (claim, other)))
    ]
    at_end = [_regret(m[-1], m.min()) for m in curves]
    return Claims(features, metric, len(group), *counts, float(np.mean(at_stop)), float(np.mean(at_end)))


def score_predictors(candidates: Sequence[Candidate], trained: set[tuple[int, int, str]]) -> list[Selection]:
    """Returns what every predictor selects, in every feature space and metric, of trained models and of all.

    Args:
      candidates: of one experiment.
      trained: of `trained_models`.
    """
    found = []
    for (features, metric), group in _grouped(candidates, "features", "metric").items():
        kept = [c for c in group if c.identity in trained]
        for scope, members in (("trained", kept), ("all", [c for c in group if not c.diverged])):
            by_seed = {seed: own for (seed,), own in _grouped(members, "seed").items()}
            if by_seed:
                found += [_select(features, metric, predictor, scope, by_seed) for predictor in PREDICTORS]
    return found


def _grouped(items: Iterable[Item], *fields: str) -> dict[tuple[Hashable, ...], list[Item]]:
    groups = {}
    for item in items:
        groups.setdefault(tuple(getattr(item, field) for field in fields), []).append(item)
    return groups


def _select(features, metric, predictor, scope, by_seed: Mapping[int, list[Candidate]]) -> Selection:
    """Regret and rank correlation; intervals by resampling seeds, and within a seed blocks of samples."""
    rng = np.random.default_rng(0)
    chosen, best, regrets, taus, regret_draws, tau_draws = {}, {}, [], [], [], []
    for seed, members in by_seed.items():
        scores, stops = zip(*(c.prediction(predictor) for c in members), strict=True)
        curves = np.stack([c.model.mean(axis=0) for c in members])
        pick = int(np.argmin(scores))
        i, k = np.unravel_index(np.argmin(curves), curves.shape)
        chosen[seed], best[seed] = (members[pick].latent_dim, stops[pick]), (members[i].latent_dim, int(k))
        regrets.append(_regret(curves[pick, stops[pick]], curves[i, k]))
        taus.append(kendall_tau(np.array(scores), curves.min(axis=1)))
        blocks = len(members[0].model)
        weights = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), REPLICATES) / blocks
        at_pick, at_best = weights @ members[pick].model[:, stops[pick]], weights @ members[i].model[:, k]
        regret_draws.append(_regret(at_pick, at_best))
        smallest = np.stack([(weights @ c.model).min(axis=1) for c in members], axis=1)
        predicted = np.stack([c.resampled_prediction(predictor, weights) for c in members], axis=1)
        tau_draws.append(kendall_tau(predicted, smallest))
    resampled = rng.integers(len(by_seed), size=(REPLICATES, len(by_seed))), np.arange(REPLICATES)[:, None]
    regret, tau = (
        (float(np.mean(values)), *np.quantile(np.stack(draws)[resampled].mean(axis=1), [0.05, 0.95]).tolist())
        for values, draws in ((regrets, regret_draws), (taus, tau_draws))
    )
    dims = {seed: [c.latent_dim for c in members] for seed, members in by_seed.items()}
    return Selection(features, metric, predictor, scope, dims, chosen, best, *regret, *tau)


def _regret(chosen, best):
    """Returns share of ``best``; NaN where a bias-corrected estimate of it is not above 0."""
    return np.where(best > 0, chosen / np.where(best > 0, best, 1.0) - 1.0, np.nan)


def kendall_tau(a: Float[np.ndarray, "*batch d"], b: Float[np.ndarray, "*batch d"]) -> np.ndarray:
    """Returns Kendall's tau-a along the last axis ``[*batch]``; NaN for fewer than three values."""
    i, j = np.triu_indices(a.shape[-1], 1)
    if a.shape[-1] < 3:
        return np.full(a.shape[:-1], np.nan)
    return np.asarray(np.mean(np.sign(a[..., i] - a[..., j]) * np.sign(b[..., i] - b[..., j]), axis=-1))
