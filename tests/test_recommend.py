"""recommend: controls with a known answer, stops in four languages, choices, users' objects and files, every refusal."""

import dataclasses
import json
import re

import numpy as np
import pytest
from commands import run_named_commands
from interrupted import run_in_sessions
from recommend_points import exact_curve, of_true_second_moment, pca_candidate, quiet, spectrum

from experiments import recommend
from experiments.recommend import candidates, choice, latents, report
from ldmjax import autoencoders, features, gaussians, metrics, oracle, pipelines, records, schedules, stopping

EARLY, NONE, UNKNOWN = stopping.VERDICTS
GRADED = np.arange(128.0)[:, None]
ALL_STOPS = np.append(np.linspace(-2.0, 11.0, 19), np.inf)


def answer(x, held_out, d, **options):
    config = recommend.Config(samples=2048, stops=12, **options)
    return recommend.run([pca_candidate(x, held_out, d)], config, comparable=True, report=quiet), config


@pytest.fixture(scope="module", params=[0, 1, 2])
def scarce(request):
    """Few points in many dimensions, d at the rank: noise is a ridge for the missing variance."""
    rng = np.random.default_rng([3, request.param])
    x, held_out = rng.standard_normal((70, 80)) * spectrum(80), rng.standard_normal((1500, 80)) * spectrum(80)
    return (x, *answer(x, held_out, 69))


def test_few_points_in_many_dimensions_ask_for_an_early_stop(scarce):
    x, outcome, config = scarce
    (record,) = outcome.records
    logsnrs = outcome.curves["pca/logsnr"]
    exact = exact_curve(x, 69, logsnrs)
    best = int(exact.argmin())
    assert record["verdict"] == EARLY and 0 < best < len(logsnrs) - 1
    assert record["low"] <= logsnrs[best] <= (np.inf if record["high"] is None else record["high"])
    assert record["gain_low"] <= exact[-1] - exact[best] <= record["gain_high"]
    curve, error = (outcome.curves["pca/data/w2" + end] for end in ("", "/standard_error"))
    np.testing.assert_array_less(np.abs(curve - exact), 4 * error)
    assert record["end"] == curve[-1] and record["best"] == curve.min()
    assert record["gain"] == pytest.approx(curve[-1] - curve.min())
    np.testing.assert_array_equal(outcome.curves["logsnr"], logsnrs)
    assert set(config.logsnrs) <= set(logsnrs) and record["levels"] == list(logsnrs)


@pytest.mark.parametrize("seed", range(4))
def test_latents_of_the_true_second_moment_never_ask_for_an_early_stop(seed):
    rng = np.random.default_rng([4, seed])
    x = of_true_second_moment(rng, 100)
    np.testing.assert_allclose(x.T @ x / 100, np.diag(spectrum(16) ** 2), atol=1e-12)
    outcome, _ = answer(x, rng.standard_normal((1500, 16)) * spectrum(16), 12)
    (choice,) = outcome.recommendations
    assert choice["verdict"] != EARLY and choice["advice"].startswith(("do not stop early", "cannot tell"))
    assert choice["images_needed"] is None or choice["images_needed"][1] > choice["images_needed"][0] >= 1500


def test_record_of_a_run(scarce):
    x, outcome, config = scarce
    (record,) = outcome.records
    about = {"name": "pca", "features": "data", "metric": "w2", "latent_dim": 69, "training_images": 70,
             "reference_images": 1500, "feature_dim": 80, "readout": "rescaled", "squared": True}  # fmt: skip
    assert {key: record[key] for key in about} == about
    for key in ("logsnr", "low"):
        assert record[key] in record["levels"]
    z = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[1][:69]
    assert record["latent_std"] == pytest.approx(np.sqrt(np.sum(z**2) / x.shape[0] / 69), rel=1e-5)
    (choice,) = outcome.recommendations
    assert choice == record | {"tied": ["pca"], "advice": choice["advice"]}
    assert f"{100 * record['gain'] / record['end']:.1f} %" in choice["advice"]
    assert record["images_needed"] is None and outcome.seconds["pca"] > 0
    # The training images themselves: the law of these very points, bias of the reference removed.
    exact = gaussians.w2_squared(x.mean(0), np.cov(x.T, bias=True), np.zeros(80), np.diag(spectrum(80) ** 2))
    assert record["floor"] == pytest.approx(exact, rel=0.05)


def test_record_says_how_many_images_were_decoded():
    rng, seen = np.random.default_rng(5), []
    candidate = pca_candidate(rng.standard_normal((150, 4)), rng.standard_normal((128, 4)), 2)

    def decode(z):
        seen.append(len(z))
        return np.pad(z, [(0, 0), (0, 2)])

    candidate = candidates.Candidate(
        name="x", latents=candidate.latents, decode=decode, measures=candidate.measures, training=None
    )
    config = recommend.Config(samples=512, stops=3)
    (record,) = recommend.run([candidate], config, comparable=True, report=quiet).records
    assert set(seen) == {record["decoded_images"]} and seen[0] >= 512


def test_configuration_reaches_the_noisy_autoencoder(monkeypatch):
    rng, seen, pseudo = np.random.default_rng(16), [], {}
    candidate = pca_candidate(rng.standard_normal((150, 5)), rng.standard_normal((128, 5)), 3)
    monkeypatch.setattr(recommend, "choose", lambda rows, values, comparable: pseudo.update(values) or [])

    def decode(z):
        seen.append(len(z))
        return candidate.decode(z)

    def run(**options):
        config = recommend.Config(samples=128, stops=5, **options)
        own = dataclasses.replace(candidate, decode=decode)
        return recommend.run([own], config, comparable=True, report=quiet)

    first, again, other, state = (run(**o) for o in ({}, {"seed": 0}, {"seed": 1}, {"readout": "state"}))
    assert set(seen) == {150, 300}  # once to check decode, then twice per level, though fewer samples were asked for
    for outcome in (other, state):
        assert np.all(outcome.curves["pca/data/w2"][:3] != first.curves["pca/data/w2"][:3])
    np.testing.assert_array_equal(again.curves["pca/data/w2"], first.curves["pca/data/w2"])
    # Choices compare candidates at their own best stops; here the second level's, the only one that is decoded.
    original = candidate.decode
    candidate = dataclasses.replace(candidate, decode=lambda z: original(z) if len(seen) % 5 == 2 else 0 * original(z))
    seen.clear()
    outcome = run()
    assert outcome.records[0]["best"] < 0.9 * outcome.records[0]["end"]
    assert np.mean(pseudo["pca", "data", "w2"]) == pytest.approx(outcome.records[0]["best"])


