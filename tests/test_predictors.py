"""Predictors: regret, rank correlation and their intervals by hand, which models count, claims, interpolated latents."""

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ldmjax import predictors, stopping

EARLY, NONE, _ = stopping.VERDICTS

DIMS = (2, 4, 8)
MODEL = {2: [5.0, 4.0, 4.5], 4: [3.0, 2.5, 2.0], 8: [6.0, 3.0, 4.0]}
NOISY = {2: [5.0, 3.8, 4.0], 4: [3.0, 2.2, 2.4], 8: [5.0, 2.0, 3.0]}


def make_candidate(d, seed=0, *, model=None, noisy=None, noise=0.0, **changes):
    ripple = 1 + noise * np.random.default_rng([seed, d]).standard_normal((64, 1))
    fields = {
        "seed": seed,
        "latent_dim": d,
        "features": "pixels",
        "metric": "w2",
        "model": np.array(MODEL[d] if model is None else model) * ripple,
        "noisy": np.array(NOISY[d] if noisy is None else noisy) * np.ones((64, 1)),
        "earlier": np.full(64, 1.01 * MODEL[d][-1]),
        "reconstruction_error": 1.0 / d,
        "interpolation": float(d),
        "floor": 0.1,
        "memorisation": 0.9,
        "failed_at": None,
    }
    return predictors.Candidate(**fields | changes)


def compared(candidates, trained=None, scope="trained"):
    trained = {(c.seed, c.latent_dim, c.features) for c in candidates} if trained is None else trained
    return {c.predictor: c for c in predictors.score_predictors(candidates, trained) if c.scope == scope}


def test_regret_and_rank_correlation_by_hand():
    found = compared([make_candidate(d) for d in DIMS])
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
    candidates = [make_candidate(d) for d in DIMS] + [make_candidate(2, 1, failed_at=7, model=[np.inf] * 3)]
    trained = {(0, 2, "pixels"), (0, 8, "pixels")}
    some, everything = (compared(candidates, trained, scope)["noisy autoencoder"] for scope in ("trained", "all"))
    assert some.dims == {0: [2, 8]} and some.best == {0: (8, 1)} and some.regret == 0 and np.isnan(some.tau)
    assert everything.dims == {0: [2, 4, 8]} and everything.regret == pytest.approx(0.5)
    assert compared(candidates, set()) == {} and len(compared(candidates, set(), "all")) == 4
    elsewhere = {(s, d, "classifier") for s, d, _ in trained}
    assert compared(candidates, elsewhere) == {}


def test_intervals_are_over_seeds_and_blocks():
    second = {
        2: [5.0, 4.0, 4.5],
        4: [3.0, 2.5, 2.0],
        8: [6.0, 2.0, 4.0],
    }  # here the noisy choice (8, 1) ties with the best
    candidates = [make_candidate(d) for d in DIMS] + [make_candidate(d, 1, model=second[d]) for d in DIMS]
    c = compared(candidates)["noisy autoencoder"]
    assert c.regret == pytest.approx(0.25)
    # Means of two seeds drawn out of {0.5, 0}: 0, 0.25, 0.5 with 1/4, 1/2, 1/4.
    assert (c.regret_low, c.regret_high) == pytest.approx((0.0, 0.5))
    noisy = [make_candidate(d, noise=0.3) for d in DIMS]
    c = compared(noisy)["noisy autoencoder"]
    pick, best = noisy[2].model[:, 1], noisy[1].model[:, 2]
    ratio = pick.mean() / best.mean()
    error = ratio * np.std(pick / pick.mean() - best / best.mean(), ddof=1) / 8
    assert c.regret == pytest.approx(ratio - 1)
    assert c.regret_high - c.regret_low == pytest.approx(2 * 1.645 * error, rel=0.15)
    assert c.regret_low < c.regret < c.regret_high


def test_interval_of_the_rank_correlation_holds_the_predictors_own_noise():
    """Predicted 2.2 and 2.0 for d = 4 and 8 change places from one half of the blocks to the other."""
    candidates = [make_candidate(d) for d in DIMS]
    swing = np.where(np.arange(64) % 2, 3.0, -3.0)[:, None]
    candidates[2] = candidates[2]._replace(noisy=candidates[2].noisy + swing)
    c = compared(candidates)["noisy autoencoder"]
    assert c.tau == pytest.approx(1 / 3) and (c.tau_low, c.tau_high) == pytest.approx((1 / 3, 1.0))


def test_groups_are_spaces_and_metrics():
    candidates = [make_candidate(d, features=f, metric=m) for f in ("a", "b") for m in ("w2", "mmd") for d in DIMS]
    found = predictors.score_predictors(candidates, {(0, d, "a") for d in DIMS})
    assert [(c.features, c.metric, c.scope) for c in found[::4]] == [
        ("a", "w2", "trained"),
        ("a", "w2", "all"),
        ("a", "mmd", "trained"),
        ("a", "mmd", "all"),
        ("b", "w2", "all"),
        ("b", "mmd", "all"),
    ]


