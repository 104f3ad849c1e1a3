"""Batched training: learned scores against the oracle, batch against alone, caps, freezing, one compilation."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import devices, losses, networks, oracle, sweeps, training
from ldmjax.job import Job
from ldmjax.schedules import LinearVP, RectifiedFlow

SCHEDULE = LinearVP()
VARIANCES = np.array([2.0, 0.8, 0.3, 0.1, 0.03, 0.01])
SMALL = {
    "linear": training.TrainingConfig(model="linear", steps=60, batch_size=32, levels=64),
    "mlp": training.TrainingConfig(model="mlp", steps=60, batch_size=32, hidden=16),
}


def latents(n=200, seed=0):
    sample = np.random.default_rng(seed).standard_normal((n, 6)) * np.sqrt(VARIANCES)
    return sweeps.Latents(sample=sample, fresh_factor=np.diag(np.sqrt(VARIANCES)))


LATENTS = {("toy", seed, n): latents(n, seed) for seed in (0, 1) for n in (50, 200)}


def spec(model, d, *, seed=0, n=200, draws="sample", **changes):
    return sweeps.RunSpec(
        model=model,
        data="toy",
        training_draws=draws,
        latent_dim=d,
        seed=seed,
        n=n,
        **{"learning_rate": 0.01, **changes},
    )


def grid(model):
    caps = {"cap": 5.0} if model == "linear" else {"draws": "fresh"}
    return [
        spec(model, 1),
        spec(model, 3, seed=1),
        spec(model, 3, n=50, learning_rate=0.02),
        spec(model, 6, **caps),
        spec(model, 2, **caps),
    ]


def leaves(trained, index, d):
    """Parameters of one run, cut to its own components."""
    params = jax.tree.map(lambda x: np.asarray(x[index]), trained.params)
    return [
        x[tuple(slice(d) if size == trained.width else slice(None) for size in x.shape)]
        for x in jax.tree.leaves(params)
    ]


@functools.cache
def trained_alone(model, i):
    return sweeps.train_scores([grid(model)[i]], LATENTS, SMALL[model], chunk=60)


@pytest.mark.parametrize(("model", "runs_per_batch"), [("linear", 1), ("mlp", 3)])
def test_run_in_a_batch_equals_run_alone(model, runs_per_batch):
    specs = grid(model)
    together = sweeps.train_scores(specs, LATENTS, SMALL[model], width=6, runs_per_batch=runs_per_batch, chunk=25)
    assert together.compilations == 1  # for three chunks and five runs of different dimension, cap, seed, n and rate
    for i in (2, 3) if model == "linear" else (3,):
        one, alone = specs[i], trained_alone(model, i)
        z = np.random.default_rng(0).standard_normal((20, one.latent_dim)).astype(np.float32)
        padded = jnp.asarray(np.pad(z, [(0, 0), (0, 6 - one.latent_dim)]))
        t = jnp.linspace(0.01, 0.9, 20)
        wide = together.denoiser(i)(padded, t)
        np.testing.assert_allclose(wide[:, : one.latent_dim], alone.denoiser(0)(jnp.asarray(z), t), atol=2e-4)
        assert not np.any(wide[:, one.latent_dim :])


def test_order_of_the_batch_does_not_matter():
    specs = grid("linear")
    forward = sweeps.train_scores(specs, LATENTS, SMALL["linear"], width=6)
    backward = sweeps.train_scores(specs[::-1], LATENTS, SMALL["linear"], width=6)
    for i, one in enumerate(specs):
        for a, b in zip(
            leaves(forward, i, one.latent_dim), leaves(backward, len(specs) - 1 - i, one.latent_dim), strict=True
        ):
            np.testing.assert_allclose(a, b, atol=1e-6)


def score_error(trained, index, law, cap=np.inf):
    """Relative error of the predicted noise over 30 levels."""
    width, d = trained.width, len(law[0])
    variances, rotation = np.zeros(width), np.zeros((width, width))
    variances[:d], rotation[:d, :d] = law
    errors, norms = losses.noise_prediction_errors(
        trained.denoiser(index),
        jnp.asarray(variances),
        jnp.asarray(rotation),
        jnp.asarray(cap),
        jax.random.key(0),
        schedule=trained.config.schedule,
        logsnrs=jnp.linspace(-10.0, 9.0, 30),
        count=200,
    )
    return float(np.sqrt(errors.sum() / norms.sum()))


def test_linear_scores_reach_prop_4():
    """On the n samples' own second moments (not their covariance), with and without a cap, within 2 % after 800 steps."""
    config = training.TrainingConfig(model="linear", steps=800, batch_size=128)
    specs = [spec("linear", d, cap=cap, learning_rate=0.05) for d in (1, 6) for cap in (np.inf, 5.0)]
    trained = sweeps.train_scores(specs, LATENTS, config, width=6)
    initial = dataclasses.replace(trained, params=trained.initial)
    for i, one in enumerate(specs):
        estimated = np.mean(LATENTS[("toy", 0, 200)].sample[:, : one.latent_dim] ** 2, axis=0)
        law = (estimated, np.eye(one.latent_dim))
        assert score_error(trained, i, law, one.cap) < 0.02
        assert score_error(initial, i, law, one.cap) > 0.1
        truth = (VARIANCES[: one.latent_dim], np.eye(one.latent_dim))
        assert score_error(trained, i, law, one.cap) < score_error(trained, i, truth, one.cap)


