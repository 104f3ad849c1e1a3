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
        sign = "<=" if contest.goal_is_ceiling else ">="
        spread = f"{_short(ratio)} [{_short(o.ratios.min())}, {_short(o.ratios.max())}]"
        rows.append((
            o.name, contest.what, contest.against, spread, f"{sign} {contest.goal:g}", "yes" if met(o, contest) else "no",
            _seconds(np.median(o.ours)), _seconds(np.median(o.theirs)), _short(o.sides.agreement),
        ))  # fmt: skip
    lines = align(rows, left=3)
    lines += [
        f"{o.name}: per {o.sides.unit}; ours: {o.sides.options}; theirs: {o.sides.opponent}; agreement: {o.sides.agreement_in}"
        for o in outcomes
    ]
    for o in outcomes:
        if o.sides.peak_bytes:
            ours, theirs = o.sides.peak_bytes
            lines.append(
                f"{o.name}: memory {ours / 1e6:.3g} MB against {theirs / 1e6:.3g} MB, {theirs / ours:.1f} times less"
            )
        if o.sides.cold_seconds:
            ratio = np.median(o.theirs) / o.sides.cold_seconds
            lines.append(f"{o.name}: first call, with compilation: {o.sides.cold_seconds:.2f} s, ratio {_short(ratio)}")
    lines += [f"{name}: skipped, {reason}" for name, reason in skipped.items()]
    return "\n".join(lines)


def bound_table(bounds: Sequence[Bound]) -> str:
    """A row per sweep: rate, achieved operations and bytes per second, and the share of the bound; then all ceilings."""
    rows = [(
        "runs", "width", "products", "run-steps/s", "GFLOP/s", "of", "GB/s", "of", "kernels a step", "of the bound", "set by",
    )]  # fmt: skip
    lines = []
    for b in bounds:
        limit, name = b.bound
        rows.append((
            f"{b.runs}", f"{b.hidden}", b.precision, f"{1 / b.seconds:.0f}", f"{b.operations / b.seconds / 1e9:.0f}",
            f"{b.ceilings.products[b.precision] / 1e9:.0f}", f"{b.bytes / b.seconds / 1e9:.2g}",
            f"{b.ceilings.bytes / 1e9:.0f}", f"{b.kernels}", f"{100 * limit / b.seconds:.0f} %", name,
        ))  # fmt: skip
        rates = ", ".join(f"{precision} {rate / 1e9:.0f} GFLOP/s" for precision, rate in b.ceilings.products.items())
        launch = f"{b.ceilings.launch * 1e6:.2f} us a launch" if b.ceilings.launch else "no launches"
        lines.append(f"ceilings, {b.runs} runs of width {b.hidden}: products {rates}; {launch}")
    return "\n".join(align(rows, left=0) + lines)


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
        "bounds": [_row(b) for b in bounds],
        "growth": [dataclasses.asdict(g) for g in growths],
    }


def results(
    outcomes: Sequence[Outcome],
    contests: Mapping[str, Contest],
    skipped: Mapping[str, str],
    bounds: Sequence[Bound],
    **about: object,
) -> dict:
    """What a page about speed shows, for table.json: a row per contest and per bound, and ``about`` (device, versions ...)."""
    rows = {
        o.name: {
            "what": contests[o.name].what, "against": contests[o.name].against, "ratio": float(np.median(o.ratios)),
            "least": float(o.ratios.min()), "most": float(o.ratios.max()), "goal": contests[o.name].goal,
            "goal_is_ceiling": contests[o.name].goal_is_ceiling, "met": met(o, contests[o.name]),
            "ours_seconds": float(np.median(o.ours)), "theirs_seconds": float(np.median(o.theirs)),
            **dataclasses.asdict(o.sides),
        }
        for o in outcomes
    }  # fmt: skip
    shares = [_row(b) | {"share_of_bound": b.bound[0] / b.seconds} for b in bounds]
    return {**about, "contests": rows, "skipped": dict(skipped), "bounds": shares}


def met(outcome: Outcome, contest: Contest) -> bool:
    """Whether the median over rounds reaches the goal."""
    ratio = float(np.median(outcome.ratios))
    return ratio <= contest.goal if contest.goal_is_ceiling else ratio >= contest.goal


def _row(bound):
    return dataclasses.asdict(bound) | {"bound_seconds": bound.bound[0], "set_by": bound.bound[1]}
