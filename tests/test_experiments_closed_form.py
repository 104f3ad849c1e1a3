"""phase_diagram, capped_scores and paper_figures: values against brute force, files, reruns and refusals."""

import dataclasses
import json

import numpy as np
import pytest
from commands import run_commands
from interrupted import lines_until

from experiments import capped_scores, paper_figures, phase_diagram
from experiments.paper_figures import learned, report
from ldmjax import data, gaussians, oracle, plotting, records, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

FILES = {
    "phase_diagram": ["caps.png", "gains.png", "phase_diagram.png"],
    "capped_scores": ["dimensions.png", "substitutes.png"],
    "paper_figures": ["figure_3.png", "figure_4.png"],
}
SMALL = {
    "phase_diagram": ["--n=30,60", "--latent_dims=1,8,64", "--schedule=linear_vp"],
    "capped_scores": ["--spectrum=exponential:0.5", "--data_dim=10", "--n=8", "--dynamics=ode"],
    "paper_figures": ["--seed=3", "--nolearned"],
}


def small_phase(**changes):
    config = {"n": (10, 40), "draws": 6, "noise_levels": 300, "caps": (np.inf, 5.0), "pca_draws": 1, "pca_levels": 12}
    return phase_diagram.Config(**(config | changes))


@pytest.fixture(scope="module")
def phase():
    config = small_phase()
    return phase_diagram.run(data.spectrum("power:1.5", 12), config), config


def test_noise_levels_run_from_the_start_of_sampling_to_the_end(phase):
    result, config = phase
    assert result.noise_var[0] == pytest.approx(1 - np.exp(-4), abs=1e-14)
    assert result.noise_var[-1] == 0 and np.all(np.diff(result.noise_var) < 0) and result.times[0] == pytest.approx(2)
    np.testing.assert_allclose(1 - np.exp(-2 * result.times), result.noise_var, rtol=1e-9)
    linear = small_phase(schedule=schedules.LinearVP())
    assert linear.noise_vars(5)[0] == pytest.approx(1 - np.exp(-(0.1 + 19.9 / 2)), abs=1e-14)


def test_gains_are_those_of_a_dense_search_and_never_negative(phase):
    result, config = phase
    grid = np.append(0.0, np.geomspace(1e-9, config.noise_var_max, 20_001))
    for i, n in enumerate(config.n):
        for r in range(config.draws):
            chi2 = np.random.default_rng([0, n, r]).chisquare(n, 12)
            curve = oracle.w2_squared_curve(result.variances, result.variances * chi2 / n, grid)
            expected = 100 * (1 - curve.min(axis=1) / curve[:, 0])
            np.testing.assert_allclose(result.gain_percent[i, r], expected, atol=1e-4)
            assert np.all(curve.min(axis=1) >= result.best[i, r] * (1 - 1e-12))
            assert result.joint[i, r, 2] == pytest.approx(curve.min(), rel=1e-6)
            assert result.joint[i, r, 0] == 1 + np.argmin(curve.min(axis=1))
    assert np.all(result.gain_percent >= 0) and np.max(result.gain_percent) > 0.1


def test_first_draw_and_exact_curves_are_sums_over_components(phase):
    result, config = phase
    lam, nu = result.variances, result.noise_var[150]
    for curve, estimated in [
        (result.exact, lam),
        (result.first_draw[1], phase_diagram.twin_estimates(lam, n=40, draws=1, seed=0)[0]),
    ]:
        g = estimated + nu * (1 - estimated)
        for d in range(1, 13):
            expected = np.sum((np.sqrt(g[:d]) - np.sqrt(lam[:d])) ** 2) + lam[d:].sum()
            assert curve[d - 1, 150] == pytest.approx(expected, rel=1e-12)


def test_tolerance_costs_one_percent_with_the_exact_score(phase):
    result, config = phase
    assert result.tolerance_noise_var[0] == config.noise_var_max  # a variance of 1 is that of the noise: flat
    for j, d in list(enumerate(result.latent_dims))[1:-1]:
        curve = oracle.w2_squared_curve(result.variances, result.variances, [0, result.tolerance_noise_var[j]])[d - 1]
        assert curve[1] / curve[0] == pytest.approx(1.01, rel=1e-9)
    assert result.tolerance_noise_var[-1] == 0 and np.all(np.diff(result.tolerance_noise_var) < 0)


