"""The one way to start an experiment: a configuration becomes flags, a workdir, a job; results become files and a report.

    launch.main(Config, compute, report, quick=QUICK)

calls ``config.load()`` if there is one, ``compute(config, data, job)``, writes the `Results`, reads them again and shows
``report(results)``. It ends with one of these statuses:

0    done
1    an error in this software: please report the traceback
2    bad input: one line names flag, value got and what is allowed; nothing was computed or written
3    the system refused a file (disk full, no permission)
4    out of memory even with one run at a time
130  stopped by Ctrl-C, 143 by SIGTERM: saved

After 3, 4, 130 and 143 the same command goes on from what was kept.
"""

import dataclasses
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax

from experiments.launch import code, workdir
from experiments.launch.command_line import CommandLine, UsageError, bad
from experiments.launch.data import (
    DataSettings,
    FeatureSettings,
    LadderSettings,
    check_file,
    check_precision,
    check_writable,
    import_named,
    ladders_setting,
    levels_setting,
    per_batch_setting,
    precision_setting,
)
from experiments.launch.results import Report, Results, read_results, show, write_results
from experiments.launch.settings import Range, SettingError, Settings, function, redeclared, seed, seeds, setting
from ldmjax import chunks, devices, records
from ldmjax.job import Job, is_live_terminal, printing
from ldmjax.tables import table

__all__ = [
    "DataSettings",
    "FeatureSettings",
    "LadderSettings",
    "Range",
    "Report",
    "Results",
    "SettingError",
    "Settings",
    "Stage",
    "check_file",
    "check_precision",
    "function",
    "import_named",
    "ladders_setting",
    "levels_setting",
    "main",
    "per_batch_setting",
    "precision_setting",
    "redeclared",
    "seed",
    "seeds",
    "setting",
]

LOG = logging.getLogger("ldmjax")
EXIT_USAGE, EXIT_SYSTEM, EXIT_MEMORY = 2, 3, 4
INTERRUPTED = {130: "Ctrl-C", 143: "SIGTERM"}
OWN, COMMON = "Flags of this experiment", "Flags that all experiments have"
PROCESSES = ("coordinator_address", "num_processes", "process_id")


