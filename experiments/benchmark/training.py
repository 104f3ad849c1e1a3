"""Contests of training: sweeps of runs, and experts, against PyTorch loops and torch.func.vmap; and their growth with runs."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmark import Config, Sides
from ldmjax import devices, experts, losses, networks, schedules, sweeps, training

DIM, POINTS, BATCH, LATENT_DIMS = 16, 1024, 256, (2, 4, 8, 16)
HIDDEN, EXPERT_HIDDEN, EXPERT_BATCH, LEVELS = 128, 64, 128, 32
RATES, CAP = {"mlp": 0.005, "linear": 0.05, "expert": 0.003}, 20.0
LINEAR_STEPS = 20  # times those of the MLP
LADDER = schedules.Ladder(*schedules.karras_levels(LEVELS, sigma_min=0.002, sigma_max=80.0))
OPTIONS = "{devices} device(s), {at_once} at a time on each, one dispatch, donation, Threefry without loops"


def points(seed: int, dim: int = DIM) -> np.ndarray:
    """Gaussian latents ``[POINTS, dim]`` with variances 1/k^1.5."""
    normals = np.random.default_rng(seed).standard_normal((POINTS, dim))
    return (normals / np.arange(1, dim + 1) ** 0.75).astype(np.float32)


def sweep_rate(
    model: str, runs: int, steps: int, *, hidden: int = HIDDEN, latent_dims: tuple[int, ...] = LATENT_DIMS
) -> float:
    """Seconds per run and step of our sweep, compilation left out."""
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
    config = training.TrainingConfig(model=model, steps=steps, batch_size=BATCH, hidden=hidden, blocks=1)
    trained = sweeps.train(specs, latents, config, chunk=steps)
    return trained.seconds / (runs * steps)


def torch_side(
    kind: str, steps: int, runs: int | None, report: Callable[[str], None]
) -> tuple[Callable[[], float], str]:
    """The fastest of the PyTorch variants as a function that gives seconds per run and step, and its name.

    Args:
      kind: "mlp", "linear" or "expert".
      steps: of every run.
      runs: trained at once by torch.func.vmap; None for a loop, timed on one run of each latent dimension.
      report: receives a line per variant.
    """
    import torch

    from experiments.benchmark import opponents

    loss = getattr(opponents, f"{kind}_loss")
    if runs is not None:
        loss = torch.func.vmap(loss, in_dims=(0, 0, 0, 0 if kind == "mlp" else None, 0, 0))
    batches = _torch_batches(kind, runs, torch, opponents.DEVICE)
    size = {"hidden": EXPERT_HIDDEN, "batch": EXPERT_BATCH} if kind == "expert" else {"hidden": HIDDEN, "batch": BATCH}

    def seconds(threads, used_loss, steps):
        torch.set_num_threads(threads)
        total = sum(
            opponents.train(kind, used_loss, *batch, **size, steps=steps, rate=RATES[kind], cap=CAP, logsnr=logsnr)
            for batch, logsnr in batches
        )
        return total / (steps * (runs or len(batches)))

    trials = {}
    for threads in (1, 2):
        for compiled in (False, True):
            used = torch.compile(loss, dynamic=False) if compiled else loss
            name = f"{'compiled' if compiled else 'eager'}, {threads} thread(s)"
            trials[name] = seconds(threads, used, max(1, steps // 4)), threads, used
            report(f"  PyTorch {'vmap' if runs else 'loop'}, {kind}, {name}: {1 / trials[name][0]:.0f} run-steps/s")
    best = min(trials, key=lambda name: trials[name][0])
    return functools.partial(seconds, *trials[best][1:], steps), best


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
    data = np.stack([points(i // len(LATENT_DIMS)) for i in range(runs)]) * mask[:, None]
    return [(on_device(data, mask, np.sqrt(np.sum(data**2, axis=(1, 2)) / (POINTS * dims))), None)]


def sweep_sides(model: str, vmapped: bool, config: Config, report: Callable[[str], None]) -> Sides:
    """Our sweep against PyTorch."""
    steps = config.steps * (LINEAR_STEPS if model == "linear" else 1)
    theirs, variant = torch_side(
        model, steps if not vmapped else max(1, steps // 4), config.runs if vmapped else None, report
    )
    return Sides(
        ours=lambda: sweep_rate(model, config.runs, steps),
        theirs=theirs,
        unit="run-step",
        options=_options(variant),
        agreement=loss_difference(model, config.seed),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )


def expert_sides(config: Config, report: Callable[[str], None]) -> Sides:
    """T = 32 experts of one model against 32 PyTorch trainings, timed on four of them."""
    steps = 4 * config.steps
    settings = experts.ExpertsConfig(
        ladder=LADDER, experts=LEVELS, batch_size=EXPERT_BATCH, steps=steps, hidden=EXPERT_HIDDEN
    )
    spec = experts.ModelSpec(seed=config.seed, parameterisation="noise", learning_rate=RATES["expert"])
    theirs, variant = torch_side("expert", steps, None, report)

    def ours():
        trained = experts.train([spec], points(0), settings, chunk=steps)
        return trained.seconds[-1] / (LEVELS * steps)

    return Sides(
        ours=ours,
        theirs=theirs,
        unit="expert-step",
        options=_options(variant),
        agreement=loss_difference("expert", config.seed),
        agreement_in="relative difference of the two losses, same parameters and batch",
    )


def _options(variant: str) -> dict[str, str]:
    at_once = "one run" if devices.default_runs_per_batch() == 1 else "all runs"
    return {"ours": OPTIONS.format(devices=jax.device_count(), at_once=at_once), "theirs": variant}


def growth_sides(model: str, config: Config, report: Callable[[str], None]) -> Sides:
    """Four times the runs ("theirs") against as many runs: the cost of 256 over that of 64."""
    del report
    steps = config.steps * (LINEAR_STEPS if model == "linear" else 1)
    return Sides(
        ours=lambda: sweep_rate(model, config.runs, steps) * config.runs,
        theirs=lambda: sweep_rate(model, 4 * config.runs, steps) * 4 * config.runs,
        unit="step of all runs",
        options=_options("the same"),
        agreement=0.0,
        agreement_in="one program",
    )


def loss_difference(kind: str, seed: int) -> float:
    """Relative difference between our loss and the opponent's on one batch, at random parameters."""
    import torch

    from experiments.benchmark import opponents

    rng = np.random.default_rng(seed)

    def draw(*shape):
        return rng.standard_normal(shape).astype(np.float32)

    x0, noise, std, mask = points(seed)[:BATCH], draw(BATCH, DIM), 0.7, np.ones(DIM, np.float32)
    logsnr = rng.uniform(-9.0, 8.0, BATCH).astype(np.float32)
    hidden = EXPERT_HIDDEN if kind == "expert" else HIDDEN
    shapes = opponents.new_parameters(kind, DIM, hidden)
    values = {name: 0.1 * draw(*p.shape) for name, p in shapes.items()}
    inputs = [torch.tensor(v, device=opponents.DEVICE) for v in (x0, noise, logsnr, np.float32(std), mask)]
    tensors = {k: torch.tensor(v, device=opponents.DEVICE) for k, v in values.items()}
    theirs = float(getattr(opponents, f"{kind}_loss")(tensors, *inputs))
    return abs(_our_loss(kind, values, x0, noise, logsnr, std) / theirs - 1.0)


