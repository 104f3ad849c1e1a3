"""coverage: laws and truths are exact, controls cannot gain, draws are kept one by one, tables count what they say."""

import json

import numpy as np
import pytest

from experiments import coverage
from experiments.coverage import few_rows, noisy, report, sampler
from experiments.coverage.laws import SHAPES, Law
from experiments.launch import Results, read_results, write_results
from ldmjax import data
from ldmjax.job import Job

COVARIANCE = np.diag(data.spectrum_variances("power:1.5", 8))
SAMPLER = sampler.Case(name="sampler", covariance=COVARIANCE, latent_dim=3, n=40, samples=256, stops=5)
LAW = Law(variances=np.diag(COVARIANCE))
NOISY = noisy.Case(name="noisy", law=LAW, latent_dim=3, n=40, reference=200, stops=8, samples=256, metrics=("w2",))


@pytest.mark.parametrize(
    ("module", "case", "place"),
    [(sampler, SAMPLER, "make_row"), (noisy, NOISY, "analyse")],
    ids=["sampler", "noisy"],
)
def test_an_interrupted_case_goes_on_to_the_same_records(monkeypatch, tmp_path, module, case, place):
    original, calls = getattr(module, place), []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(module, place, counted)
    how = {"draws": 5, "first_seed": 7}
    with pytest.raises(KeyboardInterrupt):
        coverage.run_case(case, job=Job(tmp_path), **how)
    kept = len(list((tmp_path / "pieces").glob("*.json")))
    assert kept >= 2
    resumed = coverage.run_case(case, job=Job(tmp_path), **how)
    assert len(calls) == 4 + 5 - kept
    assert json.dumps(resumed, default=float) == json.dumps(coverage.run_case(case, **how), default=float)
    assert [row["seed"] for row in resumed] == [7, 8, 9, 10, 11]


def test_exact_score_is_on_its_law_and_never_stops_early():
    """The debiased curve stays within 5 standard errors of the exact discretised law at every stop."""
    case = sampler.Case(
        name="exact", covariance=COVARIANCE, latent_dim=3, estimate="exact", samples=1024, steps=40, stops=5
    )
    rows = coverage.run_case(case, draws=4)
    assert len(rows) == 4 and max(row["worst_deviation"] for row in rows) < 5
    assert not any(row["verdict"] == "stop early" for row in rows)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_intervals_hold_an_interior_optimum_as_often_as_they_say(index):
    rows = coverage.run_case(sampler.default_cases(100)[index], draws=100, first_seed=5000)
    inside = [row["covered"] for row in rows if row["interior"]]
    assert 0.85 <= np.mean(inside) <= 0.99


@pytest.mark.parametrize("shape", SHAPES)
def test_a_law_has_the_covariance_and_the_quantiles_that_it_says(shape):
    law = Law(variances=np.array([2.0, 1.0, 0.25]), shape=shape)
    x = law.draw(np.random.default_rng(0), 400_000)
    np.testing.assert_allclose(np.cov(x.T), law.covariance, atol=0.03)
    np.testing.assert_allclose(x.mean(axis=0), 0.0, atol=0.02)
    matrix, u, ranks = np.array([[1.0, 0.5, 0.0], [0.0, 1.0, -1.0]]), np.array([0.6, 0.8]), np.linspace(0.02, 0.98, 25)
    rng = np.random.default_rng(1)
    moved = (x @ matrix.T + 0.3 + np.sqrt(0.1) * rng.standard_normal((len(x), 2))) @ u
    found = law.mixture.mapped(matrix, 0.3, noise=0.1).quantiles(u, ranks)
    np.testing.assert_allclose(found, np.quantile(moved, ranks), atol=0.03)


@pytest.mark.parametrize("metric", ["mmd", "sliced_w2"])
def test_the_truth_of_a_mixture_is_that_of_closed_forms(monkeypatch, metric):
    """A Gaussian that is treated as a mixture of one."""
    case = noisy.Case(name="x", law=LAW, latent_dim=3, n=200, reference=200, stops=5, samples=256)
    truth = noisy.make_problem(case, 3).truth
    exact = getattr(truth, metric)()
    monkeypatch.setattr(Law, "mixture", truth.law.mixture)
    truth.law = Law(variances=LAW.variances, shape="ring")
    tolerance = {"mmd": 0.05, "sliced_w2": 1e-3}[metric]
    np.testing.assert_allclose(getattr(truth, metric)(), exact, rtol=tolerance, atol=tolerance * exact.min())


