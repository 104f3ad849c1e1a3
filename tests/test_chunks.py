"""The loop of every training: what it returns does not depend on interruptions, and it ends in order on a signal."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import checkpoints, chunks, devices
from ldmjax.job import NO_JOB, Job

ROOT = Path(__file__).parent.parent
COUNT, STEPS = 3, 23


def advance(shared, state, run):
    """State x moves by its own random numbers: any step that is left out or done twice changes everything after it."""
    factor, first, last = shared

    def step_of(step, carry):
        state, total = carry
        x = factor * jnp.sin(state["x"]) + jax.random.normal(jax.random.fold_in(run["key"], step), (4,))
        return {"x": x, "steps": state["steps"] + 1}, total + x.mean()

    state, total = jax.lax.fori_loop(first, last, step_of, (state, jnp.zeros(())))
    return state, total


MAPPED = devices.map_runs(advance, donate=1)


def start():
    return {"x": np.arange(4.0 * COUNT, dtype=np.float32).reshape(COUNT, 4), "steps": np.zeros(COUNT, np.int32)}


def job_in(directory, show=None, *, every=30.0):
    return Job(directory, every=every, show=show, line_every=0.0)


def train(job=NO_JOB, mapped=None, **options):
    mapped = mapped or MAPPED
    options = {"marks": (7, 23), "chunk": 5, "name": "toy", **options}
    return chunks.run_training(
        mapped,
        start,
        jnp.float32(1.7),
        {"key": jax.vmap(jax.random.key)(np.arange(COUNT))},
        count=COUNT,
        steps=STEPS,
        select=lambda state: state["x"],
        job=job,
        label="toy",
        **options,
    )


def assert_equal(found, expected):
    for a, b in zip(jax.tree.leaves(found.state), jax.tree.leaves(expected.state), strict=True):
        np.testing.assert_array_equal(a, b)
    for name in ("losses", "chunk_ends", "marks", "kept"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


@pytest.fixture(scope="module")
def whole():
    return train()


def test_steps_chunks_marks_and_losses(whole):
    assert whole.chunk_ends.tolist() == [5, 7, 10, 15, 20, 23] and whole.marks.tolist() == [7, 23]
    assert whole.state["steps"].tolist() == [STEPS] * COUNT and whole.losses.shape == (COUNT, 6)
    np.testing.assert_array_equal(whole.kept[1], whole.state["x"])
    assert np.all(np.diff(whole.seconds) > 0)
    by_hand = start()["x"][1]
    means = []
    for step in range(STEPS):
        by_hand = np.float32(1.7) * np.sin(by_hand) + jax.random.normal(
            jax.random.fold_in(jax.random.key(1), step), (4,)
        )
        means.append(np.mean(by_hand))
        if step == 6:
            np.testing.assert_allclose(whole.kept[0][1], by_hand, rtol=1e-4)
    np.testing.assert_allclose(whole.losses[1, [0, 2]], [np.mean(means[:5]), np.mean(means[7:10])], rtol=1e-3)
    np.testing.assert_allclose(
        whole.losses_between_marks()[1], [np.mean(means[:7]), np.mean(means[7:])], rtol=1e-3, atol=1e-3
    )


def test_the_chunk_size_changes_nothing_but_the_losses(whole):
    other = train(chunk=4, marks=(23,))
    np.testing.assert_array_equal(other.state["x"], whole.state["x"])


class Stop(Exception):
    pass


def stop_after(line):
    def show(text):
        if line in text:
            raise Stop

    return show


@pytest.mark.parametrize("line", ["compiled", "step 5/", "step 7/", "step 20/", "step 23/"])
@pytest.mark.parametrize("every", [0.0, 1e6])
def test_an_interrupted_training_ends_like_a_whole_one(tmp_path, whole, line, every):
    with pytest.raises(Stop):
        train(job_in(tmp_path, stop_after(line), every=every))
    lines = []
    assert_equal(train(job_in(tmp_path, lines.append)), whole)
    # The line comes before its checkpoint: what is lost is one chunk, or with a long interval everything.
    done = {"step 7/": 5, "step 20/": 15, "step 23/": 20}.get(line, 0) if every == 0.0 else 0
    assert (f"from the checkpoint at step {done}" in lines[0]) == (done > 0) and f"step {STEPS}/" in lines[-1]
    again = []
    mapped = devices.map_runs(advance, donate=1)
    finished = train(job_in(tmp_path, again.append), mapped)
    assert_equal(finished, whole)
    assert again == [] and mapped.compilations == 0, "a finished training is not redone"


@pytest.mark.needs_cpu("the numbers of a CPU, where the training goes on")
def test_restored_on_another_number_of_devices(tmp_path, whole):
    """3 rows on 2 devices are padded to 4; a checkpoint holds the 3."""
    with pytest.raises(Stop):
        train(job_in(tmp_path, stop_after("step 15/"), every=0))
    script = (
        "import sys; sys.path.insert(0, 'tests'); import jax; jax.config.update('jax_num_cpu_devices', 3)\n"
        "import numpy as np, test_chunks as t\n"
        f"lines = []; found = t.train(t.job_in({str(tmp_path)!r}, lines.append)); assert jax.device_count() == 3\n"
        "assert 'from the checkpoint at step 10' in lines[0], lines; np.save(sys.argv[1], found.state['x'])"
    )
    done = subprocess.run([sys.executable, "-c", script, tmp_path / "x.npy"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), whole.state["x"], rtol=1e-6)


def test_seconds_go_on_after_an_interruption(tmp_path):
    with pytest.raises(Stop):
        train(job_in(tmp_path, stop_after("step 15/"), every=0))
    seconds = train(job_in(tmp_path)).seconds
    assert seconds[0] > 0 and np.all(np.diff(seconds) > 0)


class Clock:
    """Ten seconds pass in every call of `advance`, or of what stands for it."""

    def __init__(self, monkeypatch, inner=MAPPED):
        self.now, self.inner = 0.0, inner
        monkeypatch.setattr(time, "perf_counter", lambda: self.now)  # of chunks.py and of job.py

    def __call__(self, *arguments):
        self.now += 10.0
        return self.inner(*arguments)


def test_rates_count_this_session_and_all_runs(tmp_path, monkeypatch):
    lines = []
    with pytest.raises(Stop):
        train(job_in(tmp_path, stop_after("step 15/"), every=0), Clock(monkeypatch))
    train(job_in(tmp_path, lines.append, every=1e6), Clock(monkeypatch))
    assert "compiled in 10.0 s, from the checkpoint at step 10" in lines[0]
    assert ", 1.5 run-steps/s, 16 s left" in lines[1], "5 steps of 3 runs in 10 s, 8 steps to go"


def test_the_clock_starts_anew_when_memory_ran_out(monkeypatch):
    lines = []
    train(job_in(None, lines.append), Clock(monkeypatch, OutOfMemoryOnce(4)))
    assert "step 5/" in lines[1] and ", 1.5 run-steps/s, 36 s left" in lines[1]
    assert "step 5/" in lines[3] and lines[3] == lines[1]


def test_a_run_that_failed_does_not_hide_the_loss_of_the_others():
    def failing(shared, state, run):
        state, loss = advance(shared, state, run)
        return state, jnp.where(run["bad"], jnp.nan, loss)

    for bad, shown in [([True, False, False], True), ([True] * 3, False)]:
        lines, runs = [], {"key": jax.vmap(jax.random.key)(np.arange(COUNT)), "bad": np.array(bad)}
        found = chunks.run_training(
            devices.map_runs(failing),
            start,
            jnp.float32(1.7),
            runs,
            name="toy",
            count=COUNT,
            steps=10,
            chunk=5,
            job=job_in(None, lines.append),
            label="toy",
        )
        for line, losses in zip(lines[1:], found.losses.T, strict=True):
            assert (f"loss {losses[1:].mean():.4f}" if shown else "loss nan") in line


def test_a_signal_to_another_process_ends_this_one_too(monkeypatch):
    monkeypatch.setattr(chunks, "any_process", lambda decisions: np.array([False, True]))
    with pytest.raises(SystemExit) as ending:
        train()
    assert ending.value.code == 143


def test_what_is_being_written_does_not_change(tmp_path, monkeypatch):
    kept = []
    monkeypatch.setattr(checkpoints.TrainingCheckpoints, "save", lambda self, step, state: kept.append((step, state)))
    train(job_in(tmp_path, every=0))
    first = kept[0][1]
    assert kept[0][0] == 5 and np.all(first["losses"][:, 1:] == 0) and np.all(first["kept"] == 0)


def test_progress_lines(tmp_path):
    lines = []
    train(job_in(None, lines.append))
    assert len(lines) == 7 and "3 runs of 23 steps, compiled in" in lines[0]
    for line, step in zip(lines[1:], (5, 7, 10, 15, 20, 23), strict=True):
        assert line.startswith(f"toy: step {step}/23, loss ") and "run-steps/s" in line and "s left" in line
    assert lines[-1].endswith(" 0 s left")


class OutOfMemoryOnce:
    """`MappedRuns` that fails at one call as a device does that has no memory left: the state's buffers are gone."""

    def __init__(self, call):
        self.calls, self.call = 0, call

    def __call__(self, shared, state, runs):
        self.calls += 1
        if self.calls == self.call:
            jax.tree.map(lambda x: x.delete(), state)
            raise devices.StateLost
        return MAPPED(shared, state, runs)


