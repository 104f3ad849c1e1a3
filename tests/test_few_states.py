"""few_states: closed forms against loops and long chains, T_SPACE.md's table, verdicts on both sides, samples, files."""

import dataclasses
import json
import types
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import run_commands
from interrupted import lines_until

from experiments import few_states, tasks
from experiments import flags as shared
from experiments.few_states import acceptance, chains, exact, figures, learned, mixture, report
from ldmjax import data, devices, gaussians, oracle, records, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

CIFAR = Path("/work/shared/data/cifar10_spectrum.npy")
VARIANCES = np.array([30.0, 4.0, 1.0, 0.2, 0.01, 0.0])
LIMITS = {"sigma_min": 0.002, "sigma_max": 80.0}


def make_ladder(name, levels, variances=VARIANCES):
    return shared.make_ladder(name, levels, variances, **LIMITS)


# --- exact distances


def std_gain(lam, ratios, sampler):
    """Std of x / alpha at r = 0 over that at the first of ``ratios``, by loops; data variance lam, VP levels."""
    ratios, x, before = [*ratios, 0.0], 1.0, None
    for r, lower in zip(ratios, ratios[1:], strict=False):
        slope, step = r / (lam + r**2), lower - r
        if sampler == "ddim" or (sampler == "heun" and lower == 0):
            x *= 1.0 + step * slope
        elif sampler == "heun":
            x *= 1.0 + 0.5 * step * (slope + lower / (lam + lower**2) * (1.0 + step * slope))
        else:
            clean = lam / (lam + r**2) * x
            q = 0.0 if before is None or lower == 0 else np.log(r / lower) / (2.0 * np.log(before[0] / r))
            used = clean if before is None else (1.0 + q) * clean - q * before[1]
            x = lower / r * x + (1.0 - lower / r) * used
            before = (r, clean)
    return x


@pytest.mark.parametrize("sampler", ["ddim", "heun", "dpmpp_2m"])
def test_distances_of_flows_are_those_of_loops(sampler):
    ladder = make_ladder("karras", 7)
    chain = exact.make_chain(VARIANCES, "karras", ladder, sampler)
    alpha, ratios = ladder.alpha_levels[0], np.divide(ladder.sigma_levels, ladder.alpha_levels)
    std = np.array([std_gain(lam, ratios, sampler) / alpha for lam in VARIANCES])
    total = VARIANCES.sum()
    assert chain.rel_w2 == pytest.approx(np.sqrt(np.sum((std - np.sqrt(VARIANCES)) ** 2) / total), rel=1e-10)
    start = np.sqrt(alpha**2 * VARIANCES + ladder.sigma_levels[0] ** 2)
    marginal = np.sqrt(np.sum((std * start - np.sqrt(VARIANCES)) ** 2) / total)
    assert chain.rel_w2_exact_start == pytest.approx(marginal, rel=1e-8)
    assert chain.evaluations == {"ddim": 7, "heun": 13, "dpmpp_2m": 7}[sampler] and chain.levels == 7


def test_ddpm_is_scalar_recursion_and_n_eff_is_formula():
    ladder = make_ladder("cosine", 5)
    variance = np.ones_like(VARIANCES)
    levels = [*zip(ladder.alpha_levels, ladder.sigma_levels, strict=True), (1.0, 0.0)]
    for (a, s), (a_next, s_next) in zip(levels, levels[1:], strict=False):
        beta = 1.0 - (a / a_next) ** 2
        # Ho et al.: posterior mean of q(x_{t-1} | x_t, x_0) with its variance, x_0 from the exact denoiser.
        x0 = a * VARIANCES / (a**2 * VARIANCES + s**2)
        mean = a_next * beta / s**2 * x0 + a / a_next * s_next**2 / s**2
        variance = mean**2 * variance + beta * s_next**2 / s**2
    chain = exact.make_chain(VARIANCES, "cosine", ladder, "ddpm")
    assert chain.rel_w2 == pytest.approx(exact.relative_w2(VARIANCES, variance), rel=1e-9)
    phi = np.arctan2(ladder.sigma_levels, ladder.alpha_levels)
    w = np.sin(2 * phi) * np.tan(phi - np.append(phi[1:], 0.0))
    assert chain.effective_states == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-12)


