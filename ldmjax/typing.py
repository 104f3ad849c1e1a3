"""Types of arguments."""

from collections.abc import Sequence

import jax.typing
import numpy as np
from jaxtyping import Num

# What numpy.asarray takes: arrays, numbers, sequences of numbers. (numpy.typing.ArrayLike resists run-time checks.)
ArrayLike = jax.typing.ArrayLike | Sequence

# Arrays of jax and numpy alike, and numbers.
AnyArray = jax.Array | np.ndarray
Scalar = Num[AnyArray, ""] | np.number | float | int