@pytest.mark.parametrize("kept", [False, True])
@pytest.mark.parametrize("call", [1, 2, 5])
def test_goes_on_when_memory_ran_out(tmp_path, whole, kept, call):
    job = job_in(tmp_path, every=0.0) if kept else NO_JOB
    mapped = OutOfMemoryOnce(call)
    assert_equal(train(job, mapped), whole)
    # Calls: one to compile, six chunks, one that failed; without checkpoints the chunks before it are done again.
    assert mapped.calls == 8 + (call - 2 if call > 1 and not kept else 0) - (call == 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_training_in_order(tmp_path, whole, number):
    before = {n: signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)}

    def show(line):
        if "step 10/" in line:
            os.kill(os.getpid(), number)

    try:
        chunks.obey_signals()
        with pytest.raises(SystemExit) as ending:
            train(job_in(tmp_path, show, every=1e6))
        assert ending.value.code == 128 + number
        with pytest.raises(SystemExit), chunks.no_interruption():  # a second one is obeyed at once
            os.kill(os.getpid(), number)
            os.kill(os.getpid(), number)
            pytest.fail("went on")
        with pytest.raises(SystemExit):
            os.kill(os.getpid(), number)
            pytest.fail("went on")
    finally:
        for n, handler in before.items():
            signal.signal(n, handler)
    lines = []
    assert_equal(train(job_in(tmp_path, lines.append)), whole)
    assert "from the checkpoint at step 10" in lines[0]


def test_a_signal_is_not_forgotten_by_a_training_that_was_finished(tmp_path):
    train(job_in(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    try:
        chunks.obey_signals()
        with pytest.raises(SystemExit), chunks.no_interruption():
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        signal.signal(signal.SIGTERM, before)
