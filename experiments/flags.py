"""Flags that experiments share, their validation, and the one way to start an experiment.

Bad input ends with one line on stderr (flag, value got, what is allowed) and exit status 2, before any work. Lists are
comma-separated.
"""

import math
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from ldmjax import data, features, records, schedules

FLAGS = flags.FLAGS
EXIT_USAGE = 2
LADDERS = ("karras", "uniform_logsnr", "linear_beta", "scaled_linear", "cosine", "rectified_flow", "spectral")


class UsageError(Exception):
    """Bad input; its text is the one line that the user sees."""


class _ListParser(flags.ArgumentParser):
    """Comma-separated numbers within bounds, without repetition."""

    def __init__(self, kind: type, low: float, high: float, *, low_open: bool = False, infinite: bool = False):
        self.kind, self.low, self.high, self.low_open, self.infinite = kind, low, high, low_open, infinite
        bounds = f"{'>' if low_open else '>='} {low:g}" + ("" if high == math.inf else f" and <= {high:g}")
        noun = "whole numbers" if kind is int else "numbers"
        self.allowed = f"comma-separated {noun} {bounds}{' or inf' if infinite else ''}, none twice"
        self.syntactic_help = self.allowed

    def parse(self, argument: str | Sequence) -> list:
        words = argument.split(",") if isinstance(argument, str) else [str(a) for a in argument]
        try:
            values = [self.kind(word.strip()) for word in words]
        except ValueError:
            raise ValueError(f"must be {self.allowed}") from None
        for value in values:
            above = value > self.low if self.low_open else value >= self.low
            if not (above and value <= self.high and (math.isfinite(value) or (self.infinite and value > 0))):
                raise ValueError(f"must be {self.allowed}")
        if len(set(values)) < len(values):
            raise ValueError(f"must be {self.allowed}")
        return values

    def flag_type(self) -> str:
        return f"comma-separated {self.kind.__name__} list"


class _ChoicesParser(flags.ArgumentParser):
    """Comma-separated names out of a set, without repetition."""

    def __init__(self, choices: Sequence[str]):
        self.choices = tuple(choices)
        self.allowed = f"comma-separated names out of {', '.join(self.choices)}, none twice"
        self.syntactic_help = self.allowed

    def parse(self, argument: str | Sequence[str]) -> list[str]:
        words = [w.strip() for w in (argument.split(",") if isinstance(argument, str) else argument)]
        if set(words) - set(self.choices) or len(set(words)) < len(words):
            raise ValueError(f"must be {self.allowed}")
        return words

    def flag_type(self) -> str:
        return "comma-separated names"


class _WordsParser(flags.ArgumentParser):
    """Comma-separated words, without repetition."""

    syntactic_help = "comma-separated words, none twice"

    def parse(self, argument: str | Sequence[str]) -> list[str]:
        words = [w.strip() for w in (argument.split(",") if isinstance(argument, str) else argument)]
        if not all(words) or len(set(words)) < len(words):
            raise ValueError(f"must be {self.syntactic_help}")
        return words

    def flag_type(self) -> str:
        return "comma-separated words"


class _RangeParser(flags.ArgumentParser):
    """LOW:HIGH, whole numbers >= 1, both included."""

    syntactic_help = "LOW:HIGH, whole numbers with 1 <= LOW <= HIGH, both included"

    def parse(self, argument: str | Sequence[int]) -> tuple[int, int]:
        words = argument.split(":") if isinstance(argument, str) else argument
        try:
            low, high = (int(word) for word in words)
        except ValueError:
            raise ValueError(f"must be {self.syntactic_help}") from None
        if not 1 <= low <= high:
            raise ValueError(f"must be {self.syntactic_help}")
        return low, high

    def flag_type(self) -> str:
        return "range"


class _RangeSerializer(flags.ArgumentSerializer):
    def serialize(self, value: tuple[int, int]) -> str:
        return f"{value[0]}:{value[1]}"


class _ListSerializer(flags.ArgumentSerializer):
    def serialize(self, value: Sequence) -> str:
        return ",".join(str(v) for v in value)


def define_list(
    name: str, default: str | None, help_text: str, kind: type, low: float, high: float = math.inf, **bounds
):
    """Defines a list flag; ``bounds`` are `_ListParser`'s."""
    parser = _ListParser(kind, low, high, **bounds)
    flags.DEFINE(parser, name, default, help_text, serializer=_ListSerializer())


def define_choices(name: str, default: str, help_text: str, choices: Sequence[str]):
    """Defines a list flag whose entries are names out of ``choices``."""
    flags.DEFINE(_ChoicesParser(choices), name, default, help_text, serializer=_ListSerializer())


def define_integer(name: str, default: int | None, help_text: str, *, low: int, high: int | None = None):
    """Defines a bounded integer flag."""
    flags.DEFINE_integer(name, default, help_text, lower_bound=low, upper_bound=high)


def define_data_flags(*, default: str = "digits") -> None:
    """--data, --spectrum, --data_dim."""
    flags.DEFINE_string(
        "data",
        None,
        f"{data.NAMES}. An .npz holds images or x, maybe labels or y; subfolders are classes; hf: are data sets of "
        f"Hugging Face's package datasets. Default: {default}.",
    )
    flags.DEFINE_string("spectrum", None, f"Instead of --data, a Gaussian with this spectrum: {data.SPECTRA}.")
    define_integer("data_dim", 64, "Dimension of --spectrum (a file gives its own).", low=1, high=100_000)


