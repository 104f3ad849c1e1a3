"""phase_diagram, capped_scores and paper_figures: values against brute force, and what their reports show of them."""

import dataclasses

import numpy as np
import pytest
from interrupted import run_in_sessions

from experiments import capped_scores, paper_figures, phase_diagram
from experiments.launch.results import Results, read_results, write_results
from experiments.paper_figures import learned
from experiments.paper_figures.report import report as paper_report
from experiments.paper_figures.setup import PANELS
from ldmjax import data, gaussians, oracle
from ldmjax.job import NO_JOB
from ldmjax.metrics.statistics import wilson_interval
from ldmjax.random_matrices import twin_estimates


def reported(report, results, config, workdir):
    """The report of results as they are read from their files."""
    write_results(workdir, results)
    return report(read_results(workdir, config))


SPECTRUM = data.spectrum("power:1.5", 12)


def small_phase(**changes):
    config = {"n": (10, 40), "draws": 6, "noise_levels": 300, "caps": (np.inf, 5.0), "pca_draws": 1, "pca_levels": 12}
    return phase_diagram.Config(**(config | changes))


@pytest.fixture(scope="module")
def phase():
    config = small_phase()
    return phase_diagram.compute(config, SPECTRUM, NO_JOB), config


def test_noise_levels_run_from_the_start_of_sampling_to_the_end(phase):
    results, config = phase
    arrays = results.arrays
    assert arrays["noise_var"][0] == pytest.approx(1 - np.exp(-4), abs=1e-14)
    assert (
        arrays["noise_var"][-1] == 0
        and np.all(np.diff(arrays["noise_var"]) < 0)
        and arrays["times"][0] == pytest.approx(2)
    )
    np.testing.assert_allclose(1 - np.exp(-2 * arrays["times"]), arrays["noise_var"], rtol=1e-9)
    linear = small_phase(schedule="linear_vp")
    assert linear.noise_vars(5)[0] == pytest.approx(1 - np.exp(-(0.1 + 19.9 / 2)), abs=1e-14)


def test_gains_are_those_of_a_dense_search_and_never_negative(phase):
    results, config = phase
    arrays = results.arrays
    grid = np.append(0.0, np.geomspace(1e-9, config.noise_var_max, 20_001))
    for i, n in enumerate(config.n):
        for r in range(config.draws):
            chi2 = np.random.default_rng([0, n, r]).chisquare(n, 12)
            curve = oracle.w2_squared_curve(arrays["variances"], arrays["variances"] * chi2 / n, grid)
            expected = 100 * (1 - curve.min(axis=1) / curve[:, 0])
            np.testing.assert_allclose(phase_diagram.gain_percent(arrays)[i, r], expected, atol=1e-4)
            assert np.all(curve.min(axis=1) >= arrays["best"][i, r] * (1 - 1e-12))
            assert arrays["joint"][i, r, 2] == pytest.approx(curve.min(), rel=1e-6)
            assert arrays["joint"][i, r, 0] == 1 + np.argmin(curve.min(axis=1))
    assert np.all(phase_diagram.gain_percent(arrays) >= 0) and np.max(phase_diagram.gain_percent(arrays)) > 0.1


def test_first_draw_and_exact_curves_are_sums_over_components(phase):
    results, config = phase
    arrays = results.arrays
    lam, nu = arrays["variances"], arrays["noise_var"][150]
    for curve, estimated in [
        (arrays["exact"], lam),
        (arrays["first_draw"][1], twin_estimates(lam, n=40, draws=1, seed=0)[0]),
    ]:
        g = estimated + nu * (1 - estimated)
        for d in range(1, 13):
            expected = np.sum((np.sqrt(g[:d]) - np.sqrt(lam[:d])) ** 2) + lam[d:].sum()
            assert curve[d - 1, 150] == pytest.approx(expected, rel=1e-12)


def test_tolerance_costs_one_percent_with_the_exact_score(phase):
    results, config = phase
    arrays = results.arrays
    assert arrays["tolerance_noise_var"][0] == config.noise_var_max  # a variance of 1 is that of the noise: flat
    for j, d in list(enumerate(arrays["latent_dims"]))[1:-1]:
        curve = oracle.w2_squared_curve(
            arrays["variances"], arrays["variances"], [0, arrays["tolerance_noise_var"][j]]
        )[d - 1]
        assert curve[1] / curve[0] == pytest.approx(1.01, rel=1e-9)
    assert arrays["tolerance_noise_var"][-1] == 0 and np.all(np.diff(arrays["tolerance_noise_var"]) < 0)