def test_cap_holds_everywhere():
    trained = sweeps.train_scores([spec("linear", 6, cap=3.0, learning_rate=0.05)], LATENTS, SMALL["linear"])
    z, t = jnp.ones((500, 6)), jnp.asarray(SCHEDULE.inverse_logsnr(np.linspace(-10, 9, 500)), jnp.float32)
    alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
    weights = (1 - alpha * trained.denoiser(0)(z, t)) / sigma**2
    assert np.max(np.abs(weights)) <= 3.0 * (
        1 + 1e-2
    )  # (1 - alpha D) / sigma^2 cancels in float32 where sigma is small
    graphdef = training.graph_definition(trained.config, trained.width)
    network = networks.nnx.merge(graphdef, jax.tree.map(lambda x: x[0], trained.params))
    assert np.max(np.abs(network.weights(t))) <= 3.0 * (1 + 1e-5)


def test_initialisation_does_not_see_the_data():
    one, other = (
        sweeps.train_scores([spec("linear", 6, seed=seed)], LATENTS, SMALL["linear"]).initial for seed in (0, 1)
    )
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("schedule", [LinearVP(), RectifiedFlow()])
def test_mlp_reaches_the_exact_score(schedule):
    config = training.TrainingConfig(model="mlp", steps=600, batch_size=128, hidden=32, schedule=schedule)
    trained = sweeps.train_scores([spec("mlp", 4, draws="fresh", learning_rate=0.005)], LATENTS, config)
    law = (VARIANCES[:4], np.eye(4))
    before = score_error(dataclasses.replace(trained, params=trained.initial), 0, law)
    after = score_error(trained, 0, law)
    assert after < 0.04 and after < before / 3
    # The denoiser itself, against E[z_0 | z] = alpha lam / (alpha^2 lam + sigma^2) z.
    t = np.array([0.1, 0.4, 0.8])
    alpha, sigma = schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    marginal = alpha**2 * VARIANCES[:4] + sigma**2
    z = np.sqrt(marginal) * np.random.default_rng(0).choice([-1.0, 1.0], (3, 4))
    learned = trained.denoiser(0)(jnp.asarray(z, jnp.float32), jnp.asarray(t, jnp.float32))
    # In units of the typical |E[z_0 | z]| of all components together.
    exact = alpha * VARIANCES[:4] / marginal * z
    assert np.sqrt(np.mean((learned - exact) ** 2) / np.mean(exact**2)) < 0.06


def smooth_maps():
    """Gaussian maps of 4 x 4 pixels whose covariance falls with distance: 400 latents, eigenvalues and eigenvectors."""
    rows, columns = np.divmod(np.arange(16), 4)
    distance = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    values, vectors = np.linalg.eigh(np.exp(-distance / 2.0))
    factor = vectors * np.sqrt(values)
    sample = np.random.default_rng(0).standard_normal((400, 16)) @ factor.T
    return sweeps.Latents(sample=sample, fresh_factor=factor), (values, vectors)


