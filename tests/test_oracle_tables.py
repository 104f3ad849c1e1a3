"""Tables of discretisation errors against the recursions taken one entry at a time."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.benchmark import numpy_loop
from ldmjax import devices, oracle
from ldmjax.oracle import tables
from ldmjax.schedules import LinearVP, OrnsteinUhlenbeck, RectifiedFlow, VariancePreserving, uniform_times

SPECTRUM = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"
SCHEMES = ("euler_maruyama", "exponential", "euler_ode", "heun_ode")
STARTS = ("marginal", "standard")


def entry_by_entry(variances, estimated, schedule, *, schemes, steps, t_ends, starts, cap=np.inf):
    """The table by `sampler_variances` and `w2_squared_from_variances`; NaN where the latter refuses a NaN."""
    table = np.empty((len(schemes), len(steps), len(t_ends), len(starts)))
    for i, j, k, s in np.ndindex(table.shape):
        times = uniform_times(schedule, steps[j], t_min=t_ends[k])
        end = oracle.sampler_variances(estimated, schedule, times, scheme=schemes[i], cap=cap, start=starts[s])[-1]
        defined = np.all(np.isfinite(end))
        table[i, j, k, s] = oracle.w2_squared_from_variances(variances, end[:, None])[-1, 0] if defined else np.nan
    return table


@pytest.mark.parametrize("cap", [np.inf, 20.0])
@pytest.mark.parametrize("schedule", [OrnsteinUhlenbeck(t_max=2.0), LinearVP()])
@pytest.mark.parametrize("seed", [0, 1])
def test_equals_the_recursions_entry_by_entry(seed, schedule, cap):
    rng = np.random.default_rng(seed)
    variances = np.sort(rng.lognormal(0.0, 3.0, 30))[::-1]
    estimated = variances * rng.lognormal(0.0, 0.5, 30)
    # Every axis in an order of its own, so that no two can be exchanged unseen.
    options = {"schemes": SCHEMES[::-1], "steps": [40, 1, 7], "t_ends": [0.05, 0.0, 1e-3, 0.4], "starts": STARTS[::-1]}
    found = oracle.discretisation_table(variances, estimated, schedule, cap=cap, **options)
    assert found.shape == (4, 3, 4, 2) and found.dtype == np.float64
    np.testing.assert_allclose(found, entry_by_entry(variances, estimated, schedule, cap=cap, **options), rtol=1e-10)


def test_a_loop_of_fixed_length_gives_the_same_table():
    variances, options = np.geomspace(10.0, 1e-3, 6), {"schemes": SCHEMES, "steps": [40, 1, 7], "starts": STARTS}
    told = oracle.discretisation_table(variances, 1.1 * variances, LinearVP(), t_ends=[0.0, 0.4], **options)
    with devices.made_for("tpu"):
        fixed = oracle.discretisation_table(variances, 1.1 * variances, LinearVP(), t_ends=[0.0, 0.4], **options)
    np.testing.assert_allclose(fixed, told, rtol=1e-12)


def test_equals_the_loop_of_the_benchmark():
    rng = np.random.default_rng(2)
    variances = np.sort(rng.lognormal(0.0, 3.0, 30))[::-1]
    estimated = variances * rng.lognormal(0.0, 0.5, 30)
    options = {"schemes": SCHEMES, "steps": [40, 1, 7], "t_ends": [0.0, 1e-3, 0.4], "starts": STARTS, "cap": 50.0}
    found = oracle.discretisation_table(variances, estimated, LinearVP(), **options)
    loop = numpy_loop.discretisation_table(variances, estimated, LinearVP(), **options)
    np.testing.assert_allclose(found, loop, rtol=1e-10)


@pytest.mark.parametrize("schemes", [["heun_ode"], ["exponential", "euler_ode", "exponential"]])
def test_a_part_of_the_schemes(schemes):
    # Three rows on two devices: one row is padding.
    variances = np.geomspace(10.0, 1e-3, 6)
    options = {"steps": [3, 20, 9], "t_ends": [0.01], "starts": ["standard"]}
    every = oracle.discretisation_table(variances, variances, LinearVP(), schemes=SCHEMES, **options)
    found = oracle.discretisation_table(variances, variances, LinearVP(), schemes=schemes, **options)
    np.testing.assert_allclose(found, every[[SCHEMES.index(scheme) for scheme in schemes]], rtol=1e-10)


@pytest.mark.needs_cpu("two devices")
def test_devices_get_equal_work():
    assert jax.device_count() == 2
    counts = np.array([50, 250, 500, 1000, 50, 250, 500, 1000])
    order = tables._dealt(counts)
    assert sorted(order) == list(range(8))
    assert counts[order][:4].sum() == counts[order][4:].sum() == 1800


def test_float32_outside_is_untouched_and_another_spectrum_compiles_nothing():
    options = {"schemes": SCHEMES, "steps": [5, 8], "t_ends": [0.0, 0.1], "starts": STARTS}
    cached = jax.jit(lambda x: jnp.cumsum(jnp.sin(x)) / 3.0)

    def outside():
        drawn = jax.random.normal(jax.random.key(3), (5,))
        return [drawn, cached(drawn), cached(np.linspace(0.0, 1.0, 5)), jnp.asarray(np.arange(3.0)), jnp.arange(3)]

    before = outside()
    first = oracle.discretisation_table([3.0, 2.0, 1.0], [3.0, 2.0, 1.0], LinearVP(), **options)
    between = outside()
    with jax.no_tracing(True):
        second = oracle.discretisation_table([5.0, 0.5, 0.1], [4.0, 0.6, 0.1], LinearVP(), cap=9.0, **options)
    assert not np.any(first == second)
    for after in (between, outside()):
        assert [x.dtype for x in after] == [jnp.float32] * 4 + [jnp.int32]
        for x, y in zip(before, after, strict=True):
            np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize("cap", [np.inf, 20.0])
def test_only_heun_at_time_zero_is_infinite_without_variance(cap):
    variances, estimated = [2.0, 0.5, 0.1, 0.0], [1.5, 0.0, 0.2, 0.0]
    options = {"schemes": SCHEMES, "steps": [3, 50], "t_ends": [0.0, 0.1], "starts": STARTS, "cap": cap}
    found = oracle.discretisation_table(variances, estimated, LinearVP(), **options)
    expected = entry_by_entry(variances, estimated, LinearVP(), **options)
    infinite = np.zeros(found.shape, bool)
    infinite[SCHEMES.index("heun_ode"), :, 0] = np.isinf(cap)
    np.testing.assert_array_equal(np.isnan(expected), infinite)
    np.testing.assert_array_equal(found[infinite], np.inf)
    np.testing.assert_allclose(found[~infinite], expected[~infinite], rtol=1e-10)


class Quadratic(VariancePreserving):
    """B = t^2, whose rate vanishes at t = 0."""

    t_max = 1.0

    def B(self, t):
        return t**2

    def w_squared(self, t):
        return 2.0 * t


def test_an_undefined_end_law_is_infinitely_far():
    # Heun at t = 0 asks for w^2 m = 0 * inf where lamh = 0.
    options = {"schemes": ["heun_ode"], "steps": [4], "t_ends": [0.0], "starts": ["standard"]}
    assert np.isnan(entry_by_entry([1.0], [0.0], Quadratic(), **options))
    assert oracle.discretisation_table([1.0], [0.0], Quadratic(), **options) == np.inf


@pytest.mark.skipif(not SPECTRUM.exists(), reason=f"{SPECTRUM} is not in this checkout")
def test_cifar_spectrum():
    variances = np.load(SPECTRUM).astype(np.float64)[::-1]
    options = {"schemes": SCHEMES, "steps": [50, 250], "t_ends": [0.0, 1e-3], "starts": STARTS}
    found = oracle.discretisation_table(variances, variances, LinearVP(), **options)
    np.testing.assert_allclose(found, entry_by_entry(variances, variances, LinearVP(), **options), rtol=1e-10)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schemes": ["exponential", "milstein"]}, "scheme must be one of .* got 'milstein'"),
        ({"starts": ["prior"]}, "start must be one of .* got 'prior'"),
        ({"steps": [10, 0]}, "steps >= 1"),
        ({"steps": []}, "must not be empty"),
        ({"t_ends": [0.1, -0.1]}, "t_min"),
        ({"t_ends": [1.0]}, "t_min"),
        ({"t_ends": [np.nan]}, "t_min"),
        ({"cap": 1.0}, "cap"),
        ({"schedule": RectifiedFlow()}, "needs a variance-preserving schedule, and RectifiedFlow"),
        ({"variances": [1.0, 2.0]}, "sorted"),
        ({"estimated_variances": [1.0]}, "estimated_variances must have shape"),
    ],
)
def test_bad_arguments_raise(changes, message):
    arguments = {
        "variances": [2.0, 1.0],
        "estimated_variances": [1.0, 2.0],
        "schedule": LinearVP(),
        "schemes": ["exponential"],
        "steps": [10],
        "t_ends": [0.1],
        "starts": ["standard"],
    } | changes
    with pytest.raises(ValueError, match=message):
        oracle.discretisation_table(**arguments)
