"""The one way to start an experiment, and the statuses it ends with.

0    done
1    an error in this software: please report the traceback
2    bad input: one line names flag, value got and what is allowed; nothing was computed or written
3    the system refused a file (disk full, no permission)
4    out of memory even with one run at a time
130  stopped by Ctrl-C, 143 by SIGTERM: saved

After 3, 4, 130 and 143 the same command goes on from what was kept.
"""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from absl import flags

from experiments.flags import command_line, jobs
from experiments.flags.errors import UsageError
from ldmjax import chunks

FLAGS = flags.FLAGS
EXIT_USAGE, EXIT_SYSTEM, EXIT_MEMORY = 2, 3, 4
INTERRUPTED = {130: "Ctrl-C", 143: "SIGTERM"}


def apply_quick(values: Mapping[str, Any]) -> None:
    """With --quick, gives the flags that are not on the command line these values."""
    for name, value in values.items():
        if FLAGS.quick and not FLAGS[name].present:
            FLAGS[name].value = value


def run(main: Callable[[], None]) -> None:
    """Parses flags, joins the job's processes, runs ``main``; ends with one of the statuses above."""
    _show_warnings()
    try:
        if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
            print(command_line.help_text(_docstring()), flush=True)
            return
        command_line.parse(sys.argv)
        jobs.join_processes()
        chunks.obey_signals()
        main()
    except (flags.Error, UsageError) as error:
        _end(str(error), EXIT_USAGE)
    except BrokenPipeError:
        os._exit(1)
    except MemoryError as error:
        _end(f"out of memory: {error}; what was finished is kept, smaller sizes need less", EXIT_MEMORY)
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        _end(f"out of memory: {str(error).splitlines()[0]}; what was finished is kept", EXIT_MEMORY)
    except OSError as error:
        _end(f"{error}; what was finished is kept: the same command goes on once this is mended", EXIT_SYSTEM)
    except SystemExit as ending:
        if ending.code in INTERRUPTED:
            _end(f"stopped by {INTERRUPTED[ending.code]}: the same command (without --overwrite) goes on", ending.code)
        raise


def _docstring() -> str:
    """The experiment's, also if it is a package."""
    module = sys.modules["__main__"]
    name = module.__spec__.name if module.__spec__ else ""
    return (sys.modules[name.removesuffix(".__main__")] if name.endswith(".__main__") else module).__doc__


def _show_warnings() -> None:
    """The library's warnings, a line each on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    logging.getLogger("ldmjax").addHandler(handler)
    logging.getLogger("ldmjax").propagate = False
    # orbax's own account of what `ldmjax.checkpoints` says in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _end(line: str, status: int) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(status)
