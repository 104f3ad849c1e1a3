"""One result on any number of devices and processes; memory that runs out; the mesh."""

import os
import socket
import subprocess
import sys
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from commands import NOT_OPTIMISED, ROOT

from ldmjax import devices


def start(output, workdir, *several, count, **environment):
    variables = {
        **os.environ,
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={count} {NOT_OPTIMISED}",
        **environment,
    }
    command = [sys.executable, str(ROOT / "tests" / "spread_job.py"), str(output), str(workdir), *map(str, several)]
    variables["PYTHONPATH"] = str(ROOT)
    return subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    outputs = [process.communicate(timeout=240) for process in processes]
    assert [p.returncode for p in processes] == [0] * len(processes), outputs
    return [out for out, _ in outputs]


def free_port():
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        return taken.getsockname()[1]


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return str(tmp_path_factory.mktemp("cache"))


@pytest.fixture(scope="module")
def one_device(tmp_path_factory, cache):
    place = tmp_path_factory.mktemp("one")
    finish(start(place / "found.npz", place / "workdir", count=1, LDMJAX_CACHE=cache))
    return np.load(place / "found.npz")


def assert_same(found, expected):
    assert set(found) == set(expected)
    for name in set(found) - {"devices"}:
        scale = np.max(np.abs(expected[name]))
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6 * scale, rtol=0, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("count", [2, 4, 8])
def test_the_number_of_devices_changes_nothing(tmp_path, one_device, count, cache):
    """With 8 devices a single run's samples lie on all of them, 3 runs on 2 groups of 4."""
    finish(start(tmp_path / "found.npz", tmp_path / "workdir", count=count, LDMJAX_CACHE=cache))
    found = np.load(tmp_path / "found.npz")
    assert found["devices"] == count
    assert_same(found, one_device)


def slurm_environment(number, count):
    """What srun sets in a step, as far as jax.distributed reads it; its port comes from the job's number."""
    tasks = {"SLURM_NTASKS": count, "SLURM_STEP_NUM_TASKS": count, "SLURM_PROCID": number, "SLURM_LOCALID": number}
    return {"SLURM_JOB_ID": str(os.getpid()), "SLURM_STEP_NODELIST": "localhost"} | {
        k: str(v) for k, v in tasks.items()
    }


def both(tmp_path, name, launcher, cache):
    """Two processes of four devices each: 8."""
    port = free_port()
    how = [((port, 2, k), {}) if launcher == "flags" else ((), slurm_environment(k, 2)) for k in range(2)]
    return [
        start(tmp_path / f"{name}{k}.npz", tmp_path / "workdir", *words, count=4, LDMJAX_CACHE=cache, **variables)
        for k, (words, variables) in enumerate(how)
    ]


def check_both(tmp_path, one_device):
    for k in range(2):
        found = np.load(tmp_path / f"whole{k}.npz")
        assert found["devices"] == 8
        assert_same(found, one_device)


@pytest.mark.slow
def test_two_processes_find_what_one_does(tmp_path, one_device, cache):
    finish(*both(tmp_path, "whole", "flags", cache))
    check_both(tmp_path, one_device)


@pytest.mark.slow
@pytest.mark.parametrize("launcher", ["flags", "slurm"])
def test_two_processes_that_were_killed_go_on(tmp_path, one_device, launcher, cache):
    running = both(tmp_path, "killed", launcher, cache)
    for line in running[0].stdout:
        if "3 experts of 30 steps" in line:
            break
    for process in running:
        process.kill()
        process.communicate()
    for output in finish(*both(tmp_path, "whole", launcher, cache)):
        assert "mlp: step" not in output and "experts" in output
    check_both(tmp_path, one_device)
    (alone,) = finish(start(tmp_path / "alone.npz", tmp_path / "workdir", count=1, LDMJAX_CACHE=cache))
    assert "step" not in alone, "what two processes kept serves one, on another number of devices"
    assert_same(np.load(tmp_path / "alone.npz"), one_device)


