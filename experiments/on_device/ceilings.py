"""What one device can do at most. A process of its own: python -m experiments.on_device.ceilings FILE full|small|device.

With "device" FILE says only which device it is.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax import devices, records
from ldmjax.files import write_text

ROUNDS, LOOP_STEPS = 5, 2000
# Side of the products, and numbers copied.
SIZES = {"small": (256, 2**20), "cpu": (1024, 2**24)}
LARGE = 8192, 2**28


def describe() -> dict[str, Any]:
    """Which devices there are."""
    device = jax.devices()[0]
    return {"device": device.device_kind, "platform": device.platform, "devices": jax.device_count()}


def measure(size: str) -> dict[str, Any]:
    """Versions and rates; seconds are the best of `ROUNDS`."""
    side, copied = SIZES.get(size if size == "small" else devices.platform(), LARGE)
    array = jnp.zeros(copied, jnp.float32)
    precisions = dict.fromkeys(["highest", devices.product_precision(), "bfloat16"])
    return {
        **describe(),
        "memory_bytes": (jax.devices()[0].memory_stats() or {}).get("bytes_limit"),
        "host_threads": devices.host_threads(),
        "python": sys.version.split()[0],
        "versions": records.versions(),
        "product_precision": devices.product_precision(),
        "product_side": side,
        "copy_bytes_per_second": 2.0 * array.nbytes / best_seconds(jax.jit(lambda x: x + 1.0), array),
        "operations_per_second": {name: 2.0 * side**3 / _product_seconds(name, side) for name in precisions},
        "loop_step_seconds": best_seconds(jax.jit(_loop), jnp.ones(256)) / LOOP_STEPS,
        "call_seconds": best_seconds(jax.jit(jnp.sin), jnp.ones(256)),
    }


def _product_seconds(precision, side):
    """Of one product of square matrices; "bfloat16" has such operands too, the others float32."""
    dtype = jnp.bfloat16 if precision == "bfloat16" else jnp.float32
    rng = np.random.default_rng(0)
    a, b = (jnp.asarray(rng.standard_normal((side, side), np.float32), dtype) for _ in range(2))
    return best_seconds(jax.jit(partial(jnp.matmul, precision=precision)), a, b)


def _loop(x):
    """A loop of known length whose steps are one small kernel each."""
    return jax.lax.fori_loop(0, LOOP_STEPS, lambda i, x: jnp.sin(x), x)


def best_seconds(program: Callable, *arrays: jax.Array) -> float:
    """Seconds of a call that waits for its result, after one that is not timed."""
    jax.block_until_ready(program(*arrays))
    seconds = []
    for _ in range(ROUNDS):
        begin = time.perf_counter()
        jax.block_until_ready(program(*arrays))
        seconds.append(time.perf_counter() - begin)
    return min(seconds)


if __name__ == "__main__":
    devices.start()
    found = records.plain(describe() if sys.argv[2] == "device" else measure(sys.argv[2]))
    write_text(Path(sys.argv[1]), json.dumps(found))
    print(found)
