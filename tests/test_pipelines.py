"""Stops in the words of samplers: golden levels of diffusers, its own schedulers where installed, and the issue's values."""

import json

import diffusers_levels
import numpy as np
import pytest
from diffusers_levels import GOLDEN, SAMPLERS, STEPS

from ldmjax import oracle, pipelines, schedules, stopping

WANTED = np.linspace(-4.0, 7.0, 45)


def make(name):
    return pipelines.make_sampler(**SAMPLERS[name])


def golden(name, steps):
    found = json.loads(GOLDEN.read_text())[f"{name}, {steps} steps"]
    logsnrs = np.array([-np.inf if at is None else at for at in found["logsnr"]])
    return np.array(found["index"]), np.array(found["timestep"]), logsnrs


def run_by_sdxl(timesteps, denoising_end):
    """Steps that SDXL's pipelines run, as in their __call__."""
    cutoff = int(round(1000 - denoising_end * 1000))
    return sum(t >= cutoff for t in timesteps)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", STEPS)
def test_levels_and_timesteps_are_those_of_diffusers(name, steps):
    sampler, (index, timesteps, logsnrs) = make(name), golden(name, steps)
    found = pipelines.levels(sampler, steps)[index]
    if name.startswith("scaled_linear") and not name.endswith("karras") and steps == 1000:
        # Offset 1 leaves the table there: one step aside.
        found, logsnrs = pipelines.levels(sampler, steps)[index[1:] - 1], logsnrs[1:]
        timesteps = timesteps[1:]
    # float32 in diffusers: 1 - alpha^2 of the cleanest levels is good to 1e-3.
    np.testing.assert_allclose(found, logsnrs, rtol=1e-4, atol=2e-3)
    told = [sampler.timestep(at) for at in found if np.isfinite(at)]
    np.testing.assert_allclose(told, timesteps[np.isfinite(found)], rtol=1e-3, atol=0.02)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", (20, 50))
def test_stops_are_within_one_step_of_diffusers(name, steps):
    sampler, (_, timesteps, logsnrs) = make(name), golden(name, steps)
    after = np.append(logsnrs[1:], np.inf)  # of 1, 2, ... steps
    for wanted in WANTED:
        stop = pipelines.stop_at(sampler, wanted, steps)
        right = 1 + np.searchsorted(after, wanted)  # the first step that ends beyond it
        assert right - 1 <= stop.step <= right
        if stop.denoising_end not in (None, 1.0):
            assert run_by_sdxl(timesteps, round(stop.denoising_end, 3)) == stop.step
            # Without the number of steps: the first level at or beyond the wanted one.
            unknown = pipelines.stop_at(sampler, wanted).denoising_end
            assert abs(run_by_sdxl(timesteps, unknown) - stop.step) <= 1


def test_every_stop_of_a_thousand_steps_is_within_one_of_them():
    for name in SAMPLERS:
        sampler = make(name)
        levels = np.append(pipelines.levels(sampler, 1000), np.inf)
        for wanted in WANTED:
            stop = pipelines.stop_at(sampler, wanted, 1000)
            assert levels[stop.step - 1] <= wanted <= levels[min(stop.step + 1, 1000)]


def test_denoising_end_is_that_of_sdxl():
    sdxl = pipelines.make_sampler("scaled_linear_euler")
    found = [pipelines.stop_at(sdxl, logsnr).denoising_end for logsnr in (0.0, 2.0, 4.0, 6.0)]
    np.testing.assert_allclose(found, [0.646, 0.889, 0.981, 0.998], atol=5e-4)
    assert pipelines.stop_at(sdxl, 7.08) == pipelines.stop_at(sdxl, sdxl.largest) == pipelines.stop_at(sdxl, None)
    assert pipelines.stop_at(sdxl, None).denoising_end == 1.0
    assert sdxl.largest == pytest.approx(7.07, abs=5e-3)
    for name in set(pipelines.NAMES):
        has = name.startswith("scaled_linear")
        assert (pipelines.stop_at(pipelines.make_sampler(name), 2.0).denoising_end is not None) == has


@pytest.mark.parametrize(
    "name, sigma, divide_by",
    [
        ("scaled_linear_euler", np.exp(-1.0), 1.0655),  # x0 + sigma eps
        ("scaled_linear_ddim", 0.3452, 1.0),
        ("edm", 0.5 * np.exp(-1.0), 1.0655),
        ("flow_matching", 0.2689, 0.7790),
        ("rectified_flow", 0.2689, 0.7790),
        ("linear_vp", 0.3452, 1.0),
    ],
)
def test_the_state_is_divided_by_its_own_radius(name, sigma, divide_by):
    stop = pipelines.stop_at(pipelines.make_sampler(name), 2.0)
    assert stop.sigma == pytest.approx(sigma, abs=1e-4) and stop.divide_by == pytest.approx(divide_by, abs=1e-4)
    assert stop.rf_time == pytest.approx(0.2689, abs=1e-4) and stop.vp_alpha == pytest.approx(0.9385, abs=1e-4)


