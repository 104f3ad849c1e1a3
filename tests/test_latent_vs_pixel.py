"""latent_vs_pixel: equal operations, means over seeds, answers, what records, tables and figures say."""

import dataclasses

import numpy as np
import pytest

from experiments import latent_vs_pixel
from experiments.latent_vs_pixel import Config, match_models
from experiments.latent_vs_pixel.report import answers, report, summary
from experiments.launch import SettingError
from experiments.launch.diffusion import ImageData
from experiments.launch.results import read_results, write_results
from ldmjax import data, features, stopping, training
from ldmjax.job import NO_JOB

EARLY, NONE, UNKNOWN = stopping.VERDICTS
# As many components as pixels: both networks have the same size and share their programs.
CONFIG = Config(
    autoencoders=("pca:12",),
    seeds=(0, 1),
    n=200,
    reference=150,
    hidden=64,
    mlp_blocks=1,
    training_steps=20,
    batch_size=16,
    samples=256,
    sampling_steps=20,
    stops=5,
)


def test_every_latent_model_has_the_pixel_models_operations():
    config = dataclasses.replace(CONFIG, autoencoders=("pca:2", "kl:16", "kl:4x4x2", "vq:2x2x4"), hidden=128)
    matched = match_models(config, (8, 8))
    assert [(m.kind, m.latent_shape, m.network.model) for m in matched] == [
        ("identity", (8, 8), "mlp"),
        ("pca", (2,), "mlp"),
        ("kl", (16,), "mlp"),
        ("identity", (8, 8), "unet"),
        ("kl", (4, 4, 2), "unet"),
        ("vq", (2, 2, 4), "unet"),
    ]
    for model in matched:
        assert abs(model.flops_difference) <= 0.02
        assert model.flops == training.flops(model.network, model.latent_dim)
        same = ("steps", "batch_size", "schedule", "logsnr_min", "logsnr_max", "blocks")
        pixel = next(m for m in matched if m.kind == "identity" and m.network.model == model.network.model)
        assert all(getattr(model.network, name) == getattr(pixel.network, name) for name in same)
    assert matched[0].network.hidden == 128 and matched[3].network.channels == (8, 16)
    with pytest.raises(ValueError, match="larger pixel model"):
        match_models(dataclasses.replace(CONFIG, autoencoders=("pca:2",), hidden=1), (8, 8))
    with pytest.raises(ValueError, match="needs images"):
        match_models(dataclasses.replace(CONFIG, autoencoders=("kl:4x4x2",)), (64,))


