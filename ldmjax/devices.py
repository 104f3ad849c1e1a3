"""Where runs and samples live, and what the kind of device decides.

All devices of all processes form a mesh with axes "runs" and "samples". Runs (rows of a stacked pytree) are spread over the
first. Where there are fewer of them than devices, the samples that one run draws are spread over what is left. On a CPU the
dots inside a loop use one core, so the cores are offered to JAX as separate devices. With several processes each computes its
own rows; host arrays are equal on all of them, the first process writes.

What a CPU and an accelerator want differently asks `platform`: how many runs go at once (`default_runs_per_batch`), how many
equal items (`items_per_device`), how precise products are (`product_precision`), how loops over steps end (loops.py) and how
maps are convolved (convolutions.py).
"""

import contextlib
import functools
import logging
import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from platform import machine, processor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

RUNS, SAMPLES = "runs", "samples"
LOG = logging.getLogger("ldmjax")
# Float32 products of linear scores and MLPs on a GPU that has TF32: three products of operands split in two, about as exact as
# float32's own (tests/test_precision.py) and several times as fast. All else is float32's own (on a TPU six bfloat16 products).
PRODUCTS = {"gpu": "TF32_TF32_F32_X3"}
# Operations of one run's step that keep an accelerator busy alone; the memory of many such runs would be spent for nothing.
LARGE_STEP = 1e9
MEMORY_SHARE = 0.5  # of a device's memory that items held at once may take


class StateLost(Exception):
    """Out of memory in a call that had been given its state's buffers: the caller has to provide the state again."""


def cache_directory() -> Path:
    """Returns ``$LDMJAX_CACHE``, or ~/.cache/ldmjax: what serves every run, compiled programs among it."""
    return Path(os.environ.get("LDMJAX_CACHE") or Path.home() / ".cache" / "ldmjax")


def start(
    *,
    coordinator_address: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    deterministic: bool = False,
) -> None:
    """Prepares JAX for a job; call before any other JAX function.

    Offers every CPU core as a device (unless XLA_FLAGS sets their number), keeps compiled programs on disk, and joins the other
    processes: those of the SLURM step if there is one with several tasks, or those of the coordinator that is named.

    Args:
      coordinator_address: HOST:PORT of process 0.
      num_processes: how many there are.
      process_id: this one's number, from 0.
      deterministic: whether a GPU uses only kernels that give the same bits every time, and does not choose them by timing.
    """
    if deterministic:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_deterministic_ops=true"
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", host_threads())
    keep_compiled_programs()
    if coordinator_address is not None:
        jax.distributed.initialize(coordinator_address, num_processes, process_id)
    elif int(os.environ.get("SLURM_STEP_NUM_TASKS", 1)) > 1:
        jax.distributed.initialize()


def keep_compiled_programs() -> None:
    """Keeps compiled programs on disk, unless JAX_COMPILATION_CACHE_DIR names another place."""
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(cache_directory() / f"compiled-{_processor()}"))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.2)


def _processor() -> str:
    """Names what this machine's processor can do: programs compiled for another one may not run here, and JAX does not ask."""
    try:
        described = next(line for line in Path("/proc/cpuinfo").open() if line.startswith(("flags", "Features")))
    except (OSError, StopIteration):
        described = processor()
    return f"{machine()}-{zlib.crc32(described.encode()):08x}"


def is_first_process() -> bool:
    """Says whether this process is the one that prints and writes."""
    return jax.process_index() == 0


def any_process(flags: np.ndarray) -> np.ndarray:
    """Returns elementwise "or" of each process's booleans ``[K]``: a decision that all of them take together."""
    if jax.process_count() == 1:
        return flags
    return multihost_utils.process_allgather(np.asarray(flags)).any(axis=0)


def from_first_process(content: bytes | None) -> bytes | None:
    """Returns what the first process has, on all of them."""
    if jax.process_count() == 1:
        return content
    size = int(multihost_utils.broadcast_one_to_all(np.int32(-1 if content is None else len(content))))
    if size < 0:
        return None
    own = np.frombuffer(content, np.uint8) if is_first_process() else np.zeros(size, np.uint8)
    return multihost_utils.broadcast_one_to_all(own).tobytes()