def test_interval_that_reaches_the_end_has_no_number():
    candidate = pca_candidate(np.random.default_rng(17).standard_normal((80, 5)), np.ones((128, 5)) * GRADED, 3)
    result = stopping.StoppingResult(
        curve=np.ones(4), standard_error=np.ones(4), end=1.0, best=1.0, best_stop=3, best_stop_low=1, best_stop_high=3,
        gain=0.0, gain_low=-1.0, gain_high=1.0, verdict=UNKNOWN,
    )  # fmt: skip
    config = recommend.Config(stops=4)
    scale = autoencoders.LatentScale(mean=0.0, std=2.0)
    levels = {"logsnrs": config.logsnrs}
    row = recommend.make_record(candidate, "data", "w2", result, {("data", "w2"): 0.5}, scale, config, **levels)
    assert (row["logsnr"], row["low"], row["high"]) == (None, config.logsnrs[1], None) and row["floor"] == 0.5
    assert row["rf_time"] == 0.0 and row["images_needed"] == stopping.images_needed(result, images=128)
    earlier = dataclasses.replace(result, best_stop=1, best_stop_low=0, best_stop_high=2)
    row = recommend.make_record(candidate, "data", "w2", earlier, {}, scale, config, **levels)
    assert [row[k] for k in ("low", "logsnr", "high")] == config.logsnrs[:3].tolist() and row["floor"] is None


# Stops in the sampler's words.


@pytest.mark.parametrize("sampler", pipelines.NAMES)
@pytest.mark.parametrize("logsnr", [-1.5, 0.0, 2.25, 7.0])
def test_stop_fields_are_one_stop(sampler, logsnr):
    found = recommend.stop_fields(logsnr, recommend.Config(sampler=sampler))
    signal = 1 / (1 + np.exp(-logsnr))
    assert found["logsnr"] == logsnr and found["vp_alpha"] == pytest.approx(np.sqrt(signal))
    s = found["rf_time"]
    assert 2 * np.log((1 - s) / s) == pytest.approx(logsnr)
    assert (found["denoising_end"] is None) == (not sampler.startswith("scaled_linear"))
    # The state of variance alpha^2 + sigma^2, divided, has the variance of clean data.
    alpha = {"vp": np.sqrt(signal), "ve": 1.0, "flow": 1 - s}[pipelines.make_sampler(sampler).state]
    sigma = found["sigma"] * (2.0 if sampler == "edm" else 1.0)
    assert np.hypot(alpha, sigma) / found["divide_by"] == pytest.approx(1.0)


def test_the_end_of_sampling_in_every_language():
    for sampler in pipelines.NAMES:
        found = recommend.stop_fields(None, recommend.Config(sampler=sampler))
        end = 1.0 if sampler.startswith("scaled_linear") else None
        assert found == {"logsnr": None, "step": None, "timestep": None, "denoising_end": end, "sigma": 0.0, "rf_time": 0.0,
                         "vp_alpha": 1.0, "divide_by": 1.0}  # fmt: skip
    # Levels that the sampler does not have are no stops.
    levels = recommend.Config(sampler="scaled_linear_ddim").logsnrs
    assert np.diff(levels[:-1]) == pytest.approx(9.0694 / 19, abs=1e-4) and levels[-2] < 7.0 and np.isinf(levels[-1])
    assert recommend.Config().logsnrs[-2] == 11.0
    assert recommend.stop_fields(2.0, recommend.Config(sampler="flow_matching", readout="state"))["divide_by"] == 1.0


def test_stops_of_a_sampler_with_steps_are_after_them():
    config = recommend.Config(sampler="flow_matching", shift=3.0, sampling_steps=28)
    levels = pipelines.levels(config.pipeline, 28)
    for logsnr in config.logsnrs[:-1]:
        found = recommend.stop_fields(logsnr, config)
        assert levels[found["step"]] == pytest.approx(logsnr) and found["logsnr"] == logsnr
    assert recommend.stop_fields(None, config)["step"] == 28
    assert (
        config.chain.sampler == "euler" and dataclasses.replace(config, solver="dpmpp_2m").chain.sampler == "dpmpp_2m"
    )
    with pytest.raises(ValueError, match="takes 2..1000 steps, got 2000"):
        recommend.Config(sampler="scaled_linear_ddim", sampling_steps=2000)
    with pytest.raises(ValueError, match="edm has no state of a rectified flow"):
        recommend.Config(sampler="edm", readout="state")


# The latents' scale.

ALL = latents.Scaling()


def normal(*shape, seed=6):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def described(z, scaling=ALL):
    return latents.describe("z", z, scaling, latents.scale_of(z, scaling))


def test_scale_sentences():
    wide = normal(500, 3) * np.float32([1.0, 5.0, 9.0]) + 2
    std, mean = wide.std(), wide.mean()
    scale = latents.scale_of(wide, ALL)
    assert (scale.mean, scale.std) == pytest.approx((mean, std), rel=1e-5)
    text = described(wide)
    assert f"z: 3 latent entries, mean {mean:.3g}, standard deviation {std:.3g}" in text
    assert "train the diffusion model so too" in text and "whitened" not in text
    white = (wide - wide.mean(axis=0)) / wide.std(axis=0)
    text = described(white, latents.Scaling(multiply=[1.0]))
    assert "and a deviation of 1" in text and "shifts" not in text and "mean is not 0" not in text
    text = described(white * 3, latents.Scaling(multiply=[2 / 3]))
    assert "and a deviation of 2: not 1" in text and f"by {-2 * np.log(2):+.2g} in logsnr" in text
    assert "as they are: not 1" in described(white * 3, latents.Scaling(standardise="none"))
    assert "a mean of 3 and a deviation of 1; that mean is not 0" in described(
        white + 3, latents.Scaling(multiply=[1.0])
    )
    with pytest.raises(ValueError, match="must vary"):
        latents.scale_of(np.ones((5, 2)), ALL)


def test_whitened_latents_are_said():
    white = normal(1000, 16)
    assert "whitened" in described(white) and "whitened" in described(normal(1000, 4, 4, 3))
    for scale in (np.linspace(1, 1.5, 16), np.append(np.ones(15), 0.0)):
        assert "whitened" not in described(white * np.float32(scale))
    # Equal deviations are not enough.
    assert "whitened" not in described((white + white[:, :1]) / np.sqrt(1 + (np.arange(16) > 0)))


