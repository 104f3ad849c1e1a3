"""The figures: exact distances on the spectrum, the mixture with exact scores, learned scores."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.few_states import Config, Outcome
from experiments.few_states.exact import SAMPLERS, USUAL
from experiments.few_states.learned import METRICS
from experiments.few_states.learned import SAMPLERS as LEARNED_SAMPLERS
from experiments.few_states.mixture import STOCHASTIC
from ldmjax import plotting

TITLES = {"ddim": "DDIM", "ddpm": "DDPM", "heun": "Heun", "dpmpp_2m": "DPM-Solver++(2M)"}
LADDERS = {
    "karras": "Karras, rho = 7",
    "uniform_logsnr": "uniform in logsnr",
    "linear_beta": "linear beta",
    "scaled_linear": "scaled linear (Stable Diffusion)",
    "cosine": "cosine",
    "rectified_flow": "rectified flow",
    "spectral": "spectral rule",
    "optimised": "optimised for DDIM",
}
METRIC_LABELS = {
    "rel_fd": "squared Fréchet distance\nover the data's variance, minus floor",
    "sliced_w2_squared": "squared sliced W2, minus floor",
}
LEVELS_LABEL = "number of noise levels T"
TOP = 1.6  # of relW2: what diverges would hide the rest


def draw(outcome: Outcome, config: Config, name: str) -> dict[str, Figure]:
    """All figures that the outcome has something for, by file name; ``name`` is the data's."""
    figures = {}
    if outcome.chains:
        figures["exact"] = draw_exact(outcome, config, name)
    if outcome.mixture:
        figures["mixture"] = draw_mixture(outcome, config)
    if outcome.learned:
        figures["learned"] = draw_learned(outcome, config)
    return figures


def _style(ladder: str) -> dict:
    return plotting.line_style(list(LADDERS).index(ladder), markevery=1)


def _set_levels_axis(axes, levels: Sequence[int], *, infinity: float | None = None) -> None:
    """Logarithmic in T with a tick per T, and one for infinitely many."""
    ticks, names = list(levels), [str(T) for T in levels]
    if infinity is not None:
        ticks, names = [*ticks, infinity], [*names, "∞"]
    axes.set_xscale("log")
    axes.set_xticks(ticks, names, fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.grid(alpha=0.25)


def _set_decades(axes) -> None:
    """A logarithmic y axis over whole decades around the lines, so that every panel has two labels at least."""
    values = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() != "_"] or [[1.0]])
    values = np.log10(values[np.isfinite(values) & (values > 0)])
    axes.set_yscale("log")
    if values.size:
        axes.set_ylim(10.0 ** np.floor(values.min()), 10.0 ** np.ceil(values.max()))


def draw_exact(outcome: Outcome, config: Config, name: str) -> Figure:
    """RelW2 against T, a panel per sampler, a line per ladder, floors at infinity."""
    caption = (
        f"{name}: distance between the data's Gaussian and samples of a chain with the exact score from N(0, I), in closed "
        f"form; 0.01 is 1 % of the data's standard deviation. Dotted end pieces lead to the floor, at ∞: what infinitely many "
        f"levels between the ladder's ends leave (a floor below the axis is not drawn). Grey: "
        f"{USUAL[2]} levels of {TITLES[USUAL[1]]} on the linear-beta ladder, {outcome.usual:.2g}. Heun evaluates the network "
        f"2T - 1 times, the others T times."
    )
    highest = max(c.rel_w2 for c in outcome.chains)
    if highest > TOP:
        caption += f" Up to {highest:.2g}, values above {TOP} are not drawn."
    figure, axes = plotting.new_figure(2, 2, width=10.5, height=8.8, caption=caption)
    infinity, levels = 2.5 * config.many, sorted(config.levels)
    lowest = min(c.rel_w2 for c in outcome.chains)
    bottom, top = 0.6 * max(lowest, 1e-5), min(TOP, 1.6 * highest)
    for panel, sampler in zip(axes.flat, SAMPLERS, strict=True):
        for ladder in dict.fromkeys(c.ladder for c in outcome.chains):
            own = [c for c in outcome.chains if (c.ladder, c.sampler) == (ladder, sampler)]
            if not own:
                continue
            style = _style(ladder)
            panel.plot([c.levels for c in own], [c.rel_w2 for c in own], label=LADDERS[ladder], **style)
            last = own[-1]
            if last.levels == config.many and last.floor > bottom:
                ends = ([last.levels, infinity], [last.rel_w2, last.floor])
                panel.plot(*ends, color=style["color"], linestyle=":", linewidth=1.0)
                panel.plot(infinity, last.floor, color=style["color"], marker=style["marker"], markersize=7)
        panel.axhline(outcome.usual, color="grey", linewidth=0.9, zorder=0)
        panel.axvline(config.few, color="grey", linewidth=0.6, zorder=0)
        _set_levels_axis(panel, levels, infinity=infinity)
        panel.set(yscale="log", ylim=(bottom, top), xlabel=LEVELS_LABEL, ylabel="W2 / data's standard deviation")
        panel.set_title(TITLES[sampler], fontsize=10)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, handlelength=4
    )
    return figure


