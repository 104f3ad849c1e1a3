"""recommendation: controls with a known answer, stops in every sampler's words, the choice, answers, tables and figures."""

import dataclasses

import numpy as np
import pytest
from interrupted import run_in_sessions
from recommend_points import (
    exact_curve,
    made_record,
    of_true_second_moment,
    pca_candidate,
    small_candidate,
    spectrum,
)

from ldmjax import autoencoders, gaussians, metrics, oracle, pipelines, schedules, stopping
from ldmjax.recommendation import Candidate, RecommendationConfig, compare, measuring, report
from ldmjax.recommendation.choice import choose

EARLY, NONE, UNKNOWN = stopping.VERDICTS
GRADED = np.arange(128.0)[:, None]
ALL_STOPS = np.append(np.linspace(-2.0, 11.0, 19), np.inf)
FEW = RecommendationConfig(stops=4, samples=160)


def answer(x, held_out, d, **options):
    return compare([pca_candidate(x, held_out, d)], RecommendationConfig(samples=2048, stops=12, **options))


@pytest.fixture(scope="module", params=[0, 1, 2])
def scarce(request):
    """Few points in many dimensions, d at the rank: noise is a ridge for the missing variance."""
    rng = np.random.default_rng([3, request.param])
    x, held_out = rng.standard_normal((70, 80)) * spectrum(80), rng.standard_normal((1500, 80)) * spectrum(80)
    return x, answer(x, held_out, 69)


def test_few_points_in_many_dimensions_ask_for_an_early_stop(scarce):
    x, outcome = scarce
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
    assert set(outcome.config.logsnrs) <= set(logsnrs) and record["levels"] == [*logsnrs[:-1], None]


@pytest.mark.parametrize("seed", range(4))
def test_latents_of_the_true_second_moment_never_ask_for_an_early_stop(seed):
    rng = np.random.default_rng([4, seed])
    x = of_true_second_moment(rng, 100)
    np.testing.assert_allclose(x.T @ x / 100, np.diag(spectrum(16) ** 2), atol=1e-12)
    outcome = answer(x, rng.standard_normal((1500, 16)) * spectrum(16), 12)
    (choice,) = outcome.recommendations
    assert choice["verdict"] != EARLY and choice["advice"].startswith(("do not stop early", "cannot tell"))
    assert choice["images_needed"] is None or choice["images_needed"][1] > choice["images_needed"][0] >= 1500


def test_record_of_a_run(scarce):
    x, outcome = scarce
    (record,) = outcome.records
    about = {
        "name": "pca",
        "features": "data",
        "metric": "w2",
        "latent_dim": 69,
        "training_images": 70,
        "reference_images": 1500,
        "feature_dim": 80,
        "readout": "rescaled",
        "squared": True,
    }
    assert {key: record[key] for key in about} == about
    for key in ("logsnr", "low"):
        assert record[key] in record["levels"]
    z = np.linalg.svd(x - x.mean(axis=0), full_matrices=False)[1][:69]
    assert record["latent_std"] == pytest.approx(np.sqrt(np.sum(z**2) / x.shape[0] / 69), rel=1e-5)
    (choice,) = outcome.recommendations
    found = {"tied": ["pca"], "advice": choice["advice"], "choice": "best"}
    assert choice | found == record | found and record["compared"] == "images"
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

    candidate = Candidate(
        name="x", latents=candidate.latents, decode=decode, measures=candidate.measures, training=None
    )
    config = RecommendationConfig(samples=512, stops=3)
    (record,) = compare([candidate], config).records
    assert set(seen) == {record["decoded_images"]} and seen[0] >= 512


def test_configuration_reaches_the_noisy_autoencoder(monkeypatch):
    rng, seen, at_best = np.random.default_rng(16), [], {}
    candidate = pca_candidate(rng.standard_normal((150, 5)), rng.standard_normal((128, 5)), 3)
    monkeypatch.setattr(measuring, "choose", lambda rows, values: at_best.update(values) or choose(rows, values))

    def decode(z):
        seen.append(len(z))
        return candidate.decode(z)

    def run(**options):
        config = RecommendationConfig(samples=128, stops=5, **options)
        own = dataclasses.replace(candidate, decode=decode)
        return compare([own], config)

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
    assert np.mean(at_best["pca", "data", "w2"]) == pytest.approx(outcome.records[0]["best"])