@pytest.mark.parametrize("shape", SHAPES[1:])
def test_the_model_has_the_training_covariance_and_the_points_shape(shape):
    law = Law(variances=LAW.variances, shape=shape)
    case = noisy.Case(name="x", law=law, latent_dim=3, n=200, reference=200, stops=3, samples=256)
    problem = noisy.make_problem(case, 0)
    latents, law = problem.candidate.latents, problem.truth._latents
    np.testing.assert_allclose(law.covariance, np.cov(latents.T, bias=True), atol=1e-9)
    np.testing.assert_allclose(law.mean, latents.mean(axis=0), atol=1e-9)
    points = list(problem.truth._population())[-1] - problem.truth.mean
    np.testing.assert_allclose(points @ problem.truth.basis @ problem.truth.basis.T, points, atol=1e-9)
    ranks, u = np.linspace(0.05, 0.95, 19), problem.truth.basis[:, 0]
    expected = law.quantiles(np.array([1.0, 0.0, 0.0]), ranks)
    np.testing.assert_allclose(np.quantile(points @ u, ranks), expected, atol=0.05)


def test_points_with_the_true_covariance_cannot_gain():
    case = noisy.Case(name="x", law=LAW, latent_dim=8, n=100, reference=200, stops=5, samples=256, estimate="exact")
    truth = noisy.make_problem(case, 0).truth
    for metric in case.metrics:
        curve = getattr(truth, metric)()
        assert curve[-1] == pytest.approx(0.0, abs=1e-10) and np.all(np.diff(curve) < 0)


def shown(rows, where, analysis):
    """The report of rows, from their files."""
    write_results(where, Results(rows=[{"analysis": analysis, **row} for row in rows]))
    return report.report(read_results(where, coverage.Config(analyses=(analysis,)))).text.splitlines()


def test_the_better_of_two_dimensions_is_chosen_from_few_rows(tmp_path):
    rows = coverage.run_case(few_rows.Choice(name="choice", reference=256), draws=2)
    assert all(row["right"] and row["exact_best"][1] < row["exact_best"][0] for row in rows)
    *_, names, line = shown(rows, tmp_path, "few_rows")
    exact = np.mean([row["exact_best"] for row in rows], axis=0)
    assert "d = 128, exactly" in names and line.split()[:3] == ["choice", "2", "100%"]
    assert [float(word) for word in line.split()[-3::2]] == pytest.approx(exact, abs=0.006)


def test_the_table_counts_false_and_found_claims(tmp_path):
    row = {
        "case": "a",
        "metric": "w2",
        "interior": False,
        "covered": True,
        "interval_width": 1.0,
        "gain_covered": True,
        "exact_gain": 0.0,
        "verdict": "cannot tell",
    }
    found = row | {"exact_gain": 0.2, "verdict": "stop early", "interior": True, "covered": False}
    lines = shown([row, row, found, row | {"verdict": "stop early"}], tmp_path, "sampler")
    assert "33.3% of 3" in lines[-1] and "100.0% of 1" in lines[-1] and "75.0%" in lines[-1]
    (case,) = (line.split() for line in lines if line.startswith("a "))
    assert case == "a w2 4 1 0.0% 3 100.0% 1.00 100.0% 5.000% 50.0% 0.0% 50.0%".split()


def test_a_share_of_the_draws_is_never_less_than_two():
    config = coverage.Config(draws=10, analyses=tuple(coverage.ANALYSES))
    for name, case in config.cases(None):
        assert config.draws_of(case) == {1.0: 10, 0.2: 2}[case.share], name
    planted = coverage.Config(draws=10).cases(data.spectrum("power:0.5", 600))[-2:]
    assert [(name, case.name, case.latent_dim) for name, case in planted] == [
        ("sampler", "planted, n = 500", 499),
        ("noisy_autoencoder", "planted, n = 500", 499),
    ]
