import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ldmjax import checkpoints, files
from ldmjax.job import Job

SMALL = {f"leaf {k}": np.full(3, k, np.float16) for k in range(20)}  # a job has many leaves, and one error is one line
STATE = SMALL | {
    "a": np.arange(60_000, dtype=np.float32).reshape(3, -1),
    "empty": np.zeros((0, 3)),
    "b": (np.int32(7) + np.zeros(3, int),),
}
ROOT = Path(__file__).parent.parent


def at(step):
    return {**STATE, "a": STATE["a"] + step}


def save(job, steps, name="linear/1"):
    with job.training(name) as training:
        for step in steps:
            training.save(step, at(step))


def restore(job, name="linear/1"):
    with job.training(name) as training:
        return training.restore(STATE)


def files_of(directory, step):
    """The files with the numbers of a checkpoint, largest first."""
    return sorted(directory.glob(f"linear*/{step}/**/d/*"), key=lambda path: -path.stat().st_size)


def assert_state(found, step):
    assert found[0] == step
    np.testing.assert_array_equal(found[1]["a"], at(step)["a"])
    assert found[1]["empty"].shape == (0, 3) and found[1]["b"][0].tolist() == [7, 7, 7]


def test_the_newest_is_restored_and_only_so_many_are_kept(tmp_path):
    job = Job(tmp_path, keep_checkpoints=2)
    assert restore(job) is None
    save(job, [10, 20, 30])
    assert_state(restore(job), 30)
    assert sorted(p.name for p in tmp_path.glob("linear*/*")) == ["20", "30"]
    assert restore(job, "linear/2") is None, "another training has checkpoints of its own"


@pytest.mark.parametrize("damage", ["flip", "truncate", "delete", "empty directory", "half written"])
def test_walks_back_from_a_damaged_checkpoint(tmp_path, caplog, damage):
    job = Job(tmp_path, keep_checkpoints=3)
    save(job, [10, 20])
    (own,) = tmp_path.glob("linear*")
    if damage == "empty directory":
        (own / "30").mkdir()
    elif damage == "half written":
        shutil.copytree(own / "20", own / "30.orbax-checkpoint-tmp")
    else:
        victim = files_of(tmp_path, 20)[0]
        content = bytearray(victim.read_bytes())
        content[len(content) // 2] ^= 1
        victim.write_bytes({"flip": content, "truncate": content[: len(content) // 2], "delete": b""}[damage])
    good = 20 if damage in ("empty directory", "half written") else 10
    assert_state(restore(job), good)
    if damage != "half written":
        bad = 30 if good == 20 else 20
        (said,) = [record.getMessage() for record in caplog.records if record.name == "ldmjax"]
        assert f"checkpoint at step {bad} of linear/1 is damaged" in said
        assert not (own / str(bad)).exists() and (own / f"{bad}.damaged").exists()
    save(job, [25])
    assert_state(restore(job), 25)
    assert not list(tmp_path.glob("linear*/*tmp*"))


def test_a_changed_number_is_found_by_the_digest_alone(tmp_path, monkeypatch, caplog):
    """What the file system and orbax do not notice: a checkpoint that reads well and is not what was saved."""
    job = Job(tmp_path, keep_checkpoints=3)
    save(job, [10])
    real = checkpoints.digest
    monkeypatch.setattr(checkpoints, "digest", lambda state: real({**state, "a": state["a"] + 1}))
    save(job, [20])
    monkeypatch.setattr(checkpoints, "digest", real)
    assert_state(restore(job), 10)
    assert "sha256" in caplog.text


def test_a_checkpoint_of_another_step_is_not_taken_for_its_own(tmp_path):
    job = Job(tmp_path)
    save(job, [10, 20])
    (own,) = tmp_path.glob("linear*")
    (own / "20").rename(own / "30")
    assert_state(restore(job), 10)


def test_a_checkpoint_is_due_after_so_many_seconds(tmp_path):
    with Job(tmp_path, every=1000.0).training("x") as training:
        assert not training.due
        for renew in (lambda: training.save(1, STATE), lambda: training.restore(STATE)):
            training._last -= 2000.0
            assert training.due
            renew()
            assert not training.due
    with Job().training("x") as training:
        training._last -= 2000.0
        assert not training.due


def test_what_is_renamed_is_on_the_disk_first(tmp_path, monkeypatch):
    """A machine that loses its power must not find a name without the contents."""
    calls = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *a, name=name, real=real: calls.append(name) or real(*a))
    with files.written_whole(tmp_path / "x") as partial:
        partial.write_text("x")
    assert calls == ["fsync", "replace"]


def test_digest_sees_values_places_types_and_shapes():
    base = {"a": np.zeros(4, np.float32), "b": np.ones(2)}
    others = [
        {"a": np.array([0, 0, 0, 1e-9], np.float32), "b": np.ones(2)},
        {"b": np.zeros(4, np.float32), "a": np.ones(2)},
        {"a": np.zeros(4, np.int32), "b": np.ones(2)},
        {"a": np.zeros((2, 2), np.float32), "b": np.ones(2)},
    ]
    assert len({checkpoints.digest(x) for x in [base, *others]}) == 5
    assert checkpoints.digest(base) == checkpoints.digest({"b": np.ones(2), "a": np.zeros(4, np.float32)})
    assert len({checkpoints.fingerprint("x", x) for x in [base, *others]}) == 5
    assert checkpoints.fingerprint("x", base) != checkpoints.fingerprint("y", base)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "records.jsonl"
    path.write_text("old")
    with pytest.raises(RuntimeError), files.written_whole(path) as partial:
        partial.write_text("half of the n")
        raise RuntimeError
    assert path.read_text() == "old" and os.listdir(tmp_path) == ["records.jsonl"]


def can_mount():
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


FULL_DISK = """
import logging, pathlib, sys, numpy as np
from ldmjax.job import Job
logging.getLogger("absl").setLevel(logging.CRITICAL)
disk = pathlib.Path(sys.argv[1])
job = Job(disk / "job")
state = {f"leaf {k}": np.zeros(3) for k in range(20)} | {"a": np.random.default_rng(0).standard_normal(150_000)}
(disk / "filler").write_bytes(bytes(5 << 20))
job.put("piece", state)
assert job.get("piece") is None
with job.training("x") as training:
    training.save(10, state)
    assert training.restore(state) is None and not list(disk.rglob("*tmp*"))
    (disk / "filler").unlink()
    training.save(20, state)
with job.training("x") as training:
    step, found = training.restore(state)
assert step == 20 and np.array_equal(found["a"], state["a"])
"""


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a small file system can be mounted")
def test_a_full_disk_is_said_and_survived(tmp_path):
    script = f'mount -t tmpfs -o size=6M tmpfs {tmp_path} && exec "$0" -c "$1" {tmp_path}'
    done = subprocess.run(
        ["unshare", "-rm", "sh", "-c", script, sys.executable, FULL_DISK], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 2 and "No space left" in lines[0] and "a checkpoint of x could not be written" in lines[1]