@pytest.mark.slow
def test_unet_reaches_the_exact_score():
    maps, (values, vectors) = smooth_maps()
    schedule = RectifiedFlow()
    config = training.TrainingConfig(
        model="unet", map_shape=(4, 4, 1), channels=(8, 8), steps=500, batch_size=64, schedule=schedule
    )
    specs = [spec("unet", 16, seed=seed, n=400, draws="fresh", learning_rate=0.01) for seed in (0, 1)]
    trained = sweeps.train_scores(specs, {("toy", seed, 400): maps for seed in (0, 1)}, config, chunk=500)
    # F = 0 at initialisation: E[z_0 | z] = alpha s^2 / R^2 z.
    x0, t = maps.sample[:8].astype(np.float32), np.linspace(0.05, 0.95, 8).astype(np.float32)
    variance, alpha, sigma = np.mean(maps.sample**2), schedule.alpha(t)[:, None], schedule.sigma(t)[:, None]
    shrinkage = alpha * variance / (alpha**2 * variance + sigma**2)
    initial = jax.jit(dataclasses.replace(trained, params=trained.initial).denoiser(0))
    np.testing.assert_allclose(initial(x0, t), shrinkage * x0, rtol=1e-4, atol=1e-5)

    def errors_of(denoiser, run, sources, extra):
        return losses.noise_prediction_errors(
            denoiser,
            jnp.asarray(values),
            jnp.asarray(vectors),
            run.inputs.cap,
            run.key,
            schedule=schedule,
            logsnrs=jnp.linspace(-10.0, 9.0, 30),
            count=200,
        )

    errors, norms = sweeps.map_trained(trained, errors_of, np.zeros(2))(np.arange(2))
    assert np.all(np.sqrt(errors.sum(axis=1) / norms.sum(axis=1)) < 0.07)  # 0.23 for the shrinkage alone


@pytest.mark.parametrize("count", [2, 3])  # as many runs as devices: nothing is padded, and the state is donated
def test_snapshot_is_the_average_at_that_step(count):
    specs = [spec("linear", 2, seed=seed) for seed in (0, 1)[: count - 1]] + [spec("linear", 3)]
    trained = sweeps.train_scores(specs, LATENTS, SMALL["linear"], chunk=20, snapshot=40)
    assert trained.snapshot is not None
    # A run that ends there has had other learning rates; what is known is that the average moves on.
    tables = [np.asarray(jax.tree.leaves(x)[0]) for x in (trained.initial, trained.snapshot, trained.params)]
    assert tables[1].shape == tables[2].shape == (count, 64, 3)
    before, after = (np.abs(b - a).max() for a, b in [(tables[0], tables[1]), (tables[1], tables[2])])
    assert before > 1e-3 and after > 1e-4
    final = sweeps.train_scores(specs, LATENTS, SMALL["linear"], chunk=20, snapshot=60)
    np.testing.assert_array_equal(jax.tree.leaves(final.snapshot)[0], tables[2])


def test_maps_and_vectors_are_not_mixed_up():
    config = training.TrainingConfig(model="unet", map_shape=(2, 3, 1), channels=(4,), steps=1, batch_size=4)
    with pytest.raises(ValueError, match="latent_dim 6, got"):
        sweeps.train_scores([spec("unet", 5)], LATENTS, config)
    with pytest.raises(ValueError, match="latent_dim 6, got"):
        sweeps.train_scores([spec("unet", 6)], LATENTS, config, width=8)


def test_diverging_run_is_frozen_and_spoils_nobody():
    model = "mlp"
    healthy, sick = spec(model, 3), spec(model, 3, learning_rate=1e38)
    trained = sweeps.train_scores([healthy, sick], LATENTS, SMALL[model], runs_per_batch=2)
    assert trained.failed_at[0] == -1 and trained.failed_at[1] >= 0
    for leaf in jax.tree.leaves(trained.params):
        assert np.all(np.isfinite(leaf))  # the sick run keeps its last finite parameters
    alone = sweeps.train_scores([healthy], LATENTS, SMALL[model])
    for a, b in zip(leaves(trained, 0, 3), leaves(alone, 0, 3), strict=True):
        np.testing.assert_allclose(a, b, atol=2e-4)


