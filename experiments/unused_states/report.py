"""The printed tables and the figures."""

from collections.abc import Sequence

import numpy as np

from experiments.tables import align
from experiments.unused_states import CANNOT_TELL, Case, Config
from experiments.unused_states.learned import Comparison, LearnedConfig
from ldmjax import plotting, schedules

SHOWN_DIMS, SHOWN_SAMPLERS = 8, 3
NEEDED = {"marker": "o", "color": "black", "markersize": 4.5}
CHEAP = {"marker": "o", "color": "#666666", "markersize": 4.5, "markerfacecolor": "white"}
UNUSED = {"marker": "x", "color": "#b04000", "markersize": 4.5, "markeredgewidth": 1.3}
LOGSNR_LIMITS = (-14.0, 16.0)


def _groups(cases: Sequence[Case]) -> dict[tuple[str, str], list[Case]]:
    """Cases by (ladder, sampler), in order."""
    groups = {}
    for case in cases:
        groups.setdefault((case.ladder, case.sampler), []).append(case)
    return groups


def _matrix(title: str, cases: Sequence[Case], cell) -> list[str]:
    """A row per ladder and sampler, a column per latent dimension."""
    groups = _groups(cases)
    dims = [f"d = {c.latent_dim}" for c in next(iter(groups.values()))]
    rows = [["ladder", "sampler", *dims], *([*key, *map(cell, row)] for key, row in groups.items())]
    return ["", title, *align(rows, left=2)]


def _percent(value: float) -> str:
    return f"{value:.2g}" if abs(value) < 99.5 else f"{value:.0f}"


def _drop_cell(case: Case) -> str:
    if case.best == 0:
        return "0"
    return f"{case.best} ({_percent(case.gain_percent)} %){'?' if case.verdict == CANNOT_TELL else ''}"


def _draw_cell(case: Case) -> str:
    low, middle, high = case.spread
    return f"{middle} [{low}, {high}] {100 * np.mean(case.best_of_draw > 0):.0f} %"


def _relative_cell(case: Case) -> str:
    end, best = np.sqrt(case.w2_squared[[0, case.best]] / case.kept)
    return f"{end:.4f} → {best:.4f}"


def table(
    cases: Sequence[Case], config: Config, comparisons: Sequence[Comparison], learned: LearnedConfig | None
) -> str:
    """What the command prints."""
    lines = [
        f"Stopping on level j of {config.levels} (1 = cleanest) leaves the states 1..j untrained and unevaluated.",
        "exact_flow: the same stops without discretisation error, what the estimated score alone asks for.",
    ]
    for n in config.n:
        of_n = [c for c in cases if c.n == n]
        lines += _exact_lines(of_n, config) if np.isinf(n) else _estimate_lines(of_n, n, config)
    return "\n".join(lines + _learned_lines(comparisons, learned))


def _exact_lines(cases, config):
    """The exact score: best numbers, how far the samples are off at all, tolerance."""
    best = "States best dropped, and what that saves of squared W2, with the exact score:"
    relative = "The same in W2 / sqrt(variance kept), all states → those dropped:"
    percent = f"{100 * config.tolerance:g} %"
    tolerance = (
        f"States that can be dropped if squared W2 may rise by {percent} of the whole distance, with the components left "
        f"out / by {percent} of the variance kept:"
    )
    chains = [c for c in cases if c.sampler != "exact_flow"]
    return [
        *_matrix(best, cases, _drop_cell),
        *(_matrix(relative, chains, _relative_cell) if chains else []),
        *_matrix(tolerance, cases, lambda c: f"{c.tolerated['total']} / {c.tolerated['kept']}"),
    ]


def _estimate_lines(cases, n, config):
    """A score from n samples: best numbers of the expectation and of each draw, and the formula for the noise."""
    expected = (
        f"n = {n:g}: states best dropped for the expected squared W2, and what that saves (?: the mean gain of "
        f"{config.draws} draws is within 2 standard errors of 0, cannot tell):"
    )
    drawn = f"n = {n:g}: each of {config.draws} draws' own best number, median [5 %, 95 %], and how often any helps:"
    first = next(iter(_groups(cases).values()))
    rows = [
        ["", *(f"d = {c.latent_dim}" for c in first)],
        ["nu* = (1/2n) sum(3+lam) / sum((1-lam)^2/lam)", *(f"{c.noise_var_formula:.3g}" for c in first)],
        ["exact, without discretisation", *(f"{c.noise_var_expected:.3g}" for c in first)],
    ]
    noise = (
        f"n = {n:g}: leftover noise variance with the smallest expected squared W2 (nu* is meant for values below .1):"
    )
    return [
        *_matrix(expected, cases, _drop_cell),
        *_matrix(drawn, cases, _draw_cell),
        *["", noise, *align(rows, left=1)],
    ]


