"""Stacked experts: coefficients, independence of the stack, sampling on trained levels only, learning, divergence."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import devices, experts, loops, optimiser, oracle, process, samplers
from ldmjax.job import Job
from ldmjax.networks import BUMPS
from ldmjax.schedules import Ladder, cosine_levels, karras_levels, rectified_flow_levels

LADDER = Ladder(*karras_levels(6, sigma_min=0.05, sigma_max=10.0))
# Not variance preserving, and pure noise at the top.
FLOW = Ladder(*rectified_flow_levels(5))
VARIANCES = np.array([6.0, 2.0, 0.5])
STD = float(np.sqrt(VARIANCES.mean()))
DATA = np.random.default_rng(0).standard_normal((20_000, 3)) * np.sqrt(VARIANCES)
STEPS, EARLY, HIDDEN = 500, 20, 12
CHAINS = ("ddim", "dpmpp_2m", "heun")
STATIC = 1e-30  # a learning rate that leaves a model as it was initialised


def spec(parameterisation="v", *, seed=0, rate=0.01):
    return experts.ModelSpec(seed=seed, parameterisation=parameterisation, learning_rate=rate)


def config(count, **changes):
    values = {"ladder": LADDER, "batch_size": 32, "steps": STEPS, "hidden": HIDDEN, "checkpoints": (EARLY,)}
    return experts.ExpertsConfig(experts=count, **(values | changes))


SPECS = [spec("noise"), spec("v", seed=1), spec("v", rate=STATIC), spec("v", rate=1e10), spec("noise", rate=STATIC)]
NOISE, V, UNTRAINED, DIVERGED, UNTRAINED_NOISE = range(5)


@pytest.fixture(scope="module", autouse=True)
def quick_compilation():
    """These programs are compiled once and run for less than a second."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def disentangled():
    """One expert per level, all of a device at once; two models that learn, two that stay, one that diverges."""
    lines = []
    return experts.train_experts(
        SPECS, DATA, config(6), experts_per_batch=15, job=Job(show=lines.append, line_every=0.0)
    ), lines


@pytest.fixture(scope="module")
def partial():
    """The learning models of `disentangled` in the other order, without levels 1 and 2, one expert at a time."""
    return experts.train_experts([SPECS[V], SPECS[NOISE]], DATA, config(6, states=(3, 6)))


@pytest.fixture(scope="module")
def blocks():
    """Four experts on levels 1-2, 3-4, 5 and 6, three at a time."""
    return experts.train_experts([spec("noise"), spec("v", seed=1)], DATA, config(4), experts_per_batch=3)


@pytest.fixture(scope="module")
def joint():
    """One expert for all levels."""
    return experts.train_experts([spec("noise"), spec("v", seed=1)], DATA, config(1, batch_size=128, steps=1500))


# Every compilation takes seconds, so what tests measure of models is computed for all of them at once.
MIXED = np.array([6, 1, 3, 3, 2, 5, 4, 1, 6, 2, 5, 4], np.float32)
POINTS = np.random.default_rng(3).standard_normal((12, 3)).astype(np.float32)
STARTS = np.random.default_rng(6).standard_normal((16, 3)).astype(np.float32)
LEVELS = np.arange(1.0, 7.0, dtype=np.float32)
MARGINAL = np.sqrt(LADDER.alpha(LEVELS)[:, None] ** 2 * VARIANCES + LADDER.sigma(LEVELS)[:, None] ** 2)
NOISED = (np.random.default_rng(5).standard_normal((6, 500, 3)) * MARGINAL[:, None]).astype(np.float32)


def predictions(denoiser, _):
    def at_level(pair):
        z, level = pair
        both = jnp.concatenate([POINTS, z])
        return denoiser(both, jnp.full(len(both), level))

    each = jax.lax.map(at_level, (jnp.asarray(NOISED), jnp.asarray(LEVELS)))
    mixed = denoiser(jnp.concatenate([POINTS, POINTS]), jnp.concatenate([MIXED, MIXED - 1.0]))
    return {"by_level": each[:, :12], "noised": each[:, 12:], "mixed": mixed[:12], "below": mixed[12:]}


