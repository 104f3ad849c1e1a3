"""coverage: draws are kept one by one, and an interrupted case goes on to the same records."""

import json

import numpy as np
import pytest

from experiments import coverage
from experiments.coverage import noisy
from ldmjax import data
from ldmjax.checkpoints import NOTHING_KEPT, Store

COVARIANCE = np.diag(data.spectrum_variances("power:1.5", 8))
SAMPLER = coverage.Case(name="sampler", covariance=COVARIANCE, latent_dim=3, n=40, samples=256, stops=5)
NOISY = noisy.Case(name="noisy", covariance=COVARIANCE, latent_dim=3, n=40, reference=200, stops=8, samples=256)


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
