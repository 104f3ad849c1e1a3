"""A contest: two ways to one result, prepared, then timed in turn (A B A B ...), after each has run once unmeasured."""

import dataclasses
import gc
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import numpy as np

from experiments.launch import Settings, precision_setting, setting
from ldmjax import data
from ldmjax.job import Job

PAUSE = 0.2  # seconds between two measurements: threads of the side before stop spinning
LEAST_SECONDS = 0.1
TABLE_DIM = 3072  # CIFAR-10's
GROWTH = "linear growth"  # what a contest is against whose goal bounds the ratio from above

Timer = Callable[[], float]  # does the work, returns seconds per unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sizes(Settings):
    """How large contests are."""

    rounds: int = setting(5, "Rounds of each pair.", low=1, high=1000)
    runs: int = setting(64, "Training runs.", low=1, high=100_000)
    steps: int = setting(100, "Optimiser steps a round (linear scores: 20 times as many).", low=1, high=10_000_000)
    samples: int = setting(4096, "Samples of each chain.", low=8, high=10_000_000)
    sampling_steps: int = setting(1000, "Steps of each chain.", low=40, high=1_000_000)
    precision: str = precision_setting()
    spectrum: str = setting(
        "power:1.5",
        "Of the table of discretisation errors.",
        allowed=data.SPECTRA,
        check=lambda description: data.spectrum_variances(description, TABLE_DIM),
    )
    data_dim: int = setting(TABLE_DIM, "Dimension of --spectrum (a file gives its own).", low=1, high=100_000)

    def __post_init__(self):
        super().__post_init__()
        try:
            variances = self.variances
        except ValueError as error:
            raise self.refuse("spectrum", f"must be {data.SPECTRA} ({error})") from error
        if not np.all(variances > 0):
            raise self.refuse("spectrum", "must have variances above 0: Heun's law at t = 0 is infinite otherwise")

    @property
    def variances(self) -> np.ndarray:
        """Those of ``spectrum`` ``[D]``, largest first."""
        return data.spectrum_variances(self.spectrum, self.data_dim)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Two ways to one result.

    Attributes:
      ours: times ours.
      theirs: times the other.
      unit: of work.
      options: how ours was done, as far as that is a choice.
      opponent: which variant of theirs was the fastest.
      agreement: how far the results differ, in the unit that ``agreement_in`` names.
      agreement_in: the comparison, in words.
      peak_bytes: memory (ours, theirs) where that is compared too.
      cold_seconds: of our first call, with compilation, where that is of interest.
    """

    ours: Timer
    theirs: Timer
    unit: str
    options: str
    opponent: str
    agreement: float
    agreement_in: str
    peak_bytes: tuple[float, float] | None = None
    cold_seconds: float | None = None


class Contest(NamedTuple):
    """One row of the table; ``goal`` bounds the ratio theirs / ours from below, `GROWTH` from above."""

    what: str
    against: str
    goal: float
    prepare: Callable[[Sizes, Job], Sides]


def hold(name: str, contest: Contest, sizes: Sizes, job: Job) -> dict[str, Any]:
    """What was measured: its "name", "ours" and "theirs" (seconds per unit, round by round), and the facts of "sides"."""
    begin, sides = time.perf_counter(), contest.prepare(sizes, job)
    facts = {field.name: getattr(sides, field.name) for field in dataclasses.fields(sides)}
    timers = {side: facts.pop(side) for side in ("ours", "theirs")}
    seconds = {side: [] for side in timers}
    for number in range(sizes.rounds + 1):
        for side, timer in timers.items():
            gc.collect()
            time.sleep(PAUSE)
            seconds[side].append(timer())
        if number:
            ratio, elapsed = seconds["theirs"][-1] / seconds["ours"][-1], time.perf_counter() - begin
            job.log(f"{name}: round {number}/{sizes.rounds}, ratio {ratio:.3g}, {elapsed:.0f} s so far")
    return {"name": name, **{side: values[1:] for side, values in seconds.items()}, "sides": facts}


def timed(work: Callable[[], object]) -> float:
    """Mean seconds of a call, over as many as fill `LEAST_SECONDS`; ``work`` waits for its own result."""
    begin, calls = time.perf_counter(), 0
    while calls == 0 or time.perf_counter() - begin < LEAST_SECONDS:
        work()
        calls += 1
    return (time.perf_counter() - begin) / calls


class NotHeldError(Exception):
    """Something could not be measured; the message says why."""


def reason_of(error: Exception) -> str:
    """An error as a short line; of our own refusal the whole message."""
    if isinstance(error, NotHeldError):
        return str(error)
    return f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')[:160]}"


def others_go_on(error: Exception) -> bool:
    """Whether only this cannot be measured, or memory ran out, or the device refused. Other errors are this program's."""
    names = {"OutOfMemoryError", "AcceleratorError"}  # PyTorch's, which may not be there
    return isinstance(error, NotHeldError | MemoryError | jax.errors.JaxRuntimeError) or type(error).__name__ in names
