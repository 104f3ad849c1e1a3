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

The second takes 46 to 66 minutes on one core. Obtained with it, regret of the noisy autoencoder and of the others over models
that count, squared Fréchet distance of pixels: MNIST 1.7 % [1.0, 2.5] against .5 % [.1, 1.1], 19 models of 24; Fashion-MNIST
.5 % [.0, 1.5] against 4.9 % [3.7, 6.2], 23 of 24. Its stop at a given dimension is .5 and .4 % above the model's own best, the
end of sampling 1.1 and 3.7 %. On both, "stop early" was said 59 times, confirmed 58 times and never contradicted; "no gain" was
said 29 times and contradicted 10 times. Over all models, trained well or not, every predictor fails in classifier features (21
to 75 %).
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments import image_models, image_plans, plans
from experiments.image_models import DiffusionModel, SamplingConfig, Split
from experiments.noisy_autoencoder.predictors import (
    Case,
    Claims,
    Comparison,
    compare,
    count_claims,
    interpolated_latents,
)
from ldmjax import stopping
from ldmjax.autoencoders import reconstruction_error
from ldmjax.checkpoints import NOTHING_KEPT, Store
from ldmjax.data import Dataset
from ldmjax.features import Features
from ldmjax.training import TrainingConfig

__all__ = ["Case", "Claims", "Comparison", "Config", "Costs", "Outcome", "plan", "run"]

