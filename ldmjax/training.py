"""State and step of one training run: Adam, power EMA, projection onto the cap, freezing on the first NaN.

Power EMA (Karras et al., arXiv 2312.02696): after step k the average moves by 1 - (1 - 1/k)^(gamma + 1), so that it always
spans the same fraction of training.
"""

import dataclasses
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import PyTree

from ldmjax.losses import denoising_score_matching, edm_weight, linear_score_matching
from ldmjax.networks import MLP, DiagonalLinearScore, RunInputs, as_denoiser
from ldmjax.schedules import ContinuousSchedule, LinearVP

MODELS = ("linear", "mlp")
ADAM = optax.scale_by_adam(b2=0.99)
DEFAULT_LEARNING_RATES = {"linear": 0.05, "mlp": 0.005}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all runs of one model class have in common.

    Attributes:
      model: "linear" (`DiagonalLinearScore`) or "mlp" (`MLP`).
      steps: optimiser steps.
      batch_size: clean latents per step; the linear class uses each on every level of its table, the MLP on one level.
      levels: rows of the linear class's table, >= 2.
      hidden: width of the MLP.
      blocks: residual blocks of the MLP.
      logsnr_min: noisiest level trained.
      logsnr_max: cleanest level trained.
      schedule: forward process.
      ema_gamma: exponent of the power EMA.
    """

    model: str
    steps: int
    batch_size: int
    levels: int = 128
    hidden: int = 64
    blocks: int = 1
    logsnr_min: float = -10.0
    logsnr_max: float = 9.0
    schedule: ContinuousSchedule = LinearVP()
    ema_gamma: float = 7.0

    def __post_init__(self):
        if self.model not in MODELS:
            raise ValueError(f"model must be one of {', '.join(MODELS)}, got {self.model!r}")
        for name, least in [("steps", 1), ("batch_size", 1), ("levels", 2), ("hidden", 1), ("blocks", 0)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min must be < logsnr_max, got {self.logsnr_min} and {self.logsnr_max}")


class TrainState(NamedTuple):
    """Arrays of one run: parameters, optimiser state, their power EMA, and the step at which it failed (-1: none)."""

    params: PyTree
    optimiser: optax.OptState
    ema: PyTree
    failed_at: jax.Array


def make_network(config: TrainingConfig, width: int, key: jax.Array, latent_dim: jax.Array | int) -> nnx.Module:
    """A fresh network of padded ``width`` D for a run of ``latent_dim``."""
    schedule = config.schedule
    span = {"logsnr_min": config.logsnr_min, "logsnr_max": config.logsnr_max}
    if config.model == "linear":
        return DiagonalLinearScore(width, schedule=schedule, levels=config.levels, **span)
    size = {"hidden": config.hidden, "blocks": config.blocks}
    return MLP(width, schedule=schedule, latent_dim=latent_dim, rngs=nnx.Rngs(params=key), **span, **size)


def graph_definition(config: TrainingConfig, width: int) -> nnx.GraphDef:
    """The static half of the network; `nnx.merge` with parameters gives the network back."""
    return nnx.split(nnx.eval_shape(lambda: make_network(config, width, jax.random.key(0), 1)))[0]


def init_state(config: TrainingConfig, width: int, key: jax.Array, latent_dim: jax.Array) -> TrainState:
    """The state before the first step."""
    return fresh_state(nnx.split(make_network(config, width, key, latent_dim))[1])


def fresh_state(params: PyTree) -> TrainState:
    """The state before the first step, from initial parameters."""
    return TrainState(params, ADAM.init(params), params, jnp.full((), -1, jnp.int32))


def batch_loss(config: TrainingConfig, network: nnx.Module, run: RunInputs, x0: jax.Array, key: jax.Array) -> jax.Array:
    """Denoising score matching on one batch of clean latents ``[B, D]``: noise-weighted (linear) or EDM-weighted (MLP).

    The linear class sees the batch on every level of its table, the MLP on one level per latent, stratified over logsnr.
    """
    time_key, noise_key = jax.random.split(key)
    # The padded axis is drawn first, so that a wider batch does not change a run's numbers.
    noise = jax.random.normal(noise_key, x0.shape[::-1]).T * run.mask
    schedule, dim = config.schedule, jnp.sum(run.mask)
    if config.model == "linear":
        t = schedule.inverse_logsnr(jnp.asarray(network.level_logsnrs, jnp.float32))
        weights = network.table[...] / network.table_scale
        return linear_score_matching(weights, x0, noise, t, schedule=schedule, dim=dim)
    share = (jnp.arange(len(x0)) + jax.random.uniform(time_key)) / len(x0)
    t = schedule.inverse_logsnr(config.logsnr_min + (config.logsnr_max - config.logsnr_min) * share)
    weight = edm_weight(schedule, t, run.data_std)
    return denoising_score_matching(as_denoiser(network, run), x0, noise, t, weight, schedule=schedule, dim=dim)


def train_step(
    config: TrainingConfig,
    graphdef: nnx.GraphDef,
    state: TrainState,
    run: RunInputs,
    *,
    x0: jax.Array,
    key: jax.Array,
    step: jax.Array,
    learning_rate: jax.Array,
) -> tuple[TrainState, jax.Array]:
    """One optimiser step on clean latents ``x0`` ``[B, D]``; returns the new state and the loss (noise or EDM weighted).

    A run whose loss or gradient is not finite keeps its last state, for good, and remembers the step.
    """
    loss, gradient = jax.value_and_grad(lambda params: batch_loss(config, nnx.merge(graphdef, params), run, x0, key))(
        state.params
    )

    def project(params):
        if config.model != "linear":
            return params
        network = nnx.merge(graphdef, params)
        network.project(run)
        return nnx.split(network)[1]

    rate = learning_rate * _unit_learning_rate(step, config.steps)
    options = {"step": step, "rate": rate, "ema_gamma": config.ema_gamma, "project": project}
    return apply_gradient(state, loss, gradient, **options), loss


def apply_gradient(
    state: TrainState,
    loss: jax.Array,
    gradient: PyTree,
    *,
    step: jax.Array,
    rate: jax.Array,
    ema_gamma: float,
    project: Callable[[PyTree], PyTree] = lambda params: params,
) -> TrainState:
    """Adam with learning rate ``rate``, then ``project``, then the power EMA; a state that is not finite freezes."""
    update, optimiser = ADAM.update(gradient, state.optimiser)
    params = project(optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, update)))
    ema = optax.incremental_update(params, state.ema, 1.0 - (1.0 - 1.0 / (step + 1.0)) ** (ema_gamma + 1.0))
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    fine = finite & (state.failed_at < 0)
    failed_at = jnp.where(finite | (state.failed_at >= 0), state.failed_at, step)
    new = TrainState(params, optimiser, ema, failed_at)
    kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
    return kept._replace(failed_at=failed_at)


def _unit_learning_rate(step, steps):
    """Linear warm-up over 50 steps, constant to 30 % of training, then linear to 0; times each run's own rate."""
    return jnp.minimum(1.0, (step + 1) / 50) * jnp.minimum(1.0, (1.0 - step / steps) / 0.7)
