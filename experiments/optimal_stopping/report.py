"""What the main job shows: tables by setting, and figures."""

import math
from collections import Counter

import numpy as np
import pandas as pd

from experiments.launch import Report, Results
from experiments.optimal_stopping.evaluation import METRIC_PREFIX
from ldmjax import plotting
from ldmjax.tables import table

VERDICT_LETTERS = {"stop early": "E", "no gain from stopping": "N", "cannot tell": "?"}
SHOWN = {"w2": "W2 [90 %]", "mmd": "MMD", "sliced_w2": "sliced W2", "kl": "KL in latent"}
LEGEND = (
    "t* = logsnr of the best stop: median over seeds [lowest, highest end of the seeds' 90 % intervals]; end = do not "
    "stop early.\n"
    "Verdicts over seeds: E stop early, N no gain from stopping (< 1 %), ? cannot tell. Score error: largest over seeds."
)
READOUT = "Readout: the noisy latent z_t, decoded; the last steps of one fixed grid are dropped (truncate)."


def report(results: Results) -> Report:
    """A table per setting, the best latent dimension of each, and figures of curves and score errors."""
    frame = labelled(results)
    tables = [_table(own, f"{data}: {label}") for (data, label), own in frame.groupby(["of", "label"], sort=False)]
    text = "\n\n".join([LEGEND, *tables, _best_dimensions(frame)])
    figures = {}
    for data, own in frame.groupby("of", sort=False):
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in data)
        figures[f"stopping_{name}"] = _stopping_figure(data, own, results)
    return Report(text=text, figures=figures | {"score_error": _score_figure(frame, results)})


def labelled(results: Results) -> pd.DataFrame:
    """The rows, numbered as curves are, with what their data are called (``of``) and their setting in words (``label``)."""
    frame = results.frame()
    measured = [name for name in frame if name.startswith(("score_error", "oracle")) and name != "score_error_thirds"]
    frame = frame.astype(dict.fromkeys(measured, float))
    several_sizes = frame["n"].nunique() > 1
    several_rates = frame.groupby("model")["learning_rate"].nunique() > 1
    frame["of"] = [r["data"] + (f", n = {r['n']}" if several_sizes else "") for r in results.rows]
    frame["label"] = [group_label(r, several_rates=several_rates[r["model"]]) for r in results.rows]
    return frame


def group_label(row: dict, *, several_rates: bool = False) -> str:
    """Model, training data and cap of a run, in words."""
    draws = {"sample": "the n samples", "fresh": "fresh draws"}[row["training_draws"]]
    words = f"{row['model'].replace('mlp', 'MLP')} on {draws}"
    if row["model"] == "linear":
        words += f", cap {math.inf if row['cap'] is None else row['cap']:g}"
    return words + (f", rate {row['learning_rate']:g}" if several_rates else "")


def _table(own: pd.DataFrame, title: str) -> str:
    """A line per latent dimension, seeds together, and one on each that has a diverged run."""
    rows, diverged = [], []
    for dim, runs in own.groupby("latent_dim", sort=False):
        failed = runs[runs["diverged_at_step"].notna()]
        if len(failed):
            steps = (f"seed {r.seed} at step {r.diverged_at_step:.0f}" for r in failed.itertuples())
            diverged.append(f"d = {dim} diverged: {', '.join(steps)}")
        else:
            rows.append({"d": dim, **_row(runs)})
    if not rows:
        return "\n".join([title, *diverged])
    numbers = {"W2^2 end": ".4f", "exact": ".4f", "W2^2 best": ".4f", "gain %": ".2f"}
    return "\n".join([table(rows, dict.fromkeys(rows[0], "") | numbers, title=title, left=0), *diverged])


def _row(runs: pd.DataFrame) -> dict:
    error, initial = runs["score_error"].max(), runs["score_error_init"].max()
    exact, end = runs["oracle_w2_squared_end"].mean(skipna=False), runs["w2_squared_end"].mean(skipna=False)
    return {
        "score error (init)": "no oracle" if math.isnan(error) else f"{error:.4f} ({initial:.3f})",
        "W2^2 end": end,
        "exact": exact,
        "W2^2 best": runs["w2_squared_best"].mean(skipna=False),
        "gain %": 100 * runs["gain"].mean(skipna=False) / end,
        **{f"t* {words}": _stop(runs, metric) for metric, words in SHOWN.items()},
    }