def _our_loss(kind, values, x0, noise, logsnr, std):
    schedule, run = schedules.LinearVP(), networks.RunInputs(jnp.ones(DIM), jnp.inf, jnp.float32(std))
    x0, noise, logsnr = jnp.asarray(x0), jnp.asarray(noise), jnp.asarray(logsnr)
    if kind == "linear":
        t = schedule.inverse_logsnr(jnp.linspace(-10.0, 9.0, 128))
        weights = values["table"] / jax.nn.sigmoid(-jnp.linspace(-10.0, 9.0, 128))[:, None]
        return float(losses.linear_score_matching(weights, x0, noise, t, schedule=schedule, dim=DIM))
    if kind == "expert":
        network = networks.ResidualMLP(
            DIM, latent_dim=DIM, features=0, hidden=EXPERT_HIDDEN, rngs=networks.nnx.Rngs(params=0)
        )
        _set_parameters(network, values)
        alpha, sigma = (jnp.sqrt(jax.nn.sigmoid(sign * logsnr[0])) for sign in (1, -1))
        radius = jnp.sqrt(alpha**2 * std**2 + sigma**2)
        return float(jnp.mean((network((alpha * x0 + sigma * noise) / radius) - noise) ** 2))
    config = training.TrainingConfig(model="mlp", steps=1, batch_size=BATCH, hidden=HIDDEN, blocks=1, schedule=schedule)
    network = training.make_network(config, DIM, jax.random.key(0), DIM)
    _set_parameters(network.raw, values)
    t = schedule.inverse_logsnr(logsnr)
    weight, denoiser = losses.edm_weight(schedule, t, run.data_std), networks.as_denoiser(network, run)
    return float(losses.denoising_score_matching(denoiser, x0, noise, t, weight, schedule=schedule, dim=DIM))


def _set_parameters(network, values):
    """The opponent's parameters: its blocks have no leading axis, its decoder is the transpose."""
    for name, value in values.items():
        own = getattr(network, name)
        own[...] = jnp.asarray(value.T if name == "decode" else value).reshape(own[...].shape)
