"""Tables and figure of the benchmark."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from experiments.benchmark.contest import GROWTH
from experiments.launch import Report, Results
from ldmjax import plotting
from ldmjax.tables import table

ABOUT = ("precision", "rounds", "runs")  # settings that table.json holds
OF_SIDES = ("unit", "options", "opponent", "agreement", "agreement_in", "peak_bytes", "cold_seconds")


def report(results: Results) -> Report:
    """Ratios beside their goals, how near training comes to its bound, how costs grow; table.json with the first two."""
    config, machine = results.config, results.metadata["machine"]
    measured, skipped = results.metadata["measured"], results.metadata["skipped"]
    contests = {row["contest"]: _outcome(row, measured["contests"][row["contest"]]) for row in results.rows}
    parts = [contest_table(contests, skipped)] if contests or skipped else []
    parts += [bound_table(measured["bounds"])] if measured["bounds"] else []
    parts.append(f"median [smallest, largest] of {config.rounds} rounds; {machine}")
    files = {}
    if about := results.metadata.get("about"):  # not in an old workdir, whose table.json stays as it is
        bounds = [row | {"share_of_bound": row["bound_seconds"] / row["seconds"]} for row in measured["bounds"]]
        about = about | {name: getattr(config, name) for name in ABOUT}
        files["table.json"] = about | {"contests": contests, "skipped": skipped, "bounds": bounds}
    figures = {"growth": draw_growth(measured["growth"], machine)} if measured["growth"] else {}
    return Report(text="\n".join(parts), figures=figures, files=files)


def _outcome(row: Mapping[str, Any], measured: Mapping[str, Any]) -> dict[str, Any]:
    """A contest as table.json shows it."""
    ratios = np.array(measured["theirs"]) / np.array(measured["ours"])
    ratio, goal, is_ceiling = float(np.median(ratios)), row["goal"], row["against"] == GROWTH
    return {
        **{name: row[name] for name in ("what", "against", "goal")},
        "ratio": ratio,
        "least": float(ratios.min()),
        "most": float(ratios.max()),
        "goal_is_ceiling": is_ceiling,
        "met": ratio <= goal if is_ceiling else ratio >= goal,
        **{f"{side}_seconds": float(np.median(measured[side])) for side in ("ours", "theirs")},
        **{name: measured["sides"][name] for name in OF_SIDES},
    }


def contest_table(contests: Mapping[str, Mapping[str, Any]], skipped: Mapping[str, str]) -> str:
    """A row per contest: the ratio with its range over rounds, the goal, and both sides' time; then what it says in words."""
    rows = [
        {
            "contest": name,
            "what": c["what"],
            "against": c["against"],
            "theirs / ours": f"{_short(c['ratio'])} [{_short(c['least'])}, {_short(c['most'])}]",
            "goal": f"{'<=' if c['goal_is_ceiling'] else '>='} {c['goal']:g}",
            "met": "yes" if c["met"] else "no",
            "ours": _seconds(c["ours_seconds"]),
            "theirs": _seconds(c["theirs_seconds"]),
            "agreement": _short(c["agreement"]),
        }
        for name, c in contests.items()
    ]
    lines = [table(rows, left=3)] if rows else []
    for name, c in contests.items():
        lines.append(
            f"{name}: per {c['unit']}; ours: {c['options']}; theirs: {c['opponent']}; agreement: {c['agreement_in']}"
        )
        if c["peak_bytes"]:
            ours, theirs = c["peak_bytes"]
            sizes = f"{ours / 1e6:.3g} MB against {theirs / 1e6:.3g} MB"
            lines.append(f"{name}: memory {sizes}, {theirs / ours:.1f} times less")
        if c["cold_seconds"]:
            ratio = _short(c["theirs_seconds"] / c["cold_seconds"])
            lines.append(f"{name}: first call, with compilation: {c['cold_seconds']:.2f} s, ratio {ratio}")
    return "\n".join(lines + [f"{name}: skipped, {reason}" for name, reason in skipped.items()])


def bound_table(bounds: Sequence[Mapping[str, Any]]) -> str:
    """A row per sweep: rate, achieved operations and bytes per second, and the share of the bound; then all ceilings."""
    rows, lines = [], []
    for b in bounds:
        ceilings = b["ceilings"]
        rows.append(
            {
                "runs": b["runs"],
                "width": b["hidden"],
                "products": b["precision"],
                "run-steps/s": 1 / b["seconds"],
                "GFLOP/s": b["operations"] / b["seconds"] / 1e9,
                "of": ceilings["products"][b["precision"]] / 1e9,
                "GB/s": b["bytes"] / b["seconds"] / 1e9,
                "of ": ceilings["bytes"] / 1e9,
                "kernels a step": b["kernels"],
                "of the bound": b["bound_seconds"] / b["seconds"],
                "set by": b["set_by"],
            }
        )
        rates = ", ".join(f"{precision} {rate / 1e9:.0f} GFLOP/s" for precision, rate in ceilings["products"].items())
        launch = f"{ceilings['launch'] * 1e6:.2f} us a launch" if ceilings["launch"] else "no launches"
        lines.append(f"ceilings, {b['runs']} runs of width {b['hidden']}: products {rates}; {launch}")
    formats = dict.fromkeys(("run-steps/s", "GFLOP/s", "of", "of "), ".0f") | {"GB/s": ".2g", "of the bound": ".0%"}
    return "\n".join([table(rows, dict.fromkeys(rows[0], "") | formats, left=0), *lines])


def _short(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.2g}" if value < 10 else f"{value:.0f}"


def _seconds(value: float) -> str:
    scale, unit = next(pair for pair in ((1.0, "s"), (1e-3, "ms"), (1e-6, "us")) if value >= pair[0] or pair[0] == 1e-6)
    return f"{value / scale:.3g} {unit}"


def draw_growth(growths: Sequence[Mapping[str, Any]], machine: str) -> Figure:
    """A panel per axis on logarithmic scales, with a line of slope 1."""
    names = list(dict.fromkeys(growth["axis"] for growth in growths))
    caption = (
        "A training step of all runs together; over the latent dimension, of one run. A chain has d = 16 and, unless on the "
        "axis, 250 steps and as many samples as --samples says. Points: median over rounds; bars: smallest and largest; grey "
        f"dotted: in proportion to the size. {machine}"
    )
    width = 3.1 * len(names)
    figure, grid = plotting.new_figure(1, len(names), width=width, height=3.6, title="How cost grows", caption=caption)
    for axes, name in zip(grid[0], names, strict=True):
        shown = [growth for growth in growths if growth["axis"] == name]
        for i, growth in enumerate(shown):
            sizes, seconds = np.array(growth["sizes"]), np.array(growth["seconds"])
            middle = np.median(seconds, axis=1)
            spread = np.abs(np.stack([seconds.min(axis=1), seconds.max(axis=1)]) - middle)
            style = plotting.line_style(i, markevery=1)
            axes.errorbar(sizes, middle, yerr=spread, capsize=2.5, label=growth["work"], **style)
            axes.plot(sizes, middle[-1] * sizes / sizes[-1], color="0.6", linestyle=":", linewidth=1.0)
        axes.set(xscale="log", yscale="log", xlabel=name, ylabel="seconds")
        axes.set_xticks(shown[0]["sizes"], [f"{size:g}" for size in shown[0]["sizes"]], fontsize=8)
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        low, high = axes.get_ylim()
        axes.set_ylim(low, high * (high / low) ** 0.3)  # room for the legend
        plotting.draw_legend(axes, loc="upper left")
    return figure