def _stop(runs: pd.DataFrame, metric: str) -> str:
    """Best stop, its interval and the verdicts, by one metric."""
    fields = runs if metric == "w2" else pd.DataFrame([fields[metric] for fields in runs["metrics"]])
    if fields[f"{METRIC_PREFIX[metric]}_end"].isna().any():
        return "infinite"
    names = ["logsnr_best", "logsnr_best_low", "logsnr_best_high"]
    # The end of sampling is null in the rows.
    best, low, high = (fields[name].astype(float).fillna(math.inf).sort_values().to_list() for name in names)
    shown = ["end" if math.isinf(v) else f"{v:.1f}" for v in (best[len(best) // 2], low[0], high[-1])]
    counts = Counter(VERDICT_LETTERS[verdict] for verdict in fields["verdict"])
    letters = "".join(f"{letter}{count}" for letter, count in sorted(counts.items()))
    return f"{shown[0]} [{shown[1]}, {shown[2]}] {letters}"


def _best_dimensions(frame: pd.DataFrame) -> str:
    """The joint optimum over (latent dimension, stop) for each setting, by mean squared W2 over seeds."""
    rows = []
    for (data, label), own in frame.groupby(["of", "label"], sort=False):
        dims = own.groupby("latent_dim", sort=False)
        means = dims["w2_squared_best"].mean()[dims["diverged_at_step"].count() == 0]
        row = {"data": data, "setting": label, "d": "none: every dimension has a diverged run"}
        rows.append(row if means.empty else row | {"d": means.idxmin(), "W2^2": means.min()})
    title = "Best latent dimension at its best stopping time (mean squared W2 over seeds):"
    return table(rows, {"data": "", "setting": "", "d": "", "W2^2": ".4f"}, title=title, left=2)


def _stopping_figure(data: str, own: pd.DataFrame, results: Results):
    """Learned squared W2 (points, first seed) and the exact discretised law (lines) against logsnr, a panel per d."""
    config, logsnrs = results.config, results.arrays["logsnr"]
    dims = sorted(own["latent_dim"].unique())
    columns = min(4, len(dims) + 1)
    size = f"n = {config.n[0]}, " if len(config.n) == 1 else ""  # several n are in the name
    rows = -(-(len(dims) + 1) // columns)
    figure, axes = plotting.new_figure(
        rows,
        columns,
        width=3.6 * columns + 1.2,
        height=3.1 * rows + 1.4,
        title=f"{data}: where should sampling stop? {size}seed {config.seeds[0]}",
        caption=f"Points: trained scores, {config.samples} samples, bars of two standard errors (mostly smaller than the "
        f"point). Lines: the exact law of the same {config.sampling_steps} Euler-Maruyama steps with the score that each "
        "should have learned. Bars under the curves: best stopping time with its 90 % interval; the last stop is the end "
        "of sampling. " + READOUT,
    )
    for panel, d in zip(axes.flat, dims, strict=False):
        panel.set_title(f"d = {d}", fontsize=10)
        _draw_stopping(panel, own[own["latent_dim"] == d].drop_duplicates("label"), results)
        panel.set_xlabel("logsnr at the stop (noise → data)", fontsize=9)
        panel.set_xlim(-1.5, logsnrs[-1] + 0.4)
        panel.grid(alpha=0.25)
    for panel in axes.flat[len(dims) :]:
        panel.set_axis_off()
    for panel in axes[:, 0]:
        panel.set_ylabel("squared W2 (data units²)", fontsize=9)
    axes.flat[len(dims)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=8.5, handlelength=3)
    return figure


def _draw_stopping(panel, runs: pd.DataFrame, results: Results) -> None:
    """The curves of one latent dimension, one run per setting."""
    arrays = results.arrays
    curves, exact, logsnrs = arrays["w2_squared"], arrays["oracle_w2_squared"], arrays["logsnr"]
    bars = 2 * arrays["w2_squared_standard_error"]
    runs = runs[np.isfinite(curves[runs.index]).all(axis=1)]
    if runs.empty:
        return
    lowest = min(np.nanmin([*(curves[i] - bars[i]), *exact[i]]) for i in runs.index)
    highest = max(curves[i, -1] for i in runs.index)
    # Near the end curves differ by little: show the range where the question is decided.
    span = max(highest - lowest, 0.04 * lowest)
    panel.set_ylim(lowest - (0.25 + 0.12 * len(runs)) * span, highest + 1.2 * span)
    for k, r in enumerate(runs.itertuples()):
        i, style, marker = r.Index, plotting.line_style(k), plotting.MARKERS[k % 8]
        panel.errorbar(
            logsnrs,
            curves[i],
            yerr=bars[i],
            fmt=marker,
            color=style["color"],
            markersize=4,
            markerfacecolor="white",
            linestyle="none",
            elinewidth=0.8,
            label=f"{r.label}: learned",
        )
        if np.isfinite(exact[i]).all():
            panel.plot(logsnrs, exact[i], label=f"{r.label}: exact", **style)
        stops = [r.logsnr_best_low, r.logsnr_best, r.logsnr_best_high]
        low, best, high = (logsnrs[-1] if pd.isna(stop) else stop for stop in stops)
        level = lowest - (0.2 + 0.12 * k) * span
        panel.plot([low, high], [level, level], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        panel.plot([best], [level], marker=marker, color=style["color"], markersize=5)


def _score_figure(frame: pd.DataFrame, results: Results):
    """Score error against latent dimension for every setting that has an oracle, every seed a point."""
    figure, axes = plotting.new_figure(
        1,
        1,
        width=9.5,
        height=5.2,
        title="How close did each score come to the one that theory gives it?",
        caption="Relative L2 error of the predicted noise against the oracle, all noise levels together, one point per "
        f"seed, lines through their means; n = {', '.join(map(str, results.config.n))}. Grey: before training. Linear "
        "scores are compared with the capped empirical score (Prop. 4), MLPs on fresh draws with the exact one.",
    )
    panel, known = axes[0, 0], frame[frame["score_error"].notna()]
    for k, ((data, label), own) in enumerate(known.groupby(["of", "label"], sort=False)):
        style, marker = plotting.line_style(k), plotting.MARKERS[k % 8]
        means = own.groupby("latent_dim", sort=False)[["score_error", "score_error_init"]].mean()
        panel.plot(means.index, means["score_error"], label=f"{data}: {label}", **style)
        panel.plot(
            own["latent_dim"], own["score_error"], marker, color=style["color"], markersize=5, markerfacecolor="white"
        )
        panel.plot(means.index, means["score_error_init"], color="0.6", marker=marker, markersize=4, linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    dims = sorted(known["latent_dim"].unique())
    panel.set_xticks(dims, [str(d) for d in dims])
    panel.set(xlabel="latent dimension d", ylabel="relative score error (1 = as wrong as predicting 0)")
    panel.grid(alpha=0.25, which="both")
    panel.legend(fontsize=8, handlelength=3.2, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
