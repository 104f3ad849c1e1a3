"""Laws of points that are mixtures of Gaussians, all exact: one Gaussian, and three laws that are none.

What a linear autoencoder, noise and a decoder make of them is a mixture too, so that its projections' quantiles are known.
"""

import dataclasses
from typing import NamedTuple

import numpy as np
from scipy import special, stats

SHAPES = ("gaussian", "mixture", "heavy tails", "ring")
CENTRES = np.random.default_rng(11).standard_normal((8, 512))  # of the mixture's components, before scaling
DEGREES, SCALES, ANGLES = 5, 32, 48
GRID = 1001  # points on which a distribution function is inverted


class Mixture(NamedTuple):
    """Equally likely Gaussians: means ``[K, D]`` and covariances ``[K, D, D]``."""

    means: np.ndarray
    covariances: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """``[D]``."""
        return self.means.mean(axis=0)

    @property
    def covariance(self) -> np.ndarray:
        """``[D, D]``."""
        away = self.means - self.mean
        return self.covariances.mean(axis=0) + away.T @ away / len(away)

    def mapped(self, matrix: np.ndarray, shift: np.ndarray | float = 0.0, noise: float = 0.0) -> "Mixture":
        """The law of matrix @ x + shift + noise of that variance; ``matrix`` ``[E, D]``."""
        covariances = matrix @ self.covariances @ matrix.T + noise * np.eye(len(matrix))
        return Mixture(self.means @ matrix.T + shift, covariances)

    def quantiles(self, direction: np.ndarray, ranks: np.ndarray) -> np.ndarray:
        """Of the projection on ``direction`` ``[D]`` at ``ranks`` ``[N]``."""
        means = self.means @ direction
        deviations = np.sqrt(np.einsum("i,kij,j->k", direction, self.covariances, direction))
        reach = 7.0 * deviations
        grid = np.linspace(np.min(means - reach), np.max(means + reach), GRID)
        below = special.ndtr((grid[:, None] - means) / deviations).mean(axis=1)
        return np.interp(ranks, below, grid)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """A centred law of points ``[D]``.

    Attributes:
      variances: ``[D]``, of the Gaussian, and the scale of the other laws.
      shape: one of `SHAPES`. "mixture": 8 components around fixed centres, each with a quarter of the variances. "heavy tails":
        Gaussians at 32 equally likely scales, those of Student's t with 5 degrees of freedom. "ring": the first two coordinates
        lie on a circle, a tenth of its radius thick.
    """

    variances: np.ndarray
    shape: str = "gaussian"

    @property
    def dim(self) -> int:
        """D."""
        return len(self.variances)

    @property
    def mixture(self) -> Mixture:
        """The law, exactly."""
        own = np.diag(self.variances)
        if self.shape == "gaussian":
            return Mixture(np.zeros((1, self.dim)), own[None])
        if self.shape == "mixture":
            centres = CENTRES[:, : self.dim]
            centres = 0.9 * (centres - centres.mean(axis=0)) * np.sqrt(self.variances)
            return Mixture(centres, np.repeat(0.25 * own[None], len(centres), axis=0))
        if self.shape == "heavy tails":
            scales = (DEGREES - 2) / stats.chi2.ppf((np.arange(SCALES) + 0.5) / SCALES, DEGREES)
            return Mixture(np.zeros((SCALES, self.dim)), scales[:, None, None] * own)
        angle = 2.0 * np.pi * np.arange(ANGLES) / ANGLES
        radius = np.sqrt(2.0 * self.variances[0])
        means = np.zeros((ANGLES, self.dim))
        means[:, 0], means[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
        thick = own.copy()
        thick[[0, 1], [0, 1]] = (0.1 * radius) ** 2
        return Mixture(means, np.repeat(thick[None], ANGLES, axis=0))

    @property
    def covariance(self) -> np.ndarray:
        """``[D, D]``."""
        return self.mixture.covariance

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Points ``[count, D]``."""
        law = self.mixture
        component = rng.integers(len(law.means), size=count)
        # Every covariance is diagonal.
        deviations = np.sqrt(np.einsum("kii->ki", law.covariances))
        return law.means[component] + rng.standard_normal((count, self.dim)) * deviations[component]