def test_place_pads_with_the_last_row_and_collect_removes_it():
    count = jax.device_count()
    rows = {"x": np.arange(count + 1.0), "key": jax.vmap(jax.random.key)(np.arange(count + 1))}
    placed = devices.place(rows)
    assert placed["x"].shape == (2 * count,) == placed["key"].shape and devices.padded_count(count + 1) == 2 * count
    assert np.asarray(placed["x"])[-1] == count and len(placed["x"].sharding.device_set) == count
    assert devices.place(placed)["x"] is placed["x"]
    assert devices.collect(placed["x"], count + 1).tolist() == list(range(count + 1))
    assert devices.from_first_process(b"x") == b"x" and devices.from_first_process(None) is None
    assert devices.any_process(np.array([True, False])).tolist() == [True, False] and devices.is_first_process()


@pytest.mark.needs_cpu("two devices")
@pytest.mark.parametrize("samples", [False, True])
def test_samples_are_spread_only_where_runs_leave_devices_idle(samples):
    seen = []

    def function(shared, run):
        x = devices.spread_samples(shared + run)
        seen.append(devices._SAMPLES_SPREAD)
        return x.sum(axis=0)

    mapped = devices.map_runs(function, samples=samples)
    shared = jnp.arange(12.0).reshape(4, 3)
    for runs in (1, 2):
        rows = np.arange(runs, dtype=np.float32)
        found = devices.collect(mapped(shared, rows), runs)
        np.testing.assert_allclose(found, [(shared + r).sum(axis=0) for r in rows])
    assert seen[0] == samples and not seen[-1] and jax.device_count() == 2
    assert devices.spread_samples(shared) is shared, "outside it does nothing"


OUT_OF_MEMORY = """
import resource, sys, numpy as np, jax, jax.numpy as jnp
from ldmjax import devices, chunks
from ldmjax.job import Job, printing
devices.start()

def advance(shared, state, run):
    factor, first, last = shared
    def step(i, x):  # a buffer of 4 kB times the number of rows that no compiler can do without
        big = jax.lax.fori_loop(0, 2, lambda k, b: jnp.roll(b, 1, 0) * factor, jnp.full((ROWS, 1000), x[0]))
        return x + big[-1, :4] * 0.0 + run
    return jax.lax.fori_loop(first, last, step, state), jnp.zeros(())

devices.map_runs(lambda shared, row: row)(0, np.zeros(4))  # all threads run before memory is limited
used = int(open("/proc/self/statm").read().split()[0]) * 4096
resource.setrlimit(resource.RLIMIT_AS, (used + 1_200_000_000,) * 2)
advance = devices.map_runs(advance, runs_per_batch=8, donate=1)
found = chunks.run_training(
    advance, lambda: np.zeros((16, 4), np.float32), jnp.float32(1.1), np.arange(16.0, dtype=np.float32), name="x",
    count=16, steps=4, chunk=2, label="x", job=Job(show=printing),
)
assert np.array_equal(found.state[:, 0], 4.0 * np.arange(16)), found.state
print("went on with", advance.runs_per_batch)
"""


def run_out_of_memory(rows):
    variables = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1", "PYTHONPATH": str(ROOT)}
    script = OUT_OF_MEMORY.replace("ROWS", str(rows))
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)


def test_out_of_memory_halves_the_batch_says_so_and_goes_on():
    done = run_out_of_memory(40_000)  # 160 MB a run
    assert done.returncode == 0, done.stderr
    assert "out of memory with 8 runs at once on each device: going on with 4" in done.stderr
    assert "went on with" in done.stdout and "went on with 8" not in done.stdout


def test_out_of_memory_with_a_single_run_is_an_error():
    done = run_out_of_memory(400_000)  # 1.6 GB a run
    assert done.returncode != 0 and "going on with 1" in done.stderr
    assert "MemoryError: one run at a time on each device is too much" in done.stderr


def test_other_errors_of_the_device_are_not_taken_for_memory(monkeypatch):
    mapped = devices.map_runs(lambda shared, run: run, runs_per_batch=4)

    def broken(*_):
        raise jax.errors.JaxRuntimeError("INTERNAL: something else")

    monkeypatch.setattr(mapped, "_program", lambda mesh: broken)
    with pytest.raises(jax.errors.JaxRuntimeError, match="something else"):
        mapped(0, np.zeros(8))
    assert mapped.runs_per_batch == 4


