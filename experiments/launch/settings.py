"""Settings: the fields of a frozen dataclass, each declared once, with its default, what it means and what it may be.

    @dataclass(frozen=True, kw_only=True)
    class Config(Settings):
        latent_dims: tuple[int, ...] = setting((1, 2, 4), "Latent dimensions.", low=1)

Flags, --help, bounds, flags.txt and the tables in docs/ come from this declaration; so do the refusals, of a command and of
``Config(latent_dims=(0,))`` in a notebook alike. A field's annotation says of which kind it is:

    int, float, bool, str          one value
    tuple[int, ...] and the like   a list, comma-separated, none twice
    tuple[int, int]                a range LOW:HIGH of whole numbers >= 1
    KIND | None                    not given by default

Fields without `setting` are no flags.
"""

import dataclasses
import math
import re
import types
import typing
from collections.abc import Callable, Sequence
from typing import Any

from ldmjax.job import Job

IMPORT = re.compile(r"[^:\s]+:[^:\s]+")  # package.module:function
LARGEST_SEED = 2**31 - 1  # seeds travel as int32


class SettingError(ValueError):
    """A setting that is refused: its name, the value got, and what is allowed."""

    def __init__(self, name: str, value: Any, allowed: str):
        self.name, self.value, self.allowed = name, value, allowed
        super().__init__(f"{name}={as_word(value)}: {allowed}")


def setting(
    default: Any,
    help: str,  # noqa: A002 - what every library of flags calls it
    *,
    low: float = -math.inf,
    high: float = math.inf,
    low_open: bool = False,
    high_open: bool = False,
    infinite: bool = False,
    multiple: int = 1,
    choices: Sequence[str] = (),
    allowed: str = "",
    check: Callable[[str], object] = lambda word: None,
    how: bool = False,
) -> Any:
    """Declares a field.

    Args:
      default: its value if it is not given; None needs an annotation that allows it.
      help: what it means, for --help and the docs.
      low: least number, and ``high`` the largest; both belong to what is allowed unless ``low_open`` or ``high_open``.
      high: see ``low``.
      low_open: see ``low``.
      high_open: see ``low``.
      infinite: whether inf is allowed beyond ``high``.
      multiple: of which a whole number has to be one.
      choices: the words that are allowed.
      allowed: says what other words are, after "must be" (of a list: in the plural).
      check: raises ValueError, maybe with a reason, for a word that is not.
      how: whether it says only how a job is run, not what is computed: it is no part of a job's identity.
    """
    bounds = {"low": low, "high": high, "low_open": low_open, "high_open": high_open, "infinite": infinite}
    bounds["multiple"] = multiple
    words = {"choices": tuple(choices), "allowed": allowed, "check": check}
    return dataclasses.field(default=default, metadata={"help": help, "bounds": bounds, "words": words, "how": how})


def seed(default: int = 0, help: str = "Of all random numbers.") -> Any:  # noqa: A002
    """Declares a seed."""
    return setting(default, help, low=0, high=LARGEST_SEED)


def seeds(default: tuple[int, ...], help: str) -> Any:  # noqa: A002
    """Declares a list of seeds."""
    return setting(default, help, low=0, high=LARGEST_SEED)


def redeclared(config: type, name: str, default: Any) -> Any:
    """Declares a field of another configuration again, with a default of its own."""
    return dataclasses.field(default=default, metadata=config.__dataclass_fields__[name].metadata)


def function(help: str) -> Any:  # noqa: A002
    """Declares a function of the user's, given as text."""
    return setting(None, help, allowed="package.module:function", check=_check_import)


def _check_import(description: str) -> None:
    if not IMPORT.fullmatch(description):
        raise ValueError


@dataclasses.dataclass(frozen=True, kw_only=True)
class Settings:
    """Base of configurations: refuses values that a field's declaration does not allow, with `SettingError`."""

    def __post_init__(self):
        for name, parser in parsers(type(self)).items():
            value = getattr(self, name)
            if value is None and parser.optional:
                continue
            try:
                object.__setattr__(self, name, parser.parse(as_word(value)))
            except ValueError as error:
                raise SettingError(name, value, str(error)) from None

    def refuse(self, name: str, allowed: str) -> SettingError:
        """Returns the error for a setting that only something else shows to be wrong: the data, or another setting."""
        return SettingError(name, getattr(self, name), allowed)

    def refuse_change(self, name: str, digest: str, job: Job) -> None:
        """`SettingError` if what the user's function gives, known by a digest, is not what it gave when the job began."""
        if not job.is_same(name, digest):
            ways_out = "--overwrite starts anew, another --workdir keeps both"
            raise self.refuse(name, f"gives other numbers than when the job began: {ways_out}")