def test_records_hold_the_shares_gains_and_caps(phase):
    results, config = phase
    arrays = results.arrays
    for row in results.of_kind("latent_dim"):
        i, j = config.n.index(row["n"]), row["latent_dim"] - 1
        before, start = (
            [nu > low for nu in arrays["best_noise_var"][i, :, j]] for low in (0, config.noise_var_max * (1 - 1e-9))
        )
        assert row["before_end_count"] == sum(before) and row["before_end_share"] == sum(before) / 6
        assert row["before_end_low"] <= row["before_end_share"] <= row["before_end_high"]
        assert row["at_start_count"] == sum(start)
        # Where something is gained the best stop is before the end, be it at the start.
        assert (row["gain_percent_max"] > 0) <= (row["before_end_count"] > 0)
        assert row["gain_percent_max"] == phase_diagram.gain_percent(arrays)[i, :, j].max()
    inf, capped = results.of_kind("cap")
    np.testing.assert_allclose(arrays["capped"][0], arrays["first_draw"][1], rtol=1e-9)
    assert inf["w2_squared_end"] == pytest.approx(arrays["first_draw"][1][:, -1].min())
    estimated = twin_estimates(arrays["variances"], n=40, draws=1, seed=0)[0]
    dim, nu, cap, distance = oracle.best_capped_stop(
        arrays["variances"],
        estimated,
        noise_vars=arrays["noise_var"],
        caps=5.0,
        noise_var_max=config.noise_var_max,
        start="marginal",
        dynamics="sde",
    )
    assert (capped["latent_dim_best"], capped["noise_var_best"], capped["w2_squared_best"]) == (dim, nu, distance)


def test_a_selection_of_latent_dims_gives_the_same_rows(phase):
    results, config = phase
    arrays = results.arrays
    some = phase_diagram.compute(small_phase(latent_dims=(7, 2)), SPECTRUM, NO_JOB).arrays
    assert some["latent_dims"].tolist() == [2, 7]
    np.testing.assert_array_equal(some["best_noise_var"], arrays["best_noise_var"][..., [1, 6]])
    np.testing.assert_array_equal(some["first_draw"], arrays["first_draw"][:, [1, 6]])
    np.testing.assert_array_equal(some["capped"], arrays["capped"][:, [1, 6]])
    np.testing.assert_array_equal(phase_diagram.gain_percent(some), phase_diagram.gain_percent(arrays)[..., [1, 6]])


def test_pca_model_is_the_bures_distance_to_held_out_images():
    samples = np.random.default_rng(0).standard_normal((60, 6)) * 0.7 ** np.arange(6)
    dataset = data.from_samples("s", samples, (6,))
    config = small_phase(n=(5,), draws=2, pca_draws=2)
    rows = phase_diagram.compute(config, dataset, NO_JOB).of_kind("pca")
    train, held_out = dataset.split(n=5, seed=0)
    assert [p["latent_dim"] for p in rows] == [1, 2, 4, 6] * 2 and {p["rank"] for p in rows} == {4}
    values, vectors = gaussians.eigh_descending(np.cov(train.T, bias=True))
    for p in rows[:4]:
        d, nu = p["latent_dim"], p["noise_var_best"]
        for key, level in [("w2_squared_end", 0.0), ("w2_squared_best", nu)]:
            generated = vectors[:, :d] * (values[:d] + level * (1 - values[:d])) @ vectors[:, :d].T
            expected = gaussians.w2_squared(held_out.mean(0), np.cov(held_out.T, bias=True), train.mean(0), generated)
            assert p[key] == pytest.approx(expected, rel=1e-7)
        assert p["gain_percent"] >= 0


def test_wilson_interval_is_the_textbook_value():
    low, high = wilson_interval(np.array([0, 5, 10]), 10)
    # Roots of (p - k/n)^2 = z^2 p (1 - p) / n with z = 1.6448536: numpy.roots([1 + z^2/n, -(2k/n + z^2/n), (k/n)^2]).
    z2 = 1.6448536269514722**2 / 10
    for share, lo, hi in zip([0, 0.5, 1], low, high, strict=True):
        roots = np.sort(np.roots([1 + z2, -(2 * share + z2), share**2]).real)
        np.testing.assert_allclose([lo, hi], roots, atol=1e-9)


