"""Bounds the score by a cap C: which latent dimension is best, how it grows with C, and whether a cap replaces a stop.

Claims ([OS], arXiv 2510.08409, §5). Prop. 5: at the end of sampling from N(0, I) the best latent dimension d_min lies
between d1 = max{i: 1/C <= lamh_i} and d2 = min{i: 1/(2C-1) >= 4 lam_i}; d2 - 1 is a bound too. Corollary 1: for lam_i =
q^-i it grows like log C / log q. And docs/theory.md, section 10: a cap and an early stop do the same thing, so once one of
them is tuned the other adds at most 1.5 %.

The first two are read off the twin's diagonal score, lamh_i = lam_i chi2_n / n. The third needs missing variance: the
score and the autoencoder are PCA of n Gaussian samples of the data's covariance, compared by the exact Bures distance,
sampled from the marginal start.

    python -m experiments.capped_scores                              # digits, n = 50,500, 20 draws
    python -m experiments.capped_scores --dynamics=ode --workdir=results/capped_scores_ode

Takes 12 s; the numbers obtained stand in docs/results.md#capped_scores.
"""

import dataclasses
import itertools

import numpy as np

from experiments import launch
from experiments.launch import Report, Results, setting
from ldmjax import data, gaussians, oracle, plotting, schedules
from ldmjax.job import Job
from ldmjax.random_matrices import twin_estimates
from ldmjax.tables import table

Q, COROLLARY_DIM = 20.0, 6
QUICK = {"draws": 2, "caps": tuple(np.geomspace(1.5, 1e5, 12).tolist()), "zooms": 1, "points": 4}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings):
    """What is computed."""

    n: tuple[int, ...] = setting((50, 500), "Sample sizes that the score is estimated from.", low=2, high=1_000_000)
    caps: tuple[float, ...] | None = setting(
        None, "Bounds C on the score's weights; 60 from 1.5 to 1e5 if not given.", low=1, low_open=True
    )
    draws: int = setting(20, "Draws per n.", low=1, high=1_000_000)
    seed: int = launch.seed(help="Seed of the first draw.")
    dynamics: str = setting("sde", "Sampler.", choices=oracle.capped.DYNAMICS)
    t_max: float = setting(2.0, "Ornstein-Uhlenbeck time where sampling starts.", low=0.0, low_open=True)
    zooms: int = setting(3, "Finer grids round the best cap and stop.", low=1, high=100)
    points: int = setting(9, "Points of a finer grid along each axis.", low=3, high=1000)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.noise_var_max < 1:
            raise self.refuse("t_max", "must leave a noise variance in (0, 1)")

    @property
    def noise_var_max(self) -> float:
        """Noise variance where sampling starts (Ornstein-Uhlenbeck)."""
        return float(schedules.OrnsteinUhlenbeck(t_max=self.t_max).sigma(self.t_max) ** 2)


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