def test_scale_sentence_says_where_the_stop_moves():
    rng = np.random.default_rng([3, 0])
    x = rng.standard_normal((70, 80)) * spectrum(80)
    candidate = pca_candidate(x, rng.standard_normal((128, 80)), 69)
    std, fine = candidate.latents.std(), np.linspace(-3, 11, 57)
    moved = [fine[exact_curve(x, 69, fine, scale=c).argmin()] for c in (std, std / 2)]
    text = described(candidate.latents, latents.Scaling(multiply=[2 / float(std)]))
    said = float(re.search(r"shifts every stop by ([-+0-9.]+)", text).group(1))
    assert np.sign(said) == np.sign(moved[1] - moved[0])


def test_a_given_scale_is_used():
    rng = np.random.default_rng(7)
    x, held_out = rng.standard_normal((100, 6)) * spectrum(6), rng.standard_normal((1000, 6)) * spectrum(6)
    outcome, config = answer(x, held_out, 4, scaling=latents.Scaling(multiply=[0.4]))
    curve, error = (outcome.curves["pca/data/w2" + end] for end in ("", "/standard_error"))
    exact = exact_curve(x, 4, outcome.curves["pca/logsnr"], scale=2.5)
    np.testing.assert_array_less(np.abs(curve - exact), 4 * error)
    assert outcome.records[0]["latent_std"] == 2.5 and outcome.records[0]["latent_mean"] == 0.0


@pytest.mark.parametrize("shape", [(200, 4, 8, 8), (200, 8, 8, 4), (200, 16, 4), (200, 4)])
def test_factors_and_scales_of_channels(shape):
    per = np.array([1.2, 2.8, 0.3, 3.3]), np.array([-8.9, 1.5, 0.0, -2.0])
    axis = 1 if shape[1:] == (4, 8, 8) else len(shape) - 1
    std, mean = (x.reshape([-1 if i == axis else 1 for i in range(len(shape))]) for x in per)
    z = normal(*shape) * std + mean
    asked = latents.scale_of(z, latents.Scaling(multiply=list(1 / per[0]), shift=list(per[1])))
    np.testing.assert_allclose(asked.standardise(z), (z - mean) / std, atol=1e-5)
    np.testing.assert_allclose(asked.unstandardise(asked.standardise(z)), z, atol=1e-4)
    own = latents.scale_of(z, latents.Scaling(standardise="channel")).standardise(z)
    others = tuple(i for i in range(len(shape)) if i != axis)
    np.testing.assert_allclose(own.mean(axis=others), 0.0, atol=1e-5)
    np.testing.assert_allclose(own.std(axis=others), 1.0, atol=1e-5)
    one = latents.scale_of(z, latents.Scaling(multiply=[2.0], shift=[0.5]))
    np.testing.assert_allclose(one.standardise(z), (z - 0.5) * 2.0, atol=1e-5)
    with pytest.raises(ValueError, match="one for each of 4 (channels|entries), got 3"):
        latents.scale_of(z, latents.Scaling(multiply=[1.0, 2.0, 3.0]))


@pytest.mark.parametrize("factor, deviation", [(0.18215, 5.49), (0.13025, 7.68), (1.5305, 0.6534)])
def test_a_divisor_is_recognised_by_what_it_leaves(factor, deviation):
    z = deviation * normal(400, 4, 4, 4)
    assert latents.scale_of(z, latents.Scaling(multiply=[factor])).standardise(z).std() == pytest.approx(1.0, abs=0.02)
    if factor == 1.5305:  # 1 / 1.53 leaves .43, and is far enough from 1 too
        assert deviation / factor < 1 / latents.RIGHT
    with pytest.raises(ValueError, match=rf"leaves the latents a deviation of .*give --latent_scale={factor:.4g}"):
        latents.scale_of(z, latents.Scaling(multiply=[1 / factor]))


def test_a_divisor_is_recognised_after_the_shift_of_each_channel():
    means = [-40.0, 0.0, 40.0]
    z = 5.49 * normal(400, 3) + np.float32(means)
    latents.scale_of(z, latents.Scaling(multiply=[1 / 5.49], shift=means))
    with pytest.raises(ValueError, match="give --latent_scale=0.1821"):
        latents.scale_of(z, latents.Scaling(multiply=[5.49], shift=means))


def test_factors_that_do_not_fit_are_refused_before_anything_is_computed():
    two = latents.Scaling(multiply=[1.0, 2.0])
    latents.check_factors(two, [(2,), (2, 5, 5), (5, 5, 2)])
    latents.check_factors(latents.Scaling(multiply=[2.0], shift=[1.0]), [(3,), (4, 4)])
    with pytest.raises(ValueError, match="--latent_scale must hold one number or one for each of 3 entries, got 2"):
        latents.check_factors(two, [(2,), (3,)])
    with pytest.raises(ValueError, match="--latent_shift must hold one number or one for each of 4 channels, got 2"):
        latents.check_factors(latents.Scaling(shift=[1.0, 2.0]), [(4, 8, 8)])


def test_a_channel_without_deviation_cannot_be_standardised():
    z = normal(100, 3) * np.float32([1, 0, 1])
    with pytest.raises(ValueError, match="needs channels that vary, number 1 does not"):
        latents.scale_of(z, latents.Scaling(standardise="channel"))


UNEVEN = {
    "deviations and means": ((1.2, 2.8, 0.3, 3.3), (-8.9, 1.5, 0.0, -2.0)),
    "deviations": ((1.0, 1.0, 4.0, 1.0), (0.0, 0.0, 0.0, 0.0)),
    "means": ((1.0, 1.1, 0.9, 1.0), (-3.0, 0.0, 0.0, 3.0)),
}


@pytest.mark.parametrize("case", UNEVEN)
@pytest.mark.parametrize("shape", [(300, 4, 6, 6), (300, 6, 6, 4)])
def test_uneven_channels_are_said(case, shape):
    axis = shape.index(4)
    std, mean = (np.reshape(x, [-1 if i == axis else 1 for i in range(4)]) for x in UNEVEN[case])
    z = (normal(*shape) * std + mean).astype(np.float32)
    (text,) = latents.notices("z", z, ALL)
    assert "z: channels differ much" in text and "--standardise=channel" in text
    assert latents.notices("z", z, latents.Scaling(standardise="channel")) == []
    # One factor is no scale of each channel, four are.
    assert "channels differ much" in latents.notices("z", z, latents.Scaling(multiply=[0.3]))[0]
    assert latents.notices("z", z, latents.Scaling(multiply=[1.0, 2.0, 3.0, 4.0])) == []
    even = (z - mean) / std
    assert latents.notices("z", even.astype(np.float32), ALL) == []