def test_records_hold_the_shares_gains_and_caps(phase):
    result, config = phase
    rows = phase_diagram.make_records(result, config)
    for row in (r for r in rows if r["kind"] == "latent_dim"):
        i, j = config.n.index(row["n"]), row["latent_dim"] - 1
        before, start = (
            [nu > low for nu in result.best_noise_var[i, :, j]] for low in (0, config.noise_var_max * (1 - 1e-9))
        )
        assert row["before_end_count"] == sum(before) and row["before_end_share"] == sum(before) / 6
        assert row["before_end_low"] <= row["before_end_share"] <= row["before_end_high"]
        assert row["at_start_count"] == sum(start)
        # Where something is gained the best stop is before the end, be it at the start.
        assert (row["gain_percent_max"] > 0) <= (row["before_end_count"] > 0)
        assert row["gain_percent_max"] == result.gain_percent[i, :, j].max()
    inf, capped = (r for r in rows if r["kind"] == "cap")
    np.testing.assert_allclose(result.capped[0], result.first_draw[1], rtol=1e-9)
    assert inf["w2_squared_end"] == pytest.approx(result.first_draw[1][:, -1].min())
    estimated = phase_diagram.twin_estimates(result.variances, n=40, draws=1, seed=0)[0]
    dim, nu, cap, distance = oracle.best_capped_stop(
        result.variances, estimated, noise_vars=result.noise_var, caps=5.0, noise_var_max=config.noise_var_max,
        start="marginal", dynamics="sde",
    )  # fmt: skip
    assert (capped["latent_dim_best"], capped["noise_var_best"], capped["w2_squared_best"]) == (dim, nu, distance)


def test_a_selection_of_latent_dims_gives_the_same_rows(phase):
    result, config = phase
    some = phase_diagram.run(data.spectrum("power:1.5", 12), small_phase(latent_dims=(7, 2)))
    assert some.latent_dims.tolist() == [2, 7]
    np.testing.assert_array_equal(some.best_noise_var, result.best_noise_var[..., [1, 6]])
    np.testing.assert_array_equal(some.first_draw, result.first_draw[:, [1, 6]])
    np.testing.assert_array_equal(some.capped, result.capped[:, [1, 6]])
    np.testing.assert_array_equal(some.gain_percent, result.gain_percent[..., [1, 6]])


def test_pca_model_is_the_bures_distance_to_held_out_images():
    samples = np.random.default_rng(0).standard_normal((60, 6)) * 0.7 ** np.arange(6)
    dataset = data.from_samples("s", samples, (6,))
    config = small_phase(n=(5,), draws=2)
    result = phase_diagram.run(dataset, config)
    train, held_out = dataset.split(n=5, seed=0)
    assert [p["latent_dim"] for p in result.pca] == [1, 2, 4, 6] and {p["rank"] for p in result.pca} == {4}
    values, vectors = gaussians.eigh_descending(np.cov(train.T, bias=True))
    for p in result.pca:
        d, nu = p["latent_dim"], p["noise_var_best"]
        for key, level in [("w2_squared_end", 0.0), ("w2_squared_best", nu)]:
            generated = vectors[:, :d] * (values[:d] + level * (1 - values[:d])) @ vectors[:, :d].T
            expected = gaussians.w2_squared(held_out.mean(0), np.cov(held_out.T, bias=True), train.mean(0), generated)
            assert p[key] == pytest.approx(expected, rel=1e-7)
        assert p["gain_percent"] >= 0


def test_wilson_interval_is_the_textbook_value():
    low, high = phase_diagram.wilson_interval(np.array([0, 5, 10]), 10)
    # Roots of (p - k/n)^2 = z^2 p (1 - p) / n with z = 1.6448536: numpy.roots([1 + z^2/n, -(2k/n + z^2/n), (k/n)^2]).
    z2 = 1.6448536269514722**2 / 10
    for share, lo, hi in zip([0, 0.5, 1], low, high, strict=True):
        roots = np.sort(np.roots([1 + z2, -(2 * share + z2), share**2]).real)
        np.testing.assert_allclose([lo, hi], roots, atol=1e-9)


@pytest.mark.parametrize("change", [{"n": (1,)}, {"n": ()}, {"draws": 0}, {"noise_levels": 1}, {"logsnr_max": -9.0}])
def test_phase_diagram_refuses_bad_configurations(change):
    with pytest.raises(ValueError, match=next(iter(change))):
        small_phase(**change)


