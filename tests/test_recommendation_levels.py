"""recommendation where the best stop is at an edge of the levels or in one cell, and where the end cannot be told from 0."""

import dataclasses
import re

import numpy as np
import pytest
from recommend_points import exact_curve, made_record, of_true_second_moment, pca_candidate, spectrum

from ldmjax import autoencoders, schedules, stopping
from ldmjax.job import Job
from ldmjax.recommendation import RecommendationConfig, compare, levels, measuring, report

EARLY, NONE, UNKNOWN = stopping.VERDICTS
GRID = np.array([-2.0, 0.0, 2.0, 4.0, 6.0, 8.0, 10.0, np.inf])
FINE = np.linspace(-8.0, 30.0, 77)


def reading(best, low, high, *, curve=None, error=0.01, verdict=EARLY):
    curve = np.ones(len(GRID)) if curve is None else np.asarray(curve)
    return stopping.StoppingResult(
        curve=curve,
        standard_error=np.full(len(curve), error),
        end=curve[-1],
        best=curve.min(),
        best_stop=best,
        best_stop_low=low,
        best_stop_high=high,
        gain=0.0,
        gain_low=-1.0,
        gain_high=1.0,
        verdict=verdict,
    )


def missing(*results, most=10, chain=None):
    return levels.missing_levels(GRID, results, most=most, chain=chain, negligible=0.01)


# Which levels are missing.


def test_an_interval_that_is_wide_and_not_at_an_edge_needs_no_more_levels():
    assert missing(reading(3, 2, 4)).size == 0 and missing(reading(7, 4, 7), reading(4, 3, 7)).size == 0
    assert missing(reading(None, None, None)).size == 0
    assert missing(reading(3, 3, 3), most=0).size == 0


@pytest.mark.parametrize("interval", [(3, 3, 3), (3, 2, 3), (3, 3, 4)])
def test_an_interval_of_one_cell_is_refined_with_its_neighbours(interval):
    found = missing(reading(*interval))
    low, high = GRID[interval[1] - 1], GRID[interval[2] + 1]
    assert 4 <= len(found) <= 10 and np.all((low < found) & (found < high)) and not np.isin(found, GRID).any()
    steps = np.diff(np.sort([*found, *GRID[(low <= GRID) & (high >= GRID)]]))
    np.testing.assert_allclose(steps, steps[0])  # every cell by as much
    assert steps[0] <= 2.0 / 3


def test_levels_beyond_the_edges():
    np.testing.assert_allclose(missing(reading(0, 0, 4), most=4), [-10.0, -8.0, -6.0, -4.0])
    np.testing.assert_allclose(missing(reading(6, 2, 6), most=4), [12.0, 14.0, 16.0, 18.0])
    np.testing.assert_allclose(
        missing(reading(6, 2, 7), most=4), [12.0, 14.0, 16.0]
    )  # of a flat end it is one by chance
    falling = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 1.0])
    np.testing.assert_allclose(missing(reading(7, 4, 7, curve=falling), most=2), [12.0, 14.0])
    flat_end = np.array([9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 1.005, 1.0])
    assert missing(reading(7, 4, 7, curve=flat_end)).size == 0
    # A distance that cannot be told from 0 has no share that matters: two standard errors stand for it.
    assert missing(reading(7, 4, 7, curve=flat_end - 1.0, error=1.0)).size == 0


def test_curves_of_one_candidate_share_the_levels_that_may_be_added():
    many = [reading(k, k, k) for k in range(1, 6)]
    for most in (1, 3, 6):
        found = missing(*many, reading(0, 0, 3), most=most)
        assert 1 <= len(found) <= most and len(np.unique(found)) == len(found)
    both = missing(reading(0, 0, 4), reading(6, 3, 6), most=10)
    assert np.sum(both < -2.0) == np.sum(both > 10.0) == 5


