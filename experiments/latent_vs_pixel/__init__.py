r"""Do the last sampling steps make a latent diffusion model worse, and a pixel one not? [OS] Fig. 1 and 2 on one data set.

Latent models on any autoencoder against a pixel model (identity autoencoder): same data, training steps and batches, same
network family (MLP for vectors, U-Net for maps), same floating-point operations per network evaluation (within 2 %, or
nothing starts), same sampling steps and sample counts. Every stop of every chain is decoded and compared with held-out images.

    python -m experiments.latent_vs_pixel  # digits: PCA and MLP, KL-VAE and U-Net, three seeds
    python -m experiments.latent_vs_pixel --quick
    python -m experiments.latent_vs_pixel --data=mnist.npz --n=10000 \
        --autoencoders=kl:7x7x2 --channels=8,16,32  # a GPU's

The first takes 933 s on two cores that three other jobs share. Obtained on digits (n = 1000, pixels as features): it depends
on the readout and the metric more than on latent against pixel. States decoded as they are: no model gains from stopping in
any metric. States divided by their scale first: MMD and sliced W2 are best at 61 to 89 % of sampling for every model, latent
*and* pixel, with gains of 4 to 29 %. The squared Fréchet distance turns up in three models of four by 0.1 to 0.2 %; of
the U-Nets only in the latent one (best stop 95 %, interval 93 to 97): the sign of [OS], not the size, 8 % there.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from experiments import image_models, image_plans
from experiments.image_models import Report, SamplingConfig, Split
from experiments.plans import Stage, host
from ldmjax import stopping, training
from ldmjax.autoencoders import FittedAutoencoder, reconstruction_error
from ldmjax.checkpoints import NOTHING_KEPT, Store
from ldmjax.data import Dataset
from ldmjax.features import Features

FLOPS_TOLERANCE = 0.02
FAMILIES = {"mlp": "MLP", "unet": "U-Net"}
GRID_SAMPLES = 2  # shown of every model


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What to train and how.

    Attributes:
      autoencoders: (kind, latent shape) of each latent model.
      seeds: each has its own split, initialisations and noise.
      n: training images.
      reference: held-out images, at most.
      hidden, mlp_blocks: size of the pixel MLP.
      channels, unet_blocks: size of the pixel U-Net.
      training_steps, batch_size: of every diffusion model.
      autoencoder_steps: of the trained autoencoders.
      sampling: of every diffusion model.
      runs_per_batch: runs vmapped at once on each device, by default `devices.default_runs_per_batch`.
      precision: of trained autoencoders and U-Nets, out of `convolutions.PRECISIONS`.
    """

    autoencoders: tuple[tuple[str, tuple[int, ...]], ...]
    seeds: tuple[int, ...]
    n: int
    reference: int
    hidden: int = 256
    mlp_blocks: int = 2
    channels: tuple[int, ...] = (8, 16)
    unet_blocks: int = 1
    training_steps: int = 2000
    batch_size: int = 64
    autoencoder_steps: int = 1500
    sampling: SamplingConfig = SamplingConfig()
    runs_per_batch: int | None = None
    precision: str = "float32"


class Plan(NamedTuple):
    """One model to train: its autoencoder, its network, and the operations of one evaluation, beside the pixel model's."""

    label: str
    kind: str
    latent_shape: tuple[int, ...]
    network: training.TrainingConfig
    flops: int
    pixel_flops: int

    @property
    def flops_difference(self) -> float:
        """Relative to the pixel model."""
        return self.flops / self.pixel_flops - 1.0


class Reading(NamedTuple):
    """One model's stopping curve under one readout, feature space and metric.

    Attributes:
      plan: the model.
      seed: None for the mean over seeds.
      readout, features, metric: what was measured.
      result: the curve, read.
      difference_error: standard error of the difference to the end of sampling at each stop ``[S]``.
      floor: the distance of the training images.
      reconstruction: the distance of what the autoencoder makes of them.
    """

    plan: Plan
    seed: int | None
    readout: str
    features: str
    metric: str
    result: stopping.StoppingResult
    difference_error: np.ndarray
    floor: float
    reconstruction: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """Results in the order of models and seeds.

    Attributes:
      plans: the models.
      readings: one per model, seed, readout, feature space and metric, and one more for the mean over seeds.
      models: what else is known of one trained model, by (label, seed).
      grids: ``[S, GRID_SAMPLES, *image_shape]`` decoded states of the first seed, by label.
      pixel_range: (low, high) of almost all pixels of the training images, black and white in figures.
    """

    plans: tuple[Plan, ...]
    readings: tuple[Reading, ...]
    models: dict[tuple[str, int], dict]
    grids: dict[str, np.ndarray]
    pixel_range: tuple[float, float]