def _learned_lines(comparisons, learned):
    """Savings and agreement of the trained models."""
    lines = []
    for c in comparisons:
        levels, j = c.closed_form.size - 1, c.dropped
        networks = [len(m.config.level_blocks) for m in (c.full, c.partial)]
        saved = {
            "networks": networks,
            "parameters": (c.full.parameter_count, c.partial.parameter_count),
            "sample gradients": [k * learned.steps * learned.batch_size for k in networks],
            "network evaluations per sample": c.evaluations,
        }
        lines += [
            "",
            f"Learned, d = {c.latent_dim}, {learned.ladder}, {learned.sampler}, one network per level. Only the states "
            f"{j + 1}..{levels} trained, against all {levels}:",
            *(f"  {name}: {a:,} → {b:,} ({100 * (1 - b / a):.0f} % saved)" for name, (a, b) in saved.items()),
            f"  training time: {c.full.seconds[-1]:.1f} s → {c.partial.seconds[-1]:.1f} s",
            f"  samples stopped on level {j}: the two models differ by at most {c.largest_difference:.2g}",
            f"  squared W2 there: closed form {c.closed_form[j]:.5f}, exact score from the same x_T {c.exact_w2:.5f}"
            + (f" ± {c.standard_error:.5f}" if c.standard_error else "")
            + f", learned {c.partial_w2:.5f}",
            f"  the networks' error moves W2 by {c.network_shift:.4f} (at most the trajectory error, {c.trajectory_error:.4f})",
            f"  squared W2 with all {levels} states: closed form {c.closed_form[0]:.5f}, learned {c.full_w2[0]:.5f}",
        ]
    return lines


def _shown_dims(cases: Sequence[Case]) -> list[int]:
    dims = list(dict.fromkeys(c.latent_dim for c in cases))
    chosen = np.unique(np.round(np.linspace(0, len(dims) - 1, SHOWN_DIMS)).astype(int))
    return [dims[k] for k in chosen]


def draw_levels(cases: Sequence[Case], variances: np.ndarray, config: Config, name: str):
    """Every level of every ladder as a mark on the logsnr axis: needed, cheap to drop, or better dropped."""
    n = config.n[0]
    cases = [c for c in cases if c.n == n]
    names = list(dict.fromkeys(c.sampler for c in cases))[:SHOWN_SAMPLERS]
    ladders, dims = list(dict.fromkeys(c.ladder for c in cases)), _shown_dims(cases)
    percent = f"{100 * config.tolerance:g} %"
    caption = (
        f"{name}, {'exact score' if np.isinf(n) else f'score from n = {n:g} samples'}: each mark is one of the "
        f"{config.levels} noise levels (latent states) of a ladder; rows are latent dimensions d. Cross: squared W2 in "
        f"the latent space is smallest if sampling stops before this level is used. Open: stopping before it costs at "
        f"most {percent} of the variance kept. Filled: needed. Grey bar: levels whose noise-to-signal ratio lies between "
        f"the variances of the largest and the smallest kept component. Levels beyond the axis, pure noise among them, are "
        f"drawn at its edge. exact_flow: the same stops without discretisation error."
    )
    height = 2.4 + 0.19 * len(ladders) * (len(dims) + 1)
    figure, axes = plotting.new_figure(1, len(names), width=3.2 + 4.0 * len(names), height=height, caption=caption)
    for panel, sampler in zip(axes[0], names, strict=True):
        for case in cases:
            if case.sampler == sampler and case.latent_dim in dims:
                row = ladders.index(case.ladder) * (len(dims) + 1) + dims.index(case.latent_dim)
                _draw_case(panel, case, row, variances)
        panel.set_title(sampler, fontsize=10)
        panel.set(xlim=(LOGSNR_LIMITS[0] - 1, LOGSNR_LIMITS[1] + 1), ylim=(len(ladders) * (len(dims) + 1) - 1, -1.6))
        panel.set_xlabel("logsnr of the level (noise → data)", fontsize=9)
        rows = [(k * (len(dims) + 1) + i, f"{d}") for k in range(len(ladders)) for i, d in enumerate(dims)]
        panel.set_yticks(*zip(*rows, strict=True), fontsize=7)
        for k, ladder in enumerate(ladders):
            panel.text(0.02, k * (len(dims) + 1) - 0.95, ladder, transform=panel.get_yaxis_transform(), fontsize=8,
                       va="center", fontweight="bold")  # fmt: skip
        panel.tick_params(axis="y", length=0)
    axes[0, 0].set_ylabel("latent dimension d, for each ladder")
    styles = [("needed", NEEDED), (f"costs at most {percent}", CHEAP), ("better dropped", UNUSED)]
    marks = [axes[0, 0].plot([], [], linestyle="none", label=label, **style)[0] for label, style in styles]
    bar = axes[0, 0].plot([], [], color="#cccccc", linewidth=7, label="range of the kept components")[0]
    figure.legend(handles=[*marks, bar], loc="outside upper center", ncols=4, fontsize=9)
    return figure


