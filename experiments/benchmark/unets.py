"""Contests of U-Nets, training and sampling, against the same network in PyTorch: maps channels last, autocast for bfloat16."""

import dataclasses
import functools
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmark import Config, Sides, Timer, timed
from experiments.benchmark.sampling import SCHEDULE, uniform_grid
from experiments.benchmark.training import POINTS, points
from experiments.benchmark.variants import fastest
from ldmjax import devices, losses, networks, samplers, sweeps, threefry, training
from ldmjax.devices import host_threads

RATE, DATA_STD = 0.001, 0.7


@dataclasses.dataclass(frozen=True, kw_only=True)
class Size:
    """A U-Net and the most that is asked of it: maps per training step, steps a round; samples of a chain and its steps."""

    map_shape: tuple[int, int, int]
    channels: tuple[int, ...]
    batch: int
    steps: int
    samples: int
    sampling_steps: int


SIZES = {
    "digits": Size(map_shape=(8, 8, 1), channels=(8, 16), batch=64, steps=1000, samples=4096, sampling_steps=200),
    "cifar": Size(map_shape=(32, 32, 3), channels=(32, 64, 128), batch=128, steps=100, samples=512, sampling_steps=50),
}
# A contest on a CPU is to take less than a minute.
ON_CPU = {
    "digits": {"steps": 25, "samples": 512, "sampling_steps": 50},
    "cifar": {"batch": 8, "steps": 4, "samples": 8, "sampling_steps": 10},
}


def size_here(name: str, config: Config) -> Size:
    """The sizes of a contest on this device: no more than ``config`` says, and less on a CPU."""
    size = dataclasses.replace(SIZES[name], **ON_CPU[name] if devices.platform() == "cpu" else {})
    limits = {
        field: min(getattr(size, field), getattr(config, field)) for field in ("steps", "samples", "sampling_steps")
    }
    return dataclasses.replace(size, **limits)