def draw_mixture(outcome: Outcome, config: Config) -> Figure:
    """Distance to the exact flow above, excess sliced W2 below, a column per sampler."""
    caption = (
        f"8-D mixture of 8 Gaussians, exact score, {config.samples} samples from the same noise for all chains. Top: root mean "
        f"square distance per component between a chain's samples and those of the exact flow. Bottom: squared sliced W2 "
        f"from the mixture minus that of the exact flow's samples. Filled markers: more than 0, ± 2 standard errors of this "
        f"paired difference; open markers: cannot be told from 0; what is not positive has no marker. Grey line: the floor, "
        f"the squared sliced W2 of {config.samples} draws of the mixture. DDPM adds noise of its own, so its samples "
        f"have no counterpart in the flow. Markers of one T are shifted sideways."
    )
    figure, axes = plotting.new_figure(2, 4, width=14, height=8, caption=caption)
    ladders = list(dict.fromkeys(c.ladder for c in outcome.mixture))
    for column, sampler in zip(axes.T, SAMPLERS, strict=True):
        for i, ladder in enumerate(ladders):
            own = [c for c in outcome.mixture if (c.ladder, c.sampler) == (ladder, sampler)]
            x = np.array([c.levels for c in own]) * 1.04 ** (i - 0.5 * (len(ladders) - 1))
            if sampler not in STOCHASTIC:
                column[0].plot(x, [c.rms_to_flow for c in own], label=LADDERS[ladder], **_style(ladder))
            _draw_excess(column[1], x, own, _style(ladder))
        column[1].axhline(outcome.known["floor"], color="grey", linewidth=0.9, zorder=0)
        for panel in column:
            _set_levels_axis(panel, sorted({c.levels for c in outcome.mixture if c.sampler == sampler}))
            panel.set_yscale("log")
        column[1].set(ylim=(1e-5, 0.3), xlabel=LEVELS_LABEL)
        column[0].set(ylim=(5e-4, 1.0))
        column[0].set_title(TITLES[sampler], fontsize=10)
        if sampler in STOCHASTIC:
            column[0].set_axis_off()
            column[0].legend(*axes[0, 0].get_legend_handles_labels(), loc="center", fontsize=9, handlelength=4)
    axes[0, 0].set_ylabel("RMS distance to the exact flow (data has RMS 1)")
    axes[1, 0].set_ylabel("squared sliced W2 above the exact flow's")
    return figure


def _draw_excess(axes, x, own, style):
    """Excess over the flow: bars on what is certainly positive, open markers on what may be 0."""
    above, bars = (np.array([getattr(c, name) for c in own]) for name in ("sliced_above_flow", "paired_error"))
    axes.plot(x, np.where(above > 0, above, np.nan), **style | {"marker": ""})
    certain, alone = above > 2 * bars, style | {"linestyle": "none"}
    axes.errorbar(x[certain], above[certain], yerr=2 * bars[certain], capsize=2, elinewidth=0.7, **alone)
    maybe = ~certain & (above > 0)
    axes.plot(x[maybe], above[maybe], **alone | {"markerfacecolor": "white"})


def draw_learned(outcome: Outcome, config: Config) -> Figure:
    """A column per task, a row per metric: networks of many levels against T, and of the few."""
    few, many = config.few, config.many
    caption = (
        f"One network trained on {many} levels of the ladder {LADDERS[config.learned_ladder]}, sampled with T of them (lines), "
        f"and one trained on only the {few} levels it is sampled with (open markers, shifted sideways). Means and ranges of "
        f"{len(config.seeds)} seeds, {config.samples} samples each; chains of one seed share their network and their noise. "
        f"Floor: what samples of the law itself score or, for data, the training images against those held out. Values at or "
        f"below the floor have no marker."
    )
    tasks = list(dict.fromkeys(c.task for c in outcome.learned))
    figure, axes = plotting.new_figure(2, len(tasks), width=max(7.0, 1.5 + 4.2 * len(tasks)), height=8, caption=caption)
    for column, task in zip(axes.T, tasks, strict=True):
        for panel, metric in zip(column, METRICS, strict=True):
            for i, sampler in enumerate(LEARNED_SAMPLERS):
                for trained in (many, few):
                    own = [
                        (c.levels, c.values[metric].mean() - c.floors[metric])
                        for c in outcome.learned
                        if (c.task, c.sampler, c.trained_levels) == (task, sampler, trained)
                    ]
                    style = plotting.line_style(2 * i, markevery=1) | {
                        "label": f"{TITLES[sampler]}, trained on {trained}"
                    }
                    if trained == few:
                        style |= {"linestyle": "none", "markerfacecolor": "white", "markersize": 8, "zorder": 3}
                    levels, mean, bars = _over_seeds(own)
                    panel.errorbar(levels * (1.12 if trained == few else 1.0), mean, yerr=bars, capsize=3, **style)
            _set_levels_axis(panel, sorted(config.levels))
            _set_decades(panel)
        column[0].set_title(task, fontsize=10)
        column[1].set_xlabel(f"{LEVELS_LABEL} in sampling")
    for panel, metric in zip(axes[:, 0], METRICS, strict=True):
        panel.set_ylabel(METRIC_LABELS[metric])
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=8, handlelength=4
    )
    return figure


def _over_seeds(own):
    """T's, means (NaN if not positive) and distances to the extremes of (T, value) pairs, one pair per seed."""
    levels = np.array(sorted({T for T, _ in own}))
    values = np.array([[v for T, v in own if T == level] for level in levels])
    mean = values.mean(axis=1)
    bars = np.stack([mean - values.min(axis=1), values.max(axis=1) - mean])
    return levels, np.where(mean > 0, mean, np.nan), bars
