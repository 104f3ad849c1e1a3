"""The printed tables and the figures, from the results alone."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments.launch import Report, Results
from experiments.unused_states import CANNOT_TELL
from ldmjax import plotting, schedules
from ldmjax.tables import table

SHOWN_DIMS, SHOWN_SAMPLERS = 8, 3
NEEDED = {"marker": "o", "color": "black", "markersize": 4.5}
CHEAP = {"marker": "o", "color": "#666666", "markersize": 4.5, "markerfacecolor": "white"}
UNUSED = {"marker": "x", "color": "#b04000", "markersize": 4.5, "markeredgewidth": 1.3}
LOGSNR_LIMITS = (-14.0, 16.0)


def report(results: Results) -> Report:
    """Shows best numbers for each n, what was learned, and up to three figures."""
    parts = [
        f"Stopping on level j of {results.config.levels} (1 = cleanest) leaves the states 1..j untrained and unevaluated.\n"
        "exact_flow: the same stops without discretisation error, what the estimated score alone asks for."
    ]
    figures = {"levels": _draw_levels(results)}
    for n in results.config.n:
        parts += _exact_tables(results) if np.isinf(n) else _estimate_tables(results, n)
    if np.any(np.isfinite(results.config.n)):
        figures["estimates"] = _draw_estimates(results)
    learned = results.of_kind("learned")
    if learned:
        figures["learned"] = _draw_learned(results)
    seconds = results.metadata.get("training_seconds") or {}
    return Report(text="\n\n".join(parts + [_learned_text(row, seconds) for row in learned]), figures=figures)


def _cases(results: Results, n: float) -> list[Mapping]:
    """Returns the closed forms of one n, which is None in the files where it is infinite."""
    return [row for row in results.of_kind("closed_form") if row["n"] == (None if np.isinf(n) else n)]


def _matrix(title: str, rows: Sequence[Mapping], cell: Callable[[Mapping], str]) -> str:
    """Shows a line per ladder and sampler, a column per latent dimension."""
    lines: dict[tuple, dict] = {}
    for row in rows:
        key = {name: row[name] for name in ("ladder", "sampler")}
        lines.setdefault(tuple(key.values()), key)[f"d = {row['latent_dim']}"] = cell(row)
    return table(list(lines.values()), title=title, left=2)


def _percent(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _drop_cell(row: Mapping) -> str:
    best = row["states_dropped_best"]
    if best == 0:
        return "0"
    return f"{best} ({_percent(row['gain_percent'])} %){'?' if row['verdict'] == CANNOT_TELL else ''}"


def _draw_cell(row: Mapping) -> str:
    low, middle, high = (row[f"states_dropped_{name}"] for name in ("low", "median", "high"))
    return f"{middle} [{low}, {high}] {100 * row['helped_share']:.0f} %"


def _exact_tables(results: Results) -> list[str]:
    """Shows the exact score: best numbers, how far the samples are off at all, tolerance."""
    rows, percent = _cases(results, np.inf), f"{100 * results.config.tolerance:g} %"
    sampled = [row for row in rows if row["sampler"] != "exact_flow"]
    best = "States best dropped, and what that saves of squared W2, with the exact score:"
    relative = "The same in W2 / sqrt(variance kept), all states → those dropped:"
    tolerance = (
        f"States that can be dropped if squared W2 may rise by {percent} of the whole distance, with the components left "
        f"out / by {percent} of the variance kept:"
    )
    tables = [_matrix(best, rows, _drop_cell)]
    if sampled:
        tables.append(_matrix(relative, sampled, lambda r: f"{r['relative_w2_end']:.4f} → {r['relative_w2_best']:.4f}"))
    both = "states_dropped_tolerance_total", "states_dropped_tolerance_kept"
    return [*tables, _matrix(tolerance, rows, lambda r: " / ".join(str(r[name]) for name in both))]


def _estimate_tables(results: Results, n: float) -> list[str]:
    """Shows a score from n samples: best numbers of the expectation and of each draw, and the formula for the noise."""
    rows = _cases(results, n)
    draws = rows[0]["draws"]
    expected = (
        f"n = {n:g}: states best dropped for the expected squared W2, and what that saves (?: the mean gain of {draws} draws "
        "is within 2 standard errors of 0, cannot tell):"
    )
    drawn = f"n = {n:g}: each of {draws} draws' own best number, median [5 %, 95 %], and how often any helps:"
    noise = (
        f"n = {n:g}: leftover noise variance with the smallest expected squared W2 (nu* is meant for values below 0.1):"
    )
    names = {
        "noise_var_formula": "nu* = (1/2n) sum(3+lam) / sum((1-lam)^2/lam)",
        "noise_var_expected": "exact, without discretisation",
    }
    by_dim = {row["latent_dim"]: row for row in rows}
    lines = [
        # Only the formula can be infinite: where all kept variances are 1.
        {"": label} | {f"d = {d}": "inf" if row[name] is None else f"{row[name]:.3g}" for d, row in by_dim.items()}
        for name, label in names.items()
    ]
    return [_matrix(expected, rows, _drop_cell), _matrix(drawn, rows, _draw_cell), table(lines, title=noise)]


def _learned_text(row: Mapping, seconds: Mapping[str, float]) -> str:
    """Shows savings and agreement of the trained models."""
    low, levels = row["states"]
    names = {
        "networks": "networks",
        "parameters": "parameters",
        "sample_gradients": "sample gradients",
        "network_evaluations": "network evaluations per sample",
    }
    saved = []
    for name, label in names.items():
        a, b = row[f"{name}_all_states"], row[f"{name}_kept_states"]
        saved.append(f"  {label}: {a:,} → {b:,} ({100 * (1 - b / a):.0f} % saved)")
    times = [seconds.get(f"d{row['latent_dim']}_{name}") for name in ("all_states", "kept_states")]
    if None not in times:
        saved.append("  training time: " + " → ".join(f"{time:.1f} s" for time in times))
    error = row["exact_score_standard_error"]
    return "\n".join(
        [
            f"Learned, d = {row['latent_dim']}, {row['ladder']}, {row['sampler']}, one network per level. Only the states "
            f"{low}..{levels} trained, against all {levels}:",
            *saved,
            f"  samples stopped on level {low - 1}: the two models differ by at most "
            f"{_number(row['largest_difference_to_full_model'], '.2g')}",
            f"  squared W2 there: closed form {row['w2_squared_closed_form']:.5f}, exact score from the same x_T "
            f"{row['w2_squared_exact_score']:.5f}{f' ± {error:.5f}' if error else ''}, learned "
            f"{_number(row['w2_squared_learned'])}",
            f"  the networks' error moves W2 by {_number(row['w2_shift_by_network'], '.4f')} (at most the trajectory error, "
            f"{_number(row['trajectory_error'], '.4f')})",
            f"  squared W2 with all {levels} states: closed form {row['w2_squared_closed_form_all_states']:.5f}, learned "
            f"{_number(row['w2_squared_learned_all_states'])}",
        ]
    )


def _number(value: float | None, how: str = ".5f") -> str:
    """Writes a number of a model, which is not finite where training diverged."""
    return "not finite" if value is None else format(value, how)


def _draw_levels(results: Results):
    """Draws every level of every ladder as a mark on the logsnr axis: needed, cheap to drop, or better dropped."""
    config, n = results.config, results.config.n[0]
    rows = _cases(results, n)
    names = list(dict.fromkeys(row["sampler"] for row in rows))[:SHOWN_SAMPLERS]
    ladders, dims = list(dict.fromkeys(row["ladder"] for row in rows)), results.arrays["latent_dims"]
    shown = dims[np.unique(np.round(np.linspace(0, len(dims) - 1, SHOWN_DIMS)).astype(int))].tolist()
    percent = f"{100 * config.tolerance:g} %"
    caption = (
        f"{results.data_name}, {'exact score' if np.isinf(n) else f'score from n = {n:g} samples'}: each mark is one of the "
        f"{config.levels} noise levels (latent states) of a ladder; rows are latent dimensions d. Cross: squared W2 in "
        f"the latent space is smallest if sampling stops before this level is used. Open: stopping before it costs at "
        f"most {percent} of the variance kept. Filled: needed. Levels beyond the axis, pure noise among them, are drawn at its "
        f"edge. exact_flow: the same stops without discretisation error."
    )
    if "variances" in results.arrays:  # older workdirs lack them
        caption += (
            " Grey bar: levels whose noise-to-signal ratio lies between the variances of the largest and the smallest kept "
            "component."
        )
    block = len(shown) + 1  # lines of a ladder: its name and its dimensions
    height = 2.4 + 0.19 * len(ladders) * block
    figure, axes = plotting.new_figure(1, len(names), width=3.2 + 4.0 * len(names), height=height, caption=caption)
    for panel, sampler in zip(axes[0], names, strict=True):
        for row in rows:
            if row["sampler"] == sampler and row["latent_dim"] in shown:
                _draw_case(panel, results, row, ladders.index(row["ladder"]) * block + shown.index(row["latent_dim"]))
        panel.set_title(sampler, fontsize=10)
        panel.set(xlim=(LOGSNR_LIMITS[0] - 1, LOGSNR_LIMITS[1] + 1), ylim=(len(ladders) * block - 1, -1.6))
        panel.set_xlabel("logsnr of the level (noise → data)", fontsize=9)
        ticks = [(k * block + i, f"{d}") for k in range(len(ladders)) for i, d in enumerate(shown)]
        panel.set_yticks(*zip(*ticks, strict=True), fontsize=7)
        place = {"transform": panel.get_yaxis_transform(), "fontsize": 8, "va": "center", "fontweight": "bold"}
        for k, ladder in enumerate(ladders):
            panel.text(0.02, k * block - 0.95, ladder, **place)
        panel.tick_params(axis="y", length=0)
    axes[0, 0].set_ylabel("latent dimension d, for each ladder")
    styles = [("needed", NEEDED), (f"costs at most {percent}", CHEAP), ("better dropped", UNUSED)]
    marks = [axes[0, 0].plot([], [], linestyle="none", label=label, **style)[0] for label, style in styles]
    if "variances" in results.arrays:
        marks += axes[0, 0].plot([], [], color="#cccccc", linewidth=7, label="range of the kept components")
    figure.legend(handles=marks, loc="outside upper center", ncols=4, fontsize=9)
    return figure


def _curve(results: Results, row: Mapping, name: str) -> np.ndarray:
    """Returns the array of one case, by states dropped."""
    n = np.inf if row["n"] is None else row["n"]
    of_dims = results.arrays[f"{row['ladder']}_{row['sampler']}_n{n:g}_{name}"]
    return of_dims[results.arrays["latent_dims"].tolist().index(row["latent_dim"])]


def _draw_case(axes, results, row, place):
    """Draws one line of marks, and the range of the kept components behind it."""
    logsnr = np.clip(schedules.logsnr_from_noise_var(_curve(results, row, "noise_var")[1:]), *LOGSNR_LIMITS)
    if "variances" in results.arrays:
        kept = results.arrays["variances"][: row["latent_dim"]]
        with np.errstate(divide="ignore"):
            ends = -np.log(np.maximum(kept[[0, -1]], 0.0) / (kept.mean() if row["rescaled"] else 1.0))
        bar = {"color": "#cccccc", "linewidth": 7, "solid_capstyle": "butt", "zorder": 1}
        axes.plot(np.clip(ends, *LOGSNR_LIMITS), [place, place], **bar)
    level, best = np.arange(1, row["levels"] + 1), row["states_dropped_best"]
    tolerated = max(best, row["states_dropped_tolerance_kept"])
    for chosen, style in [
        (level <= best, UNUSED),
        ((level > best) & (level <= tolerated), CHEAP),
        (level > tolerated, NEEDED),
    ]:
        axes.plot(logsnr[chosen], np.full(chosen.sum(), place), linestyle="none", zorder=3, **style)


def _draw_estimates(results: Results):
    """Draws, for the first ladder, against d: best number of states over draws, and what dropping a fixed number saves."""
    config = results.config
    ladder = results.of_kind("closed_form")[0]["ladder"]
    rows = [row for row in results.of_kind("closed_form") if row["ladder"] == ladder]
    draws = next(row["draws"] for row in rows if row["n"] is not None)
    names = list(dict.fromkeys(row["sampler"] for row in rows))[:SHOWN_SAMPLERS]
    caption = (
        f"{results.data_name}, ladder {ladder} with {config.levels} levels. Top: number of states best dropped in each of "
        f"{draws} draws of a diagonal score from n samples; lines are medians, bars 5 to 95 %, and n = inf is the "
        f"exact score. Bottom: what dropping the number that is best on average saves of squared W2 (markers: mean ± 2 "
        f"standard errors over the draws; lines: exact expectation). Where a bar reaches 0, so many draws cannot tell."
    )
    figure, axes = plotting.new_figure(2, len(names), width=2.2 + 3.8 * len(names), height=8, caption=caption)
    for column, sampler in zip(axes.T, names, strict=True):
        for i, n in enumerate(config.n):
            _draw_n(column, [row for row in _cases(results, n) if row in rows and row["sampler"] == sampler], i, n)
        column[0].set_title(sampler, fontsize=10)
        for panel in column:
            plotting.set_dimension_scale(panel.xaxis, int(max(results.arrays["latent_dims"])))
            panel.grid(alpha=0.25)
            panel.set_xlabel("latent dimension d", fontsize=9)
        column[0].set_ylim(-0.5, config.levels + 0.5)
        column[1].set_yscale("symlog", linthresh=0.1)
        column[1].axhline(0.0, color="grey", linewidth=0.8)
        column[1].set_ylim(-2.0, 130)
    axes[0, 0].set_ylabel(f"states best dropped, of {config.levels}")
    axes[1, 0].set_ylabel("saved (% of squared W2 with all states)")
    plotting.draw_legend(axes[0, 0])
    return figure


def _draw_n(column, rows, index, n):
    def values(name, exact):
        """The exact score has one draw, itself."""
        return np.array([row[exact] if np.isinf(n) else row[name] for row in rows])

    # Values of neighbouring n are moved apart, so that their bars do not hide each other.
    dims = np.array([row["latent_dim"] for row in rows]) * 1.1**index
    style = plotting.line_style(index, markevery=1)
    low, middle, high = (values(f"states_dropped_{q}", "states_dropped_best") for q in ("low", "median", "high"))
    bars = {"color": style["color"], "capsize": 2.5, "linestyle": "none", "elinewidth": 1.0}
    column[0].plot(dims, middle, label=f"n = {n:g}", **style)
    column[0].errorbar(dims, middle, yerr=[middle - low, high - middle], **bars)
    gain = values("measured_gain_percent", "gain_percent")
    error = np.zeros(len(rows)) if np.isinf(n) else values("measured_gain_standard_error", "")
    column[1].plot(dims, [row["gain_percent"] for row in rows], **style | {"marker": ""})
    column[1].errorbar(dims, gain, yerr=2 * error, marker=style["marker"], markersize=4.5, **bars)


def _draw_learned(results: Results):
    """Draws squared W2 against states dropped: closed form, the model of all states stopped anywhere, and the partial one."""
    config, rows = results.config, results.of_kind("learned")
    samples = f"{rows[0]['samples']} samples" if "samples" in rows[0] else "samples"  # older workdirs do not say
    caption = (
        f"{results.data_name}, Gaussian latents, {rows[0]['ladder']} with {config.levels} levels, {rows[0]['sampler']}, one "
        f"network per level. Line: closed form with the exact score. Circles: {samples} of the model with all "
        f"{config.levels} networks, stopped on each level. Square: the model whose networks 1..j were never trained; its "
        f"samples are those of the circle inside. x_T has covariance I exactly, so the gap to the line is the networks' "
        f"error."
    )
    figure, axes = plotting.new_figure(1, len(rows), width=1.6 + 4.6 * len(rows), height=4.9, caption=caption)
    for panel, row in zip(axes[0], rows, strict=True):
        d, (low, levels) = row["latent_dim"], row["states"]
        scale = d if config.rescale else results.arrays["variances"][:d].sum()
        closed, full = (results.arrays[f"learned_d{d}_{name}"] / scale for name in ("closed_form", "w2_squared"))
        circle = {"color": "#0072b2", "markersize": 4.5, "markerfacecolor": "white", "linestyle": "none"}
        square = {"color": "#d55e00", "markersize": 11, "markerfacecolor": "none", "markeredgewidth": 1.8}
        panel.plot(closed, label="closed form, exact score", **plotting.line_style(0))
        panel.plot(full, marker="o", label="all states trained", **circle)
        learned = np.nan if row["w2_squared_learned"] is None else row["w2_squared_learned"] / scale
        label = f"only states {low}..{levels} trained"
        panel.plot([low - 1], [learned], marker="s", linestyle="none", label=label, **square)
        panel.set(yscale="log", xlabel="states dropped, from the cleanest (level that sampling stops on)")
        panel.set_title(f"d = {d}", fontsize=10)
        panel.grid(alpha=0.25)
        plotting.draw_legend(panel)
    axes[0, 0].set_ylabel("squared W2 / variance kept")
    return figure
