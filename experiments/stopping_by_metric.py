r"""Does the best stopping time depend on the metric? The same chains read in every feature space by every metric.

On one set of ImageNet models the Fréchet distance asks for 94-100 % of sampling and the sliced Wasserstein distance and the
MMD turn up after 87 % ([OS], slides to arXiv 2510.08409). So "stop at t*" says nothing without "under which metric". Here
latent diffusion models of several autoencoders, latent dimensions and seeds are sampled once; each stop of a chain is
measured in every feature space by squared Fréchet distance (w2), squared MMD and squared sliced W2, so that differences
between measures are not sampling noise. Every curve is read as in the main job (t*, 90 % interval, verdict), and the
measures are compared two by two over all runs.

    python -m experiments.stopping_by_metric
    python -m experiments.stopping_by_metric --data=fashion_mnist.npz --n=10000 \
        --latent_dims=4,8,16,32

Two measures are compared over the same runs:

    overlap     share of runs whose two 90 % intervals of t* have a stop in common
    same        share of runs with the same verdict
    opposed     one says "stop early", the other "no gain from stopping"
    difference  mean of t*(row) - t*(column) in logsnr, and a 90 % t interval, runs independent

Two independent 90 % intervals of one and the same time overlap in about 98 % of runs; wide ones overlap whatever they are
of, so their median width stands beside them. Stops of the chain's second half are read; at its end logsnr may be infinite
and counts as that of the last step's start.

Takes 7 minutes of processor time, about half of it on two cores; the numbers obtained stand in
docs/results.md#stopping_by_metric.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy import stats

from experiments import launch
from experiments.launch import Report, Results, redeclared, setting
from experiments.launch.diffusion import DiffusionSettings, ImageData
from ldmjax import latent_diffusion, plotting, stopping
from ldmjax.data import Dataset
from ldmjax.job import Job
from ldmjax.latent_diffusion import DiffusionModel, Split
from ldmjax.tables import table

BLOCKS = 2  # of the diffusion models' MLP
AUTOENCODERS = ("pca", "conv", "kl", "vq")
METRIC_WORDS = {"w2": "Fréchet", "mmd": "MMD", "sliced_w2": "sliced W2"}
EARLY, NONE, UNKNOWN = stopping.VERDICTS
VERDICT_MARKS = {EARLY: "o", NONE: "s", UNKNOWN: "x"}
PAIRED = ("overlap", "same", "opposed", "difference", "half_width")
QUICK = {
    "latent_dims": (4, 16),
    "seeds": (0,),
    "autoencoder_steps": 200,
    "training_steps": 300,
    "samples": 256,
    "sampling_steps": 100,
    "stops": 8,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DiffusionSettings):
    """Which models are trained and how their chains are read."""

    features: tuple[str, ...] = redeclared(DiffusionSettings, "features", ("pixels", "classifier"))
    autoencoders: tuple[str, ...] = setting(("pca", "conv"), "Kinds of autoencoders.", choices=AUTOENCODERS)
    latent_dims: tuple[int, ...] = setting((4, 8, 16, 32), "Latent dimensions.", low=1, high=100_000)
    n: int = redeclared(DiffusionSettings, "n", 1200)
    reference: int = redeclared(DiffusionSettings, "reference", 2000)
    readout: str = setting("rescaled", "What is decoded of a stopped state.", choices=stopping.NOISY_READOUTS)
    sampling_batch: int = redeclared(DiffusionSettings, "sampling_batch", 1024)
    autoencoder_steps: int = redeclared(DiffusionSettings, "autoencoder_steps", 1000)
    hidden: int = setting(128, "Width of the diffusion models' MLP.", low=1, high=16_384)

    @property
    def shapes(self) -> dict[str, list[tuple[int, ...]]]:
        """Latent shapes by kind of autoencoder."""
        return {kind: [(d,) for d in self.latent_dims] for kind in self.autoencoders}

    @property
    def read(self) -> np.ndarray:
        """Which stops of the chain are read, ``[stops]`` bool: those of its second half."""
        return self.sampling.progress >= 0.5

    @property
    def progress(self) -> np.ndarray:
        """Share of the steps done at every stop that is read ``[S]``."""
        return self.sampling.progress[self.read]

    @property
    def logsnrs(self) -> np.ndarray:
        """Logsnr of every stop that is read ``[S]``, finite: that of the last step's start if the end has none."""
        last_start = self.sampling.schedule.logsnr(self.sampling.times[-2])
        found = self.sampling.logsnrs[self.read]
        return np.where(np.isinf(found), last_start, found)

    def check_models(self, dataset: Dataset) -> None:
        super().check_models(dataset)
        self.check_latent_dims(dataset)
        launch.check_precision(self, self.autoencoders)
        for kind, shapes in self.shapes.items():
            self.check_latent_shapes("latent_dims", kind, shapes, dataset, n=self.n)


