"""Redraws Figures 3 and 4 of the optimal-stopping paper from exact laws, with their thresholds and shares as numbers.

Claims ([OS], arXiv 2510.08409). Fig. 3, Prop. 3/8: for an isotropic low-rank covariance the best latent dimension is
the rank, and with an estimated score its curve can turn up before the end of sampling. Fig. 4, Prop. 2: the best
dimension grows as noise is removed; with the exact score component d is worth keeping from backward time t_d on, where
3 lam_d / (1 - lam_d) is the noise variance left.

Time runs as in the paper: backward, 0 = noise, T = data, Ornstein-Uhlenbeck. Fig. 4's covariances, T and n are the
paper's: left diag(1, .6, ..., .6^6, 1e-10, 1e-10), T = 2, exact score; right diag(10, .2, .2, .2, 0, 0), T = 3, n =
1000. **Fig. 3's settings are ours** (the paper's are not public): .3 I on 6 of 10 dimensions, and .6^(i-1) on 10, each
with the score of n = 30 samples, T = 2. Estimated scores are diagonal, lamh_i = lam_i chi2_n / n, and the curves of
Figs. 3 and 4 right are one draw of them: the first whose curve turns up at the counted dimension (4 in Fig. 4).

    python -m experiments.paper_figures

Takes 7 s. Obtained: t_4..t_8 = 1.12412, 1.70408, 1.85419, 1.92061, 2.00000. Fig. 4 right: d = 4 has its minimum before
the end in 523 of 1000 draws (90 % interval .497 to .549; 477 fall to the end), saving 44 % in the one shown. Fig. 3
left: the rank is the joint optimum in 1000 of 1000 draws, with its minimum before the end in 741 of them, saving 1.4 %
in the one shown.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments.phase_diagram import twin_estimates, wilson_interval
from ldmjax import oracle, plotting, records, schedules

FLAGS = flags.FLAGS
XLABEL = "backward time at which sampling stops (0 = noise, T = {:g} = data)"
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


def run(config: Config, learned: Mapping[str, Sequence[plotting.Points]] | None = None) -> dict[str, Panel]:
    """Computes every panel; the function behind the command.

    Args:
      config: what to compute.
      learned: per panel name (the keys of `SETTINGS`), measured stopping curves of learned scores to draw over the
        exact lines: one `plotting.Points` per latent dimension, with x in backward time.

    Returns:
      ``{name: Panel}``.
    """
    learned = dict(learned or {})
    if unknown := sorted(set(learned) - set(SETTINGS)):
        raise ValueError(f"learned has no panel {unknown[0]!r}: the panels are {', '.join(SETTINGS)}")
    return {name: _panel(name, config, tuple(learned.get(name, ()))) for name in SETTINGS}


def _panel(name, config, points):
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
        points=points,
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


def draw(panels: Sequence[Panel], caption: str):
    """Per panel the stopping curves, and below them the turn near the end, or the best dimension at each stop."""
    figure, axes = plotting.new_figure(2, len(panels), width=6.2 * len(panels), height=8.6, caption=caption)
    for panel, (top, bottom) in zip(panels, axes.T, strict=True):
        rows = np.array(panel.latent_dims) - 1
        plotting.draw_stopping_curves(
            top, panel.w2_squared[rows], panel.noise_var, latent_dims=panel.latent_dims, x=panel.times,
            points=panel.points,
        )  # fmt: skip
        top.set(
            xlabel=XLABEL.format(panel.t_max), ylabel=plotting.W2_LABEL, yscale=panel.yscale,
            xlim=(0, 1.015 * panel.t_max),
        )  # fmt: skip
        top.set_title(panel.title, fontsize=10)
        if panel.n is None:
            _draw_best_dimension(bottom, panel)
            for t in panel.thresholds[panel.thresholds > 0]:
                top.axvline(t, color="grey", linewidth=0.8, zorder=0)
        else:
            _draw_turn(bottom, panel)
        plotting.draw_legend(top, below=True, ncols=4)
    return figure


def _draw_best_dimension(axes, panel):
    """The best dimension at each stop, with the thresholds where it changes."""
    best = 1 + np.argmin(panel.w2_squared, axis=0)
    axes.plot(panel.times, best, drawstyle="steps-post", label="best latent dimension", **plotting.line_style(0))
    for d in np.flatnonzero(panel.thresholds > 0) + 1:
        t = panel.thresholds[d - 1]
        axes.axvline(t, color="grey", linewidth=0.8)
        if t < 0.99 * panel.t_max:
            axes.text(
                t - 0.01, d + 0.12, f"t_{d} = {t:.5f}", ha="right", fontsize=8, bbox={"color": "white", "pad": 0.5}
            )
    axes.set(xlabel=XLABEL.format(panel.t_max), ylabel="best latent dimension", xlim=(0, 1.015 * panel.t_max))
    axes.grid(alpha=0.25)


def _draw_turn(axes, panel):
    """Change of each curve against not stopping, over the time left on a logarithmic axis."""
    inner = (panel.times < panel.t_max) & (panel.times > 0)
    left = panel.t_max - panel.times[inner]
    largest = 0.0
    for i, d in enumerate(panel.latent_dims):
        curve, end = panel.w2_squared[d - 1], panel.w2_squared[d - 1, -1]
        change = 100.0 * (curve[inner] / end - 1.0)
        largest = max(largest, -change.min())
        axes.plot(left, change, label=f"d = {d}", **plotting.line_style(i, markevery=[int(np.argmin(change))]))
    axes.axhline(0.0, color="grey", linewidth=0.8)
    bound = 1.25 * largest or 1.0
    axes.set(
        xscale="log", xlim=(1.0, 1e-5), ylim=(-bound, 2 * bound), xlabel="time left when sampling stops (noise → data)",
        ylabel="squared W2 compared with not stopping (%)",
    )  # fmt: skip
    axes.grid(alpha=0.25)


def captions(panels: Mapping[str, Panel]) -> dict[str, str]:
    """The two captions, with the numbers."""
    low_rank, decaying, left, right = (panels[name] for name in SETTINGS)
    share = {p.name: 100 * p.interior_count / p.draws for p in (low_rank, decaying, right)}
    d0 = low_rank.counted_dim
    fig3 = (
        f"[OS] Fig. 3 with settings of our own. Top: squared W2 between the data and a latent diffusion model "
        f"stopped early, "
        f"for several latent dimensions d, score estimated from n = 30 samples (one draw); the marker is each curve's "
        f"minimum. Bottom: the same curves near the end of sampling, against not stopping; below 0 stopping helps. "
        f"Left: "
        f"the rank {d0} is best, as Prop. 3 says (in {100 * low_rank.rank_count / low_rank.draws:.0f} % of "
        f"{low_rank.draws} draws; d > {d0} coincide with it at the end), and its minimum lies before the end in "
        f"{share['fig3_low_rank']:.0f} %. Right: at d = {decaying.counted_dim} in {share['fig3_decaying']:.0f} %."
    )
    listed = ", ".join(f"t_{d} = {left.thresholds[d - 1]:.5f}" for d in left.latent_dims if left.thresholds[d - 1] > 0)
    low, high = wilson_interval(right.interior_count, right.draws)
    fig4 = (
        f"[OS] Fig. 4: squared W2 of a latent diffusion model stopped early. Left: exact score; every curve falls to "
        f"the "
        f"end, and from t_d on (grey lines) dimension d is better than d - 1: {listed}; lower d pay from the start. "
        f"Right: "
        f"one draw of n = 1000 in which d = 4 has its minimum (marker) before the end, as in "
        f"{share['fig4_right']:.1f} % of "
        f"{right.draws} draws (90 % interval {100 * low:.1f} to {100 * high:.1f} %); bottom, the curves near the end "
        f"against not stopping, below 0 stopping helps; d = 5 and 6 only add noise and meet d = 4 at the end."
    )
    return {"figure_3": fig3, "figure_4": fig4}


def table(panels: Mapping[str, Panel]) -> str:
    """What the command prints."""
    lines = [
        f"{'panel':>14s} {'d':>3s} {'threshold t_d':>14s} {'best time':>10s} {'W2^2 there':>12s} {'at the end':>12s}"
    ]
    for p in panels.values():
        lines += [
            f"{p.name:>14s} {d:3d} {p.thresholds[d - 1]:14.5f} {p.best_times[d - 1]:10.5f} "
            f"{p.best_w2_squared[d - 1]:12.5g} {p.w2_squared[d - 1, -1]:12.5g}"
            for d in range(1, p.variances.size + 1)
        ]
    for p in panels.values():
        if p.counted_dim is not None:
            low, high = wilson_interval(p.interior_count, p.draws)
            lines.append(
                f"{p.name}: d = {p.counted_dim} has its minimum before the end in {p.interior_count} of {p.draws} "
                f"draws "
                f"[{low:.3f}, {high:.3f}], first in draw {p.shown_draw}"
                + ("" if p.rank_count is None else f"; it is the joint optimum in {p.rank_count}")
            )
    return "\n".join(lines)


def define_flags() -> None:
    shared.define_common_flags("paper_figures")
    shared.define_integer("draws", 1000, "Draws of the estimated variances behind each share.", low=1)
    shared.define_integer("seed", 0, "Seed of the first draw, the one drawn as curves.", low=0)


def main() -> None:
    begin = time.perf_counter()
    config = Config(draws=min(FLAGS.draws, 50) if FLAGS.quick else FLAGS.draws, seed=FLAGS.seed)
    workdir = shared.prepare_workdir()
    panels = run(config)
    print(table(panels))
    records.write_records(workdir, make_records(panels))
    fields = ("variances", "estimated_variances", "times", "noise_var", "w2_squared", "best_times", "thresholds")
    records.write_curves(workdir, {f"{p.name}_{f}": getattr(p, f) for p in panels.values() for f in fields})
    for name, caption in captions(panels).items():
        of_figure = [p for p in panels.values() if p.name.startswith(name.replace("ure_", ""))]
        plotting.save(draw(of_figure, caption), workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(workdir, seconds=seconds, data_digest=None)
    print(f"{seconds:.1f} s; results in {workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