def compute(config: Config, dataset: data.Dataset, job: Job) -> Results:
    """Everything on the data's spectrum; only its covariance is used.

    Arrays, with N values of n, R draws, C caps (sorted):
      variances ``[D]``, largest first; caps ``[C]``;
      exact_dim ``[C]``, exact_bounds ``[C, 2]``: best dimension at the end and (d1, d2), exact score;
      best_dim ``[N, R, C]``, bounds ``[N, R, C, 2]``: the same, estimated score;
      event ``[N, R]``: whether Prop. 5's event lamh_i <= 2 lam_i holds for all i;
      corollary_caps, corollary_exact_dim ``[C']``: q <= C <= q^6 and the best dimension with the exact score;
      corollary_dim ``[R, C']``, corollary_allowed ``[R, C', 2]``: best dimension, and the two that are allowed;
      corollary_event ``[R]``: whether lam/2 <= lamh <= 2 lam holds for all i;
      ridge_sde, ridge_ode ``[C]``: C times the variance that the cap leaves in a component with lamh = 0.
    """
    variances = gaussians.eigh_descending(dataset.covariance)[0]
    caps = np.sort(config.caps or np.geomspace(1.5, 1e5, 60))
    law = {"noise_var_max": config.noise_var_max, "dynamics": config.dynamics}
    estimates = np.stack(
        [twin_estimates(variances, n=n, draws=config.draws, seed=config.seed) for n in config.n]
    )  # [N, R, D]
    geometric = Q ** -np.arange(1.0, COROLLARY_DIM + 1)
    geometric_caps = np.geomspace(Q, Q**COROLLARY_DIM, 61)
    draws = twin_estimates(geometric, n=max(config.n), draws=config.draws, seed=config.seed)
    job.log(f"bounds of {len(config.n) * config.draws} draws at {caps.size} caps")
    arrays = {
        "n": np.array(config.n),
        "variances": variances,
        "caps": caps,
        "exact_dim": best_dims(variances, variances, caps, **law),
        "exact_bounds": _bounds(variances, variances, caps),
        "best_dim": np.array([[best_dims(variances, e, caps, **law) for e in per_n] for per_n in estimates]),
        "bounds": np.array([[_bounds(variances, e, caps) for e in per_n] for per_n in estimates]),
        "event": np.all(estimates <= 2 * variances, axis=-1),
        "corollary_caps": geometric_caps,
        "corollary_exact_dim": best_dims(geometric, geometric, geometric_caps, **law),
        "corollary_dim": np.array([best_dims(geometric, e, geometric_caps, **law) for e in draws]),
        "corollary_allowed": np.array([[oracle.corollary_dimensions(e, cap) for cap in geometric_caps] for e in draws]),
        "corollary_event": np.all((draws <= 2 * geometric) & (geometric <= 2 * draws), axis=1),
        **{f"ridge_{name}": _ridge_heights(caps, config.noise_var_max, name) for name in oracle.capped.DYNAMICS},
    }
    tuned = tune_substitutes(dataset, config)
    rows = [*_bound_rows(arrays, config), *_corollary_rows(arrays, config)]
    rows += [{"kind": "tuned", "dynamics": config.dynamics, **entry} for entry in tuned]
    return Results(rows=rows, arrays=arrays)


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
                        values[:d],
                        stop_axis,
                        noise_var_max=config.noise_var_max,
                        cap=cap,
                        start="marginal",
                        dynamics=config.dynamics,
                    )
                    for cap in cap_axis
                ]
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
        "w2_squared_neither": neither[0],
        "w2_squared_cap": cap[0],
        "w2_squared_stop": stop[0],
        "w2_squared_both": both[0],
        "cap_alone": cap[1],
        "noise_var_alone": stop[2],
        "cap_both": both[1],
        "noise_var_both": both[2],
        "gain_percent_cap": percent(neither, cap),
        "gain_percent_stop": percent(neither, stop),
        "gain_percent_both": percent(neither, both),
        "stop_adds_percent": percent(cap, both),
        "cap_adds_percent": percent(stop, both),
    }


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


def _bound_rows(arrays: dict[str, np.ndarray], config: Config) -> list[dict]:
    rows = []
    for i, n in enumerate(config.n):
        for c, cap in enumerate(arrays["caps"]):
            dims, event = arrays["best_dim"][i, :, c], arrays["event"][i]
            d1, d2 = arrays["bounds"][i, :, c].T
            uppers = d2, sharper_bound(arrays["variances"], arrays["caps"][[c]], d2[:, None])[:, 0]
            inside = [np.sum((dims >= d1) & (dims <= upper) & event) for upper in uppers]
            rows.append(
                {
                    "kind": "bounds",
                    "n": n,
                    "cap": cap,
                    "dynamics": config.dynamics,
                    "draws": config.draws,
                    "best_dim_exact": arrays["exact_dim"][c],
                    "d1_exact": arrays["exact_bounds"][c, 0],
                    "d2_exact": arrays["exact_bounds"][c, 1],
                    "best_dim_min": dims.min(),
                    "best_dim_max": dims.max(),
                    "on_event_count": event.sum(),
                    "inside_bounds_count": inside[0],
                    "inside_sharper_bounds_count": inside[1],
                }
            )
    return rows


def _corollary_rows(arrays: dict[str, np.ndarray], config: Config) -> list[dict]:
    # The draw is on the event, and its best dimension is one of the two that Corollary 1 allows.
    hit = np.any(arrays["corollary_dim"][..., None] == arrays["corollary_allowed"], axis=-1)
    hit &= arrays["corollary_event"][:, None]
    return [
        {
            "kind": "corollary",
            "q": Q,
            "n": max(config.n),
            "cap": cap,
            "dynamics": config.dynamics,
            "log_cap_over_log_q": np.log(cap) / np.log(Q),
            "best_dim_exact": arrays["corollary_exact_dim"][c],
            "best_dim_min": arrays["corollary_dim"][:, c].min(),
            "best_dim_max": arrays["corollary_dim"][:, c].max(),
            "on_event_count": arrays["corollary_event"].sum(),
            "allowed_count": hit[:, c].sum(),
        }
        for c, cap in enumerate(arrays["corollary_caps"])
    ]


