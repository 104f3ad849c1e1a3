"""Networks, their batches and their loss: what one training run of a score is made of (optimiser.py has its steps)."""

import dataclasses
import itertools
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from ldmjax import random
from ldmjax.convolutions import PRECISIONS
from ldmjax.losses import denoising_score_matching, edm_weight, linear_score_matching
from ldmjax.networks import (
    DiagonalLinearScore,
    OwnNetwork,
    Preconditioned,
    ResidualMLP,
    RunInputs,
    UNet,
    as_denoiser,
    mlp_flops,
    unet_flops,
)
from ldmjax.optimiser import TrainState, fresh_state
from ldmjax.schedules import CONTINUOUS_METHODS, ContinuousSchedule, LinearVP, check_schedule, check_traceable

MODELS = ("linear", "mlp", "unet")
DEFAULT_LEARNING_RATES = {"linear": 0.05, "mlp": 0.005, "unet": 0.005}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """What all runs of one model class have in common.

    Attributes:
      model: "linear" (`DiagonalLinearScore`), "mlp" (`ResidualMLP`), "unet" (`UNet`), or a network of your own: a frozen
        dataclass, whose fields name the training, with two methods. ``init(key)`` gives a pytree of parameters, and
        ``apply(params, z, t)`` gives E[z_0 | z_t] ``[B, D]`` of z ``[B, D]`` and t ``[B]``; `networks.precondition` makes that
        of a raw network. All runs then have D components.
      steps: optimiser steps.
      batch_size: clean latents per step; the linear class uses each on every level of its table, the others on one level.
      levels: rows of the linear class's table, >= 2.
      hidden: width of the MLP.
      blocks: residual blocks of the MLP, or of each resolution of the U-Net on its way down and on its way up.
      map_shape: (H, W, C) of the U-Net's maps; a latent is such a map, row by row.
      channels: of the U-Net, one number per resolution.
      logsnr_min: noisiest level trained.
      logsnr_max: cleanest level trained.
      schedule: forward process.
      ema_gamma: exponent of the power EMA.
      precision: of the U-Net's maps and products, "float32" or "bfloat16"; all else is in float32, and the other models are.
    """

    model: Any
    steps: int
    batch_size: int
    levels: int = 128
    hidden: int = 64
    blocks: int = 1
    map_shape: tuple[int, int, int] | None = None
    channels: tuple[int, ...] = ()
    logsnr_min: float = -10.0
    logsnr_max: float = 9.0
    schedule: ContinuousSchedule = LinearVP()
    ema_gamma: float = 7.0
    precision: str = "float32"

    def __post_init__(self):
        self._check_model()
        for name, least in [("steps", 1), ("batch_size", 1), ("levels", 2), ("hidden", 1), ("blocks", 0)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        self._check_maps()
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if self.precision != "float32" and self.model != "unet":
            raise ValueError(f"precision {self.precision} is the U-Net's, got it with model {self.model!r}")
        if not self.logsnr_min < self.logsnr_max:
            raise ValueError(f"logsnr_min must be < logsnr_max, got {self.logsnr_min} and {self.logsnr_max}")

    @property
    def model_name(self) -> str:
        """What runs and tables call the model: its name, or that of a network's class."""
        return self.model if isinstance(self.model, str) else type(self.model).__name__

    def _check_model(self):
        allowed = f"model must be one of {', '.join(MODELS)}, or a network"
        if isinstance(self.model, str):
            if self.model not in MODELS:
                raise ValueError(f"{allowed}, got {self.model!r}")
            return
        if isinstance(self.model, type):
            raise ValueError(f"{allowed}, got the class {self.model.__name__}: give an instance of it")
        methods = {"init": "init(key)", "apply": "apply(params, z, t)"}
        missing = [words for name, words in methods.items() if not callable(getattr(self.model, name, None))]
        if missing:
            raise ValueError(f"{allowed}, got {self.model_name} without {' and '.join(missing)}")
        if not dataclasses.is_dataclass(self.model) or type(self.model).__hash__ is None:
            raise ValueError(
                f"{allowed} that is a frozen dataclass: its fields name a training; {self.model_name} is none"
            )

    def _check_maps(self):
        if self.model != "unet":
            if self.map_shape is not None or self.channels:
                raise ValueError(f"map_shape and channels are the U-Net's, got them with model {self.model!r}")
            return
        if self.map_shape is None or min(self.map_shape) < 1:
            raise ValueError(f"a U-Net needs map_shape (H, W, C), all >= 1, got {self.map_shape}")
        if not self.channels or min(self.channels) < 1 or 2 ** (len(self.channels) - 1) > max(self.map_shape[:2]):
            raise ValueError(
                f"a U-Net needs channels, all >= 1, for no more resolutions than maps {self.map_shape} have, "
                f"got {self.channels}"
            )

    @property
    def map_dim(self) -> int:
        """Entries of one map, the latent dimension of every U-Net run."""
        return math.prod(self.map_shape)


def make_network(config: TrainingConfig, width: int, key: jax.Array, latent_dim: jax.Array | int) -> nnx.Module:
    """Returns a fresh network of padded ``width`` D for a run of ``latent_dim``."""
    schedule = config.schedule
    check_schedule(schedule, CONTINUOUS_METHODS, what="training")
    check_traceable(schedule)
    span = {"logsnr_min": config.logsnr_min, "logsnr_max": config.logsnr_max}
    if config.model == "linear":
        return DiagonalLinearScore(width, schedule=schedule, levels=config.levels, **span)
    rngs = nnx.Rngs(params=key)
    if not isinstance(config.model, str):
        return OwnNetwork(config.model, width=width, key=key)
    if config.model == "unet":
        size = {"channels": config.channels, "blocks": config.blocks}
        raw = UNet(config.map_shape, **size, precision=config.precision, rngs=rngs)
    else:
        raw = ResidualMLP(width, latent_dim=latent_dim, hidden=config.hidden, blocks=config.blocks, rngs=rngs)
    return Preconditioned(raw, schedule=schedule, **span)


def flops(config: TrainingConfig, latent_dim: int) -> int:
    """Returns floating-point operations of the network of a run of ``latent_dim`` on one latent ("mlp" and "unet")."""
    if config.model == "unet":
        return unet_flops(config.map_shape, channels=config.channels, blocks=config.blocks)
    if config.model == "mlp":
        return mlp_flops(latent_dim, hidden=config.hidden, blocks=config.blocks)
    raise ValueError(f"flops are counted for models mlp and unet, got {config.model!r}")


def match_flops(config: TrainingConfig, latent_dim: int, target: int) -> TrainingConfig:
    """Returns ``config`` with the width that brings its `flops` nearest to a target.

    The MLP's ``hidden`` is free; the U-Net's ``channels`` keep their proportions up to what meets the target: the first
    is free, each further one is moved by at most an eighth.

    Args:
      config: what to change.
      latent_dim: of the run.
      target: floating-point operations on one latent.
    """

    def distance(candidate):
        return abs(flops(candidate, latent_dim) - target)

    def at(scale: int) -> TrainingConfig:
        if config.model == "mlp":
            return dataclasses.replace(config, hidden=scale)
        proportional = (max(1, round(scale * c / config.channels[0])) for c in config.channels[1:])
        return dataclasses.replace(config, channels=(scale, *proportional))

    # FLOPs grow with the scale, so the first one above the target and the one below it enclose the best.
    above = next(scale for scale in itertools.count(1) if flops(at(scale), latent_dim) >= target)
    near = [at(scale) for scale in range(max(1, above - 1), above + 1)]
    if config.model == "unet":
        near = [dataclasses.replace(base, channels=channels) for base in near for channels in _moved(base.channels)]
    return min(near, key=distance)


def _moved(channels: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    """Channels with all but the first moved by up to an eighth (one at least), least moved first."""
    reach = [range(-max(1, c // 8), max(1, c // 8) + 1) for c in channels[1:]]
    moves = sorted(itertools.product(*reach), key=lambda move: sum(map(abs, move)))
    return ((channels[0], *(max(1, c + m) for c, m in zip(channels[1:], move, strict=True))) for move in moves)


def graph_definition(config: TrainingConfig, width: int) -> nnx.GraphDef:
    """Returns the static half of the network; `nnx.merge` with parameters gives the network back."""
    return nnx.split(nnx.eval_shape(lambda: make_network(config, width, random.key(0), 1)))[0]


def init_state(config: TrainingConfig, width: int, key: jax.Array, latent_dim: jax.Array) -> TrainState:
    """Returns the state before the first step."""
    return fresh_state(nnx.split(make_network(config, width, key, latent_dim))[1])


def parameter_count(config: TrainingConfig, width: int) -> int:
    """Parameters of one network of padded ``width``; nothing is computed."""
    state = jax.eval_shape(lambda latent_dim: init_state(config, width, random.key(0), latent_dim), width)
    return sum(leaf.size for leaf in jax.tree.leaves(state.params))


class Noising(NamedTuple):
    """How a batch is noised: ``offset`` in [0, 1) shifts the stratified levels, ``noise_key`` makes the noise."""

    offset: jax.Array
    noise_key: jax.Array


def choose_noising(key: jax.Array) -> Noising:
    """Chooses how one batch is noised."""
    offset_key, noise_key = jax.random.split(key)
    return Noising(jax.random.uniform(offset_key), noise_key)


def batch_loss(
    config: TrainingConfig, network: nnx.Module, run: RunInputs, x0: jax.Array, noising: Noising, *, dim: jax.Array
) -> jax.Array:
    """Computes denoising score matching on clean latents ``[B, D]``, ``dim`` components of them not padding.

    Noise-weighted (linear) or EDM-weighted.

    The linear class sees the batch on every level of its table, the others on one level per latent, stratified over logsnr.
    """
    noise = random.normal(noising.noise_key, *x0.shape) * run.mask
    schedule = config.schedule
    if config.model == "linear":
        t = schedule.inverse_logsnr(jnp.asarray(network.level_logsnrs, jnp.float32))
        weights = network.table[...] / network.table_scale
        return linear_score_matching(weights, x0, noise, t, schedule=schedule, dim=dim)
    share = (jnp.arange(len(x0)) + noising.offset) / len(x0)
    t = schedule.inverse_logsnr(config.logsnr_min + (config.logsnr_max - config.logsnr_min) * share)
    weight = edm_weight(schedule, t, run.data_std)
    return denoising_score_matching(as_denoiser(network, run), x0, noise, t, weight, schedule=schedule, dim=dim)


def unit_learning_rate(step: jax.Array, steps: int) -> jax.Array:
    """Rises over 50 steps, is constant to 30 % of training, then falls linearly to 0; times each run's own rate."""
    return jnp.minimum(1.0, (step + 1) / 50) * jnp.minimum(1.0, (1.0 - step / steps) / 0.7)