def padded_count(runs: int, multiple: int | None = None) -> int:
    """Returns the smallest multiple of ``multiple``, by default the device count, that holds ``runs``."""
    multiple = multiple or jax.device_count()
    return -(-runs // multiple) * multiple


def platform() -> str:
    """Returns what programs are made for: "cpu", "gpu" or "tpu"."""
    return _MADE_FOR or jax.default_backend()


_MADE_FOR: str | None = None  # while programs are made for a platform that is not here


@contextlib.contextmanager
def made_for(name: str) -> Iterator[None]:
    """Gives a context in which programs are traced as ``name`` ("cpu", "gpu", "tpu") wants them."""
    global _MADE_FOR
    before, _MADE_FOR = _MADE_FOR, name
    try:
        yield
    finally:
        _MADE_FOR = before


def product_precision() -> str:
    """Says how linear scores and MLPs compute float32 products.

    As the process does (JAX_DEFAULT_MATMUL_PRECISION); if that is left to this library, as in `PRODUCTS` on devices that can.
    """
    chosen = jax.config.jax_default_matmul_precision
    if chosen != "highest" or "JAX_DEFAULT_MATMUL_PRECISION" in os.environ or not _has_tf32():
        return chosen
    return PRODUCTS.get(platform(), "highest")


def _has_tf32() -> bool:
    """Says whether the device is a GPU of compute capability 8 (NVIDIA Ampere) or more, or one that is not here."""
    capability = getattr(jax.local_devices()[0], "compute_capability", "")
    return _MADE_FOR is not None or (capability.replace(".", "").isdigit() and float(capability) >= 8.0)


def default_runs_per_batch(step_flops: float = 0.0) -> int:
    """Runs that a device best handles at once: one on a CPU or if a step is large, else all there are, until memory is full.

    On a CPU one run after another on each core is as fast as any batch: 64 linear scores made 43,400 run-steps/s one at a time,
    40,800, 43,400 and 40,000 by 2, 4 and 8. That an accelerator wants all at once is what its many cores suggest, not measured.

    Args:
      step_flops: floating-point operations of one run's step.
    """
    return 1 if platform() == "cpu" or step_flops >= LARGE_STEP else 2**30


def host_threads() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def items_per_device(bytes_each: float, *, on_cpu: int) -> int:
    """Returns equal items (runs sampled, chains, images) that one device best holds at once.

    Args:
      bytes_each: memory of one while it is computed.
      on_cpu: how many suit one CPU core, whose cache they should fit.
    """
    return on_cpu if platform() == "cpu" else max(1, int(MEMORY_SHARE * device_memory() / bytes_each))


def items_at_once(count: int, bytes_each: float, *, on_cpu: int = 1) -> int:
    """Counts as `items_per_device` on all devices: a multiple of their number, no more than hold ``count`` items."""
    return min(items_per_device(bytes_each, on_cpu=on_cpu) * jax.device_count(), padded_count(count))


def device_memory() -> float:
    """Bytes that one accelerator offers to JAX; 8 GB if it does not say."""
    statistics = jax.local_devices()[0].memory_stats() or {}
    return float(statistics.get("bytes_limit", 8e9))


def place(rows: PyTree) -> PyTree:
    """Spreads stacked rows over the devices, the last one repeated up to `padded_count`.

    Args:
      rows: leaves ``[R, ...]``; those that are placed already stay as they are.
    """
    return _place(rows, _mesh(jax.device_count()))


def replicate(shared: PyTree) -> PyTree:
    """Arrays that every device needs, on all of them."""
    sharding = NamedSharding(_mesh(jax.device_count()), PartitionSpec())
    return jax.tree.map(lambda x: _put(x, sharding), shared)


def take_rows(rows: PyTree, index: np.ndarray) -> PyTree:
    """Rows ``index`` of stacked arrays: taken on the host, where JAX would compile a program for every shape."""

    def one(x):
        if jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
            return jax.random.wrap_key_data(one(jax.random.key_data(x)), impl=jax.random.key_impl(x))
        return np.asarray(x)[index]

    return jax.tree.map(one, rows)


def collect(rows: PyTree, count: int) -> PyTree:
    """Returns the first ``count`` rows of stacked arrays, as numpy arrays, on every process."""

    def one(x):
        if isinstance(x, jax.Array) and not x.is_fully_addressable:
            x = multihost_utils.process_allgather(x, tiled=True)
        return np.asarray(x)[:count]

    return jax.tree.map(one, rows)


def spread_samples(x: jax.Array) -> jax.Array:
    """Spreads the first axis of ``x`` over idle devices, in a function that `map_runs` maps with ``samples``."""
    return jax.lax.with_sharding_constraint(x, PartitionSpec(SAMPLES)) if _SAMPLES_SPREAD else x


_SAMPLES_SPREAD = False  # while a function whose samples are spread is traced


class MappedRuns:
    """The function that `map_runs` returns.

    Attributes:
      runs_per_batch: runs that each device handles at once; halved when memory runs out.
    """

    def __init__(
        self, function: Callable, *, runs_per_batch: int | None, samples: bool, donate: int | None, small: bool
    ):
        self.runs_per_batch = runs_per_batch or default_runs_per_batch()
        self._function, self._samples, self._donate, self._small = function, samples, donate, small
        self._compiled: dict[tuple[Mesh, int, str], Callable] = {}

    @property
    def compilations(self) -> int:
        """Programs compiled so far."""
        return sum(program._cache_size() for program in self._compiled.values())

    def __call__(self, shared: Any, *rows: PyTree) -> PyTree:
        """Maps over the leading axis of ``rows``; leaves come back on the devices, with the padding of `place`."""
        mesh = _mesh(self._runs_axis(_length(rows[0])))
        shared, rows = replicate(shared), tuple(_place(tree, mesh) for tree in rows)
        while True:
            try:
                return jax.block_until_ready(self._program(mesh)(shared, *rows))
            except jax.errors.JaxRuntimeError as error:
                if "RESOURCE_EXHAUSTED" not in str(error):
                    raise
                self._halve(_length(rows[0]) // mesh.shape[RUNS], error)
                if any(x.is_deleted() for x in jax.tree.leaves(rows)):
                    raise StateLost from error

    def lower(self, shared: Any, *rows: PyTree, mesh: Mesh | None = None) -> jax.stages.Lowered:
        """Returns the program of `__call__` before it is compiled, to be looked at: its text, its memory on each device.

        Args:
          shared: arrays, or what only has a shape and dtype.
          *rows: the same.
          mesh: with axes "runs" and "samples", of devices that need not be here; trace under `made_for` if they are of another
            kind. By default the mesh that `__call__` takes.
        """
        mesh = mesh or _mesh(self._runs_axis(_length(rows[0])))
        count = padded_count(_length(rows[0]), mesh.shape[RUNS])
        everywhere, spread = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in ((), (RUNS,)))
        shared, rows = jax.eval_shape(lambda *trees: trees, shared, rows)
        shared = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=everywhere), shared)
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((count, *x.shape[1:]), x.dtype, sharding=spread), rows)
        return self._program(mesh).lower(shared, *rows)

    def _runs_axis(self, count: int) -> int:
        """Devices along "runs": all, or with ``samples`` as many as there are runs to fill."""
        devices = jax.device_count()
        if not self._samples:
            return devices
        return next(size for size in range(min(count, devices), 0, -1) if devices % size == 0)

    def _halve(self, runs_per_device: int, error: Exception) -> None:
        batch = batch_size(runs_per_device, self.runs_per_batch)
        if batch == 1:
            raise MemoryError(f"one run at a time on each device is too much: {_first_line(error)}") from error
        self.runs_per_batch = batch // 2
        LOG.warning("out of memory with %d runs at once on each device: going on with %d", batch, self.runs_per_batch)

    def _program(self, mesh: Mesh) -> Callable:
        key = mesh, self.runs_per_batch, platform()
        if key not in self._compiled:
            self._compiled[key] = self._compile(mesh, self.runs_per_batch)
        return self._compiled[key]

    def _compile(self, mesh: Mesh, runs_per_batch: int) -> Callable:
        def on_device(shared, *rows):
            global _SAMPLES_SPREAD
            _SAMPLES_SPREAD = mesh.shape[SAMPLES] > 1
            try:
                precision = product_precision() if self._small else jax.config.jax_default_matmul_precision
                with jax.default_matmul_precision(precision):
                    batch = batch_size(_length(rows), runs_per_batch)
                    # One run at a time needs no vmap: on a CPU its axis of length 1 makes programs up to twice as slow.
                    at_once = None if batch == 1 else batch
                    return jax.lax.map(lambda run: self._function(shared, *run), rows, batch_size=at_once)
            finally:
                _SAMPLES_SPREAD = False

        def mapped(shared, *rows):
            specs = PartitionSpec(), *(PartitionSpec(RUNS) for _ in rows)
            spread = jax.shard_map(
                on_device, mesh=mesh, in_specs=specs, out_specs=PartitionSpec(RUNS), axis_names={RUNS}, check_vma=False
            )
            return spread(shared, *rows)

        return jax.jit(mapped, donate_argnums=() if self._donate is None else (self._donate,))