def family_of(latent_shape: tuple[int, ...]) -> str:
    """Vectors go to an MLP, maps to a U-Net."""
    return "mlp" if len(latent_shape) == 1 else "unet"


def make_plans(config: Config, image_shape: tuple[int, ...]) -> tuple[Plan, ...]:
    """All models: for every network family that is used its pixel model, then the latent ones with as many operations.

    Raises:
      ValueError: if a network cannot be made, or no size of it has as many operations as the pixel model within 2 %.
    """
    plans = []
    for family in FAMILIES:
        chosen = [(kind, shape) for kind, shape in config.autoencoders if family_of(shape) == family]
        if not chosen:
            continue
        pixel = _network(config, family, image_shape)
        dim = int(np.prod(image_shape))
        target = training.flops(pixel, dim)
        plans.append(Plan(f"pixel, {FAMILIES[family]}", "identity", image_shape, pixel, target, target))
        for kind, shape in chosen:
            d = int(np.prod(shape))
            network = training.match_flops(_network(config, family, shape), d, target)
            label = f"{kind} {'x'.join(map(str, shape))}, {FAMILIES[family]}"
            plan = Plan(label, kind, shape, network, training.flops(network, d), target)
            if abs(plan.flops_difference) > FLOPS_TOLERANCE:
                raise ValueError(
                    f"{label}: the nearest network has {100 * plan.flops_difference:+.1f} % of the pixel model's operations, "
                    f"allowed are {100 * FLOPS_TOLERANCE:g} %; a larger pixel model can be matched more closely"
                )
            plans.append(plan)
    return tuple(plans)


def _network(config: Config, family: str, shape: tuple[int, ...]) -> training.TrainingConfig:
    size = {"hidden": config.hidden, "blocks": config.mlp_blocks}
    if family == "unet":
        if len(shape) not in (2, 3):
            raise ValueError(f"a U-Net needs images [H, W] or [H, W, C], got {list(shape)}")
        size = {"map_shape": (*shape, 1)[:3], "channels": config.channels, "blocks": config.unet_blocks}
        size["precision"] = config.precision
    return training.TrainingConfig(
        model=family,
        steps=config.training_steps,
        batch_size=config.batch_size,
        schedule=config.sampling.schedule,
        **config.sampling.trained_range,
        **size,
    )


def plan(dataset: Dataset, features: Sequence[Features], config: Config) -> list[Stage]:
    """The stages of `run`."""
    wanted, image_shape, seeds = make_plans(config, dataset.image_shape), dataset.image_shape, len(config.seeds)
    shapes = {p.kind: [other.latent_shape for other in wanted if other.kind == p.kind] for p in wanted}
    networks = seeds * [(p.network, int(np.prod(p.latent_shape))) for p in wanted]
    sampling = config.sampling
    return [
        *image_plans.autoencoders(shapes, image_shape, seeds=seeds, steps=config.autoencoder_steps),
        *image_plans.diffusion(networks, sampling),
        image_plans.measuring(
            "decode and measure", sets=len(networks) * len(sampling.readouts) * len(sampling.stop_steps),
            samples=sampling.samples, reference=config.reference, dims=[space.dim for space in features], pixels=dataset.dim,
            decoding=image_plans.decoding(shapes, image_shape),
        ),
        host("read curves, draw figures", runs=1, seconds=10.0),
    ]  # fmt: skip


def run(
    dataset: Dataset,
    features: Sequence[Features],
    config: Config,
    report: Report = print,
    store: Store = NOTHING_KEPT,
) -> Outcome:
    """Fits, trains, samples and reads every model; the function behind the command.

    Args:
      dataset: with images.
      features: spaces in which distances are measured.
      config: what to train.
      report: receives progress lines.
      store: where trainings and measured models are kept.
    """
    plans = make_plans(config, dataset.image_shape)
    options = {"n": config.n, "reference": config.reference}
    splits = {seed: image_models.split_images(dataset, seed=seed, **options) for seed in config.seeds}
    measures = {seed: image_models.make_measures(features, split.reference) for seed, split in splits.items()}
    autoencoders = _fit(plans, splits, config, store, report)
    models = image_models.train_models(
        list(autoencoders.values()),
        [plans[i].network for i, _ in autoencoders],
        [splits[seed] for _, seed in autoencoders],
        seeds=[seed for _, seed in autoencoders],
        runs_per_batch=config.runs_per_batch,
        store=store,
        report=report,
    )

    def measured(place: int) -> _Measured:
        model = models[place]
        states = image_models.sample_states(model, config.sampling, store=store, report=report)
        return _measure(model, states, splits[model.seed], measures[model.seed], config)

    found = image_models.of_each_model(models, measured, what="sampled and measured", store=store, report=report)
    of = dict(zip(autoencoders, found, strict=True))
    floors = {
        seed: store.piece(f"floors/seed{seed}", lambda s=seed: image_models.distances_of(splits[s].train, measures[s]))
        for seed in config.seeds
    }
    return Outcome(
        plans=plans,
        readings=tuple(_readings(plans, of, floors, config)),
        models={(plans[i].label, seed): one.facts for (i, seed), one in of.items()},
        grids={p.label: of[i, config.seeds[0]].grid for i, p in enumerate(plans)},
        pixel_range=tuple(np.quantile(splits[config.seeds[0]].train, [0.001, 0.999]).tolist()),
    )


def _fit(
    plans: Sequence[Plan], splits: dict[int, Split], config: Config, store: Store, report: Report
) -> dict[tuple[int, int], FittedAutoencoder]:
    """An autoencoder for every (number of the plan, seed)."""
    found = {}
    for seed, split in splits.items():
        for kind in dict.fromkeys(p.kind for p in plans):
            members = [i for i, p in enumerate(plans) if p.kind == kind]
            fitted = image_models.fit_autoencoders(
                split, {kind: [plans[i].latent_shape for i in members]}, seed=seed, store=store, report=report,
                steps=config.autoencoder_steps, precision=config.precision,
            )  # fmt: skip
            found |= {(i, seed): autoencoder for i, autoencoder in zip(members, fitted, strict=True)}
    return {(i, seed): found[i, seed] for i in range(len(plans)) for seed in splits}


class _Measured(NamedTuple):
    """One model's pseudo-values by readout, what else is known of it, and decoded states ``[S, GRID_SAMPLES, ...]``."""

    pseudo: dict[str, dict[tuple[str, str], np.ndarray]]
    facts: dict
    grid: np.ndarray


def _measure(model, states, split, measures, config) -> _Measured:
    """What is kept of one model's states ``[S, N, d]``."""
    autoencoder, sampling = model.autoencoder, config.sampling
    pseudo = {
        readout: image_models.stopping_pseudo_values(model, image_models.read_out(states, sampling, readout), measures)
        for readout in sampling.readouts
    }
    rebuilt = autoencoder.decode(autoencoder.encode(split.train))
    facts = {
        "reconstruction": image_models.distances_of(rebuilt, measures),
        "reconstruction_error": reconstruction_error(autoencoder, split.reference),
        "latent_mean": autoencoder.latent_mean,
        "latent_std": autoencoder.latent_std,
        "loss": float(model.trained.losses[model.index, -1]),
        "diverged_at_step": model.failed_at,
        "memorisation": image_models.memorisation(model.decode(states[-1]), split),
    }
    shown = image_models.read_out(states[:, :GRID_SAMPLES], sampling, "rescaled")
    return _Measured(pseudo, facts, np.stack([model.decode(z) for z in shown]))


def _readings(plans, of, floors, config):
    """Curves of every seed, and of the mean over seeds, whose pseudo-values are the means of theirs."""
    readings = []
    for i, plan in enumerate(plans):
        for readout in config.sampling.readouts:
            for features, metric in of[i, config.seeds[0]].pseudo[readout]:
                key = (features, metric)
                curves = [of[i, seed].pseudo[readout][key] for seed in config.seeds]
                levels = [
                    (floors[seed][key].mean(), of[i, seed].facts["reconstruction"][key].mean()) for seed in config.seeds
                ]
                rows = list(zip(config.seeds, curves, levels, strict=True))
                if len(rows) > 1:
                    rows.append((None, np.mean(curves, axis=0), np.mean(levels, axis=0)))
                for seed, values, (floor, rebuilt) in rows:
                    result = stopping.read_stopping_curve(values)
                    error = np.std(values - values[:, -1:], axis=0, ddof=1) / np.sqrt(len(values))
                    readings.append(Reading(plan, seed, readout, *key, result, error, float(floor), float(rebuilt)))
    return readings


def summary_readings(outcome: Outcome) -> list[Reading]:
    """The mean over seeds of every curve; of a single seed, its own."""
    means = [r for r in outcome.readings if r.seed is None]
    return means or list(outcome.readings)
