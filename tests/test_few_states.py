"""few_states: closed forms against loops, the table of T-space, verdicts on both sides, samples, what is shown."""

import types
from pathlib import Path

import jax
import numpy as np
import pytest
from test_chains import jackknifed_rel_fd

from experiments import few_states
from experiments.few_states import acceptance, exact, learned, mixture
from experiments.few_states.report import report
from experiments.launch import Results, SettingError
from experiments.launch.results import read_results, write_results
from ldmjax import chains, data, devices, oracle, schedules, tasks
from ldmjax.job import NO_JOB

CIFAR = Path(__file__).parents[2] / "shared" / "data" / "cifar10_spectrum.npy"
VARIANCES = np.array([30.0, 4.0, 1.0, 0.2, 0.01, 0.0])


def make_ladder(name, levels, variances=VARIANCES):
    return schedules.make_ladder(name, levels, variances)


# Exact distances


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
    row = exact.measure(VARIANCES, "karras", ladder, sampler)
    alpha, ratios = ladder.alpha_levels[0], np.divide(ladder.sigma_levels, ladder.alpha_levels)
    std = np.array([std_gain(lam, ratios, sampler) / alpha for lam in VARIANCES])
    total = VARIANCES.sum()
    assert row["rel_w2"] == pytest.approx(np.sqrt(np.sum((std - np.sqrt(VARIANCES)) ** 2) / total), rel=1e-10)
    start = np.sqrt(alpha**2 * VARIANCES + ladder.sigma_levels[0] ** 2)
    marginal = np.sqrt(np.sum((std * start - np.sqrt(VARIANCES)) ** 2) / total)
    assert row["rel_w2_exact_start"] == pytest.approx(marginal, rel=1e-8)
    assert row["evaluations"] == {"ddim": 7, "heun": 13, "dpmpp_2m": 7}[sampler] and row["levels"] == 7


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
    row = exact.measure(VARIANCES, "cosine", ladder, "ddpm")
    assert row["rel_w2"] == pytest.approx(exact.relative_w2(VARIANCES, variance), rel=1e-9)
    phi = np.arctan2(ladder.sigma_levels, ladder.alpha_levels)
    w = np.sin(2 * phi) * np.tan(phi - np.append(phi[1:], 0.0))
    assert row["effective_states"] == pytest.approx(w.sum() ** 2 / (w**2).sum(), rel=1e-12)


@pytest.mark.parametrize("sampler", exact.SAMPLERS)
def test_floor_is_reached_by_many_levels(sampler):
    ladder = schedules.Ladder(*schedules.uniform_logsnr_levels(4000, sigma_max=3.0, sigma_min=0.1))
    row = exact.measure(VARIANCES, "x", ladder, sampler)
    assert row["rel_w2"] == pytest.approx(row["floor"], abs=6e-3 if sampler in ("ddim", "ddpm") else 6e-6)
    assert row["floor"] > 1.0002 * row["mismatch"] > 0


def test_pure_noise_has_no_mismatch_and_exact_ancestral_sampling_no_error():
    row = exact.measure(VARIANCES, "rectified_flow", make_ladder("rectified_flow", 6), "ddim")
    assert row["mismatch"] == 0 and row["rel_w2"] == row["rel_w2_exact_start"]
    law = chains.variances(VARIANCES, make_ladder("karras", 2), "ddpm_exact", start="marginal")
    assert exact.relative_w2(VARIANCES, law[-1]) < 1e-12


