"""T-space: one diffusion model made of K experts, each trained alone on its own block of a ladder's T noise levels.

K = 1 is the usual *joint* model, one network with a time input; K = T is *complete disentanglement*, one network per level
and no time input. Levels are numbered from 1, the cleanest. All experts of all models are rows of one compiled program
and never exchange a number, so expert k in the stack equals expert k alone. With R^2 = alpha^2 s^2 + sigma^2, s the root
mean square of the data's components, F an expert and z = alpha x0 + sigma eps:

    (1) E[x0 | z] = skip z + out F(z / R)                       F is trained on  target = a x0 + b eps,  unit weight
    (2) noise     skip = 1 / alpha,         out = -sigma / alpha,    a = 0,               b = 1
    (3) v         skip = alpha s^2 / R^2,   out = sigma s / R,       a = sigma / (R s),   b = -alpha s / R

(3) is EDM's preconditioning in these coordinates, v-prediction up to sign where s = 1 and alpha^2 + sigma^2 = 1.
Sources: arXiv 2508.14413 (the claim), Karras et al., arXiv 2206.00364, Salimans & Ho, arXiv 2202.00512; docs/t_space.md,
section 2.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ldmjax import chunks, loops, random
from ldmjax.checkpoints import fingerprint
from ldmjax.devices import collect, map_runs
from ldmjax.job import NO_JOB, Job
from ldmjax.networks import BUMPS, ResidualMLP, bump_features
from ldmjax.optimiser import FlatParameters, TrainState, fresh_state, train_chunk
from ldmjax.process import Denoiser
from ldmjax.schedules import Ladder

PARAMETERISATIONS = ("noise", "v")
WARM_UP = 50  # steps over which the learning rate rises to its constant value


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExpertsConfig:
    """What the models of one stacked program have in common.

    Attributes:
      ladder: the T noise levels.
      experts: K, 1..T; expert k owns the k-th of K contiguous blocks of levels, sizes as equal as can be.
      batch_size: samples per expert and step, spread evenly over its levels.
      steps: optimiser steps.
      states: (lowest, highest) level to train, both included; None for all. A model sampled down to level j needs
        levels j + 1 and above only.
      hidden: width of an expert.
      blocks: residual blocks of an expert.
      ema_gamma: exponent of the power EMA (optimiser.py).
      checkpoints: steps after which the EMA parameters are kept, rising; the last step always is.
    """

    ladder: Ladder
    experts: int
    batch_size: int
    steps: int
    states: tuple[int, int] | None = None
    hidden: int = 64
    blocks: int = 1
    ema_gamma: float = 7.0
    checkpoints: tuple[int, ...] = ()

    def __post_init__(self):
        levels = int(self.ladder.t_max)
        if not 1 <= self.experts <= levels:
            raise ValueError(f"experts must be 1..{levels}, the number of levels, got {self.experts}")
        for name, least in [("batch_size", 1), ("steps", 1), ("hidden", 1), ("blocks", 0)]:
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        if self.states is not None and not 1 <= self.states[0] <= self.states[1] <= levels:
            raise ValueError(f"states must be (low, high) with 1 <= low <= high <= {levels}, got {self.states}")
        marks = np.array([0, *self.checkpoints])
        if np.any(np.diff(marks) <= 0) or marks[-1] > self.steps:
            raise ValueError(f"checkpoints must rise within 1..{self.steps}, the steps, got {list(self.checkpoints)}")

    @property
    def trained_levels(self) -> dict[int, np.ndarray]:
        """Level numbers of each trained expert by its number k, 0 the cleanest of K; what is not trained is left out."""
        low, high = self.states or (1, int(self.ladder.t_max))
        blocks = np.array_split(np.arange(1, int(self.ladder.t_max) + 1), self.experts)
        kept = {k: block[(block >= low) & (block <= high)] for k, block in enumerate(blocks)}
        return {k: block for k, block in kept.items() if block.size}

    @property
    def level_blocks(self) -> list[np.ndarray]:
        """Level numbers of each trained expert, cleanest expert first."""
        return list(self.trained_levels.values())

    @property
    def timed(self) -> bool:
        """Whether experts have a time input: not if each owns a single level."""
        return self.experts < self.ladder.t_max


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """One model, K experts: ``seed`` chooses initialisation, batches and noise; ``parameterisation`` is "noise" or "v"."""

    seed: int
    parameterisation: str
    learning_rate: float

    def __post_init__(self):
        if self.parameterisation not in PARAMETERISATIONS:
            allowed = ", ".join(PARAMETERISATIONS)
            raise ValueError(f"parameterisation must be one of {allowed}, got {self.parameterisation!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")


class LevelTable(NamedTuple):
    """Coefficients of equations (1)-(3) level by level, arrays ``[L]``; features ``[L, BUMPS]``, None without time input."""

    alpha: np.ndarray
    sigma: np.ndarray
    radius: np.ndarray
    skip: np.ndarray
    out: np.ndarray
    target_x0: np.ndarray
    target_noise: np.ndarray
    features: np.ndarray | None


class ExpertRun(NamedTuple):
    """What one expert needs besides its parameters; stacked, every leaf has a leading axis of experts."""

    key: jax.Array
    learning_rate: jax.Array
    table: LevelTable
    count: jax.Array


def level_table(
    ladder: Ladder, levels: np.ndarray, parameterisation: str, data_std: float, *, timed: bool
) -> LevelTable:
    """Returns the table of some levels that one expert owns.

    Args:
      ladder: all levels.
      levels: level numbers ``[L]``.
      parameterisation: "noise" or "v".
      data_std: s.
      timed: whether the expert has a time input; its features span the logsnr of these levels.

    Raises:
      ValueError: for "noise" on a level without signal.
    """
    alpha, sigma, logsnr = ladder.alpha(levels), ladder.sigma(levels), ladder.logsnr(levels)
    radius = np.sqrt(alpha**2 * data_std**2 + sigma**2)
    if parameterisation == "noise":
        if np.any(alpha == 0):
            raise ValueError("noise-prediction says nothing of x0 where alpha = 0: use 'v' on this ladder")
        coefficients = 1.0 / alpha, -sigma / alpha, np.zeros_like(alpha), np.ones_like(alpha)
    else:
        coefficients = (
            alpha * data_std**2 / radius**2,
            sigma * data_std / radius,
            sigma / (radius * data_std),
            -alpha * data_std / radius,
        )
    features = None
    if timed:
        finite = logsnr[np.isfinite(logsnr)]
        # The slack keeps a block of one level, and pure noise, within a range that is not empty.
        low, high = (float(finite.min()) - 0.1, float(finite.max()) + 0.1) if finite.size else (0.0, 1.0)
        features = np.asarray(bump_features(jnp.asarray(np.clip(logsnr, low, high)), low, high))
    coefficients = tuple(np.asarray(a, np.float32) for a in (alpha, sigma, radius, *coefficients))
    return LevelTable(*coefficients, features)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedExperts:
    """The result of `train_experts`: M models of E trained experts at C checkpoints.

    Attributes:
      specs: the models.
      config: what they have in common.
      width: data dimension D.
      data_std: s of equations (2), (3).
      checkpoints: steps ``[C]``.
      params: power EMA of the parameters, flat, ``[C, M, E, P]``, on the host.
      losses: ``[C, M, E]``, mean training loss since the checkpoint before.
      failed_at: ``[M, E]``, the step at which an expert first was not finite, -1 for none.
      seconds: ``[C]``, training time of all models together up to the checkpoint, without compilation.
    """

    specs: tuple[ModelSpec, ...]
    config: ExpertsConfig
    width: int
    data_std: float
    checkpoints: np.ndarray
    params: np.ndarray
    losses: np.ndarray
    failed_at: np.ndarray
    seconds: np.ndarray

    @property
    def parameter_count(self) -> int:
        """Parameters of one model, all its trained experts together."""
        return self.params.shape[2] * self.params.shape[3]

    @property
    def training_bytes(self) -> int:
        """Memory of one model's training state: parameters, two moments of Adam and the EMA, float32."""
        return 4 * 4 * self.parameter_count

    def denoiser(self, model: int, *, checkpoint: int = -1) -> Denoiser:
        """Returns model ``model`` as a `Denoiser` on the ladder; NaN on levels that were not trained."""
        params = jnp.asarray(self.params[checkpoint, model])
        return _denoiser(self.config, self.width, params, _stack(self._tables(self.specs[model])))

    def map_models(self, function: Callable[[Denoiser, Any], Any], extra: Any = None) -> Any:
        """Compiles ``function(denoiser, extra_of_model)`` and maps it over checkpoints and models.

        Args:
          function: traceable; the same function object is compiled once for all results of one shape.
          extra: a pytree of arrays with leading axis = models.

        Returns:
          ``function``'s pytree with leading axes ``[C, M]``, on the host.
        """
        checkpoints, models = len(self.checkpoints), len(self.specs)
        tables = _stack([_stack(self._tables(spec)) for spec in self.specs])
        count = checkpoints * models
        of_model = np.arange(count) % models
        packed = (
            self.params.reshape(count, *self.params.shape[2:]),
            jax.tree.map(lambda x: np.asarray(x)[of_model], (tables, extra)),
        )
        result = collect(_compiled_map(function, _without_length(self.config), self.width)(0, packed), count)
        return jax.tree.map(lambda x: x.reshape(checkpoints, models, *x.shape[1:]), result)

    def _tables(self, spec: ModelSpec) -> list[LevelTable]:
        config = self.config
        return [
            level_table(config.ladder, block, spec.parameterisation, self.data_std, timed=config.timed)
            for block in config.level_blocks
        ]


