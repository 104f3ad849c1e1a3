"""Figures, captions and the printed table of both paper figures."""

from collections.abc import Mapping, Sequence

import numpy as np

from experiments.paper_figures import SETTINGS, Panel
from experiments.paper_figures.learned import LearnedCurve
from experiments.phase_diagram import wilson_interval
from ldmjax import plotting

XLABEL = "backward time at which sampling stops (0 = noise, T = {:g} = data)"


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
        f"Left: the rank {d0} is best, as Prop. 3 says (in {100 * low_rank.rank_count / low_rank.draws:.0f} % of "
        f"{low_rank.draws} draws; d > {d0} coincide with it at the end), and its minimum lies before the end in "
        f"{share['fig3_low_rank']:.0f} %. Right: at d = {decaying.counted_dim} in {share['fig3_decaying']:.0f} %."
    )
    listed = ", ".join(f"t_{d} = {left.thresholds[d - 1]:.5f}" for d in left.latent_dims if left.thresholds[d - 1] > 0)
    low, high = wilson_interval(right.interior_count, right.draws)
    fig4 = (
        f"[OS] Fig. 4: squared W2 of a latent diffusion model stopped early. Left: exact score; every curve falls to "
        f"the end, and from t_d on (grey lines) dimension d is better than d - 1: {listed}; lower d pay from the start. "
        f"Right: one draw of n = 1000 in which d = 4 has its minimum (marker) before the end, as in "
        f"{share['fig4_right']:.1f} % of "
        f"{right.draws} draws (90 % interval {100 * low:.1f} to {100 * high:.1f} %); bottom, the curves near the end "
        f"against not stopping, below 0 stopping helps; d = 5 and 6 only add noise and meet d = 4 at the end."
    )
    shown = {"figure_3": (fig3, (low_rank, decaying)), "figure_4": (fig4, (left, right))}
    return {name: text + _points_caption(of_figure) for name, (text, of_figure) in shown.items()}


def _points_caption(panels):
    """What the measured points are; nothing if there are none."""
    if not any(p.points for p in panels):
        return ""
    hidden = any(np.any(q.w2_squared <= 0) for p in panels if p.yscale == "log" for q in p.points)
    return (
        " Open markers: diagonal linear scores trained by denoising score matching, squared W2 of their stopped "
        "Euler-Maruyama samples (debiased, ± 2 standard errors; finite steps put them off the lines, by most where the "
        "distance is small)" + ("; an estimate below 0 has no marker on a logarithmic axis." if hidden else ".")
    )


def table(panels: Mapping[str, Panel], curves: Sequence[LearnedCurve] = ()) -> str:
    """What the command prints; with learned scores their end of sampling and their largest deviation too."""
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
                f"draws [{low:.3f}, {high:.3f}], first in draw {p.shown_draw}"
                + ("" if p.rank_count is None else f"; it is the joint optimum in {p.rank_count}")
            )
    return "\n".join(lines + _learned_lines(curves))


def _learned_lines(curves):
    """Per learned score the end of sampling, then the largest deviation of all stops."""
    if not curves:
        return []
    lines = [f"{'panel':>14s} {'d':>3s} {'learned, at the end':>26s} {'exact':>18s} {'largest deviation':>19s}"]
    lines += [
        f"{c.panel:>14s} {c.latent_dim:3d} {c.w2_squared[-1]:14.5f} ± {c.standard_error[-1]:9.5f} "
        f"{c.exact_w2_squared[-1]:18.5f} {np.abs(c.deviation).max():14.1f} s.e."
        for c in curves
    ]
    deviations = np.concatenate([c.deviation for c in curves])
    worst = max(curves, key=lambda c: np.abs(c.deviation).max())
    lines.append(
        f"learned against exact: largest deviation {np.abs(deviations).max():.1f} standard errors ({worst.panel}, "
        f"d = {worst.latent_dim}), root mean square {np.sqrt(np.mean(deviations**2)):.2f} over {deviations.size} stops"
    )
    return lines
