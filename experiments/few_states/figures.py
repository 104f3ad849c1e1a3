"""The figures: exact distances on the spectrum, the mixture with exact scores, learned scores."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.few_states.exact import SAMPLERS, USUAL
from experiments.few_states.learned import METRICS
from experiments.few_states.learned import SAMPLERS as LEARNED_SAMPLERS
from experiments.launch import Results
from ldmjax import plotting
from ldmjax.chains import STOCHASTIC

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


def _style(ladder: str) -> dict:
    return plotting.line_style(list(LADDERS).index(ladder), markevery=1)


def _set_levels_axis(axes, levels: Sequence[int], *, infinity: float | None = None) -> None:
    """Sets a logarithmic axis with a tick per T, and one for infinitely many."""
    ticks, names = list(levels), [str(T) for T in levels]
    if infinity is not None:
        ticks, names = [*ticks, infinity], [*names, "∞"]
    axes.set_xscale("log")
    axes.set_xticks(ticks, names, fontsize=8)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(ticks[0] / 1.25, ticks[-1] * 1.25)
    axes.grid(alpha=0.25)


def _set_decades(axes) -> None:
    """Sets a logarithmic y axis over whole decades around the lines, so that every panel has two labels at least."""
    values = np.concatenate([line.get_ydata() for line in axes.lines if line.get_marker() != "_"] or [[1.0]])
    values = np.log10(values[np.isfinite(values) & (values > 0)])
    axes.set_yscale("log")
    if values.size:
        axes.set_ylim(10.0 ** np.floor(values.min()), 10.0 ** np.ceil(values.max()))


def draw_exact(results: Results) -> Figure:
    """Draws relW2 against T, a panel per sampler, a line per ladder, floors at infinity."""
    config, frame = results.config, results.frame(kind="exact").astype({"rel_w2": float})
    usual, highest = results.of_kind("verdict")[0]["usual_rel_w2"], frame["rel_w2"].max()
    caption = (
        f"{results.data_name}: distance between the data's Gaussian and samples of a chain with the exact score from N(0, I), "
        f"in closed form; 0.01 is 1 % of the data's standard deviation. Dotted end pieces lead to the floor, at ∞: what "
        f"infinitely many levels between the ladder's ends leave (a floor below the axis is not drawn). Grey: "
        f"{USUAL[2]} levels of {TITLES[USUAL[1]]} on the linear-beta ladder, {usual:.2g}. Heun evaluates the network "
        f"2T - 1 times, the others T times."
    )
    if highest > TOP:
        caption += f" Up to {highest:.2g}, values above {TOP} are not drawn."
    figure, axes = plotting.new_figure(2, 2, width=10.5, height=8.8, caption=caption)
    infinity = 2.5 * config.many
    bottom, top = 0.6 * max(frame["rel_w2"].min(), 1e-5), min(TOP, 1.6 * highest)
    for panel, sampler in zip(axes.flat, SAMPLERS, strict=True):
        for ladder, own in frame[frame["sampler"] == sampler].groupby("ladder", sort=False):
            style, last = _style(ladder), own.iloc[-1]
            panel.plot(own["levels"], own["rel_w2"], label=LADDERS[ladder], **style)
            if last["levels"] == config.many and last["floor"] > bottom:
                ends = ([last["levels"], infinity], [last["rel_w2"], last["floor"]])
                panel.plot(*ends, color=style["color"], linestyle=":", linewidth=1.0)
                panel.plot(infinity, last["floor"], color=style["color"], marker=style["marker"], markersize=7)
        panel.axhline(usual, color="grey", linewidth=0.9, zorder=0)
        panel.axvline(config.few, color="grey", linewidth=0.6, zorder=0)
        _set_levels_axis(panel, sorted(config.levels), infinity=infinity)
        panel.set(yscale="log", ylim=(bottom, top), xlabel=LEVELS_LABEL, ylabel="W2 / data's standard deviation")
        panel.set_title(TITLES[sampler], fontsize=10)
    _set_legend(figure, axes)
    return figure


def _set_legend(figure, axes, *, columns: int = 4) -> None:
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", ncols=columns, fontsize=8, handlelength=4)


def draw_mixture(results: Results) -> Figure:
    """Draws the distance to the exact flow above, excess sliced W2 below, a column per sampler."""
    samples, frame = results.config.samples, results.frame(kind="mixture")
    caption = (
        f"8-D mixture of 8 Gaussians, exact score, {samples} samples from the same noise for all chains. Top: root mean "
        f"square distance per component between a chain's samples and those of the exact flow. Bottom: squared sliced W2 "
        f"from the mixture minus that of the exact flow's samples. Filled markers: more than 0, ± 2 standard errors of this "
        f"paired difference; open markers: cannot be told from 0; what is not positive has no marker. Grey line: the floor, "
        f"the squared sliced W2 of {samples} draws of the mixture. DDPM adds noise of its own, so its samples "
        f"have no counterpart in the flow. Markers of one T are shifted sideways."
    )
    figure, axes = plotting.new_figure(2, 4, width=14, height=8, caption=caption)
    ladders = list(frame["ladder"].unique())
    for column, sampler in zip(axes.T, SAMPLERS, strict=True):
        of_sampler = frame[frame["sampler"] == sampler]
        for ladder, own in of_sampler.groupby("ladder", sort=False):
            x = own["levels"].to_numpy() * 1.04 ** (ladders.index(ladder) - 0.5 * (len(ladders) - 1))
            if sampler not in STOCHASTIC:
                column[0].plot(x, own["rms_to_flow"], label=LADDERS[ladder], **_style(ladder))
            _draw_excess(column[1], x, own, _style(ladder))
        floor = results.of_kind("mixture_floor")[0]["sliced_w2_squared_floor"]
        column[1].axhline(floor, color="grey", linewidth=0.9, zorder=0)
        for panel in column:
            _set_levels_axis(panel, sorted(of_sampler["levels"].unique()))
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
    """Draws the excess over the flow: bars on what is certainly positive, open markers on what may be 0."""
    above, bars = (own[name].to_numpy() for name in ("sliced_above_flow", "paired_error"))
    axes.plot(x, np.where(above > 0, above, np.nan), **style | {"marker": ""})
    certain, alone = above > 2 * bars, style | {"linestyle": "none"}
    axes.errorbar(x[certain], above[certain], yerr=2 * bars[certain], capsize=2, elinewidth=0.7, **alone)
    maybe = ~certain & (above > 0)
    axes.plot(x[maybe], above[maybe], **alone | {"markerfacecolor": "white"})


def draw_learned(results: Results) -> Figure:
    """Draws a column per task, a row per metric: networks of many levels against T, and of the few."""
    config, frame = results.config, results.frame(kind="learned")
    few, many, tasks = config.few, config.many, list(frame["task"].unique())
    caption = (
        f"One network trained on {many} levels of the ladder {LADDERS[config.learned_ladder]}, sampled with T of them (lines), "
        f"and one trained on only the {few} levels it is sampled with (open markers, shifted sideways). Means and ranges of "
        f"{len(config.seeds)} seeds, {config.samples} samples each; chains of one seed share their network and their noise. "
        f"Floor: what samples of the law itself score or, for data, the training images against those held out. Values at or "
        f"below the floor have no marker."
    )
    figure, axes = plotting.new_figure(2, len(tasks), width=max(7.0, 1.5 + 4.2 * len(tasks)), height=8, caption=caption)
    for column, task in zip(axes.T, tasks, strict=True):
        for panel, metric in zip(column, METRICS, strict=True):
            of_task = frame[frame["task"] == task]
            for i, sampler in enumerate(LEARNED_SAMPLERS):
                for trained in (many, few):
                    own = of_task[(of_task["sampler"] == sampler) & (of_task["trained_levels"] == trained)]
                    style = plotting.line_style(2 * i, markevery=1)
                    style |= {"label": f"{TITLES[sampler]}, trained on {trained}"}
                    if trained == few:
                        style |= {"linestyle": "none", "markerfacecolor": "white", "markersize": 8, "zorder": 3}
                    levels, mean, bars = _over_seeds(own, metric)
                    panel.errorbar(levels * (1.12 if trained == few else 1.0), mean, yerr=bars, capsize=3, **style)
            _set_levels_axis(panel, sorted(config.levels))
            _set_decades(panel)
        column[0].set_title(task, fontsize=10)
        column[1].set_xlabel(f"{LEVELS_LABEL} in sampling")
    for panel, metric in zip(axes[:, 0], METRICS, strict=True):
        panel.set_ylabel(METRIC_LABELS[metric])
    _set_legend(figure, axes, columns=4 if len(tasks) > 1 else 2)
    return figure


def _over_seeds(frame, metric):
    """Returns T's, means above the floor (NaN if not positive) and distances to the extremes over seeds."""
    above = (frame[metric].astype(float) - frame[f"{metric}_floor"]).groupby(frame["levels"])
    mean, low, high = (found.to_numpy() for found in (above.mean(), above.min(), above.max()))
    return np.array(list(above.groups)), np.where(mean > 0, mean, np.nan), np.stack([mean - low, high - mean])
