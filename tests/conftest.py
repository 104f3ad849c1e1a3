"""Two CPU devices, and jaxtyping + beartype checks on every annotated function of the library, under pytest only."""

import jax
from jaxtyping import install_import_hook

jax.config.update("jax_num_cpu_devices", 2)
install_import_hook("ldmjax", "typechecker.check")
