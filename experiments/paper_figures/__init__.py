"""Redraws Figures 3 and 4 of the optimal-stopping paper from exact laws and learned scores, with their numbers.

Claims ([OS], arXiv 2510.08409). Fig. 3, Prop. 3/8: for an isotropic low-rank covariance the best latent dimension is
the rank, and with an estimated score its curve can turn up before the end of sampling. Fig. 4, Prop. 2: the best
dimension grows as noise is removed; with the exact score component d is worth keeping from backward time t_d on, where
3 lam_d / (1 - lam_d) is the noise variance left.

Time runs as in the paper: backward, 0 = noise, T = data, Ornstein-Uhlenbeck. Fig. 4's covariances, T and n are the
paper's: left diag(1, 0.6, ..., 0.6^6, 1e-10, 1e-10), T = 2, exact score; right diag(10, 0.2, 0.2, 0.2, 0, 0), T = 3, n =
1000. **Fig. 3's settings are ours** (the paper's are not public): 0.3 I on 6 of 10 dimensions, and 0.6^(i-1) on 10, each
with the score of n = 30 samples, T = 2. Estimated scores are diagonal, lamh_i = lam_i chi2_n / n, and the curves of
Figs. 3 and 4 right are one draw of them: the first whose curve turns up at the counted dimension (4 in Fig. 4).

For every curve a diagonal linear score is trained by denoising score matching, on n samples whose second moments are
the estimates of that draw (exact score: on fresh draws), and 8192 samples of it are stopped at ten times on the way
(Euler-Maruyama, 300 steps, marginal start): the open markers. They are compared with the exact law of the same chain.

    python -m experiments.paper_figures                 # --nolearned: closed forms only, 7 s
    python -m experiments.paper_figures --quick         # fewer draws, steps and samples

Takes 40 to 55 s on two cores; the numbers obtained stand in docs/results.md#paper_figures.
"""

import numpy as np

from experiments.launch import Results, Stage
from experiments.paper_figures import learned
from experiments.paper_figures.setup import PANELS, Config, Panel
from ldmjax import oracle, schedules, training
from ldmjax.job import Job
from ldmjax.metrics.statistics import wilson_interval
from ldmjax.random_matrices import twin_estimates

QUICK = {"draws": 50, "steps": 300, "samples": 1024, "sampling_steps": 100}
ARRAYS = ("variances", "estimated_variances", "times", "noise_var", "w2_squared", "best_times", "thresholds")


def compute(config: Config, data: None, job: Job) -> Results:
    """Closed forms of every panel, and learned scores.

    Rows are of kind latent_dim (per panel and latent dimension), draws (counts over draws of a panel), learned (per
    panel, latent dimension and stop). Arrays are `closed_forms` of each panel, PANEL_NAME in curves.npz.
    """
    found = {
        name: job.keep(f"panel/{name}", lambda panel=panel: closed_forms(panel, config))
        for name, panel in PANELS.items()
    }
    rows = [row for name, forms in found.items() for row in _closed_rows(name, PANELS[name], forms)]
    if config.learned:
        estimates = {name: forms["estimated_variances"] for name, forms in found.items()}
        rows += learned.measure(PANELS, estimates, config, job)
    arrays = {f"{name}_{array}": forms[array] for name, forms in found.items() for array in ARRAYS}
    return Results(rows=rows, arrays=arrays)


def plan(config: Config, data: None) -> list[Stage]:
    """Closed forms, training and sampling."""
    stages = [Stage(stage="closed forms", runs=len(PANELS))]
    if not config.learned:
        return stages
    specs, ends = learned.make_specs(PANELS, config), {panel.t_max for panel in PANELS.values()}
    own = learned.training_config(PANELS, config)
    size = {"runs": len(specs), "parameters": training.parameter_count(own, max(spec.latent_dim for spec in specs))}
    trained, sampled = (
        len(specs) * steps * count
        for steps, count in ((config.steps, config.batch_size), (config.sampling_steps, config.samples))
    )
    return [
        *stages,
        Stage(stage="train", programs=1, steps=config.steps, evaluations=trained, **size),
        Stage(stage="sample", programs=len(ends), steps=config.sampling_steps, evaluations=sampled, **size),
    ]


