"""Image models and latent_vs_pixel: the identity is the pixel model, exact laws of untrained chains, equal FLOPs, files."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_commands
from experiments.image_models import SamplingConfig
from interrupted import run_in_sessions

from experiments import image_models, latent_vs_pixel, pieces
from experiments.latent_vs_pixel import report
from ldmjax import data, features, gaussians, metrics, records, samplers, stopping, sweeps, training
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
    split = image_models.split_images(dataset, n=200, reference=150, seed=3)
    fitted = image_models.fit_autoencoders(split, {"identity": [(4, 3)], "pca": [(5,)]}, seed=3, report=print)
    options = {"seeds": [3, 3], "learning_rate": 0.01, "report": lambda line: None}
    return split, image_models.train_models(fitted, [network()] * 2, [split] * 2, **options)


def test_split_holds_images_of_the_data_and_none_twice(dataset):
    split = image_models.split_images(dataset, n=200, reference=150, seed=3)
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
    direct = sweeps.train([spec], sources, network())
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


@pytest.mark.parametrize("process", image_models.PROCESSES)
def test_untrained_chain_is_the_exact_linear_one(models, process):
    split, (pixel, latent) = models
    sampling = SamplingConfig(process=process, **SAMPLING)
    config = dataclasses.replace(pixel.trained.config, schedule=sampling.schedule)
    moved = dataclasses.replace(pixel.trained, config=config, params=pixel.trained.initial)
    chains = [
        image_models.sample_states(dataclasses.replace(m, trained=moved), sampling, report=lambda line: None)
        for m in (latent, pixel)
    ]
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
    alone = image_models.sample_states(model, sampling, report=lambda line: None)
    again, lines = run_in_sessions(
        lambda report, store: image_models.sample_states(model, sampling, store=store, report=report),
        tmp_path, at=["sampled 2/8", "sampled 4/8"],
    )  # fmt: skip
    assert [line.split(": ")[1] for line in lines] == ["sampled 6/8 chains"]
    np.testing.assert_array_equal(again, alone)


@pytest.mark.needs_cpu("two devices")
def test_one_chain_is_spread_over_the_devices(models):
    """256 samples of a single chain, half of them on each device, are those of the same chain on one."""
    model, sampling = models[1][1], SamplingConfig(**SAMPLING | {"batch": 256})
    program = image_models._chain_program(model.trained.config, model.trained.width, sampling)
    states = image_models.sample_states(model, sampling, report=lambda line: None)
    assert [mesh.shape["samples"] for mesh, *_ in program._compiled] == [2] == [jax.device_count()]
    params, inputs = jax.tree.map(lambda x: x[model.index], (model.trained.params, model.trained.runs.inputs))
    key = jax.random.split(jax.random.fold_in(jax.random.key(3), 11), 1)
    start = jax.random.normal(jax.random.split(key[0])[0], (model.trained.width, 256)).T * inputs.mask
    np.testing.assert_allclose(states[0], start[:, :5], rtol=1e-5, atol=1e-9)  # another quantile function
    direct = samplers.sample(
        model.trained.denoiser(model.index), sampling.schedule, start, jax.random.key(0), times=sampling.times,
        stops=sampling.stop_steps, sampler="euler", statistic=lambda z, t: z,
    )  # fmt: skip
    np.testing.assert_allclose(states, direct[..., :5], atol=1e-5)


def test_readouts(models):
    sampling = SamplingConfig(**SAMPLING)
    states = np.ones((len(sampling.stop_steps), 3, 2), np.float32)
    s = 1.0 - sampling.progress
    rescaled = image_models.read_out(states, sampling, "rescaled")
    np.testing.assert_allclose(rescaled[:, 0, 0], 1.0 / np.sqrt((1 - s) ** 2 + s**2), rtol=1e-6)
    np.testing.assert_array_equal(image_models.read_out(states, sampling, "state"), states)
    preserving = SamplingConfig(process="vp", **SAMPLING)
    np.testing.assert_allclose(image_models.read_out(states, preserving, "rescaled"), states, rtol=1e-6)
    with pytest.raises(ValueError, match="readout must be one of rescaled"):
        image_models.read_out(states, preserving, "state")


def test_curves_are_distances_of_decoded_states(models, dataset):
    """States of a known Gaussian law: every stop's squared W2 within 4 standard errors of the closed form."""
    split, (_, latent) = models
    measures = image_models.make_measures([features.load("pixels", dataset)], split.reference)
    scales = np.array([1.5, 1.0, 0.5])
    states = scales[:, None, None] * np.random.default_rng(0).standard_normal((3, 4000, 5))
    pseudo = image_models.stopping_pseudo_values(latent, states.astype(np.float32), measures)
    assert set(pseudo) == {("pixels", metric) for metric in metrics.FEATURE_METRICS}
    values = pseudo["pixels", "w2"]
    error = values.std(axis=0, ddof=1) / np.sqrt(image_models.BLOCKS)
    axes = latent.autoencoder.axes * latent.autoencoder.latent_std
    centre = latent.autoencoder.mean + latent.autoencoder.latent_mean * latent.autoencoder.axes.sum(axis=1)
    truth_mean, truth = dataset.mean, dataset.covariance  # of which the reference is a sample
    for k, scale in enumerate(scales):
        exact = gaussians.w2_squared(centre, scale**2 * axes @ axes.T, truth_mean, truth)
        assert abs(values[:, k].mean() - exact) < 4 * error[k]
        assert error[k] < 0.1 * exact


