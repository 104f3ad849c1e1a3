"""The scale that latents are brought to before noise is added, and what is noticed in them.

Noise levels mean something only relative to the latents' scale: latents with deviation 5 that are not divided by it see a level
of logsnr l as l + 2 log 5. One scale for all entries is what diffusion models use; it says little where channels differ much.

Of latents ``[N, A, B, C]`` the first or the last axis holds channels (`data.channels.of_latents_are_first`). Of ``[N, L, C]``
it is the last, of ``[N, d]`` every entry.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldmjax import data
from ldmjax.autoencoders import LatentScale

STANDARDISE = ("all", "channel", "none")
RIGHT = 1.5  # a deviation that differs from 1 by less than this factor is right
CENTRED = 0.5  # of the deviation: a mean that is larger is said
WHITENED = 1.1  # latents whose entries' deviations differ by less than this factor, beyond chance
UNEVEN = {"channels": 3.0, "positions": 10.0}  # deviations that differ by more are said
APART = 2.0  # deviation between means over that within: convolutional autoencoders reach 1.3
STILL = 0.1  # of the median deviation: an entry that hardly varies
FAR = 3.0  # own deviations between the mean of a still entry and the others'
NAMED = 6  # entries named in a sentence


class Scaling(NamedTuple):
    """How latents are brought to deviation 1; what diffusers calls scaling_factor and shift_factor comes before all else.

    Attributes:
      standardise: out of `STANDARDISE`: one mean and deviation, one of each channel, or none.
      multiply, shift: ``(latents - shift) * multiply`` instead, one number or one per channel; None: not asked for.
    """

    standardise: str = "all"
    multiply: Sequence[float] | None = None
    shift: Sequence[float] | None = None


def scale_of(latents: np.ndarray, scaling: Scaling) -> LatentScale:
    """The scale that is asked for, per channel an array that broadcasts against one latent.

    Raises:
      ValueError: with one line, for latents or channels that do not vary, another number of factors than channels, or factors
        that leave no deviation of 1 while dividing by them would; of factors it begins with their name and a colon.
    """
    own = LatentScale.measure(latents)
    if scaling.multiply is None and scaling.shift is None:
        if scaling.standardise == "all":
            return own
        if scaling.standardise == "none":
            return LatentScale(mean=0.0, std=1.0)
        mean, std = _moments(latents, others_than(channel_axis(latents.shape), latents.ndim))
        if still := np.flatnonzero(std.ravel() == 0).tolist():
            raise ValueError(f"standardise=channel needs channels that vary, number {still[0]} does not")
        return LatentScale(mean=mean, std=std)
    multiply, shift = (
        _per_channel(name, values, latents.shape)
        for name, values in (("latent_scale", scaling.multiply or [1.0]), ("latent_shift", scaling.shift or [0.0]))
    )
    left, divided = ((latents - shift) * factor for factor in (multiply, 1.0 / multiply))
    left, divided = float(np.std(left, dtype=np.float64)), float(np.std(divided, dtype=np.float64))
    if not _is_right(left) and _is_right(divided):
        given, meant = (",".join(f"{x:.4g}" for x in values) for values in (scaling.multiply, 1.0 / np.ravel(multiply)))
        raise ValueError(
            f"latent_scale: multiplies, as in diffusers: {given} leaves the latents a deviation of {left:.3g}, dividing by it "
            f"{divided:.3g}; give latent_scale={meant}"
        )
    return LatentScale(mean=shift, std=1.0 / multiply)


def check_factors(scaling: Scaling, shapes: Sequence[tuple[int, ...]]) -> None:
    """Raises `ValueError` unless there is one factor and shift, or one for each channel, of latents ``[N, *shape]``."""
    for shape in shapes:
        for name, values in (("latent_scale", scaling.multiply), ("latent_shift", scaling.shift)):
            if values is not None:
                _per_channel(name, values, (1, *shape))


def describe(name: str, latents: np.ndarray, scaling: Scaling, scale: LatentScale) -> str:
    """A sentence on what the scale is and does."""
    own = LatentScale.measure(latents)
    entries = int(np.prod(latents.shape[1:]))
    text = f"{name}: {entries} latent entries, mean {own.mean:.3g}, standard deviation {own.std:.3g}"
    if _is_white(latents):
        text += " (whitened: equal deviations, no correlation; stopping changes their covariance little)"
    scaled = scale.standardise(latents)
    mean, left = (float(function(scaled, dtype=np.float64)) for function in (np.mean, np.std))
    if scaling.multiply is not None or scaling.shift is not None:
        text += f"; scaled and shifted as asked, which leaves a mean of {mean:.2g} and a deviation of {left:.3g}"
    elif scaling.standardise == "none":
        text += "; taken as they are"
    else:
        each = "every channel to" if scaling.standardise == "channel" else "them to"
        return text + f"; noise is added after bringing {each} mean 0 and deviation 1: train the diffusion model so too"
    if not 1 / WHITENED < left < WHITENED:
        text += f": not 1, which shifts every stop by {-2 * np.log(left):+.2g} in logsnr against standardised latents"
    if abs(mean) > CENTRED * left:
        text += "; that mean is not 0, and noise takes it away with the rest: an early stop is off by its share"
    return text


def notices(name: str, latents: np.ndarray, scaling: Scaling) -> list[str]:
    """Sentences on latents that a diffusion model would hardly be given on purpose; none on clean ones."""
    axis = channel_axis(latents.shape)
    by_channel = _moments(latents, others_than(axis, latents.ndim))
    found = _still(name, *(x.ravel() for x in by_channel))
    by_channels = scaling.standardise == "channel" or len(scaling.multiply or ()) > 1
    if not by_channels:
        found += _uneven(name, "channels", *(x.ravel() for x in by_channel), vectors=latents.ndim == 2)
    if latents.ndim > 2:
        by_position = _moments(latents, (0, axis))
        found += _uneven(name, "positions", *(x.ravel() for x in by_position), vectors=False)
    return found


def channel_axis(shape: Sequence[int]) -> int:
    """Axis of the channels of latents ``[N, ...]``, see the module."""
    return 1 if data.channels.of_latents_are_first(tuple(shape[1:])) else len(shape) - 1


def others_than(axis: int, ndim: int) -> tuple[int, ...]:
    """All axes but one."""
    return tuple(i for i in range(ndim) if i != axis)


def _moments(latents, axes):
    """(mean, deviation) over axes, with the sample axis dropped so that they broadcast against one latent."""
    mean = np.mean(latents, axis=axes, keepdims=True, dtype=np.float64)[0]
    std = np.std(latents, axis=axes, keepdims=True, dtype=np.float64)[0]
    return mean, np.where(std < 1e-6 * np.abs(mean), 0.0, std)


def _per_channel(name, values, shape):
    values = np.asarray(values, np.float64)
    if len(values) == 1:
        return float(values[0])
    axis = channel_axis(shape)
    if len(values) != shape[axis]:
        what = "entries" if len(shape) == 2 else "channels"
        raise ValueError(f"{name}: must hold one number or one for each of {shape[axis]} {what}, got {len(values)}")
    return values.reshape([-1 if i == axis else 1 for i in range(1, len(shape))])


def _is_right(deviation):
    return 1 / RIGHT < deviation < RIGHT


def _uneven(name, what, mean, std, *, vectors):
    """Of vectors only means are compared: components of falling variance are what an autoencoder makes."""
    varying = std > 0
    if np.count_nonzero(varying) < 2:
        return []
    mean, std = mean[varying], std[varying]
    within, apart = np.sqrt(np.mean(std**2)), np.std(mean)
    differ = not vectors and std.max() > UNEVEN[what] * std.min()
    if not differ and apart < APART * within:
        return []
    advice = "standardise=channel gives each its own scale" if what == "channels" else "is that so on purpose?"
    return [
        f"{name}: {what} differ much, deviations {std.min():.3g} to {std.max():.3g} and means {mean.min():.3g} to "
        f"{mean.max():.3g}: one noise level is early for some and late for others, and gains may be of the scale only; {advice}"
    ]


def _still(name, mean, std):
    """Entries that hardly vary around a mean away from the others', as log-variances do."""
    if len(std) < 2:
        return []
    usual = np.median(np.sort(std)[len(std) // 2 :])
    still = (std < STILL * usual) & (np.abs(mean - np.median(mean)) > FAR * std) & (np.abs(mean) > STILL * usual)
    if not still.any():
        return []
    where = np.flatnonzero(still)
    numbers = ", ".join(map(str, where[:NAMED])) + (" ..." if len(where) > NAMED else "")
    means = " to ".join(dict.fromkeys(f"{x:.3g}" for x in (mean[still].min(), mean[still].max())))
    text = (
        f"{name}: {len(where)} of {len(std)} channels hardly vary (numbers {numbers}: deviation at most "
        f"{std[still].max():.2g} around {means}, against a deviation of {usual:.2g})"
    )
    half = len(std) // 2
    if np.mean(still[half:]) > 0.5 > np.mean(still[:half]):
        text += ": a stack of means and log-variances? Give the means alone"
    return [text + "; a common scale lets noise blur them early, which looks like a gain"]


def _is_white(latents):
    flat = latents.reshape(len(latents), -1).astype(np.float64)
    n, dim = flat.shape
    if not 1 < dim <= 2048:
        return False
    flat = flat - flat.mean(axis=0)
    std = flat.std(axis=0)
    if not std.min() > 0:
        return False
    # Largest of dim deviations of n Gaussian draws, roughly.
    chance = np.sqrt(np.log(dim) / n)
    if np.log(std.max() / std.min()) > np.log(WHITENED) + 2.0 * chance:
        return False
    correlations = (flat / std).T @ (flat / std) / n
    off = correlations[~np.eye(dim, dtype=bool)]
    return bool(np.sqrt(np.mean(off**2)) < 1.5 / np.sqrt(n) + 0.02)
