"""The printed table, the records, the stopping curves and the grid of samples along the chain."""

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments.image_models import precision_used
from experiments.latent_vs_pixel import FAMILIES, Config, Outcome, Reading, summary_readings
from experiments.tables import align
from ldmjax import plotting
from ldmjax.data import Dataset
from ldmjax.features import Features

METRIC_NAMES = {"w2": "squared Fréchet distance", "mmd": "squared MMD", "sliced_w2": "squared sliced W2"}
NEAR_END = 0.7  # progress from which the lower panels show the curves, or a little before the first best stop
GRID_COLUMNS = 9
PERCENT_TICKS = (50, 60, 70, 80, 90, 100)


def table(outcome: Outcome, config: Config) -> str:
    """What the command prints."""
    lines = []
    for readout in config.sampling.readouts:
        lines += ["", f"Readout {readout!r}, {_seeds(config)}:", *align(_rows(outcome, config, readout), left=3)]
    return "\n".join([*lines, "", *_model_lines(outcome), "", *answers(outcome, config)])


def _seeds(config):
    return (
        f"mean over seeds {', '.join(map(str, config.seeds))}" if len(config.seeds) > 1 else f"seed {config.seeds[0]}"
    )


def _rows(outcome, config, readout):
    head = [
        "features",
        "metric",
        "model",
        "at the end",
        "best stop [90 %]",
        "gain [90 %]",
        "floor",
        "rebuilt",
        "verdict",
    ]
    found = [r for r in summary_readings(outcome) if r.readout == readout]
    return [head, *(_row(r, config) for r in sorted(found, key=lambda r: (r.features, r.metric)))]


def _row(r: Reading, config: Config) -> list[str]:
    def percent(stop):
        return "?" if stop is None else f"{100 * config.sampling.progress[stop]:.0f}"

    q = r.result
    gains = [100 * x / q.end for x in (q.gain, q.gain_low, q.gain_high)]
    return [
        r.features, r.metric, r.plan.label, f"{q.end:.3g}",
        f"{percent(q.best_stop)} % [{percent(q.best_stop_low)}, {percent(q.best_stop_high)}]",
        "{:.1f} % [{:.1f}, {:.1f}]".format(*gains), f"{r.floor:.3g}", f"{r.reconstruction:.3g}", q.verdict,
    ]  # fmt: skip


def _model_lines(outcome):
    title = (
        "Per model and seed: operations of one evaluation and their difference to the pixel model's, distance to the nearest "
        "training image over that of held-out images (small: copies), squared error of the autoencoder per pixel:"
    )
    flops = {p.label: (p.flops, p.flops_difference) for p in outcome.plans}
    rows = [["model", "seed", "FLOPs", "difference", "nearest", "autoencoder", "diverged"]]
    for (label, seed), facts in outcome.models.items():
        step = facts["diverged_at_step"]
        rows.append([
            label, str(seed), f"{flops[label][0]:,}", f"{100 * flops[label][1]:+.2f} %", f"{facts['memorisation']:.2f}",
            f"{facts['reconstruction_error']:.4f}", "no" if step is None else f"at step {step}",
        ])  # fmt: skip
    return [title, *align(rows, left=1)]


def answers(outcome: Outcome, config: Config) -> list[str]:
    """The question, answered for every latent model, readout, feature space and metric."""
    rows = [["model", "readout", "features", "metric", "latent model", "pixel model", "answer"]]
    found = {(r.plan.label, r.readout, r.features, r.metric): r.result.verdict for r in summary_readings(outcome)}
    pixel = {p.network.model: p.label for p in outcome.plans if p.kind == "identity"}
    for plan in outcome.plans:
        if plan.kind == "identity":
            continue
        for (label, *where), verdict in found.items():
            if label == plan.label:
                of_pixel = found[pixel[plan.network.model], *where]
                rows.append([label, *where, verdict, of_pixel, _answer(verdict, of_pixel)])
    return [
        "Do the last steps make the latent model worse and not the pixel model?",
        *map(str.rstrip, align(rows, left=7)),
    ]


def _answer(latent: str, pixel: str) -> str:
    if latent == "no gain from stopping" or pixel == "stop early":
        return "no"
    return "cannot tell" if "cannot tell" in (latent, pixel) else "yes"