@pytest.fixture(scope="module")
def capped():
    config = capped_scores.Config(n=(12, 80), draws=4, caps=tuple(np.geomspace(1.5, 1e4, 9)))
    return capped_scores.run(data.spectrum("exponential:0.7", 12), config), config


def test_best_dimension_under_a_cap_is_that_of_brute_force(capped):
    result, config = capped
    lam, nu_max = result.variances, 1 - np.exp(-4)
    for r in range(4):
        estimated = lam * np.random.default_rng([0, 12, r]).chisquare(12, 12) / 12
        for c, cap in enumerate(result.caps):
            end = oracle.capped_variances(
                estimated, 0.0, noise_var_max=nu_max, cap=cap, start="standard", dynamics="sde"
            )[:, 0]
            distance = [((end[:d] ** 0.5 - lam[:d] ** 0.5) ** 2).sum() + lam[d:].sum() for d in range(1, 13)]
            assert result.best_dim[0, r, c] == 1 + np.argmin(distance)
            assert tuple(result.bounds[0, r, c]) == oracle.dimension_bounds(lam, estimated, cap)


def test_proposition_5_and_corollary_1_hold_on_their_events(capped):
    result, config = capped
    assert result.violations.tolist() == [[0, 0], [0, 0]] and result.event[1].all()
    d1, d2 = result.exact_bounds.T
    assert np.all((d1 <= result.exact_dim) & (result.exact_dim <= np.maximum(1, d2 - 1)) | (d2 == 12))
    assert result.corollary_event.all() and np.all(capped_scores.corollary_hits(result))
    growth = result.corollary_exact_dim - np.log(result.corollary_caps) / np.log(20)
    assert np.all((growth > -0.5) & (growth <= 1))


def test_violations_are_counted(capped):
    result, config = capped
    wrong = capped_scores.dataclasses.replace(result, best_dim=np.full_like(result.best_dim, 12))
    printed = result.bounds[..., 1]
    uppers = np.stack([printed, capped_scores.sharper_bound(result.variances, result.caps, printed)])
    expected = np.sum((uppers < 12) & result.event[..., None], axis=(2, 3))
    np.testing.assert_array_equal(wrong.violations, expected)
    assert np.all(expected[1] >= expected[0]) and np.all(expected[0] > 0)


def test_ridge_heights_tend_to_their_limits(capped):
    result, config = capped
    assert result.ridge["sde"][-1] == pytest.approx((1 + np.exp(-2)) / 2, rel=1e-3)
    assert result.ridge["ode"][-1] == pytest.approx(np.exp(-1), rel=1e-3)


def test_tuned_cap_and_stop_are_those_of_a_dense_search(capped):
    result, config = capped
    dataset = data.spectrum("exponential:0.7", 12)
    case = next(t for t in result.tuned if t["n"] == 12 and t["draw"] == 1 and t["latent_dim"] == t["rank"])
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
    for t in result.tuned:
        assert t["w2_squared_both"] <= min(t["w2_squared_cap"], t["w2_squared_stop"]) <= t["w2_squared_neither"]
        assert t["stop_adds_percent"] == pytest.approx(100 * (1 - t["w2_squared_both"] / t["w2_squared_cap"]))


@pytest.mark.parametrize(("cap_axis", "off"), [(True, np.inf), (False, 0.0)])
def test_tune_finds_a_smooth_minimum_and_keeps_off(cap_axis, off):
    config = capped_scores.Config(zooms=6)
    axes = (np.append(np.geomspace(1.2, 1e5, 12), np.inf), np.zeros(1)) if cap_axis else (
        np.array([np.inf]), np.append(np.geomspace(0.9, 1e-6, 12), 0.0))  # fmt: skip

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
def panels():
    return paper_figures.run(paper_figures.Config(draws=400, levels=101))