def test_a_shift_moves_the_steps_and_not_the_level():
    plain, shifted = (pipelines.make_sampler("flow_matching", shift=shift) for shift in (1.0, 3.0))
    assert pipelines.stop_at(plain, 2.0).sigma == pipelines.stop_at(shifted, 2.0).sigma
    # s = .2689 is the share 1 - s of plain steps, and with shift 3 s = 3 u / (1 + 2 u) is at u = .109.
    assert plain.share(2.0) == pytest.approx(0.731, abs=2e-3) and shifted.share(2.0) == pytest.approx(0.892, abs=2e-3)
    assert pipelines.stop_at(shifted, 2.0, 28).step == 24
    assert pipelines.dynamic_shift(4096) == pytest.approx(3.158, abs=1e-3)


def test_the_largest_logsnr_is_the_cleanest_level_of_any_number_of_steps():
    for shift in (0.5, 1.0, 3.0, 6.0):
        sampler = pipelines.make_sampler("flow_matching", shift=shift)
        for steps in (20, 1000, 100_000):
            assert pipelines.levels(sampler, steps)[-1] == pytest.approx(sampler.largest)
        assert pipelines.stop_at(sampler, sampler.largest).logsnr is None
    assert pipelines.make_sampler("flow_matching", shift=3.0).largest == pytest.approx(9.42, abs=5e-3)


def test_no_denoising_end_gives_some_of_karras_steps():
    karras = pipelines.make_sampler("scaled_linear_karras")
    levels = pipelines.levels(karras, 50)
    timesteps = [round(karras.timestep(at), 6) for at in levels]
    found = [pipelines.stop_at(karras, at, 50).denoising_end for at in levels[1:]]
    assert found[-1] is None and sum(end is None for end in found) < 5
    for step, end in enumerate(found, start=1):
        assert end is None or run_by_sdxl(timesteps, round(end, 3)) == step


def test_a_level_after_a_step_is_found_again():
    for name in pipelines.NAMES:
        sampler = pipelines.make_sampler(name)
        for step, logsnr in enumerate(pipelines.levels(sampler, 30)[1:], start=1):
            stop = pipelines.stop_at(sampler, logsnr, 30)
            assert (stop.step, stop.logsnr) == (step, logsnr)
        assert pipelines.stop_at(sampler, None, 30).step == 30


def test_chains_of_samplers_have_their_levels():
    for name in pipelines.NAMES:
        sampler = pipelines.make_sampler(name)
        chain = stopping.Chain(sampler.schedule(20), 20, sampler.solver)
        np.testing.assert_allclose(chain.logsnrs[:-1], pipelines.levels(sampler, 20)[1:], rtol=1e-9)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: pipelines.make_sampler("euler"), "sampler must be one of rectified_flow"),
        (lambda: pipelines.make_sampler("edm", shift=3.0), "edm has none"),
        (lambda: pipelines.make_sampler("flow_matching", shift=0.0), "shift must be 0.01..100, got 0"),
        (lambda: pipelines.make_sampler("flow_matching", tokens=10**9), "shift must be 0.01..100, got inf"),
        (lambda: pipelines.make_sampler("flow_matching", shift=1.0, tokens=4096), "give a shift or tokens"),
        (lambda: pipelines.make_sampler("flow_matching", tokens=0), "tokens must be > 0, got 0"),
        (lambda: pipelines.levels(pipelines.make_sampler("edm"), 1), "at least 2 steps, got 1"),
        (lambda: pipelines.levels(pipelines.make_sampler("linear_beta_ddim"), 1001), "2..1000 steps, got 1001"),
        (lambda: pipelines.stop_at(pipelines.make_sampler("scaled_linear_ddim"), -9.0), "begins at logsnr"),
    ],
)
def test_what_no_sampler_can_do_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("steps", STEPS)
def test_golden_levels_are_what_diffusers_gives(name, steps):
    pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
    index, timesteps, logsnrs = golden(name, steps)
    own = diffusers_levels.levels_of(name, steps)
    np.testing.assert_allclose(own[0][index], timesteps, rtol=1e-6, atol=2e-5)
    np.testing.assert_allclose(own[1][index], logsnrs, atol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_states_of_diffusers_have_the_predicted_variance(name):
    """Its own steps with the exact score of N(0, lam), stopped after k, divided as told: the variance that the chain keeps."""
    pytest.importorskip("diffusers", reason="the extra 'diffusers' is not installed")
    sampler, steps, lam = make(name), 20, 0.3
    told = {step: pipelines.stop_at(sampler, at, steps) for step, at in enumerate(pipelines.levels(sampler, steps))}
    ladder = sampler.schedule(steps)
    stops, kept = oracle.variance_kept([lam], ladder, steps, sampler=sampler.solver)
    measured = diffusers_levels.variances_after_steps(name, steps, lam)
    for step in range(1, steps):
        noise_var = schedules.noise_var_from_logsnr(stops[step - 1])
        law = kept[step - 1, 0] * ((1.0 - noise_var) * lam + noise_var)
        found = measured[step] / told[step].divide_by ** 2 / sampler.data_std**2
        assert found == pytest.approx(law, rel=0.03 if sampler.solver == "ddpm" else 2e-3)