@pytest.mark.parametrize("sampler", exact.SAMPLERS)
@pytest.mark.parametrize("ends", [(80.0, 0.002), (3.0, 0.1)])
def test_floor_is_limit_of_many_levels(sampler, ends):
    ladder = schedules.Ladder(*schedules.uniform_logsnr_levels(4000, sigma_max=ends[0], sigma_min=ends[1]))
    few = schedules.Ladder(*schedules.karras_levels(3, sigma_max=ends[0], sigma_min=ends[1]))
    chain = exact.make_chain(VARIANCES, "x", ladder, sampler)
    limit = exact.limit_variances(VARIANCES, few, sampler)
    reached = oracle.chain_variances(
        VARIANCES, ladder.alpha_levels, ladder.sigma_levels, **exact.CHAINS[sampler]
    )[-1]  # fmt: skip
    # First-order chains lose as much as the step of log r, 10 / 4000, at most.
    tolerance = 3e-3 if sampler in ("ddim", "ddpm") else 3e-6
    np.testing.assert_allclose(np.sqrt(reached), np.sqrt(limit), rtol=tolerance, atol=1e-15)
    assert chain.floor == pytest.approx(exact.relative_w2(VARIANCES, limit), rel=1e-12)
    assert exact.make_chain(VARIANCES, "x", few, sampler).floor == pytest.approx(chain.floor, rel=1e-12)
    assert chain.rel_w2 == pytest.approx(chain.floor, abs=2 * tolerance)


@pytest.mark.parametrize("sampler", exact.SAMPLERS)
def test_mismatch_is_the_floor_without_truncation(sampler):
    coarse, fine = (schedules.Ladder(*schedules.karras_levels(5, sigma_max=3.0, sigma_min=low)) for low in (0.3, 1e-7))
    found = [exact.make_chain(VARIANCES, "x", ladder, sampler) for ladder in (coarse, fine)]
    assert found[0].mismatch == pytest.approx(found[1].floor, rel=1e-5)
    assert found[0].floor > 1.002 * found[0].mismatch


def test_pure_noise_has_no_mismatch_and_exact_ancestral_sampling_no_error():
    ladder = make_ladder("rectified_flow", 6)
    chain = exact.make_chain(VARIANCES, "rectified_flow", ladder, "ddim")
    assert chain.mismatch == 0 and chain.rel_w2 == chain.rel_w2_exact_start
    ladder = make_ladder("karras", 2)
    law = oracle.chain_variances(
        VARIANCES, ladder.alpha_levels, ladder.sigma_levels, sampler="ddpm_exact", start="marginal"
    )
    assert exact.relative_w2(VARIANCES, law[-1]) < 1e-12


def test_table_of_t_space_on_cifar():
    """T_SPACE.md §1: relW2 on the CIFAR-10 spectrum, to the digits printed there."""
    if not CIFAR.is_file():
        pytest.skip(f"{CIFAR} is not here")
    variances = data.spectrum_variances(str(CIFAR), 1)
    table = {
        ("linear_beta", "ddim"): {8: ".230", 32: ".0748", 128: ".0247", 1000: ".0060"},
        ("cosine", "ddim"): {8: ".421", 32: ".156", 128: ".0437", 1000: ".0062"},
        ("uniform_logsnr", "ddim"): {8: ".316", 32: ".0868", 128: ".0273", 1000: ".0113"},
        ("karras", "ddim"): {8: ".265", 32: ".0718", 128: ".0231", 1000: ".0107"},
        ("rectified_flow", "ddim"): {8: ".397", 32: ".119", 128: ".0315", 1000: ".0041"},
        ("scaled_linear", "ddim"): {8: ".268", 32: ".197", 128: ".179", 1000: ".173"},
        ("spectral", "ddim"): {8: ".201", 1000: ".0020"},
        ("karras", "heun"): {32: ".0103", 1000: ".0094"},
        ("uniform_logsnr", "dpmpp_2m"): {32: ".0076", 1000: ".0094"},
    }
    found = []
    for (name, sampler), row in table.items():
        for levels, printed in row.items():
            found.append(exact.make_chain(variances, name, make_ladder(name, levels, variances), sampler))
            assert f"{found[-1].rel_w2:.{len(printed) - 1}f}"[1:] == printed, (name, sampler, levels)
    bound = schedules.Ladder(*oracle.optimised_levels(variances, 8))
    assert f"{exact.make_chain(variances, 'optimised', bound, 'ddim').rel_w2:.3f}" == "0.196"
    compared = exact.compare(found, 32, 1000, usual=exact.usual_distance(variances), tolerance=1.2)
    ratios = {(c.ladder, c.sampler): c for c in compared}
    assert f"{ratios[('karras', 'heun')].ratio:.2f}" == "1.10"
    assert f"{ratios[('uniform_logsnr', 'dpmpp_2m')].ratio:.2f}" == "0.80"
    assert f"{ratios[('cosine', 'ddim')].ratio:.0f}" == "25"
    # "Only its prior-mismatch floor", and so do the second-order chains: the floor of sigma_max = 80 hides the rest.
    floor = {pair for pair, c in ratios.items() if c.verdict == "only the floor"}
    assert floor == {("scaled_linear", "ddim"), ("karras", "heun"), ("uniform_logsnr", "dpmpp_2m")}
    assert all(c.verdict == "does not" for pair, c in ratios.items() if pair not in floor)
    assert all(c.ratio_exact_start > 5 for c in compared)
    assert {pair for pair, c in ratios.items() if c.matches_usual} == {("uniform_logsnr", "dpmpp_2m")}