def _denoiser(config: ExpertsConfig, width: int, params: jax.Array, table: LevelTable) -> Denoiser:
    """Computes equation (1) with the expert that owns the level; params ``[E, P]``, ``table`` padded ``[E, L]``."""
    rebuild = _rebuild(config, width)
    owner = np.full(int(config.ladder.t_max) + 1, -1)
    row = np.zeros_like(owner)
    for k, block in enumerate(config.level_blocks):
        owner[block], row[block] = k, np.arange(len(block))

    def on_level(z, level):
        k = jnp.asarray(owner)[level]
        network = rebuild(params[k])
        own = jax.tree.map(lambda x: jnp.asarray(x)[k, jnp.asarray(row)[level]], table)
        features = None if own.features is None else own.features[None]
        x0 = own.skip * z + own.out * network(z / own.radius, features)
        return jnp.where(k < 0, jnp.nan, x0)

    def denoise(z, t):
        level = t.astype(int)
        # A chain asks for one level at a time: one expert, one matrix product. Mixed levels go sample by sample.
        return jax.lax.cond(
            jnp.all(level == level[0]),
            lambda: on_level(z, level[0]),
            lambda: jax.lax.map(lambda pair: on_level(pair[0][None], pair[1])[0], (z, level)),
        )

    return denoise


