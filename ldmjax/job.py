"""The one handle that long work is given: it says what happens, keeps what is finished, and goes on where it was stopped.

A *piece* is the result of some work (one model sampled and measured, say), kept when it is finished (pieces.py). A *training*
is a loop over steps whose state is kept on the way (checkpoints.py). `NO_JOB` shows and keeps nothing: it is what functions of
this library work with if they are given none. The first process reads, writes and shows; the others get what it read.

A job knows nothing of flags: whoever makes it has to give every job a directory of its own.
"""

import contextlib
import json
import os
import re
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from rich import progress as bars
from rich.console import Console

from ldmjax import pieces
from ldmjax.checkpoints import TrainingCheckpoints
from ldmjax.devices import from_first_process, is_first_process

Result = TypeVar("Result")


class Job:
    """What is shown and kept of one piece of long work."""

    def __init__(
        self,
        directory: str | os.PathLike | None = None,
        *,
        every: float = 30.0,
        keep_checkpoints: int = 2,
        show: Callable[[str], None] | None = None,
        line_every: float = 5.0,
        live: bool = False,
        series: Any = None,
    ):
        """Makes the job; its directory appears with the first thing that is kept.

        Args:
          directory: for checkpoints and pieces; None keeps nothing.
          every: seconds of training between checkpoints, >= 0.
          keep_checkpoints: newest checkpoints of a training that are kept, >= 1.
          show: receives lines; None shows nothing.
          line_every: least seconds between two lines on the progress of one thing; its last line always comes.
          live: whether progress is a bar on a terminal instead of lines.
          series: what numbers go to that are worth a plot against steps: has ``add_scalar(name, value, step)``.

        Raises:
          ValueError: for values outside these bounds.
        """
        if not every >= 0 or keep_checkpoints < 1:
            raise ValueError(f"need every >= 0 and keep_checkpoints >= 1, got {every} and {keep_checkpoints}")
        self.directory = None if directory is None else Path(directory).absolute()
        self.every, self.keep_checkpoints = every, keep_checkpoints
        self._show, self._line_every, self._series = show, line_every, series
        self._screen = _Screen() if live and show is not None else None  # of this job and of all made `within` it
        self._prefix = ""

    def within(self, name: str) -> "Job":
        """This job with "name: " before every line."""
        return self._changed(_prefix=f"{self._prefix}{name}: ")

    def _changed(self, **attributes) -> "Job":
        other = object.__new__(Job)
        other.__dict__ = {**self.__dict__, **attributes}
        return other

    def log(self, line: str) -> None:
        """Shows a line."""
        self._say(self._prefix + line)

    def _say(self, line: str) -> None:
        if self._screen is not None and self._screen.drawn:
            self._screen.bars.console.print(line, markup=False, highlight=False, soft_wrap=True)
        elif self._show is not None:
            self._show(line)

    @contextlib.contextmanager
    def progress(
        self, label: str, total: int, *, unit: str, each: int = 1, of: str = "", done: int = 0
    ) -> Iterator["Progress"]:
        """Gives a context in which ``total`` units of work are done, with rate and time left shown on the way.

        Args:
          label: says what the work is.
          total: its units.
          unit: of which kind, "step" say, in the singular.
          each: how many things a unit advances (runs that take a step together), for the rate.
          of: what they are called, "run" say.
          done: units that were done before.
        """
        label, how = f"{self._prefix}{label}", {"unit": unit, "each": each, "of": of, "done": done}
        if self._screen is None:
            yield Progress(self, label, total, **how)
            return
        with self._screen.bar(label, total, done) as bar:
            yield Progress(self, label, total, **how, bar=bar)

    def keep(self, name: str, compute: Callable[[], Result]) -> Result:
        """Returns the piece ``name``, from disk if it was finished before.

        Args:
          name: unique in the job.
          compute: its result is a tree that pieces.py can write, is not None, and depends on nothing but the job.
        """
        found = self.get(name)
        if found is None:
            found = compute()
            self.put(name, found)
        return found

    def get(self, name: str) -> Any:
        """Returns the piece ``name``, None if it was not finished; to be called on all processes in the same order."""
        if self.directory is None:
            return None
        found = pieces.read_piece(self._path(name)) if is_first_process() else None
        text = from_first_process(found and found.text.encode())
        arrays = from_first_process(found and found.arrays)
        if found is not None:
            return found.value
        return None if text is None or arrays is None else pieces.from_text(text.decode(), arrays)

    def put(self, name: str, value: Any) -> None:
        """Keeps a finished piece; a thread may do so."""
        if self.directory is not None and is_first_process():
            pieces.write_piece(self._path(name), value)

    def _path(self, name: str) -> Path:
        return self.directory / "pieces" / file_name(name)

    def map(
        self, compute: Callable[[list[int]], Iterable], names: Sequence[str], *, label: str, at_once: int = 1
    ) -> list[Any]:
        """Returns the results of many equal pieces of work, of which only the missing are computed, in the order of ``names``.

        Args:
          compute: takes ``at_once`` indices, gives their results, of which those that are asked for are read; no result may
            depend on which share a call. Where too few are left the last is asked for again: another number of them would be
            another program, with other roundings. It may give futures: they are kept when they are done, while the next results
            are computed.
          names: of the pieces, unique in the job.
          label: says what they are.
          at_once: indices in a call.
        """
        if len(set(names)) < len(names):
            raise ValueError(f"names of pieces must differ, got {list(names)}")
        results = [self.get(name) for name in names]
        missing = [i for i, found in enumerate(results) if found is None]
        if not missing:
            return results
        before = len(names) - len(missing)
        with self.progress(label, len(names), unit="", done=before) as progress:
            for first in range(0, len(missing), at_once):
                indices = missing[first : first + at_once]
                asked = indices + indices[-1:] * (at_once - len(indices))
                for i, result in zip(indices, compute(asked), strict=False):
                    if isinstance(result, Future):
                        result.add_done_callback(lambda done, name=names[i]: self.put(name, done.result()))
                    else:
                        self.put(names[i], result)
                    results[i] = result
                if any(results[i] is None for i in indices):
                    raise ValueError(
                        f"{label}: fewer results than the {len(indices)} that were asked for, or None among them"
                    )
                progress.update(before + first + len(indices))
        return [result.result() if isinstance(result, Future) else result for result in results]

    @contextlib.contextmanager
    def training(self, name: str) -> Iterator[TrainingCheckpoints]:
        """Returns the checkpoints of one training; everything is on disk when the context ends."""
        own = None if self.directory is None else self.directory / file_name(name)
        checkpoints = TrainingCheckpoints(own, name=name, every=self.every, keep=self.keep_checkpoints)
        try:
            yield checkpoints
        finally:
            checkpoints.close()

    def keep_result(self, name: str, train: Callable[["Job"], Result]) -> Result:
        """Does as `keep` with a training: its checkpoints are deleted once the piece is kept.

        Args:
          name: unique in the job.
          train: trains with the job that it is given, and reduces the result to little.
        """
        directory = self.directory and self.directory / "unfinished"
        found = self.keep(name, lambda: train(self._changed(directory=directory)))
        if directory is not None and is_first_process():
            shutil.rmtree(directory, ignore_errors=True)
        return found

    def is_same(self, name: str, description: Any) -> bool:
        """Says whether ``description``, JSON-ready, is what it was when the job first asked: what no setting or file says."""
        text = json.dumps(description)
        return self.keep(f"first {name}", lambda: text) == text