@pytest.mark.skipif(not CIFAR.exists(), reason=f"needs {CIFAR}")
def test_table_of_t_space_on_cifar():
    """relW2 on the CIFAR-10 spectrum, to the digits printed in docs/t_space.md §1."""
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
            found.append(exact.measure(variances, name, make_ladder(name, levels, variances), sampler))
            assert f"{found[-1]['rel_w2']:.{len(printed) - 1}f}"[1:] == printed, (name, sampler, levels)
    bound = schedules.Ladder(*oracle.optimised_levels(variances, 8))
    assert f"{exact.measure(variances, 'optimised', bound, 'ddim')['rel_w2']:.3f}" == "0.196"
    compared = exact.compare(found, few=32, many=1000, usual=exact.usual_distance(variances), tolerance=1.2)
    rows = {(row["ladder"], row["sampler"]): row for row in compared}
    assert f"{rows['karras', 'heun']['ratio']:.2f}" == "1.10"
    assert f"{rows['uniform_logsnr', 'dpmpp_2m']['ratio']:.2f}" == "0.80"
    assert f"{rows['cosine', 'ddim']['ratio']:.0f}" == "25"
    # "Only its prior-mismatch floor", and so do the second-order chains: the floor of sigma_max = 80 hides the rest.
    floor = {pair for pair, row in rows.items() if row["verdict"] == "only the floor"}
    assert floor == {("scaled_linear", "ddim"), ("karras", "heun"), ("uniform_logsnr", "dpmpp_2m")}
    assert all(row["verdict"] == "does not" for pair, row in rows.items() if pair not in floor)
    assert all(row["ratio_exact_start"] > 5 for row in compared)
    assert {pair for pair, row in rows.items() if row["matches_usual"]} == {("uniform_logsnr", "dpmpp_2m")}


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
        "kind": "exact",
        "ladder": "karras",
        "sampler": "ddim",
        "effective_states": 1.0,
        "levels": levels,
        "rel_w2": rel_w2,
        "rel_w2_exact_start": 2 * rel_w2,
        "floor": 0.1,
    }
    return fields | changes


def test_comparison_counts_levels_needed_and_the_usual_chain():
    own = [made_chain(T, w) for T, w in [(8, 1.1), (16, 3.0), (32, 2.0), (64, 1.1), (1000, 1.0)]]
    lone = made_chain(32, 1.0, sampler="heun")
    (row,) = exact.compare([*own, lone], few=32, many=1000, usual=1.7, tolerance=1.2)
    assert (row["ladder"], row["sampler"], row["few"], row["many"]) == ("karras", "ddim", 32, 1000)
    assert row["ratio"] == 2.0 and row["ratio_exact_start"] == 2.0 and row["verdict"] == "does not"
    assert row["levels_needed"] == 64  # T = 8 is near by luck: T = 16 is not
    assert row["usual_ratio"] == pytest.approx(2.0 / 1.7) and row["matches_usual"]
    (row,) = exact.compare(own, few=32, many=1000, usual=1.6, tolerance=1.2)
    assert not row["matches_usual"]
    (row,) = exact.compare(own, few=16, many=64, usual=1.6, tolerance=3.0)
    assert row["levels_needed"] == 8 and row["verdict"] == "matches"


def test_exact_part_covers_ladders_samplers_and_the_bound():
    limits = {"sigma_min": 0.01, "sigma_max": 9.0}
    found = exact.measure_all(VARIANCES, ("karras", "rectified_flow"), (4, 16), limits=limits)
    kinds = [(row["ladder"], row["sampler"], row["levels"]) for row in found]
    assert len(kinds) == len(set(kinds)) == 2 * (4 + 3 + 4)
    ladder = schedules.make_ladder("karras", 4, VARIANCES, **limits)
    assert exact.measure(VARIANCES, "karras", ladder, "heun") in found
    of_ddim = [row for row in found if row["sampler"] == "ddim"]
    bound = {row["levels"]: row["rel_w2"] for row in of_ddim if row["ladder"] == "optimised"}
    assert all(bound[row["levels"]] <= row["rel_w2"] for row in of_ddim)
    usual = exact.measure(VARIANCES, "x", make_ladder("linear_beta", 1000), "ddpm")["rel_w2"]
    assert exact.usual_distance(VARIANCES) == usual


# Mixture