def test_a_sampler_adds_its_own_levels_alone():
    chain = stopping.Chain(schedules.RectifiedFlow(), 100, "euler_ode")
    own = chain.logsnrs[:-1]
    grid = np.append(own[[20, 40, 60, 80, 90]], np.inf)
    for result, low, high in (
        (reading(2, 2, 2, curve=np.ones(6)), grid[1], grid[3]),
        (reading(0, 0, 2, curve=np.ones(6)), -np.inf, grid[0]),
        (reading(4, 2, 5, curve=np.ones(6)), grid[4], np.inf),
    ):
        found = levels.missing_levels(grid, [result], most=6, chain=chain, negligible=0.01)
        assert 3 <= len(found) <= 6 and np.isin(found, own).all() and np.all((low < found) & (found < high))
    complete = np.append(own[:5], np.inf)
    assert (
        levels.missing_levels(complete, [reading(2, 2, 2, curve=np.ones(6))], most=6, chain=chain, negligible=0.01).size
        == 0
    )
    few = stopping.Chain(schedules.RectifiedFlow(), 6, "euler_ode")
    for best in (0, 2, 4, 5):
        falling = reading(best, best, best, curve=np.arange(6.0)[::-1] + 1.0)
        assert levels.missing_levels(few.logsnrs, [falling], most=6, chain=few, negligible=0.01).size == 0


def test_names_of_the_edges():
    def edge(result, **options):
        return levels.edge_of(result, GRID, negligible=0.01, **options)

    falling = np.arange(8.0)[::-1] + 1.0
    assert [edge(reading(best, 0, 7, curve=falling)) for best in (0, 1, 5, 6, 7, None)] == [
        "first",
        None,
        None,
        "last",
        "end",
        None,
    ]
    with np.errstate(all="raise"):
        assert edge(reading(None, None, None, curve=np.full(8, np.inf))) is None
    assert edge(reading(7, 7, 7)) is None and edge(reading(7, 7, 7, curve=falling, error=60.0)) is None
    # After a sampler's last step with noise there is no other stop than the end.
    steps = stopping.Chain(schedules.RectifiedFlow(), 8, "euler_ode")
    result = reading(7, 7, 7, curve=falling)
    assert levels.edge_of(result, steps.logsnrs, chain=steps, negligible=0.01) is None


def test_a_sampler_has_no_levels_beyond_its_own():
    falling = reading(7, 7, 7, curve=np.arange(8.0)[::-1] + 1.0)
    how = {"most": 10, "negligible": 0.01}
    found = levels.missing_levels(GRID, [falling], **how)
    assert len(found) and found.min() > GRID[-2]
    cut = levels.missing_levels(GRID, [falling], span=(-np.inf, found[1] + 1e-9), **how)
    assert cut.tolist() == found[:2].tolist()
    assert levels.missing_levels(GRID, [falling], span=(-np.inf, GRID[-2]), **how).size == 0
    assert levels.edge_of(falling, GRID, span=(-np.inf, GRID[-2]), negligible=0.01) is None
    # At an edge beyond which the sampler has nothing it is no edge.
    for best, span in ((0, (GRID[0], np.inf)), (6, (-np.inf, GRID[-2]))):
        result = reading(best, best, best, curve=np.arange(8.0)[::-1] + 1.0)
        assert levels.edge_of(result, GRID, span=span, negligible=0.01) is None
        assert levels.edge_of(result, GRID, negligible=0.01) is not None
    few = stopping.Chain(schedules.RectifiedFlow(), 2, "euler_ode")
    assert levels.edge_of(reading(0, 0, 1, curve=np.ones(2)), few.logsnrs, chain=few, negligible=0.01) == "last"
    config = RecommendationConfig(sampler="scaled_linear_euler")
    assert config.span == pytest.approx((-5.364, 7.069), abs=2e-3)


# What comes of it, against exact curves.


def points(seed=0, *, decay=1.5, n=70):
    rng, deviations = np.random.default_rng([3, seed]), spectrum(80, decay=decay)
    return rng.standard_normal((n, 80)) * deviations, rng.standard_normal((1500, 80)) * deviations


