"""coverage: draws are kept one by one, and an interrupted case goes on to the same records."""

import json

import numpy as np
import pytest

from experiments import coverage
from experiments.coverage import few_rows, noisy
from experiments.coverage.laws import SHAPES, Law
from ldmjax import data
from ldmjax.checkpoints import NOTHING_KEPT, Store

COVARIANCE = np.diag(data.spectrum_variances("power:1.5", 8))
SAMPLER = coverage.Case(name="sampler", covariance=COVARIANCE, latent_dim=3, n=40, samples=256, stops=5)
LAW = Law(variances=np.diag(COVARIANCE))
NOISY = noisy.Case(name="noisy", law=LAW, latent_dim=3, n=40, reference=200, stops=8, samples=256, metrics=("w2",))


@pytest.mark.parametrize(
    ("analysis", "case", "place"), [(coverage, SAMPLER, "_record"), (noisy, NOISY, "_draw")], ids=["sampler", "noisy"]
)
def test_an_interrupted_case_goes_on_to_the_same_records(monkeypatch, tmp_path, analysis, case, place):
    original, calls = getattr(analysis, place), []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(analysis, place, counted)
    how = {"draws": 5, "first_seed": 7, "report": lambda line: None}
    with pytest.raises(KeyboardInterrupt):
        analysis.run_case(case, store=Store(tmp_path), **how)
    kept = len(list((tmp_path / "pieces").iterdir()))
    assert kept >= 2
    resumed = analysis.run_case(case, store=Store(tmp_path), **how)
    assert len(calls) == 4 + 5 - kept
    assert json.dumps(resumed, default=float) == json.dumps(
        analysis.run_case(case, store=NOTHING_KEPT, **how), default=float
    )
    assert [row["seed"] for row in resumed] == [7, 8, 9, 10, 11]


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
    case = noisy.Case(
        name="x",
        law=Law(variances=LAW.variances, shape=shape),
        latent_dim=3,
        n=200,
        reference=200,
        stops=3,
        samples=256,
    )
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


def test_the_better_of_two_dimensions_is_chosen_from_few_rows():
    choice = few_rows.Choice(name="choice", reference=256)
    rows = few_rows.run_case(choice, draws=2, report=lambda line: None)
    assert all(row["right"] and row["exact_best"][1] < row["exact_best"][0] for row in rows)
    assert "choice: right 100 %" in few_rows.choices(rows) and few_rows.choices([{"case": "x"}]) == ""


def test_the_table_counts_false_and_found_claims():
    row = {
        "case": "a", "metric": "w2", "interior": False, "covered": True, "interval_width": 1.0, "gain_covered": True,
        "exact_gain": 0.0, "verdict": "cannot tell",
    }  # fmt: skip
    found = row | {"exact_gain": 0.2, "verdict": "stop early", "interior": True, "covered": False}
    lines = coverage.table([row, row, found, row | {"verdict": "stop early"}]).splitlines()
    assert "33.3 % of 3" in lines[-1] and "100.0 % of 1" in lines[-1] and "75.0 %" in lines[-1]
    assert coverage.table([{"choice": True}]) == ""


def test_a_case_reports_its_own_law():
    """Exact score: the debiased curve stays within 5 standard errors of the exact discretised law at every stop."""
    case = coverage.Case(name="exact", covariance=COVARIANCE, latent_dim=3, estimate="exact", samples=1024, stops=5)
    rows = coverage.run_case(case, draws=4, steps=40, report=lambda line: None)
    assert len(rows) == 4 and max(r["worst_deviation"] for r in rows) < 5
    assert not any(r["verdict"] == "stop early" for r in rows)
    assert "exact" in coverage.table(rows)


@pytest.mark.slow
@pytest.mark.parametrize("index", range(3))
def test_the_interval_covers(index):
    case = coverage.default_cases(100)[index]
    rows = coverage.run_case(case, draws=100, first_seed=5000)
    inside = [r["covered"] for r in rows if r["interior"]]
    assert 0.85 <= np.mean(inside) <= 0.99
