r"""Does the noisy autoencoder foresee which latent dimension, and which stop, a trained diffusion model is best at?

Claim ([OS], arXiv 2510.08409 v2): encode, add noise, decode; the (latent dimension, stopping time) with the smallest distance
to the data is what a latent diffusion model should use, no diffusion training needed. Here one diffusion model per latent
dimension and seed is trained and measured at every stop of its chain; each predictor chooses from the data alone, and pays
its *regret*: the distance of the trained model at its choice over the smallest of all trained models and stops, minus 1.

Predictors: the noisy autoencoder, as a model that has learned the law of the latents and is sampled with the same Euler steps;
the noisy autoencoder without stopping ("reconstruction distance", its last level);
reconstruction error (mean squared error of held-out images); interpolated latents (distance of decoded midpoints of nearest
latent neighbours). The last three choose a dimension and never stop early.

A model *counts* only when it is trained: its last fifth of steps improved its squared Fréchet distance by less than 2 %, and
that distance is at most twice its autoencoder's reconstruction distance. The others are listed as under-trained; regrets
over all models, trained or not, are given too.

    python -m experiments.noisy_autoencoder                  # digits
    python -m experiments.noisy_autoencoder --data=mnist.npz --features=pixels,classifier \
        --latent_dims=2,4,6,8,12,16,24,32 --n=2000 --reference=3000 --training_steps=2500 \
        --autoencoder_steps=1000 --samples=2048 --stops=10

The second takes 46 to 66 minutes on one core; the numbers obtained stand in docs/results.md#noisy_autoencoder.
"""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from experiments import launch
from experiments.launch import Results, redeclared, setting
from experiments.launch.diffusion import LEAST, DiffusionSettings, ImageData
from ldmjax import latent_diffusion, predictors, stopping
from ldmjax.autoencoders import reconstruction_error
from ldmjax.data import Dataset
from ldmjax.job import Job
from ldmjax.latent_diffusion import DiffusionModel, Split
from ldmjax.predictors import Candidate
from ldmjax.training import TrainingConfig