def plan(config: Config, data: ImageData) -> list[launch.Stage]:
    """What `compute` does."""
    models = [(config.network(model="mlp", hidden=config.hidden, blocks=BLOCKS), d) for d in config.latent_dims]
    sets = len(config.seeds) * len(config.autoencoders) * len(models) * (np.count_nonzero(config.read) + 1)
    return [
        *config.autoencoder_stages(config.shapes, data.dataset.image_shape),
        *config.model_stages(models * len(config.autoencoders)),
        launch.Stage(stage="decode and measure sets of images", runs=sets),
    ]


def compute(config: Config, data: ImageData, job: Job) -> Results:
    """Trains and samples all models, and reads every curve.

    Arrays, with R runs (by seed, then autoencoder, then latent dimension), M measures and S stops that are read:
      logsnr, progress ``[S]``: of the stops, logsnr finite;
      run ``[R]``, measure ``[M]``: names;
      curve, standard_error ``[R, M, S]``: the stopping curves, in the order of the rows of kind "reading".
    """
    config.check_features_unchanged(data, job)
    splits = config.splits(data.dataset)
    measures = config.measures(data, splits)
    with config.blaming("latent_dims"):
        floors = config.noise_floors(splits, measures, job)
        kinds, models = train(config, splits, job)

        def measured(index: int) -> dict:
            model, split = models[index], splits[models[index].seed]
            states = latent_diffusion.sample_states(model, config.sampling, job=job)
            read = latent_diffusion.read_out(states, config.sampling, config.readout)[config.read]
            restored = model.autoencoder.decode(model.autoencoder.encode(split.train))
            return {
                "pseudo": latent_diffusion.stopping_pseudo_values(model, read, measures[model.seed]),
                "reconstruction": latent_diffusion.mean_distances(restored, measures[model.seed]),
            }

        found = latent_diffusion.map_models(measured, models, what="sampled and measured", job=job)
    readings = [{key: stopping.read_stopping_curve(p) for key, p in one["pseudo"].items()} for one in found]
    rows = []
    for kind, model, one, own in zip(kinds, models, found, readings, strict=True):
        levels = {"noise_floor": floors[model.seed], "reconstruction": one["reconstruction"]}
        rows += _reading_rows(config, data, kind, model, own, levels)
    arrays = {
        "logsnr": config.logsnrs,
        "progress": config.progress,
        "measure": np.array([measure_name(*key) for key in readings[0]]),
        "run": np.array([f"{k} {m.spec.latent_dim}, seed {m.seed}" for k, m in zip(kinds, models, strict=True)]),
        **{
            name: np.array([[getattr(reading, name) for reading in own.values()] for own in readings])
            for name in ("curve", "standard_error")
        },
    }
    rows += agreement_rows(config, data, readings)
    accuracy = {space.name: space.accuracy for space in data.spaces if space.accuracy is not None}
    return Results(rows=rows, arrays=arrays, metadata={"classifier_accuracy": accuracy})


def train(config: Config, splits: dict[int, Split], job: Job) -> tuple[list[str], list[DiffusionModel]]:
    """The kinds of the autoencoders of all diffusion models, and these models, trained in one program."""
    options = {"steps": config.autoencoder_steps, "precision": config.precision}
    autoencoders = latent_diffusion.fit_autoencoders(splits, config.shapes, job=job, **options)
    seeds = [seed for seed, _, _ in autoencoders]
    networks = [config.network(model="mlp", hidden=config.hidden, blocks=BLOCKS)] * len(seeds)
    models = latent_diffusion.train_models(
        list(autoencoders.values()), networks, [splits[seed] for seed in seeds], seeds=seeds, job=job
    )
    return [kind for _, kind, _ in autoencoders], models


