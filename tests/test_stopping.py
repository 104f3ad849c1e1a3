"""Intervals and verdicts on synthetic stopping curves with a known answer."""

import numpy as np
import pytest

from ldmjax.stopping import VERDICTS, read_stopping_curve

BLOCKS, STOPS = 64, 30
X = np.linspace(-1, 1, STOPS)


def pseudo_values(curve, rng, *, slope_noise=1.0, own_noise=0.02):
    """Blocks whose curves differ by a level, a slope in X (what moves the argmin) and a little independent noise."""
    level, slope = rng.standard_normal((2, BLOCKS, 1))
    return curve + level + slope_noise * slope * X + own_noise * rng.standard_normal((BLOCKS, STOPS))


@pytest.mark.parametrize("minimum", [0.0, 0.4])
def test_interval_holds_the_argmin(minimum):
    """200 draws: the 90 % interval holds the true argmin in at least 85 % of them (4 % is 2 standard errors)."""
    curve = 5.0 + 0.5 * (X - minimum) ** 2
    best = int(np.argmin(curve))
    covered = []
    for seed in range(200):
        r = read_stopping_curve(pseudo_values(curve, np.random.default_rng(seed)), replicates=300)
        covered.append(r.best_stop_low <= best <= r.best_stop_high)
    assert np.mean(covered) >= 0.85


def test_no_false_gain():
    """Flat and falling curves: "stop early" in at most 5 % of 200 draws plus 2 standard errors."""
    for curve in (np.full(STOPS, 5.0), 5.0 - 0.2 * X):
        early = [
            read_stopping_curve(pseudo_values(curve, np.random.default_rng(s)), replicates=300).verdict == "stop early"
            for s in range(200)
        ]
        assert np.mean(early) <= 0.08


def test_planted_gain_is_found_with_its_size():
    curve = 5.0 + 2.0 * (X - 0.2) ** 2
    found = [read_stopping_curve(pseudo_values(curve, np.random.default_rng(s)), replicates=300) for s in range(100)]
    assert np.mean([r.verdict == "stop early" for r in found]) >= 0.9
    exact = curve[-1] - curve.min()
    assert np.mean([r.gain_low <= exact <= r.gain_high for r in found]) >= 0.9


def test_a_clearly_falling_curve_is_called_so():
    r = read_stopping_curve(pseudo_values(5.0 - 2.0 * X, np.random.default_rng(0), slope_noise=0.1))
    assert r.verdict == "no gain from stopping"
    assert r.best_stop == r.best_stop_high == STOPS - 1
    assert r.gain == 0.0 and r.gain_low <= 0.0 <= r.gain_high


def test_a_noisy_curve_cannot_tell():
    r = read_stopping_curve(pseudo_values(np.full(STOPS, 1.0), np.random.default_rng(0), slope_noise=3.0))
    assert r.verdict == "cannot tell"


def test_estimates_are_means_and_pairing_removes_common_noise():
    rng = np.random.default_rng(1)
    curve = 5.0 + 2.0 * (X - 0.2) ** 2
    pseudo = curve + 50.0 * rng.standard_normal((BLOCKS, 1)) + 0.01 * rng.standard_normal((BLOCKS, STOPS))
    r = read_stopping_curve(pseudo)
    np.testing.assert_allclose(r.curve, pseudo.mean(0))
    np.testing.assert_allclose(r.standard_error, pseudo.std(0, ddof=1) / np.sqrt(BLOCKS))
    assert r.verdict == "stop early"  # the level's error is 6, the gain 1.2
    assert abs(r.gain - (curve[-1] - curve.min())) < 0.02


def test_infinite_values_cannot_tell():
    pseudo = np.ones((BLOCKS, STOPS))
    pseudo[3, 2] = np.inf
    r = read_stopping_curve(pseudo)
    assert r.verdict == "cannot tell" and r.best_stop is None and np.isnan(r.gain)
    assert set(VERDICTS) == {"stop early", "no gain from stopping", "cannot tell"}


def test_exactly_flat_curves_are_practically_never_called_early():
    """400 draws at a nominal error of 0.25 %: at most 4."""
    early = [
        read_stopping_curve(pseudo_values(np.full(STOPS, 5.0), np.random.default_rng(s)), replicates=300).gain_low > 0
        for s in range(400)
    ]
    assert sum(early) <= 4


def test_too_little_input():
    for shape in ((15, 5), (16, 1)):
        with pytest.raises(ValueError, match=f"at least 16 blocks and 2 stops, got {shape[0]} and {shape[1]}"):
            read_stopping_curve(np.ones(shape))


def test_equally_good_stops_belong_to_the_end():
    rng = np.random.default_rng(2)
    flat_end = pseudo_values(5.0 - 2.0 * X, rng, slope_noise=0.1)
    flat_end[:, -3:] = flat_end[:, -1:] * (1.0 + 1e-12 * np.arange(3))
    everywhere = np.repeat(5.0 + rng.standard_normal((BLOCKS, 1)), STOPS, axis=1)
    for pseudo in (flat_end, everywhere):
        r = read_stopping_curve(pseudo)
        assert r.best_stop == r.best_stop_high == STOPS - 1 and r.verdict == "no gain from stopping"
    before = pseudo_values(5.0 + 2.0 * (X - 0.2) ** 2, rng, slope_noise=0.1)
    before[:, 10:19] = before[:, 18:19]
    assert read_stopping_curve(before).best_stop == 18


def test_a_stop_far_off_hides_nothing():
    """One value of 1e10 and the rest of about 1: small ones are compared among themselves."""
    pseudo = np.array([1e10, 1.0, 2.0, 3.0]) + 1e-3 * np.random.default_rng(3).standard_normal((BLOCKS, 4))
    r = read_stopping_curve(pseudo)
    assert r.best_stop == 1 and r.verdict == "stop early" and abs(r.gain - 2.0) < 0.01
