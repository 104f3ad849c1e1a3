"""Jobs from the command line: kept whatever happens, refused if another would be mixed in, ended with the documented status."""

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from commands import ROOT, digest, run

DIAGRAM = ["--spectrum=power:1", "--data_dim=6", "--n=50"]


def snapshot(workdir):
    return {p.relative_to(workdir): digest(p) for p in workdir.rglob("*") if p.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    code, _, err = run("phase_diagram", *DIAGRAM, f"--workdir={workdir}")
    assert code == 0, err
    return workdir


@pytest.fixture
def diagram(tmp_path, finished):
    """A job that has run, to spoil."""
    return shutil.copytree(finished, tmp_path / "w")


def test_other_flags_are_refused_and_overwrite_starts_anew(diagram):
    before = snapshot(diagram)
    code, out, err = run("phase_diagram", *DIAGRAM[:-1], "--n=60", f"--workdir={diagram}")
    assert code == 2 and out == "" and len(err.splitlines()) == 1
    assert "flag --n=60: the job in --workdir=" in err and "has --n=50" in err and "--overwrite starts anew" in err
    code, _, err = run("capped_scores", f"--workdir={diagram}")
    assert code == 2 and "holds results of experiments.phase_diagram" in err
    assert snapshot(diagram) == before
    (diagram / "mine.txt").write_text("not theirs")
    (diagram / "old.png").write_text("a figure of the job before")
    code, out, err = run("phase_diagram", *DIAGRAM[:-1], "--n=60", f"--workdir={diagram}", "--overwrite")
    assert code == 0, err
    assert (
        "--n=60" in (diagram / "flags.txt").read_text()
        and digest(diagram / "records.jsonl") != before[Path("records.jsonl")]
    )
    assert (diagram / "mine.txt").exists() and not (diagram / "old.png").exists()


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"code": "0"}, "holds results of another state of ldmjax's code"),
        ({"versions": {"jax": "0.1", "numpy": "2"}}, "holds results of jax 0.1: "),
        ({"files": {"data": "0"}}, "flag --data=a.npz: its contents have changed"),
        ({"experiment": "y"}, "holds results of experiments.y"),
        ({"flags": {"n": "--n=5", "data": "--data=a.npz"}}, "flag --n=6: the job in --workdir=w has --n=5"),
        (
            {"flags": {"data": "--data=a.npz", "old": "--old"}},
            "flag no --old, --n=6: the job in --workdir=w has --old, no --n",
        ),
        ({"more": 1}, "job.json is damaged"),
    ],
)
def test_what_is_not_the_same_job(change, expected):
    from experiments.flags import jobs

    asked = {
        "experiment": "x", "flags": {"n": "--n=6", "data": "--data=a.npz"}, "files": {"data": "1"}, "code": "1",
        "versions": {"jax": "0.2", "numpy": "2"},
    }  # fmt: skip
    line = jobs._difference(Path("w"), asked | change, asked)
    assert expected in line and "--overwrite" in line and len(line.splitlines()) == 1


@pytest.mark.slow
def test_a_file_that_changed_and_a_damaged_description_are_refused(tmp_path):
    spectrum, workdir = tmp_path / "spectrum.npy", tmp_path / "w"
    np.save(spectrum, np.array([2.0, 1.0, 0.5]))
    words = f"--spectrum={spectrum}", "--n=50", f"--workdir={workdir}"
    assert run("phase_diagram", *words)[0] == 0
    np.save(spectrum, np.array([2.0, 1.0, 0.4]))
    before = snapshot(workdir)
    code, out, err = run("phase_diagram", *words)
    assert code == 2 and "its contents have changed" in err and snapshot(workdir) == before
    (workdir / "checkpoints" / "job.json").write_text("[]")
    code, out, err = run("phase_diagram", *words)
    assert code == 2 and "job.json is damaged" in err and len(err.splitlines()) == 1
    (workdir / "checkpoints" / "job.json").unlink()
    assert "unknown job" in run("phase_diagram", *words)[2]