@pytest.mark.parametrize("sampler", ["ddpm", "dpmpp_2m"])
def test_a_loop_of_fixed_length_does_the_same_updates(sampler):
    """What an accelerator runs: all chains at once as long as the longest, updates beyond the last that change nothing."""
    named = [(f"karras{T}", T, make_ladder("karras", T)) for T in (3, 7)]
    start = np.random.default_rng(0).standard_normal((tasks.BLOCKS, 8)).astype(np.float32)

    def run():
        return mixture.run_chains(tasks.mixture_task(), named, start, start, sampler=sampler)

    told = run()
    with devices.made_for("tpu"):
        fixed = run()
    for a, b in zip(jax.tree.leaves(fixed), jax.tree.leaves(told), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5)


def test_floor_of_the_mixture_is_reached_once_and_for_all():
    assert mixture.is_at_floor(0.4, 0.0, 1.0, 1.2) and not mixture.is_at_floor(0.5, 0.0, 1.0, 1.2)
    assert mixture.is_at_floor(0.5, 0.05, 1.0, 1.2) and mixture.is_at_floor(-0.1, 0.0, 1.0, 1.0)

    def levels(*flags, sampler="ddim"):
        rows = [{"ladder": "a", "sampler": "ddim", "levels": 2**i, "at_floor": flag} for i, flag in enumerate(flags)]
        return mixture.levels_to_floor(rows, "a", sampler)

    assert levels(False, True, False, True, True) == 8 and levels(True, True) == 1
    assert levels(True, False) is None and levels(True, sampler="heun") is None


# Learned scores


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


def made_learned(shift, *, error=0.01):
    """Rows and values whose metrics are 1 for (trained, T) = (16, 16), ``shift`` more for (16, 4), and 2 for (4, 4)."""
    rng, found = np.random.default_rng(0), []
    for _ in range(2):
        common = rng.standard_normal(64)  # what chains of one seed share
        for trained, levels, level in [(16, 4, 1.0 + shift), (16, 16, 1.0), (4, 4, 2.0)]:
            values = level + common + 8 * error * rng.standard_normal(64)
            for sampler in learned.SAMPLERS:
                row = {
                    "kind": "learned",
                    "task": "made",
                    "trained_levels": trained,
                    "sampler": sampler,
                    "levels": levels,
                    **dict.fromkeys(learned.METRICS, values.mean()),
                    "rel_fd_floor": 0.1,
                    "sliced_w2_squared_floor": 0.1,
                }
                found.append((row, dict.fromkeys(learned.METRICS, values)))
    return found


@pytest.mark.parametrize(
    ("shift", "error", "expected"),
    [(0.0, 1e-3, "matches"), (0.2, 1e-3, "matches"), (0.7, 1e-3, "differs"), (0.3, 0.3, "cannot tell")],
)
def test_differences_are_paired(shift, error, expected):
    found = made_learned(shift, error=error)
    differences = learned.compare(found, few=4, many=16, tolerance=1.2)
    assert len(differences) == 2 * 2 * 2
    means = {}
    for row, values in found:
        means.setdefault((row["trained_levels"], row["levels"]), []).append(values["rel_fd"].mean())
    for d in differences:
        few = d["question"].startswith("few")
        first, second = (means[(16, 4)], means[(16, 16)]) if few else (means[(4, 4)], means[(16, 4)])
        assert d["mean"] == pytest.approx(np.mean(first) - np.mean(second)) and d["base"] == pytest.approx(
            np.mean(second)
        )
        if few:
            # The common part, of standard error 1 / 8 per seed, has gone.
            assert d["verdict"] == expected and (error > 0.1 or d["half_width"] < 0.05)
    diverged = [
        (row, values if i % 2 else dict.fromkeys(values, np.full(64, np.inf))) for i, (row, values) in enumerate(found)
    ]
    compared = learned.compare(diverged, few=4, many=16, tolerance=1.2)
    assert {d["verdict"] for d in compared if d["sampler"] == learned.SAMPLERS[0]} == {"cannot tell"}


