"""Steps: processes with a time limit, one after the other, whose results are kept as soon as they are there."""

import contextlib
import dataclasses
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
from ldmjax.job import Job

GRACE = 10.0  # seconds between SIGTERM, after which a job saves, and SIGKILL
LAST_LINES = 8
ROOT = Path(__file__).parent.parent.parent


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
      read: gives what it measured, from its folder; OSError, ValueError or KeyError if that is not there.
      environment: variables of its own.
    """

    stage: str
    name: str
    folder: Path
    words: tuple[str, ...]
    needs: float
    limit: float
    read: Callable[[Path], Mapping[str, Any]]
    environment: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        """Names it among the steps of all stages."""
        return f"{self.stage}, {self.name}"


def run_all(
    steps: Sequence[Step],
    found: dict[str, dict],
    *,
    save: Callable[[], None],
    seconds: float,
    kept: Mapping[str, float],
    job: Job,
) -> None:
    """Runs what is not done, as long as there is time; a step that failed or was stopped is started again.

    Args:
      steps: in the order of their worth.
      found: what was measured by label of its step, `run_step`'s row; gets more.
      save: is called after every step.
      seconds: for all of them.
      kept: share of these seconds, by stage, that steps of earlier stages leave to it as long as it has steps to do.
      job: shows a line or more for each.
    """
    end = time.monotonic() + seconds

    def is_done(step):
        return found.get(step.label, {}).get("status") == "done"

    for i, step in enumerate(steps):
        later = {other.stage for other in steps[i:] if not is_done(other)} - {step.stage}
        left = end - time.monotonic() - sum(kept.get(stage, 0.0) * seconds for stage in later)
        if is_done(step):
            job.log(f"{step.label}: done before")
        elif left < step.needs:
            job.log(f"{step.label}: skipped, {max(0.0, left):.0f} s left, needs {step.needs:.0f}")
        else:
            row = found[step.label] = run_step(step, seconds=min(step.limit, left - GRACE))
            save()
            job.log(f"{step.label}: {row['status']}, {row['seconds']:.1f} s{' (resumed)' * row['resumed']}")
            for line in row["lines"]:
                job.log(f"    {line}")


def run_step(step: Step, *, seconds: float | None = None) -> dict[str, Any]:
    """Runs one step; never raises because of it. Its folder is deleted when it is done.

    Args:
      step: to run.
      seconds: after which it is ended.

    Returns:
      "stage", "step", "status" ("done", "failed" or "stopped"), "seconds", whether it "resumed" what an earlier start left,
      "result" (of a step that was stopped what there is, or None) and, unless it is done, the last "lines" of its output.
    """
    resumed, output, begin = step.folder.exists(), step.folder / "output.txt", time.monotonic()
    step.folder.mkdir(parents=True, exist_ok=True)
    with open(output, "w") as written, _started(step, written) as process:
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
    took, result = time.monotonic() - begin, None
    lines = output.read_text(errors="replace").splitlines()[-LAST_LINES:]
    status = "stopped" if code is None else "failed" if code else "done"
    try:
        result = records.plain(step.read(step.folder))
    except (OSError, ValueError, KeyError) as error:
        if status == "done":
            status, lines = "failed", [*lines, f"nothing to read: {error!r}"]
    if status == "done":
        shutil.rmtree(step.folder)
    row = {"stage": step.stage, "step": step.name, "status": status, "seconds": took, "resumed": resumed}
    return {**row, "result": result, "lines": [] if status == "done" else lines}


def result_of(step: Step) -> Any:
    """What a step measures without which nothing can go on: the command ends with a line if it was not done."""
    row = run_step(step, seconds=step.limit)
    if row["status"] != "done":
        last = next((line.strip() for line in reversed(row["lines"]) if line.strip()), "it printed nothing")
        sys.exit(f"error: {step.label}: {row['status']}: {last} (its output is in {step.folder / 'output.txt'})")
    return row["result"]


@contextlib.contextmanager
def _started(step: Step, output):
    """The step's process, in a session of its own; it and all that it started have ended when the context is left."""
    environment = {**os.environ, **step.environment, "PYTHONUNBUFFERED": "1"}
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT}
    process = subprocess.Popen([sys.executable, *step.words], **streams, env=environment, start_new_session=True)
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
