"""Contests of sampling: our loop against the scan that stores all states; the noisy autoencoder against a trained model."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark.contest import Sides, Sizes, timed
from experiments.benchmark.sweeping import DIM, points, runs_on_points
from ldmjax import autoencoders, data, devices, random, samplers, schedules, stopping, sweeps, training
from ldmjax.job import Job

SCHEDULE = schedules.LinearVP()
VARIANCES = 1.0 / np.arange(1, DIM + 1) ** 1.5
RUNS, STOPS = 8, 100
# Of the noisy autoencoder's contest: the network of `experiments.noisy_autoencoder`.
MODEL_DIMS, MODEL_STOPS, MODEL = (4, 8, 16), 20, {"hidden": 256, "blocks": 2}
MODEL_SHARE = 0.5  # of --samples


def uniform_grid(steps: int) -> np.ndarray:
    """Times ``[N + 1]`` of the chains."""
    return schedules.uniform_logsnr_times(SCHEDULE, steps, logsnr_min=-8.0, logsnr_max=8.0)


def gaussian_chain(times: np.ndarray, stops: np.ndarray, samples: int) -> Callable:
    """For `devices.map_runs`: a key to second moments ``[S, D]`` at the stops, with the exact score of N(0, VARIANCES)."""
    variances = VARIANCES.astype(np.float32)

    def denoiser(z, t):
        alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
        return alpha * variances / (alpha**2 * variances + sigma**2) * z

    def chain(_, key):
        start_key, noise_key = jax.random.split(key)
        start = random.normal(start_key, samples, DIM)
        how = {"times": times, "stops": stops, "sampler": "euler_maruyama"}
        return samplers.sample(
            denoiser, SCHEDULE, start, noise_key, **how, statistic=lambda z, t: jnp.mean(z**2, axis=0)
        )

    return chain


class Chains(NamedTuple):
    """Chains ready to run: ``run`` gives their moments, ``bytes`` is the memory that their program needs on all devices."""

    run: Callable[[], np.ndarray | jax.Array]
    bytes: float


def sampling_sides(sizes: Sizes, job: Job) -> Sides:
    """Second moments of 8 Gaussian chains at 100 stops."""
    del job
    ours, scan = our_chains(sizes), scanned_chains(sizes)
    first, second = (np.asarray(side.run())[:RUNS] for side in (ours, scan))
    error = np.sqrt(4.0 / sizes.samples) * np.sqrt(first * second)
    return Sides(
        ours=lambda: timed(ours.run),
        theirs=lambda: timed(scan.run),
        unit=f"{RUNS} chains of {sizes.samples} samples, {sizes.sampling_steps} steps",
        options="runs spread over all devices, statistics on the way",
        opponent="one device, XLA's threads as they come",
        agreement=float(np.max(np.abs(first - second) / error)),
        agreement_in=f"largest difference of {first.size} second moments, in its standard errors",
        peak_bytes=(ours.bytes, scan.bytes),
    )


def our_chains(sizes: Sizes) -> Chains:
    """Statistics on the way."""
    program = devices.map_runs(gaussian_chain(*_grid(sizes), sizes.samples), samples=True)
    keys = jax.random.split(random.key(0), RUNS)
    needed = _program_bytes(program.lower(0, keys).compile(), jax.device_count())
    return Chains(lambda: devices.collect(program(0, keys), RUNS), needed)


def scanned_chains(sizes: Sizes) -> Chains:
    """What one writes first: `vmap` of a `scan` that returns every state."""
    times, stops = _grid(sizes)
    times = jnp.asarray(times, jnp.float32)
    variances = jnp.asarray(VARIANCES, jnp.float32)

    def step(carry, interval):
        z, key = carry
        t, t_next = interval
        alpha, sigma = SCHEDULE.alpha(t), SCHEDULE.sigma(t)
        score = -z / (alpha**2 * variances + sigma**2)
        noise_squared = 2.0 * (t - t_next) * SCHEDULE.w_squared(t)
        key, noise_key = jax.random.split(key)
        noise = jax.random.normal(noise_key, z.shape)
        z = z + 0.5 * noise_squared * (z + 2.0 * score) + jnp.sqrt(noise_squared) * noise
        return (z, key), z

    def chain(key):
        key, start_key = jax.random.split(key)
        start = jax.random.normal(start_key, (sizes.samples, DIM))
        return jax.lax.scan(step, (start, key), (times[:-1], times[1:]))[1]

    @jax.jit
    def moments(keys):
        return jnp.mean(jax.vmap(chain)(keys)[:, stops - 1] ** 2, axis=2)

    keys = jax.random.split(jax.random.key(1), RUNS)
    return Chains(lambda: jax.block_until_ready(moments(keys)), _program_bytes(moments.lower(keys).compile(), 1))


def _grid(sizes):
    """Times of the chain, and the steps at which it is read."""
    stops = np.linspace(0, sizes.sampling_steps, min(STOPS, sizes.sampling_steps) + 1).astype(int)[1:]
    return uniform_grid(sizes.sampling_steps), stops


def _program_bytes(compiled, count):
    """What a compiled program holds on ``count`` devices: its arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    return float(count * (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes))


