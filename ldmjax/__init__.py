"""Latent diffusion models, their latent dimension and their stopping time, checked against exact laws.

Importing it sets JAX's precision of matrix products to "highest", unless JAX_DEFAULT_MATMUL_PRECISION or an earlier line says
otherwise: accelerators round the factors to 10 or 8 bits by themselves, and then no score is what its oracle says.
"""

import jax

__version__ = "0.6.0"

if jax.config.jax_default_matmul_precision is None:
    jax.config.update("jax_default_matmul_precision", "highest")
