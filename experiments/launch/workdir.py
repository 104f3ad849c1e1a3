"""A workdir: it belongs to one job, which goes on where it was stopped and is refused to mix with another.

``checkpoints/job.json`` says what the job is: the experiment, its settings, sha256 of the files that they name and of the data,
of the code that computes, and library versions. Whoever starts a job with the same answers continues it; any other is refused.
"""

import atexit
import dataclasses
import fcntl
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

from experiments.launch.command_line import UsageError, bad
from ldmjax import devices, records
from ldmjax.files import write_text

LOG = logging.getLogger("ldmjax")
RESULTS = ("flags.txt", "metadata.json", "records.jsonl", "curves.npz", "recommend.json", "table.json")
WAYS_OUT = "the flags of the job resume it, --overwrite starts anew, another --workdir keeps both"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Identity:
    """What a job is; two jobs with equal identities give equal results on one machine.

    Attributes:
      experiment: its name.
      flags: the word of every setting that says what is computed, by name.
      files: sha256 of the files and directories that these words name, by setting.
      data: digest of the data that was loaded.
      code: digest of the code that computes.
      versions: of libraries.
    """

    experiment: str
    flags: Mapping[str, str]
    files: Mapping[str, str]
    data: str
    code: str
    versions: Mapping[str, str | None]


def digests_of_files(words: Mapping[str, str]) -> dict[str, str]:
    """sha256 of what those words name that are paths, by the same names."""
    return {name: digest for name, word in words.items() if (digest := _digest_of(Path(word)))}


def _digest_of(path: Path) -> str:
    """sha256 of a file, or of the names and sizes of all files below a directory; empty if there is no such path."""
    if path.is_file():
        with open(path, "rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    listing = [f"{p.relative_to(path)} {p.stat().st_size}" for p in sorted(path.rglob("*")) if p.is_file()]
    return hashlib.sha256("\n".join(listing).encode()).hexdigest() if path.is_dir() else ""


def claim(workdir: Path, identity: Identity, *, overwrite: bool) -> Path:
    """Takes a workdir for a job and writes flags.txt, which reruns the experiment with --flagfile.

    Returns:
      The workdir; on all but the first process a directory that is thrown away.

    Raises:
      UsageError: if the workdir cannot be written, holds another job, or is in use.
    """
    problem = None
    if devices.is_first_process():
        try:
            _claim(workdir, identity, overwrite)
        except UsageError as error:
            problem = str(error)
    if problem := devices.from_first_process(problem and problem.encode()):
        raise UsageError(problem.decode())
    if not devices.is_first_process():
        workdir = Path(tempfile.mkdtemp(prefix="ldmjax-"))
        atexit.register(shutil.rmtree, workdir, ignore_errors=True)
    return workdir


def _claim(workdir: Path, identity: Identity, overwrite: bool) -> None:
    try:
        records.prepare_workdir(workdir)
    except ValueError as error:
        raise bad("workdir", workdir, str(error)) from error
    _lock(workdir)
    asked, held = dataclasses.asdict(identity), _read_job(workdir)
    # A kill may leave half a description of a job that had not begun.
    if held is None and {path.name for path in (workdir / "checkpoints").iterdir()} - {"lock", "job.json.partial"}:
        raise bad(
            "workdir", workdir, "its checkpoints/ are not of a job that is known: delete them, or use another --workdir"
        )
    if overwrite:
        _delete_results(workdir)
    elif held is None and (workdir / "records.jsonl").exists():
        raise bad("workdir", workdir, f"holds results of an unknown job: {WAYS_OUT}")
    elif held is not None and held != asked:
        raise UsageError(_difference(workdir, held, asked))
    write_text(_job_file(workdir), json.dumps(asked, indent=1))
    lines = sorted(_flag(name, word) for name, word in identity.flags.items())
    write_text(workdir / "flags.txt", "".join(line + "\n" for line in lines))


def _flag(name: str, word: str) -> str:
    return f"--{name}={word}" if word else f"--{name} not given"


def _difference(workdir: Path, held: dict, asked: dict) -> str:
    """One line that names what differs."""
    here = f"flag --workdir={workdir}"
    if set(held) != set(asked):
        return f"{here}: its checkpoints/job.json is damaged, or of another version of ldmjax: {WAYS_OUT}"
    if held["experiment"] != asked["experiment"]:
        return f"{here}: holds results of experiments.{held['experiment']}: {WAYS_OUT}"
    theirs, ours = held["flags"], asked["flags"]
    changed = [name for name in {**theirs, **ours} if theirs.get(name) != ours.get(name)]
    if changed:
        now, then = (", ".join(_flag(name, words.get(name, "")) for name in changed) for words in (ours, theirs))
        return f"flag {now}: the job in --workdir={workdir} has {then}: {WAYS_OUT}"
    for name, digest in asked["files"].items():
        if held["files"].get(name) != digest:
            return f"flag {_flag(name, ours[name])}: its contents have changed since the job in --workdir={workdir}: {WAYS_OUT}"
    if held["data"] != asked["data"]:
        return f"{here}: holds results of other data: {WAYS_OUT}"
    versions = {name: v for name, v in held["versions"].items() if asked["versions"].get(name) != v}
    code = ", ".join(f"{name} {v}" for name, v in versions.items())
    code = code or "another state of the code that computes (compute or the library has changed)"
    return f"{here}: holds results of {code}: --overwrite starts anew, another --workdir keeps both"


def _job_file(workdir: Path) -> Path:
    return workdir / "checkpoints" / "job.json"


def _read_job(workdir: Path) -> dict | None:
    """The identity of the job that the workdir holds; {} for something else, None for nothing."""
    try:
        found = json.loads(_job_file(workdir).read_text())
    except FileNotFoundError:
        return None
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def held_experiment(workdir: Path) -> str | None:
    """The experiment whose job the workdir holds, None if none is known."""
    return (_read_job(workdir) or {}).get("experiment")


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
