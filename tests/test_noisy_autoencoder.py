"""The noisy autoencoder against the exact Gaussian law, images_needed, and the experiment that asks trained models."""

import dataclasses

import jax
import numpy as np
import pytest

from experiments import noisy_autoencoder
from experiments.launch.diffusion import ImageData
from experiments.launch.results import read_results, write_results
from experiments.noisy_autoencoder.report import report
from ldmjax import data, features, gaussians, metrics, oracle, predictors, records, samplers, schedules, stopping
from ldmjax.job import NO_JOB

EARLY, NONE, UNKNOWN = stopping.VERDICTS
LOGSNRS = np.array([-np.inf, -2.0, 0.0, 1.0, 3.0, 6.0, np.inf])


def quiet(line):
    pass


@pytest.fixture(scope="module")
def gaussian():
    """Points, their PCA on latents of deviation 1, and a reference: x [n, D], z [n, d], decode, reference, scale, basis."""
    rng = np.random.default_rng(0)
    dim, d, n, m = 8, 5, 60, 3000
    factor = np.linalg.qr(rng.standard_normal((dim, dim)))[0] * (np.arange(1, dim + 1) ** -0.8)
    x = rng.standard_normal((n, dim)) @ factor.T + 0.3
    mean = x.mean(axis=0)
    basis = np.linalg.svd(x - mean, full_matrices=False)[2][:d].T
    z = (x - mean) @ basis
    scale = z.std()
    reference = metrics.FeatureReference(rng.standard_normal((m, dim)) @ factor.T + 0.3, metrics=["w2"])
    return {
        "latents": (z / scale).astype(np.float32),
        "decode": lambda u: (u * scale) @ basis.T + mean,
        "measures": {"data": metrics.Measure(lambda x: x, reference)},
        "mean": mean - 0.3,
        "decoded": lambda signal, noise: basis @ (signal * z.T @ z / n + noise * scale**2 * np.eye(d)) @ basis.T,
        "truth": factor @ factor.T,
    }


def run(gaussian, **options):
    options = {"logsnrs": LOGSNRS, "samples": 4096, "report": quiet} | options
    return stopping.noisy_autoencoder(gaussian["latents"], gaussian["decode"], gaussian["measures"], **options)


@pytest.mark.parametrize("readout", stopping.NOISY_READOUTS)
def test_curve_is_the_exact_law_of_noisy_points(gaussian, readout):
    nu = 1 / (1 + np.exp(LOGSNRS))
    if readout == "state":  # (1 - s) z + s noise, with the logsnr 2 log((1 - s) / s)
        s = 1 / (1 + np.exp(LOGSNRS / 2))
        signal, noise = (1 - s) ** 2, s**2
    else:
        signal, noise = 1 - nu, nu
    shift, truth = gaussian["mean"], gaussian["truth"]
    exact = [
        gaussians.w2_squared(shift, gaussian["decoded"](a, b), 0 * shift, truth)
        for a, b in zip(signal, noise, strict=True)
    ]
    pseudo = run(gaussian, readout=readout)["data", "w2"]
    error = pseudo.std(axis=0, ddof=1) / np.sqrt(len(pseudo))
    assert pseudo.shape == (64, 7) and np.all(error < 0.15 * np.array(exact))
    np.testing.assert_array_less(np.abs(pseudo.mean(axis=0) - exact), 4 * error)
    # The readouts can be told apart at these errors.
    other = run(gaussian, readout="state" if readout == "rescaled" else "rescaled")["data", "w2"].mean(axis=0)
    assert np.abs(other - exact)[2] > 10 * error[2]


def test_only_the_noise_and_the_reference_are_errors(gaussian):
    """Over seeds of the noise at a fixed reference, estimates spread less than is said; without noise, not at all."""
    curves = np.stack([run(gaussian, seed=s, samples=1024)["data", "w2"].mean(axis=0) for s in range(30)])
    np.testing.assert_allclose(curves[:, -1], curves[0, -1], rtol=1e-6)
    pseudo = run(gaussian, samples=1024)["data", "w2"]
    error = pseudo.std(axis=0, ddof=1) / 8
    spread = curves.std(axis=0, ddof=1)
    assert np.all(spread < 1.2 * error) and spread[2] > 0.2 * error[2]