def test_floor_of_data_is_the_training_set():
    task = tasks.data_task(data.digits(), latent_dim=4)
    floors = learned.task_floors(task, 4096)
    assert floors["rel_fd"] == pytest.approx(jackknifed_rel_fd(task.training[:1216], task)[0], rel=1e-3)
    assert floors["sliced_w2_squared"] == task.sliced_floor(4096) > 0


# Acceptance


def test_acceptance_flips_at_its_margin():
    exact_values = 0.5 + 0.01 * np.random.default_rng(0).standard_normal(64)
    noise = 1e-3 * np.random.default_rng(1).standard_normal(64)
    noise -= noise.mean()
    margin = 0.1 * (exact_values.mean() - 0.1) + 2 * noise.std(ddof=1) / 8
    for shift, passed in [(0.99, True), (1.01, False), (-0.99, True), (-1.01, False)]:
        found = acceptance.judge(exact_values, exact_values + shift * margin + noise, floor=0.1)
        assert found["passed"] == passed and found["allowed"] == pytest.approx(margin)
        assert found["difference"] == pytest.approx(shift * margin)
        assert found["learned"] - found["exact"] == pytest.approx(found["difference"])


@pytest.mark.parametrize("passes", [True, False])
def test_acceptance_accepts_the_exact_score_and_not_another(monkeypatch, passes):
    """Training is replaced by a denoiser: the exact one, or that of the mixture's Gaussian, blind to its modes."""
    task, ladder = tasks.mixture_task(), make_ladder("karras", 8)
    seen = {}

    def train(specs, samples, config, *, job):
        seen.update(specs=specs, samples=samples, config=config)
        denoiser = task.exact(ladder) if passes else oracle.gaussian_denoiser(np.ones(8), ladder)

        def map_models(function, starts):
            mapped = devices.map_runs(lambda _, start: function(denoiser, start), samples=True)
            return jax.tree.map(lambda x: x[None], devices.collect(mapped(0, starts), 1))

        return types.SimpleNamespace(map_models=map_models, config=config)

    monkeypatch.setattr(acceptance.experts, "train_experts", train)
    monkeypatch.setattr(acceptance, "SAMPLERS", ("dpmpp_2m",))
    monkeypatch.setattr(acceptance, "DRAWS", 512)
    config = few_states.Config(levels=(8, 16), few=8, mixture_samples=1000, seeds=(3,))
    (row,) = acceptance.measure_all(task, config)
    assert seen["samples"].shape == (512, 8) and seen["specs"][0].seed == 3 and seen["config"].ladder == ladder
    assert row["sampler"] == "dpmpp_2m" and row["samples"] == 1024 and row["passed"] == passes
    if passes:
        start = jax.random.normal(jax.random.key(3), (1024, 8))
        samples = jax.jit(lambda z: tasks.run_chain(task.exact(ladder), ladder, z, "dpmpp_2m"))(start)
        expected = np.mean((np.sort(samples @ task.directions, axis=0).T - task.quantiles(1024)) ** 2)
        assert row["exact"] == pytest.approx(expected - row["floor"], abs=0.5 * row["exact_error"])
        assert row["difference"] == 0
    else:
        assert row["learned"] > 10 * row["floor"] > 0


# Settings and report


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"few": 7}, "few"),
        ({"few": 1000}, "few"),
        ({"samples": 1000}, "samples"),
        ({"levels": (32, 1001), "ladders": ("karras",), "learned_ladder": "linear_beta"}, "levels"),
        ({"tasks": ("data",), "spectrum": "power:1"}, "tasks"),
        ({"latent_dim": 65}, "latent_dim"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings, name):
    with pytest.raises(SettingError) as error:
        few_states.Config(**settings).load()
    assert error.value.name == name


def test_data_without_variance_are_refused(tmp_path):
    np.save(tmp_path / "zeros.npy", np.zeros(4))
    with pytest.raises(SettingError, match=r"zeros.npy.*variance > 0"):
        few_states.Config(spectrum=str(tmp_path / "zeros.npy")).load()


