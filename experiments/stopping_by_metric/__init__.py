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

Takes 7 minutes of processor time, about half of it on two cores. Obtained (digits, rectified flow, PCA and convolutional
autoencoders, d = 4, 8, 16, 32, three seeds, 24 runs): Fréchet distance, MMD and sliced W2 between *pixels* want to stop at
logsnr 3.3, 2.2 and 1.7 (medians) and say "stop early" in 16, 22 and 24 runs; between *classifier features* the same three
want 9.6, 8.9 and 9.6, next to the end, and say so in 6, 9 and 8. Intervals overlap in 0-46 % of runs across the two spaces,
in 88-92 % among metrics of classifier features, in 25-79 % among those of pixels; sliced W2 of pixels and Fréchet distance of
classifier features contradict each other in 58 % of runs. The space decides more than the metric.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from scipy import stats

from experiments import image_models, image_plans, plans
from ldmjax import metrics, stopping, training
from ldmjax.checkpoints import NOTHING_KEPT, Store
from ldmjax.data import Dataset
from ldmjax.features import Features

Measure = tuple[str, str]  # (feature space, metric)
AUTOENCODERS = ("pca", "conv", "kl", "vq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Which models are trained and how their chains are read.

    Attributes:
      autoencoders: kinds, out of `AUTOENCODERS`.
      latent_dims: of vector latents.
      seeds: of the split, both trainings, and sampling.
      n: training images.
      reference: held-out images to compare with, at most.
      readout: of a stopped state, see image_models.
      autoencoder_steps: optimiser steps of each trained autoencoder.
      training_steps: optimiser steps of each diffusion model.
      hidden: width of its MLP.
      sampling: process, steps, samples and stops.
      precision: of trained autoencoders, out of `convolutions.PRECISIONS`.
    """

    autoencoders: tuple[str, ...] = ("pca", "conv")
    latent_dims: tuple[int, ...] = (4, 8, 16, 32)
    seeds: tuple[int, ...] = (0, 1, 2)
    n: int = 1200
    reference: int = 2000
    readout: str = "rescaled"
    autoencoder_steps: int = 1000
    training_steps: int = 2000
    hidden: int = 128
    sampling: image_models.SamplingConfig = image_models.SamplingConfig()
    precision: str = "float32"

    def __post_init__(self):
        if self.readout not in self.sampling.readouts:
            allowed = ", ".join(self.sampling.readouts)
            raise ValueError(f"readout must be one of {allowed} for {self.sampling.process}, got {self.readout!r}")

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


@dataclasses.dataclass(frozen=True, kw_only=True)
class Run:
    """One model's stopping curves, read.

    Attributes:
      autoencoder: its kind.
      latent_dim, seed: of the run.
      failed_at: the training step that was not finite, or None.
      readings: stopping curve of every measure.
      floors: distance of the training images to the reference.
      reconstructions: distance of what the autoencoder makes of them.
    """

    autoencoder: str
    latent_dim: int
    seed: int
    failed_at: int | None
    readings: dict[Measure, stopping.StoppingResult]
    floors: dict[Measure, float]
    reconstructions: dict[Measure, float]

    @property
    def label(self) -> str:
        """For tables and figures."""
        return f"{self.autoencoder} {self.latent_dim}, seed {self.seed}"

    @property
    def defined(self) -> bool:
        """Whether every measure found a t*."""
        return all(reading.best_stop is not None for reading in self.readings.values())


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreement:
    """Measures compared two by two over runs, as the module says; arrays are ``[M, M]``, row measure against column.

    Attributes:
      measures: the M measures.
      runs: number of runs compared.
      overlap, same, opposed: shares of runs.
      difference: mean of t*(row) - t*(column), logsnr.
      half_width: of the difference's 90 % interval; NaN with one run.
    """

    measures: tuple[Measure, ...]
    runs: int
    overlap: np.ndarray
    same: np.ndarray
    opposed: np.ndarray
    difference: np.ndarray
    half_width: np.ndarray


def _network(config: Config) -> training.TrainingConfig:
    """Of every diffusion model."""
    return training.TrainingConfig(
        model="mlp",
        steps=config.training_steps,
        batch_size=256,
        hidden=config.hidden,
        blocks=2,
        schedule=config.sampling.schedule,
        **config.sampling.trained_range,
    )


def plan(dataset: Dataset, spaces: Sequence[Features], config: Config) -> list[plans.Stage]:
    """The stages of `run`."""
    shapes = {kind: [(d,) for d in config.latent_dims] for kind in config.autoencoders}
    seeds, sampling = len(config.seeds), config.sampling
    dims = seeds * len(config.autoencoders) * list(config.latent_dims)
    return [
        *image_plans.autoencoders(shapes, dataset.image_shape, seeds=seeds, steps=config.autoencoder_steps),
        *image_plans.diffusion([(_network(config), d) for d in dims], sampling),
        image_plans.measuring(
            "decode and measure", sets=len(dims) * (np.count_nonzero(config.read) + 1), samples=sampling.samples,
            reference=config.reference, dims=[space.dim for space in spaces], pixels=dataset.dim,
            decoding=image_plans.decoding(shapes, dataset.image_shape),
        ),
        plans.host("read curves, draw figures", runs=1, seconds=5.0),
    ]  # fmt: skip


def run(
    dataset: Dataset,
    spaces: Sequence[Features],
    config: Config,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> list[Run]:
    """Trains and samples all models, and reads every curve.

    Args:
      dataset: with samples.
      spaces: feature spaces.
      config: of the experiment.
      report: receives progress lines.
      store: where trainings and measured models are kept.

    Returns:
      Runs, by seed, then autoencoder, then latent dimension.
    """
    problems = {seed: _make_problem(dataset, spaces, config, seed, store) for seed in config.seeds}
    models, kinds = _train(problems, config, store, report)

    def measured(place: int) -> Run:
        model = models[place]
        states = image_models.sample_states(model, config.sampling, store=store, report=report)
        return _read(model, kinds[place], states, problems[model.seed], config)

    return image_models.of_each_model(models, measured, what="sampled and measured", store=store, report=report)


class _Problem(NamedTuple):
    """What the models of one seed share: images, feature spaces, and the training images' distance to the reference."""

    split: image_models.Split
    measures: Mapping[str, metrics.Measure]
    floors: dict[Measure, float]


def _make_problem(dataset, spaces, config, seed, store):
    split = image_models.split_images(dataset, n=config.n, reference=config.reference, seed=seed)
    measures = image_models.make_measures(spaces, split.reference)
    floors = store.piece(f"floors/seed{seed}", lambda: _means(image_models.distances_of(split.train, measures)))
    return _Problem(split, measures, floors)


def _train(problems, config, store, report):
    """All diffusion models, in one program, and the kinds of their autoencoders."""
    shapes = {kind: [(d,) for d in config.latent_dims] for kind in config.autoencoders}
    autoencoders, kept = [], {"store": store, "report": report}
    for seed, problem in problems.items():
        autoencoders += image_models.fit_autoencoders(
            problem.split, shapes, seed=seed, steps=config.autoencoder_steps, precision=config.precision, **kept
        )
    owners = [(seed, kind) for seed in problems for kind in shapes for _ in config.latent_dims]
    seeds, kinds = zip(*owners, strict=True)
    splits = [problems[seed].split for seed in seeds]
    models = image_models.train_models(autoencoders, [_network(config)] * len(seeds), splits, seeds=seeds, **kept)
    return models, kinds


def _read(model, kind, states, problem, config):
    """The `Run` of one model from its states ``[stops, N, d]``."""
    states = image_models.read_out(states, config.sampling, config.readout)[config.read]
    pseudo = image_models.stopping_pseudo_values(model, states, problem.measures)
    restored = model.autoencoder.decode(model.autoencoder.encode(problem.split.train))
    return Run(
        autoencoder=kind,
        latent_dim=model.spec.latent_dim,
        seed=model.seed,
        failed_at=model.failed_at,
        readings={measure: stopping.read_stopping_curve(p) for measure, p in pseudo.items()},
        floors=problem.floors,
        reconstructions=_means(image_models.distances_of(restored, problem.measures)),
    )


def _means(pseudo):
    return {measure: float(p.mean()) for measure, p in pseudo.items()}


def compare(runs: Sequence[Run], logsnrs: np.ndarray) -> Agreement:
    """The agreement of all measures over the runs in which each of them found a t*.

    Args:
      runs: of one experiment.
      logsnrs: of every stop ``[S]``, finite.

    Raises:
      ValueError: if there is no such run.
    """
    measures, runs = tuple(runs[0].readings), [r for r in runs if r.defined]
    if not runs:
        raise ValueError("no run has finite distances in every measure")

    def of(field):
        """``[R, M, 1]`` and ``[R, 1, M]``."""
        values = np.array([[getattr(r.readings[m], field) for m in measures] for r in runs])
        return values[:, :, None], values[:, None, :]

    (low, low_of_other), (high, high_of_other) = of("best_stop_low"), of("best_stop_high")
    verdict, of_other = of("verdict")
    early, none = stopping.VERDICTS[:2]
    opposed = ((verdict == early) & (of_other == none)) | ((verdict == none) & (of_other == early))
    best, best_of_other = of("best_stop")
    difference = logsnrs[best] - logsnrs[best_of_other]
    count = len(runs)
    half_width = np.full(difference.shape[1:], np.nan)
    if count > 1:
        half_width = stats.t.ppf(0.95, count - 1) * difference.std(axis=0, ddof=1) / np.sqrt(count)
    return Agreement(
        measures=measures,
        runs=count,
        overlap=np.mean((low <= high_of_other) & (low_of_other <= high), axis=0),
        same=np.mean(verdict == of_other, axis=0),
        opposed=np.mean(opposed, axis=0),
        difference=difference.mean(axis=0),
        half_width=half_width,
    )
