"""Steps: processes with a time limit, one after the other, whose results are written as soon as they are there."""

import contextlib
import dataclasses
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldmjax import records

GRACE = 10.0  # seconds between SIGTERM, after which a job saves, and SIGKILL
LAST_LINES = 8
ROOT = Path(__file__).parent.parent.parent


class NotDoneError(Exception):
    """A step without which nothing can go on was not done; the message is a line that says why."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """A process that measures something.

    Attributes:
      stage: it belongs to.
      name: unique in its stage.
      folder: its own, kept until it is done, in which it goes on if it was stopped.
      words: what Python gets.
      needs: seconds; with less left it is not started.
      limit: seconds after which it is ended.
      read: gives what it measured, as JSON can hold it; OSError, ValueError or KeyError if that is not there.
      environment: variables of its own.
    """

    stage: str
    name: str
    folder: Path
    words: tuple[str, ...]
    needs: float
    limit: float
    read: Callable[[], Mapping[str, Any]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What was measured so far, in ``workdir``: results.json with all of it, STAGE.json with what a stage measured.

    Attributes:
      workdir: for these files.
      facts: what all results have in common.
      steps: ``{stage: {step: {"status", "seconds", "resumed", "result", "lines"}}}``.
    """

    workdir: Path
    facts: dict[str, Any]
    steps: dict[str, dict[str, dict]]

    @classmethod
    def in_workdir(cls, workdir: Path, facts: dict[str, Any], *, overwrite: bool = False) -> "Results":
        """Those that are there, or none if there are none or they are to be overwritten.

        Raises:
          ValueError: with a reason, if they are not of the same facts.
        """
        if overwrite:
            return cls(workdir=workdir, facts=facts, steps={})
        try:
            held = json.loads((workdir / "results.json").read_text())
            known, steps = held["facts"], held["steps"]
        except FileNotFoundError:
            return cls(workdir=workdir, facts=facts, steps={})
        except (ValueError, KeyError, TypeError):
            raise ValueError("its results.json is damaged") from None
        changed = [name for name in facts if known.get(name) != facts[name]]
        if changed:
            raise ValueError(f"holds results with another {' and '.join(changed)}")
        return cls(workdir=workdir, facts=facts, steps=steps)

    def is_done(self, step: Step) -> bool:
        """Whether the step was finished; one that failed or was stopped is started again."""
        return self.steps.get(step.stage, {}).get(step.name, {}).get("status") == "done"

    def add(self, step: Step, outcome: Mapping[str, Any]) -> None:
        """Writes the step's outcome; each file whole or not at all."""
        self.steps.setdefault(step.stage, {})[step.name] = records.plain(outcome)
        for name, steps in ((step.stage, self.steps[step.stage]), ("results", self.steps)):
            text = json.dumps({"facts": self.facts, "steps": steps}, indent=1)
            records.write_text(self.workdir / f"{name}.json", text + "\n")


def run_all(
    steps: Sequence[Step],
    results: Results,
    *,
    seconds: float = math.inf,
    kept: Mapping[str, float] | None = None,
    report: Callable[[str], None] = print,
) -> None:
    """Runs what is not done, as long as there is time.

    Args:
      steps: in the order of their worth.
      results: get what each measured.
      seconds: for all of them.
      kept: share of these seconds, by stage, that steps of earlier stages leave to it as long as it has steps to do.
      report: receives a line or more for each.
    """
    begin = time.monotonic()
    kept_seconds = {stage: share * seconds for stage, share in (kept or {}).items()}
    for i, step in enumerate(steps):
        later = {other.stage for other in steps[i:] if not results.is_done(other)} - {step.stage}
        left = begin + seconds - time.monotonic() - sum(kept_seconds.get(stage, 0.0) for stage in later)
        label = f"{step.stage}, {step.name}"
        if results.is_done(step):
            report(f"{label}: done before")
        elif left < step.needs:
            report(f"{label}: skipped, {max(0.0, left):.0f} s left, needs {step.needs:.0f}")
        else:
            outcome = run_step(step, seconds=min(step.limit, left - GRACE))
            results.add(step, outcome)
            report(f"{label}: {outcome['status']}, {outcome['seconds']:.1f} s{' (resumed)' * outcome['resumed']}")
            for line in outcome["lines"]:
                report(f"    {line}")
            if outcome["status"] == "done":
                shutil.rmtree(step.folder)


def run_step(step: Step, *, seconds: float = math.inf) -> dict[str, Any]:
    """Runs one step; never raises because of it.

    Args:
      step: to run.
      seconds: after which it is ended.

    Returns:
      "status" ("done", "failed" or "stopped"), "seconds", whether it "resumed" what an earlier start left, "result" (of a
      step that was stopped what there is, or None) and, unless it is done, the last "lines" of its output.
    """
    resumed = step.folder.exists()
    step.folder.mkdir(parents=True, exist_ok=True)
    output, begin = step.folder / "output.txt", time.monotonic()
    with open(output, "w") as written, started(step, written) as process:
        try:
            code = process.wait(None if math.isinf(seconds) else seconds)
        except subprocess.TimeoutExpired:
            code = None
    took = time.monotonic() - begin
    lines = output.read_text(errors="replace").splitlines()[-LAST_LINES:]
    status = "stopped" if code is None else "failed" if code else "done"
    try:
        result = step.read()
    except (OSError, ValueError, KeyError) as error:
        result = None
        if status == "done":
            status, lines = "failed", [*lines, f"nothing to read: {error!r}"]
    return {
        "status": status, "seconds": took, "resumed": resumed, "result": result,
        "lines": [] if status == "done" else lines,
    }  # fmt: skip


def must_run(step: Step, *, seconds: float = math.inf) -> dict[str, Any]:
    """As `run_step`, for a step without which nothing can go on.

    Raises:
      NotDoneError: if it was not done, with the last line of its output.
    """
    outcome = run_step(step, seconds=seconds)
    if outcome["status"] != "done":
        last = next((line.strip() for line in reversed(outcome["lines"]) if line.strip()), "it printed nothing")
        raise NotDoneError(
            f"{step.stage}, {step.name}: {outcome['status']}: {last} (its output is in {step.folder / 'output.txt'})"
        )
    return outcome


@contextlib.contextmanager
def started(step: Step, output):
    """The step's process, in a session of its own; it and all that it started have ended when the context is left."""
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, *step.words], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT,
        env=environment, start_new_session=True,
    )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
