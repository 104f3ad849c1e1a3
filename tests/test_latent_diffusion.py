"""Latent diffusion models: the identity is the pixel model, exact laws of untrained chains, readouts, distances."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from interrupted import run_in_sessions

from ldmjax import data, features, gaussians, latent_diffusion, metrics, samplers, sweeps, training
from ldmjax.job import Job
from ldmjax.latent_diffusion import SamplingConfig
from ldmjax.schedules import RectifiedFlow

SAMPLING = {"samples": 256, "batch": 128, "steps": 20, "stops": 5}


@pytest.fixture(scope="module")
def dataset():
    """400 Gaussian images of 4 x 3 pixels around a mean that is not 0."""
    rng = np.random.default_rng(0)
    samples = rng.standard_normal((400, 12)) * np.geomspace(1.0, 0.1, 12) + np.linspace(-1.0, 1.0, 12)
    return data.from_samples("toy", samples, (4, 3))


def network(**changes):
    size = {"model": "mlp", "hidden": 8, "steps": 30, "batch_size": 16, "schedule": RectifiedFlow()}
    return training.TrainingConfig(**(size | SamplingConfig().trained_range | changes))


@pytest.fixture(scope="module")
def models(dataset):
    """A pixel model and a PCA model in one program."""
    split = latent_diffusion.split_images(dataset, n=200, reference=150, seed=3)
    fitted = latent_diffusion.fit_autoencoders({3: split}, {"identity": [(4, 3)], "pca": [(5,)]})
    assert list(fitted) == [(3, "identity", (4, 3)), (3, "pca", (5,))]
    options = {"seeds": [3, 3], "learning_rate": 0.01, "snapshot": 10}
    return split, latent_diffusion.train_models(list(fitted.values()), [network()] * 2, [split] * 2, **options)


def test_split_holds_images_of_the_data_and_none_twice(dataset):
    split = latent_diffusion.split_images(dataset, n=200, reference=150, seed=3)
    rows = [x.reshape(len(x), -1) for x in split]
    assert [len(x) for x in rows] == [200, 150]
    original = (dataset.samples + dataset.mean).astype(np.float32)
    found = [np.flatnonzero(np.all(np.isclose(original, row, atol=1e-5), axis=1)) for row in np.concatenate(rows)]
    assert all(len(index) == 1 for index in found) and len({int(index[0]) for index in found}) == 350


def test_identity_is_the_pixel_model(models):
    """Trained directly on standardised pixels, without an autoencoder, the network is the same."""
    split, (pixel, latent) = models
    flat = split.train.reshape(200, -1).astype(np.float64)
    mean, std = flat.mean(), flat.std()
    spec = dataclasses.replace(pixel.spec)
    sources = {(spec.data, 3, 200): sweeps.Latents(sample=(flat - mean) / std, fresh_factor=np.zeros((12, 0)))}
    direct = sweeps.train_scores([spec], sources, network())
    z, t = np.random.default_rng(1).standard_normal((50, 12)).astype(np.float32), np.linspace(0.02, 0.98, 50)
    outputs = [m.denoiser(i)(jnp.asarray(z), jnp.asarray(t, jnp.float32)) for m, i in [(direct, 0), (pixel.trained, 0)]]
    np.testing.assert_allclose(*outputs, atol=1e-4)
    assert np.max(np.abs(outputs[0] - z)) > 0.1
    np.testing.assert_allclose(pixel.decode(z).reshape(50, -1), z * std + mean, atol=1e-5)
    assert latent.trained is pixel.trained and latent.spec.latent_dim == 5  # one program, padded


def untrained(model):
    """The model before training: F = 0, a linear chain whose law is known."""
    return dataclasses.replace(model, trained=dataclasses.replace(model.trained, params=model.trained.initial))


def chain_factors(sampling, data_std):
    """Factor of the starting noise left at each stop, for E[z_0 | z] = alpha s^2 / (alpha^2 s^2 + sigma^2) z."""
    schedule, factors = sampling.schedule, [1.0]
    alpha, sigma = schedule.alpha(sampling.times), schedule.sigma(sampling.times)
    for k in range(sampling.steps):
        shrink = alpha[k] * data_std**2 / (alpha[k] ** 2 * data_std**2 + sigma[k] ** 2)
        eps = (1.0 - alpha[k] * shrink) / sigma[k]
        if sampling.process == "rectified_flow":  # dz/ds = eps - x0
            step = 1.0 + (sampling.times[k + 1] - sampling.times[k]) * (eps - shrink)
        else:  # DDIM
            step = alpha[k + 1] * shrink + sigma[k + 1] * eps
        factors.append(factors[-1] * step)
    return np.array(factors)[sampling.stop_steps]


@pytest.mark.parametrize("process", latent_diffusion.PROCESSES)
def test_untrained_chain_is_the_exact_linear_one(models, process):
    split, (pixel, latent) = models
    sampling = SamplingConfig(process=process, **SAMPLING)
    config = dataclasses.replace(pixel.trained.config, schedule=sampling.schedule)
    moved = dataclasses.replace(pixel.trained, config=config, params=pixel.trained.initial)
    chains = [latent_diffusion.sample_states(dataclasses.replace(m, trained=moved), sampling) for m in (latent, pixel)]
    stops = len(sampling.stop_steps)
    assert chains[0].shape == (stops, 256, 5) and chains[1].shape == (stops, 256, 12)
    for states, model in [(chains[0], latent), (chains[1], pixel)]:
        data_std = float(moved.runs.inputs.data_std[model.index])
        factors = chain_factors(sampling, data_std)
        np.testing.assert_allclose(states, factors[:, None, None] * states[0], rtol=2e-3, atol=1e-4)
        assert factors.min() < 0.8 or process == "vp"  # of which the variance stays 1
    # The start is standard normal, and the shorter latent starts from the first components of the longer one.
    np.testing.assert_allclose(chains[0][0], chains[1][0][:, :5], atol=1e-6)
    start = chains[1][0]
    assert abs(start.mean()) < 4 / np.sqrt(start.size) and abs(start.var() - 1) < 4 * np.sqrt(2 / start.size)
    assert len(np.unique(start[:, 0])) == 256  # both batches differ


@pytest.mark.needs_cpu("two devices")
def test_interrupted_sampling_goes_on(models, tmp_path):
    """Eight chains on two devices: a line, and a piece, after every two."""
    model, sampling = models[1][1], SamplingConfig(**SAMPLING | {"batch": 32})
    alone = latent_diffusion.sample_states(model, sampling)
    again, lines = run_in_sessions(
        lambda job: latent_diffusion.sample_states(model, sampling, job=job),
        tmp_path,
        at=["sampled 2/8", "sampled 4/8"],
    )
    assert [line.split(": ")[1] for line in lines] == ["sampled 6/8 chains"]
    np.testing.assert_array_equal(again, alone)


@pytest.mark.needs_cpu("two devices")
def test_one_chain_is_spread_over_the_devices(models):
    """256 samples of a single chain, half of them on each device, are those of the same chain on one."""
    model, sampling = models[1][1], SamplingConfig(**SAMPLING | {"batch": 256})
    program = latent_diffusion._chain_program(model.trained.config, model.trained.width, sampling)
    states = latent_diffusion.sample_states(model, sampling)
    assert [mesh.shape["samples"] for mesh, *_ in program._compiled] == [2] == [jax.device_count()]
    params, inputs = jax.tree.map(lambda x: x[model.index], (model.trained.params, model.trained.runs.inputs))
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), 11), 1)
    start = jax.random.normal(jax.random.split(key[0])[0], (model.trained.width, 256)).T * inputs.mask
    np.testing.assert_allclose(states[0], start[:, :5], rtol=1e-5, atol=1e-9)  # another quantile function
    direct = samplers.sample(
        model.trained.denoiser(model.index),
        sampling.schedule,
        start,
        jax.random.key(0),
        times=sampling.times,
        stops=sampling.stop_steps,
        sampler="euler_ode",
        statistic=lambda z, t: z,
    )
    np.testing.assert_allclose(states, direct[..., :5], atol=1e-5)


def test_readouts(models):
    sampling = SamplingConfig(**SAMPLING)
    states = np.ones((len(sampling.stop_steps), 3, 2), np.float32)
    s = 1.0 - sampling.progress
    rescaled = latent_diffusion.read_out(states, sampling, "rescaled")
    np.testing.assert_allclose(rescaled[:, 0, 0], 1.0 / np.sqrt((1 - s) ** 2 + s**2), rtol=1e-6)
    np.testing.assert_array_equal(latent_diffusion.read_out(states, sampling, "state"), states)
    preserving = SamplingConfig(process="vp", **SAMPLING)
    np.testing.assert_allclose(latent_diffusion.read_out(states, preserving, "rescaled"), states, rtol=1e-6)
    with pytest.raises(ValueError, match="readout must be one of rescaled"):
        latent_diffusion.read_out(states, preserving, "state")


def test_curves_are_distances_of_decoded_states(models, dataset):
    """States of a known Gaussian law: every stop's squared W2 within 4 standard errors of the closed form."""
    split, (_, latent) = models
    measures = latent_diffusion.make_measures([features.load("pixels", dataset)], split.reference)
    scales = np.array([1.5, 1.0, 0.5])
    states = scales[:, None, None] * np.random.default_rng(0).standard_normal((3, 4000, 5))
    pseudo = latent_diffusion.stopping_pseudo_values(latent, states.astype(np.float32), measures)
    assert set(pseudo) == {("pixels", metric) for metric in metrics.FEATURE_METRICS}
    values = pseudo["pixels", "w2"]
    error = values.std(axis=0, ddof=1) / np.sqrt(latent_diffusion.BLOCKS)
    axes = latent.autoencoder.axes * latent.autoencoder.latent_std
    centre = latent.autoencoder.mean + latent.autoencoder.latent_mean * latent.autoencoder.axes.sum(axis=1)
    truth_mean, truth = dataset.mean, dataset.covariance  # of which the reference is a sample
    for k, scale in enumerate(scales):
        exact = gaussians.w2_squared(centre, scale**2 * axes @ axes.T, truth_mean, truth)
        assert abs(values[:, k].mean() - exact) < 4 * error[k]
        assert error[k] < 0.1 * exact