def test_noise_is_common_to_all_levels(gaussian):
    first, again, other = (run(gaussian, seed=s)["data", "w2"] for s in (3, 3, 4))
    np.testing.assert_array_equal(first, again)
    assert np.all(first[:, :-1] != other[:, :-1])
    fine = run(gaussian, logsnrs=np.array([1.0, 1.5, 2.0]))["data", "w2"]
    assert np.corrcoef(fine.T)[[0, 1], [1, 2]].min() > 0.97


def recorded(latents, **options):
    """What is decoded, [S, 2, N, ...], and the values of a feature space of the decoded numbers themselves."""
    seen = []

    def decode(u):
        seen.append(u)
        return u

    flat = np.random.default_rng(1).standard_normal((128, int(np.prod(latents.shape[1:]))))
    measures = {"own": metrics.Measure(lambda x: x.reshape(len(x), -1), metrics.FeatureReference(flat))}
    options = {"logsnrs": LOGSNRS, "report": quiet} | options
    found = stopping.noisy_autoencoder(latents, decode, measures, **options)
    return np.stack(seen).reshape(len(seen), 2, -1, *latents.shape[1:]), found


def test_decoded_states_are_signal_plus_the_same_noise():
    latents = np.random.default_rng(2).standard_normal((70, 2, 3, 1)).astype(np.float32)
    seen, found = recorded(latents, samples=450)
    assert seen.shape == (7, 2, 4 * 70, 2, 3, 1) and seen.dtype == np.float32
    assert set(found) == {("own", metric) for metric in metrics.FEATURE_METRICS}
    noise, clean = seen[0], seen[-1]  # logsnr -inf and +inf
    np.testing.assert_array_equal(clean[0], clean[1])
    assert abs(np.corrcoef(noise[0].ravel(), noise[1].ravel())[0, 1]) < 0.1
    assert noise.std() == pytest.approx(1, abs=0.05) and abs(noise.mean()) < 0.05
    for k, logsnr in enumerate(LOGSNRS):
        nu = schedules.noise_var_from_logsnr(logsnr)
        np.testing.assert_allclose(seen[k], np.sqrt(1 - nu) * clean + np.sqrt(nu) * noise, atol=1e-6)
    stated, _ = recorded(latents, samples=450, readout="state")
    for k, logsnr in enumerate(LOGSNRS):
        s = schedules.RectifiedFlow().inverse_logsnr(logsnr)
        np.testing.assert_allclose(stated[k], (1 - s) * clean + s * noise, atol=1e-6)


def test_every_latent_is_used_equally_often():
    latents = np.stack([np.arange(90), np.arange(90) ** 2], axis=1).astype(np.float32)
    for samples, times in ((2 * 90 * 3 + 1, 4), (2 * 90 * 3, 3), (180, 1), (130, 1)):
        clean = recorded(latents, samples=samples)[0][-1, 0, :, 0]
        np.testing.assert_array_equal(np.unique(clean, return_counts=True)[1], np.full(90, times))
        assert np.all(clean.reshape(90, times) == clean[::times, None])  # copies are next to each other
    orders = [recorded(latents, samples=180, seed=s)[0][-1, 0, :, 0] for s in range(2)]
    assert np.any(orders[0] != orders[1]) and np.any(np.diff(orders[0]) < 0)


def test_progress_and_refusals(gaussian):
    lines = []
    run(gaussian, logsnrs=np.array([0.0, 2.0]), samples=256, report=lines.append)
    assert "level 2/2" in lines[-1] and "0 s left" in lines[-1]
    for bad in ([1.0, 1.0], [2.0, 1.0], [0.0, np.nan], [np.nan], [[0.0, 1.0]]):
        with pytest.raises(ValueError, match="logsnrs must rise, got"):
            run(gaussian, logsnrs=np.array(bad))
    with pytest.raises(ValueError, match="readout must be one of rescaled, state, got 'denoised'"):
        run(gaussian, readout="denoised")
    few = gaussian | {"latents": gaussian["latents"][:50]}
    with pytest.raises(ValueError, match="at least 64 rows in each half"):
        run(few, samples=100)


def test_an_error_of_the_features_is_not_swallowed():
    latents = np.random.default_rng(2).standard_normal((70, 2)).astype(np.float32)
    reference = metrics.FeatureReference(np.random.default_rng(1).standard_normal((128, 2)))

    def broken(x):
        raise ValueError("no such layer")

    with pytest.raises(ValueError, match="no such layer"):
        stopping.noisy_autoencoder(
            latents, lambda u: u, {"x": metrics.Measure(broken, reference)}, logsnrs=LOGSNRS, report=quiet
        )