def test_a_program_is_lowered_from_shapes_alone():
    mapped, mesh = devices.map_runs(lambda shared, run: shared + 2.0 * run), devices._mesh(jax.device_count())
    rows = np.arange(2.0 * jax.device_count(), dtype=np.float32)
    shapes = jax.ShapeDtypeStruct((), jnp.float32), jax.ShapeDtypeStruct(rows.shape, jnp.float32)
    program = mapped.lower(shapes[0], shapes[1], mesh=mesh).compile()
    assert mapped.compilations == 0
    found = program(devices.replicate(jnp.float32(1.0)), devices.place(rows))
    np.testing.assert_allclose(devices.collect(found, len(rows)), 1.0 + 2.0 * rows)


@pytest.mark.needs_cpu("a CPU's products")
def test_products_of_matrices_are_not_rounded_on_accelerators():
    mapped = devices.map_runs(lambda shared, run: run @ run.T)
    rows = devices.place(np.zeros((2, 3, 3), np.float32))
    assert "HIGHEST" in str(jax.make_jaxpr(mapped._program(devices._mesh(jax.device_count())))(0, rows))


def test_a_job_starts_with_all_cores_and_a_cache_of_its_own(tmp_path):
    script = (
        "import os, jax; from ldmjax import devices; devices.start()\n"
        "print(jax.device_count(), len(os.sched_getaffinity(0)), jax.config.jax_compilation_cache_dir)"
    )
    variables = {k: v for k, v in os.environ.items() if k not in ("XLA_FLAGS", "JAX_COMPILATION_CACHE_DIR")}
    for extra, place in [({}, str(tmp_path)), ({"JAX_COMPILATION_CACHE_DIR": "/tmp/elsewhere"}, "/tmp/elsewhere")]:
        variables |= {"LDMJAX_CACHE": str(tmp_path), "PYTHONPATH": str(ROOT)} | extra
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)
        count, cores, cache = done.stdout.split()
        assert count == cores and cache.startswith(place), done.stderr


def test_the_batch_divides_the_runs_if_it_can():
    assert [devices.batch_size(12, size) for size in (1, 5, 6, 8, 50)] == [1, 4, 6, 6, 12]
    assert devices.batch_size(7, 4) == 4


@pytest.mark.needs_cpu("one run at a time on each device")
def test_all_runs_go_at_once_where_a_device_has_many_cores(monkeypatch):
    """The default off the CPU, with rows of different lengths, gives what one run at a time gives."""

    def powers(shared, run):
        return jax.lax.fori_loop(0, run["count"], lambda _, x: x * shared, run["x"])

    rows = {"count": np.arange(6), "x": np.linspace(1.0, 2.0, 6, dtype=np.float32)}
    one = devices.map_runs(powers)
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    many = devices.map_runs(powers)
    assert one.runs_per_batch == 1 and many.runs_per_batch > 1e6
    np.testing.assert_array_equal(devices.collect(many(1.5, rows), 6), devices.collect(one(1.5, rows), 6))
    np.testing.assert_allclose(devices.collect(many(1.5, rows), 6), rows["x"] * 1.5 ** rows["count"], rtol=1e-6)


@pytest.mark.needs_cpu("a platform that the test chooses")
@pytest.mark.parametrize(
    ("capability", "expected"), [("9.0", "TF32_TF32_F32_X3"), ("7.5", "highest"), ("gfx942", "highest")]
)
def test_three_tf32_products_are_left_to_gpus_that_have_them(monkeypatch, capability, expected):
    gpu = types.SimpleNamespace(compute_capability=capability)
    monkeypatch.setattr(devices, "platform", lambda: "gpu")
    monkeypatch.setattr(jax, "local_devices", lambda: [gpu])
    assert devices.product_precision() == expected
    with jax.default_matmul_precision("tensorfloat32"):
        assert devices.product_precision() == "tensorfloat32"


@pytest.mark.parametrize("chosen", ["highest", "tensorfloat32"])
def test_a_precision_that_the_user_chose_is_kept(chosen):
    script = "from ldmjax import devices\nwith devices.made_for('gpu'): print(devices.product_precision())"
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_DEFAULT_MATMUL_PRECISION": chosen}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=variables)
    assert done.stdout.strip() == chosen, done.stderr
