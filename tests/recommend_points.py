"""Points with a known law, PCA of them as a candidate of recommend, and its exact stopping curve."""

import numpy as np

from experiments.recommend import candidates
from ldmjax import autoencoders, gaussians, metrics


def quiet(line):
    pass


def pca_candidate(x, held_out, d, *, name="pca"):
    fitted = autoencoders.fit(x, [(d,)], autoencoders.AutoencoderConfig(kind="pca"), seeds=[0])[0]
    reference = metrics.FeatureReference(held_out, metrics=["w2"])
    return candidates.Candidate(
        name=name, latents=fitted.encode(x), decode=fitted.decode, training=x.astype(np.float32),
        measures={"data": metrics.Measure(lambda images: images, reference)},
    )  # fmt: skip


def spectrum(dim):
    return np.sqrt(np.arange(1.0, dim + 1) ** -1.5)


def of_true_second_moment(rng, count):
    """Points ``[count, 16]`` whose own second moment is diag(spectrum^2) exactly."""
    x = rng.standard_normal((count, 16))
    x -= x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / count)).T * spectrum(16)


def exact_curve(x, d, logsnrs, *, scale=None):
    """Exact law of the noisy autoencoder with PCA on the latents' own scale, N(0, diag(spectrum^2)) being the truth."""
    mean = x.mean(axis=0)
    centred = x - mean
    axes = np.linalg.svd(centred, full_matrices=False)[2][:d].T
    z = centred @ axes
    scale = z.std() if scale is None else scale
    truth, curve = np.diag(spectrum(x.shape[1]) ** 2), []
    for nu in 1 / (1 + np.exp(logsnrs)):
        law = axes @ ((1 - nu) * z.T @ z / len(x) + nu * scale**2 * np.eye(d)) @ axes.T
        curve.append(gaussians.w2_squared(mean, law, 0 * mean, truth))
    return np.array(curve)
