"""The tables, the stopping curves and the grid of samples along the chain."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.latent_vs_pixel import FAMILIES
from experiments.launch import Report, Results
from ldmjax import plotting, stopping
from ldmjax.latent_diffusion import SamplingConfig
from ldmjax.tables import table

EARLY, NONE, UNKNOWN = stopping.VERDICTS
NEAR_END = 0.7  # progress from which the lower panels show the curves, or a little before the first best stop
GRID_COLUMNS = 9
PERCENT_TICKS = (50, 60, 70, 80, 90, 100)
SAMPLES = "samples "  # before a model's label, in the names of arrays


def report(results: Results) -> Report:
    """The best stops of all models and the answer; stopping curves for every network family and readout, and samples."""
    curves = summary(results)
    parts = [
        f"Readout {readout!r}, {_seeds(results)}:\n" + _stops_table(own)
        for readout, own in curves.groupby("readout", sort=False)
    ]
    parts += [
        "Per model and seed: operations of one evaluation and their difference to the pixel model's, distance to the nearest "
        "training image over that of held-out images (small: copies), squared error of the autoencoder per pixel:\n"
        + _models_table(results),
        "Do the last steps make the latent model worse and not the pixel model?\n" + table(answers(curves), left=7),
    ]
    figures = {
        f"curves_{family}_{readout}": _draw_curves(results, own, family, readout)
        for family in FAMILIES
        for (network, readout), own in curves.groupby(["network", "readout"], sort=False)
        if network == family
    }
    return Report(text="\n\n".join(parts), figures=figures | {"chains": _draw_grid(results)})


def summary(results: Results) -> pd.DataFrame:
    """The rows of the mean over seeds; of a single seed, its own. Their index is that of the arrays."""
    frame = results.frame()
    means = frame[frame["seed"].isna()]
    return means if len(means) else frame


def _seeds(results: Results) -> str:
    seeds = ", ".join(map(str, dict.fromkeys(row["seed"] for row in results.rows if row["seed"] is not None)))
    return f"mean over seeds {seeds}" if "," in seeds else f"seed {seeds}"


def _stops_table(curves: pd.DataFrame) -> str:
    rows = []
    for _, row in curves.sort_values(["features", "metric"], kind="stable").iterrows():
        best, low, high = (row[f"progress_best{ending}"] for ending in ("", "_low", "_high"))
        stops = ["?" if pd.isna(p) else f"{100 * p:.0f}" for p in (best, low, high)]
        gains = [100 * row[name] / row["end"] for name in ("gain", "gain_low", "gain_high")]
        shown = {
            "features": row["features"],
            "metric": row["metric"],
            "model": row["model"],
            "at the end": row["end"],
            "best stop [90 %]": "{} % [{}, {}]".format(*stops),
            "gain [90 %]": "{:.1f} % [{:.1f}, {:.1f}]".format(*gains),
            "floor": row["noise_floor"],
            "rebuilt": row["reconstruction"],
            "verdict": row["verdict"],
        }
        rows.append(shown)
    numbers = dict.fromkeys(("at the end", "floor", "rebuilt"), ".3g")
    return table(rows, dict.fromkeys(rows[0], "") | numbers, left=3)


def _models_table(results: Results) -> str:
    frame = results.frame()
    rows = [
        {
            "model": row["model"],
            "seed": int(row["seed"]),
            "FLOPs": row["flops"],
            "difference": f"{100 * row['flops_difference']:+.2f} %",
            "nearest": row["memorisation"],
            "autoencoder": row["reconstruction_error"],
            "diverged": "no" if pd.isna(row["diverged_at_step"]) else f"at step {row['diverged_at_step']:.0f}",
        }
        for _, row in frame[frame["seed"].notna()].drop_duplicates(["model", "seed"]).iterrows()
    ]
    return table(rows, dict.fromkeys(rows[0], "") | {"FLOPs": ",d", "nearest": ".2f", "autoencoder": ".4f"})


def answers(curves: pd.DataFrame) -> list[dict]:
    """The question, answered for every latent model, readout, feature space and metric, out of `summary`."""
    where = ["network", "readout", "features", "metric"]
    pixel = curves[curves["autoencoder"] == "identity"].set_index(where)["verdict"].to_dict()
    return [
        {
            "model": row["model"],
            "readout": row["readout"],
            "features": row["features"],
            "metric": row["metric"],
            "latent model": row["verdict"],
            "pixel model": pixel[tuple(row[where])],
            "answer": _answer(row["verdict"], pixel[tuple(row[where])]),
        }
        for _, row in curves[curves["autoencoder"] != "identity"].iterrows()
    ]


def _answer(latent: str, pixel: str) -> str:
    if latent == NONE or pixel == EARLY:
        return "no"
    return UNKNOWN if UNKNOWN in (latent, pixel) else "yes"


def _draw_curves(results: Results, curves: pd.DataFrame, family: str, readout: str) -> Figure:
    """One column per feature space and metric: distance along the whole chain, and near its end relative to the end."""
    sampling, progress = results.config.sampling, results.arrays["progress"]
    caption = (
        f"{results.data_name}, {FAMILIES[family]}s with equal operations, {sampling.process}, {sampling.steps} steps, readout "
        f"{readout!r}, {sampling.samples} samples, {_seeds(results)}. Top: distance to held-out images; dotted: that of the "
        "training images, the noise floor. Bottom: the same near the end, relative to the end of sampling, with a band of two "
        "standard errors of the difference to the end; below 100 % it is better to stop. Marker and bar: best stop and its "
        "90 % interval, in the order of the legend. Numbers at the top edge: logsnr."
    )
    columns = list(curves.groupby(["features", "metric"], sort=False))
    figure, axes = plotting.new_figure(2, len(columns), width=1.5 + 3.4 * len(columns), height=7.4, caption=caption)
    for (top, bottom), ((features, metric), own) in zip(axes.T, columns, strict=True):
        left = max(0.5, min(NEAR_END, own["progress_best_low"].min() - 0.03))
        for i, (_, row) in enumerate(own.iterrows()):
            _draw_model(top, bottom, row, results.arrays, place=(i, len(own)))
        if own["noise_floor"].mean() > 0:
            top.axhline(own["noise_floor"].mean(), color="black", linestyle=(0, (1, 2)), linewidth=1.2)
        top.set_yscale("log")
        top.set_title(f"{plotting.METRIC_NAMES[metric]}, {features}", fontsize=9.5)
        bottom.set(xlim=(100 * left, 101), xlabel="progress of sampling (%)")
        finite = own.index[own["progress_best"].notna()]
        if len(finite):
            _set_relative_limits(bottom, results.arrays["curve"][finite], progress, left, lines=len(own))
        _add_logsnr(bottom, sampling)
        for panel in (top, bottom):
            panel.grid(alpha=0.25)
    axes[0, 0].set_ylabel("distance to held-out images")
    axes[1, 0].set_ylabel("relative to the end (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=9, handlelength=3.2)
    return figure


def _draw_model(
    top: Axes, bottom: Axes, row: pd.Series, arrays: Mapping[str, np.ndarray], *, place: tuple[int, int]
) -> None:
    """One model's curve in both panels, and its best stop on a line of its own, ``place`` of all, at the bottom."""
    index, count = place
    x, curve = 100 * arrays["progress"], arrays["curve"][row.name]
    style = plotting.line_style(index)
    marker = {"marker": plotting.MARKERS[index % 8], "color": style["color"], "markersize": 5}
    best, low, high = (100 * row[f"progress_best{ending}"] for ending in ("", "_low", "_high"))
    defined = not pd.isna(best)
    marked = [int(np.searchsorted(x, best))] if defined else []
    top.plot(x, np.where(curve > 0, curve, np.nan), label=row["model"], markevery=marked, **style | marker)
    if not defined:
        return
    relative, error = 100 * curve / curve[-1], 200 * arrays["difference_error"][row.name] / abs(curve[-1])
    bottom.plot(x, relative, **style)
    bottom.fill_between(x, relative - error, relative + error, color=style["color"], alpha=0.15, linewidth=0)
    height, transform = 0.04 + 0.05 * (count - 1 - index), bottom.get_xaxis_transform()
    bottom.plot([low, high], [height] * 2, color=style["color"], linewidth=1.5, transform=transform)
    bottom.plot([best], [height], transform=transform, **marker)


