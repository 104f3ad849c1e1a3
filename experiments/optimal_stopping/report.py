"""What the main job shows: a table on the terminal, arrays for curves.npz, and figures."""

import math
from collections import Counter
from pathlib import Path

import numpy as np

from experiments.optimal_stopping.evaluation import METRIC_PREFIX
from experiments.optimal_stopping.setup import Config
from ldmjax import plotting

VERDICT_LETTERS = {"stop early": "E", "no gain from stopping": "N", "cannot tell": "?"}
READOUT = "Readout: the noisy latent z_t, decoded; the last steps of one fixed grid are dropped (truncate)."


def group_label(record: dict, *, several_rates: bool = False) -> str:
    """Model, training data and cap of a run, in words."""
    draws = {"sample": "the n samples", "fresh": "fresh draws"}[record["training_draws"]]
    words = f"{record['model'].replace('mlp', 'MLP')} on {draws}"
    if record["model"] == "linear":
        words += f", cap {record['cap']:g}"
    return words + (f", rate {record['learning_rate']:g}" if several_rates else "")


def grouped(records: list[dict]) -> dict[tuple[str, str], dict[int, list[int]]]:
    """Indices of the runs by (data and n, label), then by latent dimension: the seeds of one setting."""
    sizes, rates = (
        {r["n"] for r in records},
        Counter(r["model"] for r in {(r["model"], r["learning_rate"]): r for r in records}.values()),
    )
    groups: dict = {}
    for i, r in enumerate(records):
        data = r["data"] + (f", n = {r['n']}" if len(sizes) > 1 else "")
        key = (data, group_label(r, several_rates=rates[r["model"]] > 1))
        groups.setdefault(key, {}).setdefault(r["latent_dim"], []).append(i)
    return groups


def table(records: list[dict]) -> str:
    """One row per (data, model, latent dimension), seeds together; t* as logsnr, verdicts counted."""
    head = (
        f"{'d':>4} {'score error (init)':>19} {'W2^2 end':>9} {'exact':>8} {'W2^2 best':>9} {'gain %':>7}  "
        + "  ".join(f"{name:<21}" for name in ("t* W2 [90 %]", "t* MMD", "t* sliced W2", "t* KL in latent"))
    )
    lines = [
        "",
        "t* = logsnr of the best stop: median over seeds [lowest, highest end of the seeds' 90 % intervals]; end = do not "
        "stop early.",
        "Verdicts over seeds: E stop early, N no gain from stopping (< 1 %), ? cannot tell. Score error: largest over seeds.",
    ]
    for (data, label), dims in grouped(records).items():
        lines += ["", f"{data}: {label}", head]
        lines += [_row(d, [records[i] for i in runs]) for d, runs in dims.items()]
    lines += ["", *_best_dimensions(records)]
    return "\n".join(lines)


def _row(latent_dim: int, runs: list[dict]) -> str:
    diverged = [r for r in runs if r["diverged_at_step"] is not None]
    if diverged:
        steps = ", ".join(f"seed {r['seed']} at step {r['diverged_at_step']}" for r in diverged)
        return f"{latent_dim:>4} diverged: {steps}"

    def mean(key):
        values = [r[key] for r in runs]
        return math.nan if None in values else float(np.mean(values))

    error = max(r["score_error"] for r in runs)
    shown = "no oracle" if math.isnan(error) else f"{error:.4f} ({max(r['score_error_init'] for r in runs):.3f})"
    exact = mean("oracle_w2_squared_end")
    gain = 100 * mean("gain") / mean("w2_squared_end")
    stops = "  ".join(f"{_stop(runs, metric):<21}" for metric in METRIC_PREFIX)
    return (
        f"{latent_dim:>4} {shown:>19} {mean('w2_squared_end'):>9.4f} "
        f"{'' if math.isnan(exact) else f'{exact:.4f}':>8} {mean('w2_squared_best'):>9.4f} {gain:>7.2f}  {stops}"
    ).rstrip()