def predictions_and_chains(denoiser, _):
    """Also where every chain is at level 2."""
    ends = {
        s: samplers.sample(
            denoiser,
            LADDER,
            jnp.asarray(STARTS),
            jax.random.key(0),
            times=LADDER.times[:5],
            stops=[4],
            statistic=lambda z, t: z,
            sampler=s,
        )[0]
        for s in CHAINS
    }
    return predictions(denoiser, None) | ends


@pytest.fixture(scope="module")
def measured(disentangled, blocks, joint, partial):
    return {
        "disentangled": disentangled[0].map_models(predictions_and_chains),
        "partial": partial.map_models(predictions_and_chains),
        "blocks": blocks.map_models(predictions),
        "joint": joint.map_models(predictions),
    }


@pytest.mark.parametrize("parameterisation", experts.PARAMETERISATIONS)
@pytest.mark.parametrize("ladder", [LADDER, Ladder(*cosine_levels(9)), FLOW], ids=["karras", "cosine", "flow"])
@pytest.mark.parametrize("data_std", [1.0, 0.3, 4.0])
def test_target_and_coefficients_give_the_clean_sample_back(parameterisation, ladder, data_std):
    """The sum skip z + out (a x0 + b eps) = x0 for any x0 and eps, in float64 from the float32 table."""
    levels = np.arange(1, int(ladder.t_max) + (ladder is not FLOW or parameterisation == "v"))
    table = experts.level_table(ladder, levels, parameterisation, data_std, timed=False)
    assert table.features is None and all(np.shape(c) == levels.shape for c in table[:-1])
    alpha, sigma, radius, skip, out, a, b = (np.asarray(c, np.float64)[:, None, None] for c in table[:-1])
    np.testing.assert_allclose(alpha[:, 0, 0], ladder.alpha(levels), rtol=1e-6)
    np.testing.assert_allclose(sigma[:, 0, 0], ladder.sigma(levels), rtol=1e-6)
    np.testing.assert_allclose(radius**2, (alpha * data_std) ** 2 + sigma**2, rtol=1e-6)
    rng = np.random.default_rng(1)
    x0, noise = data_std * rng.standard_normal((len(levels), 50, 3)), rng.standard_normal((len(levels), 50, 3))
    z = alpha * x0 + sigma * noise
    found = skip * z + out * (a * x0 + b * noise)
    scale = np.abs(skip * z) + np.abs(out) * (np.abs(a * x0) + np.abs(b * noise))
    assert np.max(np.abs(found - x0) / scale) < 1e-6
    if parameterisation == "v":
        # Unit scale in and out: EDM's choice. The target is uncorrelated with z, so skip alone is the best linear guess.
        np.testing.assert_allclose((a * data_std) ** 2 + b**2, 1.0, rtol=1e-6)
        assert np.max(np.abs(a * alpha * data_std**2 + b * sigma)) < 1e-6 * max(data_std, 1.0)


@pytest.mark.parametrize("ladder", [LADDER, FLOW], ids=["karras", "flow"])
def test_tables_are_the_conversions_of_process(ladder):
    """Equation (2) is x0 from the noise; (3) with s = 1 is x0 from v, whose sign is the other way round."""
    rng = np.random.default_rng(2)
    for parameterisation, levels, convert in [
        ("noise", np.arange(1, int(ladder.t_max)), process.x0_from_epsilon),
        ("v", np.arange(1, int(ladder.t_max) + 1), lambda f, *rest: process.x0_from_v(-f, *rest)),
    ]:
        table = experts.level_table(ladder, levels, parameterisation, 1.0, timed=False)
        z, output = rng.standard_normal((2, len(levels), 4))
        expected = convert(output, z, ladder, levels)
        found = table.skip[:, None] * z + table.out[:, None] * output
        scale = np.abs(table.skip[:, None] * z) + np.abs(table.out[:, None] * output)
        assert np.max(np.abs(found - expected) / scale) < 1e-6