def test_uneven_positions_and_entries_are_said():
    z = normal(300, 6, 6, 4)
    rows = np.linspace(0.05, 1, 6)[:, None, None]
    (text,) = latents.notices("z", z * rows, ALL)
    assert "positions differ much" in text
    (text,) = latents.notices("z", z + 8 * rows, ALL)
    assert "positions differ much" in text
    assert latents.notices("z", z * np.linspace(0.5, 1, 6)[:, None, None], ALL) == []
    # Components of falling variance are what an autoencoder makes, apart means are not.
    falling = normal(300, 16) * np.float32(spectrum(16))
    assert latents.notices("z", falling, ALL) == []
    assert "channels differ much" in latents.notices("z", falling + np.linspace(-4, 4, 16), ALL)[0]


@pytest.mark.parametrize("shape", [(300, 8, 5, 5), (300, 5, 5, 8), (300, 16)])
def test_stacked_log_variances_are_named(shape):
    axis = 1 if shape == (300, 8, 5, 5) else len(shape) - 1
    z = np.moveaxis(normal(*shape), axis, -1)
    half = z.shape[-1] // 2
    z[..., half:] = -6.0 + 0.05 * z[..., half:]
    texts = latents.notices("z", np.moveaxis(z, -1, axis), ALL)
    assert (
        f"{half} of {2 * half} channels hardly vary" in texts[0] and "log-variances? Give the means alone" in texts[0]
    )
    assert latents.notices("z", np.moveaxis(z[..., :half], -1, axis), ALL) == []
    one = z[..., :half].copy()
    one[..., 1] = 3.0  # a constant
    texts = latents.notices("z", np.moveaxis(one, -1, axis), ALL)
    assert f"1 of {half} channels hardly vary (numbers 1" in texts[0] and "log-variances" not in texts[0]


def test_what_is_noticed_stands_in_the_answer():
    rng = np.random.default_rng(7)
    x, held_out = rng.standard_normal((100, 6)) * spectrum(6), rng.standard_normal((1000, 6)) * spectrum(6)
    candidate = pca_candidate(x, held_out, 4)
    moved = dataclasses.replace(
        candidate,
        latents=candidate.latents + np.float32([9, -9, 5, 0]),
        decode=lambda z: candidate.decode(z - [9, -9, 5, 0]),
    )
    outcome = recommend.run([moved], recommend.Config(stops=4, samples=256), comparable=True, report=quiet)
    assert "channels differ much" in outcome.noticed[0]
    assert "Noticed in these inputs" in report.table(outcome)
    clean = recommend.run([candidate], recommend.Config(stops=4, samples=256), comparable=True, report=quiet)
    assert clean.noticed == [] and "Noticed" not in report.table(clean)


# The choice and the advice.


def made_record(name, best, **changes):
    fields = {"name": name, "features": "pixels", "metric": "w2", "best": best, "end": 10.0,
              "end_standard_error": 0.5, "gain": 10.0 - best, "divide_by": 1.0,
              "verdict": EARLY, "denoising_end": 0.9, "images_needed": None, "logsnr": 2.1, "step": None, "timestep": 100.0,
              "sampler": "scaled_linear_euler", "sampling_steps": None, "sigma": 0.3, "vp_alpha": 0.95,
              "edge": None, "reference_images": 200}  # fmt: skip
    return fields | changes


def chosen(bests, *, comparable=True, noise=0.0, common=0.0):
    rng = np.random.default_rng(8)
    shared = rng.standard_normal(64)
    rows = [made_record(name, best) for name, best in bests.items()]
    pseudo = {}
    for name, best in bests.items():
        own = rng.standard_normal(64)
        own -= own.mean()
        pseudo[name, "pixels", "w2"] = best + noise * own + common * shared
    return choice.choose(rows, pseudo, comparable=comparable)


def test_choice_is_the_smallest_and_names_what_is_as_good():
    (found,) = chosen({"a": 5.0, "b": 4.0, "c": 4.03})
    assert found["name"] == "b" and found["tied"] == ["b", "c"]  # 4.03 is within 1 %
    (found,) = chosen({"a": 4.05, "b": 4.0})
    assert found["tied"] == ["b"]
    # Difference 1 with a standard error of sqrt(2) / 2.83 = 0.5: t = 2; with twice the noise it may be chance.
    assert chosen({"a": 5.0, "b": 4.0}, noise=2.0)[0]["tied"] == ["b"]
    assert chosen({"a": 5.0, "b": 4.0}, noise=5.0)[0]["tied"] == ["a", "b"]
    # What all share is no reason to doubt.
    assert chosen({"a": 5.0, "b": 4.0}, common=50.0)[0]["tied"] == ["b"]


def test_one_choice_per_group():
    apart = chosen({"a": 5.0, "b": 4.0}, comparable=False)
    assert [(r["name"], r["tied"]) for r in apart] == [("a", ["a"]), ("b", ["b"])]
    rows = [made_record("a", 1.0), made_record("a", 1.0, metric="mmd"), made_record("b", 2.0, metric="mmd")]
    pseudo = {(r["name"], "pixels", r["metric"]): np.full(4, r["best"]) for r in rows}
    assert [r["metric"] for r in choice.choose(rows, pseudo, comparable=True)] == ["w2", "mmd"]


def test_what_is_not_finite_is_not_chosen():
    rows = [made_record("a", np.inf), made_record("b", 3.0), made_record("c", np.nan)]
    pseudo = {(r["name"], "pixels", "w2"): np.full(4, r["best"]) for r in rows}
    (found,) = choice.choose(rows, pseudo, comparable=True)
    assert found["name"] == "b" and found["tied"] == ["b"]
    assert choice.choose(rows[:1], pseudo, comparable=True) == []


def test_advice_for_every_verdict():
    at = "stop at timestep 100 (in SDXL denoising_end = 0.900)"
    assert choice.advice(made_record("a", 9.0)) == f"{at}: the distance falls by 10.0 %"
    assert (
        choice.advice(made_record("a", 9.9, verdict=NONE))
        == "do not stop early: a model that has learned the law gains less than 1 %, networks may gain more"
    )
    text = choice.advice(made_record("a", 9.0, divide_by=0.8))
    assert text == f"{at} and divide the latent by 0.800 before decoding: the distance falls by 10.0 %"
    text = choice.advice(made_record("a", 9.0, end_standard_error=6.0))
    assert text == f"{at}: the distance falls by 1, from an end that cannot be told from 0"
    text = choice.advice(made_record("a", 9.0, verdict=UNKNOWN, images_needed=(4000, 12345)))
    assert text == "cannot tell: run to the end; about 4e+03 to 1.2e+04 held-out images would let it"
    text = choice.advice(made_record("a", 9.0, verdict=UNKNOWN, images_needed=(201, 12345)))
    assert text == "cannot tell: run to the end; up to 1.2e+04 held-out images would let it"
    assert choice.advice(made_record("a", 9.0, verdict=UNKNOWN)) == "cannot tell: run to the end"
    assert choice.advice(made_record("a", -1.0)) == f"{at}: the distance falls by 100.0 %"  # estimates below 0