def test_interval_that_reaches_the_end_has_no_number():
    candidate = pca_candidate(np.random.default_rng(17).standard_normal((80, 5)), np.ones((128, 5)) * GRADED, 3)
    result = stopping.StoppingResult(
        curve=np.ones(4),
        standard_error=np.ones(4),
        end=1.0,
        best=1.0,
        best_stop=3,
        best_stop_low=1,
        best_stop_high=3,
        gain=0.0,
        gain_low=-1.0,
        gain_high=1.0,
        verdict=UNKNOWN,
    )
    config = RecommendationConfig(stops=4)
    scale = autoencoders.LatentScale(mean=0.0, std=2.0)
    levels = {"logsnrs": config.logsnrs}
    row = measuring.make_record(candidate, "data", "w2", result, {("data", "w2"): 0.5}, scale, config, **levels)
    assert (row["logsnr"], row["low"], row["high"]) == (None, config.logsnrs[1], None) and row["floor"] == 0.5
    assert row["rf_time"] == 0.0 and row["images_needed"] == stopping.images_needed(result, images=128)
    earlier = dataclasses.replace(result, best_stop=1, best_stop_low=0, best_stop_high=2)
    row = measuring.make_record(candidate, "data", "w2", earlier, {}, scale, config, **levels)
    assert [row[k] for k in ("low", "logsnr", "high")] == config.logsnrs[:3].tolist() and row["floor"] is None


# Stops in the sampler's words.


@pytest.mark.parametrize("sampler", pipelines.NAMES)
@pytest.mark.parametrize("logsnr", [-1.5, 0.0, 2.25, 7.0])
def test_stop_fields_are_one_stop(sampler, logsnr):
    found = measuring.stop_fields(logsnr, RecommendationConfig(sampler=sampler))
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
        found = measuring.stop_fields(None, RecommendationConfig(sampler=sampler))
        end = 1.0 if sampler.startswith("scaled_linear") else None
        assert found == {
            "logsnr": None,
            "step": None,
            "timestep": None,
            "denoising_end": end,
            "sigma": 0.0,
            "rf_time": 0.0,
            "vp_alpha": 1.0,
            "divide_by": 1.0,
        }
    # Levels that the sampler does not have are no stops.
    levels = RecommendationConfig(sampler="scaled_linear_ddim").logsnrs
    assert np.diff(levels[:-1]) == pytest.approx(9.0694 / 19, abs=1e-4) and levels[-2] < 7.0 and np.isinf(levels[-1])
    assert RecommendationConfig().logsnrs[-2] == 11.0
    assert (
        measuring.stop_fields(2.0, RecommendationConfig(sampler="flow_matching", readout="state"))["divide_by"] == 1.0
    )


def test_stops_of_a_sampler_with_steps_are_after_them():
    config = RecommendationConfig(sampler="flow_matching", shift=3.0, sampling_steps=28)
    levels = pipelines.levels(config.pipeline, 28)
    for logsnr in config.logsnrs[:-1]:
        found = measuring.stop_fields(logsnr, config)
        assert levels[found["step"]] == pytest.approx(logsnr) and found["logsnr"] == logsnr
    assert measuring.stop_fields(None, config)["step"] == 28
    assert (
        config.chain.sampler == "euler_ode"
        and dataclasses.replace(config, solver="dpmpp_2m").chain.sampler == "dpmpp_2m"
    )


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("sampling_steps", {"sampler": "scaled_linear_ddim", "sampling_steps": 2000}),
        ("sampling_steps", {"sampler": "edm", "sampling_steps": 2}),
        ("readout", {"sampler": "edm", "readout": "state"}),
        ("readout", {"readout": "none"}),
        ("shift", {"shift": 3.0}),
        ("shift", {"sampler": "flow_matching", "tokens": -1}),
        ("sampler", {"sampler": "ddim"}),
        ("solver", {"solver": "euler_ode"}),
        ("stops", {"stops": 1}),
        ("latent_scale", {"latent_scale": [1.0, 0.0]}),
        ("latent_scale", {"latent_scale": 2.0, "standardise": "none"}),
        ("latent_shift", {"latent_shift": np.inf}),
    ],
)
def test_what_does_not_go_together_is_refused_by_its_name(name, options):
    with pytest.raises(ValueError, match=f"^{name}: "):
        RecommendationConfig(**options)


