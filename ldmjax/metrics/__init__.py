"""Distances between generated samples and a reference, each with pseudo-values from which stopping.py takes its intervals.

`latents`: samples decoded linearly, everything computed from latents, reduced inside a compiled sampler. `features`: any
images, compared in a feature space on the host, with the error of the reference sample included. `repeats`: samples that are
no samples of their own.
"""

from ldmjax.metrics.features import (
    FEATURE_METRICS,
    FeatureReference,
    Measure,
    feature_pseudo_values,
    measure,
    measure_curves,
    nearest_distances,
)
from ldmjax.metrics.latents import (
    METRICS,
    SINGULAR,
    LatentReference,
    Reference,
    SampleStatistics,
    block_moments,
    distances,
    latent_reference,
    moment_pseudo_values,
    pseudo_values,
    sample_statistics,
    sliced_statistics,
)
from ldmjax.metrics.repeats import NearRepeats, exact_repeats, near_repeats, repeats_by_chance

__all__ = [
    "FEATURE_METRICS",
    "METRICS",
    "SINGULAR",
    "FeatureReference",
    "LatentReference",
    "Measure",
    "NearRepeats",
    "Reference",
    "SampleStatistics",
    "block_moments",
    "distances",
    "exact_repeats",
    "feature_pseudo_values",
    "latent_reference",
    "measure",
    "measure_curves",
    "moment_pseudo_values",
    "near_repeats",
    "repeats_by_chance",
    "nearest_distances",
    "pseudo_values",
    "sample_statistics",
    "sliced_statistics",
]