def test_thresholds_of_figure_4_are_the_papers(panels):
    # THEORY: t_d = T + log(1 - 3 lam / (1 - lam)) / 2, computed independently to five digits.
    left = panels["fig4_left"]
    np.testing.assert_allclose(left.thresholds[3:8], [1.12412, 1.70408, 1.85419, 1.92061, 2.0], atol=5e-6)
    assert left.thresholds[:3].tolist() == [0, 0, 0]
    for d in range(4, 8):
        for shift, better in [(-1e-3, False), (1e-3, True)]:
            nu = 1 - np.exp(-2 * (2.0 - left.thresholds[d - 1] - shift))
            curve = oracle.w2_squared_curve(left.variances, left.variances, nu)[:, 0]
            assert (curve[d - 1] < curve[d - 2]) == better
    np.testing.assert_allclose(left.best_times, 2.0)


def test_u_shape_of_figure_4_appears_in_half_of_the_draws(panels):
    right = panels["fig4_right"]
    assert right.counted_dim == 4 and right.t_max == 3 and right.n == 1000
    # Binomial(400, 1/2): four standard errors.
    assert abs(right.interior_count / 400 - 0.5) < 4 * 0.025
    draws = phase_diagram.twin_estimates(right.variances, n=1000, draws=400, seed=0)
    best = [oracle.best_noise_var(right.variances, d, noise_var_max=1 - np.exp(-6))[3] for d in draws[:40]]
    flags = paper_figures.interior_minima(right.variances, draws[:40], 4, noise_var_max=1 - np.exp(-6))
    assert flags.tolist() == [0 < nu < 1 - np.exp(-6) for nu in best] and right.shown_draw == flags.tolist().index(True)
    assert right.best_times[3] == pytest.approx(3 + 0.5 * np.log1p(-best[right.shown_draw]))
    assert right.best_w2_squared[3] < right.w2_squared[3, -1]


def test_rank_is_the_joint_optimum_of_figure_3(panels):
    low_rank = panels["fig3_low_rank"]
    assert low_rank.rank_count == low_rank.draws == 400
    k = np.argmin(low_rank.w2_squared[5])
    assert low_rank.w2_squared[5, k] == low_rank.w2_squared.min()
    assert low_rank.w2_squared[5, k] == pytest.approx(low_rank.best_w2_squared[5], rel=1e-2)


def test_learned_points_are_drawn_on_their_panel():
    points = plotting.Points(
        latent_dim=4, x=np.array([1.0]), w2_squared=np.array([0.5]), standard_error=np.array([0.1])
    )
    panels = paper_figures.run(paper_figures.Config(draws=2, levels=11), learned={"fig4_left": [points]})
    assert panels["fig4_left"].points == (points,) and panels["fig4_right"].points == ()
    figure = report.draw([panels["fig4_left"]], "caption")
    assert [len(axes.containers) for axes in figure.axes] == [1, 0]
    with pytest.raises(ValueError, match="no panel 'fig5'"):
        paper_figures.run(paper_figures.Config(draws=1), learned={"fig5": [points]})


@pytest.fixture(scope="module")
def trained(panels):
    """Few steps and samples for two curves: an estimated score on n samples, and the exact one on fresh draws."""
    shown = {
        "fig3_decaying": dataclasses.replace(panels["fig3_decaying"], latent_dims=(6,)),
        "fig4_left": dataclasses.replace(panels["fig4_left"], latent_dims=(4,)),
    }
    config = learned.LearnedConfig(steps=300, samples=2048, sampling_steps=100, stops=4)
    return shown, learned.measure(shown, config, lambda line: None)


@pytest.mark.slow
def test_learned_scores_reach_the_exact_law(panels, trained):
    shown, curves = trained
    assert [(c.panel, c.latent_dim) for c in curves] == [("fig3_decaying", 6), ("fig4_left", 4)]
    for curve in curves:
        panel = shown[curve.panel]
        np.testing.assert_allclose(curve.backward_times, 2 * (1 - np.linspace(1, 0, 4) ** 1.5), atol=0.03)
        # The Euler-Maruyama chain of the exact score is first order in its 100 steps: 12 % off in the middle.
        nearest = np.argmin(np.abs(panel.times[:, None] - curve.backward_times), axis=0)
        np.testing.assert_allclose(curve.exact_w2_squared, panel.w2_squared[curve.latent_dim - 1, nearest], rtol=0.15)
        assert curve.w2_squared[-1] == pytest.approx(curve.exact_w2_squared[-1], rel=0.1)
        assert np.all(np.abs(curve.deviation) < 5) and curve.failed_at == -1


