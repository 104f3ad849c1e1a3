"""The tasks of the T-space experiments: scale, covariance, exact score, exact flow, distances and their floors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import data, oracle, tasks
from ldmjax.schedules import Ladder, karras_levels, uniform_logsnr_levels

LADDER = Ladder(*karras_levels(6, sigma_min=0.05, sigma_max=10.0))


@pytest.fixture(scope="module", autouse=True)
def few_draws():
    """A quarter of the draws that experiments train on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tasks, "DRAWS", tasks.DRAWS // 4)
        yield


@pytest.fixture(scope="module")
def synthetic(few_draws):
    return dict(zip(tasks.SYNTHETIC, tasks.make_tasks(tasks.SYNTHETIC, data.digits(), latent_dim=1), strict=True))


@pytest.fixture(scope="module")
def digits():
    return tasks.data_task(data.digits(), latent_dim=20, seed=3)


def standard_error(values):
    """Of the mean over the first axis."""
    return values.std(axis=0) / np.sqrt(len(values))


@pytest.mark.parametrize(("name", "dim"), [("mixture", 8), ("gaussian", 16)])
def test_synthetic_tasks_have_unit_scale_and_the_covariance_they_state(synthetic, name, dim):
    task = synthetic[name]
    assert task.name == name and task.dim == dim and task.exact is not None
    assert task.training.shape == (tasks.DRAWS, dim) and task.reference.shape == (2 * tasks.DRAWS, dim)
    assert np.trace(task.covariance) == pytest.approx(dim, rel=1e-9)
    for sample in (task.training, task.reference):
        assert abs(np.mean(sample**2) - 1.0) < 4 * standard_error(np.mean(sample**2, axis=1))
        assert np.all(np.abs(sample.mean(axis=0)) < 4 * standard_error(sample))
        products = sample[:, :, None] * sample[:, None, :]
        assert np.all(np.abs(products.mean(axis=0) - task.covariance) < 4.5 * standard_error(products))
    # Independent draws: no row of one in the other, no correlation between them.
    assert not set(task.training[:, 0]) & set(task.reference[:, 0])
    cross = task.training * task.reference[: tasks.DRAWS]
    assert np.all(np.abs(cross.mean(axis=0)) < 4 * standard_error(cross))


def test_gaussian_spectrum_falls_by_exp_of_a_quarter():
    variances = np.diag(tasks.gaussian_task(dim=5).covariance)
    np.testing.assert_allclose(variances[1:] / variances[:-1], np.exp(-0.25), rtol=1e-12)
    assert variances.sum() == pytest.approx(5.0)


@pytest.mark.parametrize("maker", [tasks.mixture_task, tasks.gaussian_task])
def test_seed_chooses_the_draws(maker):
    one, other, again = maker(seed=0), maker(seed=1), maker(seed=0)
    np.testing.assert_array_equal(one.training, again.training)
    np.testing.assert_array_equal(one.reference, again.reference)
    assert np.min(np.abs(one.training[:10] - other.training[:10])) > 1e-6


@pytest.mark.parametrize(("name", "low", "high"), [("mixture", 1.8, 2.6), ("gaussian", 0.99, 1.001)])
def test_exact_denoiser_is_the_conditional_mean_of_the_training_data(synthetic, name, low, high):
    """What it leaves open is uncorrelated with functions of z; a linear guess leaves as much, on the mixture far more."""
    task = synthetic[name]
    x0 = task.training
    denoiser = jax.jit(task.exact(LADDER))
    noise = np.random.default_rng(11).standard_normal(x0.shape)
    for level in (1, 3, 5):
        alpha, sigma = LADDER.alpha(level), LADDER.sigma(level)
        z = alpha * x0 + sigma * noise
        guess = np.asarray(denoiser(jnp.asarray(z, jnp.float32), jnp.full(len(z), float(level))), np.float64)
        for other in (guess, z, z**3, np.sign(z)):
            products = np.sum((x0 - guess) * other, axis=1)
            assert abs(products.mean()) < 4.5 * standard_error(products)
        linear = z @ np.linalg.lstsq(z, x0, rcond=None)[0]
        assert level != 3 or low < np.mean((x0 - linear) ** 2) / np.mean((x0 - guess) ** 2) < high


@pytest.mark.parametrize("name", tasks.SYNTHETIC)
def test_directions_are_fixed_unit_vectors(synthetic, name):
    task = synthetic[name]
    assert task.directions.shape == (task.dim, tasks.DIRECTIONS)
    np.testing.assert_allclose(np.linalg.norm(task.directions, axis=0), 1.0, rtol=1e-12)
    np.testing.assert_array_equal(task.directions, tasks.gaussian_task(dim=task.dim, seed=5).directions)
    # Uniform over the sphere: the mean of u u^T is I / D.
    assert np.max(np.abs(task.directions @ task.directions.T / tasks.DIRECTIONS * task.dim - np.eye(task.dim))) < 1.0


