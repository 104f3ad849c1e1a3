"""Runs a job that is interrupted at given lines and started again, for tests that it ends as if it had been left alone."""

from collections.abc import Callable, Sequence

import pytest


class Interruption(Exception):
    """What stops a job in the middle."""


def lines_until(words: str) -> tuple[list[str], Callable[[str], None]]:
    """A list, and a report that adds lines to it and stops the job, as Ctrl-C does, at the first that holds ``words``."""
    lines = []

    def report(line):
        lines.append(line)
        if words and words in line:
            raise KeyboardInterrupt

    return lines, report


def run_in_sessions(run: Callable, directory, *, at: Sequence[str]):
    """Calls ``run(report, store)`` once for each of ``at``, stopped at the first line that holds it, then to its end.

    Returns:
      What the last call returned, and its lines.
    """
    for words in at:

        def report(line, words=words):
            if words in line:
                raise Interruption

        with pytest.raises(Interruption):
            run(report, Store(directory, every=0.0))
    lines = []
    return run(lines.append, Store(directory, every=0.0)), lines
