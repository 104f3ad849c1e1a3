"""Flags that experiments share, in groups."""

import os
from pathlib import Path

from experiments.flags.jobs import define_job_flags
from experiments.flags.parsers import (
    IMPORT,
    define_choice,
    define_choices,
    define_float,
    define_integer,
    define_list,
    define_switch,
    define_word,
    define_words,
)
from ldmjax import data, features
from ldmjax.convolutions import PRECISIONS

LADDERS = ("karras", "uniform_logsnr", "linear_beta", "scaled_linear", "cosine", "rectified_flow", "spectral")
LARGEST_LADDER = 10_000
LARGEST_DIM = 16_384  # its covariance takes 2 GiB


def define_data_flags(*, default: str = "digits") -> None:
    """--data, --spectrum, --data_dim."""
    define_word(
        "data",
        None,
        "The data. An .npz holds images or x, maybe labels or y; subfolders are classes; hf: are data sets of "
        f"Hugging Face's package datasets. Default: {default}.",
        allowed=data.NAMES,
        check=_check_data,
    )
    define_word(
        "spectrum",
        None,
        "Instead of --data, a Gaussian with this spectrum.",
        allowed=data.SPECTRA,
        check=lambda description: data.spectrum_variances(description, LARGEST_DIM),
    )
    define_integer("data_dim", 64, "Dimension of --spectrum (a file gives its own).", low=1, high=LARGEST_DIM)


def _check_data(name: str) -> None:
    if name.endswith(".npz"):
        check_file(name)
    elif name != "digits" and not name.startswith("hf:") and not Path(name).is_dir():
        raise ValueError(f"unknown data {name!r}")


def check_file(path: str) -> None:
    """ValueError if there is no such file."""
    if not Path(path).is_file():
        raise ValueError(f"no file {path!r}")


def check_npz(path: str) -> None:
    """ValueError if there is no such .npz file."""
    _check_ending(path, ".npz")


def check_arrays(path: str) -> None:
    """ValueError if there is no such .npz or .npy file."""
    _check_ending(path, ".npz", ".npy")


def _check_ending(path, *endings):
    check_file(path)
    if not path.endswith(endings):
        raise ValueError(f"{path!r} does not end in {' or '.join(endings)}")


def define_feature_flags(*, default: str = "pixels") -> None:
    """--features."""
    define_words(
        "features",
        default,
        "Spaces in which images are compared. An .npz is a linear map: weight [D, F], maybe bias [F].",
        allowed=f"descriptions out of {features.DESCRIPTIONS}",
        check=_check_features,
    )


def _check_features(description: str) -> None:
    if description.endswith(".npz"):
        check_file(description)
    elif description not in ("pixels", "classifier") and not IMPORT.fullmatch(description):
        raise ValueError(f"unknown features {description!r}")


def define_ladder_flags(*, default: str = "karras", levels: int | str = 32) -> None:
    """--ladders, --levels (a list if its default is one, "8,32"), --sigma_min, --sigma_max."""
    define_choices("ladders", default, "Ladders of noise levels.", LADDERS)
    if isinstance(levels, str):
        define_list("levels", levels, "Numbers of noise levels of a ladder, T.", int, 1, LARGEST_LADDER)
    else:
        define_integer("levels", levels, "Noise levels of a ladder, T.", low=1, high=LARGEST_LADDER)
    help_text = "{} ratio sigma/alpha of karras and uniform_logsnr."
    define_float("sigma_min", 0.002, help_text.format("Cleanest"), low=0.0, low_open=True)
    define_float("sigma_max", 80.0, help_text.format("Noisiest"), low=0.0, low_open=True)


def define_common_flags(experiment: str) -> None:
    """--workdir, --quick, and how the job is run."""
    define_word(
        "workdir",
        f"results/{experiment}",
        "Where flags.txt, records.jsonl, curves.npz and figures go.",
        allowed="a directory that can be written, or made",
        check=check_writable,
    )
    define_switch("quick", False, "A smaller version of everything, to see that it runs.")
    define_job_flags()


def check_writable(path: str) -> None:
    """ValueError, without touching anything, unless the directory, or the nearest one above it that exists, is writable."""
    place = next(p for p in [Path(path).absolute(), *Path(path).absolute().parents] if p.exists())
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        raise ValueError(f"cannot write to {path!r}")


def define_precision_flag() -> None:
    """--precision."""
    define_choice(
        "precision",
        "float32",
        "Of activations and products in trained autoencoders and U-Nets. Their parameters, statistics and losses, and MLPs, "
        "are always in float32.",
        PRECISIONS,
    )


def define_runs_per_batch(what: str = "runs") -> None:
    """--runs_per_batch, or --experts_per_batch."""
    define_integer(
        f"{what}_per_batch", None, f"{what.capitalize()} vmapped at once on each device, bounds memory; one on a CPU, "
        "elsewhere all there are (large U-Nets and autoencoders: one), if not given.", low=1, high=10_000,
    )  # fmt: skip