def test_a_spectrum_has_no_data_to_learn_unless_asked():
    assert [t.name for t in few_states.Config(spectrum="power:1").load().tasks] == ["mixture", "gaussian"]


def made_results():
    config = few_states.Config(levels=(4, 16), few=4, samples=512, seeds=(0, 1))
    found = [made_chain(4, 1.1, ladder=name) for name in ("karras", "cosine")]
    found += [made_chain(16, 1.0, ladder="karras"), made_chain(16, 0.1, ladder="cosine", floor=0.01)]
    rows = [*found, *exact.compare(found, few=4, many=16, usual=1.0, tolerance=1.2)]
    for sampler in exact.SAMPLERS:
        chain = {"ladder": "karras", "sampler": sampler, "samples": 512}
        measured = {
            "rms_to_flow": None if sampler == "ddpm" else 0.25,
            "sliced_above_flow": 0.0125,
            "paired_error": 0.00125,
        }
        rows += [{"kind": "mixture", "levels": levels, **chain, **measured} for levels in (4, 16)]
        known = {"sliced_w2_squared_floor": 0.0015, "sliced_w2_squared_flow": 0.002, "levels_to_floor": 16}
        rows.append({"kind": "mixture_floor", **chain, **known})
    scores = made_learned(0.7, error=1e-3)
    rows += [row for row, _ in scores] + learned.compare(scores, few=4, many=16, tolerance=1.2)
    judged = acceptance.judge(np.linspace(0.4, 0.6, 64), np.linspace(0.4, 0.61, 64), floor=0.1)
    rows.append({"kind": "acceptance", "sampler": "ddim", "samples": 64, **judged})
    return Results(rows=rows, config=config)


def test_report_says_what_the_results_say():
    made = report(made_results())
    first, second, third, fourth = made.text.split("\n\n")
    assert "of 2 chains 4 states match 16 in 1, only by the floor in 0, not in 1" in first
    lines = [line.split() for text in (first, second, third, fourth) for line in text.splitlines()]
    assert ["karras", "ddim", "1.0", "0.1000", "1.1000", "1.1", "matches", "as", "good"] in lines
    assert ["cosine", "ddim", "1.0", "0.0100", "1.1000", "11", "does", "not", "as", "good"] in lines
    assert sum(line[2:] == ["16", "0.250", "12.50", "1.25"] for line in lines) == 3
    assert sum(line[2:] == ["16", "12.50", "1.25"] for line in lines) == 1  # DDPM has no counterpart in the flow
    rows = [line for line in lines if line and line[0] == "made"]
    assert len(rows) == 4 and all("differs" in row and row.count("±") == 2 for row in rows)
    few_value, many_value, difference = map(float, rows[0][4:7])
    assert few_value - many_value == pytest.approx(0.7, abs=0.01) == difference
    assert "passes" in fourth
    panels = {name: len(figure.axes) for name, figure in made.figures.items()}
    assert panels == {"exact": 4, "mixture": 8, "learned": 2}


def test_report_of_nothing_is_empty():
    made = report(Results(rows=[], config=few_states.Config()))
    assert made.text == "" and made.figures == {}


# The parts as they are computed


@pytest.fixture(scope="module")
def computed(tmp_path_factory):
    """The results of each part, read from its files."""
    found = {}
    for part in few_states.PARTS:
        config = few_states.Config(
            spectrum="exponential:0.5",
            data_dim=8,
            parts=(part,),
            levels=(4, 16),
            few=4,
            ladders=("karras", "rectified_flow"),
            tasks=("gaussian",),
            samples=1024,
            seeds=(5, 6),
            steps=1,
            hidden=4,
            batch_size=8,  # one step of training leaves networks that are nearly 0
        )
        where = tmp_path_factory.mktemp(part)
        write_results(where, few_states.compute(config, config.load(), NO_JOB))
        found[part] = read_results(where, config)
    return found