def test_what_is_noticed_stands_in_the_answer():
    rng = np.random.default_rng(7)
    x, held_out = rng.standard_normal((100, 6)) * spectrum(6), rng.standard_normal((1000, 6)) * spectrum(6)
    candidate = pca_candidate(x, held_out, 4)
    moved = dataclasses.replace(
        candidate,
        latents=candidate.latents + np.float32([9, -9, 5, 0]),
        decode=lambda z: candidate.decode(z - [9, -9, 5, 0]),
    )
    outcome = compare([moved], RecommendationConfig(stops=4, samples=256))
    assert "channels differ much" in outcome.noticed[0]
    assert "Noticed in these inputs" in outcome.table()
    clean = compare([candidate], RecommendationConfig(stops=4, samples=256))
    assert clean.noticed == [] and "Noticed" not in clean.table()


# The choice and the advice.


def choices(rows, at_best=None):
    """{name: choice} of records; their pseudo-values are their best distances, unless given."""
    plain = {(r["name"], "pixels", r["metric"]): np.full(4, r["best"] or 0.0) for r in rows}
    return {(r["name"], r["metric"]): r["choice"] for r in choose(rows, at_best or plain)}


def chosen(bests, *, noise=0.0, common=0.0, **changes):
    """Names of (best, tied) records."""
    rng = np.random.default_rng(8)
    shared, at_best = rng.standard_normal(64), {}
    for name, best in bests.items():
        own = rng.standard_normal(64)
        at_best[name, "pixels", "w2"] = best + noise * (own - own.mean()) + common * shared
    found = choices([made_record(name, best, **changes) for name, best in bests.items()], at_best)
    return tuple("".join(name for (name, _), word in found.items() if word == wanted) for wanted in ("best", "tied"))


def test_choice_is_the_smallest_and_names_what_is_as_good():
    assert chosen({"a": 5.0, "b": 4.0, "c": 4.03}) == ("b", "c")  # 4.03 is within 1 %
    assert chosen({"a": 4.05, "b": 4.0}) == ("b", "")
    # Difference 1 with a standard error of sqrt(2) / 2.83 = 0.5: t = 2; with twice the noise it may be chance.
    assert chosen({"a": 5.0, "b": 4.0}, noise=2.0) == ("b", "")
    assert chosen({"a": 5.0, "b": 4.0}, noise=5.0) == ("b", "a")
    # What all share is no reason to doubt.
    assert chosen({"a": 5.0, "b": 4.0}, common=50.0) == ("b", "")
    assert chosen({"a": 0.0, "b": 4.0}) == ("a", "")


def test_one_choice_per_group():
    assert chosen({"a": 5.0, "b": 4.0}, compared="latents") == ("ab", "")
    rows = [made_record("a", 1.0), made_record("a", 1.0, metric="mmd"), made_record("b", 2.0, metric="mmd")]
    assert choices(rows) == {("a", "w2"): "best", ("a", "mmd"): "best", ("b", "mmd"): None}


def test_what_is_not_finite_is_not_chosen():
    rows = [made_record("a", None), made_record("b", 3.0)]
    assert choices(rows) == {("a", "w2"): None, ("b", "w2"): "best"}
    assert choices(rows[:1]) == {("a", "w2"): None}


def test_advice_for_every_verdict():
    at = "stop at timestep 100 (in SDXL denoising_end = 0.900)"
    assert report.advice(made_record("a", 9.0)) == f"{at}: the distance falls by 10.0 %"
    assert (
        report.advice(made_record("a", 9.9, verdict=NONE))
        == "do not stop early: a model that has learned the law gains less than 1 %, networks may gain more"
    )
    text = report.advice(made_record("a", 9.0, divide_by=0.8))
    assert text == f"{at} and divide the latent by 0.800 before decoding: the distance falls by 10.0 %"
    text = report.advice(made_record("a", 9.0, end_standard_error=6.0))
    assert text == f"{at}: the distance falls by 1, from an end that cannot be told from 0"
    text = report.advice(made_record("a", 9.0, verdict=UNKNOWN, images_needed=(4000, 12345)))
    assert text == "cannot tell: run to the end; about 4e+03 to 1.2e+04 held-out images would let it"
    text = report.advice(made_record("a", 9.0, verdict=UNKNOWN, images_needed=(201, 12345)))
    assert text == "cannot tell: run to the end; up to 1.2e+04 held-out images would let it"
    assert report.advice(made_record("a", 9.0, verdict=UNKNOWN)) == "cannot tell: run to the end"
    assert report.advice(made_record("a", -1.0)) == f"{at}: the distance falls by 100.0 %"  # estimates below 0