def test_time_features_tell_the_levels_of_a_block_apart():
    levels = np.array([2, 3, 4])
    features = experts.level_table(LADDER, levels, "v", 1.0, timed=True).features
    assert features.shape == (3, BUMPS) and np.min(np.ptp(features, axis=0)) > 0
    # The noisiest level excites the first bump, the cleanest the last.
    assert np.argmax(features, axis=1)[0] == BUMPS - 1 and np.argmax(features, axis=1)[2] == 0
    alone = experts.level_table(LADDER, levels[:1], "v", 1.0, timed=True).features
    assert np.all(np.isfinite(alone)) and alone.shape == (1, BUMPS)
    pure_noise = experts.level_table(FLOW, np.array([4, 5]), "v", 1.0, timed=True).features
    assert np.all(np.isfinite(pure_noise)) and np.max(np.abs(pure_noise[0] - pure_noise[1])) > 0.1
    assert np.all(np.isfinite(experts.level_table(FLOW, np.array([5]), "v", 1.0, timed=True).features))


@pytest.mark.parametrize("levels", [1, 2, 7, 8, 32])
def test_blocks_of_levels_are_contiguous_and_as_equal_as_can_be(levels):
    ladder = Ladder(*karras_levels(levels))
    for count in range(1, levels + 1):
        found = experts.ExpertsConfig(ladder=ladder, experts=count, batch_size=1, steps=1)
        sizes = [len(block) for block in found.level_blocks]
        assert np.concatenate(found.level_blocks).tolist() == list(range(1, levels + 1))
        assert len(sizes) == count and max(sizes) - min(sizes) <= 1
        assert found.timed == (count < levels)


def test_states_cut_blocks_and_drop_experts():
    def kept(count, states):
        return [block.tolist() for block in config(count, states=states).level_blocks]

    assert kept(4, None) == [[1, 2], [3, 4], [5], [6]]
    assert kept(4, (2, 5)) == [[2], [3, 4], [5]]
    assert kept(4, (4, 4)) == [[4]]
    assert kept(6, (3, 6)) == [[3], [4], [5], [6]]
    assert kept(1, (2, 6)) == [[2, 3, 4, 5, 6]]
    assert kept(1, (1, 6)) == [[1, 2, 3, 4, 5, 6]]
    assert config(4, states=(4, 4)).timed  # a block of one level out of more keeps its time input


def random_keys(count, levels, states=None):
    """The keys of two models of both kinds ``[models, experts]``, as integers."""
    settings = experts.ExpertsConfig(
        ladder=Ladder(*karras_levels(levels)), experts=count, batch_size=1, steps=1, states=states
    )
    specs = [spec("noise"), spec("v"), spec("v", seed=1), spec("v", rate=0.02)]
    keys = np.asarray(jax.random.key_data(experts._stack_runs(specs, settings, 1.0).key)).astype(np.uint64)
    return (keys[:, 0] << np.uint64(32) | keys[:, 1]).reshape(4, -1)


@pytest.mark.parametrize(("count", "levels"), [(1, 6), (6, 6), (4, 6), (6, 8), (9, 12)])
def test_every_expert_has_its_own_random_numbers(count, levels):
    """Experts that share a key draw the same batches and the same noise: their errors are not independent."""
    keys = random_keys(count, levels)
    assert keys.shape == (4, count) and len(np.unique(keys)) == keys.size


@pytest.mark.parametrize(("states", "kept"), [((3, 5), [1, 2]), ((4, 5), [1, 2]), ((2, 6), [0, 1, 2, 3])])
def test_untrained_neighbours_do_not_change_the_random_numbers(states, kept):
    np.testing.assert_array_equal(random_keys(4, 6, states), random_keys(4, 6)[:, kept])


