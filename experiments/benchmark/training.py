"""Contests of training: sweeps of runs, and experts, against PyTorch loops and torch.func.vmap; and their growth with runs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import Config, Sides, Timer
from experiments.benchmark.variants import fastest
from ldmjax import devices, experts, losses, networks, schedules, sweeps, training
from ldmjax.devices import host_threads

DIM, POINTS, BATCH, LATENT_DIMS = 16, 1024, 256, (2, 4, 8, 16)
HIDDEN, EXPERT_HIDDEN, EXPERT_BATCH, LEVELS = 128, 64, 128, 32
RATES, CAP = {"mlp": 0.005, "linear": 0.05, "expert": 0.003}, 20.0
LINEAR_STEPS = 20  # times those of the MLP
EXPERT = 16  # the level at which the experts' losses are compared
LADDER = schedules.Ladder(*schedules.karras_levels(LEVELS, sigma_min=0.002, sigma_max=80.0))


@functools.cache
def points(seed: int, dim: int = DIM) -> np.ndarray:
    """Gaussian latents ``[POINTS, dim]`` with variances 1/k^1.5."""
    normals = np.random.default_rng(seed).standard_normal((POINTS, dim))
    return (normals / np.arange(1, dim + 1) ** 0.75).astype(np.float32)


def sweep_of(
    model: str, runs: int, steps: int, *, hidden: int = HIDDEN, latent_dims: tuple[int, ...] = LATENT_DIMS
) -> tuple[list[sweeps.RunSpec], dict, training.TrainingConfig]:
    """What `sweeps.train` takes: specs, latents (one for every ``len(latent_dims)`` runs) and configuration."""
    specs, latents, width = [], {}, max(latent_dims)
    for i in range(runs):
        seed, dim = divmod(i, len(latent_dims))
        latents["gaussian", seed, POINTS] = sweeps.Latents(sample=points(seed, width), fresh_factor=np.eye(width))
        specs.append(
            sweeps.RunSpec(
                model=model, data="gaussian", training_draws="sample", latent_dim=latent_dims[dim], seed=seed, n=POINTS,
                learning_rate=RATES[model], cap=CAP if model == "linear" else np.inf,
            )
        )  # fmt: skip
    return specs, latents, training.TrainingConfig(model=model, steps=steps, batch_size=BATCH, hidden=hidden, blocks=1)


def sweep_rate(model: str, runs: int, steps: int, **sizes) -> float:
    """Seconds per run and step of our sweep, compilation left out; ``sizes`` as in `sweep_of`."""
    trained = sweeps.train(*sweep_of(model, runs, steps, **sizes), chunk=steps)
    return trained.seconds / (runs * steps)


def torch_side(kind: str, steps: int, runs: int | None, report: Callable[[str], None]) -> tuple[Timer, str]:
    """The fastest of the PyTorch variants as a function that gives seconds per run and step, and its name.

    Args:
      kind: "mlp", "linear" or "expert".
      steps: of every run.
      runs: trained at once by torch.func.vmap; None for a loop, timed on one run of each latent dimension.
      report: receives a line per variant.

    Raises:
      NotHeldError: if every variant failed.
    """
    import torch

    from experiments.benchmark import opponents

    loss, lead = getattr(opponents, f"{kind}_loss"), () if runs is None else (runs,)
    if runs is not None:
        loss = torch.func.vmap(loss, in_dims=(0, 0, 0, 0 if kind == "mlp" else None, 0, 0))
    batches = _torch_batches(kind, runs, torch, opponents.DEVICE)
    hidden, size = (EXPERT_HIDDEN, EXPERT_BATCH) if kind == "expert" else (HIDDEN, BATCH)
    options = {"batch": size, "rate": RATES[kind], "cap": CAP}

    def seconds(used_loss, steps):
        total = 0.0
        for (data, *rest), logsnr in batches:
            p = opponents.new_parameters(kind, data.shape[-1], hidden, lead)
            total += opponents.train(kind, used_loss, p, data, *rest, **options, steps=steps, logsnr=logsnr)
        return total / (steps * (runs or len(batches)))

    what = f"{'vmap' if runs else 'loop'}, {kind}"
    return fastest(loss, seconds, steps, what=what, unit="run-step", report=report, thread_counts=(1, host_threads()))


def _torch_batches(kind, runs, torch, device):
    """((data, mask, root mean square), logsnr) of each PyTorch training: all runs in one, or one for each dimension."""

    def on_device(*arrays):
        return tuple(torch.tensor(np.asarray(a, np.float32), device=device) for a in arrays)

    if kind == "expert":
        data, logsnr = points(0), LADDER.logsnr(np.arange(1, LEVELS + 1, 8))
        return [(on_device(data, np.ones(DIM), np.sqrt(np.mean(data**2))), *on_device([level])) for level in logsnr]
    if runs is None:
        rows = [points(0)[:, :d] for d in LATENT_DIMS]
        return [(on_device(x, np.ones(x.shape[1]), np.sqrt(np.mean(x**2))), None) for x in rows]
    dims = np.array([LATENT_DIMS[i % len(LATENT_DIMS)] for i in range(runs)])
    mask = np.arange(DIM) < dims[:, None]
    sources = np.arange(runs) // len(LATENT_DIMS)
    (data,) = on_device(np.stack([points(seed) for seed in range(sources[-1] + 1)]))
    (mask,) = on_device(mask)
    data = data[torch.tensor(sources, device=device)] * mask[:, None]
    return [((data, mask, (data**2).sum((1, 2)).div(POINTS * mask.sum(1)).sqrt()), None)]


def sweep_sides(model: str, vmapped: bool, config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """Our sweep against PyTorch."""
    steps = config.steps * (LINEAR_STEPS if model == "linear" else 1)
    theirs, opponent = torch_side(
        model, steps if not vmapped else max(1, steps // 4), config.runs if vmapped else None, report
    )
    return lambda: sweep_rate(model, config.runs, steps), theirs, _facts(model, "run-step", opponent)


def expert_sides(config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """T = 32 experts of one model against 32 PyTorch trainings, timed on four of them."""
    steps = 4 * config.steps
    settings = experts.ExpertsConfig(
        ladder=LADDER, experts=LEVELS, batch_size=EXPERT_BATCH, steps=steps, hidden=EXPERT_HIDDEN
    )
    spec = experts.ModelSpec(seed=0, parameterisation="noise", learning_rate=RATES["expert"])
    theirs, opponent = torch_side("expert", steps, None, report)

    def ours():
        trained = experts.train([spec], points(0), settings, chunk=steps)
        return trained.seconds[-1] / (LEVELS * steps)

    return ours, theirs, _facts("expert", "expert-step", opponent)


def growth_sides(model: str, config: Config, report: Callable[[str], None]) -> tuple[Timer, Timer, Sides]:
    """Four times the runs ("theirs") against as many runs: the cost of 256 over that of 64."""
    del report
    steps = config.steps * (LINEAR_STEPS if model == "linear" else 1)
    facts = Sides(
        unit="step of all runs", options=options(), opponent="the same", agreement=0.0, agreement_in="one program"
    )
    few, many = (lambda runs=runs: runs * sweep_rate(model, runs, steps) for runs in (config.runs, 4 * config.runs))
    return few, many, facts


def _facts(kind, unit, opponent):
    return Sides(
        unit=unit, options=options(), opponent=opponent, agreement=loss_difference(kind),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )  # fmt: skip


def options() -> str:
    """How our side trains here."""
    at_once = "one run" if devices.default_runs_per_batch() == 1 else "all runs"
    precision = devices.product_precision()
    return f"runs spread over all devices, {at_once} at a time on each, float32 with products {precision}"


def loss_difference(kind: str) -> float:
    """Relative difference between our loss and the opponent's on one batch, at random parameters, half of the latent padded."""
    import torch

    from experiments.benchmark import opponents

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
    inputs = [torch.tensor(v, device=opponents.DEVICE) for v in (x0, noise, logsnr, std, mask)]
    tensors = {k: torch.tensor(v, device=opponents.DEVICE) for k, v in values.items()}
    theirs = float(getattr(opponents, f"{kind}_loss")(tensors, *inputs))
    run = networks.RunInputs(jnp.asarray(mask), jnp.inf, jnp.asarray(std))
    ours = _our_loss(kind, values, *map(jnp.asarray, (x0, noise, logsnr)), run)
    return abs(float(ours) / theirs - 1.0)


