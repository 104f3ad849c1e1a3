"""stopping_by_metric: agreement against hand counts, measures that must agree, the curves that are read, what is left out."""

import dataclasses

import numpy as np
import pytest
from scipy import stats

from experiments import stopping_by_metric
from experiments.launch.diffusion import ImageData
from experiments.launch.results import read_results, write_results
from experiments.stopping_by_metric import Config, compare, report
from ldmjax import data, features, latent_diffusion, stopping
from ldmjax.job import NO_JOB

EARLY, NONE, UNKNOWN = stopping.VERDICTS
LOGSNRS = np.array([0.0, 1.0, 3.0, 7.0])


def reading(low, best, high, verdict):
    values = dict.fromkeys(["end", "best", "gain", "gain_low", "gain_high"], 1.0)
    return stopping.StoppingResult(
        curve=np.ones(4),
        standard_error=np.ones(4),
        best_stop=best,
        best_stop_low=low,
        best_stop_high=high,
        verdict=verdict,
        **values,
    )


# Of three runs, in measures A, B and C.
READINGS = [
    [reading(0, 1, 1, EARLY), reading(2, 3, 3, NONE), reading(1, 1, 2, EARLY)],
    [reading(1, 2, 3, UNKNOWN), reading(3, 3, 3, NONE), reading(0, 0, 0, EARLY)],
    [reading(0, 0, 1, EARLY), reading(1, 1, 1, EARLY), reading(1, 2, 2, UNKNOWN)],
]


def test_agreement_is_what_one_counts_by_hand():
    found = compare(READINGS, LOGSNRS)
    assert tuple(found) == stopping_by_metric.PAIRED
    np.testing.assert_allclose(found["overlap"], np.array([[3, 2, 2], [2, 3, 2], [2, 2, 3]]) / 3)
    np.testing.assert_allclose(found["same"], np.array([[3, 1, 1], [1, 3, 0], [1, 0, 3]]) / 3)
    np.testing.assert_allclose(found["opposed"], np.array([[0, 1, 0], [1, 0, 2], [0, 2, 0]]) / 3)
    of_pair = np.array([1.0 - 7.0, 3.0 - 7.0, 0.0 - 1.0])  # A - B
    difference, half_width = found["difference"], found["half_width"]
    np.testing.assert_allclose(difference[0, 1], of_pair.mean())
    np.testing.assert_allclose(difference, -difference.T)
    low, high = stats.t.interval(0.9, 2, loc=of_pair.mean(), scale=stats.sem(of_pair))
    np.testing.assert_allclose([difference[0, 1] - half_width[0, 1], (high - low) / 2], [low, half_width[0, 1]])
    alone = compare(READINGS[:1], LOGSNRS)
    assert np.isnan(alone["half_width"]).all() and alone["overlap"][0, 1] == 0


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """Digits in pixels, and in a map that turns and stretches them: (configuration, data, results)."""
    path, digits = tmp_path_factory.mktemp("map") / "turned.npz", data.digits()
    np.savez(path, weight=3.0 * np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0])
    config = Config(
        autoencoders=("pca",),
        latent_dims=(2, 4),
        seeds=(0, 3),
        n=400,
        reference=200,
        training_steps=60,
        hidden=16,
        features=("pixels", str(path)),
        sampling_steps=20,
        samples=256,
        stops=4,
    )
    images = ImageData(dataset=digits, spaces=tuple(features.load(word, digits) for word in config.features))
    return config, images, stopping_by_metric.compute(config, images, NO_JOB)


@pytest.fixture(scope="module")
def results(computed, tmp_path_factory):
    """As read again from the files."""
    where = tmp_path_factory.mktemp("workdir")
    write_results(where, computed[2])
    return read_results(where, computed[0])


def test_runs_without_a_stop_are_not_compared(computed):
    config, images, _ = computed
    bad = dataclasses.replace(READINGS[0][1], best_stop=None, best_stop_low=None, best_stop_high=None)
    keys = [("pixels", "w2"), ("pixels", "mmd"), ("turned", "w2")]
    rows = [dict(zip(keys, own, strict=True)) for own in [*READINGS, [READINGS[0][0], bad, READINGS[0][2]]]]
    found = stopping_by_metric.agreement_rows(config, images, rows)
    assert found == stopping_by_metric.agreement_rows(config, images, rows[:3]) and found[0]["runs"] == 3
    assert [(row["first"], row["second"]) for row in found[:1]] == [("pixels Fréchet", "pixels MMD")]
    assert stopping_by_metric.agreement_rows(config, images, rows[3:]) == []


def test_stops_of_the_second_half_are_read(computed, results):
    config, progress = computed[0], computed[0].sampling.progress
    np.testing.assert_array_equal(results.arrays["progress"], progress[-4:])
    assert progress[-4] == 0.5 and progress[-5] < 0.5
    t = 1.0 - progress[-4:]
    np.testing.assert_allclose(results.arrays["logsnr"][:-1], 2 * np.log((1 - t[:-1]) / t[:-1]), atol=1e-5)
    np.testing.assert_allclose(
        results.arrays["logsnr"][-1], 2 * np.log(19.0), rtol=1e-5
    )  # the last step starts at 1/20
    assert dataclasses.replace(config, process="vp").logsnrs[-1] == pytest.approx(9.0, abs=1e-4)


