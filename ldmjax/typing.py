"""Types of arguments."""

from collections.abc import Sequence

import jax.typing

# What numpy.asarray takes: arrays, numbers, sequences of numbers. (numpy.typing.ArrayLike resists run-time checks.)
ArrayLike = jax.typing.ArrayLike | Sequence