def answer(candidate, **options):
    config = RecommendationConfig(**{"samples": 2048, "stops": 12} | options)
    outcome = compare([candidate], config)
    return outcome, outcome.records[0]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("shift", [10.0, 14.0])
def test_an_optimum_beyond_the_cleanest_level_is_found(seed, shift):
    """Latents divided by too large a number: one pass sees the distance fall to the end, and would say "no gain"."""
    x, held_out = points(seed)
    candidate = pca_candidate(x, held_out, 69)
    scale = float(candidate.latents.std()) * np.exp(shift / 2)
    _, alone = answer(candidate, latent_scale=1.0 / scale, passes=1)
    assert (alone["logsnr"], alone["edge"], alone["verdict"], alone["images_needed"]) == (None, "end", UNKNOWN, None)
    outcome, record = answer(candidate, latent_scale=1.0 / scale)
    exact = exact_curve(x, 69, np.append(FINE, np.inf), scale=scale)
    best = FINE[exact[:-1].argmin()]
    assert best > 11.0 and record["logsnr"] == pytest.approx(best, abs=1.2)
    assert record["edge"] is None and record["verdict"] == EARLY
    assert record["gain"] == pytest.approx(exact[-1] - exact.min(), rel=0.5)
    assert len(record["levels"]) == 12 + 6 and "<=" not in outcome.table()


def test_an_optimum_beyond_all_levels_has_no_verdict_and_says_so():
    x, held_out = points()
    candidate = pca_candidate(x, held_out, 69)
    scale = float(candidate.latents.std()) * np.exp(24.0 / 2)
    outcome, record = answer(candidate, latent_scale=1.0 / scale)
    exact = exact_curve(x, 69, np.append(FINE, np.inf), scale=scale)
    assert exact[-1] - exact.min() > 0.05 * exact[-1]  # there is something to gain
    assert (record["logsnr"], record["edge"], record["verdict"], record["images_needed"]) == (
        None,
        "end",
        UNKNOWN,
        None,
    )
    (chosen,) = outcome.recommendations
    assert chosen["advice"].startswith(
        "cannot tell: run to the end; the distance still falls from logsnr 18.8 to the end"
    )
    assert "<= end" in outcome.table() and "may lie beyond" in outcome.table()


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("options", [{}, {"logsnr_min": 0.0}, {"sampling_steps": 60, "logsnr_min": -1.0}])
def test_an_optimum_beyond_the_noisiest_level_is_found(seed, options):
    """Nearly isotropic points: noise mends the spread of variances that few points show."""
    x, held_out = points(seed, decay=0.2)
    candidate = pca_candidate(x, held_out, 69)
    outcome, alone = answer(candidate, passes=1, **options)
    assert alone["edge"] == "first" and alone["verdict"] == EARLY and alone["logsnr"] == alone["levels"][0]
    assert outcome.recommendations[0]["advice"].endswith("the best stop may be earlier still")
    assert f"<= {alone['logsnr']:.1f} [" in outcome.table()
    outcome, record = answer(candidate, **options)
    exact = exact_curve(x, 69, FINE, decay=0.2)
    assert (
        record["edge"] is None
        and record["logsnr"] < alone["logsnr"]
        and "may" not in outcome.recommendations[0]["advice"]
    )
    if "sampling_steps" not in options:
        assert record["logsnr"] == pytest.approx(FINE[exact.argmin()], abs=0.7)
    assert len(record["levels"]) == 12 + 6


def test_an_edge_that_is_not_passed_is_said():
    """Isotropic points: pure noise is best, so that every noisier level is better."""
    x, held_out = points(decay=0.0)
    candidate = pca_candidate(x, held_out, 69)
    outcome, record = answer(candidate)
    assert (record["edge"], record["logsnr"], record["verdict"]) == ("first", record["levels"][0], EARLY)
    assert len(record["levels"]) == 12 + 6  # half as many again
    assert outcome.recommendations[0]["advice"].endswith(
        "this is the noisiest level tried: the best stop may be earlier still"
    )
    assert f"<= {record['logsnr']:.1f} [" in outcome.table()
    # All steps of a sampler: there is no earlier stop.
    outcome, record = answer(candidate, sampling_steps=4)
    assert (record["edge"], record["logsnr"], record["verdict"]) == (None, record["levels"][0], EARLY)
    assert len(record["levels"]) == 4 and "may be earlier" not in outcome.recommendations[0]["advice"]