def test_floor_and_memorisation(models, dataset):
    split, _ = models
    measures = image_models.make_measures([features.load("pixels", dataset)], split.reference)
    floor = image_models.distances_of(split.train[:199], measures)["pixels", "w2"]
    assert abs(floor.mean()) < 4 * floor.std(ddof=1) / np.sqrt(len(floor))  # both are samples of one law
    shifted = image_models.distances_of(split.train + 0.5, measures)["pixels", "w2"]
    assert shifted.mean() == pytest.approx(12 * 0.25, rel=0.1)
    assert image_models.memorisation(split.train, split) == 0.0
    assert image_models.memorisation(split.reference, split) == 1.0
    assert image_models.memorisation(split.reference + 3.0, split) > 5.0


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
        ({"process": "ve"}, "process must be one of"), ({"samples": 100}, "at least 128"), ({"samples": 129}, "even"),
        ({"batch": 0}, "batch >= 1"), ({"stops": 1}, "stops >= 2"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=line):
            SamplingConfig(**changes)
    assert SamplingConfig(samples=1000, batch=128).chunk == 125 and SamplingConfig(samples=256, batch=999).chunk == 256


def small(**changes):
    """As many components as pixels: both networks have the same size and share their programs."""
    options = {
        "autoencoders": (("pca", (12,)),), "seeds": (0, 1), "n": 200, "reference": 150, "hidden": 64,
        "mlp_blocks": 1, "training_steps": 20, "batch_size": 16, "sampling": SamplingConfig(**SAMPLING),
    }  # fmt: skip
    return latent_vs_pixel.Config(**(options | changes))


def test_every_latent_model_has_the_pixel_models_operations():
    config = small(autoencoders=(("pca", (2,)), ("kl", (16,)), ("kl", (4, 4, 2)), ("vq", (2, 2, 4))), hidden=128)
    plans = latent_vs_pixel.make_plans(config, (8, 8))
    assert [(p.kind, p.network.model) for p in plans] == [
        ("identity", "mlp"), ("pca", "mlp"), ("kl", "mlp"), ("identity", "unet"), ("kl", "unet"), ("vq", "unet"),
    ]  # fmt: skip
    for plan in plans:
        assert abs(plan.flops_difference) <= 0.02
        assert plan.flops == training.flops(plan.network, int(np.prod(plan.latent_shape)))
        same = ("steps", "batch_size", "schedule", "logsnr_min", "logsnr_max", "blocks")
        pixel = next(p for p in plans if p.kind == "identity" and p.network.model == plan.network.model)
        assert all(getattr(plan.network, name) == getattr(pixel.network, name) for name in same)
    assert plans[0].network.hidden == 128 and plans[3].network.channels == (8, 16)
    with pytest.raises(ValueError, match="larger pixel model"):
        latent_vs_pixel.make_plans(small(autoencoders=(("pca", (2,)),), hidden=1), (8, 8))
    with pytest.raises(ValueError, match="needs images"):
        latent_vs_pixel.make_plans(small(autoencoders=(("kl", (4, 4, 2)),)), (64,))