@pytest.mark.parametrize(
    ("few", "many", "floor", "expected"),
    [
        (1.1, 1.0, 0.5, "matches"),
        (1.1, 1.0, 0.95, "only the floor"),  # the same distances over a higher floor
        (1.3, 1.0, 0.95, "does not"),
        (0.7, 1.0, 0.95, "only the floor"),  # errors that cancel part of the floor
        (0.7, 1.3, 1.0, "matches"),
        (np.inf, np.inf, 1.0, "does not"),
        (np.nan, 1.0, 1.0, "does not"),
    ],
)
def test_verdict(few, many, floor, expected):
    assert exact.verdict(few, many, floor, 1.2) == expected
    assert exact.verdict(1.3, 1.0, 0.95, 1.4) == "only the floor"


def made_chain(levels, rel_w2, **changes):
    fields = {
        "ladder": "karras", "sampler": "ddim", "evaluations": levels, "effective_states": 1.0,
        "rel_w2_exact_start": 2 * rel_w2, "mismatch": 0.0, "floor": 0.1,
    }  # fmt: skip
    return exact.Chain(levels=levels, rel_w2=rel_w2, **fields | changes)


def test_comparison_counts_levels_needed_and_the_usual_chain():
    own = [made_chain(T, w) for T, w in [(8, 1.1), (16, 3.0), (32, 2.0), (64, 1.1), (1000, 1.0)]]
    lone = made_chain(32, 1.0, sampler="heun")
    (result,) = exact.compare([*own, lone], 32, 1000, usual=1.7, tolerance=1.2)
    assert (result.ladder, result.sampler, result.few, result.many) == ("karras", "ddim", 32, 1000)
    assert result.ratio == 2.0 and result.ratio_exact_start == 2.0 and result.verdict == "does not"
    assert result.levels_needed == 64  # T = 8 is near by luck: T = 16 is not
    assert result.usual_ratio == pytest.approx(2.0 / 1.7) and result.matches_usual
    (result,) = exact.compare(own, 32, 1000, usual=1.6, tolerance=1.2)
    assert not result.matches_usual
    (result,) = exact.compare(own, 16, 64, usual=1.6, tolerance=3.0)
    assert result.levels_needed == 8 and result.verdict == "matches"


def test_run_covers_ladders_samplers_and_the_bound():
    found = exact.run(VARIANCES, ("karras", "rectified_flow"), (4, 16), limits={"sigma_min": 0.01, "sigma_max": 9.0})
    kinds = [(c.ladder, c.sampler, c.levels) for c in found]
    assert len(kinds) == len(set(kinds)) == 2 * (4 + 3 + 4)
    expected = exact.make_chain(
        VARIANCES, "karras", shared.make_ladder("karras", 4, VARIANCES, sigma_min=0.01, sigma_max=9.0), "heun"
    )
    assert expected in found
    bound = {c.levels: c.rel_w2 for c in found if (c.ladder, c.sampler) == ("optimised", "ddim")}
    assert all(bound[c.levels] <= c.rel_w2 for c in found if c.sampler == "ddim")
    usual = exact.make_chain(VARIANCES, "x", make_ladder("linear_beta", 1000), "ddpm").rel_w2
    assert exact.usual_distance(VARIANCES) == usual


# --- chains in one program


