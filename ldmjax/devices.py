"""Where runs live: one mesh axis, "runs", over all devices.

On a CPU the dots inside a loop use one core, so the cores are offered to JAX as separate devices and each takes its share
of the runs.
"""

import os
from collections.abc import Callable

import jax
from jax.sharding import AxisType, PartitionSpec


def use_all_cores() -> None:
    """Offers every CPU core as a JAX device; call before any other JAX function. Keeps what XLA_FLAGS already says."""
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", len(os.sched_getaffinity(0)))


def map_runs(function: Callable, *, runs_per_batch: int) -> Callable:
    """Maps ``function(shared, one_run)`` over the leading axis of a pytree of runs, on all devices.

    Args:
      function: takes (a pytree that every run shares, one run's pytree).
      runs_per_batch: runs that a device handles at once (vmapped), or somewhat fewer if that divides their number; the rest
        wait their turn, which bounds memory.

    Returns:
      A function of (shared, runs) for a number of runs that is a multiple of the device count (`padded_count`).
    """
    mesh = jax.make_mesh((jax.device_count(),), ("runs",), axis_types=(AxisType.Auto,))

    def on_device(shared, runs):
        # Accelerators round the factors of a matrix product to 10 or 8 bits unless told not to.
        with jax.default_matmul_precision("highest"):
            batch = _batch(jax.tree.leaves(runs)[0].shape[0], runs_per_batch)
            return jax.lax.map(lambda run: function(shared, run), runs, batch_size=batch)

    spec = PartitionSpec("runs")
    return jax.shard_map(on_device, mesh=mesh, in_specs=(PartitionSpec(), spec), out_specs=spec, check_vma=False)


def _batch(count: int, runs_per_batch: int) -> int:
    """A divisor of ``count`` near ``runs_per_batch`` if there is one: a remainder would be compiled as a second program."""
    most = min(count, runs_per_batch)
    return next((size for size in range(most, most // 2, -1) if count % size == 0), runs_per_batch)


def padded_count(runs: int) -> int:
    """The smallest multiple of the device count that holds ``runs``."""
    return -(-runs // jax.device_count()) * jax.device_count()