def test_the_last_step_before_the_end_is_said_to_be_that():
    """Euler's steps lose variance, which noise makes good: the last stop of few is best, and none is nearer the end."""
    rng = np.random.default_rng([4, 0])
    x = of_true_second_moment(rng, 400)
    candidate = pca_candidate(x, rng.standard_normal((4000, 16)) * spectrum(16), 16)
    outcome, record = answer(candidate, sampling_steps=4)
    assert np.isin(record["levels"][:-1], RecommendationConfig(sampling_steps=4).chain.logsnrs).all()
    assert (record["edge"], record["logsnr"], record["verdict"]) == ("last", record["levels"][-2], EARLY)
    assert f">= {record['logsnr']:.1f} [" in outcome.table()
    assert outcome.recommendations[0]["advice"].endswith(
        "this is the last stop tried before the end: more sampling steps have later ones"
    )
    finer, record = answer(candidate, sampling_steps=20)
    assert record["edge"] is None and "tried" not in finer.recommendations[0]["advice"]


@pytest.mark.parametrize("seed", range(3))
def test_an_interval_of_one_cell_becomes_finer(seed):
    """Twelve levels: the interval is one level, 1.3 from the next; after the second pass the steps around it are a third."""
    x, held_out = points(seed)
    candidate = pca_candidate(x, held_out, 69)
    near = np.linspace(1.0, 5.0, 41)
    best = near[exact_curve(x, 69, near).argmin()]
    (_, one), (_, two) = (answer(candidate, passes=passes) for passes in (1, 2))
    assert one["low"] == one["high"] and one["edge"] is two["edge"] is None
    steps = np.diff(two["levels"][:-1])
    around = steps[np.abs(np.array(two["levels"][:-2]) - two["logsnr"]) < 0.6]
    assert around.max() < 0.35 * 1.3 and len(two["levels"]) <= 12 + 6
    assert abs(two["logsnr"] - best) < 0.4 and abs(two["logsnr"] - best) < abs(one["logsnr"] - best)
    assert two["low"] - 0.33 <= best <= two["high"] + 0.33


def test_two_passes_are_one_pass_over_all_levels():
    """Common random numbers: added levels have the same latents and noise, so that gains over others are as sure."""
    x, held_out = points()
    candidate = pca_candidate(x, held_out, 69)
    scale = autoencoders.LatentScale.measure(candidate.latents)
    config = RecommendationConfig(stops=8, samples=1024)
    found, values = measuring.measure_passes(candidate, scale, config)
    assert len(found) == 8 + 4 and np.all(np.diff(found) > 0) and set(config.logsnrs) <= set(found)
    whole = stopping.noisy_autoencoder(
        scale.standardise(candidate.latents),
        lambda z: candidate.decode(scale.unstandardise(z)),
        candidate.measures,
        logsnrs=found,
        samples=config.decoded(70),
        seed=config.seed,
        report=lambda line: None,
    )
    np.testing.assert_allclose(values["data", "w2"], whole["data", "w2"], rtol=1e-9)
    _, other = measuring.measure_passes(candidate, scale, dataclasses.replace(config, seed=1))
    assert np.all(other["data", "w2"][:, 0] != values["data", "w2"][:, 0])