def make_records(outcome: Outcome, dataset: Dataset, features: Sequence[Features], config: Config) -> list[dict]:
    """One line per reading; distances are squared, gains in the same unit; a best stop at the end is progress 1."""
    sampling, digests = config.sampling, {f.name: f.digest for f in features}
    rows = []
    for r in outcome.readings:
        stops = {"": r.result.best_stop, "_low": r.result.best_stop_low, "_high": r.result.best_stop_high}
        where = {f"progress_best{k}": None if s is None else float(sampling.progress[s]) for k, s in stops.items()}
        where |= {f"logsnr_best{k}": None if s is None else float(sampling.logsnrs[s]) for k, s in stops.items()}
        own = {} if r.seed is None else outcome.models[r.plan.label, r.seed]
        rows.append({
            "model": r.plan.label, "autoencoder": r.plan.kind, "latent_shape": list(r.plan.latent_shape),
            "network": r.plan.network.model, "hidden": r.plan.network.hidden, "channels": list(r.plan.network.channels),
            "seed": r.seed, "seeds": len(config.seeds) if r.seed is None else 1, "readout": r.readout,
            "features": r.features, "features_sha256": digests[r.features], "metric": r.metric,
            "end": r.result.end, "best": r.result.best, **where, "gain": r.result.gain, "gain_low": r.result.gain_low,
            "gain_high": r.result.gain_high, "verdict": r.result.verdict, "noise_floor": r.floor,
            "reconstruction": r.reconstruction, "data": dataset.name, "n": config.n,
            "reference": min(config.reference, len(dataset.samples) - config.n), "samples": sampling.samples,
            "process": sampling.process, "sampler": sampling.sampler, "sampling_steps": sampling.steps,
            "training_steps": config.training_steps, "batch_size": config.batch_size,
            "precision": precision_used(r.plan.kind, r.plan.network.model, asked=config.precision),
            "flops": r.plan.flops, "flops_pixel": r.plan.pixel_flops, "flops_difference": r.plan.flops_difference,
            **{k: v for k, v in own.items() if k != "reconstruction"},
        })  # fmt: skip
    return rows


def make_curves(outcome: Outcome, config: Config) -> dict[str, np.ndarray]:
    """Arrays for curves.npz; rows of curve and standard_error are the lines of records.jsonl."""
    return {
        "progress": config.sampling.progress,
        "logsnr": config.sampling.logsnrs,
        "curve": np.stack([r.result.curve for r in outcome.readings]),
        "standard_error": np.stack([r.result.standard_error for r in outcome.readings]),
        **{f"samples {label}": grid for label, grid in outcome.grids.items()},
    }


def draw(outcome: Outcome, config: Config, name: str) -> dict[str, Figure]:
    """Figures by file name: stopping curves for every network family and readout, and the grid of samples."""
    families = [family for family in FAMILIES if any(p.network.model == family for p in outcome.plans)]
    figures = {
        f"curves_{family}_{readout}": draw_curves(outcome, config, name, family=family, readout=readout)
        for family in families
        for readout in config.sampling.readouts
    }
    return figures | {"chains": draw_grid(outcome, config, name)}


def draw_curves(outcome: Outcome, config: Config, name: str, *, family: str, readout: str) -> Figure:
    """One column per feature space and metric: distance along the whole chain, and near its end relative to the end."""
    found = [r for r in summary_readings(outcome) if r.plan.network.model == family and r.readout == readout]
    columns = list(dict.fromkeys((r.features, r.metric) for r in found))
    sampling = config.sampling
    caption = (
        f"{name}, {FAMILIES[family]}s with equal operations, {sampling.process}, {sampling.steps} steps, readout {readout!r}, "
        f"{sampling.samples} samples, {_seeds(config)}. Top: distance to held-out images; dotted: that of the training "
        f"images, the noise floor. Bottom: the same near the end, relative to the end of sampling, with a band of two "
        f"standard errors of the difference to the end; below 100 % it is better to stop. Marker and bar: best stop and its "
        f"90 % interval, in the order of the legend. Numbers at the top edge: logsnr."
    )
    width = 1.5 + 3.4 * len(columns)
    figure, axes = plotting.new_figure(2, len(columns), width=width, height=7.4, caption=caption)
    for (top, bottom), (features, metric) in zip(axes.T, columns, strict=True):
        here = [r for r in found if (r.features, r.metric) == (features, metric)]
        firsts = [sampling.progress[r.result.best_stop_low] for r in here if r.result.best_stop is not None]
        left = max(0.5, min([NEAR_END, *(first - 0.03 for first in firsts)]))
        for i, r in enumerate(here):
            _draw_reading(top, bottom, r, i, len(here), sampling.progress)
        floor = np.mean([r.floor for r in here])
        if floor > 0:
            top.axhline(floor, color="black", linestyle=(0, (1, 2)), linewidth=1.2)
        top.set_yscale("log")
        top.set_title(f"{METRIC_NAMES[metric]}, {features}", fontsize=9.5)
        bottom.set(xlim=(100 * left, 101), xlabel="progress of sampling (%)")
        _relative_limits(bottom, here, sampling.progress, left)
        _add_logsnr(bottom, sampling)
        for panel in (top, bottom):
            panel.grid(alpha=0.25)
    axes[0, 0].set_ylabel("distance to held-out images")
    axes[1, 0].set_ylabel("relative to the end (%)")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=min(4, len(labels)), fontsize=9, handlelength=3.2)
    return figure


