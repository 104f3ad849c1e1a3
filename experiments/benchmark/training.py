"""Contests of training against PyTorch: sweeps of runs, and experts, against its loops and torch.func.vmap."""

import jax
import jax.numpy as jnp
import numpy as np
import torch

from experiments.benchmark import opponents
from experiments.benchmark.contest import Sides, Sizes, Timer
from experiments.benchmark.sweeping import (
    BATCH,
    CAP,
    DIM,
    HIDDEN,
    LATENT_DIMS,
    POINTS,
    RATES,
    options,
    points,
    steps_of,
    sweep_config,
    sweep_rate,
)
from experiments.benchmark.variants import fastest
from ldmjax import experts, losses, networks, schedules, training
from ldmjax.devices import host_threads
from ldmjax.job import Job

EXPERT_HIDDEN, EXPERT_BATCH, LEVELS = 64, 128, 32
EXPERT = 16  # the level at which the experts' losses are compared
LADDER = schedules.Ladder(*schedules.karras_levels(LEVELS, sigma_min=0.002, sigma_max=80.0))
SCHEDULE = schedules.LinearVP()


def tensors(*arrays: np.ndarray) -> tuple[torch.Tensor, ...]:
    """The same in PyTorch, in float32 on its device."""
    return tuple(torch.tensor(np.asarray(a, np.float32), device=opponents.DEVICE) for a in arrays)


def torch_side(kind: str, steps: int, runs: int | None, job: Job) -> tuple[Timer, str]:
    """The fastest of the PyTorch variants as a function that gives seconds per run and step, and its name.

    Args:
      kind: "mlp", "linear" or "expert".
      steps: of every run.
      runs: trained at once by torch.func.vmap; None for a loop, timed on one run of each latent dimension.
      job: shows a line per variant.

    Raises:
      NotHeldError: if every variant failed.
    """
    loss, lead = getattr(opponents, f"{kind}_loss"), () if runs is None else (runs,)
    if runs is not None:
        loss = torch.func.vmap(loss, in_dims=(0, 0, 0, 0 if kind == "mlp" else None, 0, 0))
    batches = torch_batches(kind, runs)
    hidden, batch = (EXPERT_HIDDEN, EXPERT_BATCH) if kind == "expert" else (HIDDEN, BATCH)

    def seconds(used_loss, steps):
        total, how = 0.0, {"batch": batch, "steps": steps, "rate": RATES[kind], "cap": CAP}
        for (data, *rest), logsnr in batches:
            p = opponents.new_parameters(kind, data.shape[-1], hidden, lead)
            total += opponents.train(kind, used_loss, p, data, *rest, **how, logsnr=logsnr)
        return total / (steps * (runs or len(batches)))

    what = {"what": f"{'vmap' if runs else 'loop'}, {kind}", "unit": "run-step"}
    return fastest(loss, seconds, steps, **what, job=job, thread_counts=(1, host_threads()))


def torch_batches(kind: str, runs: int | None) -> list:
    """((data, mask, root mean square), logsnr) of each PyTorch training: all runs in one, or one for each dimension."""
    if kind == "expert":
        data, logsnr = points(0), LADDER.logsnr(np.arange(1, LEVELS + 1, 8))
        return [(tensors(data, np.ones(DIM), np.sqrt(np.mean(data**2))), *tensors([level])) for level in logsnr]
    if runs is None:
        rows = [points(0)[:, :d] for d in LATENT_DIMS]
        return [(tensors(x, np.ones(x.shape[1]), np.sqrt(np.mean(x**2))), None) for x in rows]
    places, sources = np.arange(runs) % len(LATENT_DIMS), np.arange(runs) // len(LATENT_DIMS)
    data, mask = tensors(
        np.stack([points(seed) for seed in range(sources[-1] + 1)]),
        np.arange(DIM) < np.take(LATENT_DIMS, places)[:, None],
    )
    data = data[torch.tensor(sources, device=data.device)] * mask[:, None]
    return [((data, mask, (data**2).sum((1, 2)).div(POINTS * mask.sum(1)).sqrt()), None)]