def test_merged_ladder_holds_every_ladder():
    ladders = [make_ladder(name, T) for name in shared.LADDERS for T in (4, 8)]
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


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_loop_of_fixed_length_does_the_same_updates(sampler):
    """What an accelerator runs: all chains at once as long as the longest, updates beyond the last that change nothing."""
    named = [(f"karras{T}", T, make_ladder("karras", T)) for T in (3, 7)]
    start = np.random.default_rng(0).standard_normal((tasks.BLOCKS, 8)).astype(np.float32)

    def run():
        return mixture.run_chains(
            tasks.mixture_task(), named, start, start, sampler=sampler, store=NOTHING_KEPT, report=print
        )

    told = run()
    with devices.made_for("tpu"):
        fixed = run()
    for a, b in zip(jax.tree.leaves(fixed), jax.tree.leaves(told), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_ddpm_rows_have_the_oracles_variances():
    variances = np.array([3.0, 0.1])
    ladder = make_ladder("karras", 6)
    rows = chains.nested_rows((3, 6), 6)
    kept = schedules.nested_subsets(6, (3,))[3]
    start, spread = jax.random.normal(jax.random.key(0), (65_536, 2)), []
    for row in zip(*rows, strict=True):
        samples = chains.run_row(
            oracle.gaussian_denoiser(variances, ladder), ladder, start, *map(jnp.asarray, row), sampler="ddpm",
            key=jax.random.key(1),
        )  # fmt: skip
        spread.append(np.var(np.asarray(samples), axis=0))
    for index, found in zip([kept, np.arange(6)], spread, strict=True):
        alpha, sigma = np.take(ladder.alpha_levels, index), np.take(ladder.sigma_levels, index)
        law = oracle.chain_variances(variances, alpha, sigma, sampler="ddim", eta=1.0)[-1]
        np.testing.assert_allclose(found, law, rtol=4 * np.sqrt(2 / 65_536))


def jackknifed_rel_fd(samples, task):
    """Estimate and standard error of the squared Frechet distance over the variance, leaving out one of 64 blocks."""

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
    reduced = jax.jit(lambda z: (chains.statistics(z, task), tasks.sample_summary(z, task)))
    found, summary = jax.tree.map(np.asarray, reduced(samples.astype(np.float32)))
    stacked = chains.Statistics(*(np.array(x)[None] for x in found))
    values = chains.pseudo_values(stacked, task)
    estimate, error = jackknifed_rel_fd(samples, task)
    assert chains.estimate(values["rel_fd"][0]) == pytest.approx((estimate, error), rel=1e-3)
    assert estimate == pytest.approx(0.01, rel=0.2)  # all standard deviations are 10 % too large
    expected = [float(summary[key]) for key in ("sliced_w2_squared", "sliced_standard_error")]
    assert chains.estimate(values["sliced_w2_squared"][0]) == pytest.approx(expected, rel=1e-4)
    stacked.second[0, 3, 0, 0] = np.inf
    assert np.all(np.isinf(chains.pseudo_values(stacked, task)["rel_fd"]))


# --- mixture


def test_floor_of_the_mixture_is_reached_once_and_for_all():
    assert mixture.is_at_floor(0.4, 0.0, 1.0, 1.2) and not mixture.is_at_floor(0.5, 0.0, 1.0, 1.2)
    assert mixture.is_at_floor(0.5, 0.05, 1.0, 1.2) and mixture.is_at_floor(-0.1, 0.0, 1.0, 1.0)

    def made(flags):
        zeros = dict.fromkeys([f.name for f in dataclasses.fields(mixture.MixtureChain)][3:-1], 0.0)
        return [
            mixture.MixtureChain(ladder="a", sampler="ddim", levels=2**i, at_floor=flag, **zeros)
            for i, flag in enumerate(flags)
        ]

    assert mixture.levels_to_floor(made([False, True, False, True, True]), "a", "ddim") == 8
    assert mixture.levels_to_floor(made([True, True]), "a", "ddim") == 1
    assert mixture.levels_to_floor(made([True, False]), "a", "ddim") is None
    assert mixture.levels_to_floor(made([True]), "a", "heun") is None


# --- learned scores


@pytest.mark.parametrize(
    ("mean", "half_width", "base", "expected"),
    [
        (0.1, 0.2, 1.0, "matches"),  # inside -.31..+.44 of the base
        (0.1, 0.05, 1.0, "matches"),  # not 0, but inside
        (0.1, 0.2, 0.1, "cannot tell"),
        (0.3, 0.2, 0.1, "differs"),
        (-0.3, 0.2, 0.1, "differs"),
        (-0.2, 0.15, 1.0, "differs"),
        (0.2, 0.15, 1.0, "matches"),  # the band is wider above than below
        (np.inf, 0.1, 1.0, "cannot tell"),
        (0.0, np.nan, 1.0, "cannot tell"),
    ],
)
def test_difference_verdict(mean, half_width, base, expected):
    assert learned.difference_verdict(mean, half_width, base, 1.2) == expected


def test_interval_knows_seeds_and_samples():
    blocks = np.tile([-1.0, 1.0], 32)
    error = blocks.std(ddof=1) / 8
    assert learned.interval([2.0 + blocks]) == pytest.approx((2.0, 2 * error))
    # Seeds that agree: the samples' error remains. Seeds that do not: Student's t with two degrees of freedom, 4.3027.
    assert learned.interval([2.0 + blocks] * 3) == pytest.approx((2.0, 2 * error / np.sqrt(3)))
    mean, half = learned.interval([1.0 + blocks, 5.0 + blocks, 9.0 + blocks])
    assert mean == pytest.approx(5.0) and half == pytest.approx(4.30265 * 4.0 / np.sqrt(3), rel=1e-5)


CONFIG = few_states.Config(levels=(4, 16), few=4, seeds=(0, 1)).learned


def made_learned(shift, *, error=0.01):
    """Chains whose metrics are 1 for (trained, T) = (16, 16), ``shift`` more for (16, 4), and 2 for (4, 4)."""
    rng = np.random.default_rng(0)
    found = []
    for seed in CONFIG.seeds:
        common = rng.standard_normal(64)  # what chains of one seed share
        for trained, levels, level in [(16, 4, 1.0 + shift), (16, 16, 1.0), (4, 4, 2.0)]:
            values = level + common + 8 * error * rng.standard_normal(64)
            found += [
                learned.LearnedChain(
                    task="made", trained_levels=trained, sampler=sampler, levels=levels, seed=seed,
                    values=dict.fromkeys(learned.METRICS, values), floors=dict.fromkeys(learned.METRICS, 0.1),
                    diverged_at_step=None,
                )
                for sampler in learned.SAMPLERS
            ]  # fmt: skip
    return found


@pytest.mark.parametrize(("shift", "error", "expected"), [
    (0.0, 1e-3, "matches"), (0.2, 1e-3, "matches"), (0.7, 1e-3, "differs"), (0.3, 0.3, "cannot tell")])  # fmt: skip
def test_differences_are_paired(shift, error, expected):
    found = made_learned(shift, error=error)
    differences = learned.compare(found, CONFIG)
    assert len(differences) == 2 * 2 * 2
    means = {(c.trained_levels, c.levels): [] for c in found}
    for c in found:
        means[c.trained_levels, c.levels].append(c.values["rel_fd"].mean())
    for d in differences:
        first = means[(16, 4) if d.question.startswith("few") else (4, 4)]
        second = means[(16, 16) if d.question.startswith("few") else (16, 4)]
        assert d.mean == pytest.approx(np.mean(first) - np.mean(second)) and d.base == pytest.approx(np.mean(second))
        if d.question.startswith("few"):
            # The common part, of standard error 1 / 8 per seed, has gone.
            assert d.verdict == expected and (error > 0.1 or d.half_width < 0.05)
    diverged = [
        dataclasses.replace(c, values={m: np.full(64, np.inf) for m in learned.METRICS}) if c.seed else c for c in found
    ]
    assert {d.verdict for d in learned.compare(diverged, CONFIG)} == {"cannot tell"}


def test_floor_of_data_is_the_training_set():
    task = tasks.make_tasks(["data"], data.digits(), latent_dim=4)[0]
    floors = learned.task_floors(task, 4096)
    assert floors["rel_fd"] == pytest.approx(jackknifed_rel_fd(task.training[:1216], task)[0], rel=1e-3)
    assert floors["sliced_w2_squared"] == task.sliced_floor(4096) > 0


# --- acceptance


def test_acceptance_flips_at_its_margin():
    exact_values = 0.5 + 0.01 * np.random.default_rng(0).standard_normal(64)
    noise = 1e-3 * np.random.default_rng(1).standard_normal(64)
    noise -= noise.mean()
    margin = 0.1 * (exact_values.mean() - 0.1) + 2 * noise.std(ddof=1) / 8
    for shift, passed in [(0.99, True), (1.01, False), (-0.99, True), (-1.01, False)]:
        result = acceptance.judge("ddim", exact_values, exact_values + shift * margin + noise, floor=0.1, samples=64)
        assert result.passed == passed and result.allowed == pytest.approx(margin)
        assert result.difference == pytest.approx(shift * margin)
        assert result.learned - result.exact == pytest.approx(result.difference)


@pytest.mark.parametrize("passes", [True, False])
def test_acceptance_accepts_the_exact_score_and_not_another(monkeypatch, passes):
    """Training is replaced by a denoiser: the exact one, or that of the mixture's Gaussian, blind to its modes."""
    task, ladder = tasks.mixture_task(), make_ladder("karras", 8)
    seen = {}

    def train(specs, samples, config, *, store, report):
        seen.update(specs=specs, samples=samples, config=config)
        denoiser = task.exact(ladder) if passes else oracle.gaussian_denoiser(np.ones(8), ladder)

        def map_models(function, starts):
            mapped = devices.map_runs(lambda _, start: function(denoiser, start), samples=True)
            return jax.tree.map(lambda x: x[None], devices.collect(mapped(0, starts), 1))

        return types.SimpleNamespace(map_models=map_models, config=config)

    monkeypatch.setattr(acceptance.experts, "train", train)
    monkeypatch.setattr(acceptance, "SAMPLERS", ("dpmpp_2m",))
    (result,) = acceptance.run(acceptance.AcceptanceConfig(samples=1000, levels=8, draws=512, seed=3))
    assert seen["samples"].shape == (512, 8) and seen["specs"][0].seed == 3 and seen["config"].ladder == ladder
    assert result.sampler == "dpmpp_2m" and result.samples == 1024 and result.passed == passes
    if passes:
        start = jax.random.normal(jax.random.key(3), (1024, 8))
        samples = jax.jit(lambda z: tasks.run_chain(task.exact(ladder), ladder, z, "dpmpp_2m"))(start)
        expected = np.mean((np.sort(samples @ task.directions, axis=0).T - task.quantiles(1024)) ** 2)
        assert result.exact == pytest.approx(expected - result.floor, abs=0.5 * result.exact_error)
        assert result.difference == 0
    else:
        assert result.learned > 10 * result.floor > 0


# --- configuration, report and files


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"few": 1000}, "few must be"), ({"few": 7}, "few must be"), ({"tolerance": 0.9}, "tolerance"), ({"samples": 100}, "64")],
)  # fmt: skip
def test_configurations_that_make_no_sense_raise(changes, message):
    with pytest.raises(ValueError, match=message):
        few_states.Config(**changes)


