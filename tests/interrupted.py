"""Runs a job that is interrupted at given lines and started again, for tests that it ends as if it had been left alone."""

from collections.abc import Callable, Sequence

import pytest

from ldmjax.job import Job


class Interruption(Exception):
    """What stops a job in the middle."""


def run_in_sessions(run: Callable[[Job], object], directory, *, at: Sequence[str | int]):
    """Calls ``run(job)`` once for each of ``at``, stopped at the first line that holds it or so many lines, then to its end.

    Returns:
      What the last call returned, and its lines.
    """
    for words in at:
        seen = []

        def stop(line, words=words, seen=seen):
            seen.append(line)
            if words in line if isinstance(words, str) else len(seen) >= words:
                raise Interruption

        with pytest.raises(Interruption):
            run(Job(directory, every=0.0, show=stop, line_every=0.0))
    lines = []
    return run(Job(directory, every=0.0, show=lines.append, line_every=0.0)), lines
