"""The command line: flags made of settings, the words read, --help written."""

import dataclasses
import difflib
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags

from experiments.launch.settings import Parser, Settings, WordParser, as_word, fields, parsers

WIDTH = 100


class UsageError(Exception):
    """Bad input; its text is the one line that the user sees."""


def bad(name: str, value: Any, allowed: str) -> UsageError:
    """Returns the error for a flag that is refused."""
    return UsageError(f"flag --{name}={as_word(value)}: {allowed}")


class _FlagParser(flags.ArgumentParser):
    """A setting's parser as absl knows it."""

    def __init__(self, parser: Parser):
        self.of_setting, self.allowed = parser, parser.allowed

    def parse(self, argument):
        return self.of_setting.parse(argument)

    def flag_type(self):
        return self.allowed


class _Serializer(flags.ArgumentSerializer):
    def serialize(self, value):
        return as_word(value)


class CommandLine:
    """The flags of some configurations.

    Attributes:
      flags: absl's, one for every setting.
      groups: names of the flags of each configuration, by its title in --help.
      how: names of those that say only how a job is run.
    """

    def __init__(self, configs: Mapping[str, type[Settings]]):
        self.flags, self.groups, self.how = flags.FlagValues(), {}, set()
        for title, config in configs.items():
            known = parsers(config)
            self.groups[title] = list(known)
            for field in fields(config):
                self._define(field, known[field.name])
                self.how |= {field.name} if field.metadata["how"] else set()

    def _define(self, field: dataclasses.Field, parser: Parser) -> None:
        text, adapted = field.metadata["help"], _FlagParser(parser)
        if parser.allowed == "true or false":
            flag = flags.BooleanFlag(field.name, field.default, text)
            flag.parser = adapted  # absl's does not say what is allowed
        else:
            word = None if field.default is None else as_word(field.default)
            flag = flags.Flag(adapted, _Serializer(), field.name, word, text)
        flags.DEFINE_flag(flag, self.flags)

    def __getitem__(self, name: str) -> flags.Flag:
        return self.flags[name]

    def values(self, title: str) -> dict[str, Any]:
        """The values of one configuration's flags by name."""
        return {name: self.flags[name].value for name in self.groups[title]}

    def parse(self, words: Sequence[str]) -> None:
        """Reads ``words``, the program's name first.

        Raises:
          UsageError: with one line that holds the flag, the value got and what is allowed.
        """
        known = self.flags
        name = words[-1].lstrip("-")
        if words[-1].startswith("-") and name in known and not known[name].boolean:
            raise UsageError(f"flag --{name} has no value: must be {known[name].flag_type()}")
        try:
            stray = known(list(words))[1:]
        except flags.UnrecognizedFlagError as error:
            near = difflib.get_close_matches(error.flagname, list(known))
            advice = f"did you mean {' or '.join(f'--{name}' for name in near)}? " if near else ""
            raise UsageError(f"unknown flag {error.flagvalue}: {advice}--help lists what is allowed") from None
        except (flags.CantOpenFlagFileError, UnicodeDecodeError) as error:
            path = next((w for w in words if w.lstrip("-").startswith("flagfile")), "--flagfile")
            raise UsageError(f"flag {path}: must be a readable text file with one flag a line ({error})") from None
        except flags.Error as error:
            raise UsageError(str(error)) from None
        except ValueError:  # absl's answer to --noquick=1
            word = next(w for w in words[1:] if w.lstrip("-").startswith("no") and "=" in w)
            raise UsageError(f"flag {word}: must be without a value") from None
        if stray:
            raise UsageError(f"stray word {stray[0]!r}: must be flags of the form --name=value")

    def apply(self, values: Mapping[str, Any]) -> None:
        """Gives flags that are not on the command line these values."""
        for name, value in values.items():
            if not self.flags[name].present:
                self.flags[name].value = value if value is None else self.flags[name].parser.parse(as_word(value))

    def is_text(self, name: str) -> bool:
        """Whether a flag's words may be paths: not numbers, switches or choices."""
        parser = self.flags[name].parser.of_setting
        return isinstance(getattr(parser, "item", parser), WordParser)

    def word(self, name: str) -> str:
        """The word that sets a flag to its value; empty for one that has none."""
        return "" if self.flags[name].value is None else as_word(self.flags[name].value)

    def help_text(self, docstring: str) -> str:
        """What --help prints: the docstring, then every flag with its default and what is allowed."""
        parts = [wrap(docstring)]
        for title, names in self.groups.items():
            parts += [f"{title}:\n" + "\n".join(_describe(self.flags[name]) for name in names)] if names else []
        return "\n\n".join(parts)


def _describe(flag: flags.Flag) -> str:
    if flag.boolean:
        head, lines = f"--[no]{flag.name} (default: {'on' if flag.default else 'off'})", [flag.help]
    else:
        default = "" if flag.default is None else as_word(flag.default)
        head = f"--{flag.name}={default}" if default else f"--{flag.name}=... (not given by default)"
        lines = [flag.help, f"Allowed: {flag.parser.allowed}."]
    return "\n".join([f"  {head}", *(_fill(line, indent=" " * 6) for line in lines)])


def wrap(docstring: str) -> str:
    """Returns the docstring at the width of --help: paragraphs and bullets filled, indented lines as they are."""
    lines, open_ended = [], False
    for line in docstring.strip().splitlines():
        stays = not line or line.startswith("    ")
        if open_ended and not stays and not line.startswith(("- ", "*")):
            lines[-1] += " " + line.strip()
        else:
            lines.append(line)
        open_ended = not stays
    return "\n".join(line if line.startswith("    ") else _fill(line, hanging=line.startswith("- ")) for line in lines)


def _fill(text: str, *, indent: str = "", hanging: bool = False) -> str:
    return textwrap.fill(
        text,
        WIDTH,
        initial_indent=indent,
        subsequent_indent="  " if hanging else indent,
        break_long_words=False,
        break_on_hyphens=False,
    )
