"""Figures, captions and the printed tables of both paper figures."""

import numpy as np
import pandas as pd

from experiments.launch import Report, Results
from experiments.paper_figures.setup import PANELS
from ldmjax import plotting
from ldmjax.tables import table

XLABEL = "backward time at which sampling stops (0 = noise, T = {:g} = data)"
FIGURES = {"figure_3": ("fig3_low_rank", "fig3_decaying"), "figure_4": ("fig4_left", "fig4_right")}


def report(results: Results) -> Report:
    """The numbers of all panels and of the learned scores, and both figures."""
    counted, learned = results.frame(kind="draws"), results.frame(kind="learned")
    text = [_table_of_panels(results), _table_of_draws(counted)]
    if len(learned):
        text.append(_table_of_learned(learned))
    captions = {"figure_3": _caption_of_figure_3(counted), "figure_4": _caption_of_figure_4(results, counted)}
    figures = {name: draw(names, results, captions[name]) for name, names in FIGURES.items()}
    return Report(text="\n\n".join(text), figures=figures)


def draw(names, results: Results, caption: str):
    """Per panel the stopping curves, and below them the turn near the end, or the best dimension at each stop."""
    points = {name: points_of(results, name) for name in names}
    caption += _caption_of_points(points)
    figure, axes = plotting.new_figure(2, len(names), width=6.2 * len(names), height=8.6, caption=caption)
    for name, (top, bottom) in zip(names, axes.T, strict=True):
        panel, arrays = PANELS[name], arrays_of(results, name)
        plotting.draw_stopping_curves(
            top,
            arrays["w2_squared"][np.array(panel.latent_dims) - 1],
            arrays["noise_var"],
            latent_dims=panel.latent_dims,
            x=arrays["times"],
            points=points[name],
        )
        top.set(xlabel=XLABEL.format(panel.t_max), ylabel=plotting.W2_LABEL, yscale=panel.yscale)
        top.set_xlim(0, 1.015 * panel.t_max)
        top.set_title(panel.title, fontsize=10)
        if panel.n is None:
            _draw_best_dimension(bottom, panel, arrays)
            for t in arrays["thresholds"][arrays["thresholds"] > 0]:
                top.axvline(t, color="grey", linewidth=0.8, zorder=0)
        else:
            _draw_turn(bottom, panel, arrays)
        plotting.draw_legend(top, below=True, ncols=4)
    return figure


def arrays_of(results: Results, name: str) -> dict[str, np.ndarray]:
    """A panel's arrays, by their own names."""
    prefix = f"{name}_"
    return {key.removeprefix(prefix): a for key, a in results.arrays.items() if key.startswith(prefix)}


def points_of(results: Results, name: str) -> list[plotting.Points]:
    """What learned scores put over a panel's lines."""
    own = results.frame(kind="learned", panel=name)
    return [
        plotting.Points(
            latent_dim=d,
            x=run["backward_time"].to_numpy(),
            w2_squared=run["w2_squared"].to_numpy(),
            standard_error=run["standard_error"].to_numpy(),
        )
        for d, run in (own.groupby("latent_dim", sort=False) if len(own) else ())
    ]


def _draw_best_dimension(axes, panel, arrays):
    """The best dimension at each stop, with the thresholds where it changes."""
    best = 1 + np.argmin(arrays["w2_squared"], axis=0)
    axes.plot(arrays["times"], best, drawstyle="steps-post", label="best latent dimension", **plotting.line_style(0))
    for d, t in enumerate(arrays["thresholds"], start=1):
        if t > 0:
            axes.axvline(t, color="grey", linewidth=0.8)
        if 0 < t < 0.99 * panel.t_max:
            axes.text(
                t - 0.01, d + 0.12, f"t_{d} = {t:.5f}", ha="right", fontsize=8, bbox={"color": "white", "pad": 0.5}
            )
    axes.set(xlabel=XLABEL.format(panel.t_max), ylabel="best latent dimension", xlim=(0, 1.015 * panel.t_max))
    axes.grid(alpha=0.25)


def _draw_turn(axes, panel, arrays):
    """Change of each curve against not stopping, over the time left on a logarithmic axis."""
    inner = (arrays["times"] < panel.t_max) & (arrays["times"] > 0)
    left = panel.t_max - arrays["times"][inner]
    largest = 0.0
    for i, d in enumerate(panel.latent_dims):
        curve = arrays["w2_squared"][d - 1]
        change = 100.0 * (curve[inner] / curve[-1] - 1.0)
        largest = max(largest, -change.min())
        axes.plot(left, change, label=f"d = {d}", **plotting.line_style(i, markevery=[int(np.argmin(change))]))
    axes.axhline(0.0, color="grey", linewidth=0.8)
    bound = 1.25 * largest or 1.0
    axes.set(xscale="log", xlim=(1.0, 1e-5), ylim=(-bound, 2 * bound))
    axes.set(xlabel="time left when sampling stops (noise → data)", ylabel="squared W2 compared with not stopping (%)")
    axes.grid(alpha=0.25)