def test_models_that_cannot_be_matched_are_refused_with_the_data():
    with pytest.raises(SettingError, match="^autoencoders=pca:1: .*larger pixel model"):
        dataclasses.replace(CONFIG, autoencoders=("pca:1",), hidden=2).load()


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Of 400 Gaussian images of 4 x 3 pixels, as read again from the files."""
    rng, where = np.random.default_rng(0), tmp_path_factory.mktemp("workdir")
    samples = rng.standard_normal((400, 12)) * np.geomspace(1.0, 0.1, 12) + np.linspace(-1.0, 1.0, 12)
    dataset = data.from_samples("toy", samples, (4, 3))
    images = ImageData(dataset=dataset, spaces=(features.load("pixels", dataset),))
    write_results(where, latent_vs_pixel.compute(CONFIG, images, NO_JOB))
    return read_results(where, CONFIG)


def test_rows_of_the_mean_are_means_over_seeds(results):
    frame, arrays = results.frame(), results.arrays
    assert len(frame) == 2 * 2 * 3 * (2 + 1)  # models, readouts, metrics, seeds and their mean
    where = ["model", "readout", "features", "metric"]
    for _, own in frame.groupby(where):
        (mean,), seeds = own.index[own["seed"].isna()], own.index[own["seed"].notna()]
        assert len(seeds) == 2
        np.testing.assert_allclose(arrays["curve"][mean], arrays["curve"][seeds].mean(axis=0), rtol=1e-9)
        for name in ("noise_floor", "reconstruction"):
            assert own[name][mean] == pytest.approx(own[name][seeds].mean())
        # The end of sampling is the last stop, and its difference to itself is 0.
        assert arrays["difference_error"][mean][-1] == 0.0 and arrays["curve"][mean][-1] == own["end"][mean]
    # At the end of the flow both readouts are the same state; on the way they are not.
    one = frame[(frame["seed"] == 1) & (frame["metric"] == "w2") & (frame["autoencoder"] == "pca")]
    state, rescaled = (arrays["curve"][one.index[one["readout"] == name][0]] for name in ("state", "rescaled"))
    np.testing.assert_allclose(state[[0, -1]], rescaled[[0, -1]], rtol=1e-5)
    assert not np.allclose(state[1:-1], rescaled[1:-1], rtol=1e-2)


def test_records_say_what_was_measured(results):
    arrays = results.arrays
    for row, curve in zip(results.rows, arrays["curve"], strict=True):
        assert row["verdict"] in stopping.VERDICTS and row["precision"] == "float32"
        assert row["flops_difference"] == pytest.approx(row["flops"] / row["flops_pixel"] - 1) and row["n"] == 200
        assert row["reference"] == 150 and row["samples"] == 256
        assert curve[arrays["progress"] == row["progress_best"]] == row["best"]
        assert row["progress_best_low"] <= row["progress_best"] <= row["progress_best_high"] <= 1.0
        assert ("memorisation" in row) == (row["seed"] is not None)
    assert arrays["samples pca 12, MLP"].shape == (len(arrays["progress"]), latent_vs_pixel.GRID_SAMPLES, 4, 3)


@pytest.mark.parametrize(
    ("latent", "pixel", "answer"),
    [
        (EARLY, NONE, "yes"),
        (EARLY, EARLY, "no"),
        (EARLY, UNKNOWN, UNKNOWN),
        (NONE, UNKNOWN, "no"),
        (UNKNOWN, EARLY, "no"),
        (UNKNOWN, NONE, UNKNOWN),
    ],
)
def test_answers(results, latent, pixel, answer):
    verdicts = {"identity": pixel, "pca": latent}
    rows = [row | {"verdict": verdicts[row["autoencoder"]]} for row in results.rows]
    found = answers(summary(dataclasses.replace(results, rows=rows)))
    assert len(found) == 2 * 3  # readouts, metrics
    assert {row["answer"] for row in found} == {answer} and {row["model"] for row in found} == {"pca 12, MLP"}


def test_report(results):
    made = report(results)
    assert sorted(made.figures) == ["chains", "curves_mlp_rescaled", "curves_mlp_state"]
    progress, shown = results.arrays["progress"], summary(results)
    own = shown[(shown["readout"] == "state") & (shown["metric"] == "w2")]
    drawn = [line.get_ydata() for line in made.figures["curves_mlp_state"].axes[0].get_lines()]
    drawn = [y for y in drawn if len(y) == len(progress)]
    for line, index in zip(drawn, own.index, strict=True):
        curve = results.arrays["curve"][index]
        np.testing.assert_allclose(line, np.where(curve > 0, curve, np.nan))
    assert all(row["model"] in made.text for row in results.rows) and "+0.00 %" in made.text
    assert made.text.count("mean over seeds 0, 1") == 2


def test_a_model_that_diverged_has_no_stop_and_a_step(results):
    gone = dict.fromkeys(
        ("end", "best", "gain", "gain_low", "gain_high", "progress_best", "progress_best_low", "progress_best_high")
    )
    rows = [
        row
        | (
            gone | {"diverged_at_step": 7 if "memorisation" in row else None, "verdict": UNKNOWN}
            if row["autoencoder"] == "pca"
            else {}
        )
        for row in results.rows
    ]
    arrays = results.arrays | {"curve": results.arrays["curve"].copy()}
    arrays["curve"][[row["autoencoder"] == "pca" for row in rows]] = np.inf
    made = report(dataclasses.replace(results, rows=rows, arrays=arrays))
    assert made.text.count("at step 7") == 2 and "? % [?, ?]" in made.text and len(made.figures) == 3
