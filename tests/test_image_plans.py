"""Plans of experiments on images: counts by hand, and what grows with what."""

import dataclasses

import numpy as np
import pytest
from experiments.image_models import SamplingConfig

from experiments import image_plans, latent_vs_pixel, noisy_autoencoder, stopping_by_metric
from ldmjax import data, features
from ldmjax.autoencoders import AutoencoderConfig

SAMPLING = SamplingConfig(samples=256, batch=128, steps=20, stops=5)
SIZE = {"seeds": (0, 1), "n": 200, "reference": 150, "sampling": SAMPLING, "training_steps": 20}


@pytest.fixture(scope="module")
def digits():
    dataset = data.digits()
    return dataset, [features.load("pixels", dataset)]


def test_operations_and_parameters_of_an_autoencoder():
    """Two halvings 1 -> 16 -> 32 channels of 8 x 8 pixels, a dense layer to 16 numbers, and back."""
    flops, parameters = image_plans.network_size(AutoencoderConfig(kind="conv"), (8, 8), (16,))
    products = 2 * (2 * 16 * (16 * 1 * 16) + 2 * 4 * (16 * 16 * 32) + 2 * (128 * 16))
    assert flops == products
    assert parameters == (256 + 16) + (8192 + 32) + 2 * 2048 + 128 + (8192 + 16) + (256 + 1)
    assert image_plans.network_size(AutoencoderConfig(kind="pca"), (8, 8), (16,)) == (4 * 64 * 16, 0)


def test_runs_of_every_stage(digits):
    stops = len(SAMPLING.stop_steps)
    config = latent_vs_pixel.Config(autoencoders=(("pca", (16,)), ("kl", (4, 4, 2))), **SIZE)
    runs = {s.what: s.runs for s in latent_vs_pixel.plan(*digits, config)}
    assert runs["train kl autoencoders"] == runs["train unet on 32 entries"] == runs["train mlp on 64 entries"] == 2
    assert runs["sample mlp on 16 entries"] == 2 * 2 and runs["decode and measure"] == 8 * 2 * stops
    config = stopping_by_metric.Config(latent_dims=(2, 4, 8), **SIZE)
    runs = {s.what: s.runs for s in stopping_by_metric.plan(*digits, config)}
    assert runs["train conv autoencoders"] == 6 and runs["train mlp on 8 entries at most"] == 12
    config = noisy_autoencoder.Config(autoencoder="pca", latent_dims=(2, 4, 8), **SIZE)
    runs = {s.what: s.runs for s in noisy_autoencoder.plan(*digits, config)}
    assert runs["sample mlp on 8 entries at most"] == 2 * 6 * 2 and not any("autoencoders" in what for what in runs)
    assert runs["noisy autoencoder"] == 6 * len(config.logsnrs)


def test_time_grows_with_steps_and_samples(digits):
    config = noisy_autoencoder.Config(autoencoder="pca", latent_dims=(4,), **SIZE)
    twice = dataclasses.replace(
        config, training_steps=40, sampling=dataclasses.replace(SAMPLING, samples=512, steps=40)
    )  # fmt: skip
    one, two = ({s.what: s.seconds for s in noisy_autoencoder.plan(*digits, c)} for c in (config, twice))
    assert two["train mlp on 4 entries"] == pytest.approx(2 * one["train mlp on 4 entries"])
    assert two["sample mlp on 4 entries"] == pytest.approx(4 * one["sample mlp on 4 entries"])
    assert two["measure models"] > 1.5 * one["measure models"] and np.isfinite(list(two.values())).all()
