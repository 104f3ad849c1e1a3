"""Typed flags: what a value may be, and the flags that experiments share. Lists are comma-separated."""

import math
from collections.abc import Sequence

from absl import flags

from ldmjax import data, features

LADDERS = ("karras", "uniform_logsnr", "linear_beta", "scaled_linear", "cosine", "rectified_flow", "spectral")


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