def noisy_sides(decoding: bool, sizes: Sizes, job: Job) -> Sides:
    """States at 20 stops for three latent dimensions: noise on latents, or the chains of trained networks.

    The networks are trained for one step: their cost does not depend on their weights. The decoder neither.
    """
    del job
    samples, times = 2 * int(MODEL_SHARE * sizes.samples / 2), uniform_grid(sizes.sampling_steps)
    stops = np.linspace(sizes.sampling_steps // 2, sizes.sampling_steps, MODEL_STOPS).astype(int)
    decoders = [lambda z: z] * len(MODEL_DIMS)
    if decoding:
        images, config = data.load("digits").samples.reshape(-1, 8, 8), {"kind": "conv", "steps": 1}
        fitted = autoencoders.fit(
            images, [(d,) for d in MODEL_DIMS], autoencoders.AutoencoderConfig(**config), seeds=[0] * len(MODEL_DIMS)
        )
        decoders = [autoencoder.decode for autoencoder in fitted]
    chains = _model_chains(samples, times, stops)
    noise = {"logsnrs": SCHEDULE.logsnr(times[stops]), "samples": samples, "report": lambda line: None}

    def theirs():
        for place, decode in enumerate(decoders):
            for states in chains(place):
                decode(states)

    def ours():
        for d, decode in zip(MODEL_DIMS, decoders, strict=True):
            stopping.noisy_autoencoder(points(0)[:, :d], decode, {}, **noise)

    return Sides(
        ours=lambda: timed(ours),
        theirs=lambda: timed(theirs),
        unit=f"{samples} states at {MODEL_STOPS} stops, d = {', '.join(map(str, MODEL_DIMS))}",
        options="host, common random numbers",
        opponent=f"our sampler, {sizes.sampling_steps} DDIM steps, MLP of width {MODEL['hidden']}",
        agreement=float("nan"),
        agreement_in="two methods: `experiments.noisy_autoencoder` compares their answers",
    )


def _model_chains(samples, times, stops):
    """Maps the place of a latent dimension to the states ``[S, N, d]`` that its network samples."""
    config = training.TrainingConfig(model="mlp", steps=1, batch_size=16, **MODEL)
    trained = sweeps.train_scores(*runs_on_points("mlp", len(MODEL_DIMS), MODEL_DIMS), config)
    how = {"times": times, "stops": stops, "sampler": "ddim", "statistic": lambda z, t: z}

    def chain(denoiser, run, sources, extra):
        del sources, extra
        start_key, noise_key = jax.random.split(run.key)
        start = random.normal(start_key, samples, DIM) * run.inputs.mask
        return samplers.sample(denoiser, SCHEDULE, start, noise_key, **how, mask=run.inputs.mask)

    call = functools.cache(lambda: sweeps.map_trained(trained, chain, jnp.zeros(len(MODEL_DIMS))))
    return lambda place: call()([place])[0][..., : MODEL_DIMS[place]]
