"""The loop over steps inside a compiled program.

On a CPU it ends where it is told to. An accelerator would ask the host before every step of such a loop, so there the loop has
a fixed length, and steps that are not wanted change nothing. Either way one program serves any number of steps.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from ldmjax.devices import platform

MOST_PER_CALL = 100  # steps: many, so that a call costs little; few, so that those which are not wanted do


def steps_per_call(chunk: int) -> int:
    """Steps that one call of a program may take, for dispatches of ``chunk`` steps."""
    return min(chunk, MOST_PER_CALL)


def repeat(
    step_of: Callable[[jax.Array, Any, PyTree, jax.Array | bool], PyTree],
    carry: PyTree,
    *,
    first: jax.Array | int,
    last: jax.Array | int,
    length: int,
    prepare: Callable[[jax.Array], PyTree] = lambda step: (),
) -> PyTree:
    """Takes, inside a program, the steps first..last - 1, at most ``length`` of them.

    Args:
      step_of: (step, what was prepared for it, carry, whether it counts) to carry, which a step that does not count must not
        change.
      carry: before the first step.
      first: number of the first step.
      last: the step to stop before.
      length: most steps, a Python number.
      prepare: step to what it needs that depends on its number alone (keys, small draws); mapped over all steps before the
        loop.
    """
    prepared = jax.vmap(prepare)(first + jnp.arange(length))

    def body(i, carry):
        counts = True if platform() == "cpu" else first + i < last
        return step_of(first + i, jax.tree.map(lambda x: x[i], prepared), carry, counts)

    return jax.lax.fori_loop(0, last - first if platform() == "cpu" else length, body, carry)