def test_a_stop_is_said_in_the_words_of_its_sampler():
    def words(sampler, logsnr, **options):
        config = RecommendationConfig(sampler=sampler, **options)
        fields = measuring.stop_fields(logsnr, config)
        return report.stop_words(fields | {"sampler": sampler, "sampling_steps": config.sampling_steps})

    assert words("scaled_linear_euler", 2.0) == "at timestep 111 (in SDXL denoising_end = 0.889)"
    assert words("linear_beta_ddim", 2.0) == "at timestep 107"
    assert words("flow_matching", 2.0) == words("rectified_flow", 2.0) == "at sigma = 0.269"
    assert words("edm", 2.0) == "at sigma = 0.184" and words("linear_vp", 2.0) == "at alpha = 0.939"
    config = RecommendationConfig(sampler="flow_matching", shift=3.0, sampling_steps=28)
    level = config.logsnrs[np.argmin(np.abs(config.logsnrs - 2.0))]
    assert words("flow_matching", level, shift=3.0, sampling_steps=28) == "after 24 of 28 steps (at sigma = 0.278)"
    assert words("flow_matching", None, shift=3.0, sampling_steps=28) == "at the end"


@pytest.mark.parametrize("rows", [128, 400])
def test_what_is_unknown(rows):
    rng = np.random.default_rng(0)
    reference = metrics.FeatureReference(rng.standard_normal((rows, 200)), metrics=["w2"])
    measures, z = {"pixels": metrics.Measure(lambda x: x, reference)}, rng.standard_normal((80, 200)).astype(np.float32)
    both = [Candidate(name=n, latents=z, decode=lambda z: z, measures=measures, training=None) for n in ("a", "b")]
    config = RecommendationConfig(stops=2, samples=160, passes=1)
    lines = compare(both, config).unknown
    assert len(lines) == 2 + (rows == 128) and "lose variance" in lines[1]
    if rows == 128:
        assert "128 images for 200 pixels features" in lines[2] and "202 images would" in lines[2]
    assert "other latent dimensions" in compare(both[:1], config).unknown[-1]
    alone = compare(both, config, compared="latents").unknown
    assert "Without a decoder" in alone[-1] and "image" not in " ".join(alone)


def test_the_answer():
    """One line on the best of the first distance; other distances are named where they say something else."""
    curves, rest = {}, {"latent_dim": 4, "low": 1.5, "high": None, "reference_rank": 3, "feature_dim": 2}

    def found(*records):
        return report.Recommendation(records=records, curves=curves, config=FEW)

    rows = [made_record("a", 9.0, choice="best", **rest), made_record("b", 9.05, choice="tied", **rest)]
    text = found(*rows).answer
    assert text.startswith(
        "a (latent dimension 4, as good as b), by the squared Fréchet distance of pixels: stop at timestep 100"
    )
    assert text.endswith("Verdict: stop early; the 90 % interval of the best stop is logsnr 1.5 to end.")
    other = made_record("c", 3.0, metric="mmd", choice="best", verdict=UNKNOWN, **rest)
    assert found(*rows, other).answer == f"{text} Other distances: c, cannot tell, by the squared MMD of pixels."
    assert found(*rows, made_record("b", 3.0, metric="mmd", choice="best", **rest)).answer == text
    apart = [dict(row, choice="best", compared="latents") for row in rows]
    assert [line.split()[0] for line in found(*apart).answer.splitlines()] == ["a", "b"]
    assert found(made_record("a", None, choice=None)).answer == "cannot tell: no distance is finite"


@pytest.mark.parametrize("solver", ["euler_ode", "dpmpp_2m"])
def test_a_sampler_with_few_steps_stops_after_steps_and_earlier(solver):
    """Latents with the training points' own law: without the loss no stop gains, with few Euler steps an early one does."""
    rng = np.random.default_rng([4, 0])
    x = of_true_second_moment(rng, 400)
    held_out = rng.standard_normal((4000, 16)) * spectrum(16)
    perfect = answer(x, held_out, 16)
    few = answer(x, held_out, 16, sampling_steps=10, solver=solver)
    assert len(few.config.logsnrs) == 8 and np.all(np.isin(few.config.logsnrs, few.config.chain.logsnrs))
    record, without = few.records[0], perfect.records[0]
    assert record["sampling_steps"] == 10 and record["solver"] == solver
    assert without["sampling_steps"] is None and without["solver"] is None
    z = np.linalg.svd(x, full_matrices=False)[1] ** 2 / 400
    scale = record["latent_std"]
    kept = oracle.variance_kept(z / scale**2, schedules.RectifiedFlow(), 10, sampler=solver)[1][-1]
    exact = gaussians.w2_squared(np.zeros(16), np.diag(kept * z), np.zeros(16), np.diag(z))
    assert record["end"] == pytest.approx(exact, abs=4 * record["end_standard_error"])
    assert record["end"] > without["end"] + 2 * record["end_standard_error"]
    if solver == "euler_ode":
        assert record["verdict"] == EARLY and without["verdict"] != EARLY


