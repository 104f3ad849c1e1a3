"""Experiments that train diffusion models on images: their settings, their data, and how much --dry_run says they do."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from experiments.launch import DataSettings, FeatureSettings, SettingError, Stage, precision_setting, seeds, setting
from ldmjax import latent_diffusion, training
from ldmjax.autoencoders import AutoencoderConfig
from ldmjax.autoencoders.convolutional import parameter_count
from ldmjax.data import Dataset
from ldmjax.features import Features
from ldmjax.job import Job, printing
from ldmjax.latent_diffusion import SamplingConfig, Split
from ldmjax.metrics import Measure

LEAST = 2 * latent_diffusion.BLOCKS  # images or samples that a distance and its error need
PROCESS = "Forward process, and how it is sampled."
STOPS = "Stops in the second half of the chain, denser towards its end."


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageData:
    """Images, and the feature spaces in which they are compared."""

    dataset: Dataset
    spaces: tuple[Features, ...]

    @property
    def digest(self) -> str:
        return self.dataset.digest

    @property
    def name(self) -> str:
        return self.dataset.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class DiffusionSettings(FeatureSettings, DataSettings):
    """What these experiments have in common; ``readout`` is a flag where it is declared as a setting."""

    seeds: tuple[int, ...] = seeds((0, 1, 2), "Each seed has its own split, initialisations and noise.")
    n: int = setting(1000, "Training images, of autoencoders and diffusion models alike.", low=LEAST, high=1_000_000)
    reference: int = setting(5000, "Held-out images to compare with, at most.", low=LEAST, high=1_000_000)
    process: str = setting("rectified_flow", PROCESS, choices=latent_diffusion.PROCESSES)
    sampling_steps: int = setting(250, "Steps of every chain.", low=2, high=100_000)
    samples: int = setting(2048, "Generated images per model, even.", low=LEAST, high=1_048_576)
    sampling_batch: int = setting(128, "Samples that a chain holds at once, at most.", low=1, high=65_536)
    stops: int = setting(20, STOPS, low=2, high=10_000)
    training_steps: int = setting(2000, "Optimiser steps of every diffusion model.", low=1, high=10_000_000)
    batch_size: int = setting(256, "Latents per step of the diffusion models.", low=2, high=65_536)
    autoencoder_steps: int = setting(1500, "Optimiser steps of trained autoencoders.", low=1, high=10_000_000)
    precision: str = precision_setting()
    readout: str = "rescaled"

    def __post_init__(self):
        super().__post_init__()
        try:
            allowed = self.sampling.readouts
        except ValueError as error:
            raise self.refuse("samples", str(error)) from error
        if self.readout not in allowed:
            raise self.refuse("readout", f"must be {' or '.join(allowed)} with --process={self.process}")

    @property
    def sampling(self) -> SamplingConfig:
        """How models are sampled."""
        return SamplingConfig(
            process=self.process,
            steps=self.sampling_steps,
            samples=self.samples,
            stops=self.stops,
            batch=self.sampling_batch,
        )

    def load(self) -> ImageData:
        """The images and the feature spaces; `SettingError` for settings that do not suit them."""
        self.import_features()
        dataset = super().load()
        self.check_images(dataset)
        if len(dataset.samples) < 2 * LEAST:
            raise self.refuse(
                "data", f"must hold at least {2 * LEAST} images, {dataset.name} has {len(dataset.samples)}"
            )
        self.check_models(dataset)
        return ImageData(dataset=dataset, spaces=tuple(self.load_features(dataset, job=Job(show=printing))))

    def check_models(self, dataset: Dataset) -> None:
        """Refuses models that images of this kind cannot have."""
        self.check_n(dataset, held_out=LEAST)

    def check_features_unchanged(self, data: ImageData, job: Job) -> None:
        """Refuses to go on with functions of the user's that give other numbers than when the job began."""
        self.refuse_change("features", " ".join(space.digest for space in data.spaces), job)

    @contextlib.contextmanager
    def blaming(self, name: str) -> Iterator[None]:
        """A context in which what only a computation shows to be wrong with the data or the latents refuses a setting."""
        try:
            yield
        except SettingError:
            raise
        except ValueError as error:
            raise self.refuse(name, str(error)) from error

    def splits(self, dataset: Dataset) -> dict[int, Split]:
        """The images of every seed."""
        options = {"n": self.n, "reference": self.reference}
        return {seed: latent_diffusion.split_images(dataset, **options, seed=seed) for seed in self.seeds}

    def measures(self, data: ImageData, splits: Mapping[int, Split]) -> dict[int, dict[str, Measure]]:
        """The feature spaces, by seed and name, with the held-out images of a seed seen through them."""
        with self.blaming("features"):
            return {seed: latent_diffusion.make_measures(data.spaces, s.reference) for seed, s in splits.items()}

    def noise_floors(
        self, splits: Mapping[int, Split], measures: Mapping[int, Mapping[str, Measure]], job: Job
    ) -> dict[int, dict[tuple[str, str], float]]:
        """Distances of the training images of every seed by feature space and metric."""

        def floor(seed):
            return latent_diffusion.mean_distances(splits[seed].train, measures[seed])

        return {seed: job.keep(f"floors/seed{seed}", lambda s=seed: floor(s)) for seed in splits}

    def network(self, **size: Any) -> training.TrainingConfig:
        """A diffusion model's network of some size, and its training."""
        return training.TrainingConfig(
            steps=self.training_steps,
            batch_size=self.batch_size,
            schedule=self.sampling.schedule,
            **self.sampling.trained_range,
            **size,
        )

    def about(self, dataset: Dataset) -> dict[str, Any]:
        """Fields that all records have."""
        return {
            "data": dataset.name,
            "n": self.n,
            "reference": min(self.reference, len(dataset.samples) - self.n),
            "samples": self.samples,
            "process": self.process,
            "sampler": self.sampling.sampler,
            "sampling_steps": self.sampling_steps,
            "training_steps": self.training_steps,
        }

    def autoencoder_stages(
        self, shapes: Mapping[str, Sequence[tuple[int, ...]]], image_shape: tuple[int, ...]
    ) -> list[Stage]:
        """The trainings of `latent_diffusion.fit_autoencoders`."""
        stages = []
        for kind, wanted in shapes.items():
            if kind in ("pca", "identity"):
                continue
            config, runs = AutoencoderConfig(kind=kind, steps=self.autoencoder_steps), len(self.seeds) * len(wanted)
            stage = Stage.of_steps(
                f"train {kind} autoencoders",
                runs=runs,
                programs=3 * len({shape[:-1] for shape in wanted}),
                steps=config.steps,
                batch=config.batch_size,
                parameters=max(parameter_count(config, image_shape, shape) for shape in wanted),
            )
            stages.append(stage)
        return stages

    def model_stages(
        self, models: Sequence[tuple[training.TrainingConfig, int]], *, times_sampled: int = 1
    ) -> list[Stage]:
        """Training and sampling of diffusion models, one for every (network, latent dimension) and seed."""
        stages, sampling = [], self.sampling
        for network in dict.fromkeys(network for network, _ in models):
            dims = [dim for other, dim in models if other == network]
            name = f"{network.model} on {max(dims)} entries" + (" at most" if min(dims) < max(dims) else "")
            runs, parameters = len(self.seeds) * len(dims), training.parameter_count(network, max(dims))
            chains = runs * times_sampled * (sampling.samples // sampling.chunk)
            learn = {"runs": runs, "programs": 2, "steps": network.steps, "batch": network.batch_size}
            draw = {"runs": chains, "programs": 1, "steps": sampling.steps, "batch": sampling.chunk}
            for what, size in {"train": learn, "sample": draw}.items():
                stages.append(Stage.of_steps(f"{what} {name}", parameters=parameters, **size))
        return stages
