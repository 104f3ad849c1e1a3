"""Latent diffusion models, their latent dimension and their stopping time, checked against exact laws.

Importing it sets JAX's precision of matrix products to "highest", unless JAX_DEFAULT_MATMUL_PRECISION or an earlier line says
otherwise: accelerators round the factors to 10 or 8 bits by themselves, and then no score is what its oracle says.

`ldmjax.recommend` says which latent dimension to use and when to stop sampling (ldmjax.recommendation).
"""

import importlib
from typing import Any

import jax

__version__ = "0.6.0"

if jax.config.jax_default_matmul_precision is None:
    jax.config.update("jax_default_matmul_precision", "highest")


def __getattr__(name: str) -> Any:
    """`recommend`, imported when it is first asked for: it needs most of the library."""
    if name == "recommend":
        return importlib.import_module("ldmjax.recommendation").recommend
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