@pytest.fixture(scope="module")
def outcome(dataset):
    return latent_vs_pixel.run(dataset, [features.load("pixels", dataset)], small(), lambda line: None)


@pytest.mark.slow
def test_interrupted_job_ends_with_the_same_records(outcome, dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "SECONDS_BETWEEN_LINES", 0.0)
    spaces = [features.load("pixels", dataset)]
    again, lines = run_in_sessions(
        lambda report, store: latent_vs_pixel.run(dataset, spaces, small(), report, store),
        tmp_path, at=["step 20/20", "measured: 1/4", "measured: 3/4"],
    )  # fmt: skip
    assert len(lines) == 1 and "measured: 4/4" in lines[0]  # nothing else is left to do
    for where, result in (("alone", outcome), ("again", again)):
        (tmp_path / where).mkdir()
        records.write_records(tmp_path / where, report.make_records(result, dataset, spaces, small()))
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()
    curves = report.make_curves(outcome, small())
    for name, values in report.make_curves(again, small()).items():
        np.testing.assert_array_equal(values, curves[name])


def test_readings_of_the_mean_are_means_over_seeds(outcome):
    plans, sampling = 2, small().sampling
    assert len(outcome.readings) == plans * len(sampling.readouts) * 3 * (2 + 1)
    for mean in (r for r in outcome.readings if r.seed is None):
        own = [
            r for r in outcome.readings
            if r.seed is not None and r[2:5] == mean[2:5] and r.plan.label == mean.plan.label
        ]  # fmt: skip
        assert len(own) == 2
        np.testing.assert_allclose(mean.result.curve, np.mean([r.result.curve for r in own], axis=0), rtol=1e-9)
        assert mean.floor == pytest.approx(np.mean([r.floor for r in own]))
        # The end of sampling is the last stop, and its difference to itself is 0.
        assert mean.difference_error[-1] == 0.0 and mean.result.curve[-1] == mean.result.end
    # At the end of the flow both readouts are the same state; on the way they are not.
    curves = {(r.readout, r.seed): r.result.curve for r in outcome.readings if r[3:5] == ("pixels", "w2")}
    np.testing.assert_allclose(curves["state", 1][[0, -1]], curves["rescaled", 1][[0, -1]], rtol=1e-5)
    assert not np.allclose(curves["state", 1][1:-1], curves["rescaled", 1][1:-1], rtol=1e-2)


def test_records_say_what_was_measured(outcome, dataset, tmp_path):
    config = small()
    rows = report.make_records(outcome, dataset, [features.load("pixels", dataset)], config)
    records.write_records(tmp_path, rows)
    rows = records.load_records(tmp_path)
    assert len(rows) == len(outcome.readings)
    for row, reading in zip(rows, outcome.readings, strict=True):
        assert row["verdict"] in stopping.VERDICTS and row["readout"] == reading.readout
        assert row["precision"] == "float32"
        assert row["flops_difference"] == pytest.approx(row["flops"] / row["flops_pixel"] - 1) and row["n"] == 200
        assert row["reference"] == 150 and row["samples"] == 256 and row["progress_best"] <= 1.0
        assert (row["progress_best_low"], row["progress_best_high"]) == tuple(
            config.sampling.progress[[reading.result.best_stop_low, reading.result.best_stop_high]]
        )
        assert ("memorisation" in row) == (row["seed"] is not None)
    curves = report.make_curves(outcome, config)
    assert curves["curve"].shape == (len(rows), len(curves["progress"]))
    assert curves["samples pca 12, MLP"].shape == (len(curves["progress"]), 2, 4, 3)


