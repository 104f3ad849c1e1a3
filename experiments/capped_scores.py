"""Bounds the score by a cap C: which latent dimension is best, how it grows with C, and whether a cap replaces a stop.

Claims ([OS], arXiv 2510.08409, §5). Prop. 5: at the end of sampling from N(0, I) the best latent dimension d_min lies
between d1 = max{i: 1/C <= lamh_i} and d2 = min{i: 1/(2C-1) >= 4 lam_i}; d2 - 1 is a bound too. Corollary 1: for lam_i =
q^-i it grows like log C / log q. And THEORY.md §10: a cap and an early stop do the same thing, so once one of them is
tuned the other adds at most 1.5 %.

The first two are read off the twin's diagonal score, lamh_i = lam_i chi2_n / n. The third needs missing variance: the
score and the autoencoder are PCA of n Gaussian samples of the data's covariance, compared by the exact Bures distance,
sampled from the marginal start.

    python -m experiments.capped_scores                              # digits, n = 50,500, 20 draws
    python -m experiments.capped_scores --dynamics=ode --workdir=results/capped_scores_ode

Takes 12 s. Obtained (digits, draws 0..19, SDE): Prop. 5 holds in all 2400 cases, also with d2 - 1; Corollary 1 in all 1220.
Where the estimate misses a component the cap leaves .568 / C (SDE) or .368 / C (flow ODE). Once the stop is tuned, the
cap adds at most .06 %. The reverse is weaker here: once the cap is tuned, the stop still adds 4.4 % on average (5.6 %
at most) at n = 50 and d = the rank, where it saves 16.5 % alone and the cap 12.6 %; at most 2.4 % in the other cases.
With --dynamics=ode Prop. 5, proved for the SDE, fails in 147 of 1200 cases at n = 500 and 150 at n = 50 as printed, with
d2 - 1 in 441 and 439.
"""

import dataclasses
import itertools
import time

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import plans
from experiments.phase_diagram import twin_estimates
from ldmjax import data, gaussians, oracle, plotting, records, schedules