def map_runs(
    function: Callable,
    *,
    runs_per_batch: int | None = None,
    samples: bool = False,
    donate: int | None = None,
    small: bool = False,
) -> MappedRuns:
    """Compiles ``function(shared, *one_run)`` mapped over the leading axis of stacked runs, on all devices.

    When memory runs out, fewer runs are handled at once, with a warning.

    Args:
      function: takes a pytree that every run shares, and one run's pytrees.
      runs_per_batch: runs that a device handles at once (vmapped), or somewhat fewer if that divides their number; the rest
        wait their turn, which bounds memory. By default `default_runs_per_batch`.
      samples: whether ``function`` spreads samples over devices that have no run (`spread_samples`).
      donate: position of the argument whose buffers the result may take.
      small: whether ``function`` computes linear scores or MLPs, whose products may be `product_precision`'s.
    """
    return MappedRuns(function, runs_per_batch=runs_per_batch, samples=samples, donate=donate, small=small)


@functools.cache
def _mesh(runs: int) -> Mesh:
    shape = runs, jax.device_count() // runs
    return jax.make_mesh(shape, (RUNS, SAMPLES), axis_types=(AxisType.Auto, AxisType.Auto))


def _length(rows: PyTree) -> int:
    return jax.tree.leaves(rows)[0].shape[0]


