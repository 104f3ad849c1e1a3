"""Latent diffusion models of images: splits, autoencoders, training, sampling, stopping curves.

A diffusion model learns the *standardised* latents of its training images (autoencoders/interface.py), is sampled with as
many steps as the user wants, and each state on the way is decoded and compared with held-out images in every feature space.
With the identity as autoencoder it is a pixel model. *Progress* is the share of sampling steps done; 1 is the end.

Readouts (samplers.py) of a state of the rectified flow: "state" decodes it as it is, "rescaled" divides by
sqrt((1 - s)^2 + s^2) first. States of a variance-preserving process are "rescaled" already.

All models of one seed are sampled from the same noise: a latent of d entries starts from the first d of the noise of a longer
one.

    splits = {seed: split_images(dataset, n=1000, reference=500, seed=seed) for seed in (0, 1)}
    autoencoders = fit_autoencoders(splits, {"pca": [(4,), (8,)]})
    seeds = [seed for seed, *_ in autoencoders]
    models = train_models(
        list(autoencoders.values()), [config] * len(seeds), [splits[seed] for seed in seeds], seeds=seeds
    )
    states = sample_states(models[0], SamplingConfig())
    measures = make_measures([features.load("pixels", dataset)], splits[0].reference)
    curves = stopping_pseudo_values(models[0], states, measures)
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from flax import nnx
from jaxtyping import Float

from ldmjax import devices, metrics, random, samplers, schedules, stopping, sweeps, training
from ldmjax.autoencoders import AutoencoderConfig, FittedAutoencoder, fit
from ldmjax.data import Dataset
from ldmjax.features import Features
from ldmjax.job import NO_JOB, Job
from ldmjax.networks import as_denoiser

MIXED = ("conv", "kl", "vq", "unet")  # networks that compute in the precision that is asked for
BLOCKS = 64  # of the jackknife, in every curve
PROCESSES = ("rectified_flow", "vp")
# Peak rates: at 0.005 an MLP of two blocks on 64 pixels sends one sample in thousands to infinity.
LEARNING_RATES = {"mlp": 0.002, "unet": 0.005}
EARLY = (0.0, 0.1, 0.2, 0.3, 0.4)  # progress of stops that show the chain; the others lie in its second half


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How models are sampled and where their chains are looked at.

    Attributes:
      process: "rectified_flow" (Euler steps, uniform in time, down to 0) or "vp" (DDIM steps, uniform in logsnr, -10 to 9).
      steps: of every chain.
      samples: generated images per model, an even number.
      stops: number in the second half of the chain, denser towards its end, which is the last one.
      batch: samples that a chain holds at once, at most; on a CPU a few fit its cache and take half the time of many.
    """

    process: str = "rectified_flow"
    steps: int = 250
    samples: int = 2048
    stops: int = 20
    batch: int = 128

    def __post_init__(self):
        if self.process not in PROCESSES:
            raise ValueError(f"process must be one of {', '.join(PROCESSES)}, got {self.process!r}")
        if self.steps < 2 or self.stops < 2 or self.batch < 1:
            raise ValueError(f"need steps, stops >= 2 and batch >= 1, got {self.steps}, {self.stops}, {self.batch}")
        if self.samples < 2 * BLOCKS or self.samples % 2:
            raise ValueError(f"samples must be even and at least {2 * BLOCKS}, got {self.samples}")

    @property
    def chunk(self) -> int:
        """Samples of one chain: the largest divisor of ``samples`` up to ``batch``."""
        return next(size for size in range(min(self.samples, self.batch), 0, -1) if self.samples % size == 0)

    @property
    def schedule(self) -> schedules.ContinuousSchedule:
        """The forward process."""
        return schedules.RectifiedFlow() if self.process == "rectified_flow" else schedules.LinearVP()

    @property
    def sampler(self) -> str:
        """Its name in samplers.py."""
        return "euler_ode" if self.process == "rectified_flow" else "ddim"

    @property
    def times(self) -> np.ndarray:
        """``[steps + 1]``, from noise to data."""
        if self.process == "rectified_flow":
            return schedules.uniform_times(self.schedule, self.steps)
        return schedules.uniform_logsnr_times(self.schedule, self.steps, logsnr_min=-10.0, logsnr_max=9.0)

    @property
    def chain(self) -> stopping.Chain | None:
        """The sampler as the noisy autoencoder takes it; None where its steps are not even in time."""
        uniform = self.process == "rectified_flow"
        return stopping.Chain(self.schedule, self.steps, self.sampler) if uniform else None

    @property
    def stop_steps(self) -> np.ndarray:
        """Step counts ``[S]`` after which a state is read; a coarse chain has fewer than asked for."""
        late = 1.0 - 0.5 * np.linspace(1.0, 0.0, self.stops) ** 1.5
        return np.unique(np.round(self.steps * np.concatenate([EARLY, late])).astype(int))

    @property
    def progress(self) -> np.ndarray:
        """Share of the steps done at each stop ``[S]``."""
        return self.stop_steps / self.steps

    @property
    def logsnrs(self) -> np.ndarray:
        """Logsnr at each stop ``[S]``; infinite at both ends of the rectified flow."""
        return self.schedule.logsnr(self.times[self.stop_steps])

    @property
    def readouts(self) -> tuple[str, ...]:
        """Readouts that differ for this process."""
        return ("state", "rescaled") if self.process == "rectified_flow" else ("rescaled",)

    @property
    def trained_range(self) -> dict[str, float]:
        """Range of logsnr that a network must be trained on: all times of the chain at which it is asked."""
        logsnr = self.schedule.logsnr(self.times[:-1])
        widest = float(np.ceil(np.max(np.abs(logsnr[np.isfinite(logsnr)]))))
        return {"logsnr_min": -widest, "logsnr_max": widest}