STILL_IMPROVING = 0.02
FAR_FROM_AUTOENCODER = 2.0
FIRST_LOGSNR = -3.0  # stops noisier than that are not compared


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to train and compare.

    Attributes:
      autoencoder: kind, see `ldmjax.autoencoders.KINDS`.
      latent_dims: of vector latents.
      seeds: each has its own split, autoencoders, diffusion models and noise.
      n: training images.
      reference: held-out images, at most.
      hidden, blocks: size of the diffusion models' MLP.
      training_steps, batch_size, learning_rate: of the diffusion models.
      autoencoder_steps: of trained autoencoders.
      sampling: of the diffusion models.
      readout: of their states, and of the noisy autoencoder.
      runs_per_batch: runs vmapped at once on each device, by default `devices.default_runs_per_batch`.
      precision: of trained autoencoders, out of `convolutions.PRECISIONS`.
    """

    autoencoder: str
    latent_dims: tuple[int, ...]
    seeds: tuple[int, ...]
    n: int
    reference: int
    hidden: int = 256
    blocks: int = 2
    training_steps: int = 4000
    batch_size: int = 256
    learning_rate: float = 1e-3
    autoencoder_steps: int = 2000
    sampling: SamplingConfig = SamplingConfig(samples=4096)
    readout: str = "rescaled"
    runs_per_batch: int | None = None
    precision: str = "float32"

    @property
    def kept(self) -> np.ndarray:
        """Which of the sampler's stops are compared, a mask."""
        return self.sampling.logsnrs >= FIRST_LOGSNR

    @property
    def logsnrs(self) -> np.ndarray:
        """Logsnr of these stops ``[S]``; the last is the end of the chain."""
        return self.sampling.logsnrs[self.kept]

    @property
    def network(self) -> TrainingConfig:
        """Of the diffusion models."""
        return TrainingConfig(
            model="mlp",
            steps=self.training_steps,
            batch_size=self.batch_size,
            hidden=self.hidden,
            blocks=self.blocks,
            schedule=self.sampling.schedule,
            **self.sampling.trained_range,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Costs:
    """Mean seconds: ``training`` and ``sampling`` of one diffusion model, ``prediction`` of one latent dimension.

    Of a stage that was interrupted, those since it was resumed.
    """

    training: float
    sampling: float
    prediction: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results.

    Attributes:
      cases: one per (seed, latent dimension, feature space, metric).
      trained: (seed, latent dimension, feature space) of models that count as trained.
      comparisons: predictors' choices, regrets and rank correlations.
      claims: the noisy autoencoder's verdicts and stops against the models' own.
      costs: seconds.
    """

    cases: list[Case]
    trained: set[tuple[int, int, str]]
    comparisons: list[Comparison]
    claims: list[Claims]
    costs: Costs


def plan(dataset: Dataset, spaces: Sequence[Features], config: Config) -> list[plans.Stage]:
    """The stages of `run`."""
    shapes = {config.autoencoder: [(d,) for d in config.latent_dims]}
    seeds, sampling = len(config.seeds), config.sampling
    dims, stops = seeds * list(config.latent_dims), len(config.logsnrs)
    measured = {
        "reference": config.reference, "dims": [space.dim for space in spaces], "pixels": dataset.dim,
        "decoding": image_plans.decoding(shapes, dataset.image_shape),
    }  # fmt: skip
    return [
        *image_plans.autoencoders(shapes, dataset.image_shape, seeds=seeds, steps=config.autoencoder_steps),
        *image_plans.diffusion([(config.network, d) for d in dims], sampling, times_sampled=2),
        image_plans.measuring("measure models", sets=len(dims) * (stops + 2), samples=sampling.samples, **measured),
        image_plans.measuring(
            "noisy autoencoder", sets=len(dims) * stops, samples=max(sampling.samples, 2 * config.n), **measured
        ),
        plans.host("read curves, draw figures", runs=1, seconds=10.0),
    ]


def run(
    dataset: Dataset,
    spaces: Sequence[Features],
    config: Config,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> Outcome:
    """Trains, samples, predicts and compares; the function behind the command.

    Args:
      dataset: with images.
      spaces: in which distances are measured.
      config: what to train.
      report: receives progress lines.
      store: where trainings and measured models are kept.
    """
    splits = {
        seed: image_models.split_images(dataset, n=config.n, reference=config.reference, seed=seed)
        for seed in config.seeds
    }
    measures = {seed: image_models.make_measures(spaces, split.reference) for seed, split in splits.items()}
    models, training_seconds = _train(splits, config, store, report)
    kept = {"store": store, "report": report}
    earlier_models = _earlier(models)

    def measured_earlier(place: int) -> tuple[dict, float]:
        model, begin = earlier_models[place], time.perf_counter()
        states = image_models.sample_states(model, config.sampling, what="earlier chains", **kept)
        seconds = time.perf_counter() - begin
        return image_models.stopping_pseudo_values(model, states[-1:], measures[model.seed]), seconds

    earlier = image_models.of_each_model(models, measured_earlier, what="sampled at 80 % of training", **kept)

    def measured(place: int) -> tuple[list[Case], float]:
        model = models[place]
        states = image_models.sample_states(model, config.sampling, **kept)
        return _measure(model, states, earlier[place][0], splits[model.seed], measures[model.seed], config)

    found = image_models.of_each_model(models, measured, what="sampled and predicted", **kept)
    cases = sorted(
        (case for cases, _ in found for case in cases), key=lambda c: (c.features, c.metric, c.seed, c.latent_dim)
    )
    trained = {(c.seed, c.latent_dim, c.features) for c in cases if c.metric == "w2" and is_trained(c)}
    return Outcome(
        cases=cases,
        trained=trained,
        comparisons=compare(cases, trained),
        claims=count_claims(cases, trained),
        costs=Costs(
            training=training_seconds,
            sampling=float(np.mean([seconds for _, seconds in earlier])),
            prediction=float(np.mean([seconds for _, seconds in found])),
        ),
    )


def is_trained(case: Case) -> bool:
    """Whether a model counts, by its squared Fréchet distance."""
    return not case.diverged and case.improvement < STILL_IMPROVING and case.excess <= FAR_FROM_AUTOENCODER


def _train(splits, config, store, report) -> tuple[list[DiffusionModel], float]:
    """Autoencoders and diffusion models of all seeds and dimensions; seconds of training per diffusion model."""
    shapes = {config.autoencoder: [(d,) for d in config.latent_dims]}
    pairs = [
        (seed, autoencoder)
        for seed, split in splits.items()
        for autoencoder in image_models.fit_autoencoders(
            split,
            shapes,
            seed=seed,
            steps=config.autoencoder_steps,
            precision=config.precision,
            store=store,
            report=report,
        )
    ]
    begin = time.perf_counter()
    models = image_models.train_models(
        [autoencoder for _, autoencoder in pairs],
        [config.network] * len(pairs),
        [splits[seed] for seed, _ in pairs],
        seeds=[seed for seed, _ in pairs],
        learning_rate=config.learning_rate,
        snapshot=max(1, int(0.8 * config.training_steps)),
        runs_per_batch=config.runs_per_batch,
        store=store,
        report=report,
    )
    seconds = store.piece("seconds of training", lambda: time.perf_counter() - begin)
    return models, seconds / len(models)


def _earlier(models: Sequence[DiffusionModel]) -> list[DiffusionModel]:
    """The models at their snapshots, after 80 % of training."""
    sweep = dataclasses.replace(models[0].trained, params=models[0].trained.snapshot)
    return [dataclasses.replace(model, trained=sweep) for model in models]


def _measure(
    model: DiffusionModel,
    states: np.ndarray,
    earlier: Mapping[tuple[str, str], np.ndarray],
    split: Split,
    measures: Mapping,
    config: Config,
) -> tuple[list[Case], float]:
    """All cases of one diffusion model, and the seconds that the noisy autoencoder took."""
    autoencoder = model.autoencoder
    read = image_models.read_out(states, config.sampling, config.readout)[config.kept]
    curves = image_models.stopping_pseudo_values(model, read, measures)
    begin = time.perf_counter()
    z = autoencoder.standardise(autoencoder.encode(split.train))
    noisy = stopping.noisy_autoencoder(
        z,
        model.decode,
        measures,
        logsnrs=config.logsnrs,
        samples=max(config.sampling.samples, 2 * len(z)),
        readout=config.readout,
        chain=config.sampling.chain,
        seed=model.seed,
        report=lambda line: None,
    )
    seconds = time.perf_counter() - begin
    interpolation = image_models.distances_of(model.decode(interpolated_latents(z)), measures)
    floor = image_models.distances_of(split.train, measures)
    shared = {
        "seed": model.seed,
        "latent_dim": model.spec.latent_dim,
        "reconstruction_error": reconstruction_error(autoencoder, split.reference),
        "memorisation": image_models.memorisation(model.decode(states[-1]), split),
        "failed_at": model.failed_at,
    }
    return [
        Case(
            **shared,
            features=space,
            metric=metric,
            model=curve,
            noisy=noisy[space, metric],
            earlier=earlier[space, metric][:, 0],
            interpolation=float(interpolation[space, metric].mean()),
            floor=float(floor[space, metric].mean()),
        )
        for (space, metric), curve in curves.items()
    ], seconds
