"""Laws with a capped score (docs/theory.md 3) against ODE integration, and Prop. 4, 5 and Corollary 1 by brute force."""

import numpy as np
import pytest
from scipy.integrate import solve_ivp
from scipy.optimize import minimize_scalar

from ldmjax import oracle

ESTIMATED = np.array([100.0, 3.0, 1.0, 0.96, 0.5, 0.03, 1e-3, 1e-6, 1e-10])
CAPS = [1.05, 2.0, 20.0, 1e3, 1e6, np.inf]


def integrate_variance(estimated, noise_var, *, noise_var_max, cap, start, dynamics):
    """Variance under dz = (z + 2 s) dB + sqrt(2) dW (SDE) or dz = (z + s) dB (ODE), s = -min(C, 1/g) z, B running down.

    Integrated as log V over x = log(B + s), s the scale below which the weight is constant, so that neither a cap of
    1e6 nor a variance of 1e-10 makes the equation stiff. Each component's path is split where its cap begins to bind,
    which only places the steps: the right-hand side takes the minimum itself.
    """
    b_start, b_end = -0.5 * np.log1p(-noise_var_max), -0.5 * np.log1p(-noise_var)
    with np.errstate(divide="ignore", invalid="ignore"):
        kink = 0.5 * np.log((1 - estimated) / (1 - 1 / cap))
    kink = np.clip(np.where(estimated < 1 / cap, kink, 0.0), b_end, b_start)
    scale = np.maximum(estimated, 1 / cap)
    log_v = np.log(estimated + noise_var_max * (1 - estimated)) if start == "marginal" else np.zeros(estimated.size)
    for first, last in [(np.full(estimated.size, b_start), kink), (kink, np.full(estimated.size, b_end))]:
        x_first, x_last = np.log(first + scale), np.log(last + scale)

        def rate(p, log_v, x_first=x_first, x_last=x_last):
            shifted = np.exp(x_first + p * (x_last - x_first))
            nu = -np.expm1(-2 * (shifted - scale))
            m = np.minimum(cap, 1 / (nu + estimated * (1 - nu)))
            if dynamics == "sde":
                per_b = 2 * (1 - 2 * m) + 2 * np.exp(-log_v)
            else:
                per_b = 2 * (1 - m)
            return -per_b * shifted * (x_last - x_first)  # B runs down

        log_v = solve_ivp(rate, (0.0, 1.0), log_v, method="DOP853", rtol=1e-12, atol=1e-12).y[:, -1]
    return np.exp(log_v)


@pytest.mark.parametrize("cap", CAPS)
@pytest.mark.parametrize("dynamics", ["sde", "ode"])
@pytest.mark.parametrize("start", ["marginal", "standard"])
def test_law_against_integration(start, dynamics, cap):
    for noise_var_max in [0.98, 0.2]:
        noise_var = np.array([noise_var_max, 0.15, 1e-2, 1e-5, 1e-8, 0.0])
        found = oracle.capped_variances(
            ESTIMATED, noise_var, noise_var_max=noise_var_max, cap=cap, start=start, dynamics=dynamics
        )
        assert found.shape == (ESTIMATED.size, noise_var.size)
        for k, nu in enumerate(noise_var):
            expected = integrate_variance(
                ESTIMATED, nu, noise_var_max=noise_var_max, cap=cap, start=start, dynamics=dynamics
            )
            # 1e-12 of log V per unit of a path a few units long.
            np.testing.assert_allclose(found[:, k], expected, rtol=1e-9)


@pytest.mark.parametrize("seed", range(6))
def test_law_against_integration_on_random_spectra(seed):
    rng = np.random.default_rng(seed)
    estimated, cap = 10.0 ** rng.uniform(-10, 2, 30), 10.0 ** rng.uniform(0.02, 6)
    options = {"noise_var_max": rng.uniform(0.05, 0.999), "cap": cap, "start": "standard"}
    for dynamics in ["sde", "ode"]:
        for nu in [0.0, options["noise_var_max"] * 10.0 ** rng.uniform(-6, 0)]:
            expected = integrate_variance(estimated, nu, dynamics=dynamics, **options)
            found = oracle.capped_variances(estimated, nu, dynamics=dynamics, **options)[:, 0]
            np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize("dynamics", ["sde", "ode"])
def test_without_cap_the_marginal_start_gives_the_plug_in_law(dynamics):
    noise_var = np.linspace(0, 0.98, 9)
    options = {"noise_var_max": 0.98, "start": "marginal", "dynamics": dynamics}
    expected = ESTIMATED[:, None] * (1 - noise_var) + noise_var
    found = oracle.capped_variances(ESTIMATED, noise_var, cap=np.inf, **options)
    np.testing.assert_allclose(found, expected, rtol=1e-13)
    # A cap above 1/lamh_D = 1e10 never binds.
    np.testing.assert_allclose(oracle.capped_variances(ESTIMATED, noise_var, cap=2e10, **options), expected, rtol=1e-13)