def _check_address(address: str) -> None:
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 < int(port) < 65_536:
        raise ValueError(f"{address!r} is not HOST:PORT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Launch(Settings):
    """How an experiment is run; all experiments have these."""

    workdir: str | None = setting(
        None,
        "Where flags.txt, records.jsonl, curves.npz and figures go; results/EXPERIMENT by default.",
        how=True,
        allowed="a directory that can be written, or made",
        check=check_writable,
    )
    quick: bool = setting(False, "A smaller version of everything, to see that it runs.")
    overwrite: bool = setting(False, "Deletes the results in --workdir and starts anew.", how=True)
    dry_run: bool = setting(False, "Prints what would be computed, and where results would go, and ends.", how=True)
    redraw: bool = setting(
        False,
        "Makes tables and figures again from the files in --workdir; computes nothing, takes no other flag.",
        how=True,
    )
    deterministic: bool = setting(
        False, "On a GPU only kernels that give the same bits every time; slower. A CPU needs no switch."
    )
    tensorboard: bool = setting(
        False, "Writes losses and rates to --workdir for TensorBoard (extra: tensorboard).", how=True
    )
    checkpoint_every: float = setting(30.0, "Seconds of training between checkpoints.", low=0.0, high=1e6, how=True)
    keep_checkpoints: int = setting(2, "Newest checkpoints kept of each training.", low=1, high=1000, how=True)
    coordinator_address: str | None = setting(
        None,
        "For several processes outside SLURM: where process 0 listens.",
        allowed="HOST:PORT",
        check=_check_address,
        how=True,
    )
    num_processes: int | None = setting(
        None, "With --coordinator_address: their number.", low=1, high=100_000, how=True
    )
    process_id: int | None = setting(
        None, "With --coordinator_address: number of this one.", low=0, high=99_999, how=True
    )

    def join_processes(self) -> None:
        """Prepares JAX, with all processes of the job; only the first one's output is seen."""
        given = [name for name in PROCESSES if getattr(self, name) is not None]
        if given and len(given) < len(PROCESSES):
            raise self.refuse(given[0], f"allowed only together with {', '.join(f'--{name}' for name in PROCESSES)}")
        if given and self.process_id >= self.num_processes:
            raise self.refuse("process_id", f"must be 0..{self.num_processes - 1}, below --num_processes")
        devices.start(**{name: getattr(self, name) for name in PROCESSES}, deterministic=self.deterministic)
        if not devices.is_first_process():
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            LOG.setLevel(logging.ERROR)

    def job(self, directory: Path) -> Job:
        """The job in its directory."""
        return Job(
            directory / "checkpoints",
            every=self.checkpoint_every,
            keep_checkpoints=self.keep_checkpoints,
            show=printing,
            live=is_live_terminal(),
            series=_series(directory / "tensorboard") if self.tensorboard else None,
        )


def _series(directory: Path) -> Any:
    try:
        from tensorboardX import SummaryWriter
    except ImportError as error:
        raise bad("tensorboard", True, f"needs the extra: pip install -e '.[tensorboard]' ({error})") from None
    return SummaryWriter(str(directory)) if devices.is_first_process() else None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a job, as --dry_run shows it.

    Attributes:
      stage: what is done.
      runs: how many of them.
      programs: compiled for it.
      steps: of optimiser or sampler, of one run.
      evaluations: of the network, on one latent, of all runs.
      parameters: of one run's network.
    """

    stage: str
    runs: int
    programs: int = 0
    steps: int | None = None
    evaluations: int | None = None
    parameters: int | None = None

    @classmethod
    def of_steps(cls, stage: str, *, runs: int, steps: int, batch: int, **counts: int) -> "Stage":
        """A stage of runs that evaluate the network on so many latents in every step."""
        return cls(stage=stage, runs=runs, steps=steps, evaluations=runs * steps * batch, **counts)


def main(
    config: type[Settings],
    compute: Callable[[Any, Any, Job], Results],
    report: Callable[[Results], Report],
    *,
    quick: Mapping[str, Any] | None = None,
    plan: Callable[[Any, Any], Sequence[Stage]] | None = None,
) -> Results | None:
    """Runs an experiment as a command; gives the results that were shown, if there are any.

    Args:
      config: its settings; ``load()``, if there is one, gives the data and refuses settings that do not suit it.
      compute: from the configuration, the data (None without ``load``) and the job.
      report: from the results alone.
      quick: values of settings that are not given, with --quick; and of other fields of the configuration.
      plan: what --dry_run shows, from the configuration and the data.
    """
    begin = time.perf_counter()
    _show_warnings()
    try:
        line = CommandLine({OWN: config, COMMON: Launch})
        if {"--help", "-h", "-help", "--helpshort"} & set(sys.argv[1:]):
            print(line.help_text(_docstring(compute)), flush=True)
            return
        line.parse(sys.argv)
        own = Launch(**line.values(COMMON))
        experiment = _name(compute)
        directory = Path(own.workdir or f"results/{experiment}")
        if own.redraw:
            return _redraw(line, config, report, directory, experiment=experiment)
        quick = quick or {} if own.quick else {}
        line.apply({name: quick[name] for name in line.groups[OWN] if name in quick})
        settings = config(**{**quick, **line.values(OWN)})
        own.join_processes()
        chunks.obey_signals()
        data = settings.load() if hasattr(settings, "load") else None
        if own.dry_run:
            return _print_plan(plan(settings, data) if plan else (), directory)
        return _run(line, own, settings, data, compute, report, experiment=experiment, directory=directory, begin=begin)
    except SettingError as error:
        _end(f"flag --{error}", EXIT_USAGE)
    except UsageError as error:
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


def _run(line, own, settings, data, compute, report, *, experiment, directory, begin) -> Results:
    words = {name: word for name in _identifying(line) if (word := line.word(name))}
    identity = workdir.Identity(
        experiment=experiment,
        flags=words,
        files=workdir.digests_of_files({name: word for name, word in words.items() if line.is_text(name)}),
        data=getattr(data, "digest", ""),
        code=code.digest(compute),
        versions=records.versions()
        | {"float32 products": devices.product_precision(), "x64": str(jax.config.jax_enable_x64)},
    )
    place = workdir.claim(directory, identity, overwrite=own.overwrite)
    results = compute(settings, data, own.job(place))
    seconds, name = time.perf_counter() - begin, getattr(data, "name", None)
    write_results(place, results, seconds=seconds, data=name, data_sha256=identity.data or None)
    shown = read_results(place, settings)
    show(report(shown), place)
    print(f"{len(results.rows)} records in {seconds:.0f} s; results are in {directory}")
    return shown


def _identifying(line: CommandLine) -> list[str]:
    """Flags that say what is computed."""
    return [name for names in line.groups.values() for name in names if name not in line.how]


def _print_plan(stages: Sequence[Stage], directory: Path) -> None:
    rows = [dataclasses.asdict(stage) for stage in stages if stage.runs]
    if rows:
        columns = {"stage": "", "runs": ",d", "programs": ",d", "steps": ",d", "evaluations": ",d", "parameters": ",d"}
        print(table(rows, columns))
    print(
        f"{jax.device_count()} {devices.platform()} devices. Results would go to {directory}; nothing was written there."
    )


def _redraw(line: CommandLine, config: type[Settings], report: Callable, directory: Path, *, experiment: str) -> None:
    """Shows the report again, from the files of a workdir."""
    given = [name for name in _identifying(line) if line[name].present]
    if given:
        raise bad(
            given[0], line[given[0]].value, "allowed only without --redraw, which takes the settings of --workdir"
        )
    flags = directory / "flags.txt"
    if not flags.is_file():
        raise bad("workdir", directory, "must hold the results of an experiment: there is no flags.txt")
    if (held := workdir.held_experiment(directory)) not in (None, experiment):
        raise bad("workdir", directory, f"holds results of experiments.{held}")
    # An old workdir may have flags that are gone.
    known = {spelling for name in _identifying(line) for spelling in (name, f"no{name}")}
    words = [word for word in flags.read_text().split("\n") if word.lstrip("-").partition("=")[0] in known]
    line.parse([sys.argv[0], *words])
    try:
        results = read_results(directory, config(**line.values(OWN)))
    except ValueError as error:
        raise bad("workdir", directory, f"must hold the results of an experiment ({error})") from error
    try:
        made = report(results)
    except KeyError as error:
        raise bad(
            "workdir", directory, f"holds results of another version: they lack {error}, which is shown"
        ) from error
    show(made, directory)


def _docstring(compute: Callable) -> str:
    return inspect.unwrap(compute).__globals__["__doc__"]


def _name(compute: Callable) -> str:
    """The experiment's, also where its module runs as a command."""
    names = inspect.unwrap(compute).__globals__
    spec, file = names["__spec__"], names["__file__"]
    return (spec.name if spec else Path(file).stem).removeprefix("experiments.")


def _show_warnings() -> None:
    """The library's warnings, a line each on stderr."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("warning: %(message)s"))
    LOG.handlers = [handler]
    LOG.propagate = False
    # orbax's own account of what `ldmjax.checkpoints` says in a line.
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _end(line: str, status: int) -> None:
    print("error: " + " ".join(line.split()), file=sys.stderr)
    sys.exit(status)