def test_report_of_the_phase_diagram_shows_the_rows(phase, tmp_path):
    results, config = phase
    made = reported(phase_diagram.report, results, config, tmp_path)
    assert set(made.figures) == {"phase_diagram", "gains", "caps"} and "PCA" not in made.text
    tables = [part.splitlines() for part in made.text.split("\n\n")]
    shown = phase_diagram.shown_dims(results.arrays["latent_dims"]).size
    assert [len(lines) - 2 for lines in tables] == [2 * shown, 2, 2, 2 * shown]
    assert tables[0][0] == "Squared W2 of the twin model and its best stop, over draws:"
    first = next(r for r in results.of_kind("latent_dim") if r["latent_dim"] == 1)
    assert tables[0][2].split()[2] == f"{first['w2_squared_end_mean']:.5g}"
    assert [line.split()[0] for line in tables[2][2:]] == ["inf", "5"]


def test_rows_of_other_metrics_gain_although_the_score_is_exact(phase):
    rows = phase[0].of_kind("exact_metric")
    assert {r["metric"] for r in rows} == {"sliced_w2", "mmd"} and max(r["gain_percent"] for r in rows) > 5
    assert all(r["gain_percent"] >= 0 and r["best"] <= r["end"] for r in rows)
    assert rows[-1]["latent_dim"] == phase[0].arrays["latent_dims"][-1] and rows[-1]["gain_percent"] == 0


@pytest.fixture(scope="module")
def capped():
    config = capped_scores.Config(n=(12, 80), draws=4, caps=tuple(np.geomspace(1.5, 1e4, 9)))
    return capped_scores.compute(config, data.spectrum("exponential:0.7", 12), NO_JOB), config


def test_best_dimension_under_a_cap_is_that_of_brute_force(capped):
    results, config = capped
    arrays = results.arrays
    lam, nu_max = arrays["variances"], 1 - np.exp(-4)
    for r in range(4):
        estimated = lam * np.random.default_rng([0, 12, r]).chisquare(12, 12) / 12
        for c, cap in enumerate(arrays["caps"]):
            end = oracle.capped_variances(
                estimated, 0.0, noise_var_max=nu_max, cap=cap, start="standard", dynamics="sde"
            )[:, 0]
            distance = [((end[:d] ** 0.5 - lam[:d] ** 0.5) ** 2).sum() + lam[d:].sum() for d in range(1, 13)]
            assert arrays["best_dim"][0, r, c] == 1 + np.argmin(distance)
            assert tuple(arrays["bounds"][0, r, c]) == oracle.dimension_bounds(lam, estimated, cap)


def test_proposition_5_and_corollary_1_hold_on_their_events(capped):
    results, config = capped
    arrays = results.arrays
    for row in results.of_kind("bounds"):
        assert row["inside_bounds_count"] == row["inside_sharper_bounds_count"] == row["on_event_count"]
    assert arrays["event"][1].all()
    d1, d2 = arrays["exact_bounds"].T
    assert np.all((d1 <= arrays["exact_dim"]) & (arrays["exact_dim"] <= np.maximum(1, d2 - 1)) | (d2 == 12))
    assert arrays["corollary_event"].all()
    assert all(row["allowed_count"] == row["on_event_count"] == 4 for row in results.of_kind("corollary"))
    growth = arrays["corollary_exact_dim"] - np.log(arrays["corollary_caps"]) / np.log(20)
    assert np.all((growth > -0.5) & (growth <= 1))