def _without_length(config: ExpertsConfig) -> ExpertsConfig:
    """Returns what compiled programs depend on: they serve any number of steps."""
    return dataclasses.replace(config, steps=1, checkpoints=())


@functools.lru_cache(maxsize=32)
def _compiled_map(function, config: ExpertsConfig, width: int):
    def one(_, row):
        params, (table, extra) = row
        return function(_denoiser(config, width, params, table), extra)

    return map_runs(one, samples=True, small=True)


@functools.lru_cache(maxsize=32)
def _compiled_training(config: ExpertsConfig, width: int, experts_per_batch: int | None, length: int):
    """Returns (initialise, advance) over stacked experts; ``length`` bounds the steps of a call."""
    init = map_runs(lambda _, run: _init_expert(config, width, run))
    step_chunk = functools.partial(_train_chunk, config, _rebuild(config, width), length)
    return init, map_runs(step_chunk, runs_per_batch=experts_per_batch, donate=1, small=True)


def _network(config: ExpertsConfig, width: int, key: jax.Array) -> ResidualMLP:
    rngs = nnx.Rngs(params=key)
    size = {"features": BUMPS if config.timed else 0, "hidden": config.hidden, "blocks": config.blocks}
    return ResidualMLP(width, latent_dim=width, rngs=rngs, **size)


def parameter_count(config: ExpertsConfig, width: int) -> int:
    """Returns the number of parameters of one expert on data of dimension ``width``."""
    params = nnx.split(nnx.eval_shape(lambda: _network(config, width, random.key(0))))[1]
    return sum(leaf.size for leaf in jax.tree.leaves(params))


def _rebuild(config: ExpertsConfig, width: int) -> Callable[[jax.Array], ResidualMLP]:
    """Returns the function from flat parameters ``[P]`` to a network."""
    graphdef, params = nnx.split(nnx.eval_shape(lambda: _network(config, width, random.key(0))))
    flat = FlatParameters.of(params)
    return lambda vector: nnx.merge(graphdef, flat.unravel(vector))


def _stack(tables: Sequence) -> Any:
    """Stacks pytrees of arrays, padding the leading axis of each leaf to the longest."""

    def pad(*leaves):
        longest = max(len(leaf) for leaf in leaves)
        return np.stack([np.pad(leaf, [(0, longest - len(leaf))] + [(0, 0)] * (leaf.ndim - 1)) for leaf in leaves])

    return jax.tree.map(pad, *tables)


