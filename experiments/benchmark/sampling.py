"""Contests of sampling: our loop against the scan that stores all states; the noisy autoencoder against a trained model."""

import concurrent.futures
import functools
import multiprocessing
import resource
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import Config, Sides, timed
from experiments.benchmark.training import DIM, points
from ldmjax import autoencoders, data, devices, samplers, schedules, stopping, sweeps, threefry, training

SCHEDULE = schedules.LinearVP()
VARIANCES = 1.0 / np.arange(1, DIM + 1) ** 1.5
RUNS, STOPS = 8, 100
# The trained model of the noisy autoencoder's contest: that of `experiments.noisy_autoencoder`, on digits.
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


def sampling_sides(config: Config, report: Callable[[str], None]) -> Sides:
    """Second moments of 8 Gaussian chains at 100 stops."""
    del report
    ours, scan = _our_chains(config), _scanned_chains(config)
    first, second = (np.asarray(side())[:RUNS] for side in (ours, scan))
    error = np.sqrt(4.0 / config.samples) * np.sqrt(first * second)
    return Sides(
        ours=lambda: timed(ours),
        theirs=lambda: timed(scan),
        unit=f"{RUNS} chains of {config.samples} samples, {config.sampling_steps} steps",
        options={
            "ours": f"{jax.device_count()} device(s), statistics on the way, Threefry without loops",
            "theirs": "one device, XLA's threads as they come",
        },
        agreement=float(np.max(np.abs(first - second) / error)),
        agreement_in=f"largest difference of {first.size} second moments, in its standard errors",
        bytes=(peak_bytes("ours", config), peak_bytes("scan", config)),
    )


def _our_chains(config):
    program = devices.map_runs(gaussian_chain(*_grid(config), config.samples), samples=True)
    keys = jax.random.split(threefry.key(config.seed), RUNS)
    return lambda: devices.collect(program(0, keys), RUNS)


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

    keys = jax.random.split(jax.random.key(config.seed + 1), RUNS)
    return lambda: jax.block_until_ready(moments(keys))


def peak_bytes(side: str, config: Config) -> float:
    """Memory that one side adds to a fresh process, at its peak: "ours" or "scan". On an accelerator, that of the device."""
    context = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_peak_bytes, side, config).result()


def _peak_bytes(side, config):
    devices.start()
    jnp.zeros(1).block_until_ready()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    {"ours": _our_chains, "scan": _scanned_chains}[side](config)()
    statistics = jax.devices()[0].memory_stats()
    if statistics:
        return float(statistics["peak_bytes_in_use"])
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def noisy_sides(decoding: bool, config: Config, report: Callable[[str], None]) -> Sides:
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
            seeds=[config.seed] * len(MODEL_DIMS), report=lambda line: None,
        )  # fmt: skip
        decoders = [autoencoder.decode for autoencoder in fitted]
    chains = _model_chains(samples, times, stops, config.seed)

    def theirs():
        for place, decode in enumerate(decoders):
            for states in chains(place):
                decode(states)

    def ours():
        for d, decode in zip(MODEL_DIMS, decoders, strict=True):
            stopping.noisy_autoencoder(
                points(config.seed)[:, :d], decode, {}, logsnrs=SCHEDULE.logsnr(times[stops]), samples=samples,
                seed=config.seed, report=lambda line: None,
            )  # fmt: skip

    return Sides(
        ours=lambda: timed(ours),
        theirs=lambda: timed(theirs),
        unit=f"{samples} states at {MODEL_STOPS} stops, d = {', '.join(map(str, MODEL_DIMS))}",
        options={
            "ours": "host, common random numbers",
            "theirs": f"our sampler, {config.sampling_steps} DDIM steps, MLP of width {MODEL['hidden']}",
        },
        agreement=float("nan"),
        agreement_in="two methods: `experiments.noisy_autoencoder` compares their answers",
    )


def _model_chains(samples, times, stops, seed):
    """Maps the place of a latent dimension to the states ``[S, N, d]`` that its network samples."""
    latents = {("gaussian", seed, len(points(seed))): sweeps.Latents(sample=points(seed), fresh_factor=np.eye(DIM))}
    specs = [
        sweeps.RunSpec(
            model="mlp", data="gaussian", training_draws="sample", latent_dim=d, seed=seed, n=len(points(seed)),
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