def test_a_stop_is_said_in_the_words_of_its_sampler():
    def words(sampler, logsnr, **options):
        config = recommend.Config(sampler=sampler, **options)
        fields = recommend.stop_fields(logsnr, config)
        return choice.stop_words(fields | {"sampler": sampler, "sampling_steps": config.sampling_steps})

    assert words("scaled_linear_euler", 2.0) == "at timestep 111 (in SDXL denoising_end = 0.889)"
    assert words("linear_beta_ddim", 2.0) == "at timestep 107"
    assert words("flow_matching", 2.0) == words("rectified_flow", 2.0) == "at sigma = 0.269"
    assert words("edm", 2.0) == "at sigma = 0.184" and words("linear_vp", 2.0) == "at alpha = 0.939"
    config = recommend.Config(sampler="flow_matching", shift=3.0, sampling_steps=28)
    level = config.logsnrs[np.argmin(np.abs(config.logsnrs - 2.0))]
    assert words("flow_matching", level, shift=3.0, sampling_steps=28) == "after 24 of 28 steps (at sigma = 0.278)"
    assert words("flow_matching", None, shift=3.0, sampling_steps=28) == "at the end"


def test_what_is_unknown():
    only = candidates.Candidate(name="z", latents=np.ones((2, 2)), decode=lambda z: z, measures={}, training=None)
    one, two = [only], [only] * 2
    assert len(choice.unknowns(two, comparable=True)) == 2
    assert "lose variance" in choice.unknowns(two, comparable=True)[1]
    assert "other latent dimensions" in choice.unknowns(one, comparable=True)[2]
    assert "Without a decoder" in choice.unknowns(two, comparable=False)[2]
    for rows, said in ((128, True), (400, False)):
        reference = metrics.FeatureReference(np.random.default_rng(0).standard_normal((rows, 200)), metrics=["w2"])
        measured = dataclasses.replace(one[0], measures={"pixels": metrics.Measure(lambda x: x, reference)})
        text = " ".join(choice.unknowns([measured] * 2, comparable=True))
        assert ("128 images for 200 pixels features" in text and "202 images would" in text) == said


@pytest.mark.parametrize("solver", ["euler", "dpmpp_2m"])
def test_a_sampler_with_few_steps_stops_after_steps_and_earlier(solver):
    """Latents with the training points' own law: without the loss no stop gains, with few Euler steps an early one does."""
    rng = np.random.default_rng([4, 0])
    x = of_true_second_moment(rng, 400)
    held_out = rng.standard_normal((4000, 16)) * spectrum(16)
    perfect, _ = answer(x, held_out, 16)
    few, config = answer(x, held_out, 16, sampling_steps=10, solver=solver)
    assert len(config.logsnrs) == 8 and np.all(np.isin(config.logsnrs, config.chain.logsnrs))
    record, without = few.records[0], perfect.records[0]
    assert record["sampling_steps"] == 10 and record["solver"] == solver
    assert without["sampling_steps"] is None and without["solver"] is None
    z = np.linalg.svd(x, full_matrices=False)[1] ** 2 / 400
    scale = record["latent_std"]
    kept = oracle.variance_kept(z / scale**2, schedules.RectifiedFlow(), 10, sampler=solver)[1][-1]
    exact = gaussians.w2_squared(np.zeros(16), np.diag(kept * z), np.zeros(16), np.diag(z))
    assert record["end"] == pytest.approx(exact, abs=4 * record["end_standard_error"])
    assert record["end"] > without["end"] + 2 * record["end_standard_error"]
    if solver == "euler":
        assert record["verdict"] == EARLY and without["verdict"] != EARLY


# What users bring.


class TorchLike:
    """Neither an array nor a list, but numpy can read it."""

    def __init__(self, values):
        self.values = values

    def __array__(self, dtype=None, copy=None):
        return np.asarray(self.values, dtype or np.float64)


def test_batches_are_cut_checked_and_joined():
    sizes = []

    def function(x):
        sizes.append(len(x))
        return TorchLike(2.0 * x.reshape(len(x), -1))

    x = np.arange(7 * 4, dtype=np.float32).reshape(7, 2, 2)
    found = candidates.batched("encode", function, 3)(x)
    assert sizes == [3, 3, 1] and found.dtype == np.float32
    np.testing.assert_array_equal(found, 2 * x.reshape(7, 4))
    shaped = candidates.batched("decode", function, 100, shape=(2, 2))(x)
    np.testing.assert_array_equal(shaped, 2 * x)


@pytest.mark.parametrize(
    ("function", "shape", "message"),
    [
        (lambda x: 1 / 0, None, "own: ZeroDivisionError: division by zero"),
        (lambda x: x[:1], None, r"own: of 2 rows must come \[2, ...\], got \[1, 3\]"),
        (lambda x: x[:, 0], None, r"own: of 2 rows must come \[2, ...\], got \[2\]"),
        (lambda x: None, None, "own: "),
        (lambda x: [["a"] * 3] * 2, None, "own: ValueError"),
        (lambda x: x / 0, None, "own: returned NaN or infinity"),
        (lambda x: x, (2, 2), r"own: images must have shape \[2, 2\], got \[3\]"),
    ],
)
def test_what_a_users_function_may_not_return(function, shape, message):
    with np.errstate(all="ignore"), pytest.raises(ValueError, match=message) as error:
        candidates.batched("own", function, 2, shape=shape)(np.ones((4, 3), np.float32))
    assert "\n" not in str(error.value)


def test_decoded_images_that_are_not_finite_are_the_distances_business():
    call = candidates.batched("own", lambda x: np.full_like(x, np.inf), 2, shape=(3,))
    assert np.isinf(call(np.ones((2, 3)))).all()