def train_experts(
    specs: Sequence[ModelSpec],
    samples: np.ndarray,
    config: ExpertsConfig,
    *,
    experts_per_batch: int | None = None,
    chunk: int = 1000,
    job: Job = NO_JOB,
) -> TrainedExperts:
    """Trains M models of K experts on ``samples``, all experts of all models as rows of one compiled program.

    Args:
      specs: the models, no two alike.
      samples: training data ``[n, D]``, centred.
      config: what the models have in common.
      experts_per_batch: experts vmapped at once on each device; the others wait. By default
        `devices.default_runs_per_batch`.
      chunk: steps per dispatch, at most; progress is shown after each.
      job: keeps checkpoints and shows progress.

    Returns:
      The trained models. An expert that diverged keeps its last finite parameters and says when.

    Raises:
      ValueError: for repeated specs, or noise-prediction on a ladder that starts at pure noise.
    """
    if len(set(specs)) < len(specs):
        raise ValueError("models must be distinct")
    width, data_std = samples.shape[1], float(np.sqrt(np.mean(samples**2)))
    runs, shape = _stack_runs(specs, config, data_std), (len(specs), len(config.level_blocks))
    count = shape[0] * shape[1]
    init, advance = _compiled_training(_without_length(config), width, experts_per_batch, loops.steps_per_call(chunk))
    data = jnp.asarray(samples, jnp.float32)
    finished = chunks.run_training(
        advance,
        lambda: init(0, runs),
        data,
        runs,
        name=f"K{config.experts}-{fingerprint(f'{specs} {config}', data)}",
        count=count,
        steps=config.steps,
        chunk=chunk,
        marks=sorted({*config.checkpoints, config.steps}),
        select=lambda state: state.ema,
        job=job,
        label=f"K = {config.experts}, {len(specs)} models",
        unit="expert",
    )
    at_marks = np.isin(finished.chunk_ends, finished.marks)
    return TrainedExperts(
        specs=tuple(specs),
        config=config,
        width=width,
        data_std=data_std,
        checkpoints=finished.marks,
        params=finished.kept.reshape(len(finished.marks), *shape, -1),
        losses=finished.losses_between_marks().T.reshape(len(finished.marks), *shape),
        failed_at=finished.state.failed_at.reshape(shape),
        seconds=finished.seconds[at_marks],
    )


def _stack_runs(specs: Sequence[ModelSpec], config: ExpertsConfig, data_std: float) -> ExpertRun:
    """Stacks every expert of every model as one row; tables padded to the longest block."""
    seeds, names, rates, tables, counts = [], [], [], [], []
    for spec in specs:
        for k, block in config.trained_levels.items():
            # By its place on the ladder, so that an expert's key does not depend on which others are trained.
            names.append(f"K{config.experts}/{k}/{spec.parameterisation}/lr{spec.learning_rate:g}")
            seeds.append(spec.seed)
            rates.append(spec.learning_rate)
            tables.append(level_table(config.ladder, block, spec.parameterisation, data_std, timed=config.timed))
            counts.append(len(block))
    table = jax.tree.map(jnp.asarray, _stack(tables))
    return ExpertRun(random.named_keys(seeds, names), jnp.asarray(rates, jnp.float32), table, jnp.asarray(counts))


def _init_expert(config: ExpertsConfig, width: int, run: ExpertRun) -> TrainState:
    params = nnx.split(_network(config, width, random.stream(run.key, "initialisation")))[1]
    return fresh_state(FlatParameters.of(params).ravel(params))


def _train_chunk(config, rebuild, length, shared, state, run):
    """Steps first..last - 1 of one expert, at most ``length``; returns the state and the sum of losses."""
    data, first, last = shared

    def draws_of(step):
        # The key of step 0 is the one of the stream "initialisation".
        return _choose_batch(config, run, len(data), random.step(run.key, step + 1))

    return train_chunk(
        state,
        first=first,
        last=last,
        length=length,
        draws_of=draws_of,
        loss_of=lambda params, memory, batch: (_expert_loss(rebuild, run, data, batch, params), memory),
        rate_of=lambda step: run.learning_rate * jnp.minimum(1.0, (step + 1) / WARM_UP),
        ema_gamma=config.ema_gamma,
    )


class _BatchDraw(NamedTuple):
    """One batch: rows of the data and of the expert's table ``[B]``, and the key of its noise."""

    index: jax.Array
    row: jax.Array
    noise_key: jax.Array


def _choose_batch(config, run, rows, key):
    """Draws data uniformly, levels stratified over the expert's block."""
    index_key, level_key, noise_key = jax.random.split(key, 3)
    batch = config.batch_size
    share = (jnp.arange(batch) + jax.random.uniform(level_key, (batch,))) / batch
    row = jnp.minimum((share * run.count).astype(int), run.count - 1)
    return _BatchDraw(jax.random.randint(index_key, (batch,), 0, rows), row, noise_key)


def _expert_loss(rebuild, run, data, draw, params):
    """Returns mean squared error of F against its target on one batch."""
    x0 = data[draw.index]
    noise = random.normal(draw.noise_key, *x0.shape)
    level = jax.tree.map(lambda x: x[draw.row], run.table)
    z = level.alpha[:, None] * x0 + level.sigma[:, None] * noise
    target = level.target_x0[:, None] * x0 + level.target_noise[:, None] * noise
    return jnp.mean((rebuild(params)(z / level.radius[:, None], level.features) - target) ** 2)