def _draw_case(axes, case, row, variances):
    """One row of marks, and the range of the kept components behind it."""
    logsnr = np.clip(schedules.logsnr_from_noise_var(case.noise_var[1:]), *LOGSNR_LIMITS)
    scale = variances[: case.latent_dim].sum() / case.kept
    with np.errstate(divide="ignore"):
        ends = -np.log(np.maximum(variances[[0, case.latent_dim - 1]], 0.0) / scale)
    axes.plot(np.clip(ends, *LOGSNR_LIMITS), [row, row], color="#cccccc", linewidth=7, solid_capstyle="butt", zorder=1)
    level = np.arange(1, case.levels + 1)
    cheap = (level > case.best) & (level <= case.tolerated["kept"])
    for chosen, style in [
        (level <= case.best, UNUSED),
        (cheap, CHEAP),
        (level > np.maximum(case.best, case.tolerated["kept"]), NEEDED),
    ]:
        axes.plot(logsnr[chosen], np.full(chosen.sum(), row), linestyle="none", zorder=3, **style)


def draw_estimates(cases: Sequence[Case], config: Config, name: str):
    """For the first ladder, against d: best number of states over draws, and what dropping a fixed number saves."""
    ladder = cases[0].ladder
    names = list(dict.fromkeys(c.sampler for c in cases if c.ladder == ladder))[:SHOWN_SAMPLERS]
    caption = (
        f"{name}, ladder {ladder} with {config.levels} levels. Top: number of states best dropped in each of "
        f"{config.draws} draws of a diagonal score from n samples; lines are medians, bars 5 to 95 %, and n = inf is the "
        f"exact score. Bottom: what dropping the number that is best on average saves of squared W2 (markers: mean ± 2 "
        f"standard errors over the draws; lines: exact expectation). Where a bar reaches 0, so many draws cannot tell."
    )
    figure, axes = plotting.new_figure(2, len(names), width=2.2 + 3.8 * len(names), height=8, caption=caption)
    for column, sampler in zip(axes.T, names, strict=True):
        for i, n in enumerate(config.n):
            chosen = [c for c in cases if (c.ladder, c.sampler, c.n) == (ladder, sampler, n)]
            _draw_n(column, chosen, i, "inf" if np.isinf(n) else f"{n:g}")
        column[0].set_title(sampler, fontsize=10)
        for panel in column:
            plotting.set_dimension_scale(panel.xaxis, max(config.latent_dims))
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


def _draw_n(column, cases, index, label):
    # Values of neighbouring n are moved apart, so that their bars do not hide each other.
    dims = np.array([c.latent_dim for c in cases]) * 1.1**index
    style = plotting.line_style(index, markevery=1)
    low, middle, high = np.transpose([c.spread for c in cases])
    bars = {"color": style["color"], "capsize": 2.5, "linestyle": "none", "elinewidth": 1.0}
    column[0].plot(dims, middle, label=f"n = {label}", **style)
    column[0].errorbar(dims, middle, yerr=[middle - low, high - middle], **bars)
    gain, error = np.transpose([c.measured_gain_percent for c in cases])
    column[1].plot(dims, [c.gain_percent for c in cases], **style | {"marker": ""})
    column[1].errorbar(dims, gain, yerr=2 * error, marker=style["marker"], markersize=4.5, **bars)


def draw_learned(comparisons: Sequence[Comparison], config: Config, learned: LearnedConfig, name: str):
    """Squared W2 against states dropped: closed form, the model of all states stopped anywhere, and the partial one."""
    caption = (
        f"{name}, Gaussian latents, {learned.ladder} with {config.levels} levels, {learned.sampler}, one network per "
        f"level. Line: closed form with the exact score. Circles: {learned.samples} samples of the model with all "
        f"{config.levels} networks, stopped on each level. Square: the model whose networks 1..j were never trained; its "
        f"samples are those of the circle inside. x_T has covariance I exactly, so the gap to the line is the networks' "
        f"error."
    )
    count = len(comparisons)
    figure, axes = plotting.new_figure(1, count, width=1.6 + 4.6 * count, height=4.9, caption=caption)
    for panel, c in zip(axes[0], comparisons, strict=True):
        scale, j = _kept(c), c.dropped
        x = np.arange(c.closed_form.size)
        panel.plot(x, c.closed_form / scale, label="closed form, exact score", **plotting.line_style(0))
        panel.plot(x, c.full_w2 / scale, "o", color="#0072b2", markersize=4.5, markerfacecolor="white",
                   label="all states trained")  # fmt: skip
        panel.plot([j], [c.partial_w2 / scale], "s", color="#d55e00", markersize=11, markerfacecolor="none",
                   markeredgewidth=1.8, label=f"only states {j + 1}..{x[-1]} trained")  # fmt: skip
        panel.set(yscale="log", xlabel="states dropped, from the cleanest (level that sampling stops on)")
        panel.set_title(f"d = {c.latent_dim}", fontsize=10)
        panel.grid(alpha=0.25)
        plotting.draw_legend(panel)
    axes[0, 0].set_ylabel("squared W2 / variance kept")
    return figure


def _kept(comparison):
    return comparison.full.data_std**2 * comparison.latent_dim