def test_measures_that_are_the_same_up_to_rotation_and_scale_agree(results):
    """Fréchet distance and MMD do not change but in units; sliced W2 sees other random directions."""
    frame = results.frame(kind="reading")
    runs = frame[["seed", "latent_dim"]].drop_duplicates().to_numpy().tolist()
    assert runs == [[0, 2], [0, 4], [3, 2], [3, 4]] and len(frame) == 4 * 6
    curves = dict(zip(results.arrays["measure"], np.moveaxis(results.arrays["curve"], 1, 0), strict=True))
    floors = frame.pivot_table(index=["seed", "latent_dim"], columns=["features", "metric"], values="noise_floor")
    pairs = {(row["first"], row["second"]): row for row in results.of_kind("agreement")}
    assert len(pairs) == 15
    for metric, word, power in [("w2", "Fréchet", 9.0), ("mmd", "MMD", 1.0)]:
        plain, turned = curves[f"pixels {word}"], curves[f"turned {word}"]
        np.testing.assert_allclose(turned, power * plain, rtol=2e-3, atol=1e-5)
        np.testing.assert_allclose(floors["turned", metric], power * floors["pixels", metric], rtol=2e-2, atol=1e-4)
        pair = pairs[f"pixels {word}", f"turned {word}"]
        assert pair["overlap"] == pair["same"] == 1 and pair["runs"] == 4 and abs(pair["difference"]) < 1e-9


def test_distances_beside_the_curves(computed, results):
    """PCA of rank d loses variance: its reconstructions are further from the reference than the images themselves."""
    _, images, _ = computed
    split = latent_diffusion.split_images(images.dataset, n=400, reference=200, seed=3)
    direct = latent_diffusion.mean_distances(
        split.train, latent_diffusion.make_measures(images.spaces, split.reference)
    )
    own = results.frame(kind="reading", seed=3)
    for _, row in own.iterrows():
        assert row["noise_floor"] == direct[row["features"], row["metric"]]
    w2 = own[(own["features"] == "pixels") & (own["metric"] == "w2")].set_index("latent_dim")
    assert w2["reconstruction"][4] > w2["noise_floor"][4] + 5.0 and w2["reconstruction"][4] < w2["reconstruction"][2]


def test_records_say_what_was_read(results):
    for row in results.of_kind("reading"):
        assert row["verdict"] in stopping.VERDICTS and row["reference"] == 200 and row["features_sha256"]
        assert 0.5 <= row["progress_best_low"] <= row["progress_best"] <= row["progress_best_high"] <= 1
        assert (row["logsnr_best"] is None) == (row["progress_best"] == 1) and row["precision"] == "float32"
    assert results.arrays["curve"].shape == results.arrays["standard_error"].shape == (4, 6, 4)
    np.testing.assert_array_equal(
        results.arrays["curve"][:, :, -1].ravel(), [row["end"] for row in results.of_kind("reading")]
    )


def without_stop(rows, label):
    """The rows with no t* in one measure of a run."""
    seed, dim = label
    gone = dict.fromkeys(("progress_best", "progress_best_low", "progress_best_high", "gain"))
    hit = {"kind": "reading", "seed": seed, "latent_dim": dim, "features": "pixels", "metric": "mmd"}
    return [row | gone if hit.items() <= row.items() else row for row in rows]


def test_report(results):
    made = report(results)
    lines = [line.split("  ") for line in made.text.splitlines()]
    frame = results.frame(kind="reading", features="pixels", metric="w2")
    row = next([cell.strip() for cell in line if cell] for line in lines if line[0] == "pixels Fréchet")
    assert row[1:4] == [str(np.sum(frame["verdict"] == verdict)) for verdict in stopping.VERDICTS]
    assert row[6] == f"{(frame['end'] / frame['reconstruction']).median():.2f}" and "nan" not in made.text
    assert set(made.figures) == {"agreement", "stops"} and len(made.figures["stops"].axes) == 6
    by_text = [text.get_text() for text in made.figures["agreement"].axes[0].texts]
    assert len(by_text) == 2 * 30 and by_text.count("100 %") >= 4  # both directions of two pairs


def test_runs_without_a_stop_are_left_out_and_said(results):
    some = dataclasses.replace(results, rows=without_stop(results.rows, (3, 4)))
    text = report(some).text
    assert "3 runs;" in text and "Left out, a distance is not finite: pca 4, seed 3." in text
    rows = results.of_kind("reading")
    for label in [(0, 2), (0, 4), (3, 2), (3, 4)]:
        rows = without_stop(rows, label)
    none = report(dataclasses.replace(results, rows=rows))
    assert none.text.count("seed") == 4 and set(none.figures) == {"stops"}
