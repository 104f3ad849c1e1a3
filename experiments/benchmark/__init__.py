r"""How fast is this, side by side with what a user would run instead?

Every row is a ratio of times measured in turn (A B A B ...) in one process, after both sides have run once: the median over
rounds of theirs / ours, with the smallest and largest round. Both sides do the same mathematics in the same precision, with
noise of its own for every run and sample; what each pair was checked to agree in is a column. The opponents are a PyTorch user
(opponents.py: fused Adam, no host synchronisation, the best of eager and compiled; on a CPU of 1 thread and all, on a GPU of
CUDA graphs too), a NumPy loop (numpy_loop.py), the straightforward `lax.scan`, and the expensive way to the same answer.

    python -m experiments.benchmark                            # all; needs PyTorch: pip install -e '.[bench]'
    python -m experiments.benchmark --only=table,law           # no PyTorch needed
    python -m experiments.benchmark --spectrum=cifar10.npy     # another spectrum for the table
    python -m experiments.benchmark --runs=1024 --bound_runs=64,1024,4096 --precision=bfloat16     # on a GPU

All of it takes 20 minutes on two cores; its table is in README.md. Goals that were missed: MLPs 3.8 times a PyTorch loop (4)
and 1.8 times torch.func.vmap (2), linear scores 2.5 times vmap (3), the exact law 313 times our own sampler (1000; 1182 times
NumPy).

"Run after run" is one process, with the better of 1 thread and all; two processes of one thread would use two cores as well.
What favours PyTorch: unpadded latents in its loop, no decay of the rate, no freezing of a run that diverges. Float32 is float32
on its side: no TF32, in convolutions neither. A variant of it that fails is reported, and the others compete; a contest that
fails for want of memory is reported, and the others are held.

Timings are what this experiment is about, and they vary: they are in metadata.json ("measured"). records.jsonl holds what
does not: what was compared, at which sizes, with which options, and how well the sides agree. table.json holds what a page
about speed shows: the table's rows, the device, the precision and the versions. A second start prints what was measured before;
--overwrite measures again.
"""

import dataclasses
import gc
import time
from collections.abc import Callable, Sequence

import jax
import numpy as np

from ldmjax import devices
from ldmjax.checkpoints import NOTHING_KEPT, Store

PAUSE = 0.2  # seconds between two measurements: threads of the side before stop spinning
LEAST_SECONDS = 0.1


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to measure.

    Attributes:
      only: names of contests, keys of `contests.CONTESTS`.
      rounds: of each pair, >= 1.
      runs: trained at once.
      steps: of training a round, for the MLP; linear scores take twenty times as many.
      samples: of the sampling contests.
      sampling_steps: of their chains.
      precision: of the U-Nets' activations and products, "float32" or "bfloat16".
      spectrum: ``[D]``, all above 0, of the discretisation table.
    """

    only: tuple[str, ...]
    rounds: int
    runs: int
    steps: int
    samples: int
    sampling_steps: int
    precision: str
    spectrum: np.ndarray


@dataclasses.dataclass(frozen=True, kw_only=True)
class Sides:
    """Two ways to one result, as they are prepared.

    Attributes:
      unit: of work.
      options: how ours was done, as far as that is a choice.
      opponent: which variant of theirs was the fastest.
      agreement: how far the results differ, in the unit that ``agreement_in`` names.
      agreement_in: the comparison, in words.
      peak_bytes: memory (ours, theirs) where that is compared too.
      cold_seconds: of our first call, with compilation, where that is of interest.
    """

    unit: str
    options: str
    opponent: str
    agreement: float
    agreement_in: str
    peak_bytes: tuple[float, float] | None = None
    cold_seconds: float | None = None


Timer = Callable[[], float]  # does the work, returns seconds per unit


@dataclasses.dataclass(frozen=True, kw_only=True)
class Contest:
    """One row of the table: ``sides`` prepares (ours, theirs, facts); ``goal`` bounds the ratio theirs / ours."""

    what: str
    against: str
    goal: float
    sides: Callable[[Config, Callable[[str], None]], tuple[Timer, Timer, Sides]]
    needs_torch: bool = False
    goal_is_ceiling: bool = False


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """A contest that was held: ``ours`` and ``theirs`` are seconds per unit, round by round."""

    name: str
    ours: list[float]
    theirs: list[float]
    sides: Sides

    @property
    def ratios(self) -> np.ndarray:
        """Theirs over ours ``[rounds]``."""
        return np.array(self.theirs) / np.array(self.ours)


def hold(name: str, contest: Contest, config: Config, report: Callable[[str], None]) -> Outcome:
    """Prepares both sides, runs each once unmeasured, then in turn."""
    begin = time.perf_counter()
    *timers, sides = contest.sides(config, report)
    seconds = [], []
    for round_number in range(-1, config.rounds):
        for timer, kept in zip(timers, seconds, strict=True):
            gc.collect()
            time.sleep(PAUSE)
            kept.append(timer())
        if round_number >= 0:
            ratio = seconds[1][-1] / seconds[0][-1]
            elapsed = time.perf_counter() - begin
            report(f"{name}: round {round_number + 1}/{config.rounds}, ratio {ratio:.3g}, {elapsed:.0f} s so far")
    return Outcome(name=name, ours=seconds[0][1:], theirs=seconds[1][1:], sides=sides)


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


def run(
    contests: dict[str, Contest],
    config: Config,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> tuple[list[Outcome], dict[str, str]]:
    """Holds the contests asked for; the function behind the command.

    Args:
      contests: by name.
      config: what to measure.
      report: receives progress lines.
      store: keeps finished contests.

    Returns:
      The outcomes, and for each contest that could not be held the reason.
    """
    outcomes, skipped = [], {}
    for name in config.only:
        if contests[name].needs_torch and (reason := missing_torch()):
            skipped[name] = reason
            report(f"{name}: skipped, {reason}")
            continue
        try:
            outcomes.append(store.piece(name, lambda name=name: hold(name, contests[name], config, report)))
        except Exception as error:
            if not others_go_on(error):
                raise
            skipped[name] = reason_of(error)
            report(f"{name}: skipped, {skipped[name]}")
    return outcomes, skipped


def missing_torch() -> str:
    """Why there is no PyTorch to compare with on this device; empty if there is."""
    try:
        import torch
    except (ImportError, OSError) as error:
        return f"needs PyTorch, pip install -e '.[bench]' ({error})"
    if jax.default_backend() == "gpu" and not torch.cuda.is_available():
        return "needs a PyTorch with CUDA: this one sees no GPU"
    return ""


def make_records(outcomes: Sequence[Outcome], contests: dict[str, Contest], config: Config) -> list[dict]:
    """What does not vary from run to run on one machine, an object per contest."""
    sizes = {
        f.name: getattr(config, f.name)
        for f in dataclasses.fields(Config)
        if f.name not in ("only", "spectrum", "precision")
    }
    return [
        {
            "contest": o.name,
            "what": contests[o.name].what,
            "against": contests[o.name].against,
            "goal": contests[o.name].goal,
            "unit": o.sides.unit,
            "options": o.sides.options,
            "agreement": o.sides.agreement,
            "agreement_in": o.sides.agreement_in,
            **sizes,
            "precision": config.precision if o.name.startswith("unet") else "float32",
            "components": len(config.spectrum),
            "products": devices.product_precision(),
        }
        for o in outcomes
    ]