def test_counts_are_those_of_brute_force(capped):
    """Also where the bounds do not hold: of draws that are wrong on purpose."""
    results, config = capped
    wrong = results.arrays | {"best_dim": np.full_like(results.arrays["best_dim"], 12)}
    for arrays in (results.arrays, wrong):
        rows = capped_scores._bound_rows(arrays, config)
        for row, (i, c) in zip(rows, np.ndindex(2, 9), strict=True):
            dims, (d1, d2) = arrays["best_dim"][i, :, c], arrays["bounds"][i, :, c].T
            sharper = [capped_scores.sharper_bound(arrays["variances"], arrays["caps"][[c]], d)[0] for d in d2[:, None]]
            for upper, name in [(d2, "inside_bounds_count"), (np.array(sharper), "inside_sharper_bounds_count")]:
                assert row[name] == sum((d1 <= dims) & (dims <= upper) & arrays["event"][i])
            assert row["on_event_count"] == arrays["event"][i].sum()
    assert any(row["inside_sharper_bounds_count"] < row["on_event_count"] for row in rows)


def test_ridge_heights_tend_to_their_limits(capped):
    results, config = capped
    arrays = results.arrays
    assert arrays["ridge_sde"][-1] == pytest.approx((1 + np.exp(-2)) / 2, rel=1e-3)
    assert arrays["ridge_ode"][-1] == pytest.approx(np.exp(-1), rel=1e-3)


def test_tuned_cap_and_stop_are_those_of_a_dense_search(capped):
    results, config = capped
    dataset = data.spectrum("exponential:0.7", 12)
    case = next(t for t in results.of_kind("tuned") if t["n"] == 12 and t["draw"] == 1 and t["latent_dim"] == t["rank"])
    values, basis = data.principal_components(dataset.twin_draws(12, seed=1))
    nu = np.append(np.geomspace(1e-6, 0.9, 2000), 0.0)
    stops = oracle.w2_squared_projected(
        dataset.covariance, basis[:, : case["latent_dim"]], oracle.stopped_variances(values[: case["latent_dim"]], nu)
    )
    assert case["w2_squared_neither"] == pytest.approx(stops[-1]) and case["w2_squared_stop"] == pytest.approx(
        stops.min(), rel=1e-4
    )
    assert case["noise_var_alone"] == pytest.approx(nu[np.argmin(stops)], rel=0.05)
    ends = [
        oracle.capped_variances(values, 0.0, noise_var_max=1 - np.exp(-4), cap=cap, start="marginal", dynamics="sde")
        for cap in np.geomspace(1.2, 1e5, 2000)
    ]
    caps = oracle.w2_squared_projected(
        dataset.covariance, basis[:, : case["latent_dim"]], np.concatenate(ends, axis=1)[: case["latent_dim"]]
    )
    assert case["w2_squared_cap"] == pytest.approx(min(caps.min(), stops[-1]), rel=1e-4)
    for t in results.of_kind("tuned"):
        assert t["w2_squared_both"] <= min(t["w2_squared_cap"], t["w2_squared_stop"]) <= t["w2_squared_neither"]
        assert t["stop_adds_percent"] == pytest.approx(100 * (1 - t["w2_squared_both"] / t["w2_squared_cap"]))


@pytest.mark.parametrize(("cap_axis", "off"), [(True, np.inf), (False, 0.0)])
def test_tune_finds_a_smooth_minimum_and_keeps_off(cap_axis, off):
    config = capped_scores.Config(zooms=6)
    axes = (
        (np.append(np.geomspace(1.2, 1e5, 12), np.inf), np.zeros(1))
        if cap_axis
        else (np.array([np.inf]), np.append(np.geomspace(0.9, 1e-6, 12), 0.0))
    )

    def valley(caps, stops):
        x = caps if cap_axis else stops
        return ((np.log(np.clip(x, 1e-300, 1e300)) - np.log(3.3 if cap_axis else 0.033)) ** 2).reshape(
            len(caps), len(stops)
        )

    found = capped_scores.tune(valley, *axes, config)
    assert found[1 if cap_axis else 2] == pytest.approx(3.3 if cap_axis else 0.033, rel=1e-3)
    rising = capped_scores.tune(
        lambda c, s: np.where((c if cap_axis else s) == off, 0.0, 1.0).reshape(len(c), len(s)), *axes, config
    )
    assert rising[0] == 0 and rising[1 if cap_axis else 2] == off


@pytest.fixture(scope="module")
def forms():
    config = paper_figures.Config(draws=400, levels=101)
    return {name: paper_figures.closed_forms(panel, config) for name, panel in PANELS.items()}