def made_outcome():
    own = [made_chain(4, 1.1, ladder=name) for name in ("karras", "cosine")]
    own += [made_chain(16, 1.0, ladder="karras"), made_chain(16, 0.1, ladder="cosine", floor=0.01)]
    found = [
        mixture.MixtureChain(
            ladder="karras", sampler=sampler, levels=levels, rms_to_flow=np.nan if sampler == "ddpm" else 0.25,
            rms_error=0.01, sliced_above_floor=0.001, sliced_error=0.001, sliced_above_flow=0.0125, paired_error=0.00125,
            at_floor=levels == 16,
        )
        for sampler in exact.SAMPLERS
        for levels in (4, 16)
    ]  # fmt: skip
    scores = made_learned(0.7, error=1e-3)
    return few_states.Outcome(
        chains=own, comparisons=exact.compare(own, 4, 16, usual=1.0, tolerance=1.2), usual=1.0, mixture=found,
        known={"flow": 0.002, "floor": 0.0015}, learned=scores, differences=learned.compare(scores, CONFIG), acceptance=[],
    )  # fmt: skip


def test_report_says_what_the_results_say():
    outcome, config = made_outcome(), few_states.Config(levels=(4, 16), few=4, samples=512, seeds=(0, 1))
    text = report.table(outcome, config)
    first, second, third = (
        text.split("Exact score, 8-D mixture")[0],
        *text.split("8-D mixture")[1].split("Learned scores"),
    )
    assert "of 2 chains 4 states match 16 in 1, only by the floor in 0, not in 1" in first
    assert "1.1000   (1.1)=*" in first and "1.1000    (11) *" in first
    assert second.count("16 0.250  12.50±1.25") == 3 and second.count("16        12.50±1.25") == 1
    rows = [line for line in third.splitlines() if line.strip().startswith("made")]
    assert len(rows) == 4 and all(" differs " in row and row.count("±") == 2 for row in rows)
    few_value, many_value, difference = rows[0].split("rel. FD")[1].split()[:3]
    assert float(few_value) - float(many_value) == pytest.approx(0.7, abs=0.01) == float(difference)
    drawn = figures.draw(outcome, config, "made")
    assert {name: len(figure.axes) for name, figure in drawn.items()} == {"exact": 4, "mixture": 8, "learned": 2}
    empty = few_states.Outcome(
        chains=[], comparisons=[], usual=None, mixture=[], known={}, learned=[], differences=[], acceptance=[]
    )
    assert report.table(empty, config) == "" and figures.draw(empty, config, "") == {}
    assert report.make_records(empty, config) == [] and report.curve_arrays(empty) == {}


