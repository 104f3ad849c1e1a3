"""Raw networks and their preconditioning: convolutions against XLA's, FLOPs against the compiler's count, equal FLOPs."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from ldmjax import convolutions, networks, optimiser, training
from ldmjax.schedules import LinearVP, RectifiedFlow

SPAN = {"logsnr_min": -10.0, "logsnr_max": 9.0}


def filled(make, seed=0):
    """A network whose every parameter is drawn by numpy: at initialisation it is 0 and says nothing."""
    graphdef, shapes = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(seed)
    return nnx.merge(graphdef, jax.tree.map(lambda x: jnp.asarray(rng.normal(0.0, 0.2, x.shape), jnp.float32), shapes))


def unet(map_shape, channels, blocks=1):
    return filled(
        lambda: networks.UNet(map_shape, channels=channels, blocks=blocks, rngs=nnx.Rngs(params=jax.random.key(0)))
    )


def mlp(dim):
    return filled(lambda: networks.ResidualMLP(dim, latent_dim=dim, hidden=8, rngs=nnx.Rngs(params=jax.random.key(0))))


def run_inputs(dim, data_std=0.7):
    return networks.RunInputs(jnp.ones(dim), jnp.asarray(jnp.inf), jnp.asarray(data_std))


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("sides", [(8, 8), (7, 7), (5, 2), (1, 1)])
def test_convolution_equals_that_of_xla(sides, stride):
    rng = np.random.default_rng(0)
    maps, kernel = rng.standard_normal((2, *sides, 3)), rng.standard_normal((3, 3, 3, 4))
    exact = jax.lax.conv_general_dilated(
        jnp.asarray(maps, jnp.float32),
        jnp.asarray(kernel, jnp.float32),
        (stride, stride),
        [(1, 1), (1, 1)],
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        precision="highest",
    )
    ours = convolutions.convolve(jnp.asarray(maps), jnp.asarray(kernel.reshape(27, 4)), stride=stride)
    np.testing.assert_allclose(ours, exact, atol=1e-4)


@pytest.mark.parametrize(
    ("map_shape", "channels"),
    [((7, 7, 3), (4, 5)), ((28, 28, 1), (3, 4)), ((5, 3, 2), (4, 5, 6)), ((1, 1, 4), (4,))],
)
def test_unet_takes_maps_of_any_sides(map_shape, channels):
    dim = math.prod(map_shape)
    network = unet(map_shape, channels)
    u = np.random.default_rng(1).standard_normal((2, dim)).astype(np.float32)
    features = np.linspace(0.0, 1.0, 2 * networks.BUMPS, dtype=np.float32).reshape(2, -1)

    def output_and_gradient(u, features):
        out, pullback = jax.vjp(lambda u: network(u, features), u)
        return out, pullback(out)[0]

    evaluate = jax.jit(output_and_gradient)
    out, gradient = evaluate(u, features)
    assert out.shape == u.shape and np.all(np.isfinite(out)) and np.std(out) > 0
    assert np.all(gradient != 0)  # every entry of the map reaches the output
    swapped, _ = evaluate(u[::-1], features)  # each map with the other one's time
    assert np.all(np.abs(swapped[::-1] - out).max(axis=1) > 1e-3)
    both, _ = evaluate(u[::-1], features[::-1])  # no map sees the others of its batch
    np.testing.assert_allclose(both[::-1], out, rtol=1e-3, atol=1e-4)


def test_unet_reads_maps_row_by_row():
    """Without down-sampling and with blocks at zero a U-Net is two convolutions, which move with the map inside it."""
    network = unet((9, 7, 2), (4,), blocks=0)
    network.position[...] = jnp.zeros_like(network.position[...])
    maps = np.zeros((9, 7, 2), np.float32)
    maps[3, 2, 1] = 1.0
    features = jnp.ones((1, networks.BUMPS))

    def output(image):
        return np.asarray(network(jnp.asarray(image.reshape(1, -1)), features)).reshape(9, 7, 2)

    moved = np.roll(maps, (2, 1), axis=(0, 1))
    np.testing.assert_allclose(output(moved), np.roll(output(maps), (2, 1), axis=(0, 1)), atol=1e-5)
    assert not np.any(output(maps)[6:]) and np.any(output(maps)[5])  # two convolutions reach two rows, no further


def test_skips_carry_the_finest_resolution():
    """With nothing coming up from below, two resolutions are one."""
    fine, both = unet((6, 5, 1), (4,), blocks=0), unet((6, 5, 1), (4, 5), blocks=0)
    for name in ("encode", "position", "gain", "decode"):
        getattr(fine, name)[...] = getattr(both, name)[...]
    u = jnp.asarray(np.random.default_rng(0).standard_normal((3, 30)), jnp.float32)
    features = jnp.ones((3, networks.BUMPS))
    assert np.abs(both(u, features) - fine(u, features)).max() > 0.1
    both.double[0][...] = jnp.zeros((5, 4))
    np.testing.assert_allclose(both(u, features), fine(u, features), atol=1e-5)


@pytest.mark.parametrize("schedule", [LinearVP(), RectifiedFlow()])
@pytest.mark.parametrize("raw", [unet((3, 3, 1), (4,)), mlp(9)])
def test_preconditioning(raw, schedule):
    """The formula in float64 numpy, at pure noise and at clean data too; the raw network sees unit scale."""
    network = networks.Preconditioned(raw, schedule=schedule, **SPAN)
    s, z = 0.7, np.random.default_rng(0).standard_normal((5, 9)).astype(np.float32)
    t = np.array([1.0, 0.9, 0.5, 0.01, 0.0]) if isinstance(schedule, RectifiedFlow) else np.linspace(1.0, 0.0, 5)
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    radius = np.hypot(alpha * s, sigma)
    centres = np.linspace(-10.0, 9.0, networks.BUMPS)
    logsnr = np.clip(schedule.logsnr(t), -10.0, 9.0)[:, None]
    features = np.exp(-0.5 * ((logsnr - centres) / (centres[1] - centres[0])) ** 2)
    f = np.asarray(jax.jit(raw.__call__)(jnp.asarray(z / radius, jnp.float32), jnp.asarray(features, jnp.float32)))
    exact = alpha * s**2 / radius**2 * z + sigma * s / radius * f
    ours = jax.jit(network.__call__)(jnp.asarray(z), jnp.asarray(t, jnp.float32), run_inputs(9, s))
    np.testing.assert_allclose(ours, exact, rtol=1e-3, atol=1e-3)


def compiled_flops(config, dim):
    graphdef, params = nnx.split(nnx.eval_shape(lambda: training.make_network(config, dim, jax.random.key(0), dim)))
    evaluate = jax.jit(lambda params, u, features: nnx.merge(graphdef, params).raw(u, features))
    compiled = evaluate.lower(params, jnp.zeros((1, dim)), jnp.zeros((1, networks.BUMPS))).compile()
    return compiled.cost_analysis()["flops"]


@pytest.mark.parametrize(
    ("dim", "size"),
    [
        (64, {"model": "mlp", "hidden": 128, "blocks": 2}),
        (8, {"model": "mlp", "hidden": 96, "blocks": 1}),
        (64, {"model": "unet", "map_shape": (8, 8, 1), "channels": (16, 24)}),
        (64, {"model": "unet", "map_shape": (8, 8, 1), "channels": (32, 64), "blocks": 0}),
        (98, {"model": "unet", "map_shape": (7, 7, 2), "channels": (20, 24, 32)}),
    ],
)
def test_flops_are_those_that_the_compiler_counts(dim, size):
    config = training.TrainingConfig(steps=1, batch_size=1, **size)
    # The compiler also counts element-wise operations, which the formulas leave out.
    ratio = compiled_flops(config, dim) / training.flops(config, dim)
    assert 0.995 < ratio < 1.06


def test_equal_flops():
    pixel = training.TrainingConfig(
        model="unet", map_shape=(8, 8, 1), channels=(8, 16), blocks=2, steps=1, batch_size=1
    )
    target = training.flops(pixel, 64)
    assert training.match_flops(pixel, 64, target) == pixel
    for map_shape in [(4, 4, 1), (4, 4, 4), (3, 3, 2)]:
        latent = dataclasses.replace(pixel, map_shape=map_shape)
        matched = training.match_flops(latent, math.prod(map_shape), target)
        assert abs(training.flops(matched, 16) / target - 1) < 0.02
        assert matched.channels[1] == pytest.approx(2 * matched.channels[0], rel=0.15)
        assert dataclasses.replace(matched, channels=(8, 16)) == latent
    mlp = training.TrainingConfig(model="mlp", hidden=64, steps=1, batch_size=1)
    for d in (1, 2, 16, 256):
        matched = training.match_flops(mlp, d, training.flops(mlp, 64))
        assert abs(training.flops(matched, d) / training.flops(mlp, 64) - 1) < 0.02


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"map_shape": None}, "needs map_shape"),
        ({"map_shape": (8, 0, 1)}, "needs map_shape"),
        ({"channels": ()}, "needs channels"),
        ({"channels": (4, 4, 4)}, "no more resolutions"),  # sides 3, 2, 1: a third would convolve single pixels
        ({"model": "mlp"}, "are the U-Net's"),
    ],
)
def test_refused_configurations(changes, line):
    config = {"model": "unet", "map_shape": (3, 3, 1), "channels": (4,), "steps": 1, "batch_size": 1}
    with pytest.raises(ValueError, match=line):
        training.TrainingConfig(**(config | changes))


def test_refused_flops_and_widths():
    with pytest.raises(ValueError, match="counted for models"):
        training.flops(training.TrainingConfig(model="linear", steps=1, batch_size=1), 4)
    with pytest.raises(ValueError, match="works at width 16"):
        unet((4, 4, 1), (4,)).narrow(8)


def test_ema_is_the_papers_after_fifty_thousand_steps():
    """Moved by 1 - (1 - 1/k)^8 up to 50,000 steps, by at least 1e-4 after that, in the state itself."""
    params = {"w": jnp.zeros(1)}
    gradient = {"w": jnp.full(1, 1.0)}

    def moved(step):
        pace = {"rate": jnp.asarray(1.0), "ema_share": 1.0 - optimiser.ema_decay(jnp.asarray(step), 7.0)}
        state = optimiser.fresh_state(params)
        new = optimiser.apply_gradient(state, jnp.zeros(()), gradient, **pace, step=jnp.asarray(step))
        return float(new.ema["w"][0] / new.params["w"][0])

    assert moved(0) == pytest.approx(1.0)
    assert moved(9) == pytest.approx(1 - 0.9**8, rel=1e-5)
    assert moved(40_000) == pytest.approx(8 / 40_001, rel=1e-2)
    assert moved(1_000_000) == pytest.approx(1e-4, rel=1e-2)
    slow = optimiser.ema_decay(jnp.asarray([49_999, 50_000]), 1.0)
    np.testing.assert_allclose(1 - slow, [2 / 50_000, 1e-4], rtol=1e-2)