def test_a_decoder_that_diverges_has_no_verdict(gaussian):
    largest = np.abs(gaussian["latents"]).max()

    def decode(u):  # pure noise leaves the range of the latents
        return np.where(np.abs(u).max(axis=1, keepdims=True) > 1.01 * largest, np.inf, gaussian["decode"](u))

    found = stopping.noisy_autoencoder(
        gaussian["latents"] / 2, decode, gaussian["measures"], logsnrs=LOGSNRS, samples=8192, report=quiet
    )
    pseudo = found["data", "w2"]
    assert np.all(np.isinf(pseudo[:, 0])) and np.all(np.isfinite(pseudo[:, -1]))
    result = stopping.read_stopping_curve(pseudo)
    assert result.verdict == UNKNOWN and stopping.images_needed(result, images=100) is None


def reading(gain, low, high, end=100.0, verdict=UNKNOWN):
    return stopping.StoppingResult(
        curve=np.ones(2),
        standard_error=np.ones(2),
        end=end,
        best=end - gain,
        best_stop=0,
        best_stop_low=0,
        best_stop_high=1,
        gain=gain,
        gain_low=low,
        gain_high=high,
        verdict=verdict,
    )


def test_images_needed_by_hand():
    """A gain of 2 with half-widths of 3, give or take 3 / 2.81."""
    step = 3.0 / 2.8070337683
    fewest, most = stopping.images_needed(reading(2.0, -1.0, 5.0), images=1000)
    assert fewest == pytest.approx(1000 * max(3.0 / (2.0 + step), 1.0) ** 2, abs=1)
    # The hardest of the plausible gains is the smallest, 0.93: 3 to 0.93, as no upper bound near 1 can tell.
    assert most == pytest.approx(1000 * (1.5 * 3.0 / (2.0 - step)) ** 2, abs=1)
    # Around half of 1 % both bounds are as far: the hardest gain lies between.
    fewest, most = stopping.images_needed(reading(0.5, -0.5, 1.5), images=1000)
    assert fewest < most == pytest.approx(1000 * (1.5 * 2.0) ** 2, rel=1e-6)


@pytest.mark.parametrize(
    "result",
    [
        reading(2.0, -1.0, 5.0, verdict=EARLY),
        reading(0.1, -1.0, 0.5, verdict=NONE),
        reading(float("nan"), float("nan"), float("nan")),
        reading(0.0, -1.0, 1.0, end=-0.5),  # a bias-corrected distance below 0 has no 1 %
    ],
)
def test_no_images_are_needed_where_there_is_a_verdict_or_no_end(result):
    assert stopping.images_needed(result, images=1000) is None


def test_images_needed_grow_with_width_and_in_proportion_to_images():
    narrow, wide = reading(2.0, -1.0, 5.0), reading(2.0, -2.0, 6.0)
    few, many = (np.array(stopping.images_needed(r, images=1000)) for r in (narrow, wide))
    assert np.all(few < many)
    np.testing.assert_allclose(stopping.images_needed(wide, images=2000), 2 * many, atol=2)
    strict, loose = (stopping.images_needed(reading(0.3, -1, 1.2), images=500, negligible=e) for e in (0.01, 0.02))
    assert loose[1] < strict[1]


def test_a_curve_with_a_flat_end_says_what_it_needs():
    """Stops that equal the end, as a quantiser's: no 0 / 0, and widths of the others."""
    for seed in range(20):
        rng = np.random.default_rng(seed)
        pseudo = np.repeat(0.3 * rng.standard_normal((64, 1)) + 1.0, 6, axis=1)
        pseudo[:, :3] += [0.5, 0.3, 0.05] + 0.3 * rng.standard_normal((64, 3))
        result = stopping.read_stopping_curve(pseudo)
        needed = stopping.images_needed(result, images=1000)
        assert (needed is None) == (result.verdict != UNKNOWN) and (needed is None or 1000 < needed[0] <= needed[1])
        alone = stopping.read_stopping_curve(pseudo[:, [0, 1, 2, 5]])
        assert result.gain_low == pytest.approx(alone.gain_low, rel=0.2, abs=0.01)