def test_candidates_have_their_own_levels_and_one_figure():
    x, held_out = points()
    candidate = [pca_candidate(x, held_out, d, name=f"pca {d}") for d in (69, 20)]
    config = RecommendationConfig(stops=12, samples=2048, latent_scale=1.0)
    outcome = compare(candidate, config)
    own = [outcome.curves[f"pca {d}/logsnr"] for d in (69, 20)]
    assert len(own[0]) != len(own[1]) or np.any(own[0] != own[1])
    np.testing.assert_array_equal(outcome.curves["logsnr"], np.unique(np.concatenate(own)))
    for record, levels_of in zip(outcome.records, own, strict=True):
        curve = outcome.curves[f"{record['name']}/data/w2"]
        assert record["levels"] == [*levels_of[:-1], None] and len(curve) == len(levels_of)
        assert record["best"] == curve.min()
        assert (np.inf if record["logsnr"] is None else record["logsnr"]) == levels_of[curve.argmin()]
    drawn = {line.get_label(): line.get_xdata() for line in outcome.figure().axes[0].lines}
    for record, levels_of in zip(outcome.records, own, strict=True):
        np.testing.assert_array_equal(drawn[record["name"]][:-1], levels_of[:-1])
    # The end has one place.
    assert drawn["pca 69"][-1] == drawn["pca 20"][-1] > outcome.curves["logsnr"][-2]


def test_a_clear_answer_gets_no_more_levels_and_no_word_on_edges():
    """A wide interval that ends at the end of sampling: nothing is added, nothing is said."""
    rng, lines = np.random.default_rng([6, 0]), []
    x, held_out = rng.standard_normal((100, 16)) * spectrum(16), rng.standard_normal((600, 16)) * spectrum(16)
    config = RecommendationConfig(stops=12, samples=2048)
    outcome = compare([pca_candidate(x, held_out, 12)], config, job=Job(show=lines.append))
    (record,) = outcome.records
    assert record["edge"] is None and len(record["levels"]) == 12 and "more noise levels" not in " ".join(lines)
    assert not any(words in outcome.table() for words in ("<=", ">=", "beyond"))


# A distance at the end that cannot be told from 0.


@pytest.mark.parametrize(("error", "told"), [(0.4, True), (0.6, False), (5.0, False)])
def test_a_gain_without_percent_stands_beside_no_number_of_images(error, told):
    result = dataclasses.replace(
        reading(3, 1, 7, error=error, verdict=UNKNOWN), gain=0.02, gain_low=-0.5, gain_high=0.5
    )
    needed = stopping.images_needed(result, images=1000)
    assert (needed is not None) == told == stopping.is_told(result.end, error)
    record = made_record(
        end=1.0, end_standard_error=error, gain=0.02, verdict=UNKNOWN, images_needed=needed, reference_images=1000
    )
    assert np.isnan(report.percent(record, "gain")) != told
    text = report.advice(record)
    assert bool(re.search(r"[0-9] held-out images would let it", text)) == told
    assert told or text == (
        "cannot tell: run to the end, whose distance cannot be told from 0; how many held-out images would let it is not known"
    )


@pytest.mark.parametrize("seed", range(3))
def test_an_end_at_zero_has_a_dash_and_no_number(seed):
    """The true law at the end: all components, its own second moment."""
    rng = np.random.default_rng([4, seed])
    x = of_true_second_moment(rng, 400)
    outcome, record = answer(pca_candidate(x, rng.standard_normal((500, 16)) * spectrum(16), 16))
    told = stopping.is_told(record["end"], record["end_standard_error"])
    row = next(line for line in outcome.table().splitlines() if line.startswith("data"))
    assert not told and " - " in row and record["images_needed"] is None and record["verdict"] != EARLY
    assert "about" not in outcome.recommendations[0]["advice"]


@pytest.mark.parametrize("verdict", [EARLY, NONE, UNKNOWN])
def test_words_on_edges_are_in_the_advice_for_stopping_alone(verdict):
    record = made_record(verdict=verdict, edge="first")
    assert bool(report.beyond(record)) == (verdict == EARLY)
    record = made_record(verdict=verdict, edge="last")
    assert ("later still" in report.beyond(record)) == (verdict == EARLY)