def test_thresholds_of_figure_4_are_the_papers(forms):
    # THEORY: t_d = T + log(1 - 3 lam / (1 - lam)) / 2, computed independently to five digits.
    left = forms["fig4_left"]
    np.testing.assert_allclose(left["thresholds"][3:8], [1.12412, 1.70408, 1.85419, 1.92061, 2.0], atol=5e-6)
    assert left["thresholds"][:3].tolist() == [0, 0, 0]
    for d in range(4, 8):
        for shift, better in [(-1e-3, False), (1e-3, True)]:
            nu = 1 - np.exp(-2 * (2.0 - left["thresholds"][d - 1] - shift))
            curve = oracle.w2_squared_curve(left["variances"], left["variances"], nu)[:, 0]
            assert (curve[d - 1] < curve[d - 2]) == better
    np.testing.assert_allclose(left["best_times"], 2.0)


def test_u_shape_of_figure_4_appears_in_half_of_the_draws(forms):
    right = forms["fig4_right"]
    assert (PANELS["fig4_right"].counted_dim, PANELS["fig4_right"].t_max, PANELS["fig4_right"].n) == (4, 3, 1000)
    # Binomial(400, 1/2): four standard errors.
    assert abs(right["interior_count"] / 400 - 0.5) < 4 * 0.025
    draws = twin_estimates(right["variances"], n=1000, draws=400, seed=0)
    best = [oracle.best_noise_var(right["variances"], d, noise_var_max=1 - np.exp(-6))[3] for d in draws[:40]]
    inside = paper_figures.interior_minima(right["variances"], draws[:40], 4, noise_var_max=1 - np.exp(-6))
    assert inside.tolist() == [0 < nu < 1 - np.exp(-6) for nu in best] and right["shown_draw"] == inside.tolist().index(
        True
    )
    assert right["best_times"][3] == pytest.approx(3 + 0.5 * np.log1p(-best[right["shown_draw"]]))
    assert right["best_w2_squared"][3] < right["w2_squared"][3, -1]


def test_rank_is_the_joint_optimum_of_figure_3(forms):
    low_rank = forms["fig3_low_rank"]
    assert low_rank["rank_count"] == low_rank["draws"] == 400
    k = np.argmin(low_rank["w2_squared"][5])
    assert low_rank["w2_squared"][5, k] == low_rank["w2_squared"].min()
    assert low_rank["w2_squared"][5, k] == pytest.approx(low_rank["best_w2_squared"][5], rel=1e-2)


@pytest.fixture(scope="module")
def trained(forms):
    """Few steps and samples for two curves: an estimated score on n samples, and the exact one on fresh draws."""
    chosen = {
        "fig3_decaying": dataclasses.replace(PANELS["fig3_decaying"], latent_dims=(6,)),
        "fig4_left": dataclasses.replace(PANELS["fig4_left"], latent_dims=(4,)),
    }
    config = paper_figures.Config(steps=300, samples=2048, sampling_steps=100, stops=4)
    estimates = {name: forms[name]["estimated_variances"] for name in chosen}
    return learned.measure(chosen, estimates, config)


@pytest.mark.slow
def test_learned_scores_reach_the_exact_law(forms, trained):
    assert [(r["panel"], r["latent_dim"]) for r in trained] == 4 * [("fig3_decaying", 6)] + 4 * [("fig4_left", 4)]
    for r in trained:
        own = forms[r["panel"]]
        # The Euler-Maruyama chain of the exact score is first order in its 100 steps: 12 % off in the middle.
        nearest = np.argmin(np.abs(own["times"] - r["backward_time"]))
        assert r["exact_w2_squared"] == pytest.approx(own["w2_squared"][r["latent_dim"] - 1, nearest], rel=0.15)
        error = r["w2_squared"] - r["exact_w2_squared"]
        assert r["deviation_in_standard_errors"] == pytest.approx(error / r["standard_error"])
        assert abs(r["deviation_in_standard_errors"]) < 5 and r["diverged_at_step"] is None
    for run in (trained[:4], trained[4:]):
        times = [r["backward_time"] for r in run]
        np.testing.assert_allclose(times, 2 * (1 - np.linspace(1, 0, 4) ** 1.5), atol=0.03)
        assert run[-1]["w2_squared"] == pytest.approx(run[-1]["exact_w2_squared"], rel=0.1)