@pytest.mark.slow
def test_an_interrupted_job_goes_on_to_the_same_records(tmp_path):
    config = few_states.Config(
        parts=("exact", "learned"), ladders=("karras",), levels=(4, 16), few=4, samples=128, tasks=("gaussian",), seeds=(5,),
        steps=20, hidden=4, batch_size=8,
    )  # fmt: skip
    dataset, store = data.spectrum("exponential:0.5", 8), Store(tmp_path, every=0)

    def start(store, until=""):
        lines, note = lines_until(until)
        outcome = few_states.run(dataset, config, note, store=store)
        return json.dumps(records.plain(report.make_records(outcome, config))), lines

    with pytest.raises(KeyboardInterrupt):
        start(store, until="trained on 4 levels, ddim")
    resumed, lines = start(store)
    assert not any(" step " in line for line in lines)
    assert resumed == start(few_states.NOTHING_KEPT)[0]


SMALL = ["--spectrum=exponential:0.5", "--data_dim=8", "--levels=4,16", "--few=4", "--ladders=karras,rectified_flow"]
# One step of training leaves networks that are nearly 0.
TINY = ["--samples=1024", "--steps=1", "--hidden=4", "--batch_size=8", "--seeds=5,6"]
REFUSED = [
    ("--tasks=data --spectrum=power:1", "is a spectrum"),
    ("--few=7", "one of --levels"),
    ("--few=1000", "not the largest"),
    ("--levels=32,2000", "1..1000"),
    ("--levels=32,1001 --ladders=karras --learned_ladder=linear_beta", "linear_beta: "),
    ("--spectrum={where}/zeros.npy", "variance > 0"),
    ("--parts=exact,plots", "out of exact"),
    ("--tolerance=0.5", ">= 1"),
    ("--samples=1000", "multiple of 64"),
    ("--sigma_min=90", "--sigma_max"),
    ("--latent_dim=65", "1..6"),
]


