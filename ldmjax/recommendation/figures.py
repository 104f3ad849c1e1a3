"""The figure: distance against stopping time."""

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from ldmjax import plotting
from ldmjax.recommendation.choice import Record
from ldmjax.recommendation.config import RecommendationConfig

NAMES = {"w2": "squared Fréchet distance", "mmd": "squared MMD", "sliced_w2": "squared sliced W2"}
TITLES = {"images": "The noisy autoencoder", "latents": "Noisy latents"}
DRAWN = {"images": "decoded noisy latents", "latents": "noisy latents"}


def draw(records: Sequence[Record], curves: Mapping[str, np.ndarray], config: RecommendationConfig) -> Figure:
    """Draws a row per feature space and kind of latents, a column per metric, a line per latents."""
    compared = records[0]["compared"]
    kinds = [(r["features"], r["name"].split()[0]) for r in records]
    rows, measured = list(dict.fromkeys(kinds)), list(dict.fromkeys(r["metric"] for r in records))
    figure, axes = plotting.new_figure(
        len(rows),
        len(measured),
        width=4.4 * len(measured) + 0.8,
        height=0.9 + 3.4 * len(rows),
        title=f"{TITLES[compared]}: where would a diffusion model on these latents best stop?",
        caption=f"Distance to held-out {compared} of {DRAWN[compared]}, as of a model that has learned "
        "their law; networks and samplers with few steps lose variance, and may want an earlier stop. Marker: smallest "
        "value, with ± 2 standard errors and the 90 % interval of the stopping time. Grey line: the training "
        f"{compared} themselves. Rightmost point: end of sampling, no noise. Bias-corrected estimates may fall below 0; such "
        "points are not shown.",
    )
    for i, row in enumerate(rows):
        for j, metric in enumerate(measured):
            own = [r for r, kind in zip(records, kinds, strict=True) if (kind, r["metric"]) == (row, metric)]
            _draw_panel(axes[i, j], own, curves, config)
            axes[i, j].set_title(f"{NAMES[metric]} of {row[0]}", fontsize=10)
            axes[i, j].set_ylabel("distance", fontsize=9)
        axes[i, -1].legend(fontsize=7.5, handlelength=3.4, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _draw_panel(axes: Axes, rows: Sequence[Record], curves: Mapping, config: RecommendationConfig) -> None:
    first, finite = config.logsnrs[:-1], curves["logsnr"][:-1]
    # The end has one place for all candidates, whichever levels were added to each.
    end = finite[-1] + 1.5 * (np.ptp(first) / (len(first) - 1) if len(first) > 1 else 1.0)
    smallest = min(_draw_curve(axes, k, r, curves, end) for k, r in enumerate(rows))
    floor = rows[0]["floor"]
    if floor is not None and floor > 0:
        axes.axhline(floor, color="#999999", linewidth=2.5, zorder=0, label=f"training {rows[0]['compared']}")
        smallest = min(smallest, floor)
    axes.set_yscale("log")
    if np.isfinite(smallest):
        axes.set_ylim(bottom=0.7 * smallest)
    axes.set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    ticks = np.arange(np.ceil(min(config.logsnr_min, finite[0]) / 2) * 2, finite[-1] + 0.1, 2)
    ticks = ticks[end - ticks > 0.08 * (end - finite[0])]  # their numbers stay clear of "end"
    axes.set_xticks([*ticks, end], [*(f"{t:g}" for t in ticks), "end"])
    top = axes.secondary_xaxis("top")
    shares = 100.0 * config.pipeline.share(ticks[::2])
    top.set_xticks(ticks[::2], [f"{s:.3g} %" for s in shares], fontsize=7.5)
    top.set_xlabel(f"share of sampling steps ({config.sampler})", fontsize=7.5)
    axes.grid(alpha=0.25)


def _draw_curve(axes: Axes, k: int, record: Record, curves: Mapping, end: float) -> float:
    """Draws a curve with its best stop, and returns the smallest value that is shown."""
    key = f"{record['name']}/{record['features']}/{record['metric']}"
    curve, error = curves[key], curves[f"{key}/standard_error"]
    x = np.append(curves[f"{record['name']}/logsnr"][:-1], end)
    shown = np.where(curve > 0, curve, np.nan)
    style = plotting.line_style(k)
    axes.plot(x, shown, label=record["name"], **style)
    best, low, high = (end if record[name] is None else record[name] for name in ("logsnr", "low", "high"))
    value = record["best"]
    if value is not None and value > 0:
        spread = 2 * error[list(x).index(best)]
        axes.errorbar(
            [best],
            [value],
            xerr=[[best - low], [high - best]],
            yerr=[[min(spread, 0.9 * value)], [spread]],
            fmt=plotting.MARKERS[k % 8],
            color=style["color"],
            markersize=5.5,
            linewidth=1,
            capsize=2,
        )
    return np.nanmin(shown, initial=np.inf)
