"""A small classifier of a data set's images, trained once and kept on disk; its last hidden layer gives features.

Two hidden layers on pixels (pooled as in "pixels"), AdamW with a cosine schedule. A little noise on the inputs in training
keeps the features from hanging on single pixels.
"""

import contextlib
import dataclasses
import functools
import hashlib
import os
import zipfile
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx
from jax.flatten_util import ravel_pytree

from ldmjax import random
from ldmjax.data import Dataset
from ldmjax.devices import cache_directory, is_first_process, platform
from ldmjax.features.maps import pixels
from ldmjax.job import NO_JOB, Job

VERSION = 1  # of what training does: caches of another version are not read
CHUNKS = 4  # of training, a line each
BATCH = 1024


@dataclasses.dataclass(frozen=True, kw_only=True)
class ClassifierConfig:
    """Size and training of the classifier.

    Attributes:
      hidden: width of the first hidden layer.
      features: width of the second, F.
      steps: optimiser steps.
      batch_size: images per step, drawn with replacement.
      learning_rate: of AdamW at the start; falls to 0.
      weight_decay: of AdamW.
      noise: standard deviation of the noise on inputs of unit variance.
      held_out: share of the images that only measure the accuracy.
      seed: of everything random.
    """

    hidden: int = 128
    features: int = 64
    steps: int = 2000
    batch_size: int = 128
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    noise: float = 0.3
    held_out: float = 0.1
    seed: int = 0

    def __post_init__(self):
        for name in ("hidden", "features", "batch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be >= 1, got {getattr(self, name)}")
        if self.steps < CHUNKS or self.steps % CHUNKS:
            raise ValueError(f"steps must be a multiple of {CHUNKS}, got {self.steps}")
        if not 0.0 < self.held_out < 1.0:
            raise ValueError(f"held_out must be > 0 and < 1, got {self.held_out}")


