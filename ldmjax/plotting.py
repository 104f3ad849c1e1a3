"""Figures from arrays: each function takes what the oracle or an experiment returned and gives a matplotlib `Figure`.

Distances are squared W2 in data units squared, ``[D, K]`` as everywhere: a row per latent dimension, a column per noise
level. Time runs to the right, from noise to data, as logsnr; the end of sampling (noise_var = 0, logsnr = inf) is a
strip or a marker of its own at the right edge. No pyplot, no global state; lines differ in style and marker, not only
in colour.

    figure = plotting.phase_diagram(oracle.w2_squared_curve(variances, estimated, noise_var), noise_var)
    plotting.save(figure, "phase.png")
"""

import dataclasses
import os
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import ArrayLike
from matplotlib import colors, patheffects
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.collections import QuadMesh
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from ldmjax.files import written_whole
from ldmjax.schedules import ContinuousSchedule, logsnr_from_noise_var

Numbers = ArrayLike | Sequence
LOGSNR_LABEL = "logsnr at which sampling stops (noise → data)"
W2_LABEL = "squared W2 distance (data units squared)"
METRIC_NAMES = {"w2": "squared Fréchet distance", "mmd": "squared MMD", "sliced_w2": "squared sliced W2"}  # of features
LINES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (8, 2)), (0, (1, 1)), (0, (3, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
COLOURS = ("#000000", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#7f6f00", "#56b4e9", "#888888")
END_STRIP = 0.06
MAX_ROWS, MAX_COLUMNS = 256, 512
_FILE_METADATA = {".png": {"Software": None}, ".pdf": {"Creator": None, "Producer": None, "CreationDate": None}}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Points:
    """Measured values drawn over exact curves, for instance those of a learned score.

    Attributes:
      latent_dim: d, the curve that the points belong to.
      x: ``[S]``, where sampling stops, in the units of the figure's axis.
      w2_squared: ``[S]``.
      standard_error: ``[S]``, drawn as a bar of two in each direction.
      label: what the points are, once per figure in the legend.
    """

    latent_dim: int
    x: np.ndarray
    w2_squared: np.ndarray
    standard_error: np.ndarray
    label: str = "learned score"


def save(figure: Figure, path: str | os.PathLike, *, dpi: int = 130) -> None:
    """Writes ``figure`` whole or not at all, and the same bytes for the same figure.

    Args:
      figure: any figure.
      path: ends in .png or .pdf; its directory exists.
      dpi: dots per inch.

    Raises:
      ValueError: for another file type.
    """
    path = Path(path)
    if path.suffix not in _FILE_METADATA:
        raise ValueError(f"path must end in {' or '.join(_FILE_METADATA)}, got {str(path)!r}")
    engine = figure.get_layout_engine()
    try:
        # Laid out once here: savefig would lay out a figure with an engine in a drawing of its own, for nothing.
        if engine is not None:
            engine.execute(figure)
            figure.set_layout_engine("none")
        with written_whole(path) as partial:
            figure.savefig(partial, format=path.suffix[1:], dpi=dpi, metadata=_FILE_METADATA[path.suffix])
    finally:
        figure.set_layout_engine(engine)


def line_style(index: int, *, markevery: float | Sequence[int] | slice | None = None) -> dict:
    """Returns colour, line style and marker number ``index`` as keyword arguments of ``Axes.plot``."""
    style = {"color": COLOURS[index % 8], "linestyle": LINES[index % 8], "linewidth": 1.5}
    if markevery is not None:
        style |= {"marker": MARKERS[index % 8], "markersize": 4.5, "markevery": markevery}
    return style


def new_figure(
    rows: int, columns: int, *, width: float, height: float, caption: str, title: str = ""
) -> tuple[Figure, np.ndarray]:
    """Returns a figure with a grid of axes ``[rows, columns]``, a title, and under it a caption wrapped to its width."""
    figure = Figure(figsize=(width, height), layout="constrained")
    figure.get_layout_engine().set(w_pad=0.08, h_pad=0.06)
    if title:
        figure.suptitle(title, fontsize=11, fontweight="bold")
    if caption:
        # A supxlabel, unlike free text, is given room by the layout.
        figure.supxlabel(textwrap.fill(caption, int(width * 15.5)), fontsize=8.5, x=0.02, ha="left", linespacing=1.35)
    return figure, figure.subplots(rows, columns, squeeze=False)


def stop_positions(noise_var: Numbers, *, logsnr_end: float) -> np.ndarray:
    """Returns where to draw each stop: its logsnr, and ``logsnr_end`` for the end of sampling and all that is beyond it."""
    return np.minimum(logsnr_from_noise_var(np.asarray(noise_var, np.float64)), logsnr_end)


def _check_curves(w2_squared, noise_var, latent_dims):
    w2_squared = np.asarray(w2_squared, np.float64)
    noise_var = np.atleast_1d(np.asarray(noise_var, np.float64))
    if w2_squared.ndim != 2 or w2_squared.shape[1] != noise_var.size or w2_squared.shape[0] == 0:
        raise ValueError(f"w2_squared must have shape [D, K = {noise_var.size}], got {list(w2_squared.shape)}")
    latent_dims = np.arange(1, len(w2_squared) + 1) if latent_dims is None else np.asarray(latent_dims, int)
    if latent_dims.shape != w2_squared.shape[:1]:
        raise ValueError(f"latent_dims must have one entry per row, {len(w2_squared)}, got {list(latent_dims.shape)}")
    order = np.argsort(-noise_var, kind="stable")
    return w2_squared[:, order], noise_var[order], latent_dims


def percent_above(w2_squared: Numbers, best: Numbers) -> np.ndarray:
    """Returns 100 (w2_squared / best - 1); 0 where both are 0, inf where only ``best`` is."""
    w2_squared, best = np.broadcast_arrays(np.asarray(w2_squared, np.float64), np.asarray(best, np.float64))
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(w2_squared == best, 0.0, 100.0 * (w2_squared - best) / best)


def draw_heat_map(
    axes: Axes,
    percent: Numbers,
    noise_var: Numbers,
    *,
    latent_dims: Numbers | None = None,
    low: float = 0.1,
    high: float = 1000.0,
) -> QuadMesh:
    """Draws values in percent over (stopping time, latent dimension), on a logarithmic scale of grey value and colour.

    Args:
      axes: where to draw.
      percent: ``[D, K]``.
      noise_var: ``[K]``; the column with 0, the end of sampling, becomes a strip at the right.
      latent_dims: ``[D]``, increasing; 1..D if None.
      low: percent at which the scale starts.
      high: percent at which it ends.

    Returns:
      The mesh, for a colour bar.
    """
    percent, noise_var, latent_dims = _check_curves(percent, noise_var, latent_dims)
    percent = np.clip(np.nan_to_num(percent, nan=0.0, posinf=high), low, high)
    rows = np.unique(np.round(np.geomspace(1, len(latent_dims), MAX_ROWS)).astype(int)) - 1
    moving = np.flatnonzero(noise_var > 0)
    columns = moving[np.unique(np.linspace(0, moving.size - 1, MAX_COLUMNS).astype(int))]
    logsnr = logsnr_from_noise_var(noise_var[columns])
    x_edges, y_edges = _edges(logsnr), np.exp(_edges(np.log(latent_dims[rows])))
    style = {"norm": colors.LogNorm(low, high), "cmap": "cividis_r", "rasterized": True}
    mesh = axes.pcolormesh(x_edges, y_edges, percent[np.ix_(rows, columns)], **style)
    right = x_edges[-1]
    if noise_var[-1] == 0:
        right += END_STRIP * (x_edges[-1] - x_edges[0])
        axes.pcolormesh([x_edges[-1], right], y_edges, percent[rows, -1:], **style)
        axes.axvline(x_edges[-1], color="white", linewidth=1.2)
        middle = 0.5 * (x_edges[-1] + right)
        ticks = [t for t in np.arange(-100, 101, 2) if x_edges[0] <= t < x_edges[-1] - 0.03 * (right - x_edges[0])]
        axes.set_xticks([*ticks, middle], [*(f"{t:g}".replace("-", "−") for t in ticks), "end"])
    axes.set(xlim=(x_edges[0], right), ylim=(y_edges[0], y_edges[-1]))
    set_dimension_scale(axes.yaxis, int(latent_dims[-1]))
    return mesh


def set_dimension_scale(axis: Axis, largest: int) -> None:
    """Returns a logarithmic scale with ticks at 1, 2, 4, ..., or powers of four above 512."""
    getattr(axis.axes, f"set_{axis.axis_name}scale")("log")
    powers = np.arange(0, np.log2(largest) + 1e-9, 2 if largest > 512 else 1)
    axis.set_major_locator(FixedLocator(2.0**powers))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _edges(centres: np.ndarray) -> np.ndarray:
    """Edges half way between sorted centres."""
    if centres.size == 1:
        return centres[0] + np.array([-0.5, 0.5])
    middle = 0.5 * (centres[1:] + centres[:-1])
    return np.concatenate([[2 * centres[0] - middle[0]], middle, [2 * centres[-1] - middle[-1]]])


def _strip_centre(axes: Axes) -> float:
    """Returns middle of the strip at the right of a heat map."""
    left, right = axes.get_xlim()
    return right - 0.5 * END_STRIP / (1 + END_STRIP) * (right - left)


def draw_ridge(axes: Axes, noise_var: Numbers, latent_dims: Numbers, *, label: str, style: str = "-", marker: str = ""):
    """Draws a line over a heat map in white with a dark rim, so that it stands out from any background.

    A stop at or beyond the right edge (also noise_var = 0) is put in the middle of the strip "end".
    """
    logsnr = logsnr_from_noise_var(np.asarray(noise_var, np.float64))
    right, centre = axes.get_xlim()[1], _strip_centre(axes)
    edge = right - 2 * (right - centre)
    rim = [patheffects.Stroke(linewidth=3.6, foreground="black"), patheffects.Normal()]
    x = np.where(logsnr > edge, centre, np.maximum(logsnr, axes.get_xlim()[0]))
    axes.plot(
        x,
        latent_dims,
        linestyle=style,
        marker=marker,
        markersize=4,
        color="white",
        markeredgecolor="black",
        linewidth=1.6,
        label=label,
        path_effects=rim if style not in ("", "none") else None,
    )


def add_noise_axis(axes: Axes, schedule: ContinuousSchedule | None = None) -> None:
    """Puts the VP noise variance (and with a schedule its time t) on top of an axis that shows logsnr."""
    levels = np.array([0.9, 0.5, 0.1, 1e-2, 1e-3, 1e-4, 1e-5])
    logsnr = logsnr_from_noise_var(levels)
    left, right = axes.get_xlim()
    span = right - left
    shown = (logsnr > left + 0.02 * span) & (logsnr < right - 0.04 * span)
    top = axes.secondary_xaxis("top")
    names = [f"{v:g}" for v in levels[shown]]
    if schedule is not None:
        names = [f"{v}\n{schedule.inverse_logsnr(float(x)):.2g}" for v, x in zip(names, logsnr[shown], strict=True)]
    top.set_xticks(logsnr[shown], names, fontsize=7.5)
    label = "noise variance left" + ("" if schedule is None else f"\nwith time t of {type(schedule).__name__} under it")
    top.set_xlabel(label, fontsize=7.5)


def draw_legend(axes: Axes, *, below: bool = False, **options) -> None:
    """Returns a small legend, inside or under the axes."""
    if below:
        options = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "borderaxespad": 0.0, **options}
    axes.legend(fontsize=8, handlelength=3.2, framealpha=0.9, **options)


def phase_diagram(
    w2_squared: Numbers,
    noise_var: Numbers,
    *,
    latent_dims: Numbers | None = None,
    schedule: ContinuousSchedule | None = None,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draws two heat maps of one family of stopping curves, with the best choice as a line on each.

    Left: percent above the best latent dimension for that stopping time. Right: percent above the best stopping time
    for that latent dimension.

    Args:
      w2_squared: ``[D, K]`` squared distances.
      noise_var: ``[K]`` VP noise variances left; include 0 to show the end of sampling.
      latent_dims: ``[D]``, one per row; 1..D if None.
      schedule: if given, its time is shown too.
      title: over the figure.
      caption: a sentence under it.

    Returns:
      The figure, for `save` or a notebook.
    """
    figure, axes = new_figure(1, 2, width=11, height=4.6, title=title, caption=caption)
    mesh = draw_phase_panels(axes[0], w2_squared, noise_var, latent_dims=latent_dims)
    for panel in axes[0]:
        add_noise_axis(panel, schedule)
        panel.set_xlabel(LOGSNR_LABEL)
    axes[0, 0].set_ylabel("latent dimension")
    axes[0, 0].set_title("compared with the best dimension for that stop", fontsize=10)
    axes[0, 1].set_title("compared with the best stop for that dimension", fontsize=10)
    figure.colorbar(mesh, ax=axes, label="percent above the best", format="%g", extend="both")
    return figure


def draw_phase_panels(
    panels: Iterable[Axes], w2_squared: Numbers, noise_var: Numbers, *, latent_dims: Numbers | None = None
) -> QuadMesh:
    """Returns the two heat maps of `phase_diagram` on two given axes; returns the mesh."""
    curves, noise_var, latent_dims = _check_curves(w2_squared, noise_var, latent_dims)
    panels = list(panels)
    draw_heat_map(panels[0], percent_above(curves, curves.min(axis=0)), noise_var, latent_dims=latent_dims)
    draw_ridge(panels[0], noise_var, latent_dims[np.argmin(curves, axis=0)], label="best latent dimension")
    above = percent_above(curves, curves.min(axis=1, keepdims=True))
    mesh = draw_heat_map(panels[1], above, noise_var, latent_dims=latent_dims)
    # Of equally good stops the one nearest to the end.
    best = curves.shape[1] - 1 - np.argmin(curves[:, ::-1], axis=1)
    draw_ridge(panels[1], noise_var[best], latent_dims, label="best stop", style="", marker="o")
    return mesh


def stopping_curves(
    w2_squared: Numbers,
    noise_var: Numbers,
    *,
    latent_dims: Numbers | None = None,
    x: Numbers | None = None,
    xlabel: str = LOGSNR_LABEL,
    points: Sequence[Points] = (),
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draws squared W2 against stopping time, one line per latent dimension, each minimum marked.

    Args:
      w2_squared: ``[D, K]``.
      noise_var: ``[K]``; 0 is the end of sampling.
      latent_dims: ``[D]``, one per row; 1..D if None. More than eight rows share styles: pass a selection.
      x: ``[K]`` positions on another axis (a time, say); logsnr if None.
      xlabel: of that axis.
      points: measured values to draw over the lines.
      title: over the figure.
      caption: a sentence under it.

    Returns:
      The figure.
    """
    figure, axes = new_figure(1, 1, width=7, height=4.6, title=title, caption=caption)
    draw_stopping_curves(axes[0, 0], w2_squared, noise_var, latent_dims=latent_dims, x=x, points=points)
    axes[0, 0].set(xlabel=xlabel, ylabel=W2_LABEL)
    low, high = np.min(w2_squared), np.max(w2_squared)
    if low > 0 and high > 30 * low:
        axes[0, 0].set_yscale("log")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside right upper", fontsize=8, handlelength=3.2)
    return figure


def draw_stopping_curves(
    axes: Axes,
    w2_squared: Numbers,
    noise_var: Numbers,
    *,
    latent_dims: Numbers | None = None,
    x: Numbers | None = None,
    points: Sequence[Points] = (),
) -> None:
    """Returns the lines, minima (filled markers) and measured points of `stopping_curves` on given axes."""
    given = np.atleast_1d(np.asarray(noise_var, np.float64))
    curves, noise_var, latent_dims = _check_curves(w2_squared, given, latent_dims)
    if x is None:
        logsnr = logsnr_from_noise_var(noise_var)
        finite = logsnr[np.isfinite(logsnr)]
        x = np.minimum(logsnr, finite.max(initial=0.0) + 0.03 * np.ptp(finite) if finite.size else 0.0)
    else:
        x = np.asarray(x, np.float64)[np.argsort(-given, kind="stable")]
    rows = {int(d): i for i, d in enumerate(latent_dims)}
    for d, i in rows.items():
        best = curves.shape[1] - 1 - int(np.argmin(curves[i, ::-1]))
        axes.plot(x, curves[i], label=f"d = {d}", **line_style(i, markevery=[best]))
    for k, p in enumerate(points):
        if p.latent_dim not in rows:
            raise ValueError(f"points for latent_dim {p.latent_dim}, but the curves are for {sorted(rows)}")
        i = rows[p.latent_dim]
        axes.errorbar(
            p.x,
            p.w2_squared,
            yerr=2 * np.asarray(p.standard_error),
            fmt=MARKERS[i % 8],
            color=COLOURS[i % 8],
            markerfacecolor="white",
            markersize=5,
            capsize=2.5,
            linestyle="none",
            zorder=3,
            label=f"{p.label} (± 2 standard errors)" if p.label not in [q.label for q in points[:k]] else None,
        )
    axes.grid(alpha=0.25)


def draw_lines(
    axes: Axes,
    x: Numbers,
    lines: Mapping[str, Numbers],
    *,
    bands: Mapping[str, tuple[Numbers, Numbers]] | None = None,
    markers: bool = True,
) -> None:
    """Draws labelled lines over a common ``x`` ``[K]``, some with a band (low, high ``[K]``) of the same label."""
    x = np.asarray(x, np.float64)
    for i, (label, values) in enumerate(lines.items()):
        every = max(1, x.size // 9)
        axes.plot(x, values, label=label, **line_style(i, markevery=slice(i % every, None, every) if markers else None))
        if bands and label in bands:
            axes.fill_between(x, *bands[label], color=COLOURS[i % 8], alpha=0.15, linewidth=0)
    axes.grid(alpha=0.25)