@pytest.mark.parametrize("dynamics", ["sde", "ode"])
@pytest.mark.parametrize("start", ["marginal", "standard"])
@pytest.mark.parametrize("cap", [1.05, 20.0, 1e6])
def test_continuous_at_the_kink(start, dynamics, cap):
    for lamh in ESTIMATED[ESTIMATED < 1 / cap]:
        kink = (1 / cap - lamh) / (1 - lamh)
        nu = kink * np.array([1 - 1e-9, 1.0, 1 + 1e-9])
        found = oracle.capped_variances([lamh], nu, noise_var_max=0.98, cap=cap, start=start, dynamics=dynamics)[0]
        # d log V / d log nu is of order 1 on either side (of order nu_T/(1-nu_T) = 50 near the start).
        np.testing.assert_allclose(found, found[1], rtol=1e-7)
        weights = oracle.capped_score_weights([lamh], nu, cap)[0]
        np.testing.assert_allclose(weights, cap, rtol=1e-8)


def test_stationary_variance_of_a_binding_cap():
    # lamh = 0, long past the kink: the SDE forgets its start and 1 - 2C < 0 balances the noise, V = 1 / (2C - 1).
    found = oracle.capped_variances([0.0], 0.0, noise_var_max=0.999, cap=1.05, start="standard", dynamics="sde")
    drift, noise = 2 * (1 - 2 * 1.05), 2.0
    np.testing.assert_allclose(found, -noise / drift, rtol=0.02)  # e^{-(4C-2)(B* - 0)} = .04 of the distance is left
    one = oracle.capped_variances([0.0], [0.0, 0.5], noise_var_max=0.5, cap=1.5, start="standard", dynamics="sde")
    np.testing.assert_allclose(one[0], [0.5 + np.exp(-4 * 0.5 * np.log(2)) * 0.5, 1.0], rtol=1e-12)  # v = 1/2, V_0 = 1


@pytest.mark.parametrize("cap", [1.5, 20.0, 1e4])
@pytest.mark.parametrize("noise_var", [1e-6, 0.01, 0.5])
def test_weights_minimise_score_matching(noise_var, cap):
    # Empirical loss of s = -m z on data x: mean over x and eps of (-m (alpha x + sigma eps) + eps / sigma)^2, less the
    # term without m.
    rng = np.random.default_rng(0)
    data = rng.normal(size=(50, 4)) * np.array([3.0, 1.0, 0.1, 1e-3])
    alpha, sigma = np.sqrt(1 - noise_var), np.sqrt(noise_var)
    weights = oracle.capped_score_weights(np.mean(data**2, axis=0), noise_var, cap)[:, 0]
    nodes, probability = np.polynomial.hermite_e.hermegauss(4)  # exact for this quadratic in eps
    probability = probability / probability.sum()
    for i, weight in enumerate(weights):

        def loss(m, i=i):
            z = alpha * data[:, i, None] + sigma * nodes
            return np.mean((m**2 * z**2 - 2 * m * z * nodes / sigma) @ probability)

        found = minimize_scalar(loss, bounds=(-cap, cap), method="bounded", options={"xatol": 1e-9 * cap}).x
        # A bounded search stops within the root of eps of the minimiser, and never on the bound itself.
        np.testing.assert_allclose(weight, found, rtol=2e-5)
        assert abs(weight) <= cap


def test_weights_where_everything_vanishes():
    assert oracle.capped_score_weights([0.0], 0.0, 7.0)[0, 0] == 7.0
    assert oracle.capped_score_weights([0.0], 0.0, np.inf)[0, 0] == np.inf


def event_spectra(seed, *, low):
    """Random spectra on the event low lam <= lamh <= 2 lam, some with repeated values."""
    rng = np.random.default_rng(seed)
    size = int(rng.integers(1, 12))
    variances = np.sort(10.0 ** rng.uniform(-6, 1.5, size))[::-1]
    if seed % 5 == 0:
        variances = np.full(size, variances[0])
    return variances, variances * rng.uniform(low, 2.0, size), rng


def best_dimension_by_loop(variances, generated):
    distances = [
        np.sum((np.sqrt(generated[:d]) - np.sqrt(variances[:d])) ** 2) + variances[d:].sum()
        for d in range(1, variances.size + 1)
    ]
    return 1 + int(np.argmin(distances))


