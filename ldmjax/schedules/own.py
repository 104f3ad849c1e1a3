"""Schedules of the user's own: what is missing said in one error, and values for closed forms however they are written."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np

METHODS = ("alpha", "sigma", "logsnr")
CONTINUOUS_METHODS = (*METHODS, "inverse_logsnr", "alpha_dot", "sigma_dot")
VARIANCE_PRESERVING_METHODS = ("B", "w_squared", "alpha", "sigma", "logsnr")


def check_schedule(schedule: Any, methods: Sequence[str] = METHODS, *, what: str = "this") -> None:
    """Checks that a schedule has ``t_max`` and the methods that ``what`` needs.

    Raises:
      ValueError: with all that is missing.
    """
    missing = [
        f"{name}({'logsnr' if name == 'inverse_logsnr' else 't'})" for name in methods if not _has(schedule, name)
    ]
    missing += [] if hasattr(schedule, "t_max") else ["t_max"]
    if missing:
        kind = "a variance-preserving schedule" if "B" in methods else "a schedule"
        hint = ": `VariancePreserving` makes all of B, w_squared and inverse_B" if "B" in methods else ""
        raise ValueError(f"{what} needs {kind}, and {type(schedule).__name__} lacks {', '.join(missing)}{hint}")


def _has(schedule: Any, name: str) -> bool:
    return callable(getattr(schedule, name, None))


def check_traceable(schedule: Any, methods: Sequence[str] = METHODS) -> None:
    """Checks that compiled programs can call a schedule's methods.

    Raises:
      ValueError: for a method that is written with numpy, which takes no traced arrays.
    """
    for name in methods:
        try:
            jax.eval_shape(getattr(schedule, name), jax.ShapeDtypeStruct((1,), np.float32))
        except jax.errors.TracerArrayConversionError as error:
            raise ValueError(
                f"{type(schedule).__name__}.{name} is written with numpy, and a compiled program takes jax.numpy: "
                "with xp = t.__array_namespace__() it serves both"
            ) from error


class _OnHost:
    """A schedule whose methods take and return float64 numpy arrays."""

    def __init__(self, schedule: Any):
        self._schedule = schedule

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._schedule, name)
        return _in_float64(found) if callable(found) else found


def _in_float64(function: Callable) -> Callable:
    def call(t):
        with jax.enable_x64(True):
            return np.asarray(function(np.asarray(t, np.float64)), np.float64)

    return call


def on_host(schedule: Any) -> Any:
    """Returns the schedule for closed forms: float64 numpy in and out, whether it is written with numpy or jax.numpy."""
    return _OnHost(schedule)