class Classifier(nnx.Module):
    """Perceptron with two hidden layers; the second gives the features."""

    def __init__(self, inputs: int, classes: int, config: ClassifierConfig, *, rngs: nnx.Rngs):
        """Args: inputs: D. classes: number of classes. config: widths."""
        self.first = nnx.Linear(inputs, config.hidden, rngs=rngs)
        self.second = nnx.Linear(config.hidden, config.features, rngs=rngs)
        self.last = nnx.Linear(config.features, classes, rngs=rngs)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Returns (features ``[B, F]``, logits ``[B, classes]``)."""
        features = jax.nn.gelu(self.second(jax.nn.gelu(self.first(x))))
        return features, self.last(features)


def classifier(
    dataset: Dataset, config: ClassifierConfig, *, job: Job = NO_JOB
) -> tuple[Callable[[np.ndarray], np.ndarray], float]:
    """Returns (images ``[B, *image_shape]`` -> features ``[B, F]``, held-out accuracy); from the cache if they are there.

    Raises:
      ValueError: for data without labels of at least two classes.
    """
    if dataset.labels is None:
        raise ValueError(f"{dataset.name} has no labels, and a classifier learns from labels")
    classes, targets = np.unique(dataset.labels, return_inverse=True)
    if len(classes) < 2:
        raise ValueError(f"{dataset.name} has labels of one class, and a classifier needs two")
    flatten = pixels(dataset.image_shape)[1]
    inputs = flatten(dataset.images(dataset.samples))
    centre = inputs.mean(axis=0)
    scale = max(float(inputs.std()), 1e-12)
    inputs = (inputs - centre) / scale
    network = _network(config, inputs.shape[1], len(classes))
    path = cache_directory() / f"classifier-{_key(dataset, config)}.npz"
    trained = _read(path, len(network.initial))
    if trained is None:
        trained = _train(network, inputs, targets, config, job)
        if is_first_process():
            _write(path, trained, job)
    parameters, accuracy = trained
    job.log(f"classifier of {dataset.name}: {100.0 * accuracy:.1f} % of held-out images right")
    return lambda images: _outputs(network, parameters, (flatten(images) - centre) / scale)[0], accuracy


class _Network(NamedTuple):
    """First parameters ``[P]``, optimiser state from them, and programs: a chunk of training, (features, logits)."""

    initial: np.ndarray
    start: Callable
    chunk: Callable
    outputs: Callable


@functools.lru_cache
def _network(config, width, classes):
    graphdef, params = nnx.split(Classifier(width, classes, config, rngs=nnx.Rngs(config.seed)))
    # One flat vector: the optimiser is a handful of operations per step, and the cache holds a single array.
    initial, unravel = ravel_pytree(params)
    rate = optax.cosine_decay_schedule(config.learning_rate, config.steps)
    optimiser = optax.adamw(rate, weight_decay=config.weight_decay)

    def loss(parameters, x, targets):
        logits = nnx.merge(graphdef, unravel(parameters))(x)[1]
        return optax.softmax_cross_entropy_with_integer_labels(logits, targets).mean()

    @functools.partial(jax.jit, donate_argnums=0)
    def chunk(state, inputs, targets, keys):
        def step(state, key):
            parameters, moments = state
            row_key, noise_key = jax.random.split(key)
            rows = jax.random.randint(row_key, (config.batch_size,), 0, len(inputs))
            x = inputs[rows] + config.noise * jax.random.normal(noise_key, (config.batch_size, width))
            value, gradient = jax.value_and_grad(loss)(parameters, x, targets[rows])
            update, moments = optimiser.update(gradient, moments, parameters)
            return (optax.apply_updates(parameters, update), moments), value

        state, losses = jax.lax.scan(step, state, keys)
        return state, losses.mean()

    outputs = jax.jit(lambda parameters, x: nnx.merge(graphdef, unravel(parameters))(x))
    return _Network(np.asarray(initial), optimiser.init, chunk, outputs)


def _outputs(network, parameters, inputs):
    """Returns (features ``[N, F]``, logits ``[N, classes]``), in batches of one size: one program."""
    parts = []
    for first in range(0, len(inputs), BATCH):
        rows = inputs[first : first + BATCH]
        padded = np.zeros((BATCH, inputs.shape[1]), np.float32)
        padded[: len(rows)] = rows
        parts.append([np.asarray(a)[: len(rows)] for a in network.outputs(parameters, padded)])
    return [np.concatenate(a) for a in zip(*parts, strict=True)]


def _train(network, inputs, targets, config, job):
    """Returns (parameters ``[P]``, share of the held-out rows named rightly), from rows ``[N, D]`` and classes ``[N]``."""
    order = np.random.default_rng(config.seed).permutation(len(inputs))
    held_out, rows = np.split(order, [max(1, round(config.held_out * len(inputs)))])
    data = jnp.asarray(inputs[rows], jnp.float32), jnp.asarray(targets[rows], jnp.int32)
    state = jnp.array(network.initial), network.start(network.initial)
    keys = jax.random.split(random.key(config.seed), config.steps).reshape(CHUNKS, -1)
    with job.progress("classifier", config.steps, unit="step") as progress:
        for done, chunk_keys in enumerate(keys, start=1):
            state, loss = network.chunk(state, *data, chunk_keys)
            progress.update(done * keys.shape[1], loss=float(loss))
    parameters = np.asarray(state[0])
    logits = _outputs(network, parameters, inputs[held_out])[1]
    return parameters, float(np.mean(logits.argmax(axis=1) == targets[held_out]))


def _key(dataset, config):
    """Returns sha256 of all that the trained parameters depend on, the platform's rounding included."""
    digest = hashlib.sha256(f"{VERSION} {platform()} {config} {dataset.image_shape} {dataset.digest}".encode())
    for array in (dataset.mean, dataset.labels):
        digest.update(np.ascontiguousarray(array))
    return digest.hexdigest()


def _read(path, size):
    """Returns (parameters ``[size]``, accuracy), or None if there is no such file or it is damaged."""
    try:
        with np.load(path, allow_pickle=False) as archive:
            parameters, accuracy = archive["parameters"], float(archive["accuracy"])
    except (OSError, EOFError, ValueError, KeyError, TypeError, AttributeError, zipfile.BadZipFile):
        return None
    sound = parameters.shape == (size,) and parameters.dtype == np.float32 and np.all(np.isfinite(parameters))
    return (parameters, accuracy) if sound else None


def _write(path, trained, job):
    """Writes whole or not at all: another session may read or write the same file."""
    part = path.with_suffix(f".{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez(part, parameters=trained[0], accuracy=trained[1])
        os.replace(part, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            part.unlink()
        job.log(f"classifier: not kept for the next time: {error}")