def test_mapping_at_a_narrow_width_gives_the_same():
    trained = sweeps.train_scores(grid("mlp"), LATENTS, SMALL["mlp"], width=6)

    def outputs(denoiser, run, sources, extra):
        x0 = sweeps.draw_latents(sources, run, run.key, 8)
        return jnp.sum(denoiser(x0, jnp.full(8, 0.3)), axis=1) + extra

    narrow_runs = np.array([0, 1, 4])
    wide, narrow = (sweeps.map_trained(trained, outputs, jnp.arange(5.0), width=width)(narrow_runs) for width in (6, 3))
    np.testing.assert_allclose(wide, narrow, rtol=1e-4)
    with pytest.raises(ValueError, match="too narrow"):
        sweeps.map_trained(trained, outputs, jnp.arange(5.0), width=3)(np.array([3]))


def test_draws_have_the_right_law():
    specs = [spec("mlp", 6, draws="fresh"), spec("mlp", 6)]
    runs, sources = sweeps.stack_runs(specs, LATENTS, 6)
    fresh, sampled = (
        np.asarray(sweeps.draw_latents(sources, jax.tree.map(lambda x, i=i: x[i], runs), jax.random.key(0), 50_000))
        for i in (0, 1)
    )
    moments = np.mean(LATENTS[("toy", 0, 200)].sample ** 2, axis=0)
    assert np.all(np.abs(fresh.var(0) / VARIANCES - 1) < 4 * np.sqrt(2 / 50_000))
    assert np.all(np.abs(np.mean(sampled**2, axis=0) / moments - 1) < 0.05)
    assert len(np.unique(sampled[:, 0])) <= 200


def test_progress_and_refusals():
    lines = []
    sweeps.train_scores(
        [spec("linear", 2)], LATENTS, SMALL["linear"], chunk=20, job=Job(show=lines.append, line_every=0.0)
    )
    assert len(lines) == 4 and "compiled in" in lines[0]
    assert all(text in lines[-1] for text in ("step 60/60", "run-steps/s", "s left"))
    with pytest.raises(ValueError, match="distinct names"):
        sweeps.train_scores([spec("linear", 2)] * 2, LATENTS, SMALL["linear"])
    with pytest.raises(ValueError, match="model 'linear'"):
        sweeps.train_scores([spec("mlp", 2)], LATENTS, SMALL["linear"])
    with pytest.raises(ValueError, match="cap must be > 1"):
        spec("linear", 2, cap=1.0)
    with pytest.raises(ValueError, match="training_draws"):
        spec("linear", 2, draws="all")


def test_learned_weights_follow_the_oracle_level_by_level():
    """The table itself against Prop. 4 where the prediction matters: sigma^2 m within 0.03 at every level."""
    config = training.TrainingConfig(model="linear", steps=800, batch_size=128)
    trained = sweeps.train_scores([spec("linear", 6, cap=20.0, learning_rate=0.05)], LATENTS, config)
    estimated = np.mean(LATENTS[("toy", 0, 200)].sample ** 2, axis=0)
    network = networks.nnx.merge(training.graph_definition(config, 6), jax.tree.map(lambda x: x[0], trained.params))
    t = SCHEDULE.inverse_logsnr(np.linspace(-10, 9, 50))
    noise_var = SCHEDULE.sigma(t) ** 2
    exact = oracle.capped_score_weights(estimated, noise_var, 20.0).T
    learned = np.asarray(network.weights(jnp.asarray(t, jnp.float32)))
    assert np.max(np.abs(learned - exact) * noise_var[:, None]) < 0.03


@pytest.mark.parametrize(("model", "steps"), [("linear", 60), ("mlp", 130)])
def test_a_loop_of_fixed_length_does_the_same_steps(model, steps):
    """What an accelerator runs: all runs at once, no end that is told, steps beyond the last that change nothing."""
    config = dataclasses.replace(SMALL[model], steps=steps)
    options = {"width": 6, "chunk": 120, "snapshot": 47}
    told = sweeps.train_scores(grid(model), LATENTS, config, **options)
    with devices.made_for("tpu"):
        fixed = sweeps.train_scores(grid(model), LATENTS, config, **options)
    assert fixed.compilations == 1
    np.testing.assert_allclose(fixed.losses, told.losses, rtol=2e-5)
    for a, b in zip(
        jax.tree.leaves((fixed.params, fixed.snapshot)), jax.tree.leaves((told.params, told.snapshot)), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=2e-5)
    np.testing.assert_array_equal(fixed.failed_at, told.failed_at)