class _Screen:
    """The bars on a terminal: one display, however many pieces of work, one within another, are shown at a time."""

    def __init__(self):
        columns = bars.TextColumn("{task.description}"), bars.BarColumn(bar_width=24), bars.MofNCompleteColumn()
        self.bars = bars.Progress(*columns, bars.TextColumn("{task.fields[note]}"), console=Console(), transient=True)
        self.drawn = 0

    @contextlib.contextmanager
    def bar(self, label: str, total: int, done: int) -> Iterator[Callable[[int, str], None]]:
        """A context with a bar of its own, and the function that moves it to so many units and writes a note beside it."""
        if not self.drawn:
            self.bars.start()
        self.drawn += 1
        task = self.bars.add_task(label, total=total, completed=done, note="")
        try:
            yield lambda done, note: self.bars.update(task, completed=done, note=note)
        finally:
            self.bars.remove_task(task)
            self.drawn -= 1
            if not self.drawn:
                self.bars.stop()


NO_JOB = Job()


class Progress:
    """Shows how far one piece of work is; made by `Job.progress`."""

    def __init__(self, job: Job, label: str, total: int, *, unit: str, each: int, of: str, done: int, bar=None):
        self._job, self._label, self._total, self._unit, self._each = job, label, total, unit, each
        self._rate_of = f"{of}-{unit}s" if of else f"{unit}s" if unit else ""
        self._first = done
        self._begin = self._last = time.perf_counter()
        self._bar: Callable[[int, str], None] | None = bar

    def restart(self, done: int) -> None:
        """Begins to measure anew, from ``done`` units."""
        self._first, self._begin = done, time.perf_counter()

    def update(self, done: int, **numbers: float) -> None:
        """Says that ``done`` units of all are done, and shows some numbers, by name, that were met on the way."""
        now = time.perf_counter()
        rate = (done - self._first) / max(now - self._begin, 1e-9)
        series = self._job._series
        if series is not None:
            for name, value in {**numbers, "rate": rate * self._each}.items():
                series.add_scalar(f"{self._label}/{name}", value, done)
        note = _note(numbers, rate * self._each, (self._total - done) / max(rate, 1e-9), self._rate_of)
        if self._bar is not None:
            self._bar(done, note)
        if done == self._total or (self._bar is None and now - self._last >= self._job._line_every):
            self._last = now
            self._job._say(f"{self._label}: {self._unit and self._unit + ' '}{done}/{self._total}, {note}")


def _note(numbers: dict[str, float], rate: float, seconds: float, rate_of: str) -> str:
    named = [f"{name} {value:.4f}" for name, value in numbers.items()]
    speed = f"{rate:,.0f}" if rate >= 100 else f"{rate:.2g}"
    return ", ".join([*named, f"{speed}{rate_of and ' ' + rate_of}/s", f"{seconds:.0f} s left"])


def printing(line: str) -> None:
    """Prints a line at once: the usual ``show`` of a job."""
    print(line, flush=True)


def is_live_terminal() -> bool:
    """Says whether a bar can be drawn: a terminal, and not a notebook."""
    return sys.stdout.isatty() and not Console().is_jupyter


def file_name(name: str) -> str:
    """Returns a file name that is readable and without collisions."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{zlib.crc32(name.encode()):08x}"
