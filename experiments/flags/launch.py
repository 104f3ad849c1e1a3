"""The one way to start an experiment.

Bad input ends with one line on stderr (flag, value got, what is allowed) and exit status 2, before any work.
"""

import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import flags

from experiments.flags import parsers
from ldmjax import records

FLAGS = flags.FLAGS
EXIT_USAGE = 2


class UsageError(Exception):
    """Bad input; its text is the one line that the user sees."""


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


def prepare_workdir() -> Path:
    """Creates --workdir and writes flags.txt, which reruns the experiment with --flagfile."""
    try:
        workdir = records.prepare_workdir(FLAGS.workdir)
    except ValueError as error:
        raise bad("workdir", FLAGS.workdir, str(error)) from error
    own = {flag.name: flag for module in ("__main__", parsers.__name__) for flag in _module_flags(module)}
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
    return f"{text}\n{FLAGS.module_help(parsers.__name__)}\n{FLAGS.module_help(sys.argv[0])}"


def _refuse(line: str) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(EXIT_USAGE)
