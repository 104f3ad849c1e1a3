"""A job: one experiment with its flags, which owns a workdir, goes on where it was stopped, and is refused to mix with another.

``checkpoints/job.json`` in the workdir says what the job is: the experiment, its flags, sha256 of the files that they name,
of the code, and library versions. Whoever starts a job with the same answers continues it; any other is refused.
"""

import atexit
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import flags

import experiments
import ldmjax
from experiments import plans
from experiments.flags import command_line
from experiments.flags.errors import UsageError, bad
from experiments.flags.parsers import define_float, define_integer, define_switch, define_word
from ldmjax import devices, records
from ldmjax.checkpoints import Store

FLAGS = flags.FLAGS
LOG = logging.getLogger("ldmjax")
RESULTS = ("flags.txt", "metadata.json", "records.jsonl", "curves.npz", "recommend.json")
WAYS_OUT = "the flags of the job resume it, --overwrite starts anew, another --workdir keeps both"
PROCESS_FLAGS = ("coordinator_address", "num_processes", "process_id")
# They say how a job is run, not what it computes.
HOW = ("workdir", "overwrite", "checkpoint_every", "keep_checkpoints", "dry_run", *PROCESS_FLAGS)


def define_job_flags() -> None:
    """--overwrite, --dry_run, --deterministic, --checkpoint_every, --keep_checkpoints, and those of several processes."""
    define_switch("overwrite", False, "Deletes the results in --workdir and starts anew.")
    define_switch("dry_run", False, "Prints the plan (runs, programs, time, where results go) and ends.")
    define_switch(
        "deterministic",
        False,
        "On a GPU only kernels that give the same bits every time; slower. A CPU needs no switch.",
    )
    define_float("checkpoint_every", 30.0, "Seconds of training between checkpoints.", low=0.0, high=1e6)
    define_integer("keep_checkpoints", 2, "Newest checkpoints kept of each training.", low=1, high=1000)
    define_word(
        "coordinator_address",
        None,
        "For several processes outside SLURM: where process 0 listens.",
        allowed="HOST:PORT",
        check=_check_address,
    )
    define_integer("num_processes", None, "With --coordinator_address: their number.", low=1, high=100_000)
    define_integer("process_id", None, "With --coordinator_address: number of this one.", low=0, high=99_999)


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not HOST:PORT")


def join_processes() -> None:
    """Prepares JAX, with all processes of the job; only the first one's output is seen."""
    given = [FLAGS[name].value is not None for name in PROCESS_FLAGS]
    if any(given) and not all(given):
        flag = next(name for name in PROCESS_FLAGS if FLAGS[name].value is not None)
        raise bad(flag, FLAGS[flag].value, f"allowed only together with {', '.join(f'--{n}' for n in PROCESS_FLAGS)}")
    if all(given) and FLAGS.process_id >= FLAGS.num_processes:
        raise bad("process_id", FLAGS.process_id, f"must be 0..{FLAGS.num_processes - 1}, below --num_processes")
    devices.start(
        coordinator_address=FLAGS.coordinator_address,
        num_processes=FLAGS.num_processes,
        process_id=FLAGS.process_id,
        deterministic=FLAGS.deterministic,
    )
    if not devices.is_first_process():
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        LOG.setLevel(logging.ERROR)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Job:
    """What an experiment works with.

    Attributes:
      workdir: for its results; on all but the first process a directory that is thrown away.
      store: for checkpoints and finished pieces.
    """

    workdir: Path
    store: Store

    @staticmethod
    def report(line: str) -> None:
        """Prints a progress line at once."""
        print(line, flush=True)


def open_job(plan: Callable[[], Sequence[plans.Stage]]) -> Job:
    """Takes --workdir for this job, or refuses it; writes flags.txt, which reruns the experiment with --flagfile.

    With --dry_run prints the plan instead, and ends.

    Args:
      plan: gives the stages of the job.

    Raises:
      UsageError: if the workdir cannot be written, holds another job, or is in use.
    """
    if FLAGS.dry_run:
        print(plans.table(plan(), workdir=FLAGS.workdir))
        raise SystemExit(0)
    problem = None
    if devices.is_first_process():
        try:
            _claim(Path(FLAGS.workdir))
        except UsageError as error:
            problem = str(error)
    if problem := devices.from_first_process(problem and problem.encode()):
        raise UsageError(problem.decode())
    workdir = Path(FLAGS.workdir)
    if not devices.is_first_process():
        workdir = Path(tempfile.mkdtemp(prefix="ldmjax-"))
        atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    store = Store(workdir / "checkpoints", every=FLAGS.checkpoint_every, keep=FLAGS.keep_checkpoints)
    return Job(workdir=workdir, store=store)


