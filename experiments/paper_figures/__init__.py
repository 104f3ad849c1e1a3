"""Redraws Figures 3 and 4 of the optimal-stopping paper from exact laws and learned scores, with their numbers.

Claims ([OS], arXiv 2510.08409). Fig. 3, Prop. 3/8: for an isotropic low-rank covariance the best latent dimension is
the rank, and with an estimated score its curve can turn up before the end of sampling. Fig. 4, Prop. 2: the best
dimension grows as noise is removed; with the exact score component d is worth keeping from backward time t_d on, where
3 lam_d / (1 - lam_d) is the noise variance left.

Time runs as in the paper: backward, 0 = noise, T = data, Ornstein-Uhlenbeck. Fig. 4's covariances, T and n are the
paper's: left diag(1, .6, ..., .6^6, 1e-10, 1e-10), T = 2, exact score; right diag(10, .2, .2, .2, 0, 0), T = 3, n =
1000. **Fig. 3's settings are ours** (the paper's are not public): .3 I on 6 of 10 dimensions, and .6^(i-1) on 10, each
with the score of n = 30 samples, T = 2. Estimated scores are diagonal, lamh_i = lam_i chi2_n / n, and the curves of
Figs. 3 and 4 right are one draw of them: the first whose curve turns up at the counted dimension (4 in Fig. 4).

For every curve a diagonal linear score is trained by denoising score matching, on n samples whose second moments are
the estimates of that draw (exact score: on fresh draws), and 8192 samples of it are stopped at ten times on the way
(Euler-Maruyama, 300 steps, marginal start): the open markers. They are compared with the exact law of the same chain.

    python -m experiments.paper_figures                 # --nolearned: closed forms only, 7 s
    python -m experiments.paper_figures --quick         # fewer draws, steps and samples

Takes 40 to 55 s on two cores. Obtained: t_4..t_8 = 1.12412, 1.70408, 1.85419, 1.92061, 2.00000. Fig. 4 right: d = 4
has its minimum before the end in 523 of 1000 draws (90 % interval .497 to .549; 477 fall to the end), saving 44 % in
the one shown. Fig. 3 left: the rank is the joint optimum in 1000 of 1000 draws, with its minimum before the end in
741 of them, saving 1.4 % in the one shown. Learned scores, 27 of them at 10 stops each: root mean square deviation
from the exact law .97 standard errors, largest 3.1; Fig. 3 right, d = 6 ends at .1105 ± .0014 against .1114. The
largest is the end of Fig. 4 right at d = 5, -.0000 ± .0026 against .0078: so small a distance moves by half with
training error (the exact law of the learned weights ends at .0038) and with 300 steps (the line, without steps, ends
at .0136).
"""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from experiments import plans
from experiments.phase_diagram import twin_estimates, wilson_interval
from ldmjax import oracle, plotting, schedules
from ldmjax.checkpoints import NOTHING_KEPT, Store

SETTINGS = {
    "fig3_low_rank": {
        "title": "isotropic, rank 6 of 10, n = 30",
        "variances": np.append(np.full(6, 0.3), np.zeros(4)),
        "t_max": 2.0, "n": 30, "latent_dims": (2, 4, 5, 6, 7, 8, 10), "counted_dim": 6, "yscale": "linear",
    },
    "fig3_decaying": {
        "title": "decaying, 0.6^(i-1), n = 30",
        "variances": 0.6 ** np.arange(10.0),
        "t_max": 2.0, "n": 30, "latent_dims": (1, 2, 4, 6, 8, 10), "counted_dim": 6, "yscale": "log",
    },
    "fig4_left": {
        "title": "diag(1, .6, ..., .6^6, 1e-10, 1e-10), exact score",
        "variances": np.append(0.6 ** np.arange(7.0), [1e-10, 1e-10]),
        "t_max": 2.0, "n": None, "latent_dims": (1, 2, 3, 4, 5, 6, 7, 8), "counted_dim": None, "yscale": "linear",
    },
    "fig4_right": {
        "title": "diag(10, .2, .2, .2, 0, 0), n = 1000",
        "variances": np.array([10.0, 0.2, 0.2, 0.2, 0.0, 0.0]),
        "t_max": 3.0, "n": 1000, "latent_dims": (1, 2, 3, 4, 5, 6), "counted_dim": 4, "yscale": "log",
    },
}  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is computed; the flags of the same names say more."""

    draws: int = 1000
    seed: int = 0
    levels: int = 801

    def __post_init__(self):
        for name, low in [("draws", 1), ("levels", 2)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Panel:
    """One panel. D components, K stops; time is backward and distances are squared W2.

    Attributes:
      name, title: of the panel.
      variances, estimated_variances: ``[D]``; equal for the exact score.
      t_max: T.
      n: sample size, None for the exact score.
      latent_dims: those drawn.
      times, noise_var: ``[K]`` backward times 0..T and the noise variance left there.
      w2_squared: ``[D, K]``, all dimensions.
      best_times: ``[D]``, backward time of each dimension's minimum (T: never stop early).
      best_w2_squared: ``[D]``, the distance there.
      thresholds: ``[D]``, backward time from which component d lowers the distance; NaN if it never does.
      counted_dim: the dimension whose minima before the end are counted over draws, or None.
      draws: how many.
      shown_draw: which of them the curves are: the first with an interior minimum at ``counted_dim`` (0 if none has).
      interior_count: in how many the minimum of ``counted_dim`` lies strictly between start and end.
      rank_count: in how many the joint optimum over dimension and stop is at ``counted_dim``; None if not counted.
      yscale: "linear" or "log".
      points: learned results to draw over the lines.
    """

    name: str
    title: str
    variances: np.ndarray
    estimated_variances: np.ndarray
    t_max: float
    n: int | None
    latent_dims: tuple[int, ...]
    times: np.ndarray
    noise_var: np.ndarray
    w2_squared: np.ndarray
    best_times: np.ndarray
    best_w2_squared: np.ndarray
    thresholds: np.ndarray
    counted_dim: int | None
    draws: int
    shown_draw: int
    interior_count: int
    rank_count: int | None
    yscale: str
    points: tuple[plotting.Points, ...]


def plan(config: Config) -> list[plans.Stage]:
    """The stages of `run`."""
    return [plans.host("closed forms", runs=len(SETTINGS), seconds=1e-3 * config.draws)]


def run(
    config: Config,
    learned: Mapping[str, Sequence[plotting.Points]] | None = None,
    store: Store = NOTHING_KEPT,
) -> dict[str, Panel]:
    """Computes every panel; the function behind the command.

    Args:
      config: what to compute.
      learned: per panel name (the keys of `SETTINGS`), measured stopping curves of learned scores to draw over the
        exact lines: one `plotting.Points` per latent dimension, with x in backward time.
      store: where panels are kept.

    Returns:
      ``{name: Panel}``.
    """
    panels = {name: store.piece(f"panel/{name}", lambda name=name: _panel(name, config)) for name in SETTINGS}
    return with_points(panels, learned or {})


def with_points(panels: Mapping[str, Panel], learned: Mapping[str, Sequence[plotting.Points]]) -> dict[str, Panel]:
    """The panels with the points of `run`'s ``learned``; those it does not name have none."""
    if unknown := sorted(set(learned) - set(panels)):
        raise ValueError(f"learned has no panel {unknown[0]!r}: the panels are {', '.join(panels)}")
    return {name: dataclasses.replace(p, points=tuple(learned.get(name, ()))) for name, p in panels.items()}