@pytest.mark.slow
def test_pieces_of_an_unknown_job_are_not_used_and_not_deleted(tmp_path):
    """Without job.json nobody knows which flags they were made with, or whose they are."""
    pieces = tmp_path / "checkpoints" / "pieces"
    pieces.mkdir(parents=True)
    (pieces / "x.pickle").write_text("")
    for words in ([], ["--overwrite"]):
        code, _, err = run("phase_diagram", *DIAGRAM, f"--workdir={tmp_path}", *words)
        assert code == 2 and "not of a job that is known" in err and len(err.splitlines()) == 1
        assert (pieces / "x.pickle").exists()


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        pytest.param("MemoryError('one run at a time')", 4, "out of memory: one run at a time", marks=pytest.mark.slow),
        ("jax.errors.JaxRuntimeError('RESOURCE_EXHAUSTED: of 5 bytes')", 4, "out of memory: RESOURCE_EXHAUSTED: of 5"),
        ("jax.errors.JaxRuntimeError('INTERNAL: x')", 1, "Traceback"),
        ("OSError(28, 'No space left on device')", 3, "No space left on device; what was finished is kept"),
        pytest.param(
            "SystemExit(130)",
            130,
            "stopped by Ctrl-C: the same command (without --overwrite) goes on",
            marks=pytest.mark.slow,
        ),
        ("SystemExit(143)", 143, "stopped by SIGTERM"),
        pytest.param("ZeroDivisionError()", 1, "Traceback", marks=pytest.mark.slow),
    ],
)
def test_statuses(error, status, text):
    script = (
        "import jax; from experiments import flags as shared\ndef main(): raise " + error + "\n"
        "shared.define_common_flags('x'); shared.run(main)"
    )
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)
    assert done.returncode == status and text in done.stderr
    assert status == 1 or len(done.stderr.splitlines()) == 1


def test_a_job_is_described_by_all_that_its_results_depend_on():
    import jax

    from experiments.flags import jobs

    described = jobs.describe_job()
    assert set(described) == {"experiment", "flags", "files", "code", "versions"}
    assert described["versions"]["jax"] == jax.__version__ and described["code"] == jobs._code_digest()
    for package in ("ldmjax", "experiments"):
        sources = sorted((ROOT / package).rglob("*.py"))
        assert sources and (ROOT / package / "__init__.py") in sources
    total = hashlib.sha256()
    for package in ("ldmjax", "experiments"):
        for source in sorted((ROOT / package).rglob("*.py")):
            total.update(source.read_bytes())
    assert total.hexdigest() == described["code"]


def test_one_process_at_a_time_in_a_workdir(tmp_path):
    import fcntl

    (tmp_path / "checkpoints").mkdir()
    with open(tmp_path / "checkpoints" / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        code, _, err = run("phase_diagram", *DIAGRAM, f"--workdir={tmp_path}")
    assert code == 2 and "another process is working in it" in err and len(err.splitlines()) == 1
    assert run("phase_diagram", *DIAGRAM, f"--workdir={tmp_path}")[0] == 0, "a lock file alone is no lock"


@pytest.mark.slow
def test_a_job_killed_while_it_described_itself_starts(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "job.json.partial").write_text("{")
    code, _, err = run("phase_diagram", *DIAGRAM, f"--workdir={tmp_path}")
    assert code == 0 and not (tmp_path / "checkpoints" / "job.json.partial").exists(), err


def test_dry_run_writes_nothing(tmp_path):
    workdir = tmp_path / "w"
    code, out, err = run("phase_diagram", *DIAGRAM, f"--workdir={workdir}", "--dry_run")
    assert code == 0 and not workdir.exists(), err
    assert "stage" in out and "time" in out and str(workdir) in out and "nothing was written there" in out


def test_a_file_that_the_system_refuses_ends_with_status_3(diagram):
    """Files may not grow beyond 20 kB: figures cannot be written, the results before stay whole."""
    import resource

    before = snapshot(diagram)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    code, out, err = run("phase_diagram", *DIAGRAM, f"--workdir={diagram}", before=limit)
    assert code == 3 and len(err.splitlines()) == 1 and "File too large" in err and "the same command goes on" in err
    after = snapshot(diagram)
    assert {k: v for k, v in after.items() if k.suffix in (".png", ".npz", ".jsonl")} == {
        k: v for k, v in before.items() if k.suffix in (".png", ".npz", ".jsonl")
    }
    assert run("phase_diagram", *DIAGRAM, f"--workdir={diagram}")[0] == 0


def can_mount():
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a small file system can be mounted")
def test_a_full_disk_ends_with_status_3_and_one_line(tmp_path):
    command = f"{sys.executable} -m experiments.phase_diagram {' '.join(DIAGRAM)} --workdir={tmp_path}/w"
    script = f"mount -t tmpfs -o size=40k tmpfs {tmp_path} && {command}"
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(["unshare", "-rm", "sh", "-c", script], capture_output=True, text=True, env=variables)
    assert done.returncode == 3, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and "No space left on device" in lines[0]
