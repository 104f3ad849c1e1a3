"""What is kept of larger work: many equal jobs, of which only the missing are computed, and trainings that end in a piece."""

import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from ldmjax.checkpoints import Store
from ldmjax.devices import is_first_process

SECONDS_BETWEEN_LINES = 5.0


def finish(
    names: Sequence[str],
    compute: Callable[[list[int]], Iterable],
    *,
    store: Store,
    label: str,
    report: Callable[[str], None],
    at_once: int,
) -> list[Any]:
    """The results of all jobs, in the order of ``names``.

    Args:
      names: of the pieces, unique in the store.
      compute: takes ``at_once`` indices of jobs, gives their results, of which those that are asked for are read; no result may
        depend on which jobs share a call. Where too few are left the last is asked for again: another number of jobs
        would be another program, with other roundings.
      store: where results are kept.
      label: says what the jobs are.
      report: receives a line after the last job, and every few seconds before.
      at_once: jobs in a call.
    """
    results = [store.get(name) for name in names]
    missing = [i for i, found in enumerate(results) if found is None]
    begin = time.perf_counter()
    last = begin
    for first in range(0, len(missing), at_once):
        indices = missing[first : first + at_once]
        asked = indices + indices[-1:] * (at_once - len(indices))
        for i, result in zip(indices, compute(asked), strict=False):
            store.put(names[i], result)
            results[i] = result
        left, now = len(missing) - first - len(indices), time.perf_counter()
        if now - last >= SECONDS_BETWEEN_LINES or not left:
            rate, last = (len(missing) - left) / (now - begin), now
            report(f"{label}: {len(names) - left}/{len(names)}, {rate:.2g}/s, {left / rate:.0f} s left")
    return results


def after_training(name: str, compute: Callable[[Store], Any], *, store: Store) -> Any:
    """The piece ``name``; the checkpoints of the training behind it are deleted once it is kept.

    Args:
      name: unique in the store.
      compute: trains, with the store that it is given, and reduces the result to little.
      store: where the piece is kept.
    """
    directory = store.directory and store.directory / "unfinished"
    found = store.piece(name, lambda: compute(Store(directory, every=store.every, keep=store.keep)))
    if directory is not None and is_first_process():
        shutil.rmtree(directory, ignore_errors=True)
    return found
