"""The command line as a whole: reads the words after the program's name, and writes --help."""

import difflib
import sys
import textwrap
from collections.abc import Sequence

from absl import flags

FLAGS = flags.FLAGS
WIDTH = 100


def experiment_flags() -> tuple[list[flags.Flag], list[flags.Flag]]:
    """The running experiment's own flags and those that it shares with others, in the order of their definition."""
    own, shared = [], []
    for module, found in FLAGS.flags_by_module_dict().items():
        if module.startswith("experiments.flags."):
            shared += found
        elif module == sys.argv[0] or module.startswith("experiments."):
            own += found
    return own, shared


def parse(words: Sequence[str]) -> None:
    """Sets FLAGS from ``words``, the program's name first.

    Raises:
      flags.Error: with one line that holds the flag, the value got and what is allowed.
    """
    name = words[-1].lstrip("-")
    if words[-1].startswith("-") and name in FLAGS and not FLAGS[name].boolean:
        raise flags.Error(f"flag --{name} has no value: must be {FLAGS[name].flag_type()}")
    try:
        stray = FLAGS(words)[1:]
    except flags.UnrecognizedFlagError as error:
        near = difflib.get_close_matches(error.flagname, [f.name for group in experiment_flags() for f in group])
        advice = f"did you mean {' or '.join(f'--{name}' for name in near)}? " if near else ""
        raise flags.Error(f"unknown flag {error.flagvalue}: {advice}--help lists what is allowed") from None
    except (flags.CantOpenFlagFileError, UnicodeDecodeError) as error:
        path = next((w for w in words if w.lstrip("-").startswith("flagfile")), "--flagfile")
        raise flags.Error(f"flag {path}: must be a readable text file with one flag a line ({error})") from None
    except ValueError:  # absl's answer to --noquick=1
        word = next(w for w in words[1:] if w.lstrip("-").startswith("no") and "=" in w)
        raise flags.Error(f"flag {word}: must be without a value") from None
    if stray:
        raise flags.Error(f"stray word {stray[0]!r}: must be flags of the form --name=value")


def help_text(docstring: str) -> str:
    """What --help prints: the docstring, then every flag with its default and what is allowed."""
    own, shared = experiment_flags()
    parts = [wrap(docstring)]
    for title, group in [("Flags of this experiment", own), ("Flags that experiments share", shared)]:
        parts += [f"{title}:\n" + "\n".join(_describe(flag) for flag in group)] if group else []
    return "\n\n".join(parts)


def _describe(flag: flags.Flag) -> str:
    if flag.boolean:
        head, lines = f"--[no]{flag.name} (default: {'on' if flag.default else 'off'})", [flag.help]
    else:
        default = "" if flag.default is None else flag.serialize().partition("=")[2]
        head = f"--{flag.name}={default}" if default else f"--{flag.name}=... (not given by default)"
        lines = [flag.help, f"Allowed: {flag.parser.allowed}."]
    return "\n".join([f"  {head}", *(_fill(line, indent=" " * 6) for line in lines)])


def wrap(docstring: str) -> str:
    """The docstring at the width of --help: paragraphs and bullets are filled, indented lines stay as they are."""
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
