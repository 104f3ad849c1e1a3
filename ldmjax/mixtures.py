"""Gaussian mixtures with exact scores: the simplest data whose reverse step is not Gaussian.

The data x_0 ~ sum_m w_m N(mu_m, S_m), with S_m = U_m diag(lam_m) U_m^T, are seen through z = alpha x_0 + sigma eps. With
y_m = U_m^T (z - alpha mu_m) and g_m = alpha^2 lam_m + sigma^2 (vectors; products and quotients are componentwise):

    (1)  log density   log p(z) = logsumexp_m (log w_m + log N_m),   log N_m = -sum_k (y_mk^2 / g_mk + log(2 pi g_mk)) / 2
    (2)  component     p_m = p(m | z) = softmax_m (log w_m + log N_m)
    (3)  denoiser      E[x_0 | z] = sum_m p_m d_m,   d_m = mu_m + U_m (alpha lam_m / g_m y_m)
    (4)  Bayes error   E |eps - E[eps | z]|^2 = sum_m w_m sum_k alpha^2 lam_mk / g_mk  +  E sum_m p_m |e_m - sum_j p_j e_j|^2,
                       e_m = E[eps | z, m] = sigma U_m (y_m / g_m)

(4) is the conditional variance of eps averaged over z, split into what each component leaves open, known in closed form
because E p_m = w_m, and which component it was. Closed forms and draws are float64 on the host; the denoiser is jax.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float
from scipy import special

from ldmjax.gaussians import eigh_descending
from ldmjax.process import Denoiser
from ldmjax.schedules import Schedule
from ldmjax.typing import ArrayLike


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class GaussianMixture:
    """A mixture of M Gaussians in D dimensions.

    Attributes:
      weights: w ``[M]``, positive, of sum 1.
      means: mu ``[M, D]``.
      covariances: S ``[M, D, D]``, symmetric and positive semi-definite; 0 makes a component a point.

    Raises:
      ValueError: if the shapes disagree or a value is not allowed.
    """

    weights: np.ndarray
    means: np.ndarray
    covariances: np.ndarray

    def __post_init__(self):
        for name in ("weights", "means", "covariances"):
            object.__setattr__(self, name, np.array(getattr(self, name), np.float64))
        if self.means.ndim != 2 or 0 in self.means.shape or not np.all(np.isfinite(self.means)):
            raise ValueError(f"means must be finite [M, D] with M, D >= 1, got {list(self.means.shape)}")
        count, dim = self.means.shape
        if self.weights.shape != (count,) or self.covariances.shape != (count, dim, dim):
            raise ValueError(
                f"weights and covariances must be {[count]} and {[count, dim, dim]} as the means are {[count, dim]}, got "
                f"{list(self.weights.shape)} and {list(self.covariances.shape)}"
            )
        if not (np.all(self.weights > 0) and abs(self.weights.sum() - 1.0) < 1e-8):
            raise ValueError(f"weights must be > 0 and sum to 1, got {self.weights.tolist()}")
        _ = self.eigen  # raises for what is not a covariance

    @functools.cached_property
    def eigen(self) -> tuple[np.ndarray, np.ndarray]:
        """Eigenvalues lam ``[M, D]``, largest first, and eigenvectors U ``[M, D, D]`` as columns of each S_m."""
        values, vectors = zip(*map(eigh_descending, self.covariances), strict=True)
        return np.stack(values), np.stack(vectors)

    @property
    def dim(self) -> int:
        """Data dimension D."""
        return self.means.shape[1]

    @property
    def mean(self) -> np.ndarray:
        """Mean of the mixture ``[D]``."""
        return self.weights @ self.means

    @property
    def covariance(self) -> np.ndarray:
        """Covariance of the mixture ``[D, D]``: within the components and between them."""
        centred = self.means - self.mean
        return np.einsum("m,mij->ij", self.weights, self.covariances) + (centred.T * self.weights) @ centred

    def draws(self, count: int, *, seed: int, stream: int = 0) -> Float[np.ndarray, "count D"]:
        """Returns ``[count, D]`` independent draws; ``stream`` separates uses of one seed."""
        if count < 1:
            raise ValueError(f"count must be >= 1, got {count}")
        rng = np.random.default_rng([seed, stream])
        component = rng.choice(len(self.weights), size=count, p=self.weights / self.weights.sum())
        values, vectors = self.eigen
        samples = rng.standard_normal((count, self.dim))
        for m, mean in enumerate(self.means):
            rows = component == m
            samples[rows] = mean + (samples[rows] * np.sqrt(values[m])) @ vectors[m].T
        return samples


def random_mixture(
    components: int = 8, dim: int = 8, *, seed: int, within: float = 0.1, condition: float = 10.0
) -> GaussianMixture:
    """Returns a data set with structure at two scales: clusters far apart at no noise, one blob at much noise.

    The mixture has mean 0 and variance 1 per dimension on average (trace = dim). Weights are uniform on [1, 3] before
    normalisation. Means are normal draws, centred and scaled; each covariance has its own random basis, eigenvalues in
    geometric progression, and trace ``within`` * dim. At the defaults (mean over seeds 0 to 99) the best guess of a clean
    sample's component is wrong with probability 1e-4, of a sample at sigma = alpha with probability 0.18.

    Args:
      components: M >= 1; one component has all of the variance within.
      dim: D.
      seed: of weights, means and bases.
      within: share of the variance that lies within the components, in (0, 1).
      condition: ratio >= 1 of the largest to the smallest eigenvalue of a component's covariance.

    Raises:
      ValueError: if an argument is out of range.
    """
    if components < 1 or dim < 1:
        raise ValueError(f"components and dim must be >= 1, got {components} and {dim}")
    if not (0.0 < within < 1.0 and 1.0 <= condition < np.inf):
        raise ValueError(f"need 0 < within < 1 and a finite condition >= 1, got {within} and {condition}")
    rng = np.random.default_rng([seed, components, dim])
    weights = rng.uniform(1.0, 3.0, components)
    weights /= weights.sum()
    means = rng.standard_normal((components, dim))
    means -= weights @ means
    between = 0.0 if components == 1 else 1.0 - within
    means *= np.sqrt(between * dim / np.sum(weights[:, None] * means**2)) if between else 0.0
    values = np.geomspace(condition, 1.0, dim)
    values *= (1.0 - between) * dim / values.sum()
    bases = np.linalg.qr(rng.standard_normal((components, dim, dim)))[0]
    return GaussianMixture(weights=weights, means=means, covariances=(bases * values) @ np.swapaxes(bases, 1, 2))


def _posteriors(mixture, z, alpha, sigma):
    """Computes equations (1) and (2) in the kind and dtype of z ``[B, D]``, for alpha, sigma scalar or ``[B, 1, 1]``.

    Returns:
      (log w_m + log N_m ``[B, M]``, y ``[B, M, D]``, g ``[B, M, D]``).
    """
    xp = jnp if isinstance(z, jax.Array) else np
    weights, means, values, vectors = (xp.asarray(a, z.dtype) for a in (mixture.weights, mixture.means, *mixture.eigen))
    offsets = xp.einsum("bmi,mik->bmk", z[:, None, :] - alpha * means, vectors)
    marginal = alpha**2 * values + sigma**2
    quadratic = xp.sum(offsets**2 / marginal + xp.log(2.0 * np.pi * marginal), axis=-1)
    return xp.log(weights) - 0.5 * quadratic, offsets, marginal


def mixture_denoiser(mixture: GaussianMixture, schedule: Schedule) -> Denoiser:
    """Returns the exact denoiser of a mixture, equation (3).

    Where alpha = 0 the state says nothing and the result is the mixture's mean. Noise below the rounding of z cannot be
    seen, so sigma counts as at least eps * (the data's root mean square), with eps that of z's dtype: at sigma = 0 the
    result is z / alpha where the covariances are regular, and the nearest point of the nearest component's support where
    they are not.

    Args:
      mixture: the data.
      schedule: any object with ``alpha(t)`` and ``sigma(t)``, also a `Ladder`.

    Returns:
      A `Denoiser`: (z ``[B, D]``, t ``[B]``) -> E[z_0 | z_t] ``[B, D]``, in the dtype of z.
    """
    second_moment = np.trace(mixture.covariance) + np.sum(mixture.mean**2)
    scale = float(np.sqrt(second_moment / mixture.dim)) or 1.0
    values, vectors = mixture.eigen

    def denoise(z, t):
        alpha, sigma = (jnp.asarray(f(t), z.dtype)[:, None, None] for f in (schedule.alpha, schedule.sigma))
        sigma = jnp.maximum(sigma, scale * jnp.finfo(z.dtype).eps)
        log_joint, offsets, marginal = _posteriors(mixture, z, alpha, sigma)
        shrunk = alpha * jnp.asarray(values, z.dtype) / marginal * offsets
        means = jnp.asarray(mixture.means, z.dtype)
        denoised = means + jnp.einsum("bmk,mik->bmi", shrunk, jnp.asarray(vectors, z.dtype))
        return jnp.einsum("bm,bmi->bi", jax.nn.softmax(log_joint, axis=-1), denoised)

    return denoise


def log_density(
    mixture: GaussianMixture, x: ArrayLike, *, alpha: float = 1.0, sigma: float = 0.0
) -> Float[np.ndarray, " N"]:
    """Returns log density of alpha x_0 + sigma eps, equation (1), in nats.

    Args:
      mixture: law of x_0.
      x: points ``[N, D]``.
      alpha: signal scale.
      sigma: noise scale.

    Returns:
      ``[N]``.

    Raises:
      ValueError: if there is no density: sigma = 0 with a singular covariance or alpha = 0; or x is not ``[N, D]``.
    """
    x = np.asarray(x, np.float64)
    if x.ndim != 2 or x.shape[1] != mixture.dim:
        raise ValueError(f"x must be [N, {mixture.dim}], got {list(x.shape)}")
    if np.min(alpha**2 * mixture.eigen[0] + sigma**2) <= 0:
        raise ValueError(f"no density at alpha = {alpha}, sigma = {sigma}: a component is flat; needs sigma > 0")
    return special.logsumexp(_posteriors(mixture, x, alpha, sigma)[0], axis=1)


def bayes_noise_error(
    mixture: GaussianMixture, schedule: Schedule, t: ArrayLike, *, count: int, seed: int
) -> tuple[Float[np.ndarray, " L"], Float[np.ndarray, " L"]]:
    """Returns the noise-prediction error that no network gets below, E |eps - E[eps | z_t]|^2 summed over components; (4).

    Only the second term of (4), which component a state came from, is a Monte Carlo mean. All times share their draws.
    The prediction that attains it is `process.epsilon_from_x0` of `mixture_denoiser`.

    Args:
      mixture: the data.
      schedule: any object with ``alpha(t)`` and ``sigma(t)``, also a `Ladder`.
      t: ``[L]``, with sigma(t) > 0.
      count: draws, >= 2.
      seed: of the draws.

    Returns:
      (error ``[L]``, its standard error ``[L]``).

    Raises:
      ValueError: if ``t`` is not ``[L]`` with sigma(t) > 0, or ``count`` < 2.
    """
    t = np.asarray(t, np.float64)
    if t.ndim != 1 or not np.all(schedule.sigma(t) > 0):
        raise ValueError(f"t must be [L] with sigma(t) > 0, got {t.tolist()}")
    if count < 2:
        raise ValueError(f"count must be >= 2 for a standard error, got {count}")
    x0 = mixture.draws(count, seed=seed)
    noise = np.random.default_rng([seed, 1]).standard_normal(x0.shape)
    values, vectors = mixture.eigen
    error, standard_error = np.empty(t.size), np.empty(t.size)
    for i, (alpha, sigma) in enumerate(zip(schedule.alpha(t), schedule.sigma(t), strict=True)):
        log_joint, offsets, marginal = _posteriors(mixture, alpha * x0 + sigma * noise, alpha, sigma)
        posterior = special.softmax(log_joint, axis=1)
        predictions = sigma * np.einsum("bmk,mik->bmi", offsets / marginal, vectors)
        centred = predictions - np.einsum("bm,bmi->bi", posterior, predictions)[:, None, :]
        which = np.einsum("bm,bmi->b", posterior, centred**2)
        within = mixture.weights @ np.sum(alpha**2 * values / (alpha**2 * values + sigma**2), axis=1)
        error[i], standard_error[i] = within + which.mean(), which.std(ddof=1) / np.sqrt(count)
    return error, standard_error