FLAGS = flags.FLAGS
Q, COROLLARY_DIM = 20.0, 6


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is computed; the flags of the same names say more."""

    n: tuple[int, ...] = (50, 500)
    caps: tuple[float, ...] = tuple(np.geomspace(1.5, 1e5, 60).tolist())
    draws: int = 20
    seed: int = 0
    dynamics: str = "sde"
    t_max: float = 2.0
    zooms: int = 3
    points: int = 9

    def __post_init__(self):
        for name, low in [("draws", 1), ("zooms", 1), ("points", 3)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.n or min(self.n) < 2:
            raise ValueError(f"n must be whole numbers >= 2, got {self.n}")
        if not self.caps or not all(1 < cap < np.inf for cap in self.caps):
            raise ValueError(f"caps must be finite numbers > 1, got {self.caps}")
        if not 0 < self.noise_var_max < 1:
            raise ValueError(f"t_max must leave a noise variance in (0, 1), got {self.t_max}")

    @property
    def noise_var_max(self) -> float:
        """Noise variance where sampling starts (Ornstein-Uhlenbeck)."""
        return float(schedules.OrnsteinUhlenbeck(t_max=self.t_max).sigma(self.t_max) ** 2)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CappedScores:
    """Results. N values of n, R draws, C caps (sorted).

    Attributes:
      variances: ``[D]`` of the data, largest first.
      caps: ``[C]``.
      exact_dim, exact_bounds: ``[C]`` and ``[C, 2]``: best dimension at the end and (d1, d2), exact score.
      best_dim, bounds: ``[N, R, C]`` and ``[N, R, C, 2]``, estimated score.
      event: ``[N, R]``, whether Prop. 5's event lamh_i <= 2 lam_i holds for all i.
      corollary_caps, corollary_exact_dim: ``[C']``, q <= C <= q^6 and the best dimension with the exact score.
      corollary_dim, corollary_allowed: ``[R, C']`` and ``[R, C', 2]``: best dimension, and the two that are allowed.
      corollary_event: ``[R]``, whether lam/2 <= lamh <= 2 lam holds for all i.
      ridge: ``{dynamics: [C]}``, C times the variance that the cap leaves in a component with lamh = 0.
      tuned: one dict per (n, draw, latent dimension): squared W2 untuned and with cap, stop or both tuned.
    """

    variances: np.ndarray
    caps: np.ndarray
    exact_dim: np.ndarray
    exact_bounds: np.ndarray
    best_dim: np.ndarray
    bounds: np.ndarray
    event: np.ndarray
    corollary_caps: np.ndarray
    corollary_exact_dim: np.ndarray
    corollary_dim: np.ndarray
    corollary_allowed: np.ndarray
    corollary_event: np.ndarray
    ridge: dict[str, np.ndarray]
    tuned: list[dict]

    @property
    def violations(self) -> np.ndarray:
        """``[2, N]``: cases (draw on the event, cap) in which d1 <= d_min <= d2, Prop. 5 as printed, fails; with d2 - 1."""
        printed = self.bounds[..., 1]
        uppers = printed, sharper_bound(self.variances, self.caps, printed)
        outside = [(self.best_dim < self.bounds[..., 0]) | (self.best_dim > upper) for upper in uppers]
        return np.sum(outside & self.event[..., None], axis=(2, 3))


def sharper_bound(variances: np.ndarray, caps: np.ndarray, d2: np.ndarray) -> np.ndarray:
    """max(1, d2 - 1) where some component is below Prop. 5's threshold, else d2; ``[..., C]`` as ``d2``."""
    some = 4.0 * variances.min() <= 1.0 / (2.0 * caps - 1.0)
    return np.where(some, np.maximum(d2 - 1, 1), d2)


def best_dims(
    variances: np.ndarray, estimated: np.ndarray, caps: np.ndarray, *, noise_var_max: float, dynamics: str
) -> np.ndarray:
    """Best latent dimension (1-based, the smallest of several) at the end of sampling from N(0, I), per cap ``[C]``."""
    end = [
        oracle.capped_variances(
            estimated, 0.0, noise_var_max=noise_var_max, cap=cap, start="standard", dynamics=dynamics
        )
        for cap in caps
    ]
    return 1 + np.argmin(oracle.w2_squared_from_variances(variances, np.concatenate(end, axis=1)), axis=0)


def plan(dataset: data.Dataset, config: Config) -> list[plans.Stage]:
    """The stages of the experiment."""
    # Two latent dimensions; a grid of 17 by 17 and the finer ones, each point with an eigenvalue problem of size D.
    grids = 2 * (17**2 + config.zooms * config.points**2)
    return [
        plans.host("bounds", runs=len(config.n) * config.draws, seconds=2e-4 * len(config.caps)),
        plans.host("tune", runs=len(config.n) * config.draws, seconds=grids * (8e-5 + 2.5e-9 * dataset.dim**3)),
        plans.host("tables, figures", runs=1, seconds=2.0),
    ]


def run(dataset: data.Dataset, config: Config) -> CappedScores:
    """Computes everything; the function behind the command.

    Args:
      dataset: only its covariance is used.
      config: what to compute.

    Returns:
      `CappedScores`.
    """
    variances = gaussians.eigh_descending(dataset.covariance)[0]
    caps, law = np.sort(config.caps), {"noise_var_max": config.noise_var_max, "dynamics": config.dynamics}
    estimates = np.stack(
        [twin_estimates(variances, n=n, draws=config.draws, seed=config.seed) for n in config.n]
    )  # [N, R, D]
    geometric = Q ** -np.arange(1.0, COROLLARY_DIM + 1)
    geometric_caps = np.geomspace(Q, Q**COROLLARY_DIM, 61)
    draws = twin_estimates(geometric, n=max(config.n), draws=config.draws, seed=config.seed)
    return CappedScores(
        variances=variances,
        caps=caps,
        exact_dim=best_dims(variances, variances, caps, **law),
        exact_bounds=_bounds(variances, variances, caps),
        best_dim=np.array([[best_dims(variances, e, caps, **law) for e in per_n] for per_n in estimates]),
        bounds=np.array([[_bounds(variances, e, caps) for e in per_n] for per_n in estimates]),
        event=np.all(estimates <= 2 * variances, axis=-1),
        corollary_caps=geometric_caps,
        corollary_exact_dim=best_dims(geometric, geometric, geometric_caps, **law),
        corollary_dim=np.array([best_dims(geometric, e, geometric_caps, **law) for e in draws]),
        corollary_allowed=np.array([[oracle.corollary_dimensions(e, cap) for cap in geometric_caps] for e in draws]),
        corollary_event=np.all((draws <= 2 * geometric) & (geometric <= 2 * draws), axis=1),
        ridge={name: _ridge_heights(caps, config.noise_var_max, name) for name in oracle.capped.DYNAMICS},
        tuned=tune_substitutes(dataset, config),
    )


def _bounds(variances, estimated, caps):
    return np.array([oracle.dimension_bounds(variances, estimated, cap) for cap in caps])


def _ridge_heights(caps, noise_var_max, dynamics):
    """C times the variance left at the end in a component with lamh = 0 (a stop leaves nu there); marginal start."""
    law = {"noise_var_max": noise_var_max, "start": "marginal", "dynamics": dynamics}
    return np.array([cap * oracle.capped_variances(np.zeros(1), 0.0, cap=cap, **law)[0, 0] for cap in caps])


def tune_substitutes(dataset: data.Dataset, config: Config) -> list[dict]:
    """Squared W2 of PCA of n Gaussian samples with nothing, the cap, the stop, or both tuned.

    Per draw at half the rank of the estimate and at the rank as latent dimension; marginal start.
    """
    results = []
    off_cap, off_stop = np.array([np.inf]), np.zeros(1)
    caps, stops = np.append(np.geomspace(1.2, 1e5, 16), np.inf), np.append(np.geomspace(0.9, 1e-6, 16), 0.0)
    stops = stops[stops <= config.noise_var_max]
    for n, draw in itertools.product(config.n, range(config.draws)):
        values, basis = data.principal_components(dataset.twin_draws(n, seed=config.seed + draw))
        rank = int(np.count_nonzero(values))
        for d in sorted({max(1, rank // 2), max(1, rank)}):

            def distance(cap_axis, stop_axis, d=d, values=values, basis=basis):
                generated = [
                    oracle.capped_variances(
                        values[:d], stop_axis, noise_var_max=config.noise_var_max, cap=cap, start="marginal",
                        dynamics=config.dynamics,
                    )
                    for cap in cap_axis
                ]  # fmt: skip
                flat = oracle.w2_squared_projected(dataset.covariance, basis[:, :d], np.concatenate(generated, axis=1))
                return flat.reshape(len(cap_axis), len(stop_axis))

            neither = (float(distance(off_cap, off_stop)[0, 0]), np.inf, 0.0)
            cap = min(neither, tune(distance, caps, off_stop, config))
            stop = min(neither, tune(distance, off_cap, stops, config))
            both = min(cap, stop, tune(distance, caps, stops, config))
            results.append({"n": n, "draw": draw, "rank": rank, "latent_dim": d, **_compare(neither, cap, stop, both)})
    return results


def _compare(neither, cap, stop, both):
    """Fields of one tuned case from its four (squared W2, cap, noise variance left)."""

    def percent(before, after):
        return 100.0 * (before[0] - after[0]) / before[0] if before[0] > 0 else 0.0

    return {
        "w2_squared_neither": neither[0], "w2_squared_cap": cap[0], "w2_squared_stop": stop[0],
        "w2_squared_both": both[0],
        "cap_alone": cap[1], "noise_var_alone": stop[2], "cap_both": both[1], "noise_var_both": both[2],
        "gain_percent_cap": percent(neither, cap), "gain_percent_stop": percent(neither, stop),
        "gain_percent_both": percent(neither, both), "stop_adds_percent": percent(cap, both),
        "cap_adds_percent": percent(stop, both),
    }  # fmt: skip


def tune(distance, caps: np.ndarray, stops: np.ndarray, config: Config) -> tuple[float, float, float]:
    """Minimises ``distance(caps, stops) -> [C, K]`` on a grid, then on finer grids round the best point.

    Args:
      distance: squared W2 for all pairs.
      caps: first axis, increasing; may end in inf, no cap.
      stops: noise variances left, decreasing; may end in 0, no stop.
      config: ``zooms`` and ``points`` of the finer grids.

    Returns:
      ``(w2_squared, cap, noise_var)``.
    """
    best = (np.inf, np.inf, 0.0)
    for _ in range(config.zooms + 1):
        values = distance(caps, stops)
        j, k = np.unravel_index(np.argmin(values), values.shape)
        best = min(best, (float(values[j, k]), float(caps[j]), float(stops[k])))
        caps, stops = _finer(caps, j, config.points), _finer(stops, k, config.points)
    return best


def _finer(axis, index, points):
    """``points`` geometric values between the neighbours of ``axis[index]``; a last 'off' (inf or 0) stays."""
    if axis.size == 1:
        return axis
    low, high = axis[max(index - 1, 0)], axis[min(index + 1, axis.size - 1)]
    if np.isfinite(high) and high > 0:
        return np.geomspace(low, high, points)
    last = axis[-2]
    factor = 100.0 if np.isinf(high) else 0.01
    return np.append(
        np.geomspace(min(low, last) if np.isinf(high) else max(low, last), last * factor, points - 1), high
    )


def make_records(result: CappedScores, config: Config) -> list[dict]:
    """Lines of records.jsonl, of three kinds: bounds (per n and cap), corollary (per cap), tuned (per n, draw, d)."""
    rows = []
    for i, n in enumerate(config.n):
        for c, cap in enumerate(result.caps):
            dims, d1, d2 = result.best_dim[i, :, c], result.bounds[i, :, c, 0], result.bounds[i, :, c, 1]
            uppers = d2, sharper_bound(result.variances, result.caps[[c]], d2[:, None])[:, 0]
            inside = [np.sum((dims >= d1) & (dims <= upper) & result.event[i]) for upper in uppers]
            rows.append(
                {
                    "kind": "bounds",
                    "n": n,
                    "cap": cap,
                    "dynamics": config.dynamics,
                    "draws": config.draws,
                    "best_dim_exact": result.exact_dim[c],
                    "d1_exact": result.exact_bounds[c, 0],
                    "d2_exact": result.exact_bounds[c, 1],
                    "best_dim_min": dims.min(),
                    "best_dim_max": dims.max(),
                    "on_event_count": result.event[i].sum(),
                    "inside_bounds_count": inside[0],
                    "inside_sharper_bounds_count": inside[1],
                }  # fmt: skip
            )
    for c, cap in enumerate(result.corollary_caps):
        rows.append(
            {
                "kind": "corollary",
                "q": Q,
                "n": max(config.n),
                "cap": cap,
                "dynamics": config.dynamics,
                "log_cap_over_log_q": np.log(cap) / np.log(Q),
                "best_dim_exact": result.corollary_exact_dim[c],
                "best_dim_min": result.corollary_dim[:, c].min(),
                "best_dim_max": result.corollary_dim[:, c].max(),
                "on_event_count": result.corollary_event.sum(),
                "allowed_count": corollary_hits(result)[:, c].sum(),
            }  # fmt: skip
        )
    return rows + [{"kind": "tuned", "dynamics": config.dynamics, **entry} for entry in result.tuned]


def corollary_hits(result: CappedScores) -> np.ndarray:
    """``[R, C']``: the draw is on the event and its best dimension is one of the two that Corollary 1 allows."""
    hit = np.any(result.corollary_dim[..., None] == result.corollary_allowed, axis=-1)
    return hit & result.corollary_event[:, None]


def draw_dimensions(result: CappedScores, config: Config, name: str):
    """Best dimension against C with Prop. 5's bounds, and Corollary 1's staircase."""
    caption = (
        f"Which latent dimension is best when the score's weights are bounded by C ({config.dynamics.upper()} "
        f"sampler from "
        f"N(0, I), not stopped early). Left: {name}, exact score, with Prop. 5's bounds d1 and d2 (d2 - 1 is a bound "
        f"too); band: all {config.draws} draws of n = {min(config.n)}. Right: variances 20^-i, where the best dimension "
        f"follows log C / log 20; band: all draws of n = {max(config.n)}."
        + ("" if config.dynamics == "sde" else " The bounds are proved for the SDE, not for this flow ODE.")
    )
    figure, axes = plotting.new_figure(1, 2, width=11, height=5.0, caption=caption)
    few = result.best_dim[int(np.argmin(config.n))]
    sharper = sharper_bound(result.variances, result.caps, result.exact_bounds[:, 1])
    lines = {
        "best latent dimension": result.exact_dim, "d1 (lower bound)": result.exact_bounds[:, 0],
        "d2 (upper bound)": result.exact_bounds[:, 1], "d2 - 1 (sharper)": sharper,
    }  # fmt: skip
    left, right = axes[0]
    plotting.draw_lines(left, result.caps, lines, bands={"best latent dimension": (few.min(axis=0), few.max(axis=0))})
    plotting.set_dimension_scale(left.yaxis, result.variances.size)
    dims = result.corollary_dim
    plotting.draw_lines(
        right, result.corollary_caps,
        {
            "best latent dimension": result.corollary_exact_dim,
            "log C / log 20": np.log(result.corollary_caps) / np.log(Q),
            "1 + log C / log 20": 1 + np.log(result.corollary_caps) / np.log(Q),
        },
        bands={"best latent dimension": (dims.min(axis=0), dims.max(axis=0))}, markers=False,
    )  # fmt: skip
    for panel in axes[0]:
        panel.set(
            xscale="log", xlabel="cap C on the score's weights (1 / data units squared)", ylabel="latent dimension"
        )
        plotting.draw_legend(panel, loc="upper left" if panel is right else "lower right")
    return figure


def draw_substitutes(result: CappedScores, config: Config, name: str):
    """What cap, stop and both save, and the variance that a cap leaves compared with a stop."""
    caption = (
        f"{name}: score and autoencoder are PCA of n Gaussian samples. Left: squared W2 saved by tuning the cap "
        f"alone, the stop alone, or both ({config.dynamics.upper()}; one marker per draw, bar = median; d = rank of the "
        f"estimate or half "
        f"of it). Right: variance left by a cap C in a component that the estimate misses (lamh = 0), times C; a "
        f"stop at noise variance nu leaves nu there."
    )
    figure, axes = plotting.new_figure(1, 2, width=11.5, height=5.0, caption=caption)
    left, right = axes[0]
    groups = list(dict.fromkeys((t["n"], t["latent_dim"] == t["rank"]) for t in result.tuned))
    for k, kind in enumerate(("cap", "stop", "both")):
        style = plotting.line_style(k, markevery=1)
        for g, (n, full) in enumerate(groups):
            values = [
                t[f"gain_percent_{kind}"] for t in result.tuned if (t["n"], t["latent_dim"] == t["rank"]) == (n, full)
            ]
            x = g + 0.25 * (k - 1)
            spread = x + np.linspace(-0.07, 0.07, len(values)) if len(values) > 1 else [x]
            left.plot(
                spread, np.maximum(values, 1e-3), linestyle="none", marker=style["marker"], markersize=4,
                color=style["color"], markerfacecolor="none", label=f"{kind} tuned" if g == 0 else None,
            )  # fmt: skip
            left.hlines(max(np.median(values), 1e-3), x - 0.11, x + 0.11, color=style["color"], linewidth=2.5)
    names = [f"n = {n}\nd = {'rank' if full else 'rank / 2'}" for n, full in groups]
    left.set_xticks(range(len(groups)), names)
    left.set(yscale="log", ylabel="squared W2 saved (%; below 0.001 drawn there)")
    left.grid(alpha=0.25, axis="y")
    limits = {"sde": (1 + np.exp(-2)) / 2, "ode": np.exp(-1)}
    plotting.draw_lines(
        right, result.caps, {f"{k.upper()} (limit {limits[k]:.3f})": v for k, v in result.ridge.items()}
    )
    for value in limits.values():
        right.axhline(value, color="grey", linewidth=0.8)
    right.set(
        xscale="log", xlabel="cap C on the score's weights (1 / data units squared)", ylabel="C times variance left"
    )
    plotting.draw_legend(left, below=True, ncols=3)
    plotting.draw_legend(right)
    return figure


def table(result: CappedScores, config: Config) -> str:
    """What the command prints."""
    lines = [f"{'C':>10s} {'d1':>5s} {'d_min':>6s} {'d2-1':>5s} {'d2':>5s}   exact score; d_min over draws, per n"]
    sharper = sharper_bound(result.variances, result.caps, result.exact_bounds[:, 1])
    for c in np.unique(np.round(np.linspace(0, result.caps.size - 1, 9)).astype(int)):
        ranges = "  ".join(
            f"{n}: {dims[:, c].min()}..{dims[:, c].max()}" for n, dims in zip(config.n, result.best_dim, strict=True)
        )
        d1, d2 = result.exact_bounds[c]
        lines.append(f"{result.caps[c]:10.4g} {d1:5d} {result.exact_dim[c]:6d} {sharper[c]:5d} {d2:5d}   {ranges}")
    for n, event, (printed, sharp) in zip(config.n, result.event, result.violations.T, strict=True):
        lines.append(
            f"Prop. 5 ({config.dynamics}), n = {n}: fails in {printed} of {event.sum() * result.caps.size} cases as printed, "
            f"in {sharp} with d2 - 1 ({event.sum()} of {event.size} draws are on the event lamh <= 2 lam)"
        )
    on, hits = result.corollary_event.sum(), corollary_hits(result).sum()
    lines.append(
        f"Corollary 1, q = {Q:g}, n = {max(config.n)}: d_min is one of the two allowed in {hits} of "
        f"{on * result.corollary_caps.size} cases ({on} of {config.draws} draws on the event lam/2 <= lamh <= 2 lam)"
    )
    for name, heights in result.ridge.items():
        lines.append(f"variance left where lamh = 0, {name}: {heights[-1]:.4f} / C at C = {result.caps[-1]:.4g}")
    lines.append(
        "    n        d   neither    saved % by cap   by stop   by both   stop adds %: mean  max   cap adds %: mean"
    )
    for n, full in dict.fromkeys((t["n"], t["latent_dim"] == t["rank"]) for t in result.tuned):
        rows = [t for t in result.tuned if (t["n"], t["latent_dim"] == t["rank"]) == (n, full)]
        mean = {k: np.mean([t[k] for t in rows]) for k in rows[0]}
        worst = {k: np.max([t[k] for t in rows]) for k in rows[0]}
        lines.append(
            f"{n:5d} {'rank' if full else 'rank / 2':>8s} {mean['w2_squared_neither']:9.4g} "
            f"{mean['gain_percent_cap']:17.3f} "
            f"{mean['gain_percent_stop']:9.3f} {mean['gain_percent_both']:9.3f} {mean['stop_adds_percent']:19.3f} "
            f"{worst['stop_adds_percent']:5.3f} {mean['cap_adds_percent']:18.3f} {worst['cap_adds_percent']:5.3f}"
        )
    return "\n".join(lines)


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("capped_scores")
    shared.define_list("n", "50,500", "Sample sizes that the score is estimated from.", int, 2, 1_000_000)
    shared.define_list("caps", None, "Bounds C; 60 from 1.5 to 1e5 if not given.", float, 1, low_open=True)
    shared.define_integer("draws", 20, "Draws per n.", low=1, high=1_000_000)
    shared.define_seed("seed", 0, "Seed of the first draw.")
    shared.define_choice("dynamics", "sde", "Sampler.", oracle.capped.DYNAMICS)
    shared.define_float("t_max", 2.0, "Ornstein-Uhlenbeck time where sampling starts.", low=0.0, low_open=True)


def read_config() -> Config:
    """The configuration that the flags ask for; `UsageError` if they do not fit together."""
    small = {"zooms": 1, "points": 4} if FLAGS.quick else {}
    if FLAGS.caps is not None:
        small["caps"] = tuple(FLAGS.caps)
    elif FLAGS.quick:
        small["caps"] = tuple(np.geomspace(1.5, 1e5, 12).tolist())
    try:
        schedules.OrnsteinUhlenbeck(t_max=FLAGS.t_max)
        return Config(
            n=tuple(FLAGS.n), draws=min(FLAGS.draws, 2) if FLAGS.quick else FLAGS.draws, seed=FLAGS.seed,
            dynamics=FLAGS.dynamics, t_max=FLAGS.t_max, **small,
        )  # fmt: skip
    except ValueError as error:
        raise shared.bad("t_max", FLAGS.t_max, str(error)) from error


def main() -> None:
    begin = time.perf_counter()
    config = read_config()
    dataset = shared.load_dataset()
    job = shared.open_job(lambda: plan(dataset, config))
    result = run(dataset, config)
    print(table(result, config))
    records.write_records(job.workdir, make_records(result, config))
    arrays = {f.name: getattr(result, f.name) for f in dataclasses.fields(result) if f.name not in ("tuned", "ridge")}
    ridge = {f"ridge_{name}": heights for name, heights in result.ridge.items()}
    records.write_curves(job.workdir, arrays | ridge | {"n": np.array(config.n)})
    plotting.save(draw_dimensions(result, config, dataset.name), job.workdir / "dimensions.png")
    plotting.save(draw_substitutes(result, config, dataset.name), job.workdir / "substitutes.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest)
    print(f"{seconds:.1f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
