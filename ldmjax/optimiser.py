"""The one optimiser step of all trainings, and the loop over such steps inside a program (chunks.py has the loop around it).

A step is Adam, then a projection, then the power EMA; a run whose loss or gradient is not finite keeps its last state for good
and remembers the step.

Power EMA (Karras et al., arXiv 2312.02696): after step k the average moves by 1 - (1 - 1/k)^(gamma + 1), so that it always
spans the same fraction of training, but never by less than 1e-4 once training is longer than 50,000 steps ([OS]'s value).
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import optax
from jaxtyping import PyTree

from ldmjax import loops
from ldmjax.devices import platform

ADAM = optax.scale_by_adam(b2=0.99)
EMA_LIMIT, EMA_LIMIT_AFTER = 0.9999, 50_000
FEW_LEAVES = 8  # of a tree of parameters: an MLP's


class TrainState(NamedTuple):
    """Arrays of one run.

    Attributes:
      params: parameters.
      optimiser: state of Adam.
      ema: power EMA of the parameters (and of what else a training averages).
      failed_at: the step that first was not finite, -1 for none.
      memory: what steps change by other ways than a gradient, a codebook say; None for nothing.
    """

    params: PyTree
    optimiser: optax.OptState
    ema: PyTree
    failed_at: jax.Array
    memory: PyTree = None


def _parameters_alone(params: PyTree, memory: PyTree) -> PyTree:
    return params


def fresh_state(
    params: PyTree,
    *,
    memory: PyTree = None,
    averaged: Callable[[PyTree, PyTree], PyTree] = _parameters_alone,
    adam: optax.GradientTransformation = ADAM,
) -> TrainState:
    """Returns the state before the first step, from initial parameters; the arguments are those of `apply_gradient`."""
    never = jnp.full((), -1, jnp.int32)
    return TrainState(params, adam.init(params), averaged(params, memory), never, memory)


def apply_gradient(
    state: TrainState,
    loss: jax.Array,
    gradient: PyTree,
    *,
    rate: jax.Array,
    ema_share: jax.Array,
    step: jax.Array,
    memory: PyTree = None,
    project: Callable[[PyTree], PyTree] = lambda params: params,
    averaged: Callable[[PyTree, PyTree], PyTree] = _parameters_alone,
    adam: optax.GradientTransformation = ADAM,
    counts: jax.Array | bool = True,
) -> TrainState:
    """Takes one step: Adam, then ``project``, then the power EMA; a state that is not finite freezes.

    Args:
      state: before the step.
      loss: of its batch.
      gradient: in the parameters.
      rate: learning rate.
      ema_share: by how much of the way the average moves (1 - its decay).
      step: its number, from 0.
      memory: the state's memory after the step.
      project: moves parameters to allowed ones.
      averaged: (params, memory) to what the EMA averages.
      adam: the optimiser.
      counts: a step that does not count (`loops.repeat`) changes nothing.
    """
    update, optimiser = adam.update(gradient, state.optimiser)
    params = project(optax.apply_updates(state.params, jax.tree.map(lambda u: -rate * u, update)))
    ema = optax.incremental_update(averaged(params, memory), state.ema, ema_share)
    finite = jnp.isfinite(loss) & jnp.isfinite(optax.tree.norm(gradient))
    running = (state.failed_at < 0) & counts
    fine = finite & running
    failed_at = jnp.where(running & ~finite, step, state.failed_at)
    new = TrainState(params, optimiser, ema, failed_at, memory)
    kept = jax.tree.map(lambda a, b: jnp.where(fine, a, b), new, state)
    return kept._replace(failed_at=failed_at)


def ema_decay(step: jax.Array, ema_gamma: float) -> jax.Array:
    """Returns the decay of the power EMA after step ``step``, counted from 0; at most 0.9999 after 50,000 steps."""
    power = (1.0 - 1.0 / (step + 1.0)) ** (ema_gamma + 1.0)
    return jnp.where(step < EMA_LIMIT_AFTER, power, jnp.minimum(power, EMA_LIMIT))


def train_chunk(
    state: TrainState,
    *,
    first: jax.Array,
    last: jax.Array,
    length: int,
    draws_of: Callable[[jax.Array], PyTree],
    loss_of: Callable[[PyTree, PyTree, PyTree], tuple[jax.Array, PyTree]],
    rate_of: Callable[[jax.Array], jax.Array],
    ema_gamma: float,
    **options: Any,
) -> tuple[TrainState, jax.Array]:
    """Takes the steps first..last - 1 of one run, at most ``length``; returns its state and the sum of the losses.

    Args:
      state: of the run.
      first: number of the first step.
      last: the step to stop before.
      length: most steps, a Python number.
      draws_of: step to what its random numbers choose, small arrays; mapped over all steps before the loop.
      loss_of: (params, memory, draws) to (loss, memory after the step).
      rate_of: step to learning rate.
      ema_gamma: exponent of the power EMA.
      **options: ``project``, ``averaged`` and ``adam`` of `apply_gradient`.
    """

    def prepare(step):
        # The rate and the EMA's share as one array, which a step reads with one kernel less.
        return draws_of(step), jnp.stack([rate_of(step), 1.0 - ema_decay(step, ema_gamma)])

    def step_of(step, prepared, carry, counts):
        (draws, (rate, ema_share)), (state, total) = prepared, carry
        (loss, memory), gradient = jax.value_and_grad(loss_of, has_aux=True)(state.params, state.memory, draws)
        state = apply_gradient(
            state, loss, gradient, rate=rate, ema_share=ema_share, step=step, memory=memory, counts=counts, **options
        )
        return state, total + jnp.where(counts, loss, 0.0)

    carry = state, jnp.zeros(())
    return loops.repeat(step_of, carry, first=first, last=last, length=length, prepare=prepare)


class FlatParameters(NamedTuple):
    """Parameters as one vector and back. A tree of one leaf needs no vector: it stands for its leaf."""

    ravel: Callable[[PyTree], jax.Array]
    unravel: Callable[[jax.Array], PyTree]

    @classmethod
    def of(cls, params: PyTree) -> "FlatParameters":
        """Serves trees like ``params``, of which only shapes are read."""
        leaves, treedef = jax.tree.flatten(params)
        if len(leaves) == 1:
            return cls(lambda tree: jax.tree.leaves(tree)[0], lambda leaf: jax.tree.unflatten(treedef, [leaf]))
        ravel, back = jax.flatten_util.ravel_pytree, []
        jax.eval_shape(lambda tree: back.append(ravel(tree)[1]), params)
        return cls(lambda tree: ravel(tree)[0], back[0])

    @classmethod
    def in_training(cls, params: PyTree) -> "FlatParameters":
        """Serves a loop of steps: `of` on a CPU, where Adam, EMA and freezing of a vector are a few operations, not dozens.

        On an accelerator a tree of few leaves stays as it is: the compiler makes one kernel of the updates of all leaves, and
        would need one more to cut each leaf out of a vector. With many leaves the check that all are finite costs more.
        """
        if platform() == "cpu" or len(jax.tree.leaves(params)) > FEW_LEAVES:
            return cls.of(params)
        return cls(lambda tree: tree, lambda tree: tree)


def map_parameters(function: Callable[[PyTree], PyTree], state: TrainState) -> TrainState:
    """Returns the state with ``function`` of everything that has the shape of its parameters."""
    adam = state.optimiser
    return state._replace(
        params=function(state.params),
        optimiser=adam._replace(mu=function(adam.mu), nu=function(adam.nu)),
        ema=function(state.ema),
    )
