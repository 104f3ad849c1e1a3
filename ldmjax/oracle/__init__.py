"""The linear-autoencoder Gaussian case, solved exactly: laws, optima and the exact `Denoiser`.

Data are N(0, diag(variances)), largest first; the score is the plug-in one of ``estimated_variances`` (the same
component order, never re-sorted); the autoencoder keeps the first ``latent_dim`` components; ``noise_var`` is the VP
noise variance nu left when sampling stops. Results are float64 numpy ``[D, K]``: row d-1 is latent dimension d,
column k is ``noise_var[k]``. Every distance is squared and says so.

- `stopped`: laws and optima without a cap, docs/theory.md (2.1)-(2.4)
- `capped`: laws and bounds with a cap on the score, §3
- `general`: any covariance, any linear autoencoder, §4
- `discretised`: laws of samplers with finitely many steps, §5
- `tables`: the squared W2 of many such samplers at once
- `levels`: what a ladder of noise levels costs and which is best, docs/t_space.md, sections 1 and 2
- `denoisers`: the exact score as a `Denoiser`
- `propositions`: every proposition of arXiv 2510.08409 checked on a given spectrum
"""

from ldmjax.oracle.capped import (
    best_capped_stop,
    capped_score_weights,
    capped_variances,
    corollary_dimensions,
    dimension_bounds,
)
from ldmjax.oracle.denoisers import bayes_noise_error, gaussian_denoiser, rotated_denoiser
from ldmjax.oracle.discretised import KEPT_BY, chain_variances, error_split, sampler_variances, variance_kept
from ldmjax.oracle.general import w2_squared_general, w2_squared_linear_autoencoder, w2_squared_projected
from ldmjax.oracle.levels import discretisation_weights, effective_states, optimised_levels
from ldmjax.oracle.propositions import PropositionCheck, check_propositions
from ldmjax.oracle.stopped import (
    best_latent_dim,
    best_noise_var,
    best_stop,
    component_is_useful,
    latent_kl_divergences,
    mmd_squared_from_variances,
    rectified_flow_w2_squared_curve,
    sliced_w2_squared_from_variances,
    stopped_variances,
    tolerance_noise_var,
    useful_noise_var,
    w2_squared_curve,
    w2_squared_from_variances,
)
from ldmjax.oracle.tables import discretisation_table

__all__ = [
    "KEPT_BY",
    "PropositionCheck",
    "bayes_noise_error",
    "best_capped_stop",
    "best_latent_dim",
    "best_noise_var",
    "best_stop",
    "capped_score_weights",
    "capped_variances",
    "chain_variances",
    "check_propositions",
    "component_is_useful",
    "corollary_dimensions",
    "dimension_bounds",
    "discretisation_table",
    "discretisation_weights",
    "effective_states",
    "error_split",
    "gaussian_denoiser",
    "latent_kl_divergences",
    "mmd_squared_from_variances",
    "optimised_levels",
    "rectified_flow_w2_squared_curve",
    "rotated_denoiser",
    "sampler_variances",
    "sliced_w2_squared_from_variances",
    "stopped_variances",
    "tolerance_noise_var",
    "useful_noise_var",
    "variance_kept",
    "w2_squared_curve",
    "w2_squared_from_variances",
    "w2_squared_general",
    "w2_squared_linear_autoencoder",
    "w2_squared_projected",
]