def test_models_do_not_depend_on_their_neighbours_nor_on_the_batch(disentangled, partial):
    """One expert at a time, two healthy models; against fifteen at a time, five models, one of them diverging."""
    full, _ = disentangled
    np.testing.assert_allclose(partial.params, full.params[:, [V, NOISE], 2:], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(partial.losses, full.losses[:, [V, NOISE], 2:], rtol=1e-4)


def test_expert_in_the_stack_equals_expert_trained_alone(blocks):
    alone = experts.train_experts([spec("v", seed=1)], DATA, config(4, states=(3, 4)))
    assert alone.params.shape[:3] == (2, 1, 1)
    np.testing.assert_allclose(alone.params[:, 0, 0], blocks.params[:, V, 1], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(alone.losses[:, 0, 0], blocks.losses[:, V, 1], rtol=1e-4)


@pytest.mark.parametrize("case", ["disentangled", "blocks"])
def test_experts_and_models_differ(case, request):
    """Or the two tests above would prove nothing."""
    trained = request.getfixturevalue(case)
    params = (trained[0] if case == "disentangled" else trained).params[1, :2]
    assert np.min(np.ptp(params, axis=0).max(axis=-1)) > 0.1
    assert np.min(np.abs(np.diff(params, axis=1)).max(axis=-1)) > 0.1


def test_experts_do_not_share_initial_parameters_or_noise(disentangled):
    full, _ = disentangled
    initial = full.params[1, [UNTRAINED, UNTRAINED_NOISE]].reshape(12, -1)
    assert all(np.max(np.abs(initial[i] - initial[j])) > 0.1 for i in range(12) for j in range(i))
    # The loss of a network that predicts no noise at all is the mean square of the noise: of 20 x 32 x 3 numbers first.
    squares = full.losses[0, UNTRAINED_NOISE]
    assert np.all(np.abs(squares - 1.0) < 4.5 * np.sqrt(2.0 / (EARLY * 32 * 3)))
    assert np.min(np.abs(np.diff(np.sort(squares)))) > 1e-5


@pytest.fixture(scope="module")
def watched(disentangled):
    """The first steps again: (result, text of every compiled program that ran, state after the last)."""
    programs, states = [], []

    def watch(*settings):
        init, advance = compiled(*settings)

        def call(*arguments):
            shared, *rows = devices.replicate(arguments[0]), *map(devices.place, arguments[1:])
            program = advance._program(devices._mesh(jax.device_count()))
            programs.append(program.lower(shared, *rows).compile().as_text())
            state, loss = advance(*arguments)
            states.append(jax.tree.map(np.asarray, state))
            return state, loss

        return init, call

    compiled = experts._compiled_training
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(experts, "_compiled_training", watch)
        short = experts.train_experts(SPECS, DATA, config(6, steps=EARLY, checkpoints=()), experts_per_batch=15)
    return short, programs, states[-1]


@pytest.mark.needs_cpu("two devices")
def test_experts_never_talk_to_each_other(watched):
    """No collective in the compiled program of two devices, so K devices need no connection while they train."""
    _, programs, _ = watched
    assert len(programs) == 2 and programs[0] == programs[1]
    assert "num_partitions=2" in programs[0] and "while" in programs[0]
    for collective in ("all-reduce", "all-gather", "all-to-all", "collective", "send", "recv"):
        assert collective not in programs[0]


def test_parameters_kept_are_the_average(watched):
    short, _, state = watched
    np.testing.assert_array_equal(short.params[0].reshape(30, -1), state.ema)
    assert np.min(np.max(np.abs(state.ema - state.params)[:12], axis=1)) > 1e-3


def test_checkpoints_are_shorter_runs(disentangled, watched):
    full, lines = disentangled
    short = watched[0]
    assert full.checkpoints.tolist() == [EARLY, STEPS] and short.checkpoints.tolist() == [EARLY]
    np.testing.assert_array_equal(short.params[0], full.params[0])
    healthy = [NOISE, V, UNTRAINED, UNTRAINED_NOISE]
    np.testing.assert_array_equal(short.losses[0, healthy], full.losses[0, healthy])
    other = experts.train_experts(SPECS, DATA, config(6, checkpoints=(STEPS - EARLY,)), experts_per_batch=15)
    np.testing.assert_array_equal(other.params[-1], full.params[-1])
    mean = [
        (EARLY * x.losses[k] + (STEPS - EARLY) * x.losses[1 - k])[healthy] / STEPS for x, k in ((full, 0), (other, 1))
    ]
    np.testing.assert_allclose(mean[0], mean[1], rtol=1e-4)
    assert full.losses.shape == (2, 5, 6) and np.all(full.losses[1, :2].mean(axis=1) < full.losses[0, :2].mean(axis=1))
    for trained in (full, other):
        assert trained.seconds.shape == (2,) and np.all(np.diff([0.0, *trained.seconds]) > 0)
    began, *steps = lines
    assert began.startswith(f"K = 6, 5 models: 30 experts of {STEPS} steps, compiled in")
    assert [line.split(", loss")[0] for line in steps] == [
        f"K = 6, 5 models: step {done}/{STEPS}" for done in (EARLY, STEPS)
    ]


def test_a_loop_of_fixed_length_does_the_same_steps(monkeypatch):
    """What an accelerator runs: all experts at once, steps beyond the last that change nothing. One model diverges."""
    monkeypatch.setattr(loops, "MOST_PER_CALL", 20)
    settings = config(4, steps=30, checkpoints=())
    told = experts.train_experts(SPECS, DATA, settings)
    with devices.made_for("tpu"):
        fixed = experts.train_experts(SPECS, DATA, settings)
    healthy = np.arange(len(SPECS)) != DIVERGED
    np.testing.assert_allclose(fixed.losses[:, healthy], told.losses[:, healthy], rtol=2e-5)
    np.testing.assert_allclose(fixed.params, told.params, atol=2e-5)
    np.testing.assert_array_equal(fixed.failed_at, told.failed_at)


def test_learning_rate_rises_from_a_fiftieth(disentangled):
    """Adam's first step moves every parameter by the rate; those of the last layer start at 0."""
    one = experts.train_experts(SPECS, DATA, config(6, steps=1, checkpoints=()), experts_per_batch=15)
    moved = np.abs(one.params[0, V])
    last_layer = np.isclose(moved, 0.01 / experts.WARM_UP, rtol=1e-3).sum(axis=-1)
    assert experts.WARM_UP == 50 and np.all(last_layer >= 3 * HIDDEN)


def test_diverging_model_is_frozen_and_says_when(disentangled, blocks, joint):
    """That it spoils nobody is `test_models_do_not_depend_on_their_neighbours_nor_on_the_batch`."""
    full, _ = disentangled
    assert full.failed_at.shape == (5, 6)
    assert np.all(np.delete(full.failed_at, DIVERGED, axis=0) == -1)
    assert np.all((full.failed_at[DIVERGED] >= 0) & (full.failed_at[DIVERGED] < EARLY))
    assert np.all(np.isfinite(full.params[:, DIVERGED]))
    assert np.all(blocks.failed_at == -1) and np.all(joint.failed_at == -1)
    # It stopped before the first checkpoint and never moved again.
    np.testing.assert_array_equal(full.params[0, DIVERGED], full.params[1, DIVERGED])


def test_power_average_and_freezing_of_one_step():
    """After step k the average moves by 1 - (1 - 1/k)^(gamma + 1); what is not finite changes nothing but failed_at."""
    state = optimiser.fresh_state({"w": jnp.array([1.0, -2.0])}, memory=jnp.zeros(()))
    gradient = {"w": jnp.array([0.5, -1.0])}
    average, seen = np.array([1.0, -2.0]), []

    def apply(state, loss, gradient, step):
        pace = {"rate": jnp.asarray(0.1), "ema_share": 1.0 - optimiser.ema_decay(jnp.asarray(step), 2.0)}
        memory = jnp.asarray(1.0 + step)
        return optimiser.apply_gradient(
            state, jnp.asarray(loss), gradient, **pace, step=jnp.asarray(step), memory=memory
        )

    for step in range(3):
        state = apply(state, 1.0, gradient, step)
        seen.append(np.asarray(state.params["w"]))
        share = 1.0 - (1.0 - 1.0 / (step + 1)) ** 3
        average = (1.0 - share) * average + share * seen[-1]
        np.testing.assert_allclose(state.ema["w"], average, rtol=1e-6)
        # Adam with a constant gradient: steps of the learning rate.
        np.testing.assert_allclose(
            seen[-1], np.array([1.0, -2.0]) - 0.1 * (step + 1) * np.array([1.0, -1.0]), rtol=1e-5
        )
    for loss, slope, step in [(np.nan, 1.0, 7), (1.0, np.inf, 8), (1.0, 1.0, 9)]:
        bad = {"w": jnp.array([slope, 1.0])}
        frozen = apply(state, loss, bad, step)
        assert int(frozen.failed_at) == 7 and float(frozen.memory) == 3.0
        for part in ("params", "optimiser", "ema"):
            for a, b in zip(jax.tree.leaves(getattr(frozen, part)), jax.tree.leaves(getattr(state, part)), strict=True):
                np.testing.assert_array_equal(a, b)
        state = frozen


def test_parameters_are_counted_by_hand(disentangled, blocks, joint, partial):
    untimed = 3 * HIDDEN + HIDDEN * 3 + 2 * HIDDEN**2
    timed = untimed + 3 * BUMPS * HIDDEN
    for trained, expected in [
        (disentangled[0], 6 * untimed),
        (partial, 4 * untimed),
        (blocks, 4 * timed),
        (joint, timed),
    ]:
        assert trained.parameter_count == expected
        assert trained.training_bytes == 4 * 4 * expected


@pytest.mark.parametrize("case", ["disentangled", "blocks", "joint"])
def test_mixed_levels_in_one_batch(measured, case):
    """Asked for one level after the other, as chains do, or for all at once."""
    found = measured[case]
    chosen = found["by_level"][-1, V][MIXED.astype(int) - 1, np.arange(12)]
    np.testing.assert_allclose(found["mixed"][-1, V], chosen, rtol=1e-5, atol=1e-5)
    assert np.min(np.std(found["by_level"][-1, V], axis=0)) > 1e-3
    # Level 0 is clean data, never trained.
    np.testing.assert_array_equal(np.all(np.isnan(found["below"][-1, V]), axis=1), MIXED == 1)
    np.testing.assert_allclose(found["below"][-1, V][MIXED == 4], found["by_level"][-1, V, 2][MIXED == 4], atol=1e-5)


def test_denoiser_of_a_model_is_what_map_models_maps(measured, blocks):
    alone = jax.jit(blocks.denoiser(V, checkpoint=0))(jnp.asarray(POINTS), jnp.asarray(MIXED))
    np.testing.assert_allclose(measured["blocks"]["mixed"][0, V], alone, rtol=1e-5, atol=1e-5)
    last = blocks.denoiser(NOISE)(jnp.asarray(POINTS), jnp.full(12, 5.0))
    np.testing.assert_allclose(measured["blocks"]["by_level"][1, NOISE, 4], last, rtol=1e-5, atol=1e-5)


def test_map_models_gives_each_model_its_own_extra(blocks):
    answers = blocks.map_models(lambda denoiser, extra: extra["a"] + 1.0, {"a": np.array([10.0, 20.0], np.float32)})
    assert isinstance(answers, np.ndarray) and answers.tolist() == [[11.0, 21.0], [11.0, 21.0]]


def test_untrained_v_model_is_the_denoiser_of_an_isotropic_gaussian(disentangled, measured):
    full, _ = disentangled
    std = float(np.sqrt(np.mean(DATA**2)))
    assert full.data_std == pytest.approx(std, rel=1e-6)
    expected = oracle.gaussian_denoiser(np.full(3, std**2), LADDER)
    for level in (1, 2, 3, 4, 5, 6):
        found = measured["disentangled"]["by_level"][-1, UNTRAINED, level - 1]
        np.testing.assert_allclose(found, expected(POINTS, np.full(12, level)), rtol=1e-5, atol=1e-6)
    # Its loss is the variance of the target, 1 per component: EDM's unit scale.
    np.testing.assert_allclose(full.losses[1, UNTRAINED], 1.0, rtol=0.1)


def relative_error(predicted):
    """Root mean square of D(z) - E[x0 | z] over that of E[x0 | z], all levels together, z from the data's noised law."""
    exact = oracle.gaussian_denoiser(VARIANCES, LADDER)
    truth = np.stack([exact(z, np.full(500, level)) for z, level in zip(NOISED, LEVELS, strict=True)])
    return np.sqrt(np.sum((predicted - truth) ** 2) / np.sum(truth**2))


@pytest.mark.parametrize(
    ("case", "model", "bound"),
    [("joint", NOISE, 0.1), ("joint", V, 0.1), ("disentangled", NOISE, 0.1), ("disentangled", V, 0.1)],
)
def test_learned_models_approach_the_exact_denoiser(measured, case, model, bound):
    if model == NOISE:
        initial = relative_error(NOISED / LADDER.alpha(LEVELS)[:, None, None])
    else:
        initial = relative_error(measured["disentangled"]["noised"][-1, UNTRAINED])
    early, final = (relative_error(measured[case]["noised"][c, model]) for c in (0, 1))
    print(case, model, initial, early, final)
    assert final < bound and final < initial / 3 and final < early


def test_chains_stop_above_the_levels_that_were_not_trained(measured):
    """Levels 1 and 2 untrained: the denoiser is NaN there, and chains to level 2 are those of the whole model."""
    part, full = measured["partial"], measured["disentangled"]
    assert np.all(np.isnan(part["by_level"][:, :, :2])) and np.all(np.isfinite(part["by_level"][:, :, 2:]))
    np.testing.assert_array_equal(np.all(np.isnan(part["mixed"]), axis=-1), np.broadcast_to(MIXED <= 2, (2, 2, 12)))
    for sampler in CHAINS:
        assert part[sampler].shape == (2, 2, 16, 3) and np.all(np.isfinite(part[sampler]))
        np.testing.assert_allclose(part[sampler], full[sampler][:, [V, NOISE]], rtol=1e-3, atol=1e-3)
    assert min(np.max(np.abs(part[a][1] - part[b][1])) for a, b in [CHAINS[:2], CHAINS[1:]]) > 0.01


def test_noise_prediction_refuses_pure_noise_and_v_serves_it():
    """Rectified flow: alpha = 0 at the noisiest level, alpha^2 + sigma^2 is not 1. The network has no blocks."""
    settings = config(1, ladder=FLOW, blocks=0, steps=300, checkpoints=())
    with pytest.raises(ValueError, match="alpha = 0: use 'v'"):
        experts.train_experts([spec("v"), spec("noise")], DATA, settings)
    experts.level_table(FLOW, np.arange(1, 5), "noise", 1.0, timed=True)  # the levels below can be learned
    trained = experts.train_experts([spec("v")], DATA, settings)
    assert trained.parameter_count == (2 * 3 + BUMPS) * HIDDEN

    def ends(denoiser, _):
        start = jax.random.normal(jax.random.key(1), (256, 3))
        states = samplers.sample(
            denoiser,
            FLOW,
            start,
            jax.random.key(0),
            times=FLOW.times,
            stops=[1, 5],
            statistic=lambda z, t: z,
            sampler="ddim",
        )
        # The first update is sigma' eps + alpha' E[x0 | pure noise], with eps = z.
        return states[1], (states[0] - FLOW.sigma(4) * start) / FLOW.alpha(4)

    samples, guess = trained.map_models(ends)
    assert np.all(np.isfinite(samples)) and 0.5 * STD < np.sqrt(np.mean(samples**2)) < 1.5 * STD
    assert np.sqrt(np.mean(guess**2)) < 0.25 * STD  # of pure noise the best guess is the mean, 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"experts": 0}, "experts must be 1..6"),
        ({"experts": 7}, "experts must be 1..6"),
        ({"batch_size": 0}, "batch_size must be >= 1"),
        ({"steps": 0}, "steps must be >= 1"),
        ({"hidden": 0}, "hidden must be >= 1"),
        ({"blocks": -1}, "blocks must be >= 0"),
        ({"states": (0, 3)}, "1 <= low <= high <= 6"),
        ({"states": (4, 3)}, "1 <= low <= high <= 6"),
        ({"states": (3, 7)}, "1 <= low <= high <= 6"),
        ({"checkpoints": (5, 5)}, "checkpoints must rise"),
        ({"checkpoints": (0, 5)}, "checkpoints must rise"),
        ({"checkpoints": (7, 5)}, "checkpoints must rise"),
        ({"checkpoints": (STEPS + 1,)}, f"within 1..{STEPS}"),
    ],
)
def test_bad_configurations_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config(2), **changes)


def test_bad_models_are_refused():
    with pytest.raises(ValueError, match="noise, v, got 'epsilon'"):
        spec("epsilon")
    for rate in (0.0, -1.0, float("nan")):
        with pytest.raises(ValueError, match="learning_rate must be > 0"):
            spec(rate=rate)
    with pytest.raises(ValueError, match="distinct"):
        experts.train_experts([spec(), spec()], DATA, config(6))
