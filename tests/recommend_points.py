"""Points with a known law, PCA of them as a candidate of recommend, and its exact stopping curve."""

import numpy as np

from ldmjax import autoencoders, gaussians, metrics, stopping
from ldmjax.recommendation import Candidate


def pca_candidate(x, held_out, d, *, name="pca"):
    fitted = autoencoders.fit(x, [(d,)], autoencoders.AutoencoderConfig(kind="pca"), seeds=[0])[0]
    reference = metrics.FeatureReference(held_out, metrics=["w2"])
    return Candidate(
        name=name,
        latents=fitted.encode(x),
        decode=fitted.decode,
        training=x.astype(np.float32),
        measures={"data": metrics.Measure(lambda images: images, reference)},
    )


def small_candidate(seed=0, d=3, *, name="pca"):
    """PCA of 80 points in 5 dimensions, 128 held out."""
    rng = np.random.default_rng(seed)
    return pca_candidate(rng.standard_normal((80, 5)), rng.standard_normal((128, 5)), d, name=name)


def spectrum(dim, *, decay=1.5):
    """Deviations ``[dim]``."""
    return np.arange(1.0, dim + 1) ** (-decay / 2)


def of_true_second_moment(rng, count):
    """Points ``[count, 16]`` whose own second moment is diag(spectrum^2) exactly."""
    x = rng.standard_normal((count, 16))
    x -= x.mean(axis=0)
    return x @ np.linalg.inv(np.linalg.cholesky(x.T @ x / count)).T * spectrum(16)


def exact_curve(x, d, logsnrs, *, scale=None, decay=1.5):
    """Exact law of the noisy autoencoder with PCA on the latents' own scale, N(0, diag(spectrum^2)) being the truth."""
    mean = x.mean(axis=0)
    centred = x - mean
    axes = np.linalg.svd(centred, full_matrices=False)[2][:d].T
    z = centred @ axes
    scale = z.std() if scale is None else scale
    truth, curve = np.diag(spectrum(x.shape[1], decay=decay) ** 2), []
    for nu in 1 / (1 + np.exp(logsnrs)):
        law = axes @ ((1 - nu) * z.T @ z / len(x) + nu * scale**2 * np.eye(d)) @ axes.T
        curve.append(gaussians.w2_squared(mean, law, 0 * mean, truth))
    return np.array(curve)


def made_record(name="a", best=9.0, **changes):
    """A record of a sampler of Stable Diffusion, as far as choices and sentences need it."""
    fields = {
        "name": name,
        "features": "pixels",
        "metric": "w2",
        "best": best,
        "end": 10.0,
        "end_standard_error": 0.5,
        "gain": None if best is None else 10.0 - best,
        "divide_by": 1.0,
        "verdict": stopping.VERDICTS[0],
        "logsnr": 2.1,
        "step": None,
        "timestep": 100.0,
        "denoising_end": 0.9,
        "images_needed": None,
        "sampler": "scaled_linear_euler",
        "sampling_steps": None,
        "sigma": 0.3,
        "vp_alpha": 0.95,
        "edge": None,
        "reference_images": 200,
        "compared": "images",
    }
    return fields | changes
