"""The printed tables, the records, the curves and the figures."""

from collections import Counter
from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from experiments import image_models
from experiments.stopping_by_metric import Agreement, Config, Measure, Run
from experiments.tables import align
from ldmjax import plotting, stopping
from ldmjax.data import Dataset
from ldmjax.features import Features

METRIC_WORDS = {"w2": "Fréchet", "mmd": "MMD", "sliced_w2": "sliced W2"}
VERDICT_MARKS = {"stop early": "o", "no gain from stopping": "s", "cannot tell": "x"}


def words(measure: Measure) -> str:
    """A measure's name in tables and figures."""
    space, metric = measure
    return f"{space} {METRIC_WORDS[metric]}"


def table(runs: Sequence[Run], agreement: Agreement, config: Config) -> str:
    """What the command prints."""
    logsnrs, measures = config.logsnrs, agreement.measures
    lines = [
        "",
        f"Best stop by measure, {agreement.runs} runs; t* and interval widths in logsnr; medians over runs.",
        "end / autoencoder: distance at the end of sampling over that of the autoencoder's own reconstructions.",
    ]
    rows = [["measure", "stop early", "no gain", "cannot tell", "t*", "width", "end / autoencoder"]]
    defined = [r for r in runs if r.defined]
    for m in measures:
        readings = [r.readings[m] for r in defined]
        counts = Counter(reading.verdict for reading in readings)
        best = np.median([logsnrs[reading.best_stop] for reading in readings])
        width = np.median([logsnrs[q.best_stop_high] - logsnrs[q.best_stop_low] for q in readings])
        ratio = np.median([r.readings[m].end / r.reconstructions[m] for r in defined])
        shares = [f"{counts[v]}" for v in stopping.VERDICTS]
        rows.append([words(m), *shares, f"{best:.2f}", f"{width:.2f}", f"{ratio:.2f}"])
    lines += align(rows, left=1)
    lines += ["", "Overlap of the 90 % intervals of t* (above the diagonal), same verdict (below), % of runs:"]
    lines += _matrix(
        measures, lambda i, j: "-" if i == j else f"{100 * (agreement.overlap if i < j else agreement.same)[i, j]:.0f}"
    )
    lines += ["", "t* of the row minus t* of the column, logsnr, mean over runs and 90 % interval:"]
    lines += _matrix(measures, lambda i, j: "" if i >= j else _difference(agreement, i, j, digits=2))
    opposed = np.triu(agreement.opposed, 1)
    i, j = np.unravel_index(np.argmax(opposed), opposed.shape)
    lines += ["", _opposed_line(measures[i], measures[j], opposed[i, j])]
    failed = [r.label for r in runs if not r.defined]
    if failed:
        lines.append(f"Left out, a distance is not finite: {'; '.join(failed)}.")
    return "\n".join(lines)


def _difference(agreement, i, j, *, digits):
    """Mean and half-width of the interval, which one run does not have; no minus before a zero."""
    text = f"{round(agreement.difference[i, j], digits) + 0.0:+.{digits}f}"
    return text if agreement.runs == 1 else f"{text} ± {agreement.half_width[i, j]:.{digits}f}"


def _opposed_line(first, second, share):
    if share == 0:
        return 'In no run does one measure say "stop early" and another "no gain from stopping".'
    pair = f"{words(first)} and {words(second)}"
    return f'Most opposed: {pair}, one "stop early", the other "no gain from stopping", in {100 * share:.0f} % of runs.'


def _matrix(measures, cell):
    names = [words(m) for m in measures]
    return align(
        [["", *names], *([name, *(cell(i, j) for j in range(len(names)))] for i, name in enumerate(names))], left=1
    )


def make_records(
    runs: Sequence[Run], agreement: Agreement, config: Config, spaces: Sequence[Features], dataset: Dataset
) -> list[dict]:
    """One record per run and measure, then one per pair of measures."""
    sampling, digests = config.sampling, {s.name: s.digest for s in spaces}
    logsnrs = sampling.logsnrs[config.read]  # infinite, so null, at the end of the rectified flow
    common = {
        "data": dataset.name, "n": config.n, "reference": min(config.reference, len(dataset.samples) - config.n),
        "samples": sampling.samples, "process": sampling.process, "sampler": sampling.sampler,
        "sampling_steps": sampling.steps, "training_steps": config.training_steps,
    }  # fmt: skip
    rows = []
    for run in runs:
        for (space, metric), q in run.readings.items():
            stops = {"": q.best_stop, "_low": q.best_stop_low, "_high": q.best_stop_high}
            where = {f"progress_best{k}": None if s is None else config.progress[s] for k, s in stops.items()}
            where |= {f"logsnr_best{k}": None if s is None else logsnrs[s] for k, s in stops.items()}
            rows.append({
                "kind": "reading", "autoencoder": run.autoencoder, "latent_dim": run.latent_dim, "seed": run.seed,
                "readout": config.readout, "features": space, "features_sha256": digests[space], "metric": metric,
                "end": q.end, "best": q.best, **where, "gain": q.gain, "gain_low": q.gain_low,
                "gain_high": q.gain_high, "verdict": q.verdict, "noise_floor": run.floors[space, metric],
                "reconstruction": run.reconstructions[space, metric], "diverged_at_step": run.failed_at,
                "precision": image_models.precision_used(run.autoencoder, "mlp", asked=config.precision), **common,
            })  # fmt: skip
    common["precision"] = image_models.precision_used(*config.autoencoders, "mlp", asked=config.precision)
    fields = ("overlap", "same", "opposed", "difference", "half_width")
    for i, j in zip(*np.triu_indices(len(agreement.measures), 1), strict=True):
        pair = {"first": words(agreement.measures[i]), "second": words(agreement.measures[j]), "runs": agreement.runs}
        rows.append({"kind": "agreement", **pair, **{f: getattr(agreement, f)[i, j] for f in fields}, **common})
    return rows