@pytest.mark.parametrize("name", tasks.SYNTHETIC)
def test_quantiles_are_those_of_the_projected_reference(synthetic, name):
    task = synthetic[name]
    for count in (1, 64):
        found = task.quantiles(count)
        expected = np.quantile(task.reference @ task.directions[:, :3], (np.arange(count) + 0.5) / count, axis=0)
        np.testing.assert_allclose(found[:3], expected.T, rtol=1e-9, atol=1e-12)
        assert found.shape == (tasks.DIRECTIONS, count)


@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
@pytest.mark.parametrize("stop", [0, 2, 5])
def test_chain_stops_at_the_level_asked_for(sampler, stop):
    """Against the gains of the closed form: on N(0, diag) every chain multiplies each component."""
    variances = np.array([2.0, 0.7, 0.3])
    start = jnp.asarray(np.random.default_rng(0).standard_normal((5, 3)), jnp.float32)
    chain = jax.jit(
        lambda z: tasks.run_chain(oracle.gaussian_denoiser(variances, LADDER), LADDER, z, sampler, stop=stop)
    )
    law = oracle.chain_variances(variances, LADDER.alpha_levels, LADDER.sigma_levels, sampler=sampler)
    np.testing.assert_allclose(chain(start), start * np.sqrt(law[6 - stop]), rtol=1e-5, atol=1e-6)


def test_chain_noise_follows_the_seed():
    exact = oracle.gaussian_denoiser(np.ones(2), LADDER)
    end = jax.jit(lambda seed: tasks.run_chain(exact, LADDER, jnp.ones((4, 2)), "ddpm", seed=seed))
    first = end(0)
    np.testing.assert_array_equal(first, end(0))
    assert np.min(np.abs(first - end(1))) > 1e-4


def test_flow_is_the_exact_gaussian_flow(synthetic):
    """The flow ODE keeps x / sqrt(alpha^2 lam + sigma^2) constant: x_T -> x_T sqrt(lam / (alpha^2 lam + sigma^2)).

    The solver is second order in the step of log r, of which there are 499 from r = 80 to r = 0.002.
    """
    task = synthetic["gaussian"]
    lam = np.diag(task.covariance)
    start = np.random.default_rng(0).standard_normal((32, 16)).astype(np.float32)
    alpha, sigma = np.array([1.0, 80.0]) / np.sqrt(1.0 + 80.0**2)
    exact = start * np.sqrt(lam / (alpha**2 * lam + sigma**2))
    found = np.asarray(task.flow(jnp.asarray(start)))
    step = np.log(80.0 / 0.002) / 499
    assert np.max(np.abs(found / exact - 1.0)) < step**2
    # A first-order chain on the same levels is an order of magnitude further away.
    ladder = Ladder(*uniform_logsnr_levels(500))
    first_order = oracle.chain_variances(lam, ladder.alpha_levels, ladder.sigma_levels, sampler="ddim")[-1]
    assert np.max(np.abs(np.sqrt(first_order) * start / exact - 1.0)) > 5 * step**2


def test_flow_of_the_mixture_ends_in_the_mixture(synthetic):
    """Its law is the data's: as close to the reference as fresh draws are."""
    task = synthetic["mixture"]
    start = np.random.default_rng(1).standard_normal((1024, 8)).astype(np.float32)
    found = summarise(np.asarray(task.flow(jnp.asarray(start))), task)
    assert found["sliced_w2_squared"] < 2.0 * task.sliced_floor(1024)
    assert found["rel_fd"] < 0.02


def summarise(samples, task):
    summary = tasks.sample_summary(jnp.asarray(samples, jnp.float32), task)
    return tasks.distances(jax.tree.map(np.asarray, summary), task)


@pytest.mark.parametrize("name", tasks.SYNTHETIC)
def test_floor_falls_like_one_over_the_number_of_samples(synthetic, name):
    task = synthetic[name]
    floors = [task.sliced_floor(count) for count in (64, 256, 1024)]
    assert min(floors) > 0
    for few, many in zip(floors, floors[1:], strict=False):
        assert 2.5 < few / many < 6.0
    if name == "gaussian":  # the mixture's floor is uncertain by its clusters' counts
        # The first half of the reference against the second: twice what it would be against the law itself.
        half = len(task.reference) // 2
        assert 1.5 < task.sliced_floor(half) * half / (floors[0] * 64) < 3.0


@pytest.mark.parametrize("name", tasks.SYNTHETIC)
def test_distances_of_exact_draws_are_the_floor_and_of_others_the_truth(synthetic, name):
    """Scaling a law by 1 + s moves it by s^2 <u, x>^2, s^2 per direction here; shifting it by m by |m|^2 / D."""
    task, count = synthetic[name], 4096
    exact = task.training[:count]
    floor = task.sliced_floor(count)
    close = summarise(exact, task)
    assert set(close) == {"rel_fd", "sliced_w2_squared", "sliced_standard_error"}
    assert 0.2 * floor < close["sliced_w2_squared"] < 3.0 * floor
    assert 0 < close["rel_fd"] < 0.01
    # Directions are random: their mean variance is 1 within a few percent.
    spread = np.mean(np.sum(task.directions * (task.covariance @ task.directions), axis=0))
    for samples, moved, relative in [
        (1.5 * exact, 0.25 * spread, 0.25),
        (exact + 2.0, 4.0 * np.mean(task.directions.sum(axis=0) ** 2), 4.0),
    ]:
        far = summarise(samples, task)
        slack = 4 * far["sliced_standard_error"] + 2 * floor
        assert abs(far["sliced_w2_squared"] - moved) < slack < 0.2 * moved
        assert far["rel_fd"] == pytest.approx(relative, rel=0.1)