def closed_forms(panel: Panel, config: Config) -> dict:
    """Curves of one draw of the estimated variances, and counts over draws; distances are squared W2.

    Returns:
      variances, estimated_variances ``[D]``; equal for the exact score.
      times, noise_var ``[K]``: backward times 0..T and the noise variance left there.
      w2_squared ``[D, K]``: all dimensions.
      best_times ``[D]``: backward time of each dimension's minimum (T: never stop early); best_w2_squared ``[D]`` there.
      thresholds ``[D]``: backward time from which component d lowers the distance; NaN if it never does.
      draws: how many.
      shown_draw: which of them the curves are: the first with an interior minimum at ``counted_dim`` (0 if none has).
      interior_count: in how many the minimum of ``counted_dim`` lies strictly between start and end.
      rank_count: in how many the joint optimum over dimension and stop is at ``counted_dim``; only of an isotropic law.
    """
    variances, t_max, dim = panel.variances, panel.t_max, panel.counted_dim
    schedule = schedules.OrnsteinUhlenbeck(t_max=t_max)
    noise_var_max = float(schedule.sigma(t_max) ** 2)
    # Half of the grid crowds towards the end, where estimated scores turn up.
    towards_end = t_max - np.geomspace(1e-5, t_max, config.levels)[:-1]
    times = np.unique(np.append(np.linspace(0.0, t_max, config.levels), towards_end))
    noise_var = schedule.sigma(t_max - times) ** 2
    draws, interior, rank_count = variances[None], np.zeros(1, bool), None
    if panel.n is not None:
        draws = twin_estimates(variances, n=panel.n, draws=config.draws, seed=config.seed)
        interior = interior_minima(variances, draws, dim, noise_var_max=noise_var_max)
        if np.ptp(variances[:dim]) == 0:
            optima = [oracle.best_stop(variances, d, noise_var_max=noise_var_max)[0] for d in draws]
            rank_count = optima.count(dim)
    shown = int(np.argmax(interior))
    estimated = draws[shown]
    best = oracle.best_noise_var(variances, estimated, noise_var_max=noise_var_max)
    return {
        "variances": variances,
        "estimated_variances": estimated,
        "times": times,
        "noise_var": noise_var,
        "w2_squared": oracle.w2_squared_curve(variances, estimated, noise_var),
        "best_times": np.maximum(t_max - _time(best), 0.0),
        "best_w2_squared": np.diagonal(oracle.w2_squared_curve(variances, estimated, best)).copy(),
        "thresholds": threshold_times(variances, estimated, t_max=t_max),
        "draws": len(draws),
        "shown_draw": shown,
        "interior_count": int(interior.sum()),
        "rank_count": rank_count,
    }


def _time(noise_var):
    """Forward Ornstein-Uhlenbeck time at which the noise variance has the given value."""
    with np.errstate(divide="ignore"):
        return -0.5 * np.log1p(-np.asarray(noise_var))


def interior_minima(variances: np.ndarray, draws: np.ndarray, dim: int, *, noise_var_max: float) -> np.ndarray:
    """Which draws ``[R, D]`` have the minimum of latent dimension ``dim`` strictly inside: boolean ``[R]`` (Prop. 1).

    W2^2 is convex in the noise variance, so the sign of its slope at both ends decides.
    """
    ends = np.array([0.0, noise_var_max])
    slopes = [oracle.stopped.slope_terms(variances[:dim], d[:dim], ends, 1.0).sum(axis=0) for d in draws]
    at_zero, at_max = np.transpose(slopes)
    return (at_zero < 0) & (at_max > 0)


def threshold_times(variances: np.ndarray, estimated_variances: np.ndarray, *, t_max: float) -> np.ndarray:
    """Backward time ``[D]`` from which each component lowers the distance (Prop. 2), within [0, T].

    For lamh > 1 a component may be useful at first and not later; only those useful up to the end have a threshold.
    """
    low, high = oracle.useful_noise_var(variances, estimated_variances).T
    return np.where(low == 0, np.clip(t_max - _time(high), 0.0, t_max), np.nan)


def _closed_rows(name: str, panel: Panel, forms: dict) -> list[dict]:
    """One row per latent dimension, then one with counts over draws."""
    rows = [
        {
            "kind": "latent_dim",
            "panel": name,
            "n": panel.n,
            "t_max": panel.t_max,
            "latent_dim": i + 1,
            "threshold_backward_time": forms["thresholds"][i],
            "best_backward_time": forms["best_times"][i],
            "w2_squared_best": forms["best_w2_squared"][i],
            "w2_squared_end": forms["w2_squared"][i, -1],
        }
        for i in range(panel.variances.size)
    ]
    if panel.counted_dim is None:
        return rows
    draws, count = forms["draws"], forms["interior_count"]
    low, high = wilson_interval(count, draws)
    counts = {"interior_count": count, "interior_share": count / draws, "interior_low": low, "interior_high": high}
    counts |= {"joint_optimum_count": forms["rank_count"], "shown_draw": forms["shown_draw"]}
    named = {"kind": "draws", "panel": name, "n": panel.n, "draws": draws, "latent_dim": panel.counted_dim}
    return [*rows, named | counts]