def _our_loss(kind, values, x0, noise, logsnr, run):
    schedule, dim = schedules.LinearVP(), jnp.sum(run.mask)
    if kind == "linear":
        levels = jnp.linspace(-10.0, 9.0, 128)
        weights = values["table"] / jax.nn.sigmoid(-levels)[:, None]
        t = schedule.inverse_logsnr(levels)
        return losses.linear_score_matching(weights, x0, noise, t, schedule=schedule, dim=dim)
    if kind == "expert":
        table = experts.level_table(LADDER, np.array([EXPERT]), "noise", float(run.data_std), timed=False)
        size = {"features": 0, "hidden": EXPERT_HIDDEN, "blocks": 1}
        network = networks.ResidualMLP(DIM, latent_dim=DIM, rngs=networks.nnx.Rngs(params=0), **size)
        _set_parameters(network, values)
        z = table.alpha * x0 + table.sigma * noise
        return jnp.mean((network(z / table.radius) - table.target_x0 * x0 - table.target_noise * noise) ** 2)
    config = training.TrainingConfig(model="mlp", steps=1, batch_size=BATCH, hidden=HIDDEN, blocks=1, schedule=schedule)
    network = training.make_network(config, DIM, jax.random.key(0), DIM)
    _set_parameters(network.raw, values)
    t = schedule.inverse_logsnr(logsnr)
    weight, denoiser = losses.edm_weight(schedule, t, run.data_std), networks.as_denoiser(network, run)
    return losses.denoising_score_matching(denoiser, x0, noise, t, weight, schedule=schedule, dim=dim)


def _set_parameters(network, values):
    """The opponent's parameters: its blocks have no leading axis, its decoder is the transpose."""
    for name, value in values.items():
        own = getattr(network, name)
        own[...] = jnp.asarray(value.T if name == "decode" else value).reshape(own[...].shape)