def test_samples_that_are_not_finite_are_infinitely_far(synthetic):
    samples = np.zeros((64, 16))
    samples[3, 2] = np.nan
    assert set(summarise(samples, synthetic["gaussian"]).values()) == {np.inf}


def test_data_task_is_the_pca_of_its_training_part(digits):
    training, held_out = data.digits().split(n=1257, seed=3)
    assert digits.name == "digits-20" and digits.exact is None and digits.dim == 20
    assert digits.training.shape == (1257, 20) and digits.reference.shape == (540, 20)
    second = digits.training.T @ digits.training / 1257
    assert np.mean(np.diag(second)) == pytest.approx(1.0, rel=1e-9)
    np.testing.assert_allclose(second, np.diag(np.sort(np.diag(second))[::-1]), atol=1e-9)
    # One linear map of orthogonal columns, fitted to the training part, gives both parts.
    basis = np.linalg.lstsq(training, digits.training, rcond=None)[0]
    np.testing.assert_allclose(held_out @ basis, digits.reference, atol=1e-8)
    np.testing.assert_allclose(basis.T @ basis, basis[:, 0] @ basis[:, 0] * np.eye(20), atol=1e-9)
    lost = np.trace(training.T @ training) / 1257 - np.sum(np.diag(second)) / (basis[:, 0] @ basis[:, 0])
    assert lost == pytest.approx(np.sort(np.linalg.eigvalsh(training.T @ training / 1257))[:-20].sum(), rel=1e-9)
    np.testing.assert_allclose(digits.covariance, digits.reference.T @ digits.reference / 540, rtol=1e-12)
    assert not {tuple(row) for row in digits.training.round(9)} & {tuple(row) for row in digits.reference.round(9)}


def test_floor_of_data_is_the_distance_of_its_halves(digits):
    floor = digits.sliced_floor(1024)
    assert floor == digits.sliced_floor(64)  # of the data, whatever the number of generated samples
    # Two samples of n and m: 1/n + 1/m within a small factor.
    assert 0.5 < floor / (1 / 1257 + 1 / 540) < 5.0
    near, far = summarise(digits.training[:1216], digits), summarise(2.0 * digits.training[:1216], digits)
    assert 0.5 * floor < near["sliced_w2_squared"] < 2.0 * floor < 0.05 * far["sliced_w2_squared"]


def test_held_out_share_and_seed_choose_the_split():
    half = tasks.data_task(data.digits(), latent_dim=2, held_out=0.5)
    assert len(half.training) == 898 and len(half.reference) == 899
    other = tasks.data_task(data.digits(), latent_dim=2, held_out=0.5, seed=1)
    assert np.max(np.abs(half.training - other.training)) > 0.1


def test_data_without_spread_in_some_directions_is_limited_to_the_others():
    rng = np.random.default_rng(0)
    flat = data.from_samples("flat", rng.standard_normal((40, 3)) @ rng.standard_normal((3, 6)), (6,))
    assert tasks.data_task(flat, latent_dim=3).dim == 3
    with pytest.raises(ValueError, match="latent_dim must be 1..3 for flat, got 4"):
        tasks.data_task(flat, latent_dim=4)


def test_tasks_come_in_the_order_asked_for():
    made = tasks.make_tasks(["data", "gaussian"], data.digits(), latent_dim=4, seed=2)
    assert [task.name for task in made] == ["digits-4", "gaussian"]
    np.testing.assert_array_equal(made[1].training, tasks.gaussian_task(seed=2).training)
    np.testing.assert_array_equal(made[0].training, tasks.data_task(data.digits(), latent_dim=4, seed=2).training)


def test_bad_arguments_are_refused():
    digits, spectrum = data.digits(), data.spectrum("power:1.0", 8)
    with pytest.raises(ValueError, match="mixture, gaussian, data, got 'moons'"):
        tasks.make_tasks(["gaussian", "moons"], digits, latent_dim=2)
    with pytest.raises(ValueError, match="power:1.0 is a spectrum: this task needs samples"):
        tasks.make_tasks(["data"], spectrum, latent_dim=2)
    for latent_dim in (0, 65):
        with pytest.raises(ValueError, match=r"latent_dim must be 1..\d+ for digits, got"):
            tasks.make_tasks(["data"], digits, latent_dim=latent_dim)
    with pytest.raises(ValueError, match="sampler"):
        tasks.run_chain(oracle.gaussian_denoiser(np.ones(2), LADDER), LADDER, jnp.ones((4, 2)), "euler")