def measure_name(space: str, metric: str) -> str:
    """What a measure is called in tables and figures."""
    return f"{space} {METRIC_WORDS[metric]}"


def _reading_rows(config, data, kind, model, readings, levels) -> list[dict]:
    """One row per measure of one model; ``levels`` are distances of other images by field and measure."""
    digests = {space.name: space.digest for space in data.spaces}
    # Logsnr is infinite, so null, at the end of the rectified flow.
    places = {"progress_best": config.progress, "logsnr_best": config.sampling.logsnrs[config.read]}
    return [
        {
            "kind": "reading",
            "autoencoder": kind,
            "latent_dim": model.spec.latent_dim,
            "seed": model.seed,
            "readout": config.readout,
            "features": space,
            "features_sha256": digests[space],
            "metric": metric,
            **reading.record(**places),
            **{name: values[space, metric] for name, values in levels.items()},
            "diverged_at_step": model.failed_at,
            "precision": latent_diffusion.precision_used(kind, "mlp", asked=config.precision),
            **config.about(data.dataset),
        }
        for (space, metric), reading in readings.items()
    ]


def agreement_rows(config, data, readings) -> list[dict]:
    """One row per pair of measures, over the runs in which each measure found a t*; none without such runs."""
    defined = [own for own in readings if all(reading.best_stop is not None for reading in own.values())]
    if not defined:
        return []
    paired = compare([list(own.values()) for own in defined], config.logsnrs)
    names = [measure_name(*key) for key in defined[0]]
    shared = config.about(data.dataset)
    shared["precision"] = latent_diffusion.precision_used(*config.autoencoders, "mlp", asked=config.precision)
    return [
        {"kind": "agreement", "first": names[i], "second": names[j], "runs": len(defined)}
        | {name: paired[name][i, j] for name in PAIRED}
        | shared
        for i, j in zip(*np.triu_indices(len(names), 1), strict=True)
    ]


def compare(readings: Sequence[Sequence[stopping.StoppingResult]], logsnrs: np.ndarray) -> dict[str, np.ndarray]:
    """The agreement of measures, as the module says: `PAIRED`, each ``[M, M]``, row measure against column.

    Args:
      readings: of R runs by M measures, each with a t*.
      logsnrs: of every stop ``[S]``, finite.
    """

    def of(field):
        """``[R, M, 1]`` and ``[R, 1, M]``."""
        values = np.array([[getattr(reading, field) for reading in own] for own in readings])
        return values[:, :, None], values[:, None, :]

    (low, low_of_other), (high, high_of_other) = of("best_stop_low"), of("best_stop_high")
    (verdict, of_other), (best, best_of_other) = of("verdict"), of("best_stop")
    difference, count = logsnrs[best] - logsnrs[best_of_other], len(readings)
    half_width = np.full(difference.shape[1:], np.nan)
    if count > 1:
        half_width = stats.t.ppf(0.95, count - 1) * difference.std(axis=0, ddof=1) / np.sqrt(count)
    opposed = ((verdict == EARLY) & (of_other == NONE)) | ((verdict == NONE) & (of_other == EARLY))
    return {
        "overlap": np.mean((low <= high_of_other) & (low_of_other <= high), axis=0),
        "same": np.mean(verdict == of_other, axis=0),
        "opposed": np.mean(opposed, axis=0),
        "difference": difference.mean(axis=0),
        "half_width": half_width,
    }