def make_curves(runs: Sequence[Run], config: Config) -> dict[str, np.ndarray]:
    """``curve`` and ``standard_error`` ``[runs, measures, stops]``, and where the stops are."""
    readings = [list(r.readings.values()) for r in runs]
    return {
        "logsnr": config.logsnrs,
        "progress": config.progress,
        "measure": np.array([words(m) for m in runs[0].readings]),
        "run": np.array([r.label for r in runs]),
        "curve": np.array([[reading.curve for reading in row] for row in readings]),
        "standard_error": np.array([[reading.standard_error for reading in row] for row in readings]),
    }


def draw_agreement(agreement: Agreement, name: str) -> Figure:
    """The matrix: grey value and number are the overlap, under it the same verdict and the difference."""
    names = [words(m).replace(" ", "\n", 1) for m in agreement.measures]
    caption = (
        f"{agreement.runs} runs. Large number and shade: share of runs whose 90 % intervals of t* under two measures overlap. "
        "Under it: share of runs with the same verdict; then t* of the row minus t* of the column in logsnr, mean over runs "
        "with its 90 % interval (positive: the row's measure wants to stop later)."
    )
    side = 1.6 + 1.15 * len(names)
    title = f"{name}: do measures agree on the best stopping time?"
    figure, axes = plotting.new_figure(1, 1, width=side, height=side + 0.6, caption=caption, title=title)
    axis = axes[0, 0]
    shown = np.where(np.eye(len(names), dtype=bool), np.nan, agreement.overlap)
    axis.imshow(shown, cmap="Greys_r", vmin=-0.6, vmax=1.0)
    for i in range(len(names)):
        for j in range(len(names)):
            if i != j:
                dark = {"color": "white" if shown[i, j] < 0.35 else "black", "ha": "center"}
                difference = _difference(agreement, i, j, digits=1)
                axis.text(j, i - 0.12, f"{100 * shown[i, j]:.0f} %", va="center", fontsize=13, **dark)
                axis.text(
                    j,
                    i + 0.2,
                    f"verdict {100 * agreement.same[i, j]:.0f} %\n{difference}",
                    va="center",
                    fontsize=7.5,
                    **dark,
                )
    axis.set_xticks(range(len(names)), names, fontsize=8.5)
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.tick_params(length=0)
    return figure


def draw_stops(runs: Sequence[Run], config: Config, name: str) -> Figure:
    """t* with its interval for every run, a panel per measure, one under the other's metric."""
    measures = list(runs[0].readings)
    spaces = list(dict.fromkeys(space for space, _ in measures))
    metrics = list(dict.fromkeys(metric for _, metric in measures))
    caption = (
        "A line per run: best stop t* (mark) and its 90 % interval. Dotted line: the end of sampling, no early stop; the stop "
        "furthest left is the first one that is read. "
        "Filled circle: stop early. Square: no gain from stopping (below 1 %). Cross: cannot tell. "
        f"Readout: {config.readout} state, decoded; the last steps of one grid dropped."
    )
    height = 1.6 + len(spaces) * (0.7 + 0.13 * len(runs))
    title = f"{name}: best stopping time under each measure"
    figure, axes = plotting.new_figure(
        len(spaces), len(metrics), width=3.4 * len(metrics) + 1.2, height=height, caption=caption, title=title
    )
    edge = config.logsnrs[-1]
    for (space, metric), axis in zip(measures, axes.ravel(), strict=True):
        _draw_panel(axis, [r.readings[space, metric] for r in runs], config.logsnrs)
        axis.set_title(words((space, metric)), fontsize=10)
        axis.axvline(edge, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_ylim(len(runs) - 0.4, -0.6)
    left = min(axis.get_xlim()[0] for axis in axes.ravel())
    for axis in axes.ravel():
        axis.set_xlim(left, edge + 0.03 * (edge - left))
        axis.set_yticks(range(len(runs)), [])
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(runs)), [r.label for r in runs], fontsize=6.5)
    for axis in axes[-1]:
        axis.set_xlabel("logsnr at the stop (noise → data)", fontsize=9)
    return figure


def _draw_panel(axis, readings, logsnrs):
    for row, reading in enumerate(readings):
        if reading.best_stop is None:
            axis.text(logsnrs[-1], row, "not finite", fontsize=6, ha="right", va="center")
            continue
        ends = logsnrs[[reading.best_stop_low, reading.best_stop_high]]
        axis.plot(ends, [row, row], color="#555555", linewidth=1.4, solid_capstyle="butt")
        mark = VERDICT_MARKS[reading.verdict]
        face = "black" if reading.verdict == stopping.VERDICTS[0] else "white"
        axis.plot(logsnrs[reading.best_stop], row, mark, color="black", markerfacecolor=face, markersize=4.5)
    axis.grid(axis="x", linewidth=0.4, color="#dddddd")