def test_mean_distances_and_snapshots(models, dataset):
    split, (_, latent) = models
    measures = latent_diffusion.make_measures([features.load("pixels", dataset)], split.reference)
    means = latent_diffusion.mean_distances(split.train, measures)
    assert means == {key: p.mean() for key, p in latent_diffusion.distances_of(split.train, measures).items()}
    before = latent.at_snapshot()
    assert before.spec == latent.spec and before.trained.params is latent.trained.snapshot
    first, last = (jax.tree.leaves(model.trained.params)[0] for model in (before, latent))
    assert first.shape == last.shape and np.any(first != last)


def test_results_of_models_are_kept(models, tmp_path):
    _, trained = models
    job, calls = Job(tmp_path), []

    def compute(index):
        calls.append(index)
        return {"index": index, "dim": trained[index].spec.latent_dim}

    first, again = (latent_diffusion.map_models(compute, trained, what="counted", job=job) for _ in range(2))
    assert first == again == [{"index": 0, "dim": 12}, {"index": 1, "dim": 5}] and calls == [0, 1]


def test_floor_and_memorisation(models, dataset):
    split, _ = models
    measures = latent_diffusion.make_measures([features.load("pixels", dataset)], split.reference)
    floor = latent_diffusion.distances_of(split.train[:199], measures)["pixels", "w2"]
    assert abs(floor.mean()) < 4 * floor.std(ddof=1) / np.sqrt(len(floor))  # both are samples of one law
    shifted = latent_diffusion.distances_of(split.train + 0.5, measures)["pixels", "w2"]
    assert shifted.mean() == pytest.approx(12 * 0.25, rel=0.1)
    assert latent_diffusion.memorisation(split.train, split) == 0.0
    assert latent_diffusion.memorisation(split.reference, split) == 1.0
    assert latent_diffusion.memorisation(split.reference + 3.0, split) > 5.0


def test_sampling_configuration():
    sampling = SamplingConfig()
    assert sampling.progress[0] == 0.0 and sampling.progress[-1] == 1.0 and np.all(np.diff(sampling.progress) > 0)
    assert np.diff(sampling.progress)[-1] < 0.02 and np.isinf(sampling.logsnrs[-1])
    half = sampling.progress == 0.5
    assert sampling.logsnrs[half] == pytest.approx(0.0) and half.any()
    trained = sampling.trained_range
    asked = sampling.schedule.logsnr(sampling.times[1:-1])
    assert trained["logsnr_min"] <= asked.min() and trained["logsnr_max"] >= asked.max()
    for changes, line in [
        ({"process": "ve"}, "process must be one of"),
        ({"samples": 100}, "at least 128"),
        ({"samples": 129}, "even"),
        ({"batch": 0}, "batch >= 1"),
        ({"stops": 1}, "stops >= 2"),
    ]:
        with pytest.raises(ValueError, match=line):
            SamplingConfig(**changes)
    assert SamplingConfig(samples=1000, batch=128).chunk == 125 and SamplingConfig(samples=256, batch=999).chunk == 256
