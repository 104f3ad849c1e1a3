"""The loop of every training: steps in chunks, a progress line after each, checkpoints, and an orderly end on a signal.

The grid of chunks depends on nothing but the number of steps, so results do not depend on when a checkpoint was taken.
A call of a compiled program takes at most `loops.steps_per_call` steps: many calls may make a chunk.
"""

import contextlib
import dataclasses
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from ldmjax.checkpoints import TrainingCheckpoints
from ldmjax.devices import StateLost, any_process, collect, place, replicate
from ldmjax.job import Job
from ldmjax.loops import steps_per_call


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finished:
    """A training that has run to its end.

    Attributes:
      state: of R rows after the last step, on the host.
      losses: ``[R, C]``, mean loss of each of C chunks.
      chunk_ends: ``[C]``, steps done at the end of each chunk.
      marks: ``[M]``, the steps after which something was kept.
      kept: what ``select`` gave there, leaves ``[M, R, ...]``.
      seconds: ``[C]``, time of training up to the end of each chunk, without compilation; over all sessions.
    """

    state: PyTree
    losses: np.ndarray
    chunk_ends: np.ndarray
    marks: np.ndarray
    kept: PyTree
    seconds: np.ndarray

    def losses_between_marks(self) -> np.ndarray:
        """Returns ``[R, M]``, mean loss of the steps since the mark before."""
        lengths = np.diff(self.chunk_ends, prepend=0)
        firsts = np.append(0, np.searchsorted(self.chunk_ends, self.marks[:-1]) + 1)
        total, steps = (np.add.reduceat(x, firsts, axis=-1) for x in (self.losses * lengths, lengths))
        return total / steps


def run_training(
    advance: Callable,
    start: Callable[[], PyTree],
    shared: Any,
    runs: PyTree,
    *,
    name: str,
    count: int,
    steps: int,
    chunk: int,
    marks: Sequence[int] = (),
    select: Callable[[PyTree], PyTree] = lambda state: (),
    job: Job,
    label: str,
    unit: str = "run",
) -> Finished:
    """Runs ``advance`` over all steps, from the newest checkpoint if there is one.

    Args:
      advance: from `devices.map_runs`, maps ((shared, first, last), state, run) to (state, sum of losses) after the
        steps first..last - 1, no more than `loops.steps_per_call` of ``chunk``; may take the state's buffers.
      start: gives the stacked state before the first step.
      shared: what all runs need.
      runs: stacked, what each run needs.
      name: of the training, unique in the job.
      count: R, number of runs.
      steps: of every run.
      chunk: steps per dispatch, and per line.
      marks: rising steps after which ``select`` of the state is kept.
      select: picks leaves of the state.
      job: keeps checkpoints and shows progress.
      label: begins each line.
      unit: what a row is called.
    """
    ends = np.array(sorted({*range(chunk, steps, chunk), *marks, steps}))
    with job.training(name) as checkpoints, no_interruption() as interruption:
        loop = _Loop(advance, start, (shared, runs), count, ends, chunk, np.array(marks, int), select, checkpoints)
        loop.begin()
        compiled = loop.compile()
        if loop.done < steps:
            came_from = f", from the checkpoint at step {loop.done}" if loop.done else ""
            job.log(f"{label}: {count} {unit}s of {steps} steps, compiled in {compiled:.1f} s{came_from}")
        with job.progress(label, steps, unit="step", each=count, of=unit, done=loop.done) as progress:
            while loop.done < steps:
                if not loop.step():
                    progress.restart(loop.done)
                    continue
                progress.update(loop.done, loss=loop.last_loss)
                due, stopping = any_process(np.array([checkpoints.due, interruption.signal is not None]))
                if due or stopping or loop.done == steps:
                    loop.save()
                if stopping:  # perhaps because of a signal to another process
                    raise SystemExit(128 + (interruption.signal or signal.SIGTERM))
        return loop.finished()