@pytest.mark.parametrize("gain", [0.0, 0.5, 3.0])
def test_images_needed_would_mostly_tell(gain):
    """Fresh noise with as many images as are said: a verdict in few cases at the lower end, in most at the upper."""
    x = np.linspace(-1.0, 1.0, 12)
    curve = 100.0 - gain * np.exp(-((x / 0.4) ** 2))

    def read(rng, images):
        level, slope, own = (rng.standard_normal((64, k)) for k in (1, 1, 12))
        noise = np.sqrt(1000 / images) * (20 * level + 8 * slope * (1 - x) + own)
        return stopping.read_stopping_curve(curve + noise, replicates=200)

    told = []
    for seed in range(60):
        rng = np.random.default_rng([seed, 6])
        needed = stopping.images_needed(read(rng, 1000), images=1000)
        if needed is not None:
            told.append([read(rng, images).verdict != UNKNOWN for images in needed])
    shares = np.mean(told, axis=0)
    assert len(told) > 20 and shares[0] < 0.75 < shares[1] and shares[0] < shares[1]


def shrunk(share, mean, axes, state, signal):
    return signal * mean + (state - signal * mean) @ axes * np.sqrt(share) @ axes.T


@pytest.mark.parametrize("sampler", oracle.KEPT_BY)
def test_a_chain_takes_the_variance_that_its_steps_lose(sampler):
    """Along the latents' principal axes, by what the samplers themselves make of a Gaussian with the exact score."""
    rng = np.random.default_rng(7)
    latents = (
        rng.standard_normal((300, 3)) @ np.diag([1.5, 0.7, 0.3]) @ np.linalg.qr(rng.standard_normal((3, 3)))[0]
    ).astype(np.float32) + 0.2
    schedule, steps = schedules.RectifiedFlow(), 10
    chain = stopping.Chain(schedule, steps, sampler)
    logsnrs = chain.logsnrs[4:]
    plain, _ = recorded(latents, samples=600, logsnrs=logsnrs)
    found, _ = recorded(latents, samples=600, logsnrs=logsnrs, chain=chain)
    variances, axes = np.linalg.eigh(np.cov(latents.T, bias=True))
    denoiser = oracle.gaussian_denoiser(variances, schedule)
    times = np.linspace(1.0, 0.0, steps + 1)
    measured = samplers.sample(
        denoiser,
        schedule,
        jax.random.normal(jax.random.key(0), (100_000, 3)),
        jax.random.key(1),
        times=times,
        stops=np.arange(5, steps + 1),
        sampler=sampler,
        statistic=lambda z, t: z.var(axis=0),
    )
    alpha, sigma = 1.0 - times[5:], times[5:]
    share = np.asarray(measured) / (alpha[:, None] ** 2 * variances + sigma[:, None] ** 2)
    for k, logsnr in enumerate(logsnrs):
        signal = np.sqrt(1.0 - schedules.noise_var_from_logsnr(logsnr))
        expected = shrunk(share[k], latents.mean(axis=0), axes, plain[k], signal)
        np.testing.assert_allclose(found[k], expected, atol=0.03)
    assert np.max(np.abs(share[-1] - 1.0)) > 0.03
    with pytest.raises(ValueError, match="logsnrs must be levels of the chain's 10 steps, got 0.5"):
        recorded(latents, samples=600, logsnrs=np.array([0.5, np.inf]), chain=chain)


CONFIG = noisy_autoencoder.Config(
    autoencoder="pca",
    latent_dims=(2, 4, 8),
    seeds=(0, 1),
    n=300,
    reference=200,
    training_steps=200,
    sampling_steps=6,
    samples=512,
    stops=3,
    sampling_batch=128,
    hidden=32,
    learning_rate=0.01,
)


def test_compared_stops_are_the_clean_ones_of_the_chain():
    assert np.all(CONFIG.logsnrs >= -3) and CONFIG.logsnrs[-1] == np.inf and np.all(np.diff(CONFIG.logsnrs) > 0)
    assert not CONFIG.compared[0] and CONFIG.compared[-1] and CONFIG.compared.sum() == len(CONFIG.logsnrs)
    assert CONFIG.mlp.steps == 200 and CONFIG.mlp.model == "mlp"


def test_settings_that_the_data_decide():
    digits = data.digits()
    config = noisy_autoencoder.Config().resolved(digits)
    assert config.n == 898 and config.latent_dims == (2, 4, 6, 8, 12, 16, 32, 64)
    assert CONFIG.resolved(digits) == CONFIG


@pytest.fixture(scope="module")
def computed():
    """600 Gaussian images of 4 x 3 pixels, and the results."""
    images = np.random.default_rng(9).standard_normal((600, 12)) * np.geomspace(1.0, 0.1, 12)
    dataset = data.from_samples("images", images, (4, 3))
    spaces = (features.load("pixels", dataset),)
    return noisy_autoencoder.compute(CONFIG, ImageData(dataset=dataset, spaces=spaces), NO_JOB)