def test_users_objects_become_candidates():
    rng = np.random.default_rng(9)
    training, held_out = rng.standard_normal((130, 2, 3)).astype(np.float32), rng.standard_normal((128, 2, 3))
    measures = candidates.measures_of({"pixels": lambda x: x.reshape(len(x), -1)}, held_out, 0)

    class Own:
        def encode(self, x):
            return TorchLike(x.reshape(len(x), 6)[:, :4].reshape(-1, 2, 2))

        def decode(self, z):
            return TorchLike(np.pad(z.reshape(len(z), 4), [(0, 0), (0, 2)]))

    (found,) = candidates.of_autoencoders({"own": Own()}, training, measures, batch=50)
    assert found.latent_dim == 4 and found.latents.shape == (130, 2, 2) and found.training is training
    images = found.decode(found.latents)
    np.testing.assert_array_equal(images.reshape(130, 6)[:, :4], training.reshape(130, 6)[:, :4])
    assert images.shape == training.shape and images.dtype == np.float32

    rows = np.array([5, 1, 7])
    stored = {"z": rng.standard_normal((10, 4)).astype(np.float32)}
    (found,) = candidates.of_latents(stored, rows, Own().decode, training[:3], measures, batch=50)
    np.testing.assert_array_equal(found.latents, stored["z"][rows])
    np.testing.assert_array_equal(found.decode(found.latents).reshape(3, 6)[:, :4], stored["z"][rows])
    with pytest.raises(ValueError, match="decoder of z: images must have shape"):
        candidates.of_latents(stored, rows, lambda z: z, training[:3], measures, batch=50)


def test_latents_alone_are_compared_with_latents():
    rng = np.random.default_rng(10)
    z = (rng.standard_normal((500, 2, 2, 1)) * 3 + 7).astype(np.float32)
    (found,) = candidates.of_latents_alone({"z": z}, n=200, reference=150, seed=0)
    assert found.latents.shape == (200, 2, 2, 1) and list(found.measures) == ["latents"]
    reference = found.measures["latents"].reference.features
    assert reference.shape == (150, 4)
    kept = found.latents.reshape(200, 4)
    scale = kept.mean(), kept.std()
    held_out = reference * scale[1] + scale[0]
    everything = z.reshape(500, 4)
    places = [np.abs(everything - row).sum(axis=1).argmin() for row in np.concatenate([kept, held_out])]
    assert len(set(places)) == 350  # training and held-out latents are different ones
    np.testing.assert_allclose(np.concatenate([kept, held_out]), everything[places], atol=1e-4)
    np.testing.assert_allclose(found.decode(found.latents), (found.latents - scale[0]) / scale[1], atol=1e-5)
    np.testing.assert_array_equal(found.training, found.decode(found.latents))


def test_candidates_see_the_same_images_and_noise():
    """Paired: a candidate that is there twice is tied, with exactly the same numbers."""
    rng = np.random.default_rng(11)
    x, held_out = rng.standard_normal((80, 5)), rng.standard_normal((128, 5))
    twice = [pca_candidate(x, held_out, 3, name=name) for name in ("a", "b")]
    outcome = recommend.run(twice, recommend.Config(stops=4, samples=160), comparable=True, report=quiet)
    np.testing.assert_array_equal(outcome.curves["a/data/w2"], outcome.curves["b/data/w2"])
    assert outcome.recommendations[0]["tied"] == ["a", "b"]


def test_interrupted_job_ends_with_the_same(tmp_path):
    rng = np.random.default_rng(16)
    x, held_out = rng.standard_normal((80, 5)), rng.standard_normal((128, 5))
    both, config = (
        [pca_candidate(x, held_out, d, name=f"pca {d}") for d in (2, 3)],
        recommend.Config(stops=4, samples=160, passes=1),
    )
    alone = recommend.run(both, config, comparable=False, report=quiet)
    again, lines = run_in_sessions(
        lambda report, store: recommend.run(both, config, comparable=False, report=report, store=store),
        tmp_path, at=["pca 2: noisy autoencoder: level 2/4", "pca 3: noisy autoencoder: level 4/4"],
    )  # fmt: skip
    assert again.findings == alone.findings and set(alone.findings) < set(lines)
    assert len(lines) == 2 + 4 and not any(line.startswith("pca 2: noisy") for line in lines)  # and 4 levels of pca 3
    for where, found in (("alone", alone), ("again", again)):
        (tmp_path / where).mkdir()
        records.write_records(tmp_path / where, [*found.records, *found.recommendations])
    assert (tmp_path / "again" / "records.jsonl").read_bytes() == (tmp_path / "alone" / "records.jsonl").read_bytes()
    for name, values in again.curves.items():
        np.testing.assert_array_equal(values, alone.curves[name])


def test_configuration_levels():
    np.testing.assert_allclose(recommend.Config().logsnrs, ALL_STOPS)
    assert len(recommend.Config(stops=2).logsnrs) == 2


@pytest.mark.parametrize("stops", [2, 3])
def test_figure_and_table_of_few_stops(stops):
    rng = np.random.default_rng(12)
    candidate = pca_candidate(rng.standard_normal((80, 5)), rng.standard_normal((128, 5)), 3)
    config = recommend.Config(stops=stops, samples=160)
    outcome = recommend.run([candidate], config, comparable=True, report=quiet)
    assert outcome.records[0]["verdict"] in report.table(outcome)
    figure = report.draw(outcome, config)
    shown = outcome.curves["pca/data/w2"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), np.where(shown > 0, shown, np.nan))
    assert np.all(np.isfinite(figure.axes[0].lines[0].get_xdata()))


def test_interval_is_drawn_where_it_was_found(scarce):
    _, outcome, config = scarce
    record = dict(outcome.records[0])
    outcome = dataclasses.replace(outcome, records=[record])
    # The interval of these draws is one level wide; a wider one shows which end is which.
    levels = record["levels"]
    record["low"], record["high"] = levels[1], None
    panel = report.draw(outcome, config).axes[0]
    x_of = dict(zip([*levels[:-1], None], panel.lines[0].get_xdata(), strict=True))
    across, up = (bars.get_segments()[0] for bars in panel.containers[0][2])
    np.testing.assert_allclose(across, [[x_of[record[k]], record["best"]] for k in ("low", "high")])
    error = outcome.curves["pca/data/w2/standard_error"][levels.index(record["logsnr"])]
    np.testing.assert_allclose(up, [[x_of[record["logsnr"]], record["best"] + sign * error] for sign in (-2, 2)])
    row = next(line for line in report.table(outcome).splitlines() if line.startswith("data"))
    assert f"{record['logsnr']:.1f} [" in row and record["verdict"] in row and row.endswith("best")