def _claim(workdir: Path) -> None:
    try:
        records.prepare_workdir(workdir)
    except ValueError as error:
        raise bad("workdir", workdir, str(error)) from error
    _lock(workdir)
    asked, held = describe_job(), _read_job(workdir)
    # A kill may leave half a description of a job that had not begun.
    if held is None and {path.name for path in (workdir / "checkpoints").iterdir()} - {"lock", "job.json.partial"}:
        raise bad(
            "workdir", workdir, "its checkpoints/ are not of a job that is known: delete them, or use another --workdir"
        )
    if FLAGS.overwrite:
        _delete_results(workdir)
    elif held is None and (workdir / "records.jsonl").exists():
        raise bad("workdir", workdir, f"holds results of an unknown job: {WAYS_OUT}")
    elif held is not None and held != asked:
        raise UsageError(_difference(workdir, held, asked))
    records.write_text(_job_file(workdir), json.dumps(asked, indent=1))
    own, common = command_line.experiment_flags()
    lines = sorted(f.serialize() for f in own + common if f.name not in HOW and f.value is not None)
    records.write_text(workdir / "flags.txt", "".join(line + "\n" for line in lines))


def experiment_name() -> str:
    """The module that runs, without the package's name."""
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else Path(sys.argv[0]).stem
    return name.removeprefix("experiments.").removesuffix(".__main__")


def describe_job() -> dict:
    """What a job is; two jobs with equal descriptions give equal results on one machine."""
    own, common = command_line.experiment_flags()
    values = {f.name: f.serialize() or f"--{f.name} not given" for f in own + common if f.name not in HOW}
    texts = {f.name: f.value for f in own + common if isinstance(f.value, str) and f.name not in HOW}
    return {
        "experiment": experiment_name(),
        "flags": values,
        "files": {name: digest for name, value in texts.items() if (digest := _digest_of(Path(value)))},
        "code": _code_digest(),
        "versions": records.versions(),
    }


def _digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and sizes of all files below a directory; empty if there is no such path."""
    if path.is_file():
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    listing = [f"{p.relative_to(path)} {p.stat().st_size}" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest() if path.is_dir() else ""


def _code_digest() -> str:
    """sha256 of the sources of library and experiments."""
    total = hashlib.sha256()
    for package in (ldmjax, experiments):
        for source in sorted(Path(package.__file__).parent.rglob("*.py")):
            total.update(source.read_bytes())
    return total.hexdigest()


def _difference(workdir: Path, held: dict, asked: dict) -> str:
    """One line that names what differs."""
    if set(held) != set(asked):
        return f"flag --workdir={workdir}: its checkpoints/job.json is damaged: --overwrite starts anew"
    if held["experiment"] != asked["experiment"]:
        return f"flag --workdir={workdir}: holds results of experiments.{held['experiment']}: {WAYS_OUT}"
    theirs, ours = held["flags"], asked["flags"]
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if changed:
        now = ", ".join(ours.get(name, f"no --{name}") for name in changed)
        then = ", ".join(theirs.get(name, f"no --{name}") for name in changed)
        return f"flag {now}: the job in --workdir={workdir} has {then}: {WAYS_OUT}"
    for name, digest in asked["files"].items():
        if held["files"].get(name) != digest:
            return f"flag {ours[name]}: its contents have changed since the job in --workdir={workdir}: {WAYS_OUT}"
    versions = {name: v for name, v in held["versions"].items() if asked["versions"].get(name) != v}
    code = ", ".join(f"{name} {v}" for name, v in versions.items()) or "another state of ldmjax's code"
    return f"flag --workdir={workdir}: holds results of {code}: {WAYS_OUT}"


def _job_file(workdir: Path) -> Path:
    return workdir / "checkpoints" / "job.json"


def _read_job(workdir: Path) -> dict | None:
    """What `describe_job` gave; {} for something else, None for nothing."""
    try:
        found = json.loads(_job_file(workdir).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _delete_results(workdir: Path) -> None:
    """What jobs write; figures only where a job is known to have been."""
    figures = workdir.glob("*.png") if _job_file(workdir).exists() else ()
    for path in [*figures, *(workdir / name for name in RESULTS)]:
        path.unlink(missing_ok=True)
    for path in (workdir / "checkpoints").iterdir():
        if path.is_dir():
            shutil.rmtree(path)
    # Last: until here a kill leaves a job that is known, and that --overwrite deletes.
    _job_file(workdir).unlink(missing_ok=True)


_LOCKS: list[int] = []  # open as long as the process lives: the system drops them with it, however it ends


def _lock(workdir: Path) -> None:
    """Refuses a workdir that another process works in."""
    (workdir / "checkpoints").mkdir(exist_ok=True)
    handle = os.open(workdir / "checkpoints" / "lock", os.O_RDWR | os.O_CREAT)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _LOCKS.append(handle)
    except BlockingIOError:
        os.close(handle)
        raise bad("workdir", workdir, "another process is working in it: wait, or use another --workdir") from None
    except OSError as error:  # file systems of some clusters have no locks
        os.close(handle)
        LOG.warning("%s cannot be locked (%s): let no other process work in it", workdir, error.strerror)