def _caption_of_figure_3(counted: pd.DataFrame) -> str:
    low_rank, decaying = (counted[counted["panel"] == name].iloc[0] for name in FIGURES["figure_3"])
    d = low_rank["latent_dim"]
    return (
        "[OS] Fig. 3 with settings of our own. Top: squared W2 between the data and a latent diffusion model stopped early, "
        "for several latent dimensions d, score estimated from n = 30 samples (one draw); the marker is each curve's "
        "minimum. Bottom: the same curves near the end of sampling, against not stopping; below 0 stopping helps. "
        f"Left: the rank {d} is best, as Prop. 3 says (in {100 * low_rank['joint_optimum_count'] / low_rank['draws']:.0f} % of "
        f"{low_rank['draws']} draws; d > {d} coincide with it at the end), and its minimum lies before the end in "
        f"{100 * low_rank['interior_share']:.0f} %. Right: at d = {decaying['latent_dim']} in "
        f"{100 * decaying['interior_share']:.0f} %."
    )


def _caption_of_figure_4(results: Results, counted: pd.DataFrame) -> str:
    left, right = FIGURES["figure_4"]
    thresholds, row = results.arrays[f"{left}_thresholds"], counted[counted["panel"] == right].iloc[0]
    starts = {d: thresholds[d - 1] for d in PANELS[left].latent_dims if thresholds[d - 1] > 0}
    return (
        "[OS] Fig. 4: squared W2 of a latent diffusion model stopped early. Left: exact score; every curve falls to "
        "the end, and from t_d on (grey lines) dimension d is better than d - 1: "
        f"{', '.join(f't_{d} = {t:.5f}' for d, t in starts.items())}; lower d pay from the start. "
        "Right: one draw of n = 1000 in which d = 4 has its minimum (marker) before the end, as in "
        f"{100 * row['interior_share']:.1f} % of {row['draws']} draws (90 % interval {100 * row['interior_low']:.1f} to "
        f"{100 * row['interior_high']:.1f} %); bottom, the curves near the end against not stopping, below 0 stopping helps; "
        "d = 5 and 6 only add noise and meet d = 4 at the end."
    )


def _caption_of_points(points: dict[str, list[plotting.Points]]) -> str:
    """What the measured points are; nothing if there are none."""
    if not any(points.values()):
        return ""
    hidden = any(np.any(q.w2_squared <= 0) for name, of in points.items() if PANELS[name].yscale == "log" for q in of)
    return (
        " Open markers: diagonal linear scores trained by denoising score matching, squared W2 of their stopped "
        "Euler-Maruyama samples (debiased, ± 2 standard errors; finite steps put them off the lines, by most where the "
        "distance is small)" + ("; an estimate below 0 has no marker on a logarithmic axis." if hidden else ".")
    )


def _table_of_panels(results: Results) -> str:
    names = {"panel": "panel", "d": "latent_dim", "threshold t_d": "threshold_backward_time"}
    names |= {"best time": "best_backward_time", "W2^2 there": "w2_squared_best", "at the end": "w2_squared_end"}
    rows = [{new: r[old] for new, old in names.items()} for r in results.of_kind("latent_dim")]
    numbers = {"threshold t_d": ".5f", "best time": ".5f", "W2^2 there": ".5g", "at the end": ".5g"}
    return table(rows, dict.fromkeys(names, "") | numbers)


def _table_of_draws(counted: pd.DataFrame) -> str:
    rows = [
        {
            "panel": r.panel,
            "d": r.latent_dim,
            "minimum before the end": f"{r.interior_count} of {r.draws} draws",
            "[90 %]": f"[{r.interior_low:.3f}, {r.interior_high:.3f}]",
            "first in draw": r.shown_draw,
            "joint optimum in": r.joint_optimum_count,
        }
        for r in counted.itertuples()
    ]
    return table(rows, dict.fromkeys(rows[0], "") | {"joint optimum in": ".0f"})


def _table_of_learned(learned: pd.DataFrame) -> str:
    """Per learned score the end of sampling, then the largest deviation of all stops."""
    learned = learned.assign(deviation=learned["deviation_in_standard_errors"].abs())
    rows = []
    for (name, d), run in learned.groupby(["panel", "latent_dim"], sort=False):
        end = run.iloc[-1]
        value = f"{end['w2_squared']:.5f} ± {end['standard_error']:.5f}"
        rows.append({"panel": name, "d": d, "learned, at the end": value, "exact": end["exact_w2_squared"]})
        rows[-1]["largest deviation, s.e."] = run["deviation"].max()
    worst = learned.loc[learned["deviation"].idxmax()]
    numbers = {"exact": ".5f", "largest deviation, s.e.": ".1f"}
    return table(rows, dict.fromkeys(rows[0], "") | numbers) + (
        f"\nlearned against exact: largest deviation {worst['deviation']:.1f} standard errors ({worst['panel']}, "
        f"d = {worst['latent_dim']}), root mean square {np.sqrt(np.mean(learned['deviation'] ** 2)):.2f} over "
        f"{len(learned)} stops"
    )