def _panel(name, config):
    setting = SETTINGS[name]
    variances, n, t_max = setting["variances"], setting["n"], setting["t_max"]
    schedule = schedules.OrnsteinUhlenbeck(t_max=t_max)
    noise_var_max = float(schedule.sigma(t_max) ** 2)
    # Half of the grid crowds towards the end, where estimated scores turn up.
    grid = np.append(np.linspace(0.0, t_max, config.levels), t_max - np.geomspace(1e-5, t_max, config.levels)[:-1])
    times = np.unique(grid)
    noise_var = schedule.sigma(t_max - times) ** 2
    draws, dim = variances[None], setting["counted_dim"]
    if n is not None:
        draws = twin_estimates(variances, n=n, draws=config.draws, seed=config.seed)
    interior = np.zeros(1, bool) if dim is None else interior_minima(variances, draws, dim, noise_var_max=noise_var_max)
    at_rank = None
    if name == "fig3_low_rank":
        at_rank = sum(oracle.best_stop(variances, d, noise_var_max=noise_var_max)[0] == dim for d in draws)
    shown = int(np.argmax(interior))
    estimated = draws[shown]
    best = oracle.best_noise_var(variances, estimated, noise_var_max=noise_var_max)
    return Panel(
        name=name,
        variances=variances,
        estimated_variances=estimated,
        n=n,
        times=times,
        noise_var=noise_var,
        w2_squared=oracle.w2_squared_curve(variances, estimated, noise_var),
        best_times=np.maximum(t_max - _time(best), 0.0),
        best_w2_squared=np.diagonal(oracle.w2_squared_curve(variances, estimated, best)).copy(),
        thresholds=threshold_times(variances, estimated, t_max=t_max),
        draws=len(draws),
        shown_draw=shown,
        interior_count=int(interior.sum()),
        rank_count=at_rank,
        points=(),
        **{key: setting[key] for key in ("title", "t_max", "latent_dims", "counted_dim", "yscale")},
    )


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


def make_records(panels: Mapping[str, Panel]) -> list[dict]:
    """Lines of records.jsonl: one per panel and latent dimension, then one per panel with counts over draws."""
    rows = []
    for panel in panels.values():
        for d in range(1, panel.variances.size + 1):
            rows.append(
                {
                    "kind": "latent_dim",
                    "panel": panel.name,
                    "n": panel.n,
                    "t_max": panel.t_max,
                    "latent_dim": d,
                    "threshold_backward_time": panel.thresholds[d - 1],
                    "best_backward_time": panel.best_times[d - 1],
                    "w2_squared_best": panel.best_w2_squared[d - 1],
                    "w2_squared_end": panel.w2_squared[d - 1, -1],
                }  # fmt: skip
            )
        if panel.counted_dim is not None:
            low, high = wilson_interval(panel.interior_count, panel.draws)
            rows.append(
                {
                    "kind": "draws",
                    "panel": panel.name,
                    "n": panel.n,
                    "draws": panel.draws,
                    "latent_dim": panel.counted_dim,
                    "interior_count": panel.interior_count,
                    "interior_share": panel.interior_count / panel.draws,
                    "interior_low": low,
                    "interior_high": high,
                    "joint_optimum_count": panel.rank_count,
                    "shown_draw": panel.shown_draw,
                }  # fmt: skip
            )
    return rows