def _set_relative_limits(axes: Axes, curves: np.ndarray, progress: np.ndarray, left: float, *, lines: int) -> None:
    """Vertical limits that show what happens around 100 %, with room below for the ``lines`` of best stops."""
    relative = 100 * curves / curves[:, -1:]
    low = max(0.0, relative[:, progress >= left].min())
    span = max(100.0 - low, 5.0)
    # Curves that rise steeply towards noise leave at the top.
    high = np.clip(relative[:, progress >= 0.9].max(), 100.0 + 0.2 * span, 100.0 + 1.5 * span)
    axes.set_ylim(low - 0.05 * span * (lines + 2) - 0.1 * (high - low), high)
    axes.axhline(100.0, color="grey", linewidth=0.8)


def _add_logsnr(axes: Axes, sampling: SamplingConfig) -> None:
    """Logsnr at a few places, on top."""
    steps = [round(sampling.steps * p / 100) for p in PERCENT_TICKS]
    values = sampling.schedule.logsnr(sampling.times[steps])
    top = axes.secondary_xaxis("top")
    top.set_xticks(PERCENT_TICKS, ["∞" if np.isinf(v) else f"{v:.1f}" for v in values], fontsize=7.5)
    top.tick_params(length=2)


def _draw_grid(results: Results) -> Figure:
    """Rows are models, columns stops; all from the same starting noise."""
    progress, pixel_range = results.arrays["progress"], results.arrays["pixel_range"]
    grids = {name.removeprefix(SAMPLES): a for name, a in results.arrays.items() if name.startswith(SAMPLES)}
    wanted = np.concatenate([np.linspace(0.0, 0.6, 4), np.linspace(0.7, 1.0, GRID_COLUMNS - 4)])
    columns = np.unique([int(np.argmin(np.abs(progress - p))) for p in wanted])
    caption = (
        f"{results.data_name}: states along the chain, decoded ({results.config.process}, states divided by their scale, "
        "first seed). Two samples of each model; all models start from the same noise, of which a latent of d entries sees the "
        "first d."
    )
    lines = [(label, k) for label, grid in grids.items() for k in range(grid.shape[1])]
    figure, axes = plotting.new_figure(
        len(lines), len(columns), width=1.6 + 0.8 * len(columns), height=1.2 + 0.82 * len(lines), caption=caption
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01)
    for panels, (label, k) in zip(axes, lines, strict=True):
        for panel, stop in zip(panels, columns, strict=True):
            _draw_image(panel, grids[label][stop, k], *pixel_range)
        if k == 0:
            panels[0].set_ylabel(label.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=8.5)
    for panel, stop in zip(axes[0], columns, strict=True):
        panel.set_title(f"{100 * progress[stop]:.0f} %", fontsize=9)
    return figure


def _draw_image(axes: Axes, image: np.ndarray, low: float, high: float) -> None:
    """Pictures in grey or colour; anything else as a strip."""
    if image.ndim == 1:
        image = image[None]
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    scaled = scaled if scaled.ndim == 2 or scaled.shape[-1] == 3 else scaled[..., 0]
    axes.imshow(scaled, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[])