def test_candidates_see_the_same_images_and_noise():
    """Paired: a candidate that is there twice is tied, with exactly the same numbers."""
    outcome = compare([small_candidate(11, name=name) for name in ("a", "b")], FEW)
    np.testing.assert_array_equal(outcome.curves["a/data/w2"], outcome.curves["b/data/w2"])
    assert outcome.recommendations[0]["tied"] == ["a", "b"]


def test_interrupted_job_ends_with_the_same(tmp_path):
    both, config = [small_candidate(16, d, name=f"pca {d}") for d in (2, 3)], dataclasses.replace(FEW, passes=1)
    alone = compare(both, config, compared="latents")
    again, lines = run_in_sessions(
        lambda job: compare(both, config, compared="latents", job=job),
        tmp_path,
        at=["pca 2: noisy autoencoder: level 4/4", "pca 3: noisy autoencoder: level 4/4"],
    )
    assert again.findings == alone.findings and set(alone.findings) < set(lines)
    assert not any(line.startswith("pca 2: noisy") for line in lines) and "pca 3: noisy" in lines[-1]
    assert (again.records, again.recommendations) == (alone.records, alone.recommendations)
    for name, values in again.curves.items():
        np.testing.assert_array_equal(values, alone.curves[name])


def test_configuration_levels():
    np.testing.assert_allclose(RecommendationConfig().logsnrs, ALL_STOPS)
    assert len(RecommendationConfig(stops=2).logsnrs) == 2


@pytest.mark.parametrize("stops", [2, 3])
def test_figure_and_table_of_few_stops(stops):
    outcome = compare([small_candidate(12)], dataclasses.replace(FEW, stops=stops))
    assert outcome.records[0]["verdict"] in outcome.table()
    figure = outcome.figure()
    shown = outcome.curves["pca/data/w2"]
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), np.where(shown > 0, shown, np.nan))
    assert np.all(np.isfinite(figure.axes[0].lines[0].get_xdata()))


def test_interval_is_drawn_where_it_was_found(scarce):
    _, outcome = scarce
    record = dict(outcome.records[0])
    outcome = dataclasses.replace(outcome, records=[record])
    # The interval of these draws is one level wide; a wider one shows which end is which.
    levels = record["levels"]
    record["low"], record["high"] = levels[1], None
    panel = outcome.figure().axes[0]
    x_of = dict(zip([*levels[:-1], None], panel.lines[0].get_xdata(), strict=True))
    across, up = (bars.get_segments()[0] for bars in panel.containers[0][2])
    np.testing.assert_allclose(across, [[x_of[record[k]], record["best"]] for k in ("low", "high")])
    error = outcome.curves["pca/data/w2/standard_error"][levels.index(record["logsnr"])]
    np.testing.assert_allclose(up, [[x_of[record["logsnr"]], record["best"] + sign * error] for sign in (-2, 2)])
    row = next(line for line in outcome.table().splitlines() if line.startswith("data"))
    assert f"{record['logsnr']:.1f} [" in row and record["verdict"] in row and row.endswith("best")


def test_figure_and_table_without_a_finite_distance():
    good = small_candidate(15, name="own 3")
    lost = dataclasses.replace(good, name="own 4", decode=lambda z: np.full((len(z), 5), np.inf))
    outcome = compare([good, lost], FEW)
    assert outcome.records[1]["verdict"] == UNKNOWN and outcome.records[1]["best"] is None
    assert [r["tied"] for r in outcome.recommendations] == [["own 3"]]
    assert "own 3" in outcome.table() and len(outcome.figure().axes[0].lines) >= 2
    alone = compare([lost], FEW)
    assert alone.recommendations == [] and "Not known" in alone.table() and "inf" in alone.table()


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
