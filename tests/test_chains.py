"""Chains on levels: their laws and limits against long chains, rows of one program, statistics and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import chains, gaussians, oracle, schedules, tasks

VARIANCES = np.array([30.0, 4.0, 1.0, 0.2, 0.01, 0.0])
LIMITED = [sampler for sampler in chains.SAMPLERS if sampler != "ddpm_exact"]


def make_ladder(name, levels):
    return schedules.make_ladder(name, levels, VARIANCES)


@pytest.mark.parametrize("sampler", LIMITED)
@pytest.mark.parametrize("ends", [(80.0, 0.002), (3.0, 0.1)])
def test_limit_is_that_of_many_levels(sampler, ends):
    ladder = schedules.Ladder(*schedules.uniform_logsnr_levels(4000, sigma_max=ends[0], sigma_min=ends[1]))
    few = schedules.Ladder(*schedules.karras_levels(3, sigma_max=ends[0], sigma_min=ends[1]))
    limit = chains.limit_variances(VARIANCES, few, sampler)
    reached = chains.variances(VARIANCES, ladder, sampler)[-1]
    # First-order chains lose as much as the step of log r, 10 / 4000, at most.
    tolerance = 3e-3 if sampler in ("ddim", "ddpm") else 3e-6
    np.testing.assert_allclose(np.sqrt(reached), np.sqrt(limit), rtol=tolerance, atol=1e-15)
    np.testing.assert_allclose(chains.limit_variances(VARIANCES, ladder, sampler), limit, rtol=1e-12)


@pytest.mark.parametrize("sampler", LIMITED)
def test_limit_without_truncation_is_that_of_a_ladder_that_ends_at_the_data(sampler):
    coarse, fine = (schedules.Ladder(*schedules.karras_levels(5, sigma_max=3.0, sigma_min=low)) for low in (0.3, 1e-7))
    limit = chains.limit_variances(VARIANCES, coarse, sampler, truncated=False)
    np.testing.assert_allclose(chains.limit_variances(VARIANCES, fine, sampler), limit, rtol=1e-5)
    assert np.max(np.abs(chains.limit_variances(VARIANCES, coarse, sampler) - limit)) > 1e-3


@pytest.mark.parametrize(("sampler", "expected"), [("ddim", (32, 25)), ("heun", (63, 49))])
def test_evaluations_are_those_of_the_sampler(sampler, expected):
    assert (chains.evaluations(sampler, 32), chains.evaluations(sampler, 25)) == expected
    assert chains.evaluations(sampler, 0) == 0


def test_merged_ladder_holds_every_ladder():
    ladders = [make_ladder(name, T) for name in schedules.LADDERS for T in (4, 8)]
    merged, numbers = chains.merge(ladders)
    assert merged.t_max < sum(ladder.t_max for ladder in ladders)  # ladders share levels
    for ladder, rows in zip(ladders, numbers, strict=True):
        logsnr = [merged.logsnr(rows), ladder.logsnr(ladder.times[:-1])]
        np.testing.assert_allclose(*logsnr, rtol=1e-9, atol=1e-10)
        np.testing.assert_allclose(merged.alpha(rows) ** 2 + merged.sigma(rows) ** 2, 1.0, rtol=1e-12)


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_rows_of_a_merged_ladder_are_the_samplers_chains(sampler):
    names = ["karras", "cosine", "rectified_flow"][: 2 if sampler == "heun" else 3]
    ladders = [make_ladder(name, T) for name, T in zip(names, (5, 9, 3), strict=False)]
    merged, numbers = chains.merge(ladders)
    rows = chains.make_rows(numbers)
    assert rows.updates.tolist() == [5, 9, 3][: len(names)] and rows.times.shape == (len(names), 10)
    start = np.random.default_rng(0).standard_normal((64, 3)).astype(np.float32)
    variances = np.array([3.0, 1.0, 0.1])

    def run(row):
        denoiser = oracle.gaussian_denoiser(variances, merged)
        return chains.run_row(denoiser, merged, jnp.asarray(start), *row, sampler=sampler, key=jax.random.key(1))

    found = jax.jit(lambda rows: jax.lax.map(run, rows))(tuple(rows))
    for ladder, samples in zip(ladders, found, strict=True):
        law = oracle.chain_variances(variances, ladder.alpha_levels, ladder.sigma_levels, sampler=sampler)[-1]
        np.testing.assert_allclose(samples, start * np.sqrt(law), rtol=2e-5, atol=2e-5)


def test_ddpm_rows_have_the_oracles_variances():
    variances = np.array([3.0, 0.1])
    ladder = make_ladder("karras", 6)
    rows = chains.nested_rows((3, 6), 6)
    kept = schedules.nested_subsets(6, (3,))[3]
    start, spread = jax.random.normal(jax.random.key(0), (65_536, 2)), []
    exact = oracle.gaussian_denoiser(variances, ladder)
    for row in zip(*rows, strict=True):
        row = map(jnp.asarray, row)
        samples = chains.run_row(exact, ladder, start, *row, sampler="ddpm", key=jax.random.key(1))
        spread.append(np.var(np.asarray(samples), axis=0))
    for index, found in zip([kept, np.arange(6)], spread, strict=True):
        alpha, sigma = np.take(ladder.alpha_levels, index), np.take(ladder.sigma_levels, index)
        law = oracle.chain_variances(variances, alpha, sigma, sampler="ddim", eta=1.0)[-1]
        np.testing.assert_allclose(found, law, rtol=4 * np.sqrt(2 / 65_536))


def jackknifed_rel_fd(samples, task):
    """Estimate and standard error of the squared Fréchet distance over the variance, leaving out one of 64 blocks."""

    def distance(x):
        moments = x.mean(axis=0), np.cov(x.T, bias=True), task.reference.mean(axis=0), task.covariance
        return gaussians.w2_squared(*moments) / np.trace(task.covariance)

    blocks = np.split(samples, 64)
    without = [distance(np.concatenate(blocks[:k] + blocks[k + 1 :])) for k in range(64)]
    values = 64 * distance(samples) - 63 * np.array(without)
    return values.mean(), values.std(ddof=1) / 8


def test_statistics_give_both_distances_with_errors():
    task = tasks.gaussian_task()
    samples = 1.1 * task.reference[:4096]
    values = chains.measure(samples, task)
    estimate, error = jackknifed_rel_fd(samples, task)
    assert chains.estimate(values["rel_fd"]) == pytest.approx((estimate, error), rel=1e-3)
    assert estimate == pytest.approx(0.01, rel=0.2)  # all standard deviations are 10 % too large
    summary = jax.jit(lambda z: tasks.sample_summary(z, task))(samples.astype(np.float32))
    expected = [float(summary[key]) for key in ("sliced_w2_squared", "sliced_standard_error")]
    assert chains.estimate(values["sliced_w2_squared"]) == pytest.approx(expected, rel=1e-4)
    samples[3, 0] = np.inf
    assert all(np.all(np.isinf(v)) for v in chains.measure(samples, task).values())