@pytest.fixture(scope="module")
def results(computed, tmp_path_factory):
    """As read again from the files, with costs that are known."""
    where = tmp_path_factory.mktemp("workdir")
    write_results(where, computed)
    records.write_metadata(where, data="images", costs={"training": 30.0, "sampling": 10.0, "prediction": 2.0})
    return read_results(where, CONFIG)


def test_records_and_curves_agree(results, computed):
    models, logsnr = results.frame(record="model"), results.arrays["logsnr"]
    assert len(models) == 2 * 3 * 3 and set(models["precision"]) == {"float32"} and set(models["reference"]) == {200}
    assert computed.metadata["costs"].keys() == {"training", "sampling", "prediction"}
    np.testing.assert_array_equal(logsnr, CONFIG.logsnrs)
    for name in ("model", "noisy"):
        curves = results.arrays[name]
        assert curves.shape == results.arrays[f"{name}_standard_error"].shape == (18, len(logsnr))
        np.testing.assert_allclose(models[f"{name}_end"], curves[:, -1])
        np.testing.assert_allclose(models[f"{name}_best"], curves.min(axis=1))
        best = logsnr[curves.argmin(axis=1)]
        np.testing.assert_array_equal(models[f"{name}_logsnr"].astype(float), np.where(np.isinf(best), np.nan, best))
    # Counted by the squared Fréchet distance, for every metric alike.
    w2 = models[models["metric"] == "w2"].set_index(["seed", "latent_dim"])
    for _, row in models.iterrows():
        assert row["trained"] == w2["trained"][row["seed"], row["latent_dim"]]
    counted = (w2["improvement"] < predictors.STILL_IMPROVING) & (w2["excess"] <= predictors.FAR_FROM_AUTOENCODER)
    assert not np.any(w2["trained"] & ~counted)
    comparisons = [row for row in results.rows if row["record"] == "comparison"]
    assert {row["predictor"] for row in comparisons} == set(predictors.PREDICTORS)
    chosen = next(r for r in comparisons if r["scope"] == "all" and r["metric"] == "w2")
    for seed, d, at in chosen["best"]:
        own = models[(models["seed"] == seed) & (models["metric"] == "w2")]
        best = own.loc[own["model_best"].idxmin()]
        assert d == best["latent_dim"] and (at is None) == np.isnan(best["model_logsnr"].astype(float))


def test_report_shows_means_over_seeds(results):
    made = report(results)
    lines = made.text.splitlines()
    models = results.frame(record="model")
    for d in CONFIG.latent_dims:
        own = models[(models["latent_dim"] == d) & (models["metric"] == "mmd")]
        row = next(line.split() for line in lines if line.split()[:3] == ["pixels", "mmd", str(d)])
        model, noisy = (results.arrays[name][own.index].mean(axis=0) for name in ("model", "noisy"))
        stop, foreseen = (
            "end" if c.argmin() == len(c) - 1 else f"{CONFIG.logsnrs[c.argmin()]:.1f}" for c in (model, noisy)
        )
        assert row[3] == f"{own['trained'].sum()}/2"
        assert row[6:] == [f"{model[-1]:.4g}", f"{model.min():.4g}", stop, f"{noisy.min():.4g}", foreseen]
    assert "20.0 times cheaper" in lines[-1] and "30.0 s to train" in lines[-1]


def test_figures_hold_every_dimension(results):
    figures = report(results).figures
    assert sorted(figures) == ["curves", "predictions"]
    panels = figures["curves"].axes
    assert len(panels) == 3 * 3
    models = results.frame(record="model")
    own = models[(models["metric"] == models["metric"][0]) & (models["latent_dim"] == 2)]
    mean = results.arrays["noisy"][own.index].mean(axis=0)
    line = panels[0].lines[1]
    np.testing.assert_allclose(line.get_ydata(), np.where(mean > 0, mean, np.nan))
    assert np.all(np.isfinite(line.get_xdata())) and np.all(np.diff(line.get_xdata()) > 0)
    for panel in figures["predictions"].axes:
        assert {text.get_text() for text in panel.texts} <= {"2", "4", "8"}
    assert len(figures["predictions"].axes) == 3 * 4 and figures["predictions"].axes[0].texts


def test_the_end_of_a_vp_chain_is_its_last_stop():
    vp = dataclasses.replace(CONFIG, process="vp")
    assert vp.logsnrs[-1] == pytest.approx(9.0)