def define_feature_flags(*, default: str = "pixels") -> None:
    """--features."""
    help_text = f"Spaces in which images are compared, a list: {features.DESCRIPTIONS} (keys weight [D, F], bias [F])."
    flags.DEFINE(_WordsParser(), "features", default, help_text, serializer=_ListSerializer())


def define_ladder_flags(*, default: str = "karras", levels: int | str = 32) -> None:
    """--ladders, --levels (a list if its default is one, "8,32"), --sigma_min, --sigma_max."""
    define_choices("ladders", default, f"Ladders of noise levels: {', '.join(LADDERS)}.", LADDERS)
    if isinstance(levels, str):
        define_list("levels", levels, "Numbers of noise levels of a ladder, T.", int, 1, 10_000)
    else:
        define_integer("levels", levels, "Noise levels of a ladder, T.", low=1, high=10_000)
    flags.DEFINE_float("sigma_min", 0.002, "Cleanest ratio sigma/alpha of karras and uniform_logsnr.")
    flags.DEFINE_float("sigma_max", 80.0, "Noisiest ratio sigma/alpha of karras and uniform_logsnr.")


def define_states(help_text: str) -> None:
    """--states=LOW:HIGH, a range of levels of a ladder; (low, high), or None if not given."""
    flags.DEFINE(_RangeParser(), "states", None, help_text, serializer=_RangeSerializer())


def define_common_flags(experiment: str) -> None:
    """--workdir and --quick."""
    flags.DEFINE_string(
        "workdir", f"results/{experiment}", "Directory for flags.txt, records.jsonl, curves.npz, figures."
    )
    flags.DEFINE_bool("quick", False, "A smaller version of everything, to see that it runs.")


def apply_quick(values: Mapping[str, Any]) -> None:
    """With --quick, gives the flags that are not on the command line these values."""
    for name, value in values.items():
        if FLAGS.quick and not FLAGS[name].present:
            FLAGS[name].value = value


def bad(name: str, value: Any, allowed: str) -> UsageError:
    """The error for a flag whose value is refused after parsing."""
    if isinstance(value, list | tuple):
        value = ",".join(str(v) for v in value)
    return UsageError(f"flag --{name}={value}: {allowed}")


def load_dataset(*, default: str = "digits") -> data.Dataset:
    """The data set that --data or --spectrum names."""
    if FLAGS.data is not None and FLAGS.spectrum is not None:
        raise bad("spectrum", FLAGS.spectrum, f"allowed only without --data, got --data={FLAGS.data} as well")
    if FLAGS.spectrum is not None:
        try:
            return data.spectrum(FLAGS.spectrum, FLAGS.data_dim)
        except ValueError as error:
            raise bad("spectrum", FLAGS.spectrum, str(error)) from error
    name = default if FLAGS.data is None else FLAGS.data
    try:
        return data.load(name)
    except ValueError as error:
        raise bad("data", name, str(error)) from error


def load_features(
    dataset: data.Dataset, *, report: Callable[[str], None] = lambda line: print(line, flush=True)
) -> list[features.Features]:
    """The feature spaces that --features names."""
    found = []
    for description in FLAGS.features:
        try:
            found.append(features.load(description, dataset, report=report))
        except ValueError as error:
            raise bad("features", FLAGS.features, str(error)) from error
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
    """The data are samples, not a bare --spectrum."""
    if dataset.samples is None:
        raise bad("spectrum", FLAGS.spectrum, "a spectrum has no images")


def check_latent_dims(dataset: data.Dataset) -> None:
    """Every --latent_dims is at most D."""
    if max(FLAGS.latent_dims) > dataset.dim:
        raise bad("latent_dims", FLAGS.latent_dims, f"must be 1..{dataset.dim}, the dimension of {dataset.name}")


def prepare_workdir() -> Path:
    """Creates --workdir and writes flags.txt, which reruns the experiment with --flagfile."""
    try:
        workdir = records.prepare_workdir(FLAGS.workdir)
    except ValueError as error:
        raise bad("workdir", FLAGS.workdir, str(error)) from error
    own = {flag.name: flag for module in ("__main__", "experiments.flags") for flag in _module_flags(module)}
    lines = [own[name].serialize() for name in sorted(own) if name != "workdir" and own[name].value is not None]
    records.write_text(workdir / "flags.txt", "".join(line + "\n" for line in lines))
    return workdir


def _module_flags(module: str):
    by_module = FLAGS.flags_by_module_dict()
    return by_module.get(sys.argv[0] if module == "__main__" else module, [])


def run(main: Callable[[], None]) -> None:
    """Parses flags, runs ``main``, and turns bad input into one line and exit status 2."""
    try:
        if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
            print(_help_text(), flush=True)
            return
        stray = FLAGS(sys.argv)[1:]
        if stray:
            raise UsageError(f"stray word {stray[0]!r}: only flags of the form --name=value are allowed")
        main()
    except flags.UnrecognizedFlagError as error:
        _refuse(f"{error}; --help lists the flags that are allowed")
    except flags.Error as error:
        _refuse(str(error))
    except UsageError as error:
        _refuse(str(error))
    except BrokenPipeError:
        os._exit(1)


def _help_text() -> str:
    """The experiment's docstring and its flags."""
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else ""
    text = sys.modules[name.removesuffix(".__main__")].__doc__ if name.endswith(".__main__") else module.__doc__
    return f"{text}\n{FLAGS.module_help(__name__)}\n{FLAGS.module_help(sys.argv[0])}"


def _refuse(line: str) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(EXIT_USAGE)