@pytest.fixture(scope="module")
def commands(tmp_path_factory):
    where = tmp_path_factory.mktemp("few_states")
    cases = [("few_states", [*SMALL, "--parts=exact", f"--workdir={where / 'exact'}"])]
    again = [f"--flagfile={where / 'exact' / 'flags.txt'}", f"--workdir={where / 'again'}"]
    return where, run_commands(cases, where) + run_commands([("few_states", again)], where)


@pytest.fixture(scope="module")
def refusals(tmp_path_factory):
    where = tmp_path_factory.mktemp("refusals")
    cases = [("few_states", [f"--workdir={where / 'out'}", *flag.format(where=where).split()]) for flag, _ in REFUSED]
    np.save(where / "zeros.npy", np.zeros(4))
    return where, run_commands(cases, where)


def test_command_writes_its_files_and_reruns_to_the_same_bytes(commands):
    where, answers = commands
    for status, out, err in answers:
        assert status == 0 and err == "" and "results in" in out, err
    first, second = where / "exact", where / "again"
    expected = ["checkpoints", "curves.npz", "exact.png", "flags.txt", "metadata.json", "records.jsonl"]
    assert sorted(path.name for path in first.iterdir()) == expected
    for name in ("records.jsonl", "flags.txt", "exact.png"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    assert json.loads((first / "metadata.json").read_text())["seconds"] > 0
    variances = np.exp(-0.5 * np.arange(8))
    loaded = records.load_records(first)
    chain = exact.make_chain(variances, "karras", shared.make_ladder("karras", 4, variances), "dpmpp_2m")
    (row,) = [r for r in loaded if (r["kind"], r["ladder"], r["sampler"], r.get("levels")) == (
        "exact", "karras", "dpmpp_2m", 4)]  # fmt: skip
    written = {"schema_version": 1, "precision": "float32", "float32_products": "highest"}
    assert row == written | {"kind": "exact", **dataclasses.asdict(chain)}
    assert sum(r["kind"] == "verdict" for r in loaded) == 4 + 3 + 4
    with np.load(first / "curves.npz") as curves:
        place = [curves[f"exact_{axis}"].tolist().index(v) for axis, v in [
            ("ladders", "karras"), ("samplers", "dpmpp_2m"), ("levels", 4)]]  # fmt: skip
        assert curves["exact_rel_w2"][*place] == chain.rel_w2
        assert np.isnan(curves["exact_rel_w2"]).sum() == 2  # Heun from pure noise


@pytest.fixture(scope="module")
def loaded(commands):
    """The records of every part."""
    where = commands[0]
    cases = [
        ("few_states", [*SMALL, *TINY, f"--parts={part}", "--tasks=gaussian", f"--workdir={where / part}"], False)
        for part in ("learned", "mixture")
    ]
    for status, out, err in run_commands(cases, where):
        assert status == 0 and err == "" and "results in" in out, err
    return [row for part in few_states.PARTS for row in records.load_records(where / part)]


def test_commands_compute_every_part(commands, loaded):
    kinds = [row["kind"] for row in loaded]
    count = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert count == {"exact": 22, "verdict": 11, "mixture": 14, "mixture_floor": 7, "learned": 12, "difference": 8}
    with np.load(commands[0] / "mixture" / "curves.npz") as curves:
        assert curves["mixture_paired_error"].shape == (2, 4, 2)
    with np.load(commands[0] / "learned" / "curves.npz") as curves:
        scores = [row for row in loaded if row["kind"] == "learned"]
        for row, values in zip(scores, curves["learned_rel_fd"], strict=True):
            assert (row["rel_fd"], row["rel_fd_error"]) == pytest.approx(chains.estimate(values))


def test_mixture_chains_are_measured_against_the_flow(loaded):
    found = {(r["ladder"], r["sampler"], r["levels"]): r for r in loaded if r["kind"] == "mixture"}
    assert len(found) == 2 * (2 * 3 + 1)  # Heun does not run from pure noise
    task, ladder = tasks.mixture_task(), make_ladder("karras", 16)
    start = jax.random.normal(jax.random.key(0), (1024, 8))
    flow = np.asarray(task.flow(start))
    samples = np.asarray(tasks.run_chain(task.exact(ladder), ladder, start, "dpmpp_2m"))
    chain = found[("karras", "dpmpp_2m", 16)]
    assert chain["rms_to_flow"] == pytest.approx(np.sqrt(np.mean((samples - flow) ** 2)), rel=1e-2)
    quantiles, floor = task.quantiles(1024), task.sliced_floor(1024)
    sliced, of_flow = (np.mean((np.sort(x @ task.directions, axis=0).T - quantiles) ** 2) for x in (samples, flow))
    (known,) = [r for r in loaded if r["kind"] == "mixture_floor" and (r["ladder"], r["sampler"]) == ("karras", "ddim")]
    assert known["sliced_w2_squared_flow"] == pytest.approx(of_flow, rel=1e-2)
    assert known["sliced_w2_squared_floor"] == floor
    assert chain["sliced_above_flow"] == pytest.approx(sliced - of_flow, abs=0.02 * sliced)
    assert chain["sliced_above_floor"] == pytest.approx(sliced - floor, abs=0.02 * sliced)
    for (_, sampler, _), row in found.items():
        assert (row["rms_to_flow"] is None) == (sampler == "ddpm") and row["paired_error"] > 0
    # Common noise makes differences much surer than values.
    assert chain["paired_error"] < 0.6 * chain["sliced_error"]
    rms = [found[("karras", "ddim", levels)]["rms_to_flow"] for levels in (4, 16)]
    assert rms[0] > rms[1] > chain["rms_to_flow"] and not found[("karras", "ddim", 4)]["at_floor"]


def test_untrained_networks_follow_the_oracle(loaded):
    """A network that is 0 is the exact denoiser of N(0, s^2 I), whose chains have variances that the oracle knows."""
    task, whole = tasks.gaussian_task(), make_ladder("karras", 16)
    scale, data_std = np.mean(task.training**2), np.sqrt(np.diag(task.covariance))
    scores, floor = [row for row in loaded if row["kind"] == "learned"], task.sliced_floor(1024)
    assert [(r["trained_levels"], r["sampler"], r["seed"], r["levels"]) for r in scores] == [
        (trained, sampler, seed, levels)
        for trained, counts in [(16, (4, 16)), (4, (4,))]
        for sampler in learned.SAMPLERS
        for seed in (5, 6)
        for levels in counts
    ]
    for row in scores:
        index = schedules.nested_subsets(16, (4, 16))[row["levels"]]
        alpha, sigma = np.take(whole.alpha_levels, index), np.take(whole.sigma_levels, index)
        std = np.sqrt(oracle.chain_variances([scale], alpha, sigma, sampler=row["sampler"])[-1])
        expected = np.sum((data_std - std) ** 2) / np.trace(task.covariance)
        assert abs(row["rel_fd"] - expected) < 4 * row["rel_fd_error"] + 2e-3 * expected
        assert row["diverged_at_step"] is None and row["rel_fd_floor"] == 0
        assert row["sliced_w2_squared_floor"] == floor
    for row in loaded:
        if row["kind"] == "difference" and row["question"].startswith("trained"):
            # Nearly the same function on the same levels from the same noise.
            assert abs(row["mean"]) < 0.01 * row["base"] and row["verdict"] == "matches"


@pytest.mark.parametrize("index", range(len(REFUSED)), ids=[flag for flag, _ in REFUSED])
def test_bad_input_is_one_line_and_touches_nothing(refusals, index):
    where, answers = refusals
    (flag, reason), (status, out, err) = REFUSED[index], answers[index]
    assert status == 2 and out == "" and err.count("\n") == 1 and err.startswith("error: "), err
    name, _, value = flag.format(where=where).split()[0].lstrip("-").partition("=")
    assert name in err and value in err and reason in err
    assert not (where / "out").exists()
