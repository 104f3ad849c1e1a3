"""Laws of data with a known covariance: a Gaussian and three that are not, all with independent scales along the axes."""

import dataclasses

import numpy as np

SHAPES = ("gaussian", "mixture", "heavy tails", "ring")
CENTRES = np.random.default_rng(11).standard_normal((8, 512))  # of the mixture's components, before scaling
DEGREES = 5  # of freedom of the heavy tails


@dataclasses.dataclass(frozen=True, kw_only=True)
class Law:
    """A centred law of points ``[D]``.

    Attributes:
      variances: ``[D]``, of the Gaussian, and the scale of the other laws.
      shape: one of `SHAPES`. "mixture": 8 equal components around fixed centres, each with a quarter of the variances.
        "heavy tails": Student's t with 5 degrees of freedom. "ring": the first two coordinates lie on a circle of that
        deviation, a tenth thick.
    """

    variances: np.ndarray
    shape: str = "gaussian"

    @property
    def dim(self) -> int:
        """D."""
        return len(self.variances)

    @property
    def covariance(self) -> np.ndarray:
        """``[D, D]``, exact."""
        if self.shape == "mixture":
            centres = self._centres()
            return np.diag(0.25 * self.variances) + centres.T @ centres / len(centres)
        variances = self.variances.copy()
        if self.shape == "ring":
            variances[:2] = variances[0] * 1.01
        return np.diag(variances)

    def _centres(self):
        centres = CENTRES[:, : self.dim]
        return 0.9 * (centres - centres.mean(axis=0)) * np.sqrt(self.variances)

    def draw(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Points ``[count, D]``."""
        x = rng.standard_normal((count, self.dim)) * np.sqrt(self.variances)
        if self.shape == "mixture":
            return self._centres()[rng.integers(len(CENTRES), size=count)] + 0.5 * x
        if self.shape == "heavy tails":
            return x * np.sqrt((DEGREES - 2) / rng.chisquare(DEGREES, size=(count, 1)))
        if self.shape == "ring":
            angle = rng.uniform(0.0, 2.0 * np.pi, count)
            radius = np.sqrt(2.0 * self.variances[0]) * (1.0 + 0.1 * rng.standard_normal(count))
            x[:, 0], x[:, 1] = radius * np.cos(angle), radius * np.sin(angle)
        return x
