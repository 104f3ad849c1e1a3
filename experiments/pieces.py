"""What is kept of larger work: many equal jobs, of which only the missing are computed, and trainings that end in a piece."""

import shutil
from collections.abc import Callable, Sequence
from typing import Any

import jax

from ldmjax.checkpoints import Store
from ldmjax.devices import is_first_process


def finish(
    names: Sequence[str],
    compute: Callable[[list[int]], Sequence],
    *,
    store: Store,
    at_once: int | None = None,
    report: Callable[[int], None] = lambda done: None,
) -> list[Any]:
    """The results of all jobs, in the order of ``names``.

    Args:
      names: of the pieces, unique in the store.
      compute: takes indices of jobs, gives their results; no result may depend on which jobs share a call.
      store: where results are kept.
      at_once: most jobs in a call; by default one for each device.
      report: gets the number of finished jobs after each call.
    """
    results = [store.get(name) for name in names]
    missing = [i for i, found in enumerate(results) if found is None]
    size = at_once or jax.device_count()
    for first in range(0, len(missing), size):
        indices = missing[first : first + size]
        for i, result in zip(indices, compute(indices), strict=True):
            store.put(names[i], result)
            results[i] = result
        report(len(names) - len(missing) + first + len(indices))
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