def report(results: Results) -> Report:
    """Prop. 5 and Corollary 1 as counts, what cap and stop save, and a figure of each."""
    text = "\n\n".join([_bounds_table(results), _counts(results), _tuned_table(results)])
    figures = {"dimensions": _draw_dimensions(results), "substitutes": _draw_substitutes(results)}
    return Report(text=text, figures=figures)


def _bounds_table(results: Results) -> str:
    frame, shown = results.frame(kind="bounds"), []
    caps = np.unique(frame["cap"])
    for cap in caps[np.unique(np.round(np.linspace(0, caps.size - 1, 9)).astype(int))]:
        own = frame[frame["cap"] == cap]
        first = own.iloc[0]
        sharper = sharper_bound(results.arrays["variances"], np.array([cap]), np.array([first["d2_exact"]]))[0]
        row = {
            "C": cap,
            "d1": first["d1_exact"],
            "d_min": first["best_dim_exact"],
            "d2-1": sharper,
            "d2": first["d2_exact"],
        }
        shown.append(row | {f"n = {r['n']}": f"{r['best_dim_min']}..{r['best_dim_max']}" for _, r in own.iterrows()})
    title = "Best dimension d_min between its bounds at some caps C, exact score; range over draws for every n:"
    return table(shown, dict.fromkeys(shown[0], "") | {"C": ".4g"}, title=title, left=0)


def _counts(results: Results) -> str:
    bounds, corollary, arrays = results.frame(kind="bounds"), results.frame(kind="corollary"), results.arrays
    lines = []
    for n, own in bounds.groupby("n", sort=False):
        cases, draws, dynamics = own["on_event_count"].sum(), own["draws"].iloc[0], own["dynamics"].iloc[0]
        lines.append(
            f"Prop. 5 ({dynamics}), n = {n}: fails in {cases - own['inside_bounds_count'].sum()} of {cases} cases as printed, "
            f"in {cases - own['inside_sharper_bounds_count'].sum()} with d2 - 1 ({own['on_event_count'].iloc[0]} of {draws} "
            "draws are on the event lamh <= 2 lam)"
        )
    first = corollary.iloc[0]
    lines.append(
        f"Corollary 1, q = {first['q']:g}, n = {first['n']}: d_min is one of the two allowed in "
        f"{corollary['allowed_count'].sum()} of {corollary['on_event_count'].sum()} cases ({first['on_event_count']} of "
        f"{arrays['corollary_event'].size} draws on the event lam/2 <= lamh <= 2 lam)"
    )
    for name in oracle.capped.DYNAMICS:
        height, cap = arrays[f"ridge_{name}"][-1], arrays["caps"][-1]
        lines.append(f"variance left where lamh = 0, {name}: {height:.4f} / C at C = {cap:.4g}")
    return "\n".join(lines)


def _tuned_table(results: Results) -> str:
    frame = results.frame(kind="tuned")
    frame["d"] = np.where(frame["latent_dim"] == frame["rank"], "rank", "rank / 2")
    groups = frame.groupby(["n", "d"], sort=False)
    shown = groups.mean(numeric_only=True)
    for name in ("stop_adds_percent", "cap_adds_percent"):
        shown[f"{name} max"] = groups[name].max()
    names = {
        "n": "n",
        "d": "d",
        "w2_squared_neither": "W2^2 untuned",
        "gain_percent_cap": "cap",
        "gain_percent_stop": "stop",
        "gain_percent_both": "both",
        "stop_adds_percent": "stop adds, mean",
        "stop_adds_percent max": "max",
        "cap_adds_percent": "cap adds, mean",
        "cap_adds_percent max": "max ",
    }
    rows = [{new: row[old] for old, new in names.items()} for row in shown.reset_index().to_dict("records")]
    columns = {name: "" if name in "nd" else ".4g" if "W2" in name else ".3f" for name in names.values()}
    return table(rows, columns, title="Squared W2 saved in percent, by tuning cap, stop or both:", left=0)