def report(results: Results) -> Report:
    """The best stop by measure, the agreement of measures, and a figure of each."""
    readings, names = _readings(results), list(results.arrays["measure"])
    figures = {"stops": _draw_stops(results, readings)}
    failed = readings.loc[~readings["defined"], "run"].unique()
    left_out = [f"Left out, a distance is not finite: {'; '.join(failed)}."] if len(failed) else []
    if len(failed) == readings["run"].nunique():
        return Report(text="\n".join(left_out), figures=figures)
    paired = _paired(results)
    matrices = {
        "Overlap of the 90 % intervals of t* (above the diagonal), same verdict (below), % of runs:": lambda i, j: (
            "-" if i == j else f"{100 * paired['overlap' if i < j else 'same'][i, j]:.0f}"
        ),
        "t* of the row minus t* of the column, logsnr, mean over runs and 90 % interval:": lambda i, j: (
            "" if i >= j else _difference(paired, i, j, digits=2)
        ),
    }
    parts = [_stops_table(readings[readings["defined"]])]
    for title, cell in matrices.items():
        rows = [{"": name} | {other: cell(i, j) for j, other in enumerate(names)} for i, name in enumerate(names)]
        parts.append(table(rows, title=title))
    parts.append("\n".join([_opposed_line(results), *left_out]))
    return Report(text="\n\n".join(parts), figures=figures | {"agreement": _draw_agreement(results, paired)})


def _readings(results: Results) -> pd.DataFrame:
    """Rows of kind "reading" with their measure, their run, t* and its interval as finite logsnr, and what is left out."""
    arrays, frame = results.arrays, results.frame(kind="reading")
    frame["measure"] = [measure_name(*key) for key in zip(frame["features"], frame["metric"], strict=True)]
    frame["run"] = np.repeat(arrays["run"], len(arrays["measure"]))
    logsnr = dict(zip(arrays["progress"], arrays["logsnr"], strict=True))
    for ending in ("", "_low", "_high"):
        frame[f"stop{ending}"] = frame[f"progress_best{ending}"].map(logsnr).astype(float)
    frame["defined"] = frame.groupby("run")["stop"].transform("count") == len(arrays["measure"])
    return frame


def _paired(results: Results) -> dict[str, np.ndarray]:
    """`PAIRED` again, ``[M, M]``, from rows of kind "agreement"; the diagonal is NaN."""
    count, frame = len(results.arrays["measure"]), results.frame(kind="agreement")
    i, j = np.triu_indices(count, 1)
    paired = {name: np.full((count, count), np.nan) for name in PAIRED}
    for name, matrix in paired.items():
        matrix[i, j] = frame[name].astype(float)
        matrix[j, i] = matrix[i, j] * (-1.0 if name == "difference" else 1.0)
    return paired


def _stops_table(readings: pd.DataFrame) -> str:
    rows = [
        {
            "measure": measure,
            "stop early": np.sum(own["verdict"] == EARLY),
            "no gain": np.sum(own["verdict"] == NONE),
            "cannot tell": np.sum(own["verdict"] == UNKNOWN),
            "t*": own["stop"].median(),
            "width": (own["stop_high"] - own["stop_low"]).median(),
            "end / autoencoder": (own["end"] / own["reconstruction"]).median(),
        }
        for measure, own in readings.groupby("measure", sort=False)
    ]
    title = (
        f"Best stop by measure, {readings['run'].nunique()} runs; t* and interval widths in logsnr; medians over runs.\n"
        "end / autoencoder: distance at the end of sampling over that of the autoencoder's own reconstructions."
    )
    decimals = dict.fromkeys(("t*", "width", "end / autoencoder"), ".2f")
    return table(rows, dict.fromkeys(rows[0], "") | decimals, title=title)


def _difference(paired: dict[str, np.ndarray], i: int, j: int, *, digits: int) -> str:
    """Mean and half-width of the interval, which one run does not have; no minus before a zero."""
    half_width = paired["half_width"][i, j]
    text = f"{round(paired['difference'][i, j], digits) + 0.0:+.{digits}f}"
    return text if np.isnan(half_width) else f"{text} ± {half_width:.{digits}f}"


def _opposed_line(results: Results) -> str:
    frame = results.frame(kind="agreement")
    most = frame.loc[frame["opposed"].idxmax()]
    if most["opposed"] == 0:
        return f'In no run does one measure say "{EARLY}" and another "{NONE}".'
    share = f"{100 * most['opposed']:.0f} % of runs"
    return f'Most opposed: {most["first"]} and {most["second"]}, one "{EARLY}", the other "{NONE}", in {share}.'


