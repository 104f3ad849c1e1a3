"""Contests of U-Nets, training and sampling, against the same network in PyTorch: maps channels last, autocast for bfloat16."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from experiments.benchmark import opponents
from experiments.benchmark.contest import Sides, Sizes, timed
from experiments.benchmark.sampling import SCHEDULE, uniform_grid
from experiments.benchmark.sweeping import RATES, UNETS, UNet, points, runs_on_points, unet_here
from experiments.benchmark.training import denoising_loss, tensors
from experiments.benchmark.variants import fastest
from ldmjax import devices, networks, random, samplers, sweeps, training
from ldmjax.devices import host_threads
from ldmjax.job import Job

DATA_STD = 0.7


def train_sides(name: str, sizes: Sizes, job: Job) -> Sides:
    """A run on each device against one PyTorch training on all cores, or the GPU: seconds per step of one run."""
    unet, precision, runs = unet_here(name, sizes), sizes.precision, jax.device_count()
    inputs = tensors(points(0, unet.dim), np.ones(unet.dim), DATA_STD)
    how = {"batch": unet.batch, "rate": RATES["unet"], "cap": np.inf, "logsnr": None, "warm_up": 2}

    def seconds(used_loss, steps):
        p = opponents.new_unet(unet.map_shape, unet.channels)
        return opponents.train("unet", used_loss, p, *inputs, **how, steps=steps) / steps

    def ours():
        specs, latents = runs_on_points("unet", runs, (unet.dim,))
        return sweeps.train_scores(specs, latents, unet.config(precision), chunk=unet.steps).seconds / (
            runs * unet.steps
        )

    loss = functools.partial(opponents.mlp_loss, net=torch_network(precision))
    theirs, opponent = _fastest(loss, seconds, unet.steps, f"U-Net {name}", sizes, job)
    return Sides(
        ours=ours,
        theirs=theirs,
        unit=f"run-step, {unet.batch} maps{_reduced(unet.batch, UNETS[name].batch)}",
        options=f"a run on each device, {_precision(precision)}",
        opponent=opponent,
        agreement=loss_difference(unet, precision),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )


def sample_sides(name: str, sizes: Sizes, job: Job) -> Sides:
    """One DDIM chain from the same start with the same parameters; only the newest states are held."""
    unet = unet_here(name, sizes)
    steps = unet.sampling_steps
    start = np.random.default_rng(0).standard_normal((unet.samples, unet.dim)).astype(np.float32)
    network, values = random_network(unet, sizes.precision)
    ours, inputs = our_chain(network, start, steps), torch_chain_inputs(unet, values, start, steps)
    step = torch_step(sizes.precision)

    def seconds(used_step, steps):
        def chain():
            opponents.sample(used_step, *inputs[:2], inputs[2][:steps])
            opponents.synchronised_time()

        chain()
        return timed(chain) / steps

    theirs, opponent = _fastest(step, seconds, steps, f"U-Net {name}, sampling", sizes, job)
    first, second = ours(), opponents.sample(step, *inputs).cpu().numpy()
    reduced = _reduced(unet.samples, min(UNETS[name].samples, sizes.samples))
    return Sides(
        ours=lambda: timed(ours) / steps,
        theirs=theirs,
        unit=f"step of {unet.samples} samples{reduced}, chains of {steps}",
        options=f"samples spread over all devices, {_precision(sizes.precision)}",
        opponent=opponent,
        agreement=float(np.linalg.norm(first - second) / np.linalg.norm(second)),
        agreement_in="relative difference of the final states, same parameters and start",
    )


def _fastest(function, seconds, steps, what, sizes, job):
    """As `fastest`, on all cores."""
    what = {"what": f"{what}, {sizes.precision}", "unit": "step"}
    theirs, opponent = fastest(function, seconds, steps, **what, job=job, thread_counts=(host_threads(),))
    precision = "float32" if sizes.precision == "float32" else f"autocast to {sizes.precision}"
    return theirs, f"{opponent}, channels last, {precision}"


def _reduced(used, wanted):
    return f" (a CPU's size; {wanted} on an accelerator)" if used < wanted else ""


def _precision(name):
    if name != "float32":
        return f"{name} activations and products"
    return f"float32 with products {jax.config.jax_default_matmul_precision}"


def random_network(unet: UNet, precision: str) -> tuple[nnx.Module, dict[str, np.ndarray]]:
    """Our network with random parameters, and these by name ("down.0.0.up"), in its own layout."""
    rng, values = np.random.default_rng(1), {}
    network = training.make_network(unet.config(precision), unet.dim, random.key(0), unet.dim)
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


def our_chain(network: nnx.Module, start: np.ndarray, steps: int):
    """Runs DDIM from ``start [N, D]``, gives the final states."""
    graphdef, state = nnx.split(network)
    how = {"times": uniform_grid(steps), "stops": [steps], "sampler": "ddim", "statistic": lambda z, t: z}

    def chain(_, params, start):
        denoiser = networks.as_denoiser(nnx.merge(graphdef, params), _run_inputs(start.shape[1]))
        return samplers.sample(denoiser, SCHEDULE, start, random.key(0), **how)[0]

    program, rows = devices.map_runs(chain, samples=True), (jax.tree.map(lambda x: x[None], state), start[None])
    return lambda: devices.collect(program(0, *rows), 1)[0]


def torch_network(precision: str):
    """The opponent's network."""
    return functools.partial(opponents.unet, half=precision == "bfloat16")


def torch_step(precision: str):
    """The opponent's step of DDIM."""
    return functools.partial(opponents.ddim_step, std=DATA_STD, net=torch_network(precision))


def torch_chain_inputs(unet: UNet, values: dict[str, np.ndarray], start: np.ndarray, steps: int) -> tuple:
    """Parameters, states, and of every step log-SNR, alpha and sigma, and those that it ends at ``[N, 5]``."""
    times = uniform_grid(steps)
    alpha, sigma = SCHEDULE.alpha(times), SCHEDULE.sigma(times)
    coefficients = [SCHEDULE.logsnr(times)[:-1], alpha[:-1], sigma[:-1], alpha[1:], sigma[1:]]
    return _torch_parameters(unet, values), *tensors(start, np.stack(coefficients, axis=1))


def _torch_parameters(unet, values):
    """Our parameters in PyTorch's layout: kernels ``[9 C, C_out]`` become ``[C_out, C, 3, 3]``, positions channels first."""
    parameters = opponents.new_unet(unet.map_shape, unet.channels)
    for name, own in parameters.items():
        value = values[name]
        if own.ndim == 4:
            c_out, c_in, height, width = own.shape
            value = value.reshape(height, width, c_in, c_out).transpose(3, 2, 0, 1)
        elif own.ndim == 3:
            value = value.transpose(2, 0, 1)
        own.copy_(tensors(value)[0])
    return parameters


def loss_difference(unet: UNet, precision: str) -> float:
    """Relative difference of both sides' losses on one batch, at random parameters."""
    network, values = random_network(unet, precision)
    rng = np.random.default_rng(2)
    x0, noise = points(0, unet.dim)[: unet.batch], rng.standard_normal((unet.batch, unet.dim)).astype(np.float32)
    logsnr = rng.uniform(-9.0, 8.0, unet.batch).astype(np.float32)
    inputs = tensors(x0, noise, logsnr, DATA_STD, np.ones(unet.dim))
    theirs = float(opponents.mlp_loss(_torch_parameters(unet, values), *inputs, net=torch_network(precision)))
    ours = denoising_loss(network, *map(jnp.asarray, (x0, noise, logsnr)), _run_inputs(unet.dim))
    return abs(float(ours) / theirs - 1.0)
