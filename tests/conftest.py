"""Under pytest: two CPU devices, checks of every annotated function by jaxtyping + beartype, a cache of compiled programs.

The cache belongs to one session and is shared by its workers and the commands they start: many tests run one program.
"""

import atexit
import os
import shutil
import tempfile

import jax
from jaxtyping import install_import_hook

if "PYTEST_XDIST_WORKER" not in os.environ:
    os.environ["LDMJAX_CACHE"] = tempfile.mkdtemp(prefix="ldmjax-tests-")
    atexit.register(shutil.rmtree, os.environ["LDMJAX_CACHE"], ignore_errors=True)
install_import_hook("ldmjax", "typechecker.check")

from ldmjax import devices  # noqa: E402 - after the hook

jax.config.update("jax_num_cpu_devices", 2)
devices.keep_compiled_programs()
