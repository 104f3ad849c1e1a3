"""What the command shows: a table and a figure of each part, from the results alone."""

from collections.abc import Mapping

import pandas as pd

from experiments.few_states.exact import USUAL
from experiments.few_states.figures import draw_exact, draw_learned, draw_mixture
from experiments.launch import Report, Results
from ldmjax.tables import table

SHORT = {"rel_fd": "rel. FD", "sliced_w2_squared": "sliced W2^2"}


def report(results: Results) -> Report:
    """Shows whatever parts were computed."""
    tables = {"exact": _exact, "mixture": _mixture, "learned": _learned, "acceptance": _acceptance}
    figures = {"exact": draw_exact, "mixture": draw_mixture, "learned": draw_learned}
    text = "\n\n".join(make(results) for kind, make in tables.items() if results.of_kind(kind))
    return Report(text=text, figures={kind: draw(results) for kind, draw in figures.items() if results.of_kind(kind)})


def _exact(results: Results) -> str:
    """Shows relW2 with few levels, how many times that is of the distance with many, and what follows."""
    config, compared = results.config, results.frame(kind="verdict")
    few, many = config.few, config.many
    chains = results.frame(kind="exact").query("levels == @few").drop(columns="floor")
    fields = ["ladder", "sampler", "ratio", "floor", "verdict", "usual_ratio", "matches_usual"]
    rows = chains.merge(compared[fields], how="left", on=["ladder", "sampler"])
    rows["usual"] = rows["matches_usual"].map({True: "as good", False: ""})
    columns = {
        "ladder": ("ladder", ""),
        "sampler": ("sampler", ""),
        "effective_states": ("N_eff", ".1f"),
        "floor": ("floor", ".4f"),
        "rel_w2": (f"T = {few}", ".4f"),
        "ratio": (f"times T = {many}", ".3g"),
        "verdict": ("verdict", ""),
        "usual": ("as usual", ""),
    }
    title = f"Exact score, Gaussian data: W2/sqrt(tr) with T = {few}, and how many times that with T = {many}:"
    count, ratios = compared["verdict"].value_counts(), compared["ratio_exact_start"]
    return "\n".join(
        [
            _named(rows, columns, title),
            f"  network evaluations: {few}, heun {2 * few - 1}. Equal: within {config.tolerance:g}. Floor of {many} levels; "
            f'"only the floor": both are at it. "as good" as {USUAL[2]} states of {USUAL[1]} on {USUAL[0]}, '
            f"{compared['usual_rel_w2'].iloc[0]:.4f}",
            f"  of {len(compared)} chains {few} states match {many} in {count.get('matches', 0)}, only by the floor in "
            f"{count.get('only the floor', 0)}, not in {count.get('does not', 0)}; started from the exact law instead of "
            f"N(0, I) the ratios are {ratios.min():.3g} to {ratios.max():.3g}",
        ]
    )


def _mixture(results: Results) -> str:
    """Shows the levels until the floor, then the two distances with few levels."""
    config, few = results.config, results.config.few
    floors = results.frame(kind="mixture_floor").drop(columns="samples")
    rows = results.frame(kind="mixture").query("levels == @few").merge(floors, on=["ladder", "sampler"])
    for name in ("sliced_above_flow", "paired_error"):
        rows[name] *= 1e3
    columns = {
        "ladder": ("ladder", ""),
        "sampler": ("sampler", ""),
        "levels_to_floor": ("T at floor", ".0f"),
        "rms_to_flow": ("RMS to flow", ".3f"),
        "sliced_above_flow": ("1000 x sliced W2^2", ".2f"),
        "paired_error": ("±", ".2f"),
    }
    title = (
        f"Exact score, 8-D mixture, {config.samples} samples: T from which on the chain is at the floor; with T = {few} RMS "
        "distance to the exact flow, 1000 x sliced W2^2 above it:"
    )
    known = floors.iloc[0]
    return (
        _named(rows, columns, title)
        + f"\n  1000 x sliced W2^2: floor of {config.samples} draws {1e3 * known['sliced_w2_squared_floor']:.3g}, of the exact "
        f"flow's samples {1e3 * known['sliced_w2_squared_flow']:.3g}. At the floor: floor + excess within W2 x "
        f"{config.tolerance:g} of the floor, up to 2 standard errors"
    )


def _learned(results: Results) -> str:
    """Shows few levels, many, the difference and what it says, then the network trained on few levels."""
    config, found = results.config, results.frame(kind="difference")
    few, many, keys = config.few, config.many, ["task", "sampler", "metric"]
    learned = results.frame(kind="learned").drop_duplicates("task").set_index("task")
    states, trained = (own.drop(columns="question") for _, own in found.groupby("question", sort=False))
    rows = []
    for row in states.merge(trained, on=keys, suffixes=("", "_trained")).to_dict("records"):
        base = row["base"] - learned.loc[row["task"], f"{row['metric']}_floor"]
        rows.append(
            {
                "task": row["task"],
                "sampler": row["sampler"],
                "metric": SHORT[row["metric"]],
                f"T = {few}": base + row["mean"],
                f"T = {many}": base,
                "difference": _plus_minus(row["mean"], row["half_width"]),
                "": row["verdict"],
                "trained on few - many": _plus_minus(row["mean_trained"], row["half_width_trained"]),
                " ": row["verdict_trained"],
            }
        )
    title = (
        f"Learned scores ({config.learned_ladder}, {len(config.seeds)} seeds, floor subtracted): one network of {many} levels "
        f"with T = {few} and {many}; a network of {few} levels only:"
    )
    formats = dict.fromkeys(rows[0], "") | {f"T = {few}": ".5f", f"T = {many}": ".5f"}
    return (
        table(rows, formats, title=title, left=3)
        + f"\n  ±: 95 % interval over seeds; matches: the whole interval within W2 x {config.tolerance:g}"
    )


def _acceptance(results: Results) -> str:
    """Shows the exact score's chain beside the learned one's."""
    rows = [
        {
            "sampler": row["sampler"],
            "exact score": _plus_minus(row["exact"], row["exact_error"], 6),
            "learned": _plus_minus(row["learned"], row["learned_error"], 6),
            "difference (paired)": _plus_minus(row["difference"], row["paired_error"], 6),
            "allowed": row["allowed"],
            "": "passes" if row["passed"] else "does not pass",
        }
        for row in results.of_kind("acceptance")
    ]
    first = results.of_kind("acceptance")[0]
    title = f"Mixture, {first['samples']} samples: sliced W2^2 above the floor, {first['floor']:.2e}:"
    return table(rows, dict.fromkeys(rows[0], "") | {"allowed": ".6f"}, title=title)


def _named(frame: pd.DataFrame, columns: Mapping[str, tuple[str, str]], title: str) -> str:
    """Shows columns of a frame under names, each with how its numbers are written."""
    rows = frame.rename(columns={field: name for field, (name, _) in columns.items()}).to_dict("records")
    return table(rows, dict(columns.values()), title=title, left=2)


def _plus_minus(value: float | None, error: float | None, digits: int = 5) -> str:
    """Writes a value with its error; what is not finite as a dash."""
    return " ± ".join("-" if x is None or x != x else f"{x:.{digits}f}" for x in (value, error))