def test_figure_and_table_without_a_finite_distance():
    rng = np.random.default_rng(15)
    good = pca_candidate(rng.standard_normal((80, 5)), rng.standard_normal((128, 5)), 3, name="own 3")
    lost = dataclasses.replace(good, name="own 4", decode=lambda z: np.full((len(z), 5), np.inf))
    config = recommend.Config(stops=4, samples=160)
    outcome = recommend.run([good, lost], config, comparable=True, report=quiet)
    assert outcome.records[1]["verdict"] == UNKNOWN and np.isinf(outcome.records[1]["best"])
    assert [r["tied"] for r in outcome.recommendations] == [["own 3"]]
    assert "own 3" in report.table(outcome) and len(report.draw(outcome, config).axes[0].lines) >= 2
    alone = recommend.run([lost], config, comparable=True, report=quiet)
    assert alone.recommendations == [] and "Not known" in report.table(alone)


def save(path, **arrays):
    np.savez(path, **arrays)
    return str(path)


GOOD = np.arange(6.0).reshape(3, 2)


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({}, "of one N, got none"),
        ({"a": GOOD, "b": GOOD[:2]}, r"of one N, got a \[3, 2\], b \[2, 2\]"),
        ({"a": GOOD[:, 0]}, r"'a' must hold numbers \[N, ...\], got float64 \[3\]"),
        ({"a": GOOD > 2}, "must hold numbers"),
        ({"a": GOOD * 1j}, "must hold numbers"),
        ({"a": np.array([["x"]])}, "must hold numbers"),
        ({"a": GOOD, "b": np.where(GOOD > 2, np.nan, GOOD)}, "'b' holds NaN, infinity"),
        ({"a": GOOD * 1e300}, "infinity"),
        ({"a": GOOD[:, :0]}, "must hold"),
    ],
)  # fmt: skip
def test_latents_that_do_not_load(tmp_path, arrays, message):
    with pytest.raises(ValueError, match=message) as error:
        candidates.load_latents(save(tmp_path / "z.npz", **arrays))
    assert "\n" not in str(error.value)


def test_files_that_are_no_latents(tmp_path):
    for name, content in (("text.npz", b"hello"), ("empty.npz", b""), ("cut.npz", b"PK\x03\x04 and no more")):
        (tmp_path / name).write_bytes(content)
    np.save(tmp_path / "array.npy", GOOD)
    (tmp_path / "cut.npy").write_bytes((tmp_path / "array.npy").read_bytes()[:-3])
    for name in ("text.npz", "empty.npz", "cut.npz", "cut.npy"):
        with pytest.raises(ValueError, match="is not a readable .npz or .npy file") as error:
            candidates.load_latents(str(tmp_path / name))
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="no file"):
        candidates.load_latents(str(tmp_path / "none.npz"))
    with pytest.raises(ValueError, match="no file"):
        candidates.load_latents(str(tmp_path))


def test_latents_that_load(tmp_path):
    path = save(tmp_path / "z.npz", a=GOOD, b=np.ones((3, 2, 2), np.int16))
    found = candidates.load_latents(path)
    assert list(found) == ["a", "b"] and {a.dtype for a in found.values()} == {np.dtype(np.float32)}
    np.testing.assert_array_equal(found["a"], GOOD)


# The command.

MODULE = """
import numpy as np

BASIS = np.linalg.qr(np.random.default_rng(0).standard_normal((64, 64)))[0]


class Own:
    def __init__(self, d=3):
        self.basis = BASIS[:, :d]

    def encode(self, images):
        return images.reshape(len(images), 64) @ self.basis

    def decode(self, z):
        return (z @ self.basis.T).reshape(-1, 8, 8)


def factory():
    return Own()


def decode(z):
    return Own().decode(z)


def broken():
    raise RuntimeError("no weights\\nfound")


class Halved(Own):
    def decode(self, z):
        return super().decode(z)[:, :4]


def equal(images):
    return np.ones((len(images), 3))


class Late:
    calls = 0

    def __call__(self, images):
        self.calls += 1
        if self.calls > 3:
            raise RuntimeError("out of memory")
        return images.reshape(len(images), 64)[:, 20:25]


late = Late()
"""
SMALL = ["--n=150", "--reference=128", "--samples=300", "--stops=4"]
Z, D = "--latents={where}/z.npz", "--data=digits"
# Arguments, then what the one line must say, or None for a run that ends well.
COMMANDS = {
    "quick": (["--quick", "--autoencoders=pca"], None),
    "factory": ([*SMALL, "--autoencoder=mine_of_test:factory", "--decode_batch=64"], None),
    "dimensions": ([*SMALL, "--autoencoder=mine_of_test:Own", "--latent_dims=2,70"], None),
    "latents alone": ([*SMALL, Z, "--sampler=linear_vp"], None),
    "latents, decoder": ([*SMALL, Z, D, "--decoder=mine_of_test:decode", "--latent_scale=0.2"], None),
    "quick factory": (["--quick", "--stops=3", "--autoencoder=mine_of_test:factory"], None),
    "broken": (["--autoencoder=mine_of_test:broken"], "factory(): RuntimeError: no weights found"),
    "no object": (["--autoencoder=mine_of_test:equal", "--latent_dims=2"], "--autoencoder=mine_of_test:equal: factory(2)"),
    "halved": (["--autoencoder=mine_of_test:Halved"], "own: decode: images must have shape [8, 8], got [4, 8]"),
    "no module": (["--autoencoder=nowhere:x"], "module 'nowhere' does not load"),
    "no decoder": ([*SMALL, Z, D, "--decoder=mine_of_test:nothing"], "has no 'nothing'"),
    "rows": (["--latents={where}/few.npz", D, "--decoder=mine_of_test:decode"], "one row for each of 1797 images, got 300"),
    "few": (["--latents={where}/few.npz", "--n=200"], "--n=200: must be 64..172"),
    "too few": (["--latents={where}/tiny.npz"], "needs at least 256 latents, got 100"),
    "no file": (["--latents=none.npz"], "no file 'none.npz'"),
    "both": ([Z, "--autoencoder=mine_of_test:factory"], "--autoencoder=mine_of_test:factory: allowed only without --latents"),
    "decoder only": (["--decoder=mine_of_test:decode"], "allowed only with --latents"),
    "decoder, no data": ([Z, "--decoder=mine_of_test:decode"], "needs --data"),
    "data, no decoder": ([Z, D], "not used with --latents alone"),
    "latent_dims": ([Z, "--latent_dims=3"], "allowed only without --latents"),
    "spectrum": (["--spectrum=power:1"], "images are needed"),
    "scale": (["--latent_scale=-1"], "must be"),
    "shift of another": (["--shift=3"], "allowed only with --sampler=flow_matching"),
    "no shift": (["--sampler=flow_matching", "--shift=dynamic:x"], "must be a number from 0.01 to 100 or dynamic:TOKENS"),
    "factors": ([*SMALL, "--autoencoders=pca", "--latent_dims=2,4", "--latent_scale=1,2"], "one for each of 4 entries, got 2"),
    "two scales": (["--latent_scale=2", "--standardise=none"], "allowed only without --standardise"),
    "steps of sampler": (["--sampler=scaled_linear_ddim", "--sampling_steps=1001"], "takes 2..1000 steps, got 1001"),
    "n": (["--n=1700"], "--n=1700: must be 64..1669"),
    "reference": (["--reference=1700"], "--reference=1700: must be 128..899"),
    "large d": (["--latent_dims=65"], "must be 1..64, the dimension of digits"),
    "one": (["--stops=1"], "--stops=1"),
    "constant": ([*SMALL, "--latents={where}/constant.npz"], "--latents="),
    "coincide": ([*SMALL, "--latents={where}/coincide.npz"], "--latents="),
    "features": ([*SMALL, "--autoencoders=pca", "--features=mine_of_test:equal"], "--features=mine_of_test:equal"),
    "late features": ([*SMALL, "--autoencoders=pca", "--features=mine_of_test:late"], "test:late: RuntimeError: out of memory"),
    "quick, latent_dims": ([Z, "--latent_dims=3", "--quick", "--stops=3"], "allowed only without --latents"),
    "one number": ([*SMALL, "--latents={where}/one.npz"], None),
}  # fmt: skip


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    where = tmp_path_factory.mktemp("recommend")
    (where / "mine_of_test.py").write_text(MODULE)
    z = np.random.default_rng(13).standard_normal((1797, 3)).astype(np.float32)
    arrays = {"z": z, "few": z[:300], "tiny": z[:100], "constant": np.ones((300, 3)), "one": z[:300, :1],
              "coincide": np.where(np.arange(300)[:, None] % 10 == 0, z[:300], 0.0)}  # fmt: skip
    for name, array in arrays.items():
        np.savez(where / f"{name}.npz", latents=array)
    arguments = {name: own for name, (own, *_) in COMMANDS.items()}
    return run_named_commands("recommend", arguments, where, drawn=("quick",))