@pytest.mark.slow
def test_interrupted_figures_go_on_to_the_same_records(tmp_path, monkeypatch):
    few = {name: dataclasses.replace(panel, latent_dims=(1, 2, 3)) for name, panel in PANELS.items()}
    monkeypatch.setattr(paper_figures, "PANELS", few)
    config = paper_figures.Config(draws=3, levels=11, steps=20, samples=128, sampling_steps=10, stops=3)

    def run(job):
        return paper_figures.compute(config, None, job)

    resumed, lines = run_in_sessions(run, tmp_path, at=["T = 2: 9/9"])
    sampled = [line for line in lines if "sampled" in line]
    assert sampled and all("T = 3" in line for line in sampled)
    whole = run(NO_JOB)
    np.testing.assert_equal(list(resumed.rows), list(whole.rows))
    np.testing.assert_equal(resumed.arrays, whole.arrays)


def test_report_puts_learned_points_over_their_panels(forms, tmp_path):
    """Made-up points in one panel: 8 with a dimension of its own, and a caption that says what they are."""
    config = paper_figures.Config(draws=400, levels=101, learned=False)
    results = paper_figures.compute(config, None, NO_JOB)
    made = reported(paper_report, results, config, tmp_path)
    assert set(made.figures) == {"figure_3", "figure_4"} and "learned" not in made.text
    assert [len(axes.containers) for axes in made.figures["figure_4"].axes] == [0] * 4
    named = {"kind": "learned", "panel": "fig4_left", "latent_dim": 4, "diverged_at_step": None}
    numbers = {"w2_squared": 0.5, "standard_error": 0.1, "exact_w2_squared": 0.21}
    points = [
        named | numbers | {"backward_time": t, "deviation_in_standard_errors": d} for t, d in [(1.0, -2.9), (2.0, 2.0)]
    ]
    made = reported(paper_report, Results(rows=[*results.rows, *points], arrays=results.arrays), config, tmp_path)
    assert [len(axes.containers) for axes in made.figures["figure_4"].axes] == [1, 0, 0, 0]
    captions = [" ".join(text.get_text().split()) for text in made.figures["figure_4"].texts]
    assert any("Open markers" in text for text in captions)
    assert "largest deviation 2.9 standard errors (fig4_left, d = 4), root mean square 2.49 over 2 stops" in made.text
    assert "t_5 = 1.70408" in " ".join(captions)


def test_learned_scores_are_trained_on_the_estimates_of_their_panel(forms):
    for name, panel in PANELS.items():
        estimated = forms[name]["estimated_variances"]
        latents = learned.training_latents(panel, estimated, 3)
        assert len(latents.sample) == (panel.n or 2)
        np.testing.assert_allclose(np.mean(latents.sample**2, axis=0), estimated, rtol=1e-12)
        np.testing.assert_allclose(latents.fresh_factor @ latents.fresh_factor.T, np.diag(estimated), rtol=1e-12)


def test_with_the_exact_score_noise_gains_by_other_metrics_not_by_w2():
    """Variances k^-1.5, D = 32, d = 8: by W2 noise only costs, by sliced W2 and MMD it fills in for dropped components."""
    variances = np.arange(1, 33) ** -1.5
    generated = oracle.stopped_variances(variances, [0.0, 0.05])
    np.testing.assert_allclose(oracle.w2_squared_from_variances(variances, generated)[7], [0.335, 0.368], atol=5e-4)
    unit = np.random.default_rng(0).standard_normal((4000, 32))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    sliced = oracle.sliced_w2_squared_from_variances(variances, generated, 8, directions=unit)
    np.testing.assert_allclose(sliced, [6.95e-4, 2.01e-4], rtol=0.06)
    mmd = oracle.mmd_squared_from_variances(variances, generated, 8, bandwidth=2.0)
    np.testing.assert_allclose(mmd, [1.22e-3, 3.67e-4], rtol=0.01)
    for k in (0, 1):  # against the closed forms of general covariances
        laws = (
            np.zeros(32),
            np.diag(np.where(np.arange(32) < 8, generated[:, k], 0.0)),
            np.zeros(32),
            np.diag(variances),
        )
        assert mmd[k] == pytest.approx(gaussians.mmd_squared(*laws, bandwidth=2.0))
        assert sliced[k] == pytest.approx(gaussians.sliced_w2_squared(*laws, directions=unit))
