"""Tables, figure and metadata of the benchmark."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmark import Contest, Outcome
from experiments.benchmark.machine import Bound, Growth
from experiments.tables import align
from ldmjax import plotting


def table(outcomes: Sequence[Outcome], contests: Mapping[str, Contest], skipped: Mapping[str, str]) -> str:
    """A row per contest: the ratio with its range over rounds, the goal, and both sides' time."""
    rows = [("contest", "what", "against", "theirs / ours", "goal", "met", "ours", "theirs", "agreement")]
    for o in outcomes:
        contest, ratio = contests[o.name], float(np.median(o.ratios))
        sign, met = ("<=", ratio <= contest.goal) if contest.goal_is_ceiling else (">=", ratio >= contest.goal)
        spread = f"{_short(ratio)} [{_short(o.ratios.min())}, {_short(o.ratios.max())}]"
        rows.append((
            o.name, contest.what, contest.against, spread, f"{sign} {contest.goal:g}", "yes" if met else "no",
            _seconds(np.median(o.ours)), _seconds(np.median(o.theirs)), _short(o.sides.agreement),
        ))  # fmt: skip
    lines = align(rows, left=3)
    lines += [f"{o.name}: per {o.sides.unit}; {o.sides.opponent}; agreement: {o.sides.agreement_in}" for o in outcomes]
    for o in outcomes:
        if o.sides.peak_bytes:
            ours, theirs = o.sides.peak_bytes
            lines.append(
                f"{o.name}: memory {ours / 1e6:.0f} MB against {theirs / 1e6:.0f} MB, {theirs / ours:.1f} times less"
            )
        if o.sides.cold_seconds:
            ratio = np.median(o.theirs) / o.sides.cold_seconds
            lines.append(f"{o.name}: first call, with compilation: {o.sides.cold_seconds:.2f} s, ratio {_short(ratio)}")
    lines += [f"{name}: skipped, {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def bound_table(bounds: Sequence[Bound]) -> str:
    """A row per sweep: rate, achieved operations and bytes per second, and the share of the bound."""
    rows = [("runs", "width", "run-steps/s", "GFLOP/s", "of", "GB/s", "of", "of the bound", "set by")]
    for b in bounds:
        limit, name = b.bound
        rows.append((
            f"{b.runs}", f"{b.hidden}", f"{1 / b.seconds:.0f}", f"{b.operations / b.seconds / 1e9:.0f}",
            f"{b.ceilings.operations / 1e9:.0f}", f"{b.bytes / b.seconds / 1e9:.2g}", f"{b.ceilings.bytes / 1e9:.0f}",
            f"{100 * limit / b.seconds:.0f} %", name,
        ))  # fmt: skip
    return "\n".join(align(rows, left=0))


def _short(value: float) -> str:
    if np.isnan(value):
        return "-"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _seconds(value: float) -> str:
    scale, unit = next(pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= pair[0] or pair[0] == 1e-6)
    return f"{value / scale:.3g} {unit}"


def draw_growth(growths: Sequence[Growth], machine: str) -> Figure:
    """A panel per axis on logarithmic scales, with a line of slope 1."""
    axes_names = list(dict.fromkeys(g.axis for g in growths))
    figure, grid = plotting.new_figure(
        1, len(axes_names), width=3.1 * len(axes_names), height=3.6, title="How cost grows",
        caption="A training step of all runs together; over the latent dimension, of one run. A chain has d = 16 and, unless "
        "on the axis, 250 steps and as many samples as --samples says. Points: median over rounds; bars: smallest and "
        f"largest; grey dotted: in proportion to the size. {machine}",
    )  # fmt: skip
    for axes, name in zip(grid[0], axes_names, strict=True):
        shown = [g for g in growths if g.axis == name]
        for i, growth in enumerate(shown):
            middle = np.median(growth.seconds, axis=1)
            spread = np.abs(np.stack([growth.seconds.min(axis=1), growth.seconds.max(axis=1)]) - middle)
            style = plotting.line_style(i, markevery=1)
            axes.errorbar(growth.sizes, middle, yerr=spread, capsize=2.5, label=growth.work, **style)
            guide = middle[-1] * growth.sizes / growth.sizes[-1]
            axes.plot(growth.sizes, guide, color="0.6", linestyle=":", linewidth=1.0)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds")
        axes.set_xticks(shown[0].sizes, [f"{size:g}" for size in shown[0].sizes], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
        plotting.draw_legend(axes, loc="upper left")
    return figure


def measured(outcomes: Sequence[Outcome], bounds: Sequence[Bound], growths: Sequence[Growth]) -> dict:
    """All timings, for metadata.json."""
    return {
        "contests": {o.name: dataclasses.asdict(o) for o in outcomes},
        "bounds": [dataclasses.asdict(b) | {"bound_seconds": b.bound[0], "set_by": b.bound[1]} for b in bounds],
        "growth": [dataclasses.asdict(g) for g in growths],
    }