class _Loop:
    """What `run_training` works on: the state on the devices, and on the host what has been collected on the way."""

    def __init__(self, advance, start, given, count, ends, chunk, marks, select, checkpoints: TrainingCheckpoints):
        self.advance, self.start, self.count, self.ends, self.marks = advance, start, count, ends, marks
        self.per_call = steps_per_call(chunk)
        self.select, self.checkpoints = select, checkpoints
        self.shared, self.runs = given
        self.done, self.state, self.kept = 0, None, None
        self.losses = np.zeros((count, len(ends)), np.float32)
        self.seconds = np.zeros(len(ends))

    def begin(self) -> None:
        """Takes the newest checkpoint, or the start."""
        start = self.start()
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((self.count, *x.shape[1:]), x.dtype), start)
        empty = jax.tree.map(lambda x: np.zeros((len(self.marks), *x.shape), x.dtype), self.select(rows))
        template = {"state": rows, "kept": empty, "losses": self.losses, "seconds": self.seconds}
        found = self.checkpoints.restore(template)
        if found is None:
            self.done, self.state, self.kept = 0, place(start), empty
            return
        self.done, host = found
        self.kept, self.losses, self.seconds = (
            jax.tree.map(np.array, host[key]) for key in ("kept", "losses", "seconds")
        )
        self.state = place(host["state"])

    def compile(self) -> float:
        """Places all arrays and compiles, by a call of no steps; its seconds. Nothing if training is finished."""
        if self.done == self.ends[-1]:
            return 0.0
        begin = time.perf_counter()
        self.shared, self.runs = replicate(self.shared), place(self.runs)
        try:
            self.state, _ = self.advance((self.shared, jnp.asarray(0), jnp.asarray(0)), self.state, self.runs)
        except StateLost:
            self.begin()
        return time.perf_counter() - begin

    def step(self) -> bool:
        """Trains for one chunk; returns False if memory ran out and the state had to be taken from the newest checkpoint."""
        begin, k = time.perf_counter(), int(np.searchsorted(self.ends, self.done, side="right"))
        end, total = int(self.ends[k]), np.zeros(self.count, np.float32)
        for first in range(self.done, end, self.per_call):
            bounds = jnp.asarray(first), jnp.asarray(min(first + self.per_call, end))
            try:
                self.state, loss = self.advance((self.shared, *bounds), self.state, self.runs)
            except StateLost:
                self.begin()
                return False
            total += collect(loss, self.count)
        self.losses[:, k] = total / np.float32(end - self.done)
        self.done = end
        self.seconds[k:] = (self.seconds[k - 1] if k else 0.0) + time.perf_counter() - begin
        mark = np.flatnonzero(self.marks == self.done)
        if mark.size:
            chosen = collect(self.select(self.state), self.count)
            for kept, leaf in zip(jax.tree.leaves(self.kept), jax.tree.leaves(chosen), strict=True):
                kept[mark[0]] = leaf
        return True

    @property
    def last_loss(self) -> float:
        """Mean over the runs that are finite; NaN if none is."""
        losses = self.losses[:, np.searchsorted(self.ends, self.done)]
        fine = losses[np.isfinite(losses)]
        return float(fine.mean()) if fine.size else np.nan

    def save(self) -> None:
        host = {"state": collect(self.state, self.count), "kept": self.kept, "losses": self.losses}
        # Copies: the next chunk fills these arrays while they are being written.
        copies = jax.tree.map(np.array, host | {"seconds": self.seconds})
        self.checkpoints.save(self.done, copies)

    def finished(self) -> Finished:
        return Finished(
            state=collect(self.state, self.count),
            losses=self.losses,
            chunk_ends=self.ends,
            marks=self.marks,
            kept=self.kept,
            seconds=self.seconds,
        )


@dataclasses.dataclass
class Interruption:
    """The signal that arrived while it could not be obeyed at once, or None."""

    signal: int | None = None


_DEFERRED: list[Interruption] = []


@contextlib.contextmanager
def no_interruption() -> Iterator[Interruption]:
    """Gives a context in which SIGTERM and Ctrl-C, once handled by `obey_signals`, are only noted: the loop ends in order."""
    interruption = Interruption()
    _DEFERRED.append(interruption)
    try:
        yield interruption
    finally:
        _DEFERRED.pop()
    if interruption.signal is not None:
        raise SystemExit(128 + interruption.signal)


def obey_signals() -> None:
    """Turns SIGTERM and Ctrl-C into `SystemExit` with status 128 + signal, at the end of the chunk if training runs.

    A second signal ends the process at once.
    """

    def handle(number, frame):
        del frame
        if _DEFERRED and _DEFERRED[-1].signal is None:
            _DEFERRED[-1].signal = number
        else:
            raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)