def _draw_dimensions(results: Results):
    """Best dimension against C with Prop. 5's bounds, and Corollary 1's staircase."""
    config, arrays = results.config, results.arrays
    caption = (
        f"Which latent dimension is best when the score's weights are bounded by C ({config.dynamics.upper()} sampler from "
        f"N(0, I), not stopped early). Left: {results.data_name}, exact score, with Prop. 5's bounds d1 and d2 (d2 - 1 is "
        f"a bound too); band: all {config.draws} draws of n = {min(config.n)}. Right: variances 20^-i, where the best "
        f"dimension follows log C / log 20; band: all draws of n = {max(config.n)}."
        + ("" if config.dynamics == "sde" else " The bounds are proved for the SDE, not for this flow ODE.")
    )
    figure, axes = plotting.new_figure(1, 2, width=11, height=5.0, caption=caption)
    left, right = axes[0]
    few, caps, bounds = arrays["best_dim"][int(np.argmin(config.n))], arrays["caps"], arrays["exact_bounds"]
    lines = {
        "best latent dimension": arrays["exact_dim"],
        "d1 (lower bound)": bounds[:, 0],
        "d2 (upper bound)": bounds[:, 1],
        "d2 - 1 (sharper)": sharper_bound(arrays["variances"], caps, bounds[:, 1]),
    }
    plotting.draw_lines(left, caps, lines, bands={"best latent dimension": (few.min(axis=0), few.max(axis=0))})
    plotting.set_dimension_scale(left.yaxis, arrays["variances"].size)
    dims, caps = arrays["corollary_dim"], arrays["corollary_caps"]
    lines = {
        "best latent dimension": arrays["corollary_exact_dim"],
        "log C / log 20": np.log(caps) / np.log(Q),
        "1 + log C / log 20": 1 + np.log(caps) / np.log(Q),
    }
    bands = {"best latent dimension": (dims.min(axis=0), dims.max(axis=0))}
    plotting.draw_lines(right, caps, lines, bands=bands, markers=False)
    for panel in axes[0]:
        panel.set(
            xscale="log", xlabel="cap C on the score's weights (1 / data units squared)", ylabel="latent dimension"
        )
        plotting.draw_legend(panel, loc="upper left" if panel is right else "lower right")
    return figure


def _draw_substitutes(results: Results):
    """What cap, stop and both save, and the variance that a cap leaves compared with a stop."""
    caption = (
        f"{results.data_name}: score and autoencoder are PCA of n Gaussian samples. Left: squared W2 saved by tuning the "
        f"cap alone, the stop alone, or both ({results.config.dynamics.upper()}; one marker per draw, bar = median; d = rank "
        "of the estimate or half of it). Right: variance left by a cap C in a component that the estimate misses (lamh = 0), "
        "times C; a stop at noise variance nu leaves nu there."
    )
    figure, axes = plotting.new_figure(1, 2, width=11.5, height=5.0, caption=caption)
    left, right = axes[0]
    _draw_savings(left, results.frame(kind="tuned"))
    limits = {"sde": (1 + np.exp(-2)) / 2, "ode": np.exp(-1)}
    lines = {f"{name.upper()} (limit {limit:.3f})": results.arrays[f"ridge_{name}"] for name, limit in limits.items()}
    plotting.draw_lines(right, results.arrays["caps"], lines)
    for value in limits.values():
        right.axhline(value, color="grey", linewidth=0.8)
    right.set(
        xscale="log", xlabel="cap C on the score's weights (1 / data units squared)", ylabel="C times variance left"
    )
    plotting.draw_legend(left, below=True, ncols=3)
    plotting.draw_legend(right)
    return figure


def _draw_savings(panel, frame) -> None:
    """One marker per draw and way of tuning, in groups of n and latent dimension."""
    groups = list(frame.groupby(["n", frame["latent_dim"] == frame["rank"]], sort=False))
    for k, kind in enumerate(("cap", "stop", "both")):
        style = plotting.line_style(k, markevery=1)
        for g, (_, own) in enumerate(groups):
            values, x = own[f"gain_percent_{kind}"].to_numpy(), g + 0.25 * (k - 1)
            spread = x + np.linspace(-0.07, 0.07, len(values)) if len(values) > 1 else [x]
            panel.plot(
                spread,
                np.maximum(values, 1e-3),
                linestyle="none",
                marker=style["marker"],
                markersize=4,
                color=style["color"],
                markerfacecolor="none",
                label=f"{kind} tuned" if g == 0 else None,
            )
            panel.hlines(max(np.median(values), 1e-3), x - 0.11, x + 0.11, color=style["color"], linewidth=2.5)
    names = [f"n = {n}\nd = {'rank' if full else 'rank / 2'}" for (n, full), _ in groups]
    panel.set_xticks(range(len(groups)), names)
    panel.set(yscale="log", ylabel="squared W2 saved (%; below 0.001 drawn there)")
    panel.grid(alpha=0.25, axis="y")


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK)
