"""Experiments started as commands, several from one process or each in its own, their programs compiled quickly."""

import functools
import hashlib
import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from experiments import launch

ROOT = Path(__file__).parent.parent
# XLA_FLAGS with which programs are compiled sooner: no speed is wanted of the commands that tests start.
NOT_OPTIMISED = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
# Reads [[experiment, arguments, whether to draw], ...] from stdin, writes [[status, stdout, stderr], ...] to argv[1].
DRIVER = """
import json, os, runpy, sys, tempfile, warnings
import jax, matplotlib.figure, sklearn.datasets, scipy.stats
import pandas
from experiments import launch
from ldmjax import chains, latent_diffusion, plotting, predictors, recommendation
def start(experiment, arguments, draws=True):
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        child = os.fork()
    if child:
        return child, out, err
    status = 1
    try:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        sys.argv = [experiment + ".py", *arguments]
        if not draws:
            plotting.save = lambda figure, path: None
        runpy.run_module("experiments." + experiment, run_name="__main__")
        status = 0
    except SystemExit as exit:
        status = exit.code or 0
    except BaseException:
        import traceback
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)

def finish(child, out, err):
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    out.seek(0), err.seek(0)
    return [status, out.read().decode(), err.read().decode()]

results, cases = [], json.load(sys.stdin)
for i in range(0, len(cases), 2):
    results += [finish(*child) for child in [start(*case) for case in cases[i : i + 2]]]
with open(sys.argv[1] if len(sys.argv) > 1 else 0, "w") as file:
    json.dump(results, file)
"""


def run_commands(cases, where, *, optimised=False):
    """Runs every (experiment, arguments[, False: no figures]), two at a time; returns (status, stdout, stderr) each.

    They run in children forked from one process that has imported everything, since an import costs seconds. If ``optimised``,
    programs are compiled as in this process, whose numbers they then give to the last bit.
    """
    answer = where / "answer.json"
    subprocess.run(
        [sys.executable, "-c", DRIVER, str(answer)],
        input=json.dumps(cases),
        text=True,
        check=True,
        cwd=ROOT,
        env={**os.environ, **({} if optimised else {"XLA_FLAGS": NOT_OPTIMISED})},
        timeout=600,
    )
    return [tuple(result) for result in json.loads(answer.read_text())]


def start(experiment, *words, before=None):
    """The process of an experiment; ``before`` is called in it first."""
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": NOT_OPTIMISED}
    command = [sys.executable, "-m", f"experiments.{experiment}", *map(str, words)]
    return subprocess.Popen(
        command, env=variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=before
    )


def run(experiment, *words, **options):
    """Status, stdout and stderr of an experiment in a process of its own."""
    process = start(experiment, *words, **options)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def run_named_commands(experiment, arguments, where, *, drawn=()):
    """Runs an experiment with every named list of arguments, "{where}" in them replaced, a workdir and modules there.

    Returns {name: (workdir, status, stdout, stderr)}; only the ``drawn`` save figures.
    """
    cases = [
        (experiment, [*(a.format(where=where) for a in own), f"--workdir={where / str(i)}"], name in drawn)
        for i, (name, own) in enumerate(arguments.items())
    ]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(where))
        results = run_commands(cases, where)
    return {name: (where / str(i), *result) for i, (name, result) in enumerate(zip(arguments, results, strict=True))}


@functools.cache
def started(experiment):
    """The arguments that the experiment's command gives to `launch.main`."""
    with mock.patch.object(launch, "main") as main, mock.patch.object(sys, "argv", [experiment]):
        runpy.run_module(f"experiments.{experiment}", run_name="__main__", alter_sys=True)
    return main.call_args