@pytest.mark.parametrize(
    ("latent", "pixel", "answer"),
    [
        ("stop early", "no gain from stopping", "yes"), ("stop early", "stop early", "no"),
        ("stop early", "cannot tell", "cannot tell"), ("no gain from stopping", "cannot tell", "no"),
        ("cannot tell", "stop early", "no"), ("cannot tell", "no gain from stopping", "cannot tell"),
    ],
)  # fmt: skip
def test_answers(outcome, latent, pixel, answer):
    verdicts = {"identity": pixel, "pca": latent}
    readings = tuple(
        r._replace(result=dataclasses.replace(r.result, verdict=verdicts[r.plan.kind])) for r in outcome.readings
    )
    lines = report.answers(dataclasses.replace(outcome, readings=readings), small())
    assert len(lines) == 2 + 2 * 3  # two readouts, three metrics
    assert {line.rstrip().split("  ")[-1].strip() for line in lines[2:]} == {answer}


def test_figures_and_table(outcome):
    config = small()
    figures = report.draw(outcome, config, "toy")
    assert sorted(figures) == ["chains", "curves_mlp_rescaled", "curves_mlp_state"]
    axes = figures["curves_mlp_state"].axes
    w2 = [r for r in report.summary_readings(outcome) if (r.readout, r.metric) == ("state", "w2")]
    lines = [line.get_ydata() for line in axes[0].get_lines() if len(line.get_ydata()) == len(config.sampling.progress)]
    for line, reading in zip(lines, w2, strict=True):
        np.testing.assert_allclose(line, np.where(reading.result.curve > 0, reading.result.curve, np.nan))
    text = report.table(outcome, config)
    assert all(p.label in text for p in outcome.plans) and "Readout 'rescaled'" in text and "+0.00 %" in text


@pytest.mark.slow
def test_command_and_refusals(tmp_path):
    path = tmp_path / "images.npz"
    rng = np.random.default_rng(0)
    np.savez(path, images=rng.standard_normal((400, 6, 6)) + rng.standard_normal((400, 1, 1)))
    where = tmp_path / "out"
    given = [f"--data={path}", "--n=200"]
    fast = ["--seeds=0", "--training_steps=5", "--samples=128", "--sampling_steps=10", "--stops=4", "--hidden=64"]
    name = "latent_vs_pixel"
    refused = [
        (["--autoencoders=pca"], "--autoencoders=pca: must be comma-separated KIND:SHAPE"),
        (["--autoencoders=identity:3"], "KIND out of"),
        (["--autoencoders=kl:4x4"], "KIND:SHAPE"),
        (["--autoencoders=pca:37"], "1 <= d <= 36"),
        (["--hidden=2", "--autoencoders=pca:1"], "larger pixel model"),
        (["--n=300"], "must be 2..272"),
        (["--samples=129"], "must be even"),
        (["--spectrum=power:1"], "no images"),
    ]  # fmt: skip
    cases = [(name, [*given, *fast, "--autoencoders=pca:36", f"--workdir={where}"])]
    for arguments, _ in refused:
        source = [] if "spectrum" in arguments[0] else given
        merged = [a for a in [*source, *fast] if a.split("=")[0] not in [b.split("=")[0] for b in arguments]]
        cases.append((name, [*merged, *arguments, f"--workdir={tmp_path / 'refused'}"]))
    (status, out, err), *others = run_commands(cases, tmp_path)
    assert status == 0 and err == "" and "results in" in out and "Do the last steps" in out
    assert sorted(p.name for p in where.iterdir()) == [
        "chains.png", "checkpoints", "curves.npz", "curves_mlp_rescaled.png", "curves_mlp_state.png", "flags.txt",
        "metadata.json", "records.jsonl",
    ]  # fmt: skip
    assert "--autoencoders=pca:36" in (where / "flags.txt").read_text()
    assert json.loads((where / "metadata.json").read_text())["seconds"] > 0
    for (_, line), (status, _, err) in zip(refused, others, strict=True):
        assert status == 2 and err.count("\n") == 1 and line in err, err
