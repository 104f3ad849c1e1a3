"""Typed flags: what a value may be. Every flag of an experiment is defined by one function of this file.

A parser knows what it allows in words (``allowed``), which bad input and --help show. Lists are comma-separated.
"""

import math
import re
from collections.abc import Callable, Sequence

from absl import flags

IMPORT = re.compile(r"[^:\s]+:[^:\s]+")  # package.module:function
LARGEST_SEED = 2**31 - 1  # seeds travel as int32

flags.disclaim_key_flags()  # a flag belongs to the module that asks for it, not to this one


class _Parser(flags.ArgumentParser):
    """Reads one word; ``plural`` is what a list of such words is called."""

    allowed = plural = ""

    def read(self, word: str):
        """The value of a word; ValueError, with a reason if ``allowed`` is not all, if it is refused."""
        raise NotImplementedError

    def parse(self, argument):
        try:
            return self.read(str(argument))
        except ValueError as error:
            reason = f" ({error})" if error.args else ""
            raise ValueError(f"must be {self.allowed}{reason}") from None

    def flag_type(self) -> str:
        return self.allowed


def _plain(number: float) -> str:
    return f"{number:_}" if isinstance(number, int) else f"{number:g}"


class _NumberParser(_Parser):
    """A whole or a real number within bounds."""

    def __init__(
        self, kind: type, low: float, high: float, *, low_open: bool = False, high_open: bool = False, infinite=False
    ):
        self.kind, self.low, self.high, self.infinite = kind, low, high, infinite
        self.low_open, self.high_open = low_open, high_open
        upper = "" if high == math.inf else f" and {'<' if high_open else '<='} {_plain(high)}"
        bounds = f"{'>' if low_open else '>='} {_plain(low)}{upper}{' or inf' if infinite else ''}"
        noun = "whole number" if kind is int else "number" if infinite else "finite number"
        self.allowed, self.plural = f"a {noun} {bounds}", f"{noun}s {bounds}"

    def read(self, word: str) -> float:
        try:
            value = math.inf if self.infinite and word.strip() == "inf" else self.kind(word.strip())
        except ValueError:
            raise ValueError from None
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        if not (above and below and math.isfinite(value) or self.infinite and value == math.inf):
            raise ValueError
        return value


class _ChoiceParser(_Parser):
    """One name out of a set."""

    def __init__(self, choices: Sequence[str]):
        self.choices = tuple(choices)
        self.allowed = f"one of {', '.join(self.choices)}"
        self.plural = f"names out of {', '.join(self.choices)}"

    def read(self, word: str) -> str:
        if word.strip() not in self.choices:
            raise ValueError
        return word.strip()


class _WordParser(_Parser):
    """A word that is not empty and passes ``check``, which raises ValueError with a reason."""

    def __init__(self, allowed: str, check: Callable[[str], object]):
        self.allowed = self.plural = allowed
        self.check = check

    def read(self, word: str) -> str:
        word = word.strip()
        if not word or word.startswith("--"):  # "--data --quick": the value was forgotten
            raise ValueError
        self.check(word)
        return word


class _RangeParser(_Parser):
    """LOW:HIGH, whole numbers >= 1."""

    allowed = "LOW:HIGH, whole numbers with 1 <= LOW <= HIGH, both included"

    def read(self, word: str) -> tuple[int, int]:
        try:
            low, high = (int(part) for part in word.split(":"))
        except ValueError:
            raise ValueError from None
        if not 1 <= low <= high:
            raise ValueError
        return low, high


class _SwitchParser(_Parser):
    """True or false."""

    allowed = "true or false"

    def read(self, word: str) -> bool:
        if word.lower() not in ("true", "false", "1", "0"):
            raise ValueError
        return word.lower() in ("true", "1")


