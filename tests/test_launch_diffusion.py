"""What experiments on images share: counts of a dry run by hand, refusals, user functions that change while a job rests."""

import sys

import numpy as np
import pytest

from experiments import latent_vs_pixel, noisy_autoencoder, stopping_by_metric
from experiments.launch import SettingError
from experiments.launch.diffusion import DiffusionSettings, ImageData
from ldmjax import data
from ldmjax.autoencoders import AutoencoderConfig
from ldmjax.autoencoders.convolutional import parameter_count
from ldmjax.job import NO_JOB, Job

SIZE = {
    "seeds": (0, 1),
    "n": 200,
    "reference": 150,
    "samples": 512,
    "sampling_batch": 128,
    "sampling_steps": 20,
    "stops": 5,
    "training_steps": 20,
}


def stages(experiment, **settings):
    config = experiment.Config(**SIZE, **settings)
    found = experiment.plan(config, ImageData(dataset=data.digits(), spaces=()))
    return {stage.stage: stage for stage in found}, config


def test_parameters_of_an_autoencoder():
    """Two halvings 1 -> 16 -> 32 channels of 8 x 8 pixels, a dense layer to 16 numbers, and back."""
    parameters = (256 + 16) + (8192 + 32) + 2 * 2048 + 128 + (8192 + 16) + (256 + 1)
    assert parameter_count(AutoencoderConfig(kind="conv"), (8, 8), (16,)) == parameters


def test_counts_of_latent_vs_pixel():
    found, config = stages(latent_vs_pixel, autoencoders=("pca:16", "kl:4x4x2"))
    assert found["train kl autoencoders"].runs == found["train unet on 32 entries"].runs == 2
    training, sampling = found["train mlp on 64 entries"], found["sample mlp on 16 entries"]
    assert (training.runs, training.steps, training.evaluations) == (2, 20, 2 * 20 * 64)
    # An MLP of two blocks: D + 1 numbers in, 256 wide, D out.
    assert training.parameters > 2 * 64 * 256
    assert (sampling.runs, sampling.steps, sampling.evaluations) == (2 * 4, 20, 2 * 512 * 20)
    assert found["decode and measure sets of images"].runs == 8 * 2 * len(config.sampling.stop_steps)


def test_counts_of_stopping_by_metric():
    found, config = stages(stopping_by_metric, latent_dims=(2, 4, 8))
    autoencoders = found["train conv autoencoders"]
    assert (autoencoders.runs, autoencoders.steps) == (6, 1000)
    assert autoencoders.evaluations == 6 * 1000 * AutoencoderConfig(kind="conv").batch_size
    assert found["train mlp on 8 entries at most"].runs == 12
    assert found["decode and measure sets of images"].runs == 12 * (len(config.progress) + 1)


def test_counts_of_the_noisy_autoencoder():
    found, config = stages(noisy_autoencoder, autoencoder="pca", latent_dims=(2, 4, 8))
    assert found["sample mlp on 8 entries at most"].runs == 4 * 6 * 2
    assert not any("train pca" in stage for stage in found)
    assert found["noisy autoencoder, sets of images"].runs == 6 * len(config.logsnrs)


def test_other_numbers_of_a_users_features_are_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "own_features.py").write_text("scale = 1.0\ndef f(x):\n    return scale * x.reshape(len(x), -1)\n")
    config, job = DiffusionSettings(features=("own_features:f",)), Job(tmp_path / "job")
    for _ in range(2):
        config.check_features_unchanged(config.load(), job)
    sys.modules["own_features"].scale = 2.0
    with pytest.raises(SettingError, match="^features=own_features:f: gives other numbers than when the job began"):
        config.check_features_unchanged(config.load(), job)
    config.check_features_unchanged(config.load(), NO_JOB)


def test_data_that_are_too_few(tmp_path):
    np.savez(tmp_path / "few.npz", images=np.random.default_rng(0).standard_normal((255, 4, 4)))
    with pytest.raises(SettingError, match="^data=.*must hold at least 256 images"):
        DiffusionSettings(data=str(tmp_path / "few.npz")).load()


def test_errors_in_the_middle_are_of_a_setting():
    config = DiffusionSettings()
    with pytest.raises(SettingError, match="^n=1000: latents must vary"), config.blaming("n"):
        raise ValueError("latents must vary")
    with pytest.raises(SettingError, match="^samples="), config.blaming("n"):
        raise config.refuse("samples", "must be even")