@pytest.mark.slow
def test_interrupted_figures_go_on_to_the_same_records(tmp_path):
    closed = paper_figures.Config(draws=3, levels=11)
    config = learned.LearnedConfig(steps=20, samples=128, sampling_steps=10, stops=3)

    def start(store, until=""):
        lines, note = lines_until(until)
        panels = paper_figures.run(closed, store=store)
        panels = {name: dataclasses.replace(p, latent_dims=(1, 2, 3)) for name, p in panels.items()}
        curves = learned.measure(panels, config, note, store)
        rows = paper_figures.make_records(panels) + learned.make_records(curves)
        return json.dumps(records.plain(rows)), lines

    store = Store(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        start(store, until="T = 2: 9/9")
    resumed, lines = start(store)
    assert lines and all("T = 3" in line for line in lines)
    assert resumed == start(NOTHING_KEPT)[0]


def test_learned_scores_are_trained_on_the_estimates_of_their_panel(panels):
    for panel in panels.values():
        latents = learned.training_latents(panel, 3)
        assert len(latents.sample) == (panel.n or 2)
        np.testing.assert_allclose(np.mean(latents.sample**2, axis=0), panel.estimated_variances, rtol=1e-12)
        np.testing.assert_allclose(
            latents.fresh_factor @ latents.fresh_factor.T, np.diag(panel.estimated_variances), rtol=1e-12
        )


@pytest.mark.slow
def test_learned_records_and_captions(panels, trained):
    shown, curves = trained
    rows = learned.make_records(curves)
    assert len(rows) == 8 and {r["kind"] for r in rows} == {"learned"}
    for row in rows:
        error = row["w2_squared"] - row["exact_w2_squared"]
        assert row["deviation_in_standard_errors"] == pytest.approx(error / row["standard_error"])
    pointed = paper_figures.with_points(panels, learned.points(curves))
    assert pointed["fig3_decaying"].points[0].latent_dim == 6 and pointed["fig4_right"].points == ()
    assert "Open markers" in report.captions(pointed)["figure_3"] and "Open" not in report.captions(panels)["figure_3"]
    worst = max(abs(r["deviation_in_standard_errors"]) for r in rows)
    assert f"largest deviation {worst:.1f} standard errors" in report.table(panels, curves).splitlines()[-1]


REFUSED = [
    ("phase_diagram", "--data=faces", "unknown data"),
    ("phase_diagram", "--data={where}/nan.npz", "NaN"),
    ("phase_diagram", "--data={where}/text.npz", "text.npz"),
    ("phase_diagram", "--data={where}/absent.npz", "no file"),
    ("phase_diagram", "--spectrum={where}/negative.npy", "negative variance"),
    ("phase_diagram", "--spectrum=cubic:2", "unknown spectrum"),
    ("phase_diagram", "--latent_dims=65", "1..64"),
    ("phase_diagram", "--latent_dims=0", ">= 1"),
    ("phase_diagram", "--n=1", ">= 2"),
    ("phase_diagram", "--n=", "comma-separated"),
    ("phase_diagram", "--n=1796", "2..1795"),
    ("phase_diagram", "--caps=1", "> 1"),
    ("phase_diagram", "--caps=nan", "> 1"),
    ("phase_diagram", "--t_max=-1", "> 0"),
    ("phase_diagram", "--t_max=400", "noise variance in (0, 1)"),
    ("phase_diagram", "--draws=0", ">= 1"),
    ("phase_diagram", "--schedule=cosine", "ou, linear_vp"),
    ("phase_diagram", "--latent_dimensions=3", "latent_dimensions"),
    ("phase_diagram", "stray", "stray"),
    ("capped_scores", "--caps=0.5,20", "> 1"),
    ("capped_scores", "--caps=inf", "> 1"),
    ("capped_scores", "--n=2.5", "whole numbers"),
    ("capped_scores", "--dynamics=pde", "sde, ode"),
    ("capped_scores", "--t_max=nan", "finite"),
    ("paper_figures", "--draws=none", "draws"),
    ("paper_figures", "--workdir={where}/text.npz/x", "cannot write"),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    """All commands of this module: --quick into first/, again from flags.txt into second/, and every refusal."""
    where = tmp_path_factory.mktemp("runs")
    np.savez(where / "nan.npz", x=np.full((8, 3), np.nan))
    (where / "text.npz").write_text("not an archive")
    np.save(where / "negative.npy", np.array([1.0, -0.5]))
    cases = [(name, ["--quick", f"--workdir={where / name / 'first'}", *SMALL[name]]) for name in FILES]
    cases += [
        (name, [f"--flagfile={where / name / 'first' / 'flags.txt'}", f"--workdir={where / name / 'second'}"], False)
        for name in FILES
    ]
    cases += [
        (name, [f"--workdir={where / f'out{i}'}", flag.format(where=where)])
        for i, (name, flag, _) in enumerate(REFUSED)
    ]
    answers = run_commands(cases, where)
    return where, answers[: 2 * len(FILES)], answers[2 * len(FILES) :]


@pytest.mark.parametrize("name", FILES)
def test_command_writes_its_files_and_reruns_to_the_same_bytes(commands, name):
    where, answers, _ = commands
    index = list(FILES).index(name)
    for answer in (answers[index], answers[index + len(FILES)]):
        assert answer[0] == 0 and answer[2] == "" and "results in" in answer[1]
    first, second = where / name / "first", where / name / "second"
    assert sorted(p.name for p in first.iterdir()) == sorted(
        [*FILES[name], "checkpoints", "curves.npz", "flags.txt", "metadata.json", "records.jsonl"]
    )
    for file in ["records.jsonl", "flags.txt"]:
        assert (first / file).read_bytes() == (second / file).read_bytes(), file
    assert all((first / file).read_bytes().startswith(b"\x89PNG") for file in FILES[name])
    assert "workdir" not in (first / "flags.txt").read_text() and "--quick" in (first / "flags.txt").read_text()
    assert json.loads((first / "metadata.json").read_text())["seconds"] > 0


def test_records_of_the_command_match_the_function(commands):
    where = commands[0]
    config = phase_diagram.Config(
        n=(30, 60),
        latent_dims=(1, 8, 64),
        draws=4,
        noise_levels=60,
        pca_draws=1,
        pca_levels=20,
        schedule=schedules.LinearVP(),
    )
    result = phase_diagram.run(data.digits(), config)
    loaded = records.load_records(where / "phase_diagram" / "first")
    first = {"schema_version": 1, "precision": "float32", "float32_products": "highest"}
    expected = [records.plain(first | row) for row in phase_diagram.make_records(result, config)]
    assert loaded == expected
    with np.load(where / "phase_diagram" / "first" / "curves.npz") as curves:
        np.testing.assert_array_equal(curves["first_draw"], result.first_draw)
        np.testing.assert_array_equal(curves["best_noise_var"], result.best_noise_var)
    with np.load(where / "paper_figures" / "first" / "curves.npz") as curves:
        np.testing.assert_allclose(curves["fig4_left_thresholds"][3], 1.12412, atol=5e-6)
    tuned = [r for r in records.load_records(where / "capped_scores" / "first") if r["kind"] == "tuned"]
    assert len(tuned) == 4 and {r["dynamics"] for r in tuned} == {"ode"}


def test_digits_are_the_default_and_have_the_pca_model(commands):
    where = commands[0] / "phase_diagram" / "first"
    kinds = [r["kind"] for r in records.load_records(where)]
    assert kinds.count("latent_dim") == 6 and kinds.count("pca") >= 6
    assert json.loads((where / "metadata.json").read_text())["data_sha256"] == data.digits().digest


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[f"{c[0]} {c[1]}" for c in REFUSED])
def test_bad_input_is_one_line_and_touches_nothing(commands, index):
    where, _, answers = commands
    flag, reason = REFUSED[index][1].format(where=where), REFUSED[index][2]
    status, out, err = answers[index]
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    name, _, value = flag.lstrip("-").partition("=")
    # absl names an unknown flag without its value.
    assert name in err and (value in err or "Unknown" in err) and reason in err
    assert not (where / f"out{index}").exists()


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


def test_rows_of_other_metrics_are_in_the_table(phase):
    result, config = phase
    rows = [r for r in phase_diagram.make_records(result, config) if r["kind"] == "exact_metric"]
    assert {r["metric"] for r in rows} == {"sliced_w2", "mmd"} and max(r["gain_percent"] for r in rows) > 5
    assert all(r["gain_percent"] >= 0 and r["best"] <= r["end"] for r in rows)
    assert rows[-1]["latent_dim"] == result.latent_dims[-1] and rows[-1]["gain_percent"] == 0
    assert phase_diagram.table(result, config).count("exact score, d =") == len(rows)