class _ListParser(_Parser):
    """Comma-separated words that ``item`` reads, none twice."""

    def __init__(self, item: _Parser):
        self.item, self.allowed = item, f"comma-separated {item.plural}, none twice"

    def read(self, word: str) -> list:
        values = [self.item.read(part) for part in word.split(",")]
        if len(set(values)) < len(values):
            raise ValueError
        return values


class _Serializer(flags.ArgumentSerializer):
    """Writes a value so that its parser reads it again."""

    def serialize(self, value) -> str:
        joint = ":" if isinstance(value, tuple) else ","
        return joint.join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _define(parser: _Parser, name: str, default, help_text: str) -> None:
    flags.DEFINE(parser, name, default, help_text, serializer=_Serializer())


def define_integer(name: str, default: int | None, help_text: str, *, low: int, high: int) -> None:
    """Defines a flag for a whole number ``low..high``."""
    _define(_NumberParser(int, low, high), name, default, help_text)


def define_seed(name: str, default: int, help_text: str) -> None:
    """Defines a flag for a seed."""
    define_integer(name, default, help_text, low=0, high=LARGEST_SEED)


def define_float(
    name: str, default: float | None, help_text: str, *, low: float, high: float = math.inf, **open_bounds
):
    """Defines a flag for a finite number; ``low_open=True`` or ``high_open=True`` excludes that bound."""
    flags.DEFINE(
        _NumberParser(float, low, high, **open_bounds), name, default, help_text, serializer=flags.ArgumentSerializer()
    )


def define_list(
    name: str, default: str | None, help_text: str, kind: type, low: float, high: float = math.inf, **bounds
) -> None:
    """Defines a flag for a list of numbers; ``bounds`` are ``low_open``, ``high_open`` and ``infinite`` (inf is allowed)."""
    _define(_ListParser(_NumberParser(kind, low, high, **bounds)), name, default, help_text)


def define_seeds(default: str, help_text: str) -> None:
    """Defines --seeds, a list."""
    define_list("seeds", default, help_text, int, 0, LARGEST_SEED)


def define_choice(name: str, default: str | None, help_text: str, choices: Sequence[str]) -> None:
    """Defines a flag for one name out of ``choices``."""
    _define(_ChoiceParser(choices), name, default, help_text)


def define_choices(name: str, default: str, help_text: str, choices: Sequence[str]) -> None:
    """Defines a flag for a list of names out of ``choices``."""
    _define(_ListParser(_ChoiceParser(choices)), name, default, help_text)


def define_word(
    name: str, default: str | None, help_text: str, *, allowed: str, check: Callable[[str], object] = lambda word: None
) -> None:
    """Defines a flag for a name, a path or a description.

    Args:
      name: of the flag.
      default: its value if it is not given.
      help_text: for --help.
      allowed: says what is allowed, after "must be".
      check: raises ValueError, maybe with a reason, for a word that is not.
    """
    _define(_WordParser(allowed, check), name, default, help_text)


def define_words(name: str, default: str, help_text: str, *, allowed: str, check: Callable[[str], object]) -> None:
    """Defines a flag for a list of words, each as in `define_word`; ``allowed`` is in the plural."""
    _define(_ListParser(_WordParser(allowed, check)), name, default, help_text)


def define_import(name: str, help_text: str) -> None:
    """Defines a flag for a callable of the user's; `checks.import_named` imports it."""
    define_word(name, None, help_text, allowed="package.module:function", check=_check_import)


def _check_import(description: str) -> None:
    if not IMPORT.fullmatch(description):
        raise ValueError


def define_range(name: str, help_text: str) -> None:
    """Defines a flag for a range LOW:HIGH; (low, high), or None if not given."""
    _define(_RangeParser(), name, None, help_text)


def define_switch(name: str, default: bool, help_text: str) -> None:
    """Defines a flag that is set by --NAME and --noNAME."""
    flag = flags.BooleanFlag(name, default, help_text)
    flag.parser = _SwitchParser()  # absl's does not say what is allowed
    flags.DEFINE_flag(flag)
