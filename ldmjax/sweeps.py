"""Many training runs as one program: runs stacked on a leading axis, latents padded to the widest and masked.

A run's random numbers come from its own seed and name, and those of its first components do not depend on the padding
(`random.normal`), so run i of a batch equals run i alone, whatever its neighbours, up to float tolerance. All runs of one
model class share one compiled program.
"""

import dataclasses
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ldmjax import chunks, loops, pieces, random
from ldmjax.checkpoints import fingerprint
from ldmjax.devices import MappedRuns, collect, default_runs_per_batch, map_runs, take_rows
from ldmjax.job import NO_JOB, Job
from ldmjax.networks import RunInputs, as_denoiser
from ldmjax.optimiser import FlatParameters, map_parameters, train_chunk
from ldmjax.process import Denoiser
from ldmjax.training import (
    TrainingConfig,
    batch_loss,
    choose_noising,
    flops,
    graph_definition,
    init_state,
    make_network,
    unit_learning_rate,
)

DRAWS = ("sample", "fresh")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunSpec:
    """One training run: what it learns from and how.

    Attributes:
      model: "linear", "mlp" or "unet", or the name of a network's class (`TrainingConfig.model_name`).
      data: name of the data, a key of `Latents` given to `train_scores`.
      training_draws: "sample" trains on the n latents of the data's subset, "fresh" on new draws of its Gaussian law.
      latent_dim: d >= 1.
      seed: chooses the subset, the initialisation and all noise.
      n: size of the subset.
      learning_rate: peak of the schedule.
      cap: bound on the score's weights, inf for none (the networks have none).
    """

    model: str
    data: str
    training_draws: str
    latent_dim: int
    seed: int
    n: int
    learning_rate: float
    cap: float = np.inf

    def __post_init__(self):
        if self.training_draws not in DRAWS:
            raise ValueError(f"training_draws must be one of {', '.join(DRAWS)}, got {self.training_draws!r}")
        if self.latent_dim < 1 or self.n < 2:
            raise ValueError(f"need latent_dim >= 1 and n >= 2, got {self.latent_dim} and {self.n}")
        if not self.cap > 1:
            raise ValueError(f"cap must be > 1 (inf for none), got {self.cap}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")

    @property
    def name(self) -> str:
        """Unique among the runs of a sweep."""
        return (
            f"{self.model}/{self.data}/{self.training_draws}/d{self.latent_dim}/seed{self.seed}/n{self.n}"
            f"/cap{self.cap:g}/lr{self.learning_rate:g}"
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Latents:
    """Training latents of one (data, seed, n).

    Attributes:
      sample: ``[n, D]``, the encoded subset, all D components.
      fresh_factor: ``[D, r]`` with factor factor^T = covariance of the law that "fresh" runs draw from.
    """

    sample: np.ndarray
    fresh_factor: np.ndarray


class StackedRuns(NamedTuple):
    """Runs as arrays with a leading axis: what varies inside one compiled program."""

    key: jax.Array
    latent_dim: jax.Array
    learning_rate: jax.Array
    source: jax.Array
    n: jax.Array
    fresh: jax.Array
    inputs: RunInputs


class Sources(NamedTuple):
    """All training latents, padded and stacked: sample ``[G, n_max, D]``, factor ``[G, D, r_max]``."""

    sample: jax.Array
    factor: jax.Array


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainedRuns:
    """The result of `train_scores`.

    Attributes:
      specs: the runs, in order.
      config: what they were trained with.
      width: padded latent width D.
      runs: their stacked arrays.
      sources: their training latents.
      initial: parameters before training, leading axis = runs.
      params: power EMA of the parameters after training.
      snapshot: the same at an earlier step, None if not asked for.
      losses: ``[runs, chunks]``, mean loss of each chunk of steps.
      failed_at: ``[runs]``, the step at which a run first was not finite, -1 for none.
      seconds: time of training of all runs together, without compilation.
      compilations: programs compiled for the training steps.
    """

    specs: tuple[RunSpec, ...]
    config: TrainingConfig
    width: int
    runs: StackedRuns
    sources: Sources
    initial: nnx.State
    params: nnx.State
    snapshot: nnx.State | None
    losses: np.ndarray
    failed_at: np.ndarray
    seconds: float
    compilations: int

    def denoiser(self, index: int) -> Denoiser:
        """Returns run ``index`` as a `Denoiser` on padded latents ``[B, D]``."""
        graphdef = graph_definition(self.config, self.width)
        params, inputs = jax.tree.map(lambda x: x[index], (self.params, self.runs.inputs))
        return as_denoiser(nnx.merge(graphdef, params), inputs)


def stack_runs(
    specs: Sequence[RunSpec], latents: dict[tuple[str, int, int], Latents], width: int
) -> tuple[StackedRuns, Sources]:
    """Stacks specs and their latents, padded to ``width`` components. ``latents`` is keyed by (data, seed, n)."""
    places: dict[tuple[str, int, int], int] = {}
    source = [places.setdefault((s.data, s.seed, s.n), len(places)) for s in specs]
    groups = list(places)
    if missing := [group for group in groups if group not in latents]:
        raise ValueError(f"latents must hold {missing[0]}, the (data, seed, n) of a run, got {sorted(latents)}")
    n_max = max(n for _, _, n in groups)
    # Without fresh runs no Gaussian draws are made: the factor has no columns.
    fresh = any(s.training_draws == "fresh" for s in specs)
    rank = max(latents[g].fresh_factor.shape[1] for g in groups) if fresh else 0
    sample = np.zeros((len(groups), n_max, width), np.float32)
    factor = np.zeros((len(groups), width, rank), np.float32)
    for i, group in enumerate(groups):
        data = latents[group]
        kept = min(width, data.sample.shape[1])
        sample[i, : len(data.sample), :kept] = data.sample[:, :kept]
        if fresh:
            factor[i, :kept, : data.fresh_factor.shape[1]] = data.fresh_factor[:kept]
    dims = np.array([s.latent_dim for s in specs])
    if dims.max() > width:
        raise ValueError(f"latent_dim must be <= {width}, got {dims.max()}")
    stds = [np.sqrt(np.mean(latents[(s.data, s.seed, s.n)].sample[:, : s.latent_dim] ** 2)) for s in specs]
    runs = StackedRuns(
        key=random.named_keys([s.seed for s in specs], [s.name for s in specs]),
        latent_dim=jnp.asarray(dims),
        learning_rate=jnp.asarray([s.learning_rate for s in specs], jnp.float32),
        source=jnp.asarray(source),
        n=jnp.asarray([s.n for s in specs]),
        fresh=jnp.asarray([s.training_draws == "fresh" for s in specs]),
        inputs=RunInputs(
            mask=jnp.asarray(np.arange(width) < dims[:, None], jnp.float32),
            cap=jnp.asarray([s.cap for s in specs], jnp.float32),
            data_std=jnp.asarray(stds, jnp.float32),
        ),
    )
    return runs, Sources(jnp.asarray(sample), jnp.asarray(factor))


class LatentDraw(NamedTuple):
    """Which clean training latents a batch takes: rows ``index`` ``[count]`` of the sample, or normals of a key."""

    index: jax.Array
    normal_key: jax.Array


def choose_latents(run: StackedRuns, key: jax.Array, count: int) -> LatentDraw:
    """Chooses ``count`` clean training latents of one run, uniformly."""
    index_key, normal_key = jax.random.split(key)
    return LatentDraw(jax.random.randint(index_key, (count,), 0, run.n), normal_key)


def chosen_latents(sources: Sources, run: StackedRuns, draw: LatentDraw) -> jax.Array:
    """Returns the clean training latents of one run that were chosen ``[count, D]``: of its sample, or fresh Gaussian draws."""
    sampled = sources.sample.at[run.source, draw.index].get(mode="promise_in_bounds")
    # No run draws afresh. jaxlib 0.11 crashes on the empty product below, on several CPU devices.
    if sources.factor.shape[2] == 0:
        return sampled * run.inputs.mask
    normal = random.normal(draw.normal_key, len(draw.index), sources.factor.shape[2])
    return jnp.where(run.fresh, normal @ sources.factor[run.source].T, sampled) * run.inputs.mask


def draw_latents(sources: Sources, run: StackedRuns, key: jax.Array, count: int) -> jax.Array:
    """Returns ``count`` clean training latents of one run ``[count, D]``: uniform from its sample, or fresh Gaussian draws."""
    return chosen_latents(sources, run, choose_latents(run, key, count))


def train_scores(
    specs: Sequence[RunSpec],
    latents: dict[tuple[str, int, int], Latents],
    config: TrainingConfig,
    *,
    width: int | None = None,
    runs_per_batch: int | None = None,
    chunk: int = 100,
    snapshot: int | None = None,
    job: Job = NO_JOB,
) -> TrainedRuns:
    """Trains all runs of one model class in one compiled program.

    Args:
      specs: the runs, with distinct names, all of ``config.model``.
      latents: training latents by (data, seed, n).
      config: shared by all runs.
      width: padded latent width; default the largest latent dimension.
      runs_per_batch: runs vmapped at once on each device; the others wait, which bounds memory. By default
        `devices.default_runs_per_batch`.
      chunk: steps per dispatch; progress is shown after each.
      snapshot: keep the averaged parameters after this many steps too.
      job: keeps checkpoints and what `load_denoiser` reads, and shows progress.

    Returns:
      The trained runs; one that diverged holds its last finite parameters and says when.

    Raises:
      ValueError: if names repeat or a spec is of another model class or does not fit the U-Net's maps.
    """
    if len({s.name for s in specs}) < len(specs):
        raise ValueError("runs must have distinct names")
    if any(s.model != config.model_name for s in specs):
        raise ValueError(f"all runs must be of model {config.model_name!r}")
    width = width or max(s.latent_dim for s in specs)
    if config.model == "unet" and {width, *(s.latent_dim for s in specs)} != {config.map_dim}:
        raise ValueError(
            f"maps {config.map_shape} have latent_dim {config.map_dim}, got {[s.latent_dim for s in specs]}"
        )
    if not isinstance(config.model, str) and {s.latent_dim for s in specs} != {width}:
        raise ValueError(
            f"runs of {config.model_name} must have one latent_dim, got {[s.latent_dim for s in specs]} and width {width}"
        )
    runs, sources = stack_runs(specs, latents, width)
    init, advance = training_programs(config, width, chunk=chunk, runs_per_batch=runs_per_batch)
    name = f"{config.model_name}-{fingerprint(f'{specs} {config} {width}', sources)}"
    finished = chunks.run_training(
        advance,
        lambda: init(0, runs),
        sources,
        runs,
        name=name,
        count=len(specs),
        steps=config.steps,
        chunk=chunk,
        marks=() if snapshot is None else (snapshot,),
        select=lambda state: state.ema,
        job=job,
        label=config.model_name,
    )
    if job.directory is not None:
        names = [spec.name for spec in specs]
        parameters = jax.tree.leaves(finished.state.ema)
        job.keep(
            f"trained/{name}", lambda: KeptRuns(names, config, width, jax.tree.map(np.asarray, runs.inputs), parameters)
        )
    return TrainedRuns(
        specs=tuple(specs),
        config=config,
        width=width,
        runs=runs,
        sources=sources,
        initial=jax.tree.map(jnp.asarray, collect(init(0, runs).params, len(specs))),
        params=jax.tree.map(jnp.asarray, finished.state.ema),
        snapshot=None if snapshot is None else jax.tree.map(lambda x: jnp.asarray(x[0]), finished.kept),
        losses=finished.losses,
        failed_at=finished.state.failed_at,
        seconds=float(finished.seconds[-1]),
        compilations=advance.compilations,
    )


class KeptRuns(NamedTuple):
    """What a job keeps of a training's end: names of runs, their configuration, padded width, inputs, leaves of the EMA."""

    names: list[str]
    config: TrainingConfig
    width: int
    inputs: RunInputs
    parameters: list[np.ndarray]


def load_denoiser(workdir: str | os.PathLike, name: str) -> Denoiser:
    """Returns a trained run of an experiment, or of any job, as a `Denoiser`, from what `train_scores` kept.

    Every training ends with a piece of the job, "trained/...", that holds the averaged parameters of all its runs.

    Args:
      workdir: of an experiment, or the directory of a `Job`.
      name: of the run, `RunSpec.name`.

    Returns:
      The denoiser, on latents ``[B, D]`` padded to the width they were trained at.

    Raises:
      ValueError: if there is no such run, or more than one; the message names those that there are. If a network or schedule is
        of a class of your own whose module is not imported.
    """
    kept = [runs for directory in (Path(workdir) / "checkpoints", Path(workdir)) for runs in _kept_runs(directory)]
    found = [runs for runs in kept if name in runs.names]
    if len(found) != 1:
        there = sorted(each for runs in kept for each in runs.names)
        shown = ", ".join(there[:10]) + (f" and {len(there) - 10} more" if len(there) > 10 else "") or "none"
        raise ValueError(f"{len(found)} runs are called {name!r} in {str(workdir)!r}, which holds {shown}")
    (runs,) = found
    row = runs.names.index(name)
    graphdef, shapes = nnx.split(
        nnx.eval_shape(lambda: make_network(runs.config, runs.width, random.key(0), runs.width))
    )
    leaves, inputs = jax.tree.map(lambda x: jnp.asarray(x[row]), (runs.parameters, runs.inputs))
    params = jax.tree.unflatten(jax.tree.structure(shapes), leaves)
    return as_denoiser(nnx.merge(graphdef, params), inputs)


def _kept_runs(directory: Path) -> Iterator[KeptRuns]:
    for path in sorted(directory.glob("pieces/trained_*.json")):
        found = pieces.read_piece(path.with_suffix(""))
        if found is not None:
            yield found.value


def training_programs(
    config: TrainingConfig, width: int, *, chunk: int = 100, runs_per_batch: int | None = None
) -> tuple[MappedRuns, MappedRuns]:
    """Compiles (0, runs) to states, and ((sources, first, last), states, runs) to (states, sums of losses)."""
    init = map_runs(lambda _, run: init_state(config, width, random.stream(run.key, "initialisation"), run.latent_dim))
    step_chunk = partial(_train_chunk, config, graph_definition(config, width), loops.steps_per_call(chunk))
    # A U-Net's maps take memory that a MLP's vectors do not: when it is large, one alone keeps an accelerator busy.
    step_flops = 3 * config.batch_size * flops(config, width) if config.model == "unet" else 0
    at_once = runs_per_batch or default_runs_per_batch(step_flops)
    return init, map_runs(step_chunk, runs_per_batch=at_once, donate=1, small=config.model != "unet")


def _train_chunk(config, graphdef, length, shared, state, run):
    """Steps first..last - 1 of one run, at most ``length``; returns the state and the sum of losses."""
    sources, first, last = shared
    flat, dim = FlatParameters.in_training(state.params), run.latent_dim.astype(jnp.float32)

    def network_of(vector):
        return nnx.merge(graphdef, flat.unravel(vector))

    def project(vector):
        network = network_of(vector)
        network.project(run.inputs)
        return flat.ravel(nnx.split(network)[1])

    def draws_of(step):
        latents_key, noising_key = jax.random.split(random.step(random.stream(run.key, "training"), step))
        return choose_latents(run, latents_key, config.batch_size), choose_noising(noising_key)

    def loss_of(vector, memory, draws):
        latents, noising = draws
        x0 = chosen_latents(sources, run, latents)
        return batch_loss(config, network_of(vector), run.inputs, x0, noising, dim=dim), memory

    options = {"project": project} if config.model == "linear" else {}
    state, total = train_chunk(
        map_parameters(flat.ravel, state),
        first=first,
        last=last,
        length=length,
        draws_of=draws_of,
        loss_of=loss_of,
        rate_of=lambda step: run.learning_rate * unit_learning_rate(step, config.steps),
        ema_gamma=config.ema_gamma,
        **options,
    )
    return map_parameters(flat.unravel, state), total


def map_trained(
    trained: TrainedRuns, function: Callable, extra, *, width: int | None = None, runs_per_batch: int | None = None
) -> Callable:
    """Compiles ``function(denoiser, run, sources, extra_of_run)`` over the trained runs.

    Args:
      trained: result of `train_scores`.
      function: gets one run's `Denoiser`, its `StackedRuns` row, the shared `Sources` and its row of ``extra``.
      extra: a pytree of arrays with leading axis = runs.
      width: padded latent width to work at, at least the latent dimension of every run asked for; default the trained one.
      runs_per_batch: as in `train_scores`.

    Returns:
      A function of an index array of runs that returns the stacked results, padded runs removed.
    """
    graphdef = graph_definition(trained.config, trained.width)
    width = width or trained.width
    sources = Sources(trained.sources.sample[..., :width], trained.sources.factor[:, :width])

    def one(sources, packed):
        params, run, extra_of_run = packed
        network = nnx.merge(graphdef, params)
        network.narrow(width)
        run = run._replace(inputs=run.inputs._replace(mask=run.inputs.mask[:width]))
        return function(as_denoiser(network, run.inputs), run, sources, extra_of_run)

    small = trained.config.model != "unet"
    compiled = map_runs(one, runs_per_batch=runs_per_batch, samples=True, small=small)

    def call(indices):
        indices = np.asarray(indices)
        if max(trained.specs[i].latent_dim for i in indices) > width:
            raise ValueError(f"width {width} is too narrow for the runs asked for")
        rows = take_rows((trained.params, trained.runs, extra), indices)
        return collect(compiled(sources, rows), len(indices))

    return call
