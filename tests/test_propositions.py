"""check_propositions holds on its events, says when it does not apply, and fails when a closed form is broken."""

import math

import numpy as np
import pytest

from ldmjax import oracle
from ldmjax.oracle import propositions

NAMES = ["proposition_1", "proposition_2", "proposition_3", "proposition_4", "proposition_5", "corollary_1"]


def random_spectra(seed, *, low=0.3, high=2.0):
    rng = np.random.default_rng(seed)
    variances = np.sort(10.0 ** rng.uniform(-5, 1, 10))[::-1]
    return variances, variances * rng.uniform(low, high, 10)


def isotropic(seed):
    rng = np.random.default_rng(seed)
    variances = np.append(np.full(4, 0.6), np.zeros(3))
    return variances, variances * rng.chisquare(50, 7) / 50


def geometric(seed, *, q=20.0, size=4):
    rng = np.random.default_rng(seed)
    variances = q ** -np.arange(1.0, size + 1)
    return variances, variances * rng.uniform(0.5, 2.0, size)


@pytest.mark.parametrize("seed", range(6))
def test_hold_on_random_spectra(seed):
    checks = oracle.check_propositions(*random_spectra(seed), grid_size=401)
    assert list(checks) == NAMES and all(checks[name].name == name for name in NAMES)
    for name in ["proposition_1", "proposition_2", "proposition_4", "proposition_5"]:
        assert checks[name].holds is True and checks[name].slack >= 0, checks[name]
    for name in ["proposition_3", "corollary_1"]:
        assert checks[name].holds is None and math.isnan(checks[name].slack), checks[name]


@pytest.mark.parametrize("seed", range(4))
def test_hold_with_missing_and_far_off_estimates(seed):
    # lamh = 0 where lam > 0 (n < D), and estimates off by factors up to 100: Prop. 1, 2, 4 need no event.
    variances, estimated = random_spectra(seed, low=0.01, high=100.0)
    estimated[[1, 6, 9]] = 0.0
    checks = oracle.check_propositions(variances, estimated, grid_size=401)
    for name in ["proposition_1", "proposition_2", "proposition_4"]:
        assert checks[name].holds is True, checks[name]
    assert checks["proposition_5"].holds is None and "lamh <= 2 lam" in checks["proposition_5"].detail


@pytest.mark.parametrize("seed", range(6))
def test_proposition_3_holds_on_isotropic_spectra(seed):
    assert oracle.check_propositions(*isotropic(seed), grid_size=401)["proposition_3"].holds is True


def test_the_slip_of_proposition_8_is_no_counterexample():
    # No root of the slope: the optimum is at the largest noise (docs/theory.md, section 9, item 2).
    checks = oracle.check_propositions([1.0, 1.0, 1.0], [1.1, 1.0, 0.9], grid_size=401)
    assert checks["proposition_1"].holds is True and checks["proposition_3"].holds is True


@pytest.mark.parametrize("cap", [25.0, 500.0, 5000.0, 1e5])
@pytest.mark.parametrize("seed", range(4))
def test_corollary_holds_on_geometric_spectra(seed, cap):
    checks = oracle.check_propositions(*geometric(seed), cap=cap, grid_size=401)
    assert checks["corollary_1"].holds is True and checks["proposition_5"].holds is True


def test_corollary_says_when_it_does_not_apply():
    variances, estimated = geometric(0)
    # Underestimates are off its event: with lamh = lam / 1000 and C = 8000 the best dimension is 3, not 1 or 2.
    options = {"noise_var_max": 0.99, "cap": 8000.0, "start": "standard", "dynamics": "sde"}
    end = oracle.capped_variances(variances / 1000, 0.0, **options)
    assert 1 + np.argmin(oracle.w2_squared_from_variances(variances, end)[:, 0]) == 3
    assert oracle.corollary_dimensions(variances / 1000, 8000.0) == (1, 2)
    cases = [
        (variances, variances / 1000, 8000.0, 0.99),
        (variances, estimated, 19.0, 0.99),  # C < q
        (variances, estimated, 2e5, 0.99),  # C > q^D
        (variances, estimated, 500.0, 0.4),  # B_T too small
        (*geometric(0, q=15.0), 500.0, 0.99),
    ]
    for lam, lamh, cap, noise_var_max in cases:
        checks = oracle.check_propositions(lam, lamh, cap=cap, noise_var_max=noise_var_max, grid_size=401)
        assert checks["corollary_1"].holds is None
    assert checks["proposition_1"].holds is True


BROKEN = {
    "proposition_1": [
        ("best_noise_var", lambda f: lambda *a, **k: 0.9 * f(*a, **k)),
        ("best_noise_var", lambda f: lambda *a, **k: k["noise_var_max"] - f(*a, **k)),
        ("slope_terms", lambda f: lambda *a, **k: -f(*a, **k)),
    ],
    "proposition_2": [
        ("component_is_useful", lambda f: lambda *a, **k: ~f(*a, **k)),
        # 3 lam in place of 4 lam: the exact-score threshold taken for the general one.
        ("component_is_useful", lambda f: lambda v, e, nu, **k: f(np.multiply(v, 0.75), e, nu, **k)),
    ],
    "proposition_3": [("best_noise_var", lambda f: lambda *a, **k: f(*a, **k) + 0.01)],
    "proposition_4": [
        ("capped_score_weights", lambda f: lambda *a, **k: -f(*a, **k)),
        ("capped_score_weights", lambda f: lambda e, nu, cap: f(e, nu, 0.5 * cap)),
        ("stopped_variances", lambda f: lambda e, nu, **k: f(e, 1 - nu, **k)),
    ],
    "proposition_5": [
        ("dimension_bounds", lambda f: lambda *a: tuple(d + 3 for d in f(*a))),
        ("dimension_bounds", lambda f: lambda *a: tuple(d - 4 for d in f(*a))),
        # A stationary variance that does not shrink with C.
        ("capped_variances", lambda f: lambda *a, **k: f(*a, **k) + 1.0),
    ],
    "corollary_1": [
        ("corollary_dimensions", lambda f: lambda *a: tuple(d + 2 for d in f(*a))),
        ("capped_variances", lambda f: lambda *a, **k: f(*a, **k) + 0.1),
    ],
}


@pytest.mark.parametrize(("name", "index"), [(name, i) for name, breaks in BROKEN.items() for i in range(len(breaks))])
def test_each_check_can_fail(monkeypatch, name, index):
    spectra = {"proposition_3": isotropic(1), "corollary_1": geometric(0)}.get(name, random_spectra(0))
    cap = 500.0 if name == "corollary_1" else 20.0
    assert oracle.check_propositions(*spectra, cap=cap, grid_size=401)[name].holds is True
    attribute, breaker = BROKEN[name][index]
    monkeypatch.setattr(propositions, attribute, breaker(getattr(propositions, attribute)))
    check = oracle.check_propositions(*spectra, cap=cap, grid_size=401)[name]
    assert check.holds is False and check.slack < 0, check


@pytest.mark.parametrize("options", [{"cap": math.inf}, {"cap": 1.0}, {"noise_var_max": 0.0}, {"noise_var_max": 1.0}])
def test_bad_arguments_raise(options):
    with pytest.raises(ValueError):
        oracle.check_propositions([1.0], [1.0], **options)
