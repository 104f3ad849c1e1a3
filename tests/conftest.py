"""Under pytest: two CPU devices, checks of every annotated function by jaxtyping + beartype, a cache of compiled programs.

The cache belongs to one session and is shared by its workers and the commands they start: many tests run one program.

With an accelerator, `pytest -n 0` computes on it; what the marker `needs_cpu` names is skipped there. All other processes, the
workers of `-n 4` and the commands that tests start, compute on the CPU: a TPU belongs to one process, a GPU's memory nearly so.
"""

import atexit
import os
import shutil
import tempfile

import jax
import pytest
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LDMJAX_CACHE"] = tempfile.mkdtemp(prefix="ldmjax-tests-")
    atexit.register(shutil.rmtree, os.environ["LDMJAX_CACHE"], ignore_errors=True)
install_import_hook("ldmjax", "typechecker.check")

from ldmjax import devices  # noqa: E402 - after the hook

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
jax.config.update("jax_num_cpu_devices", 2)
devices.keep_compiled_programs()
PLATFORM = jax.default_backend()  # this process keeps it; those that it starts read the environment
os.environ["JAX_PLATFORMS"] = "cpu"


def pytest_runtest_setup(item):
    if PLATFORM != "cpu" and (marker := item.get_closest_marker("needs_cpu")):
        pytest.skip(f"on a {PLATFORM}: needs {marker.args[0]}")