def _draw_agreement(results: Results, paired: dict[str, np.ndarray]) -> Figure:
    """The matrix: grey value and number are the overlap, under it the same verdict and the difference."""
    names = [name.replace(" ", "\n", 1) for name in results.arrays["measure"]]
    caption = (
        f"{results.of_kind('agreement')[0]['runs']} runs. Large number and shade: share of runs whose 90 % intervals of t* "
        "under two measures overlap. Under it: share of runs with the same verdict; then t* of the row minus t* of the column "
        "in logsnr, mean over runs with its 90 % interval (positive: the row's measure wants to stop later)."
    )
    side = 1.6 + 1.15 * len(names)
    title = f"{results.data_name}: do measures agree on the best stopping time?"
    figure, axes = plotting.new_figure(1, 1, width=side, height=side + 0.6, caption=caption, title=title)
    axis, shown = axes[0, 0], paired["overlap"]
    axis.imshow(shown, cmap="Greys_r", vmin=-0.6, vmax=1.0)
    for i, j in zip(*np.nonzero(~np.isnan(shown)), strict=True):
        style = {"color": "white" if shown[i, j] < 0.35 else "black", "ha": "center", "va": "center"}
        under = f"verdict {100 * paired['same'][i, j]:.0f} %\n{_difference(paired, i, j, digits=1)}"
        axis.text(j, i - 0.12, f"{100 * shown[i, j]:.0f} %", fontsize=13, **style)
        axis.text(j, i + 0.2, under, fontsize=7.5, **style)
    axis.set_xticks(range(len(names)), names, fontsize=8.5)
    axis.set_yticks(range(len(names)), names, fontsize=8.5)
    axis.tick_params(length=0)
    return figure


def _draw_stops(results: Results, readings: pd.DataFrame) -> Figure:
    """t* with its interval for every run, a panel per measure, one under the other's metric."""
    runs, edge = results.arrays["run"], results.arrays["logsnr"][-1]
    spaces, metrics = readings["features"].unique(), readings["metric"].unique()
    caption = (
        "A line per run: best stop t* (mark) and its 90 % interval. Dotted line: the end of sampling, no early stop; the stop "
        "furthest left is the first one that is read. "
        "Filled circle: stop early. Square: no gain from stopping (below 1 %). Cross: cannot tell. "
        f"Readout: {results.config.readout} state, decoded; the last steps of one grid dropped."
    )
    figure, axes = plotting.new_figure(
        len(spaces),
        len(metrics),
        width=3.4 * len(metrics) + 1.2,
        height=1.6 + len(spaces) * (0.7 + 0.13 * len(runs)),
        caption=caption,
        title=f"{results.data_name}: best stopping time under each measure",
    )
    for (measure, own), axis in zip(readings.groupby("measure", sort=False), axes.ravel(), strict=True):
        _draw_panel(axis, own, edge)
        axis.set_title(measure, fontsize=10)
        axis.axvline(edge, color="#888888", linewidth=0.8, linestyle=":")
        axis.set_ylim(len(runs) - 0.4, -0.6)
    left = min(axis.get_xlim()[0] for axis in axes.ravel())
    for axis in axes.ravel():
        axis.set_xlim(left, edge + 0.03 * (edge - left))
        axis.set_yticks(range(len(runs)), [])
    for axis in axes[:, 0]:
        axis.set_yticks(range(len(runs)), runs, fontsize=6.5)
    for axis in axes[-1]:
        axis.set_xlabel("logsnr at the stop (noise → data)", fontsize=9)
    return figure


def _draw_panel(axis: Axes, readings: pd.DataFrame, edge: float) -> None:
    for line, reading in enumerate(readings.itertuples()):
        if np.isnan(reading.stop):
            axis.text(edge, line, "not finite", fontsize=6, ha="right", va="center")
            continue
        axis.plot(
            [reading.stop_low, reading.stop_high], [line] * 2, color="#555555", linewidth=1.4, solid_capstyle="butt"
        )
        face = "black" if reading.verdict == EARLY else "white"
        axis.plot(
            reading.stop, line, VERDICT_MARKS[reading.verdict], color="black", markerfacecolor=face, markersize=4.5
        )
    axis.grid(axis="x", linewidth=0.4, color="#dddddd")


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