def _draw_reading(top, bottom, r, index, count, progress):
    """One model's curve in both panels, and its best stop on a line of its own at the bottom of the lower one."""
    style, x, curve = plotting.line_style(index), 100 * progress, r.result.curve
    marker = {"marker": plotting.MARKERS[index % 8], "color": style["color"], "markersize": 5}
    positive = np.where(curve > 0, curve, np.nan)
    best = r.result.best_stop
    top.plot(x, positive, label=r.plan.label, markevery=[] if best is None else [best], **style | marker)
    if best is None:
        return
    relative, error = 100 * curve / curve[-1], 200 * r.difference_error / abs(curve[-1])
    bottom.plot(x, relative, **style)
    bottom.fill_between(x, relative - error, relative + error, color=style["color"], alpha=0.15, linewidth=0)
    height = 0.04 + 0.05 * (count - 1 - index)
    low, high = x[r.result.best_stop_low], x[r.result.best_stop_high]
    transform = bottom.get_xaxis_transform()
    bottom.plot([low, high], [height] * 2, color=style["color"], linewidth=1.5, transform=transform)
    bottom.plot([x[best]], [height], transform=transform, **marker)


def _relative_limits(axes, readings, progress, left):
    """Vertical limits that show what happens around 100 %, with room below for the best stops."""
    curves = np.array([100 * r.result.curve / r.result.end for r in readings if r.result.best_stop is not None])
    if not curves.size:
        return
    low = max(0.0, curves[:, progress >= left].min())
    span = max(100.0 - low, 5.0)
    # Curves that rise steeply towards noise leave at the top.
    high = np.clip(curves[:, progress >= 0.9].max(), 100.0 + 0.2 * span, 100.0 + 1.5 * span)
    axes.set_ylim(low - 0.05 * span * (len(readings) + 2) - 0.1 * (high - low), high)
    axes.axhline(100.0, color="grey", linewidth=0.8)


def _add_logsnr(axes, sampling):
    """Logsnr at a few places, on top."""
    steps = [round(sampling.steps * p / 100) for p in PERCENT_TICKS]
    values = sampling.schedule.logsnr(sampling.times[steps])
    top = axes.secondary_xaxis("top")
    top.set_xticks(PERCENT_TICKS, ["∞" if np.isinf(v) else f"{v:.1f}" for v in values], fontsize=7.5)
    top.tick_params(length=2)


def draw_grid(outcome: Outcome, config: Config, name: str) -> Figure:
    """Rows are models, columns stops; all from the same starting noise."""
    progress = config.sampling.progress
    wanted = np.concatenate([np.linspace(0.0, 0.6, 4), np.linspace(0.7, 1.0, GRID_COLUMNS - 4)])
    columns = np.unique([int(np.argmin(np.abs(progress - p))) for p in wanted])
    caption = (
        f"{name}: states along the chain, decoded ({config.sampling.process}, states divided by their scale, first seed). Two "
        f"samples of each model; all models start from the same noise, of which a latent of d entries sees the first d."
    )
    labels = [(label, k) for label in outcome.grids for k in range(outcome.grids[label].shape[1])]
    figure, axes = plotting.new_figure(
        len(labels), len(columns), width=1.6 + 0.8 * len(columns), height=1.2 + 0.82 * len(labels), caption=caption
    )
    figure.get_layout_engine().set(w_pad=0.01, h_pad=0.01)
    for row, (label, k) in zip(axes, labels, strict=True):
        shown = outcome.grids[label][columns, k]
        for panel, image, stop in zip(row, shown, columns, strict=True):
            _draw_image(panel, image, *outcome.pixel_range)
            if panel in axes[0]:
                panel.set_title(f"{100 * progress[stop]:.0f} %", fontsize=9)
        if k == 0:
            row[0].set_ylabel(label.replace(", ", ",\n"), rotation=0, ha="right", va="center", fontsize=8.5)
    return figure


def _draw_image(axes, image, low, high):
    """Pictures in grey or colour; anything else as a strip."""
    if image.ndim == 1:
        image = image[None]
    scaled = np.clip((image - low) / max(high - low, 1e-6), 0.0, 1.0)
    scaled = scaled if scaled.ndim == 2 or scaled.shape[-1] == 3 else scaled[..., 0]
    axes.imshow(scaled, cmap="gray", vmin=0.0, vmax=1.0, interpolation="nearest", aspect="equal")
    axes.set(xticks=[], yticks=[])
