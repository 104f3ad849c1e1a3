"""What flags name, loaded, and checks of flags against each other and against the data."""

import math
from collections.abc import Callable, Iterable, Sequence

import numpy as np
from absl import flags

from experiments.flags.errors import bad
from experiments.flags.groups import LADDERS
from ldmjax import autoencoders, data, features, schedules
from ldmjax.autoencoders.convolutional import geometry_of

FLAGS = flags.FLAGS


def load_dataset(*, default: str = "digits", layout: str = "auto") -> data.Dataset:
    """The data set that --data or --spectrum names; ``layout`` is that of `data.load`."""
    if FLAGS.data is not None and FLAGS.spectrum is not None:
        raise bad("spectrum", FLAGS.spectrum, f"allowed only without --data, got --data={FLAGS.data} as well")
    if FLAGS.spectrum is not None:
        try:
            return data.spectrum(FLAGS.spectrum, FLAGS.data_dim)
        except (ValueError, MemoryError) as error:
            raise bad("spectrum", FLAGS.spectrum, f"must be {data.SPECTRA} ({error})") from error
    name = default if FLAGS.data is None else FLAGS.data
    try:
        return data.load(name, layout=layout)
    except (ValueError, MemoryError) as error:
        raise bad("data", name, str(error)) from error


def import_named(flag: str) -> Callable:
    """The user's callable that a flag names."""
    try:
        return features.import_object(FLAGS[flag].value)
    except ValueError as error:
        raise bad(flag, FLAGS[flag].value, f"must be {FLAGS[flag].parser.allowed} ({error})") from error


def check_features() -> None:
    """The user's modules among --features can be imported: known before any data are read."""
    for description in FLAGS.features:
        if ":" in description and not description.endswith(".npz"):
            try:
                features.import_object(description)
            except ValueError as error:
                allowed = FLAGS["features"].parser.allowed
                raise bad("features", FLAGS.features, f"must be {allowed} ({error})") from error


def load_features(
    dataset: data.Dataset, *, report: Callable[[str], None] = lambda line: print(line, flush=True)
) -> list[features.Features]:
    """The feature spaces that --features names."""
    made = {}
    for description in sorted(FLAGS.features, key=lambda name: name == "classifier"):  # it is trained: last
        try:
            made[description] = features.load(description, dataset, report=report)
        except ValueError as error:
            raise bad("features", FLAGS.features, str(error)) from error
    found = [made[description] for description in FLAGS.features]
    names = [f.name for f in found]
    if len(set(names)) < len(names):
        raise bad("features", FLAGS.features, f"must have different names, got {', '.join(names)}")
    return found


def make_ladder(
    name: str, levels: int, variances: np.ndarray, *, sigma_min: float = 0.002, sigma_max: float = 80.0
) -> schedules.Ladder:
    """The ladder that a name of `LADDERS` stands for; reads no flag.

    Args:
      name: one of `LADDERS`.
      levels: T.
      variances: covariance spectrum ``[D]`` of the data that is noised, for "spectral".
      sigma_min: cleanest ratio sigma/alpha of "karras" and "uniform_logsnr"; the others have a range of their own.
      sigma_max: their noisiest.

    Raises:
      ValueError: for an unknown name, or a number of levels or a range that the ladder does not allow.
    """
    if name not in LADDERS:
        raise ValueError(f"ladder must be one of {', '.join(LADDERS)}, got {name!r}")
    if name == "spectral":
        return schedules.Ladder(*schedules.spectral_levels(variances, levels))
    limits = {"sigma_min": sigma_min, "sigma_max": sigma_max} if name in ("karras", "uniform_logsnr") else {}
    return schedules.Ladder(*getattr(schedules, f"{name}_levels")(levels, **limits))


def check_ladder_flags() -> None:
    """--levels, --sigma_min and --sigma_max suit every one of --ladders."""
    if not 0 < FLAGS.sigma_min < FLAGS.sigma_max < math.inf:
        raise bad("sigma_min", FLAGS.sigma_min, f"must be > 0 and < --sigma_max={FLAGS.sigma_max}, which is finite")
    for name in FLAGS.ladders:
        for levels in np.atleast_1d(FLAGS.levels).tolist():
            try:
                make_ladder(name, levels, np.ones(1), sigma_min=FLAGS.sigma_min, sigma_max=FLAGS.sigma_max)
            except ValueError as error:
                raise bad("levels", FLAGS.levels, f"{name}: {error}") from error


def check_states() -> None:
    """--states, if given, lies within 1..--levels."""
    if FLAGS.states is not None and FLAGS.states[1] > FLAGS.levels:
        raise bad(
            "states", "{}:{}".format(*FLAGS.states), f"must lie within 1:{FLAGS.levels}, the levels of the ladder"
        )


def check_n(dataset: data.Dataset, *, held_out: int = 2) -> None:
    """Every --n leaves ``held_out`` samples of the data."""
    if dataset.samples is None:
        return
    count = len(dataset.samples)
    if np.max(FLAGS.n) > count - held_out:
        allowed = f"must be 2..{count - held_out}: {dataset.name} has {count} samples, {held_out} are held out at least"
        raise bad("n", FLAGS.n, allowed)


def check_images(dataset: data.Dataset) -> None:
    """The data are images that differ, also in float32, not a bare --spectrum."""
    if dataset.samples is None:
        raise bad("spectrum", FLAGS.spectrum, "must not be given: a spectrum has no images")
    if not np.any(dataset.samples):
        raise bad("data", FLAGS.data, "must hold images that differ")
    if problem := data.float32_problem(dataset.samples, mean=dataset.mean):
        raise bad("data", FLAGS.data, f"must hold images that float32 can hold: {dataset.name} {problem}")


def check_precision(kinds: Iterable[str]) -> None:
    """`UsageError` if --precision asks for what no autoencoder of these kinds computes."""
    if FLAGS.precision != "float32" and not set(kinds) - {"pca"}:
        raise bad("precision", FLAGS.precision, "must be float32: PCA has no activations, and MLPs stay in float32")


def check_latent_shapes(
    flag: str, kind: str, shapes: Sequence[tuple[int, ...]], dataset: data.Dataset, *, n: int
) -> None:
    """Autoencoders of this kind, fitted to ``n`` images, can have latents of the shapes that ``flag`` asks for."""
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
            raise bad(flag, FLAGS[flag].value, f"must suit the autoencoder: {reason}, got {'x'.join(map(str, shape))}")


def check_latent_dims(dataset: data.Dataset) -> None:
    """Every --latent_dims is at most D."""
    if max(FLAGS.latent_dims) > dataset.dim:
        raise bad("latent_dims", FLAGS.latent_dims, f"must be 1..{dataset.dim}, the dimension of {dataset.name}")