def training_sides(name: str, config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """A run on each device against one PyTorch training on all cores, or the GPU: seconds per step of one run."""
    from experiments.benchmark import opponents

    size = size_here(name, config)
    tensors = _tensors(points(0, math.prod(size.map_shape)), np.ones(math.prod(size.map_shape)), DATA_STD)
    loss = functools.partial(opponents.mlp_loss, net=_torch_network(config))
    options = {"batch": size.batch, "rate": RATE, "cap": np.inf, "logsnr": None, "warm_up": 2}

    def seconds(used_loss, steps):
        p = opponents.new_unet(size.map_shape, size.channels)
        return opponents.train("unet", used_loss, p, *tensors, **options, steps=steps) / steps

    what = {"what": f"U-Net {name}, {config.precision}", "unit": "step"}
    theirs, opponent = fastest(loss, seconds, size.steps, **what, report=report, thread_counts=(host_threads(),))
    facts = Sides(
        unit=f"run-step, {size.batch} maps{_reduced(size.batch, SIZES[name].batch)}",
        options=f"a run on each device, {_precision(config)}",
        opponent=f"{opponent}, channels last, {_their_precision(config)}",
        agreement=loss_difference(size, config.precision),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )
    return functools.partial(_our_training, size, config.precision), theirs, facts


def sampling_sides(name: str, config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """One DDIM chain from the same start with the same parameters; only the newest states are held."""
    from experiments.benchmark import opponents

    size = size_here(name, config)
    network, values = random_network(size, config.precision)
    start = np.random.default_rng(0).standard_normal((size.samples, math.prod(size.map_shape))).astype(np.float32)
    ours = _our_chain(size, network, start)
    p, (z, coefficients) = _torch_parameters(size, values), _tensors(start, _coefficients(size.sampling_steps))
    step = functools.partial(opponents.ddim_step, std=DATA_STD, net=_torch_network(config))

    def seconds(used_step, steps):
        def chain():
            opponents.sample(used_step, p, z, coefficients[:steps])
            opponents.synchronised_time()

        chain()
        return timed(chain) / steps

    what = {"what": f"U-Net {name}, sampling, {config.precision}", "unit": "step"}
    theirs, opponent = fastest(
        step, seconds, size.sampling_steps, **what, report=report, thread_counts=(host_threads(),)
    )
    first, second = ours(), opponents.sample(step, p, z, coefficients).cpu().numpy()
    facts = Sides(
        unit=f"step of {size.samples} samples{_reduced(size.samples, min(SIZES[name].samples, config.samples))}, "
        f"chains of {size.sampling_steps}",
        options=f"samples spread over all devices, {_precision(config)}",
        opponent=f"{opponent}, channels last, {_their_precision(config)}",
        agreement=float(np.linalg.norm(first - second) / np.linalg.norm(second)),
        agreement_in="relative difference of the final states, same parameters and start",
    )
    return lambda: timed(ours) / size.sampling_steps, theirs, facts


def _reduced(used, wanted):
    return f" (a CPU's size; {wanted} on an accelerator)" if used < wanted else ""


def _precision(config):
    if config.precision != "float32":
        return f"{config.precision} activations and products"
    return f"float32 with products {jax.config.jax_default_matmul_precision}"


def _their_precision(config):
    return "float32" if config.precision == "float32" else f"autocast to {config.precision}"


def training_config(size: Size, precision: str) -> training.TrainingConfig:
    """Our side's configuration."""
    other = {} if precision == "float32" else {"precision": precision}
    return training.TrainingConfig(
        model="unet", steps=size.steps, batch_size=size.batch, map_shape=size.map_shape, channels=size.channels, **other
    )


def _our_training(size, precision):
    runs, dim = jax.device_count(), math.prod(size.map_shape)
    specs = [
        sweeps.RunSpec(
            model="unet", data="gaussian", training_draws="sample", latent_dim=dim, seed=seed, n=POINTS, learning_rate=RATE
        )
        for seed in range(runs)
    ]  # fmt: skip
    latents = {
        ("gaussian", seed, POINTS): sweeps.Latents(sample=points(seed, dim), fresh_factor=np.zeros((dim, 0)))
        for seed in range(runs)
    }
    trained = sweeps.train(specs, latents, training_config(size, precision), chunk=size.steps)
    return trained.seconds / (runs * size.steps)


def random_network(size: Size, precision: str) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """Our network with random parameters, and these by name ("down.0.0.up"), in its own layout."""
    dim, rng, values = math.prod(size.map_shape), np.random.default_rng(1), {}
    network = training.make_network(training_config(size, precision), dim, threefry.key(0), dim)
    graphdef, state = nnx.split(network.raw)

    def draw(path, value):
        scale = 0.5 / math.sqrt(math.prod(value.shape[:-1]))
        name = ".".join(str(entry.key if hasattr(entry, "key") else entry.name) for entry in path[:-1])
        values[name] = (scale * rng.standard_normal(value.shape)).astype(np.float32)
        return jnp.asarray(values[name], value.dtype)

    network.raw = nnx.merge(graphdef, jax.tree_util.tree_map_with_path(draw, state))
    return network, values


def _run_inputs(dim):
    return networks.RunInputs(jnp.ones(dim), jnp.asarray(jnp.inf), jnp.asarray(DATA_STD, jnp.float32))


def _our_chain(size, network, start):
    times = uniform_grid(size.sampling_steps)
    graphdef, state = nnx.split(network)

    def chain(_, params, start):
        denoiser = networks.as_denoiser(nnx.merge(graphdef, params), _run_inputs(start.shape[1]))
        return samplers.sample(
            denoiser, SCHEDULE, start, threefry.key(0), times=times, stops=[size.sampling_steps], sampler="ddim",
            statistic=lambda z, t: z,
        )[0]  # fmt: skip

    program, rows = devices.map_runs(chain, samples=True), (jax.tree.map(lambda x: x[None], state), start[None])
    return lambda: devices.collect(program(0, *rows), 1)[0]


def _coefficients(steps):
    """Log-SNR, alpha and sigma of every step, and those that it ends at ``[N, 5]``."""
    times = uniform_grid(steps)
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    return np.stack([SCHEDULE.logsnr(times)[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]], axis=1)


def _torch_network(config):
    from experiments.benchmark import opponents

    return functools.partial(opponents.unet, half=config.precision == "bfloat16")


def _tensors(*arrays):
    import torch

    from experiments.benchmark import opponents

    return tuple(torch.tensor(np.asarray(a, np.float32), device=opponents.DEVICE) for a in arrays)


def _torch_parameters(size, values):
    """Our parameters in PyTorch's layout: kernels ``[9 C, C_out]`` become ``[C_out, C, 3, 3]``, positions channels first."""
    from experiments.benchmark import opponents

    parameters = opponents.new_unet(size.map_shape, size.channels)
    for name, own in parameters.items():
        value = values[name]
        if own.ndim == 4:
            c_out, c_in, height, width = own.shape
            value = value.reshape(height, width, c_in, c_out).transpose(3, 2, 0, 1)
        elif own.ndim == 3:
            value = value.transpose(2, 0, 1)
        own.copy_(_tensors(value)[0])
    return parameters


def loss_difference(size: Size, precision: str) -> float:
    """Relative difference of both sides' losses on one batch, at random parameters."""
    from experiments.benchmark import opponents

    network, values = random_network(size, precision)
    dim, rng = math.prod(size.map_shape), np.random.default_rng(2)
    x0, noise = points(0, dim)[: size.batch], rng.standard_normal((size.batch, dim)).astype(np.float32)
    logsnr = rng.uniform(-9.0, 8.0, size.batch).astype(np.float32)
    net, run = functools.partial(opponents.unet, half=precision == "bfloat16"), _run_inputs(dim)
    inputs = _tensors(x0, noise, logsnr, DATA_STD, np.ones(dim))
    theirs = float(opponents.mlp_loss(_torch_parameters(size, values), *inputs, net=net))

    def our_loss(x0, noise, logsnr):
        t = SCHEDULE.inverse_logsnr(logsnr)
        weight, denoiser = losses.edm_weight(SCHEDULE, t, run.data_std), networks.as_denoiser(network, run)
        return losses.denoising_score_matching(denoiser, x0, noise, t, weight, schedule=SCHEDULE, dim=dim)

    return abs(float(our_loss(*map(jnp.asarray, (x0, noise, logsnr)))) / theirs - 1.0)