DIMS = (2, 4, 6, 8, 12, 16, 32, 64)
FIRST_LOGSNR = -3.0  # stops noisier than that are not compared
QUICK = {
    "latent_dims": (2, 4, 8),
    "seeds": (0,),
    "training_steps": 500,
    "autoencoder_steps": 200,
    "samples": 512,
    "sampling_steps": 100,
    "stops": 10,
    "hidden": 64,
    "n": 500,
    "reference": 500,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DiffusionSettings):
    """What to train and compare."""

    autoencoder: str = setting("conv", "Kind of autoencoder, with vector latents.", choices=("pca", "conv", "kl", "vq"))
    latent_dims: tuple[int, ...] | None = setting(
        None, f"Latent dimensions; those of {','.join(map(str, DIMS))} up to D if not given.", low=1, high=100_000
    )
    n: int | None = setting(None, "Training images; half, at most 5000, if not given.", low=LEAST, high=1_000_000)
    readout: str = setting(
        "rescaled", "Of stopped states, and of the noisy autoencoder.", choices=stopping.NOISY_READOUTS
    )
    samples: int = setting(4096, "Generated images per model, even.", low=512, high=1_048_576)
    sampling_batch: int = redeclared(DiffusionSettings, "sampling_batch", 512)
    training_steps: int = setting(4000, "Optimiser steps of every diffusion model.", low=2, high=10_000_000)
    learning_rate: float = setting(1e-3, "Peak rate of the diffusion models.", low=1e-8)
    hidden: int = setting(256, "Width of the diffusion models' MLP.", low=1, high=16_384)
    blocks: int = setting(2, "Residual blocks of the MLP.", low=0, high=64)
    autoencoder_steps: int = redeclared(DiffusionSettings, "autoencoder_steps", 2000)
    runs_per_batch: int | None = launch.per_batch_setting()

    def resolved(self, dataset: Dataset) -> "Config":
        """The settings with what the data set decides."""
        n = self.n or min(len(dataset.samples) // 2, 5000)
        dims = self.latent_dims or tuple(d for d in DIMS if d <= dataset.dim)
        return dataclasses.replace(self, n=n, latent_dims=dims)

    def check_models(self, dataset: Dataset) -> None:
        config = self.resolved(dataset)
        super(Config, config).check_models(dataset)
        config.check_latent_dims(dataset)
        launch.check_precision(config, [config.autoencoder])
        config.check_latent_shapes(
            "latent_dims", config.autoencoder, [(d,) for d in config.latent_dims], dataset, n=config.n
        )

    @property
    def compared(self) -> np.ndarray:
        """Which of the sampler's stops are compared, a mask."""
        return self.sampling.logsnrs >= FIRST_LOGSNR

    @property
    def logsnrs(self) -> np.ndarray:
        """Logsnr of these stops ``[S]``; the last is the end of the chain."""
        return self.sampling.logsnrs[self.compared]

    @property
    def mlp(self) -> TrainingConfig:
        """Network and training of the diffusion models."""
        return self.network(model="mlp", hidden=self.hidden, blocks=self.blocks)


def plan(config: Config, data: ImageData) -> list[launch.Stage]:
    """What `compute` does."""
    config = config.resolved(data.dataset)
    shapes = {config.autoencoder: [(d,) for d in config.latent_dims]}
    runs, stops = len(config.seeds) * len(config.latent_dims), len(config.logsnrs)
    return [
        *config.autoencoder_stages(shapes, data.dataset.image_shape),
        *config.model_stages([(config.mlp, d) for d in config.latent_dims], times_sampled=2),
        launch.Stage(stage="decode and measure sets of images", runs=runs * (stops + 2)),
        launch.Stage(stage="noisy autoencoder, sets of images", runs=runs * stops),
    ]


def compute(config: Config, data: ImageData, job: Job) -> Results:
    """Trains, samples, predicts and compares.

    Arrays, with R models seen through a measure (the rows whose ``record`` is "model") and S stops:
      logsnr ``[S]``: of the stops;
      model, noisy ``[R, S]``: distance of the diffusion model, and of the noisy autoencoder;
      model_standard_error, noisy_standard_error ``[R, S]``.
    """
    config.check_features_unchanged(data, job)
    config = config.resolved(data.dataset)
    splits = config.splits(data.dataset)
    measures = config.measures(data, splits)
    with config.blaming("latent_dims"):
        models, training_seconds = train(config, splits, job)

        def measured_earlier(index: int) -> tuple[dict, float]:
            model, begin = models[index].at_snapshot(), time.perf_counter()
            states = latent_diffusion.sample_states(model, config.sampling, what="earlier chains", job=job)
            seconds = time.perf_counter() - begin
            return latent_diffusion.stopping_pseudo_values(model, states[-1:], measures[model.seed]), seconds

        earlier = latent_diffusion.map_models(measured_earlier, models, what="sampled at 80 % of training", job=job)

        def measured(index: int) -> tuple[list[Candidate], float]:
            model = models[index]
            states = latent_diffusion.sample_states(model, config.sampling, job=job)
            return measure(model, states, earlier[index][0], splits[model.seed], measures[model.seed], config)

        found = latent_diffusion.map_models(measured, models, what="sampled and predicted", job=job)
    candidates = sorted(
        (candidate for own, _ in found for candidate in own),
        key=lambda c: (c.features, c.metric, c.seed, c.latent_dim),
    )
    # Of a stage that was interrupted, the seconds since it was resumed.
    costs = {
        "training": training_seconds / len(models),
        "sampling": float(np.mean([seconds for _, seconds in earlier])),
        "prediction": float(np.mean([seconds for _, seconds in found])),
    }
    rows, arrays = make_rows(candidates, config, data.dataset), make_arrays(candidates, config)
    return Results(rows=rows, arrays=arrays, metadata={"costs": costs})


def train(config: Config, splits: Mapping[int, Split], job: Job) -> tuple[list[DiffusionModel], float]:
    """Diffusion models of all seeds and dimensions, and the seconds that they trained."""
    autoencoders = latent_diffusion.fit_autoencoders(
        splits,
        {config.autoencoder: [(d,) for d in config.latent_dims]},
        job=job,
        steps=config.autoencoder_steps,
        precision=config.precision,
    )
    begin, seeds = time.perf_counter(), [seed for seed, _, _ in autoencoders]
    models = latent_diffusion.train_models(
        list(autoencoders.values()),
        [config.mlp] * len(seeds),
        [splits[seed] for seed in seeds],
        seeds=seeds,
        learning_rate=config.learning_rate,
        snapshot=max(1, int(0.8 * config.training_steps)),
        runs_per_batch=config.runs_per_batch,
        job=job,
    )
    return models, job.keep("seconds of training", lambda: time.perf_counter() - begin)


def measure(
    model: DiffusionModel, states: np.ndarray, earlier: Mapping, split: Split, measures: Mapping, config: Config
) -> tuple[list[Candidate], float]:
    """One diffusion model in every measure, and the seconds that the noisy autoencoder took.

    Args:
      model: the model.
      states: its states ``[stops, N, d]``.
      earlier: its pseudo-values ``[K, 1]`` at its snapshot, by measure.
      split: its images.
      measures: feature spaces by name.
      config: of the experiment.
    """
    autoencoder = model.autoencoder
    read = latent_diffusion.read_out(states, config.sampling, config.readout)[config.compared]
    curves = latent_diffusion.stopping_pseudo_values(model, read, measures)
    begin = time.perf_counter()
    z = autoencoder.standardise(autoencoder.encode(split.train))
    noisy = stopping.noisy_autoencoder(
        z,
        model.decode,
        measures,
        logsnrs=config.logsnrs,
        samples=max(config.samples, 2 * len(z)),
        readout=config.readout,
        chain=config.sampling.chain,
        seed=model.seed,
        report=lambda line: None,
    )
    seconds = time.perf_counter() - begin
    interpolation = latent_diffusion.mean_distances(model.decode(predictors.interpolated_latents(z)), measures)
    floor = latent_diffusion.mean_distances(split.train, measures)
    shared = {
        "seed": model.seed,
        "latent_dim": model.spec.latent_dim,
        "reconstruction_error": reconstruction_error(autoencoder, split.reference),
        "memorisation": latent_diffusion.memorisation(model.decode(states[-1]), split),
        "failed_at": model.failed_at,
    }
    return [
        Candidate(
            **shared,
            features=space,
            metric=metric,
            model=curve,
            noisy=noisy[space, metric],
            earlier=earlier[space, metric][:, 0],
            interpolation=interpolation[space, metric],
            floor=floor[space, metric],
        )
        for (space, metric), curve in curves.items()
    ], seconds


def make_rows(candidates: list[Candidate], config: Config, dataset: Dataset) -> list[dict]:
    """One row per candidate, then one per selection and one per measure's claims; ``record`` says which."""
    trained = predictors.trained_models(candidates)
    about = config.about(dataset)
    for name in ("autoencoder", "readout", "batch_size", "learning_rate", "hidden"):
        about[name] = getattr(config, name)
    about["precision"] = latent_diffusion.precision_used(config.autoencoder, "mlp", asked=config.precision)
    rows = []
    for c in candidates:
        read = {
            f"{curve}_{name}": value
            for curve in ("model", "noisy")
            for name, value in stopping.read_stopping_curve(getattr(c, curve)).record(logsnr=config.logsnrs).items()
        }
        names = ("improvement", "excess", "reconstruction_error", "interpolation", "floor", "memorisation")
        where = {name: getattr(c, name) for name in ("seed", "latent_dim", "features", "metric")}
        numbers = {name: getattr(c, name) for name in names}
        state = {"trained": c.identity in trained, "diverged_at_step": c.failed_at}
        rows.append({"record": "model", **where, **read, **state, **numbers, **about})
    for s in predictors.score_predictors(candidates, trained):
        where = {
            name: [[seed, d, config.logsnrs[k]] for seed, (d, k) in getattr(s, name).items()]
            for name in ("chosen", "best")
        }
        rows.append({"record": "comparison", **s._asdict(), "dims": list(s.dims.items()), **where, **about})
    return rows + [{"record": "claims", **c._asdict(), **about} for c in predictors.count_claims(candidates, trained)]


def make_arrays(candidates: list[Candidate], config: Config) -> dict[str, np.ndarray]:
    """The curves of candidates."""
    arrays = {"logsnr": config.logsnrs}
    for name in ("model", "noisy"):
        pseudo = np.stack([getattr(c, name) for c in candidates])
        arrays[name] = pseudo.mean(axis=1)
        arrays[f"{name}_standard_error"] = pseudo.std(axis=1, ddof=1) / np.sqrt(pseudo.shape[1])
    return arrays