def test_every_part_is_computed(computed):
    kinds = [row["kind"] for results in computed.values() for row in results.rows]
    count = {kind: kinds.count(kind) for kind in dict.fromkeys(kinds)}
    assert count == {"exact": 22, "verdict": 11, "mixture": 14, "mixture_floor": 7, "learned": 12, "difference": 8}
    variances, curves = np.exp(-0.5 * np.arange(8)), computed["exact"].arrays
    chain = exact.measure(variances, "karras", make_ladder("karras", 4, variances), "dpmpp_2m")
    assert [row for row in computed["exact"].rows if chain.items() <= row.items()]
    axes = [("ladders", "karras"), ("samplers", "dpmpp_2m"), ("levels", 4)]
    place = [curves[f"exact_{axis}"].tolist().index(value) for axis, value in axes]
    assert curves["exact_rel_w2"][*place] == chain["rel_w2"]
    assert np.isnan(curves["exact_rel_w2"]).sum() == 2  # Heun from pure noise
    assert computed["mixture"].arrays["mixture_paired_error"].shape == (2, 4, 2)
    scores = computed["learned"].of_kind("learned")
    for row, values in zip(scores, computed["learned"].arrays["learned_rel_fd"], strict=True):
        assert (row["rel_fd"], row["rel_fd_error"]) == pytest.approx(chains.estimate(values))
    assert [list(report(results).figures) for results in computed.values()] == [["exact"], ["mixture"], ["learned"]]


def test_mixture_chains_are_measured_against_the_flow(computed):
    results = computed["mixture"]
    found = {(row["ladder"], row["sampler"], row["levels"]): row for row in results.of_kind("mixture")}
    assert len(found) == 2 * (2 * 3 + 1)  # Heun does not run from pure noise
    task, ladder = tasks.mixture_task(), make_ladder("karras", 16)
    start = jax.random.normal(jax.random.key(0), (1024, 8))
    flow = np.asarray(task.flow(start))
    samples = np.asarray(tasks.run_chain(task.exact(ladder), ladder, start, "dpmpp_2m"))
    chain = found["karras", "dpmpp_2m", 16]
    assert chain["rms_to_flow"] == pytest.approx(np.sqrt(np.mean((samples - flow) ** 2)), rel=1e-2)
    quantiles, floor = task.quantiles(1024), task.sliced_floor(1024)
    sliced, of_flow = (np.mean((np.sort(x @ task.directions, axis=0).T - quantiles) ** 2) for x in (samples, flow))
    known = results.of_kind("mixture_floor")[0]
    assert known["sliced_w2_squared_flow"] == pytest.approx(of_flow, rel=1e-2)
    assert known["sliced_w2_squared_floor"] == floor
    assert chain["sliced_above_flow"] == pytest.approx(sliced - of_flow, abs=0.02 * sliced)
    assert chain["sliced_above_floor"] == pytest.approx(sliced - floor, abs=0.02 * sliced)
    for (_, sampler, _), row in found.items():
        assert (row["rms_to_flow"] is None) == (sampler == "ddpm") and row["paired_error"] > 0
    # Common noise makes differences much surer than values.
    assert chain["paired_error"] < 0.6 * chain["sliced_error"]
    rms = [found["karras", "ddim", levels]["rms_to_flow"] for levels in (4, 16)]
    assert rms[0] > rms[1] > chain["rms_to_flow"] and not found["karras", "ddim", 4]["at_floor"]


def test_untrained_networks_follow_the_oracle(computed):
    """A network that is 0 is the exact denoiser of N(0, s^2 I), whose chains have variances that the oracle knows."""
    task, whole = tasks.gaussian_task(), make_ladder("karras", 16)
    scale, data_std = np.mean(task.training**2), np.sqrt(np.diag(task.covariance))
    scores, floor = computed["learned"].of_kind("learned"), task.sliced_floor(1024)
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
    for row in computed["learned"].of_kind("difference"):
        if row["question"].startswith("trained"):
            # Nearly the same function on the same levels from the same noise.
            assert abs(row["mean"]) < 0.01 * row["base"] and row["verdict"] == "matches"
