"""Which way of running it makes the PyTorch side fastest."""

import functools
from collections.abc import Callable, Sequence

import torch

from experiments.benchmark import opponents
from experiments.benchmark.contest import NotHeldError, Timer, reason_of
from ldmjax.job import Job

TRIAL_STEPS = 20  # at most half of those that are timed, and at least one
COMPILERS = {"eager": None, "compiled": "default", "CUDA graphs": "reduce-overhead"}


def fastest(
    function: Callable,
    seconds: Callable[[Callable, int], float],
    steps: int,
    *,
    what: str,
    unit: str,
    job: Job,
    thread_counts: Sequence[int],
) -> tuple[Timer, str]:
    """The fastest variant as a function that gives seconds per unit of work, and its name.

    On a CPU the variants are eager and compiled, with each number of threads; on a GPU eager, compiled and CUDA graphs. One
    that fails gives a line and does not compete.

    Args:
      function: what a variant compiles.
      seconds: maps (variant of it, steps) to seconds per unit.
      steps: to be timed later; here a quarter of them.
      what: is done, for the lines.
      unit: of work.
      job: shows a line per variant.
      thread_counts: of a CPU.

    Raises:
      NotHeldError: if every variant failed.
    """

    def on_threads(threads, used, steps):
        if threads is not None:
            torch.set_num_threads(threads)
        return seconds(used, steps)

    on_cuda, trials, failures = opponents.DEVICE == "cuda", {}, []
    for threads in [None] if on_cuda else sorted(set(thread_counts)):
        torch._dynamo.reset()  # a compiled function is kept for one number of threads, and not too many shapes
        for name in COMPILERS if on_cuda else ("eager", "compiled"):
            label = f"{name}, cuda" if on_cuda else f"{name}, cpu, {threads} thread{'s' * (threads > 1)}"
            mode = COMPILERS[name]
            used = function if mode is None else torch.compile(function, dynamic=False, mode=mode)
            work = functools.partial(on_threads, threads, used)
            try:
                trials[label] = work(max(TRIAL_STEPS if steps > 2 * TRIAL_STEPS else 1, steps // 4)), work
                job.log(f"  PyTorch {what}, {label}: {1 / trials[label][0]:.3g} {unit}s/s")
            except Exception as error:  # what compilers, graphs and allocators raise has no common class
                failures.append(f"{label}: {reason_of(error)}")
                job.log(f"  PyTorch {what}, {label}: failed, {reason_of(error)}")
            opponents.release_memory()
    if not trials:
        raise NotHeldError(f"every PyTorch variant failed: {'; '.join(failures)}")
    best = min(trials, key=lambda label: trials[label][0])
    return functools.partial(trials[best][1], steps), best