def test_regret_is_never_negative():
    candidates = [
        make_candidate(2, model=[0.02, 0.01, 0.01]),
        make_candidate(4, model=[0.1, 0.0, -0.001], noisy=[9.0, 9.0, 9.0]),
    ]
    c = compared(candidates)["noisy autoencoder"]
    assert np.isnan(c.regret) or c.regret >= 0


def test_which_models_count():
    good = make_candidate(4)
    assert good.improvement == pytest.approx(1 - 1 / 1.01) and good.excess == pytest.approx(2.0 / 2.4)
    assert good.is_trained
    assert not good._replace(earlier=np.full(64, 2.05)).is_trained
    assert good._replace(earlier=np.full(64, 1.5)).is_trained  # worse than before: not improving
    assert not good._replace(noisy=0.4 * good.noisy).is_trained
    assert not good._replace(failed_at=0).is_trained


def test_a_far_model_does_not_count_when_the_reconstruction_is_at_the_floor():
    assert not make_candidate(8, noisy=[5.0, 1.0, -0.001]).is_trained


def test_a_model_near_the_floor_has_not_diverged():
    assert not make_candidate(8, model=[0.5, 0.2, 0.01], noisy=[0.5, 0.1, 5e-5]).diverged


def test_a_diverged_model_is_one_that_failed_or_left_the_range():
    assert not make_candidate(8).diverged and make_candidate(8, failed_at=3).diverged
    assert make_candidate(8, model=[6.0, 3.0, 301.0]).diverged and make_candidate(8, model=[1.0, 1.0, np.inf]).diverged


def test_kendall_is_counted_over_pairs():
    rng = np.random.default_rng(6)
    a, b = rng.permutation(6).astype(float), rng.permutation(6).astype(float)
    b[0] = b[1]
    pairs = [np.sign(a[i] - a[j]) * np.sign(b[i] - b[j]) for i in range(6) for j in range(i)]
    assert predictors.kendall_tau(a, b) == pytest.approx(np.mean(pairs))
    np.testing.assert_allclose(
        predictors.kendall_tau(np.stack([a, -a]), np.stack([b, b])), [np.mean(pairs), -np.mean(pairs)]
    )


def test_interpolated_latents_are_midpoints_of_nearest_neighbours(monkeypatch):
    z = np.random.default_rng(7).standard_normal((50, 2, 3)).astype(np.float32)
    distances = cdist(z.reshape(50, 6), z.reshape(50, 6)) + np.diag(np.full(50, np.inf))
    expected = 0.5 * (z + z[distances.argmin(axis=1)])
    np.testing.assert_allclose(predictors.interpolated_latents(z), expected, rtol=1e-6)
    monkeypatch.setattr(predictors, "NEIGHBOURS", 20)
    np.testing.assert_allclose(predictors.interpolated_latents(z), expected[:20], rtol=1e-6)


def test_claims_are_counted_against_the_models():
    """Curves with little noise: [5, 4, 4.5] is "stop early", [3, 2.5, 2] is not; the noisy autoencoder says so of all."""
    candidates = [make_candidate(d, s, noise=0.02, metric=m) for m in ("w2", "mmd") for s in (0, 1) for d in DIMS]
    candidates[0] = candidates[0]._replace(earlier=np.full(64, 9.0))
    trained = predictors.trained_models(candidates)
    assert len(trained) == 5 and (0, 2, "pixels") not in trained
    w2, mmd = predictors.count_claims(candidates, trained)
    assert (w2.features, w2.metric, mmd.metric) == ("pixels", "w2", "mmd")
    own = [c for c in candidates if c.metric == "w2" and c.identity in trained]
    verdicts = [[stopping.read_stopping_curve(getattr(c, name)).verdict for c in own] for name in ("noisy", "model")]
    assert w2.models == 5 and w2.early == 5 == verdicts[0].count(EARLY)
    assert w2.confirmed == verdicts[1].count(EARLY) == 3 and w2.contradicted == verdicts[1].count(NONE) == 2
    assert (w2.never, w2.never_confirmed, w2.never_contradicted) == (0, 0, 0)
    curves = [c.model.mean(axis=0) for c in own]
    stops = [int(c.noisy.mean(axis=0).argmin()) for c in own]
    assert w2.at_stop == pytest.approx(np.mean([m[k] / m.min() - 1 for m, k in zip(curves, stops, strict=True)]))
    assert w2.at_end == pytest.approx(np.mean([m[-1] / m.min() - 1 for m in curves]))