def end_variances(estimated, cap, noise_var_max):
    return oracle.capped_variances(
        estimated, 0.0, noise_var_max=noise_var_max, cap=cap, start="standard", dynamics="sde"
    )[:, 0]


def test_proposition_5_on_its_event():
    tight = 0
    for seed in range(1500):
        variances, estimated, rng = event_spectra(seed, low=0.0)
        cap, noise_var_max = 1 + 10.0 ** rng.uniform(-2, 6), rng.uniform(0.5, 0.999)
        dim = best_dimension_by_loop(variances, end_variances(estimated, cap, noise_var_max))
        d1, d2 = oracle.dimension_bounds(variances, estimated, cap)
        assert 1 <= d1 <= dim <= d2 <= variances.size, seed
        if np.any(4 * variances <= 1 / (2 * cap - 1)):
            assert dim <= max(1, d2 - 1), seed
            tight += dim == d2 - 1
    assert tight > 100  # the sharper bound is attained: a bound one lower would have failed


def test_dimension_bounds_by_loop():
    for seed in range(300):
        variances, estimated, rng = event_spectra(seed, low=0.0)
        cap = 1 + 10.0 ** rng.uniform(-2, 6)
        d1, d2 = 1, variances.size
        for i in range(1, variances.size + 1):
            if 1 / cap <= estimated[i - 1]:
                d1 = i
        for i in range(variances.size, 0, -1):
            if 1 / (2 * cap - 1) >= 4 * variances[i - 1]:
                d2 = i
        assert oracle.dimension_bounds(variances, estimated, cap) == (d1, d2)
    assert oracle.dimension_bounds([1e-9], [1e-9], 2.0) == (1, 1)


def test_corollary_1():
    # lam/2 <= lamh <= 2 lam is the likely event; q > 16 is what it needs (4 lam_{d+2} <= 8/(qC) < 1/(2C)).
    attained = set()
    for seed in range(800):
        rng = np.random.default_rng(seed)
        q, size = rng.uniform(16.01, 60.0), int(rng.integers(1, 7))
        variances = q ** -np.arange(1.0, size + 1)
        estimated, cap = variances * rng.uniform(0.5, 2.0, size), q ** rng.uniform(1, size)
        dim = best_dimension_by_loop(variances, end_variances(estimated, cap, rng.uniform(0.5, 0.999)))
        low, high = oracle.corollary_dimensions(estimated, cap)
        assert low <= dim <= high <= size, seed
        kept = [i for i in range(1, size + 1) if estimated[i - 1] >= 1 / cap]
        assert low == max(kept, default=1) and high == min(low + 1, size)
        attained.add(dim - low)
    assert attained == {0, 1}


@pytest.mark.parametrize("dynamics", ["sde", "ode"])
@pytest.mark.parametrize("seed", range(3))
def test_best_capped_stop_against_loops(seed, dynamics):
    variances, estimated, _ = event_spectra(seed + 1, low=0.3)
    noise_vars, caps = np.append(0.0, np.geomspace(1e-5, 0.9, 12)), [1.5, 20.0, 1e3, np.inf]
    best = (None, None, None, np.inf)
    for cap in caps:
        for nu in noise_vars:
            generated = integrate_variance(
                estimated, nu, noise_var_max=0.95, cap=cap, start="standard", dynamics=dynamics
            )
            for d in range(1, variances.size + 1):
                kept = np.sum((np.sqrt(generated[:d]) - np.sqrt(variances[:d])) ** 2)
                if kept + variances[d:].sum() < best[3] * (1 - 1e-8):  # the integrator's error is no tie-break
                    best = (d, nu, cap, kept + variances[d:].sum())
    found = oracle.best_capped_stop(
        variances, estimated, noise_vars=noise_vars, caps=caps, noise_var_max=0.95, start="standard", dynamics=dynamics
    )
    assert found[:3] == best[:3]
    np.testing.assert_allclose(found[3], best[3], rtol=1e-7)


@pytest.mark.parametrize(
    "changes",
    [
        {"cap": 1.0},
        {"cap": np.nan},
        {"noise_var_max": 1.0},
        {"noise_var_max": 0.0},
        {"noise_var": 0.95},
        {"start": "prior"},
        {"dynamics": "SDE"},
        {"estimated_variances": [-1.0]},
    ],
)
def test_bad_arguments_raise(changes):
    options = {"estimated_variances": [1.0], "noise_var": 0.1, "noise_var_max": 0.9, "cap": 2.0}
    options |= {"start": "marginal", "dynamics": "sde"} | changes
    with pytest.raises(ValueError):
        oracle.capped_variances(options.pop("estimated_variances"), options.pop("noise_var"), **options)