def _place(rows: PyTree, mesh: Mesh) -> PyTree:
    sharding, multiple = NamedSharding(mesh, PartitionSpec(RUNS)), mesh.shape[RUNS]

    def one(x):
        if isinstance(x, jax.Array) and x.sharding == sharding:
            return x
        padded = np.minimum(np.arange(padded_count(len(x), multiple)), len(x) - 1)
        return _put(take_rows(x, padded), sharding)

    return jax.tree.map(one, rows)


def _put(x: Any, sharding: NamedSharding) -> jax.Array:
    if isinstance(x, jax.Array) and x.sharding == sharding:
        return x
    if jax.process_count() == 1:
        return jax.device_put(x, sharding)
    if jnp.issubdtype(getattr(x, "dtype", np.float32), jax.dtypes.prng_key):
        return jax.random.wrap_key_data(_put(jax.random.key_data(x), sharding), impl=jax.random.key_impl(x))
    host = np.asarray(x)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def batch_size(count: int, most: int) -> int:
    """Returns a divisor of ``count`` near ``most`` if there is one: a remainder would be compiled as a second program."""
    largest = min(count, most)
    return next((size for size in range(largest, largest // 2, -1) if count % size == 0), most)


def _first_line(error: Exception) -> str:
    return str(error).splitlines()[0]