@pytest.mark.parametrize("name", list(COMMANDS))
def test_command_ends_well_or_with_one_line(commands, name):
    workdir, status, out, err = commands[name]
    expected = COMMANDS[name][1]
    if expected is None:
        assert (status, err) == (0, "") and "recommend.json" in out
        assert {p.name for p in workdir.iterdir()} >= {"recommend.json", "records.jsonl", "curves.npz", "metadata.json"}
    else:
        assert status == 2 and err.count("\n") == 1 and expected in err, err
        assert not (workdir / "recommend.json").exists()


def test_files_say_the_same_as_the_table(commands):
    workdir, _, out, _ = commands["quick"]
    summary = json.loads((workdir / "recommend.json").read_text())
    rows = records.load_records(workdir)
    assert (
        len(rows) == 2 * 3 and len(summary["recommendations"]) == 3 and (workdir / "recommend.png").stat().st_size > 0
    )
    asked = {"metric", "latent_dim", "logsnr", "rf_time", "vp_alpha", "denoising_end", "low", "high",
             "gain", "gain_low", "gain_high", "verdict"}  # fmt: skip
    for row in summary["recommendations"]:
        assert asked <= set(row) and row["advice"] in out
        group = [r for r in rows if r["metric"] == row["metric"]]
        assert row["best"] == min(r["best"] for r in group)
        written = {"schema_version": 1, "float32_products": "highest"}
        assert {k: row[k] for k in group[0] if k not in written} | written in group
    curves = np.load(workdir / "curves.npz")
    for r in rows:
        assert r["precision"] == "float32"
        curve = curves[f"{r['name']}/{r['features']}/{r['metric']}"]
        assert r["best"] == curve.min() and r["end"] == curve[-1]
        levels, index = curves[f"{r['name']}/logsnr"], int(curve.argmin())
        assert len(levels) == len(curve) and 10 <= len(curve) <= 15 and np.isin(levels, curves["logsnr"]).all()
        assert r["logsnr"] == (None if index == len(levels) - 1 else levels[index])
        assert r["levels"] == [*levels[:-1], None]
        assert (r["training_images"], r["reference_images"], r["decoded_images"]) == (
            400,
            400,
            2400,
        )  # 3 x 2 x 400 >= 2048
    assert all(finding in out for finding in summary["latents"]) and len(summary["latents"]) == 4


def test_kinds_of_input_say_what_they_know(commands):
    summaries = {n: json.loads((commands[n][0] / "recommend.json").read_text())
                 for n in ("factory", "dimensions", "latents alone", "latents, decoder")}  # fmt: skip
    names = {n: sorted({r["name"] for r in s["recommendations"]}) for n, s in summaries.items()}
    assert names["factory"] == ["own"] and set(names["dimensions"]) <= {"own 2", "own 70"}
    assert {r["latent_dim"] for r in records.load_records(commands["dimensions"][0])} == {2, 64}
    assert "Without a decoder" in " ".join(summaries["latents alone"]["unknown"])
    assert [r["features"] for r in summaries["latents alone"]["recommendations"]] == ["latents"] * 3
    own = records.load_records(commands["latents, decoder"][0])
    assert {r["precision"] for r in own} == {None}  # of a user's functions nothing is known
    assert all(r["floor"] is not None for r in summaries["latents alone"]["recommendations"])
    assert "other latent dimensions" in " ".join(summaries["latents, decoder"]["unknown"])
    assert "and a deviation of 0.213" in summaries["latents, decoder"]["latents"][0]
    assert summaries["latents, decoder"]["recommendations"][0]["features"] == "pixels"


def test_oracle_agrees_with_the_exact_curve_used_here():
    """The formula behind the controls against the oracle's."""
    x = np.random.default_rng(14).standard_normal((60, 6)) * spectrum(6)
    x -= x.mean(axis=0)
    axes = np.linalg.svd(x, full_matrices=False)[2][:4].T
    nu = 1 / (1 + np.exp(ALL_STOPS))
    expected = oracle.w2_squared_linear_autoencoder(
        np.diag(spectrum(6) ** 2), x.T @ x / 60, axes.T, nu, latent_scale=(x @ axes).std()
    )
    np.testing.assert_allclose(exact_curve(x, 4, ALL_STOPS), expected, atol=1e-9)


def test_users_modules_are_found_in_the_working_directory(tmp_path, monkeypatch):
    (tmp_path / "mine_of_this_test.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    made = features.import_object("mine_of_this_test:factory")()
    assert isinstance(made, autoencoders.Autoencoder) and made.encode(np.ones((2, 8, 8))).shape == (2, 3)
