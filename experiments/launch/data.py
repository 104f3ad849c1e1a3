"""Settings that name what experiments work on, data, feature spaces and ladders, and how they are loaded."""

import dataclasses
import math
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np

from experiments.launch.settings import IMPORT, SettingError, Settings, setting
from ldmjax import autoencoders, schedules
from ldmjax import data as data_lib
from ldmjax import features as features_lib
from ldmjax.autoencoders.convolutional import geometry_of
from ldmjax.convolutions import PRECISIONS
from ldmjax.job import NO_JOB, Job

LARGEST_LADDER = 10_000
LARGEST_DIM = 16_384  # its covariance takes 2 GiB
LADDERS = tuple(schedules.LADDERS)


def _check_data(name: str) -> None:
    if name.endswith(".npz"):
        check_file(name)
    elif name != "digits" and not name.startswith("hf:") and not Path(name).is_dir():
        raise ValueError(f"unknown data {name!r}")


def check_file(path: str, *endings: str) -> None:
    """ValueError if there is no such file, or it has none of the endings."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")
    if endings and not path.endswith(endings):
        raise ValueError(f"{path!r} does not end in {' or '.join(endings)}")


def check_writable(path: str) -> None:
    """ValueError, without touching anything, unless the directory, or the nearest one above it that exists, is writable."""
    place = next(p for p in [Path(path).absolute(), *Path(path).absolute().parents] if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {path!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataSettings(Settings):
    """--data, --spectrum, --data_dim: `load` gives the `data_lib.Dataset`."""

    data: str | None = setting(
        None,
        "The data. An .npz holds images or x, maybe labels or y; subfolders are classes; hf: are data sets of Hugging Face's "
        "package datasets. Default: digits.",
        allowed=data_lib.NAMES,
        check=_check_data,
    )
    spectrum: str | None = setting(
        None,
        "Instead of --data, a Gaussian with this spectrum.",
        allowed=data_lib.SPECTRA,
        check=lambda description: data_lib.spectrum_variances(description, LARGEST_DIM),
    )
    data_dim: int = setting(64, "Dimension of --spectrum (a file gives its own).", low=1, high=LARGEST_DIM)

    def load(self, *, default: str = "digits", layout: str = "auto") -> data_lib.Dataset:
        """The data set; ``layout`` is that of `data_lib.load`. `SettingError` for one that cannot be had."""
        if self.data is not None and self.spectrum is not None:
            raise self.refuse("spectrum", f"allowed only without --data, got --data={self.data} as well")
        if self.spectrum is not None:
            try:
                return data_lib.spectrum(self.spectrum, self.data_dim)
            except (ValueError, MemoryError) as error:
                raise self.refuse("spectrum", f"must be {data_lib.SPECTRA} ({error})") from error
        name = default if self.data is None else self.data
        try:
            return data_lib.load(name, layout=layout)
        except (ValueError, MemoryError) as error:
            raise SettingError("data", name, str(error)) from error

    def check_images(self, dataset: data_lib.Dataset) -> None:
        """The data are images that differ, also in float32, not a bare --spectrum."""
        if dataset.samples is None:
            raise self.refuse("spectrum", "must not be given: a spectrum has no images")
        if not np.any(dataset.samples):
            raise self.refuse("data", "must hold images that differ")
        if problem := data_lib.float32_problem(dataset.samples, mean=dataset.mean):
            raise self.refuse("data", f"must hold images that float32 can hold: {dataset.name} {problem}")

    def check_n(self, dataset: data_lib.Dataset, *, held_out: int = 2) -> None:
        """Every ``n`` leaves ``held_out`` samples of the data."""
        if dataset.samples is None:
            return
        count, least = len(dataset.samples), type(self).__dataclass_fields__["n"].metadata["bounds"]["low"]
        if np.max(self.n) > count - held_out:
            allowed = f"must be {least}..{count - held_out}"
            raise self.refuse("n", f"{allowed}: {dataset.name} has {count} samples, {held_out} are held out at least")

    def check_latent_dims(self, dataset: data_lib.Dataset) -> None:
        """Every one of ``latent_dims`` is at most D."""
        if max(self.latent_dims) > dataset.dim:
            raise self.refuse("latent_dims", f"must be 1..{dataset.dim}, the dimension of {dataset.name}")

    def check_latent_shapes(
        self, name: str, kind: str, shapes: Sequence[tuple[int, ...]], dataset: data_lib.Dataset, *, n: int
    ) -> None:
        """Autoencoders of this kind, fitted to ``n`` images, can have latents of the shapes that the setting asks for."""
        config = autoencoders.AutoencoderConfig(kind=kind)
        most = min(n, dataset.dim)
        for shape in shapes:
            if kind == "pca":
                allowed = len(shape) == 1 and 1 <= shape[0] <= most
                reason = f"pca has vectors of length 1 <= d <= {most}, the training images or the pixels"
            else:
                allowed = kind != "vq" or len(shape) > 1 or shape[0] % config.code_dim == 0
                reason = f"vectors of vq have a length that is a multiple of {config.code_dim}"
                try:
                    geometry_of(dataset.image_shape, shape, downsampling=config.downsampling)
                except ValueError as error:
                    allowed, reason = False, f"{kind}: {error}"
            if not allowed:
                raise self.refuse(name, f"must suit the autoencoder: {reason}, got {'x'.join(map(str, shape))}")


def _check_features(description: str) -> None:
    if description.endswith(".npz"):
        check_file(description)
    elif description not in ("pixels", "classifier") and not IMPORT.fullmatch(description):
        raise ValueError(f"unknown features {description!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class FeatureSettings(Settings):
    """--features: `load_features` gives the feature spaces."""

    features: tuple[str, ...] = setting(
        ("pixels",),
        "Spaces in which images are compared. An .npz is a linear map: weight [D, F], maybe bias [F].",
        allowed=f"descriptions out of {features_lib.DESCRIPTIONS}",
        check=_check_features,
    )

    def import_features(self) -> None:
        """The user's modules can be imported: known before any data are read."""
        for description in self.features:
            if ":" in description and not description.endswith(".npz"):
                try:
                    features_lib.import_object(description)
                except ValueError as error:
                    allowed = f"comma-separated descriptions out of {features_lib.DESCRIPTIONS}, none twice"
                    raise self.refuse("features", f"must be {allowed} ({error})") from error

    def load_features(self, dataset: data_lib.Dataset, *, job: Job = NO_JOB) -> list[features_lib.Features]:
        """The feature spaces that are named."""
        made = {}
        for description in sorted(self.features, key=lambda name: name == "classifier"):  # it is trained: last
            try:
                made[description] = features_lib.load(description, dataset, job=job)
            except ValueError as error:
                raise self.refuse("features", str(error)) from error
        found = [made[description] for description in self.features]
        names = [f.name for f in found]
        if len(set(names)) < len(names):
            raise self.refuse("features", f"must have different names, got {', '.join(names)}")
        return found