def _stop(runs: list[dict], metric: str) -> str:
    fields = [r if metric == "w2" else r["metrics"][metric] for r in runs]
    if any(not math.isfinite(f[f"{METRIC_PREFIX[metric]}_end"]) for f in fields):
        return "infinite"
    verdicts = Counter(VERDICT_LETTERS[f["verdict"]] for f in fields)

    def logsnr(key, choose):
        value = choose([math.inf if f[key] is None else f[key] for f in fields])
        return "end" if math.isinf(value) else f"{value:.1f}"

    best = logsnr("logsnr_best", lambda v: sorted(v)[len(v) // 2])
    span = f"[{logsnr('logsnr_best_low', min)}, {logsnr('logsnr_best_high', max)}]"
    return f"{best} {span} " + "".join(f"{letter}{count}" for letter, count in sorted(verdicts.items()))


def _best_dimensions(records: list[dict]) -> list[str]:
    """The joint optimum over (latent dimension, stop) for each setting, by mean squared W2 over seeds."""
    lines = ["Best latent dimension at its best stopping time (mean squared W2 over seeds):"]
    for (data, label), dims in grouped(records).items():
        scores = {
            d: np.mean([records[i]["w2_squared_best"] for i in runs])
            for d, runs in dims.items()
            if all(records[i]["diverged_at_step"] is None for i in runs)
        }
        if not scores:
            lines.append(f"  {data}: {label:<28} none: every dimension has a diverged run")
            continue
        best = min(scores, key=scores.get)
        lines.append(f"  {data}: {label:<28} d = {best}, W2^2 = {scores[best]:.4f}")
    return lines


def curve_arrays(outcome) -> dict[str, np.ndarray]:
    """The arrays of curves.npz; run order is that of records.jsonl."""
    arrays = {"logsnr": outcome.logsnrs, "name": np.array([r["name"] for r in outcome.records])}
    for metric, prefix in METRIC_PREFIX.items():
        arrays[prefix] = outcome.curves[metric]
        arrays[f"{prefix}_standard_error"] = outcome.standard_errors[metric]
    return arrays | {"oracle_w2_squared": outcome.exact}


def save_figures(workdir: Path, outcome, config: Config) -> None:
    """Writes stopping_DATA.png for every data set, and score_error.png."""
    groups = grouped(outcome.records)
    for data in dict.fromkeys(data for data, _ in groups):
        shown = {label: dims for (name, label), dims in groups.items() if name == data}
        name = "".join(c if c.isalnum() or c in "._-" else "_" for c in data)
        plotting.save(_stopping_figure(data, shown, outcome, config), workdir / f"stopping_{name}.png")
    plotting.save(_score_figure(groups, outcome.records, config), workdir / "score_error.png")


def _stopping_figure(data: str, shown: dict, outcome, config: Config):
    """Learned squared W2 (points, first seed) and the exact discretised law (lines) against logsnr, a panel per d."""
    dims = sorted({d for groups in shown.values() for d in groups})
    columns = min(4, len(dims) + 1)
    size = f"n = {config.n[0]}, " if len(config.n) == 1 else ""  # several n are in the name
    rows = -(-(len(dims) + 1) // columns)
    figure, axes = plotting.new_figure(
        rows, columns, width=3.6 * columns + 1.2, height=3.1 * rows + 1.4,
        title=f"{data}: where should sampling stop? {size}seed {config.seeds[0]}",
        caption=f"Points: trained scores, {config.samples} samples, bars of two standard errors (mostly smaller than the "
        f"point). Lines: the exact law of the same {config.sampling_steps} Euler-Maruyama steps with the score that each "
        "should have learned. Bars under the curves: best stopping time with its 90 % interval; the last stop is the end "
        "of sampling. " + READOUT,
    )  # fmt: skip
    for panel, d in zip(axes.flat, dims, strict=False):
        _stopping_panel(panel, d, shown, outcome)
    for panel in axes.flat[len(dims) :]:
        panel.set_axis_off()
    for panel in axes.flat[: len(dims)]:
        panel.set_xlabel("logsnr at the stop (noise → data)", fontsize=9)
    for panel in axes[:, 0]:
        panel.set_ylabel("squared W2 (data units²)", fontsize=9)
    axes.flat[len(dims)].legend(*axes.flat[0].get_legend_handles_labels(), loc="center", fontsize=8.5, handlelength=3)
    return figure


def _stopping_panel(panel, d: int, shown: dict, outcome) -> None:
    curves, errors, exact = outcome.curves["w2"], outcome.standard_errors["w2"], outcome.exact
    runs = {label: groups[d][0] for label, groups in shown.items() if d in groups}
    runs = {label: i for label, i in runs.items() if np.isfinite(curves[i]).all()}
    panel.set_title(f"d = {d}", fontsize=10)
    if not runs:
        return
    lowest = min(np.nanmin([*(curves[i] - 2 * errors[i]), *exact[i]]) for i in runs.values())
    highest = max(curves[i, -1] for i in runs.values())
    # Near the end curves differ by little: show the range where the question is decided.
    span = max(highest - lowest, 0.04 * lowest)
    panel.set_ylim(lowest - (0.25 + 0.12 * len(runs)) * span, highest + 1.2 * span)
    for k, (label, i) in enumerate(runs.items()):
        style = plotting.line_style(k)
        panel.errorbar(
            outcome.logsnrs, curves[i], yerr=2 * errors[i], fmt=plotting.MARKERS[k % 8], color=style["color"], markersize=4,
            markerfacecolor="white", linestyle="none", elinewidth=0.8, label=f"{label}: learned",
        )  # fmt: skip
        if np.isfinite(exact[i]).all():
            panel.plot(outcome.logsnrs, exact[i], label=f"{label}: exact", **style)
        r = outcome.records[i]
        end = outcome.logsnrs[-1]
        low, best, high = (
            end if r[key] is None else r[key] for key in ("logsnr_best_low", "logsnr_best", "logsnr_best_high")
        )
        level = lowest - (0.2 + 0.12 * k) * span
        panel.plot([low, high], [level, level], color=style["color"], linestyle=style["linestyle"], linewidth=1.2)
        panel.plot([best], [level], marker=plotting.MARKERS[k % 8], color=style["color"], markersize=5)
    panel.set_xlim(-1.5, outcome.logsnrs[-1] + 0.4)
    panel.grid(alpha=0.25)


def _score_figure(groups: dict, records: list[dict], config: Config):
    """Score error against latent dimension for every setting that has an oracle, every seed a point."""
    figure, axes = plotting.new_figure(
        1, 1, width=9.5, height=5.2, title="How close did each score come to the one that theory gives it?",
        caption="Relative L2 error of the predicted noise against the oracle, all noise levels together, one point per "
        f"seed, lines through their means; n = {', '.join(map(str, config.n))}. Grey: before training. Linear scores "
        "are compared with the capped empirical score (Prop. 4), MLPs on fresh draws with the exact one.",
    )  # fmt: skip
    panel = axes[0, 0]
    with_oracle = {
        key: dims for key, dims in groups.items() if np.isfinite(records[next(iter(dims.values()))[0]]["score_error"])
    }
    for k, ((data, label), dims) in enumerate(with_oracle.items()):
        style = plotting.line_style(k)
        means = [np.mean([records[i]["score_error"] for i in runs]) for runs in dims.values()]
        panel.plot(list(dims), means, label=f"{data}: {label}", **style)
        points = [(d, records[i]["score_error"]) for d, runs in dims.items() for i in runs]
        panel.plot(*zip(*points, strict=True), plotting.MARKERS[k % 8], color=style["color"], markersize=5, mfc="white")
        initial = [np.mean([records[i]["score_error_init"] for i in runs]) for runs in dims.values()]
        panel.plot(list(dims), initial, color="0.6", marker=plotting.MARKERS[k % 8], markersize=4, linewidth=0.8)
    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    dims = sorted({d for groups in with_oracle.values() for d in groups})
    panel.set_xticks(dims, [str(d) for d in dims])
    panel.set(xlabel="latent dimension d", ylabel="relative score error (1 = as wrong as predicting 0)")
    panel.grid(alpha=0.25, which="both")
    panel.legend(fontsize=8, handlelength=3.2, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure
