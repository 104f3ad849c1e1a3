r"""Do the last sampling steps make a latent diffusion model worse, and a pixel one not? [OS] Fig. 1 and 2 on one data set.

Latent models on any autoencoder against a pixel model (identity autoencoder): same data, training steps and batches, same
network family (MLP for vectors, U-Net for maps), same floating-point operations per network evaluation (within 2 %, or
nothing starts), same sampling steps and sample counts. Every stop of every chain is decoded and compared with held-out images.

    python -m experiments.latent_vs_pixel  # digits: PCA and MLP, KL-VAE and U-Net, three seeds
    python -m experiments.latent_vs_pixel --quick
    python -m experiments.latent_vs_pixel --data=mnist.npz --n=10000 \
        --autoencoders=kl:7x7x2 --channels=8,16,32  # a GPU's

The first takes 933 s on two cores that three other jobs share; the numbers obtained stand in
docs/results.md#latent_vs_pixel.
"""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import launch
from experiments.launch import Results, redeclared, setting
from experiments.launch.diffusion import DiffusionSettings, ImageData
from ldmjax import autoencoders, latent_diffusion, stopping, training
from ldmjax.autoencoders import reconstruction_error
from ldmjax.data import Dataset
from ldmjax.job import Job
from ldmjax.latent_diffusion import DiffusionModel, Split

FLOPS_TOLERANCE = 0.02
FAMILIES = {"mlp": "MLP", "unet": "U-Net"}
GRID_SAMPLES = 2  # shown of every model
KINDS = tuple(kind for kind in autoencoders.KINDS if kind != "identity")
SHAPE = re.compile(r"[1-9]\d*(x[1-9]\d*x[1-9]\d*)?")
QUICK = {
    "autoencoders": ("pca:16",),
    "seeds": (0,),
    "training_steps": 200,
    "autoencoder_steps": 200,
    "samples": 256,
    "sampling_steps": 100,
    "stops": 10,
}


def read_autoencoder(word: str) -> tuple[str, tuple[int, ...]]:
    """KIND:SHAPE, read; ValueError if it is not that."""
    kind, _, shape = word.partition(":")
    if kind not in KINDS or not SHAPE.fullmatch(shape):
        raise ValueError(f"got {word!r}")
    return kind, tuple(map(int, shape.split("x")))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(DiffusionSettings):
    """What to train and how."""

    autoencoders: tuple[str, ...] = setting(
        ("pca:16", "kl:4x4x2"),
        "Latent models. Vectors are learned by an MLP, maps by a U-Net; the pixel model of each comes by itself.",
        allowed=f"KIND:SHAPE, KIND out of {', '.join(KINDS)}, SHAPE a length such as 16 or a map such as 4x4x2",
        check=read_autoencoder,
    )
    batch_size: int = redeclared(DiffusionSettings, "batch_size", 64)
    hidden: int = setting(256, "Width of the pixel MLP; latent MLPs have as many operations.", low=1, high=16_384)
    mlp_blocks: int = setting(2, "Residual blocks of the MLPs.", low=0, high=64)
    channels: tuple[int, ...] = setting(
        (8, 16), "Channels of the pixel U-Net, one per resolution, rising.", low=1, high=4096
    )
    unet_blocks: int = setting(1, "Residual blocks of each resolution of the U-Nets, each way.", low=0, high=64)
    runs_per_batch: int | None = launch.per_batch_setting()

    def check_models(self, dataset: Dataset) -> None:
        super().check_models(dataset)
        for kind, shape in map(read_autoencoder, self.autoencoders):
            self.check_latent_shapes("autoencoders", kind, [shape], dataset, n=self.n)
        with self.blaming("autoencoders"):
            match_models(self, dataset.image_shape)


class MatchedModel(NamedTuple):
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

    @property
    def latent_dim(self) -> int:
        """Entries of a latent."""
        return int(np.prod(self.latent_shape))


def match_models(config: Config, image_shape: tuple[int, ...]) -> list[MatchedModel]:
    """All models: for every network family that is used its pixel model, then the latent ones with as many operations.

    Raises:
      ValueError: if a network cannot be made, or no size of it has as many operations as the pixel model within 2 %.
    """
    found, latents = [], [read_autoencoder(word) for word in config.autoencoders]
    for family, name in FAMILIES.items():
        # Vectors go to an MLP, maps to a U-Net.
        chosen = [(kind, shape) for kind, shape in latents if (len(shape) == 1) == (family == "mlp")]
        if not chosen:
            continue
        pixel = _network(config, family, image_shape)
        target = training.flops(pixel, int(np.prod(image_shape)))
        found.append(MatchedModel(f"pixel, {name}", "identity", image_shape, pixel, target, target))
        for kind, shape in chosen:
            d = int(np.prod(shape))
            network = training.match_flops(_network(config, family, shape), d, target)
            label = f"{kind} {'x'.join(map(str, shape))}, {name}"
            model = MatchedModel(label, kind, shape, network, training.flops(network, d), target)
            if abs(model.flops_difference) > FLOPS_TOLERANCE:
                raise ValueError(
                    f"{label}: the nearest network has {100 * model.flops_difference:+.1f} % of the pixel model's operations, "
                    f"allowed are {100 * FLOPS_TOLERANCE:g} %; a larger pixel model can be matched more closely"
                )
            found.append(model)
    return found


def _network(config: Config, family: str, shape: tuple[int, ...]) -> training.TrainingConfig:
    if family == "mlp":
        return config.network(model="mlp", hidden=config.hidden, blocks=config.mlp_blocks)
    if len(shape) not in (2, 3):
        raise ValueError(f"a U-Net needs images [H, W] or [H, W, C], got {list(shape)}")
    size = {"map_shape": (*shape, 1)[:3], "channels": config.channels, "blocks": config.unet_blocks}
    return config.network(model="unet", precision=config.precision, **size)


def _shapes(matched: Sequence[MatchedModel]) -> dict[str, list[tuple[int, ...]]]:
    """Latent shapes by kind of autoencoder; the identity's stands once, however many pixel models there are."""
    return {
        kind: list(dict.fromkeys(m.latent_shape for m in matched if m.kind == kind))
        for kind in (m.kind for m in matched)
    }


def plan(config: Config, data: ImageData) -> list[launch.Stage]:
    """What `compute` does."""
    matched, sampling = match_models(config, data.dataset.image_shape), config.sampling
    sets = len(config.seeds) * len(matched) * len(sampling.readouts) * len(sampling.stop_steps)
    return [
        *config.autoencoder_stages(_shapes(matched), data.dataset.image_shape),
        *config.model_stages([(m.network, m.latent_dim) for m in matched]),
        launch.Stage(stage="decode and measure sets of images", runs=sets),
    ]


def compute(config: Config, data: ImageData, job: Job) -> Results:
    """Fits, trains, samples and reads every model.

    Arrays, with R rows of records.jsonl and S stops:
      progress, logsnr ``[S]``: of the stops;
      curve, standard_error ``[R, S]``: the stopping curves;
      difference_error ``[R, S]``: standard error of the difference to the end of sampling;
      samples LABEL ``[S, 2, *image_shape]``: decoded states of a model, first seed;
      pixel_range ``[2]``: (low, high) of almost all pixels of the training images, black and white in figures.
    """
    config.check_features_unchanged(data, job)
    matched = match_models(config, data.dataset.image_shape)
    splits = config.splits(data.dataset)
    measures = config.measures(data, splits)
    with config.blaming("autoencoders"):
        models = train(config, matched, splits, job)
        order = list(models)

        def measured(index: int) -> dict:
            model = models[order[index]]
            states = latent_diffusion.sample_states(model, config.sampling, job=job)
            return measure(model, states, splits[model.seed], measures[model.seed], config)

        found = latent_diffusion.map_models(measured, list(models.values()), what="sampled and measured", job=job)
        floors = config.noise_floors(splits, measures, job)
    of, first = dict(zip(order, found, strict=True)), config.seeds[0]
    found = [
        one
        for m in matched
        for one in read(config, data, m, {seed: of[m.label, seed] for seed in config.seeds}, floors)
    ]
    arrays = {
        "progress": config.sampling.progress,
        "logsnr": config.sampling.logsnrs,
        **{name: np.stack([curves[name] for _, curves in found]) for name in found[0][1]},
        **{f"samples {m.label}": of[m.label, first]["grid"] for m in matched},
        "pixel_range": np.quantile(splits[first].train, [0.001, 0.999]),
    }
    return Results(rows=[row for row, _ in found], arrays=arrays)


def train(
    config: Config, matched: Sequence[MatchedModel], splits: Mapping[int, Split], job: Job
) -> dict[tuple[str, int], DiffusionModel]:
    """The diffusion models by (label, seed)."""
    options = {"steps": config.autoencoder_steps, "precision": config.precision}
    fitted = latent_diffusion.fit_autoencoders(splits, _shapes(matched), job=job, **options)
    pairs = [(m, seed) for m in matched for seed in config.seeds]
    models = latent_diffusion.train_models(
        [fitted[seed, m.kind, m.latent_shape] for m, seed in pairs],
        [m.network for m, _ in pairs],
        [splits[seed] for _, seed in pairs],
        seeds=[seed for _, seed in pairs],
        runs_per_batch=config.runs_per_batch,
        job=job,
    )
    return {(m.label, seed): model for (m, seed), model in zip(pairs, models, strict=True)}


def measure(model: DiffusionModel, states: np.ndarray, split: Split, measures: Mapping, config: Config) -> dict:
    """What is kept of one model's states ``[S, N, d]``: pseudo-values by readout, facts, and decoded states."""
    autoencoder, sampling = model.autoencoder, config.sampling
    pseudo = {
        readout: latent_diffusion.stopping_pseudo_values(
            model, latent_diffusion.read_out(states, sampling, readout), measures
        )
        for readout in sampling.readouts
    }
    facts = {
        "reconstruction_error": reconstruction_error(autoencoder, split.reference),
        "latent_mean": autoencoder.latent_mean,
        "latent_std": autoencoder.latent_std,
        "loss": float(model.trained.losses[model.index, -1]),
        "diverged_at_step": model.failed_at,
        "memorisation": latent_diffusion.memorisation(model.decode(states[-1]), split),
    }
    rebuilt = latent_diffusion.mean_distances(autoencoder.decode(autoencoder.encode(split.train)), measures)
    shown = latent_diffusion.read_out(states[:, :GRID_SAMPLES], sampling, "rescaled")
    grid = np.stack([model.decode(z) for z in shown])
    return {"pseudo": pseudo, "reconstruction": rebuilt, "facts": facts, "grid": grid}


def read(
    config: Config, data: ImageData, matched: MatchedModel, of: Mapping[int, dict], floors: Mapping[int, dict]
) -> list[tuple[dict, dict]]:
    """Rows and curves of one model: of every seed, and of the mean over seeds, whose pseudo-values are the means of theirs.

    Args:
      config: of the experiment.
      data: its data.
      matched: the model.
      of: what `measure` kept, by seed.
      floors: distances of the training images by seed and measure.

    Returns:
      A row per readout, measure and seed (None for the mean), in which distances are squared, gains in the same unit, and a
      best stop at the end is progress 1; with each its curves ``[S]`` by the names of arrays.
    """
    seeds, sampling = config.seeds, config.sampling
    digests = {space.name: space.digest for space in data.spaces}
    about = _about(config, data, matched)
    found = []
    for readout in sampling.readouts:
        for key in of[seeds[0]]["pseudo"][readout]:
            pseudo = {seed: of[seed]["pseudo"][readout][key] for seed in seeds}
            levels = {seed: [floors[seed][key], of[seed]["reconstruction"][key]] for seed in seeds}
            if len(seeds) > 1:
                pseudo[None], levels[None] = (np.mean(list(x.values()), axis=0) for x in (pseudo, levels))
            for seed, values in pseudo.items():
                result = stopping.read_stopping_curve(values)
                error = np.std(values - values[:, -1:], axis=0, ddof=1) / np.sqrt(len(values))
                curves = {"curve": result.curve, "standard_error": result.standard_error, "difference_error": error}
                row = {
                    "seed": seed,
                    "seeds": len(seeds) if seed is None else 1,
                    "readout": readout,
                    "features": key[0],
                    "features_sha256": digests[key[0]],
                    "metric": key[1],
                    **result.record(progress_best=sampling.progress, logsnr_best=sampling.logsnrs),
                    "noise_floor": levels[seed][0],
                    "reconstruction": levels[seed][1],
                }
                found.append((row | about | ({} if seed is None else of[seed]["facts"]), curves))
    return found


def _about(config: Config, data: ImageData, matched: MatchedModel) -> dict:
    """Fields that all rows of a model have."""
    network = matched.network
    return {
        "model": matched.label,
        "autoencoder": matched.kind,
        "latent_shape": list(matched.latent_shape),
        "network": network.model,
        "hidden": network.hidden,
        "channels": list(network.channels),
        "batch_size": config.batch_size,
        "precision": latent_diffusion.precision_used(matched.kind, network.model, asked=config.precision),
        "flops": matched.flops,
        "flops_pixel": matched.pixel_flops,
        "flops_difference": matched.flops_difference,
        **config.about(data.dataset),
    }