def ladders_setting(default: Sequence[str] = ("karras",)) -> tuple[str, ...]:
    """Declares --ladders."""
    return setting(tuple(default), "Ladders of noise levels.", choices=LADDERS)


def levels_setting(default: int | tuple[int, ...] = 32) -> int | tuple[int, ...]:
    """Declares --levels, of one ladder or a list."""
    text = "Noise levels of a ladder, T." if isinstance(default, int) else "Numbers of noise levels of a ladder, T."
    return setting(default, text, low=1, high=LARGEST_LADDER)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LadderSettings(Settings):
    """--ladders, --levels, --sigma_min, --sigma_max."""

    ladders: tuple[str, ...] = ladders_setting()
    levels: int = levels_setting()
    sigma_min: float = setting(
        0.002, "Cleanest ratio sigma/alpha of karras and uniform_logsnr.", low=0.0, low_open=True
    )
    sigma_max: float = setting(80.0, "Noisiest ratio sigma/alpha of karras and uniform_logsnr.", low=0.0, low_open=True)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.sigma_min < self.sigma_max < math.inf:
            raise self.refuse("sigma_min", f"must be > 0 and < --sigma_max={self.sigma_max}, which is finite")
        for name in self.ladders:
            for levels in np.atleast_1d(self.levels).tolist():
                try:
                    schedules.make_ladder(name, levels, np.ones(1), **self.limits)
                except ValueError as error:
                    raise self.refuse("levels", f"{name}: {error}") from error

    @property
    def limits(self) -> dict[str, float]:
        """Range of the ladders that have none of their own, for `schedules.make_ladder`."""
        return {"sigma_min": self.sigma_min, "sigma_max": self.sigma_max}


def import_named(config: Settings, name: str, allowed: str = "package.module:function") -> Callable:
    """The user's function that a setting names; `SettingError` if it cannot be imported."""
    try:
        return features_lib.import_object(getattr(config, name))
    except ValueError as error:
        raise config.refuse(name, f"must be {allowed} ({error})") from error


def precision_setting() -> str:
    """Declares --precision."""
    return setting(
        "float32",
        "Of activations and products in trained autoencoders and U-Nets. Their parameters, statistics and losses, and MLPs, "
        "are always in float32.",
        choices=PRECISIONS,
    )


def check_precision(config: Settings, kinds: Iterable[str]) -> None:
    """`SettingError` if ``precision`` asks for what no autoencoder of these kinds computes."""
    if config.precision != "float32" and not set(kinds) - {"pca"}:
        raise config.refuse("precision", "must be float32: PCA has no activations, and MLPs stay in float32")


def per_batch_setting(what: str = "runs") -> int | None:
    """Declares --runs_per_batch, or --experts_per_batch."""
    return setting(
        None,
        f"{what.capitalize()} vmapped at once on each device, bounds memory; one on a CPU, elsewhere all there are (large "
        "U-Nets and autoencoders: one), if not given.",
        low=1,
        high=10_000,
    )
