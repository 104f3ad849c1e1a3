"""The noisy autoencoder against the exact Gaussian law, images_needed, and what its predictions are worth on models."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from interrupted import run_in_sessions
from scipy.spatial.distance import cdist

from experiments import image_models, noisy_autoencoder, pieces
from experiments.noisy_autoencoder import predictors, report
from ldmjax import data, features, gaussians, metrics, oracle, records, samplers, schedules, stopping

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
    assert len(lines) == 2 and "level 1/2" in lines[0] and "0 s left" in lines[1] and "samples/s" in lines[1]
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
        curve=np.ones(2), standard_error=np.ones(2), end=end, best=end - gain, best_stop=0, best_stop_low=0,
        best_stop_high=1, gain=gain, gain_low=low, gain_high=high, verdict=verdict,
    )  # fmt: skip


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
        denoiser, schedule, jax.random.normal(jax.random.key(0), (100_000, 3)), jax.random.key(1), times=times,
        stops=np.arange(5, steps + 1), sampler=sampler, statistic=lambda z, t: z.var(axis=0),
    )  # fmt: skip
    alpha, sigma = 1.0 - times[5:], times[5:]
    share = np.asarray(measured) / (alpha[:, None] ** 2 * variances + sigma[:, None] ** 2)
    for k, logsnr in enumerate(logsnrs):
        signal = np.sqrt(1.0 - schedules.noise_var_from_logsnr(logsnr))
        expected = shrunk(share[k], latents.mean(axis=0), axes, plain[k], signal)
        np.testing.assert_allclose(found[k], expected, atol=0.03)
    assert np.max(np.abs(share[-1] - 1.0)) > 0.03
    with pytest.raises(ValueError, match="logsnrs must be levels of the chain's 10 steps, got 0.5"):
        recorded(latents, samples=600, logsnrs=np.array([0.5, np.inf]), chain=chain)


DIMS = (2, 4, 8)
MODEL = {2: [5.0, 4.0, 4.5], 4: [3.0, 2.5, 2.0], 8: [6.0, 3.0, 4.0]}
NOISY = {2: [5.0, 3.8, 4.0], 4: [3.0, 2.2, 2.4], 8: [5.0, 2.0, 3.0]}


def make_case(d, seed=0, *, model=None, noisy=None, noise=0.0, **changes):
    ripple = 1 + noise * np.random.default_rng([seed, d]).standard_normal((64, 1))
    fields = {
        "seed": seed, "latent_dim": d, "features": "pixels", "metric": "w2",
        "model": np.array(MODEL[d] if model is None else model) * ripple,
        "noisy": np.array(NOISY[d] if noisy is None else noisy) * np.ones((64, 1)),
        "earlier": np.full(64, 1.01 * MODEL[d][-1]), "reconstruction_error": 1.0 / d, "interpolation": float(d),
        "floor": 0.1, "memorisation": 0.9, "failed_at": None,
    }  # fmt: skip
    return predictors.Case(**fields | changes)


def compared(cases, trained=None, scope="trained"):
    trained = {(c.seed, c.latent_dim, c.features) for c in cases} if trained is None else trained
    return {c.predictor: c for c in predictors.compare(cases, trained) if c.scope == scope}


def test_regret_and_rank_correlation_by_hand():
    found = compared([make_case(d) for d in DIMS])
    expected = {  # choice, regret over the best, which is (4, 2) at 2.0, and tau
        "noisy autoencoder": ((8, 1), 3.0 / 2 - 1, 1 / 3),
        "reconstruction distance": ((4, 2), 0.0, 1.0),
        "reconstruction error": ((8, 2), 4.0 / 2 - 1, 1 / 3),
        "interpolated latents": ((2, 2), 4.5 / 2 - 1, -1 / 3),
    }
    assert tuple(found) == predictors.PREDICTORS == tuple(expected)
    for name, (chosen, regret, tau) in expected.items():
        c = found[name]
        assert c.chosen == {0: chosen} and c.best == {0: (4, 2)} and c.dims == {0: [2, 4, 8]}
        assert (c.regret, c.regret_low, c.regret_high) == pytest.approx((regret,) * 3)
        assert (c.tau, c.tau_low, c.tau_high) == pytest.approx((tau,) * 3)


def test_models_that_do_not_count_are_left_out():
    cases = [make_case(d) for d in DIMS] + [make_case(2, 1, failed_at=7, model=[np.inf] * 3)]
    trained = {(0, 2, "pixels"), (0, 8, "pixels")}
    some, everything = (compared(cases, trained, scope)["noisy autoencoder"] for scope in ("trained", "all"))
    assert some.dims == {0: [2, 8]} and some.best == {0: (8, 1)} and some.regret == 0 and np.isnan(some.tau)
    assert everything.dims == {0: [2, 4, 8]} and everything.regret == pytest.approx(0.5)
    assert compared(cases, set()) == {} and len(compared(cases, set(), "all")) == 4
    elsewhere = {(s, d, "classifier") for s, d, _ in trained}
    assert compared(cases, elsewhere) == {}


def test_intervals_are_over_seeds_and_blocks():
    second = {
        2: [5.0, 4.0, 4.5],
        4: [3.0, 2.5, 2.0],
        8: [6.0, 2.0, 4.0],
    }  # here the noisy choice (8, 1) ties with the best
    cases = [make_case(d) for d in DIMS] + [make_case(d, 1, model=second[d]) for d in DIMS]
    c = compared(cases)["noisy autoencoder"]
    assert c.regret == pytest.approx(0.25)
    # Means of two seeds drawn out of {0.5, 0}: 0, 0.25, 0.5 with 1/4, 1/2, 1/4.
    assert (c.regret_low, c.regret_high) == pytest.approx((0.0, 0.5))
    noisy = [make_case(d, noise=0.3) for d in DIMS]
    c = compared(noisy)["noisy autoencoder"]
    pick, best = noisy[2].model[:, 1], noisy[1].model[:, 2]
    ratio = pick.mean() / best.mean()
    error = ratio * np.std(pick / pick.mean() - best / best.mean(), ddof=1) / 8
    assert c.regret == pytest.approx(ratio - 1)
    assert c.regret_high - c.regret_low == pytest.approx(2 * 1.645 * error, rel=0.15)
    assert c.regret_low < c.regret < c.regret_high


def test_interval_of_the_rank_correlation_holds_the_predictors_own_noise():
    """Predicted 2.2 and 2.0 for d = 4 and 8 change places from one half of the blocks to the other."""
    cases = [make_case(d) for d in DIMS]
    swing = np.where(np.arange(64) % 2, 3.0, -3.0)[:, None]
    cases[2] = cases[2]._replace(noisy=cases[2].noisy + swing)
    c = compared(cases)["noisy autoencoder"]
    assert c.tau == pytest.approx(1 / 3) and (c.tau_low, c.tau_high) == pytest.approx((1 / 3, 1.0))


def test_groups_are_spaces_and_metrics():
    cases = [make_case(d, features=f, metric=m) for f in ("a", "b") for m in ("w2", "mmd") for d in DIMS]
    found = predictors.compare(cases, {(0, d, "a") for d in DIMS})
    assert [(c.features, c.metric, c.scope) for c in found[::4]] == [
        ("a", "w2", "trained"), ("a", "w2", "all"), ("a", "mmd", "trained"), ("a", "mmd", "all"),
        ("b", "w2", "all"), ("b", "mmd", "all"),
    ]  # fmt: skip


def test_regret_is_never_negative():
    cases = [make_case(2, model=[0.02, 0.01, 0.01]), make_case(4, model=[0.1, 0.0, -0.001], noisy=[9.0, 9.0, 9.0])]
    c = compared(cases)["noisy autoencoder"]
    assert np.isnan(c.regret) or c.regret >= 0


def test_which_models_count():
    good = make_case(4)
    assert good.improvement == pytest.approx(1 - 1 / 1.01) and good.excess == pytest.approx(2.0 / 2.4)
    assert noisy_autoencoder.is_trained(good)
    assert not noisy_autoencoder.is_trained(good._replace(earlier=np.full(64, 2.05)))
    assert noisy_autoencoder.is_trained(good._replace(earlier=np.full(64, 1.5)))  # worse than before: not improving
    assert not noisy_autoencoder.is_trained(good._replace(noisy=0.4 * good.noisy))
    assert not noisy_autoencoder.is_trained(good._replace(failed_at=0))


def test_a_far_model_does_not_count_when_the_reconstruction_is_at_the_floor():
    assert not noisy_autoencoder.is_trained(make_case(8, noisy=[5.0, 1.0, -0.001]))


def test_a_model_near_the_floor_has_not_diverged():
    assert not make_case(8, model=[0.5, 0.2, 0.01], noisy=[0.5, 0.1, 5e-5]).diverged


def test_a_diverged_model_is_one_that_failed_or_left_the_range():
    assert not make_case(8).diverged and make_case(8, failed_at=3).diverged
    assert make_case(8, model=[6.0, 3.0, 301.0]).diverged and make_case(8, model=[1.0, 1.0, np.inf]).diverged


def test_kendall_is_counted_over_pairs():
    rng = np.random.default_rng(6)
    a, b = rng.permutation(6).astype(float), rng.permutation(6).astype(float)
    b[0] = b[1]
    pairs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i in range(6) for j in range(i)]
    assert predictors._kendall(a, b) == pytest.approx(np.mean(pairs))
    np.testing.assert_allclose(
        predictors._kendall(np.stack([a, -a]), np.stack([b, b])), [np.mean(pairs), -np.mean(pairs)]
    )


def test_interpolated_latents_are_midpoints_of_nearest_neighbours(monkeypatch):
    z = np.random.default_rng(7).standard_normal((50, 2, 3)).astype(np.float32)
    distances = cdist(z.reshape(50, 6), z.reshape(50, 6)) + np.diag(np.full(50, np.inf))
    expected = 0.5 * (z + z[distances.argmin(axis=1)])
    np.testing.assert_allclose(predictors.interpolated_latents(z), expected, rtol=1e-6)
    monkeypatch.setattr(predictors, "NEIGHBOURS", 20)
    np.testing.assert_allclose(predictors.interpolated_latents(z), expected[:20], rtol=1e-6)


CONFIG = noisy_autoencoder.Config(
    autoencoder="pca", latent_dims=DIMS, seeds=(0, 1), n=300, reference=200, training_steps=7,
    sampling=image_models.SamplingConfig(steps=6, samples=256, stops=3, batch=128),
)  # fmt: skip


def test_compared_stops_are_the_clean_ones_of_the_chain():
    assert np.all(CONFIG.logsnrs >= -3) and CONFIG.logsnrs[-1] == np.inf and np.all(np.diff(CONFIG.logsnrs) > 0)
    assert not CONFIG.kept[0] and CONFIG.kept[-1] and CONFIG.kept.sum() == len(CONFIG.logsnrs)
    assert CONFIG.network.steps == 7 and CONFIG.network.model == "mlp"


@pytest.mark.slow
def test_interrupted_job_ends_with_the_same_records(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "SECONDS_BETWEEN_LINES", 0.0)
    images = np.random.default_rng(9).standard_normal((600, 12)) * np.geomspace(1.0, 0.1, 12)
    dataset = data.from_samples("images", images, (4, 3))
    spaces = [features.load("pixels", dataset)]
    config = dataclasses.replace(CONFIG, autoencoder="conv", autoencoder_steps=3, latent_dims=(2, 4), seeds=(1,))
    alone = noisy_autoencoder.run(dataset, spaces, config, quiet)
    again, lines = run_in_sessions(
        lambda report, store: noisy_autoencoder.run(dataset, spaces, config, report, store),
        tmp_path, at=["step 7/7", "training: 1/2", "predicted: 1/2"],
    )  # fmt: skip
    assert len(lines) == 1 and "predicted: 2/2" in lines[0]  # nothing else is left to do
    for where, found in (("alone", alone), ("again", again)):
        (tmp_path / where).mkdir()
        records.write_records(tmp_path / where, report.make_records(found, dataset, config))
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()
    curves = report.make_curves(alone, config)
    for name, values in report.make_curves(again, config).items():
        np.testing.assert_array_equal(values, curves[name])


@pytest.fixture(scope="module")
def outcome():
    stops = len(CONFIG.logsnrs)

    def curve(values):
        return np.interp(np.arange(stops), np.linspace(0, stops - 1, 3), values)

    cases = [
        make_case(d, s, model=curve(MODEL[d]), noisy=curve(NOISY[d]), noise=0.02, metric=metric)
        for metric in ("w2", "mmd")
        for s in (0, 1)
        for d in DIMS
    ]
    cases[0] = cases[0]._replace(earlier=np.full(64, 9.0))
    trained = {
        (c.seed, c.latent_dim, c.features) for c in cases if c.metric == "w2" and noisy_autoencoder.is_trained(c)
    }
    return noisy_autoencoder.Outcome(
        cases=cases,
        trained=trained,
        comparisons=predictors.compare(cases, trained),
        claims=predictors.count_claims(cases, trained),
        costs=noisy_autoencoder.Costs(training=30.0, sampling=10.0, prediction=2.0),
    )


def test_claims_are_counted_against_the_models(outcome):
    """Curves with little noise: [5, 4, 4.5] is "stop early", [3, 2.5, 2] is not; the noisy autoencoder says so of all."""
    w2, mmd = sorted(outcome.claims, key=lambda c: c.metric != "w2")
    assert (w2.features, w2.metric, mmd.metric) == ("pixels", "w2", "mmd")
    own = [c for c in outcome.cases if c.metric == "w2" and (c.seed, c.latent_dim, "pixels") in outcome.trained]
    verdicts = [[stopping.read_stopping_curve(getattr(c, name)).verdict for c in own] for name in ("noisy", "model")]
    assert w2.models == 5 and w2.early == 5 == verdicts[0].count(EARLY)
    assert w2.confirmed == verdicts[1].count(EARLY) == 3 and w2.contradicted == verdicts[1].count(NONE) == 2
    assert (w2.never, w2.never_confirmed, w2.never_contradicted) == (0, 0, 0)
    curves = [c.model.mean(axis=0) for c in own]
    stops = [int(c.noisy.mean(axis=0).argmin()) for c in own]
    assert w2.at_stop == pytest.approx(np.mean([m[k] / m.min() - 1 for m, k in zip(curves, stops, strict=True)]))
    assert w2.at_end == pytest.approx(np.mean([m[-1] / m.min() - 1 for m in curves]))
    rows = [line.split() for line in report.table(outcome, CONFIG).splitlines()]
    assert ["pixels", "w2", "5", "5", "3", "2", "0", "0", "0"] in [row[:9] for row in rows]


def test_table_says_what_was_found(outcome):
    assert len(outcome.trained) == 5 and (0, 2, "pixels") not in outcome.trained
    lines = report.table(outcome, CONFIG).splitlines()
    row = next(line.split() for line in lines if line.startswith("pixels") and " w2 " in line)
    assert row[:4] == ["pixels", "w2", "2", "1/2"]
    row = next(line.split() for line in lines if line.startswith("pixels") and " mmd " in line and " 4 " in line)
    assert row[:4] == ["pixels", "mmd", "4", "2/2"] and row[8] == "end"
    noisy = np.mean([c.noisy.mean(axis=0) for c in outcome.cases if c.latent_dim == 4], axis=0)
    assert row[9:] == [f"{noisy.min():.4g}", f"{CONFIG.logsnrs[noisy.argmin()]:.1f}"]
    assert "20.0 times cheaper" in lines[-1] and "30.0 s to train" in lines[-1]
    choice = next(line for line in lines if "trained" in line and "reconstruction error" in line and " w2 " in line)
    assert choice.split()[-4:] == ["8", "8", "4", "4"] and "[" in choice


def test_records_and_curves_agree_with_the_cases(outcome, tmp_path):
    dataset = data.from_samples("points", np.random.default_rng(8).standard_normal((400, 4)), (4,))
    rows = report.make_records(outcome, dataset, CONFIG)
    records.write_records(tmp_path, rows)
    loaded = records.load_records(tmp_path)
    assert len(loaded) == len(outcome.cases) + len(outcome.comparisons) + len(outcome.claims) and json.dumps(loaded)
    for row, case in zip(loaded, outcome.cases, strict=False):
        assert (row["seed"], row["latent_dim"], row["metric"]) == (case.seed, case.latent_dim, case.metric)
        assert row["precision"] == "float32"
        assert row["model_end"] == pytest.approx(case.model[:, -1].mean()) and row["reference"] == 100
        assert row["model_best"] == pytest.approx(case.model.mean(axis=0).min())
        assert row["noisy_best"] == pytest.approx(case.noisy.mean(axis=0).min())
        assert row["trained"] == ((case.seed, case.latent_dim) != (0, 2))
        index = case.noisy.mean(axis=0).argmin()
        assert row["noisy_logsnr"] == (None if np.isinf(CONFIG.logsnrs[index]) else CONFIG.logsnrs[index])
    (of_w2,) = [r for r in loaded if r["record"] == "claims" and r["metric"] == "w2"]
    assert (of_w2["early"], of_w2["confirmed"], of_w2["data"]) == (5, 3, "points")
    of_comparison = [r for r in loaded if r["record"] == "comparison"]
    assert of_comparison[0]["predictor"] == "noisy autoencoder" and of_comparison[0]["best"][0][:2] == [0, 4]
    curves = report.make_curves(outcome, CONFIG)
    assert curves["model"].shape == curves["noisy_standard_error"].shape == (12, len(CONFIG.logsnrs))
    np.testing.assert_allclose(curves["model"][4], outcome.cases[4].model.mean(axis=0))
    error = outcome.cases[4].model.std(axis=0, ddof=1) / 8
    np.testing.assert_allclose(curves["model_standard_error"][4], error)


def test_figures_hold_every_dimension(outcome):
    figure = report.draw_curves(outcome, CONFIG, "points")
    assert len(figure.axes) == 6
    line = figure.axes[0].lines[1]  # noisy autoencoder, d = 2
    mean = np.mean([c.noisy.mean(axis=0) for c in outcome.cases if c.metric == "w2" and c.latent_dim == 2], axis=0)
    np.testing.assert_allclose(line.get_ydata(), mean)
    assert np.all(np.isfinite(line.get_xdata())) and np.all(np.diff(line.get_xdata()) > 0)
    figure = report.draw_predictions(outcome, "points")
    assert len(figure.axes) == 8
    for panel in figure.axes:
        assert sorted(t.get_text() for t in panel.texts) == ["2", "4", "8"]


def test_stop_of_a_case_is_named_by_its_logsnr(outcome):
    assert report._stop(len(CONFIG.logsnrs) - 1, CONFIG) == "end"
    assert report._stop(0, CONFIG) == f"{CONFIG.logsnrs[0]:.1f}"
    vp = dataclasses.replace(CONFIG, sampling=dataclasses.replace(CONFIG.sampling, process="vp"))
    assert vp.logsnrs[-1] == pytest.approx(9.0) and report._stop(len(vp.logsnrs) - 1, vp) == "end"
