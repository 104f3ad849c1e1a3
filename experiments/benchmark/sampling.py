"""Contests of sampling: our loop against the scan that stores all states; the noisy autoencoder against a trained model."""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import Config, Sides, Timer, timed
from experiments.benchmark.training import DIM, points
from ldmjax import autoencoders, data, devices, samplers, schedules, stopping, sweeps, threefry, training

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

    def chain(_, key):
        start_key, noise_key = jax.random.split(key)

        def denoiser(z, t):
            alpha, sigma = SCHEDULE.alpha(t)[:, None], SCHEDULE.sigma(t)[:, None]
            return alpha * variances / (alpha**2 * variances + sigma**2) * z

        return samplers.sample(
            denoiser, SCHEDULE, threefry.normal(start_key, samples, DIM), noise_key, times=times, stops=stops,
            sampler="euler_maruyama", statistic=lambda z, t: jnp.mean(z**2, axis=0),
        )  # fmt: skip

    return chain


def sampling_sides(config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """Second moments of 8 Gaussian chains at 100 stops."""
    del report
    ours, scan = _our_chains(config), _scanned_chains(config)
    first, second = (np.asarray(side.run())[:RUNS] for side in (ours, scan))
    error = np.sqrt(4.0 / config.samples) * np.sqrt(first * second)
    facts = Sides(
        unit=f"{RUNS} chains of {config.samples} samples, {config.sampling_steps} steps",
        options="runs spread over all devices, statistics on the way",
        opponent="one device, XLA's threads as they come",
        agreement=float(np.max(np.abs(first - second) / error)),
        agreement_in=f"largest difference of {first.size} second moments, in its standard errors",
        peak_bytes=(ours.bytes, scan.bytes),
    )
    return lambda: timed(ours.run), lambda: timed(scan.run), facts


class Chains(NamedTuple):
    """Chains ready to run: ``run`` gives their moments, ``bytes`` is the memory that their program needs on all devices."""

    run: Callable[[], np.ndarray | jax.Array]
    bytes: float


def _program_bytes(compiled, count):
    """What a compiled program holds on ``count`` devices: its arguments, results and temporaries."""
    memory = compiled.memory_analysis()
    return float(count * (memory.argument_size_in_bytes + memory.output_size_in_bytes + memory.temp_size_in_bytes))


def _our_chains(config):
    program = devices.map_runs(gaussian_chain(*_grid(config), config.samples), samples=True)
    keys = jax.random.split(threefry.key(0), RUNS)
    needed = _program_bytes(program.lower(0, keys).compile(), jax.device_count())
    return Chains(lambda: devices.collect(program(0, keys), RUNS), needed)


def _grid(config):
    """Times of the chain, and the steps at which it is read."""
    stops = np.linspace(0, config.sampling_steps, min(STOPS, config.sampling_steps) + 1).astype(int)[1:]
    return uniform_grid(config.sampling_steps), stops


def _scanned_chains(config):
    """What one writes first: `vmap` of a `scan` that returns every state."""
    times, stops = _grid(config)
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
        start = jax.random.normal(start_key, (config.samples, DIM))
        return jax.lax.scan(step, (start, key), (times[:-1], times[1:]))[1]

    @jax.jit
    def moments(keys):
        return jnp.mean(jax.vmap(chain)(keys)[:, stops - 1] ** 2, axis=2)

    keys = jax.random.split(jax.random.key(1), RUNS)
    return Chains(lambda: jax.block_until_ready(moments(keys)), _program_bytes(moments.lower(keys).compile(), 1))


def noisy_sides(decoding: bool, config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """States at 20 stops for three latent dimensions: noise on latents, or the chains of trained networks.

    The networks are trained for one step: their cost does not depend on their weights. The decoder neither.
    """
    samples = 2 * int(MODEL_SHARE * config.samples / 2)
    times = uniform_grid(config.sampling_steps)
    stops = np.linspace(config.sampling_steps // 2, config.sampling_steps, MODEL_STOPS).astype(int)
    decoders = [lambda z: z] * len(MODEL_DIMS)
    if decoding:
        images = data.load("digits").samples.reshape(-1, 8, 8)
        fitted = autoencoders.fit(
            images, [(d,) for d in MODEL_DIMS], autoencoders.AutoencoderConfig(kind="conv", steps=1),
            seeds=[0] * len(MODEL_DIMS), report=lambda line: None,
        )  # fmt: skip
        decoders = [autoencoder.decode for autoencoder in fitted]
    chains = _model_chains(samples, times, stops)

    def theirs():
        for place, decode in enumerate(decoders):
            for states in chains(place):
                decode(states)

    def ours():
        for d, decode in zip(MODEL_DIMS, decoders, strict=True):
            stopping.noisy_autoencoder(
                points(0)[:, :d], decode, {}, logsnrs=SCHEDULE.logsnr(times[stops]), samples=samples,
                seed=0, report=lambda line: None,
            )  # fmt: skip

    facts = Sides(
        unit=f"{samples} states at {MODEL_STOPS} stops, d = {', '.join(map(str, MODEL_DIMS))}",
        options="host, common random numbers",
        opponent=f"our sampler, {config.sampling_steps} DDIM steps, MLP of width {MODEL['hidden']}",
        agreement=float("nan"),
        agreement_in="two methods: `experiments.noisy_autoencoder` compares their answers",
    )
    return lambda: timed(ours), lambda: timed(theirs), facts


def _model_chains(samples, times, stops):
    """Maps the place of a latent dimension to the states ``[S, N, d]`` that its network samples."""
    latents = {("gaussian", 0, len(points(0))): sweeps.Latents(sample=points(0), fresh_factor=np.eye(DIM))}
    specs = [
        sweeps.RunSpec(
            model="mlp", data="gaussian", training_draws="sample", latent_dim=d, seed=0, n=len(points(0)),
            learning_rate=0.001,
        )
        for d in MODEL_DIMS
    ]  # fmt: skip
    trained = sweeps.train(specs, latents, training.TrainingConfig(model="mlp", steps=1, batch_size=16, **MODEL))

    def chain(denoiser, run, sources, extra):
        del sources, extra
        start_key, noise_key = jax.random.split(run.key)
        start = threefry.normal(start_key, samples, DIM) * run.inputs.mask
        return samplers.sample(
            denoiser, SCHEDULE, start, noise_key, times=times, stops=stops, sampler="ddim", statistic=lambda z, t: z,
            mask=run.inputs.mask,
        )  # fmt: skip

    call = functools.cache(lambda: sweeps.map_trained(trained, chain, jnp.zeros(len(specs))))
    return lambda place: call()([place])[0][..., : MODEL_DIMS[place]]
