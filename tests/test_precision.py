"""Float32 products as accelerators make them, of parts with few bits, emulated on a CPU: do scores still reach their oracle?

An algorithm rounds each operand to a *high* part, and if it makes three products, what is left of it to a *low* part: high high
+ high low + low high, each summed in float32. An accelerator's own order of summation is not emulated.
"""

import dataclasses
import functools
from functools import partial

import jax
import numpy as np
import pytest
from jax._src.lax.lax import _dot_general_lower  # the rule that a CPU has; JAX has no public name for it
from jax.interpreters import mlir

from experiments import optimal_stopping
from experiments.optimal_stopping.evaluation import exact_score, score_errors, summarise_errors
from experiments.optimal_stopping.setup import make_specs
from ldmjax import devices, sweeps

# Explicit bits of the mantissa of a part, and whether there are low parts.
ALGORITHMS = {
    "TF32_TF32_F32": (10, False),
    "TF32_TF32_F32_X3": (10, True),
    "BF16_BF16_F32": (7, False),
    "BF16_BF16_F32_X3": (7, True),
}
# What experiments/optimal_stopping obtains on a CPU: linear scores, and MLPs on fresh draws by latent dimension.
LINEAR_LIMIT, MLP_LIMITS = 0.0074, {1: 0.013, 4: 0.013, 16: 0.023, 64: 0.079}
SAME = 0.02  # relative difference of two score errors
CONFIG = optimal_stopping.Config(latent_dims=tuple(MLP_LIMITS), seeds=(0,))
CPU_RULE = partial(_dot_general_lower, platform="cpu")


def emulated(lhs, rhs, *, dimension_numbers, precision, **_):
    """One product by the algorithm that ``precision`` names."""
    bits, low_parts = ALGORITHMS[precision.name]

    def parts(x):
        high = jax.lax.reduce_precision(x, exponent_bits=8, mantissa_bits=bits)
        return high, jax.lax.reduce_precision(x - high, exponent_bits=8, mantissa_bits=bits)

    product = partial(jax.lax.dot_general, dimension_numbers=dimension_numbers, precision=jax.lax.Precision.HIGHEST)
    (left, left_low), (right, right_low) = parts(lhs), parts(rhs)
    if not low_parts:
        return product(left, right)
    return product(left_low, right) + product(left, right_low) + product(left, right)


@pytest.fixture
def emulation(monkeypatch):
    """Programs are traced as for a GPU; the function that chooses the algorithm of their products."""

    def rule(context, lhs, rhs, **options):
        if getattr(options["precision"], "name", None) in ALGORITHMS:
            return mlir.lower_fun(emulated, multiple_results=False)(context, lhs, rhs, **options)
        return CPU_RULE(context, lhs, rhs, **options)

    mlir.register_lowering(jax.lax.dot_general_p, rule, platform="cpu")
    with devices.made_for("gpu"):
        yield lambda algorithm: monkeypatch.setitem(devices.PRODUCTS, "gpu", algorithm)
    mlir.register_lowering(jax.lax.dot_general_p, CPU_RULE, platform="cpu")


@functools.cache
def problems():
    found = CONFIG.load()
    return dataclasses.replace(found, by_key={key: p for key, p in found.by_key.items() if p.is_twin})


def score_error_of_runs(model: str) -> dict[sweeps.RunSpec, float]:
    """``score_error`` of those of the main job's runs that have an oracle on the Gaussian twin."""
    specs, laws = [], []
    for spec in make_specs(CONFIG, model, problems()):
        law = exact_score(spec, problems().of(spec))
        if law is not None:
            specs, laws = [*specs, spec], [*laws, law]
    trained = sweeps.train_scores(
        specs, problems().latents, CONFIG.training(model), width=max(CONFIG.latent_dims), runs_per_batch=1
    )
    errors, norms = score_errors(trained, laws, CONFIG)
    return {s: summarise_errors(e, n, e, n)["score_error"] for s, e, n in zip(specs, errors, norms, strict=True)}


@pytest.mark.parametrize(
    ("algorithm", "relative_error"),
    [("TF32_TF32_F32", 1e-3), ("TF32_TF32_F32_X3", 1e-6), ("BF16_BF16_F32", 1e-2), ("BF16_BF16_F32_X3", 3e-5)],
)
def test_a_product_has_the_digits_of_its_parts(emulation, algorithm, relative_error):
    emulation(algorithm)
    left, right = np.random.default_rng(0).standard_normal((2, 64, 64)).astype(np.float32)
    product = devices.collect(devices.map_runs(lambda right, left: left @ right, small=True)(right, left[None]), 1)[0]
    exact = left.astype(float) @ right
    error = np.linalg.norm(product - exact) / np.linalg.norm(exact)
    assert 0.1 * relative_error < error < relative_error


@pytest.mark.slow
def test_scores_are_those_of_float32(emulation):
    """The algorithms that accelerators use keep the limits and change no score error; bfloat16's plain products change some.

    The limits alone would let even those pass: most of a score error is the training's own noise.
    """
    found, chosen = {}, set(devices.PRODUCTS.values())
    for algorithm in ("highest", *chosen, "BF16_BF16_F32"):
        emulation(algorithm)
        found[algorithm] = score_error_of_runs("linear") | score_error_of_runs("mlp")
    change = {
        algorithm: max(abs(error / found["highest"][spec] - 1.0) for spec, error in errors.items())
        for algorithm, errors in found.items()
    }
    for algorithm in chosen:
        for spec, error in found[algorithm].items():
            limit, digits = (LINEAR_LIMIT, 4) if spec.model == "linear" else (MLP_LIMITS[spec.latent_dim], 3)
            assert round(error, digits) <= limit, spec.name
        assert change[algorithm] < SAME, change
    assert change["BF16_BF16_F32"] > SAME, change