def sweep_sides(model: str, vmapped: bool, sizes: Sizes, job: Job) -> Sides:
    """Our sweep against PyTorch."""
    steps = steps_of(model, sizes)
    fewer, runs = (max(1, steps // 4), sizes.runs) if vmapped else (steps, None)
    return _sides(model, lambda: sweep_rate(model, sizes.runs, steps), torch_side(model, fewer, runs, job), "run-step")


def expert_sides(sizes: Sizes, job: Job) -> Sides:
    """T = 32 experts of one model against 32 PyTorch trainings, timed on four of them."""
    steps = 4 * sizes.steps
    config = experts.ExpertsConfig(
        ladder=LADDER, experts=LEVELS, batch_size=EXPERT_BATCH, steps=steps, hidden=EXPERT_HIDDEN
    )
    spec = experts.ModelSpec(seed=0, parameterisation="noise", learning_rate=RATES["expert"])

    def ours():
        return experts.train_experts([spec], points(0), config, chunk=steps).seconds[-1] / (LEVELS * steps)

    return _sides("expert", ours, torch_side("expert", steps, None, job), "expert-step")


def _sides(kind, ours, torch_side, unit):
    theirs, opponent = torch_side
    return Sides(
        ours=ours,
        theirs=theirs,
        unit=unit,
        options=options(),
        opponent=opponent,
        agreement=loss_difference(kind),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )


def loss_difference(kind: str) -> float:
    """Relative difference between our loss and the opponent's on one batch, at random parameters, half of the latent padded."""
    rng = np.random.default_rng(0)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    # Experts have no padding.
    mask = np.ones(DIM, np.float32) if kind == "expert" else (np.arange(DIM) < DIM // 2).astype(np.float32)
    x0, noise, std = points(0)[:BATCH] * mask, draw(BATCH, DIM) * mask, np.float32(0.7)
    logsnr = LADDER.logsnr(EXPERT) if kind == "expert" else rng.uniform(-9.0, 8.0, BATCH)
    shapes = opponents.new_parameters(kind, DIM, EXPERT_HIDDEN if kind == "expert" else HIDDEN)
    values = {name: 0.1 * draw(*p.shape) for name, p in shapes.items()}
    logsnr = np.broadcast_to(logsnr, BATCH).astype(np.float32)
    parameters = dict(zip(values, tensors(*values.values()), strict=True))
    theirs = float(getattr(opponents, f"{kind}_loss")(parameters, *tensors(x0, noise, logsnr, std, mask)))
    run = networks.RunInputs(jnp.asarray(mask), jnp.inf, jnp.asarray(std))
    ours = _OUR_LOSSES[kind](values, *map(jnp.asarray, (x0, noise, logsnr)), run)
    return abs(float(ours) / theirs - 1.0)


def _linear_loss(values, x0, noise, logsnr, run):
    levels = jnp.linspace(-10.0, 9.0, 128)
    weights = values["table"] / jax.nn.sigmoid(-levels)[:, None]
    t = SCHEDULE.inverse_logsnr(levels)
    return losses.linear_score_matching(weights, x0, noise, t, schedule=SCHEDULE, dim=jnp.sum(run.mask))


def _expert_loss(values, x0, noise, logsnr, run):
    table = experts.level_table(LADDER, np.array([EXPERT]), "noise", float(run.data_std), timed=False)
    size = {"features": 0, "hidden": EXPERT_HIDDEN, "blocks": 1}
    network = networks.ResidualMLP(DIM, latent_dim=DIM, rngs=networks.nnx.Rngs(params=0), **size)
    _set_parameters(network, values)
    z = table.alpha * x0 + table.sigma * noise
    return jnp.mean((network(z / table.radius) - table.target_x0 * x0 - table.target_noise * noise) ** 2)


def _mlp_loss(values, x0, noise, logsnr, run):
    network = training.make_network(sweep_config("mlp", 1), DIM, jax.random.key(0), DIM)
    _set_parameters(network.raw, values)
    return denoising_loss(network, x0, noise, logsnr, run)


_OUR_LOSSES = {"linear": _linear_loss, "expert": _expert_loss, "mlp": _mlp_loss}


def denoising_loss(network, x0, noise, logsnr, run: networks.RunInputs) -> jax.Array:
    """Ours, of a network with time."""
    t = SCHEDULE.inverse_logsnr(logsnr)
    weight, denoiser = losses.edm_weight(SCHEDULE, t, run.data_std), networks.as_denoiser(network, run)
    dim = jnp.sum(run.mask)
    return losses.denoising_score_matching(denoiser, x0, noise, t, weight, schedule=SCHEDULE, dim=dim)


def _set_parameters(network, values):
    """The opponent's parameters: its blocks have no leading axis, its decoder is the transpose."""
    for name, value in values.items():
        own = getattr(network, name)
        own[...] = jnp.asarray(value.T if name == "decode" else value).reshape(own[...].shape)