class Split(NamedTuple):
    """Images of one seed: ``train`` ``[n, *image_shape]`` for all training, ``reference`` ``[m, *image_shape]`` held out."""

    train: np.ndarray
    reference: np.ndarray


def split_images(dataset: Dataset, *, n: int, reference: int, seed: int) -> Split:
    """Draws n training images and at most ``reference`` of the rest, by ``seed``."""
    train, held_out = dataset.split_indices(n=n, seed=seed)
    return Split(*(dataset.images(dataset.samples[index]) for index in (train, held_out[:reference])))


def make_measures(features: Sequence[Features], reference: Float[np.ndarray, "m ..."]) -> dict[str, metrics.Measure]:
    """Returns the feature spaces by name, each with the held-out images seen through it."""
    return {f.name: metrics.Measure(f, metrics.FeatureReference(f(reference), blocks=BLOCKS)) for f in features}


def distances_of(
    images: Float[np.ndarray, "N ..."], measures: Mapping[str, metrics.Measure]
) -> dict[tuple[str, str], np.ndarray]:
    """Returns pseudo-values ``{(feature space, metric): [BLOCKS]}`` of images, an odd last one left out.

    Of the training images it is the noise floor; of what an autoencoder makes of them, the best that its latents allow.
    """
    halves = images[: len(images) // 2 * 2].reshape(2, -1, *images.shape[1:])
    return metrics.measure(halves, measures)


def mean_distances(
    images: Float[np.ndarray, "N ..."], measures: Mapping[str, metrics.Measure]
) -> dict[tuple[str, str], float]:
    """Returns the bias-corrected distance of images by (feature space, metric): the mean of `distances_of`."""
    return {key: float(pseudo.mean()) for key, pseudo in distances_of(images, measures).items()}


def memorisation(generated: Float[np.ndarray, "N ..."], split: Split, *, count: int = 1000) -> float:
    """Returns how near generated images are to training images: the median distance over that of held-out ones.

    Args:
      generated: images.
      split: the model's.
      count: of either that are looked at, from the first.

    Returns:
      About 1 for fresh draws of the law, 0 for copies.
    """
    medians = [np.median(metrics.nearest_distances(x[:count], split.train)) for x in (generated, split.reference)]
    return float(medians[0] / medians[1])


def fit_autoencoders(
    splits: Mapping[int, Split],
    shapes: Mapping[str, Sequence[tuple[int, ...]]],
    *,
    job: Job = NO_JOB,
    **options: Any,
) -> dict[tuple[int, str, tuple[int, ...]], FittedAutoencoder]:
    """Fits autoencoders of every kind and latent shape to the training images of every seed.

    Args:
      splits: images by seed.
      shapes: latent shapes by kind.
      job: keeps checkpoints and shows progress.
      **options: of `AutoencoderConfig`.

    Returns:
      Autoencoders by (seed, kind, latent shape), in this order.

    Raises:
      ValueError: as `autoencoders.fit`, which alone knows which latents an autoencoder of these images can have.
    """
    found = {}
    for seed, split in splits.items():
        for kind, wanted in shapes.items():
            config = AutoencoderConfig(kind=kind, **options)
            fitted = fit(split.train, wanted, config, seeds=[seed] * len(wanted), job=job)
            found |= {(seed, kind, shape): one for shape, one in zip(wanted, fitted, strict=True)}
    return found


def precision_used(*networks: str, asked: str) -> str:
    """Returns the precisions that are in use, as records name them, in ``networks``: kinds of autoencoders, model classes."""
    used = {asked if name in MIXED else "float32" for name in networks if name != "identity"}
    return " and ".join(sorted(used))


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionModel:
    """One trained diffusion model.

    Attributes:
      autoencoder: between its latents and images.
      seed: of the split, the training and the sampling.
      spec: the run.
      trained: the sweep that it was trained in, of which it is run ``index``.
      index: its row there.
    """

    autoencoder: FittedAutoencoder
    seed: int
    spec: sweeps.RunSpec
    trained: sweeps.TrainedRuns
    index: int

    @property
    def failed_at(self) -> int | None:
        """The training step that first was not finite, or None."""
        step = int(self.trained.failed_at[self.index])
        return None if step < 0 else step

    def at_snapshot(self) -> "DiffusionModel":
        """Returns the model as it was at the snapshot of its training."""
        return dataclasses.replace(self, trained=dataclasses.replace(self.trained, params=self.trained.snapshot))

    def decode(self, states: Float[np.ndarray, "N ..."]) -> np.ndarray:
        """Returns the images ``[N, *image_shape]`` of standardised latents, flat or in their shape."""
        autoencoder = self.autoencoder
        return autoencoder.decode(autoencoder.unstandardise(states.reshape(-1, *autoencoder.latent_shape)))


def train_models(
    autoencoders: Sequence[FittedAutoencoder],
    configs: Sequence[training.TrainingConfig],
    splits: Sequence[Split],
    *,
    seeds: Sequence[int],
    learning_rate: float | None = None,
    snapshot: int | None = None,
    runs_per_batch: int | None = None,
    job: Job = NO_JOB,
) -> list[DiffusionModel]:
    """Trains one diffusion model per autoencoder; those with equal configurations in one program, vectors padded.

    Args:
      autoencoders: one per model, with distinct names for one seed.
      configs: one per model.
      splits: one per model: what it learns from.
      seeds: one per model.
      learning_rate: peak rate; None for that of `LEARNING_RATES`.
      snapshot: as in `sweeps.train_scores`.
      runs_per_batch: as in `sweeps.train_scores`.
      job: keeps checkpoints and shows progress.
    """
    models: list[DiffusionModel | None] = [None] * len(autoencoders)
    for config in dict.fromkeys(configs):
        group = [i for i, c in enumerate(configs) if c == config]
        specs, latents = [], {}
        for i in group:
            z = autoencoders[i].standardise(autoencoders[i].encode(splits[i].train)).reshape(len(splits[i].train), -1)
            spec = sweeps.RunSpec(
                model=config.model_name,
                data=autoencoders[i].name,
                training_draws="sample",
                latent_dim=z.shape[1],
                seed=seeds[i],
                n=len(z),
                learning_rate=learning_rate or LEARNING_RATES.get(config.model_name, LEARNING_RATES["mlp"]),
            )
            specs.append(spec)
            latents[spec.data, spec.seed, spec.n] = sweeps.Latents(sample=z, fresh_factor=np.zeros((z.shape[1], 0)))
        trained = sweeps.train_scores(specs, latents, config, snapshot=snapshot, runs_per_batch=runs_per_batch, job=job)
        for index, i in enumerate(group):
            models[i] = DiffusionModel(
                autoencoder=autoencoders[i], seed=seeds[i], spec=specs[index], trained=trained, index=index
            )
    return models


def map_models(
    compute: Callable[[int], Any], models: Sequence[DiffusionModel], *, what: str, job: Job = NO_JOB
) -> list[Any]:
    """Returns ``compute(index)`` for every model; each result is kept when it is finished.

    Args:
      compute: takes the index of a model, gives what a job can keep, and depends on nothing but the job.
      models: with distinct specs.
      what: is done with a model, for the names of pieces and the lines.
      job: keeps results and shows progress.
    """
    names = [f"{what}/{model.spec.name}" for model in models]
    return job.map(lambda indices: map(compute, indices), names, label=f"models {what}")


@functools.lru_cache(maxsize=16)
def _chain_program(network: training.TrainingConfig, width: int, sampling: SamplingConfig) -> devices.MappedRuns:
    """Maps keys to the states ``[S, chunk, width]`` of a chain, given (parameters, inputs) of a trained network."""
    graphdef = training.graph_definition(network, width)

    def chain(model, key):
        params, inputs = model
        start_key, chain_key = jax.random.split(key)
        # Latents of all lengths start from the same noise.
        start = random.normal(start_key, sampling.chunk, width) * inputs.mask
        return samplers.sample(
            as_denoiser(nnx.merge(graphdef, params), inputs),
            sampling.schedule,
            start,
            chain_key,
            times=sampling.times,
            stops=sampling.stop_steps,
            sampler=sampling.sampler,
            statistic=lambda z, t: z,
            mask=inputs.mask,
        )

    return devices.map_runs(chain, samples=True, small=network.model != "unet")


def sample_states(
    model: DiffusionModel,
    sampling: SamplingConfig,
    *,
    what: str = "chains",
    job: Job = NO_JOB,
) -> np.ndarray:
    """Samples one model, as many chains at a time as the devices hold best.

    Args:
      model: trained.
      sampling: how.
      what: is sampled, for the name of what is kept on the way.
      job: keeps the chains that are done, every so many seconds: few models take that long.

    Returns:
      States ``[S, samples, d]`` at every stop.
    """
    trained, chains = model.trained, sampling.samples // sampling.chunk
    program = _chain_program(trained.config, trained.width, sampling)
    own = jax.tree.map(lambda x: x[model.index], (trained.params, trained.runs.inputs))
    # A key of the seed alone: all models of a seed start from the same noise.
    keys = jax.random.split(random.stream(random.key(model.seed), "chains"), chains)
    size = min(chains, devices.items_at_once(chains, _bytes_of_chain(trained.config, trained.width, sampling)))
    name, kept = f"{what}/{model.spec.name}", time.perf_counter()
    states = job.get(name) or []
    while len(states) < chains:
        # The last ones are padded: another number would be another program.
        numbers = np.minimum(len(states) + np.arange(size), chains - 1)
        states += list(devices.collect(program(own, keys[numbers]), min(size, chains - len(states))))
        if time.perf_counter() - kept > job.every and len(states) < chains:
            job.put(name, states)
            kept = time.perf_counter()
            job.log(f"{model.spec.name}: sampled {len(states)}/{chains} chains")
    return np.concatenate(states, axis=1)[..., : model.spec.latent_dim]


def _bytes_of_chain(network: training.TrainingConfig, width: int, sampling: SamplingConfig) -> float:
    """Estimates one chain's bytes: its states at all stops, and a dozen of the network's widest activations."""
    height, depth = network.map_shape[:2] if network.model == "unet" else (1, 1)
    widest = height * depth * max(network.channels[0] if network.channels else network.hidden, 1)
    return 4.0 * sampling.chunk * (2 * len(sampling.stop_steps) * width + 12 * widest)


def read_out(states: Float[np.ndarray, "S N d"], sampling: SamplingConfig, readout: str) -> np.ndarray:
    """Returns states at the stops as they are decoded, ``[S, N, d]`` float32.

    Args:
      states: of `sample_states`.
      sampling: with which they were made.
      readout: out of ``sampling.readouts``.

    Raises:
      ValueError: for another readout.
    """
    if readout not in sampling.readouts:
        allowed = ", ".join(sampling.readouts)
        raise ValueError(f"readout must be one of {allowed} for {sampling.process}, got {readout!r}")
    t = sampling.times[sampling.stop_steps]
    scale = np.hypot(sampling.schedule.alpha(t), sampling.schedule.sigma(t)) if readout == "rescaled" else 1.0
    return (states / np.reshape(scale, (-1, 1, 1))).astype(np.float32)


def stopping_pseudo_values(
    model: DiffusionModel, states: Float[np.ndarray, "S N d"], measures: Mapping[str, metrics.Measure]
) -> dict[tuple[str, str], np.ndarray]:
    """Returns pseudo-values ``{(feature space, metric): [BLOCKS, S]}`` of decoded states, for `read_stopping_curve`."""
    decoded = (model.decode(z) for z in states)
    halves = (images.reshape(2, -1, *images.shape[1:]) for images in decoded)
    return metrics.measure_curves(halves, measures)