def as_word(value: Any) -> str:
    """The word on a command line that stands for a value."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Range):
        return f"{value[0]}:{value[1]}"
    if isinstance(value, list | tuple):
        return ",".join(as_word(v) for v in value)
    return str(value)


class Range(tuple):
    """LOW:HIGH, both included."""


class Parser:
    """Reads one word; ``plural`` is what a list of such words is called."""

    allowed = plural = ""
    optional = False

    def read(self, word: str) -> Any:
        """The value of a word; ValueError, with a reason if ``allowed`` is not all, if it is refused."""
        raise NotImplementedError

    def parse(self, word: str) -> Any:
        """As `read`; the error says what is allowed."""
        try:
            return self.read(str(word))
        except ValueError as error:
            reason = f" ({error})" if error.args else ""
            raise ValueError(f"must be {self.allowed}{reason}") from None


def _plain(number: float) -> str:
    return f"{number:_}" if isinstance(number, int) else f"{number:g}"


class NumberParser(Parser):
    """A whole or a real number within bounds."""

    def __init__(
        self, kind: type, *, low: float, high: float, low_open: bool, high_open: bool, infinite: bool, multiple: int
    ):
        self.kind, self.low, self.high, self.infinite, self.multiple = kind, low, high, infinite, multiple
        self.low_open, self.high_open = low_open, high_open
        lower = "" if low == -math.inf else f"{'>' if low_open else '>='} {_plain(low)}"
        upper = "" if high == math.inf else f"{'<' if high_open else '<='} {_plain(high)}"
        bounds = " ".join(["", " and ".join(filter(None, (lower, upper)))]).rstrip() + (" or inf" if infinite else "")
        bounds += f", a multiple of {multiple}" if multiple > 1 else ""
        noun = "whole number" if kind is int else "number" if infinite else "finite number"
        self.allowed, self.plural = f"a {noun}{bounds}", f"{noun}s{bounds}"

    def read(self, word: str) -> float:
        try:
            value = math.inf if self.infinite and word.strip() == "inf" else self.kind(word.strip())
        except ValueError:
            raise ValueError from None
        above = value > self.low if self.low_open else value >= self.low
        below = value < self.high if self.high_open else value <= self.high
        fits = above and below and math.isfinite(value) and (self.multiple == 1 or value % self.multiple == 0)
        if not (fits or self.infinite and value == math.inf):
            raise ValueError
        return value


class ChoiceParser(Parser):
    """One name out of a set."""

    def __init__(self, choices: Sequence[str]):
        self.choices = tuple(choices)
        self.allowed = f"one of {', '.join(self.choices)}"
        self.plural = f"names out of {', '.join(self.choices)}"

    def read(self, word: str) -> str:
        if word.strip() not in self.choices:
            raise ValueError
        return word.strip()


class WordParser(Parser):
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


class RangeParser(Parser):
    """LOW:HIGH, whole numbers >= 1."""

    allowed = "LOW:HIGH, whole numbers with 1 <= LOW <= HIGH, both included"

    def read(self, word: str) -> Range:
        try:
            low, high = (int(part) for part in re.split("[:,]", word))
        except ValueError:
            raise ValueError from None
        if not 1 <= low <= high:
            raise ValueError
        return Range((low, high))


class SwitchParser(Parser):
    """True or false."""

    allowed = "true or false"

    def read(self, word: str) -> bool:
        if word.lower() not in ("true", "false", "1", "0"):
            raise ValueError
        return word.lower() in ("true", "1")


class ListParser(Parser):
    """Comma-separated words that ``item`` reads, none twice."""

    def __init__(self, item: Parser):
        self.item, self.allowed = item, f"comma-separated {item.plural}, none twice"

    def read(self, word: str) -> tuple:
        values = tuple(self.item.read(part) for part in word.split(","))
        if len(set(values)) < len(values):
            raise ValueError
        return values


def fields(config: type[Settings]) -> list[dataclasses.Field]:
    """The fields that are settings, in the order of their declaration."""
    return [field for field in dataclasses.fields(config) if "bounds" in field.metadata]


def parsers(config: type[Settings]) -> dict[str, Parser]:
    """What reads each setting of a configuration, by name."""
    kinds = typing.get_type_hints(config)
    return {field.name: _parser(field, kinds[field.name]) for field in fields(config)}


def _parser(field: dataclasses.Field, kind: Any) -> Parser:
    optional = isinstance(kind, types.UnionType) and type(None) in typing.get_args(kind)
    if optional:
        (kind,) = (k for k in typing.get_args(kind) if k is not type(None))
    bounds, words = field.metadata["bounds"], field.metadata["words"]
    arguments = typing.get_args(kind)
    if arguments == (int, int):
        parser = RangeParser()
    else:
        item = arguments[0] if arguments else kind
        if item is bool:
            parser = SwitchParser()
        elif item in (int, float):
            parser = NumberParser(item, **bounds)
        elif item is str and words["choices"]:
            parser = ChoiceParser(words["choices"])
        elif item is str and words["allowed"]:
            parser = WordParser(words["allowed"], words["check"])
        else:
            raise TypeError(f"setting {field.name}: {kind} is no kind of setting, or says not what is allowed")
        parser = ListParser(parser) if arguments else parser
    parser.optional = optional
    return parser
