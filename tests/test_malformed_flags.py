"""Every flag of every experiment refuses bad values: status 2, one line with flag, value and what is allowed, nothing written.

The values come from the flags' own table. One process imports all experiments, then forks once per command, since starting
Python and importing JAX takes seconds; a few commands are started for real.
"""

import contextlib
import functools
import importlib
import io
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from absl import flags

from experiments.__main__ import sources
from experiments.flags import command_line, launch

FLAGS = flags.FLAGS
ROOT = Path(__file__).parent.parent
HUGE = 10**12
# Words whose check is their own, and values that it refuses.
WORDS = {
    "data": ["faces", "absent.npz", "absent/folder", "DIGITS"],
    "spectrum": ["cubic:2", "power:", "power:x", "power:nan", "power:-1", "lowrank:0", "absent.npy"],
    "workdir": ["/dev/null", "/dev/null/below"],
    "coordinator_address": ["localhost", "localhost:", ":80", "localhost:0", "localhost:65536", "localhost:x"],
    "features": ["inception", "absent.npz", "pixels,pixels", "pixels,,classifier", ":f", "json:", "absent_module:f"],
    "planted": ["absent.npz", "pyproject.toml", "tests"],
    "cifar": ["absent.npz", "pyproject.toml", "tests"],
    "carried": ["absent", "pyproject.toml", "pyproject.toml/below"],
    "wheels": ["absent", "pyproject.toml", "pyproject.toml/below"],
    "prepare": ["/dev/null", "/dev/null/below"],
    "scratch": ["/dev/null", "/dev/null/below"],
    "latents": ["absent.npz", "pyproject.toml"],
    "shift": ["0", "-3", "nan", "inf", "dynamic", "dynamic:", "dynamic:0", "dynamic:1.5", "static:4096", "1,2"],
    "latent_scale": ["0", "-1", "nan", "inf", "1,,2", "1,-2", "x"],
    "latent_shift": ["nan", "inf", "1,,2", "x", "1,"],
    "autoencoder": ["json", "json:", ":dumps", "absent_module:f", "json:absent", "json:__name__"],
    "decoder": ["json", "json:", ":dumps"],
    "autoencoders": ["pca", "pca:0", "identity:4", "kl:4x4", "pca:16,,kl:4x4x2", "pca:16,pca:16", "pca:1e3"],
}
# Flags that fit alone but not together: arguments, the flag that the line names, what it says is allowed.
TOGETHER = {
    "benchmark": [
        ("--spectrum=lowrank:300 --data_dim=100", "spectrum", "1..100"),
        ("--spectrum=lowrank:8", "spectrum", "variances above 0"),
        ("--only=law --precision=bfloat16", "precision", "without a contest of U-Nets"),
    ],
    "capped_scores": [
        ("--data=digits --spectrum=power:1", "spectrum", "only without --data"),
        ("--t_max=400", "t_max", "noise variance in (0, 1)"),
        ("--spectrum=lowrank:65", "spectrum", "1..64"),
    ],
    "coverage": [("--planted=tests/test_data.npz", "planted", "an .npz file of images")],
    "disentangled": [
        ("--sigma_min=81", "sigma_min", "< --sigma_max=80"),
        ("--many_levels=32", "many_levels", "> 32"),
        ("--experts=1,33", "experts", "1..32"),
        ("--experts=2,4", "experts", "include 1"),
        ("--seeds=100", "selection_seed", "not be among"),
        ("--sample_budget=100", "sample_budget", "must be >="),
        ("--samples=100", "samples", "multiple of 64"),
        ("--ladders=rectified_flow", "ladders", "not hold rectified_flow"),
        ("--tasks=data --spectrum=power:1", "spectrum", "allowed without"),
        ("--tasks=data --latent_dim=65", "latent_dim", "1..61"),
    ],
    "few_states": [
        ("--few=33", "few", "one of --levels"),
        ("--few=1000", "few", "not the largest"),
        ("--samples=1000", "samples", "multiple of 64"),
        ("--levels=8,32,2000 --ladders=karras --learned_ladder=linear_beta", "levels", "1..1000"),
        ("--sigma_max=0.001", "sigma_min", "< --sigma_max=0.001"),
        ("--tasks=data --spectrum=power:1", "tasks", "needs samples"),
        ("--latent_dim=65", "latent_dim", "1..61"),
    ],
    "latent_vs_pixel": [
        ("--samples=2049", "samples", "even"),
        ("--n=1700", "n", "2..1669"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
        ("--autoencoders=pca:65", "autoencoders", "1 <= d <= 64"),
        ("--autoencoders=kl:3x3x2", "autoencoders", "must have sides"),
        ("--autoencoders=pca:1 --hidden=2", "autoencoders", "allowed are 2 %"),
    ],
    "noisy_autoencoder": [
        ("--samples=4097", "samples", "even"),
        ("--n=1700", "n", "<= 1669"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--process=vp --readout=state", "readout", "must be rescaled"),
        ("--autoencoder=vq --latent_dims=3", "latent_dims", "multiple of"),
        ("--autoencoder=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
    ],
    "on_device": [
        ("--prepare=tests/absent", "prepare", "needs --cifar=FILE.npz"),
        ("--quick", "only", "needs --carried=FOLDER"),
        ("--only=machine,science", "only", "needs --carried=FOLDER"),
        ("--carried=tests", "carried", "made by --prepare: no manifest.json"),
        ("--only=machine --wheels=tests", "wheels", "only with --prepare"),
        ("--process_id=0", "process_id", "only together with"),
    ],
    "optimal_stopping": [
        ("--samples=130", "samples", "multiple of 64"),
        ("--stops=251", "stops", "2..250"),
        ("--n=1797", "n", "2..1733"),
        ("--latent_dims=1,65", "latent_dims", "1..64"),
        ("--n=20 --latent_dims=21", "latent_dims", "1..20 or 64"),
        ("--data=digits --spectrum=power:1", "spectrum", "only without --data"),
        ("--process_id=0", "process_id", "only together with"),
    ],
    "paper_figures": [("--coordinator_address=localhost:1234", "coordinator_address", "only together with")],
    "phase_diagram": [
        ("--t_max=400", "t_max", "noise variance in (0, 1)"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--n=1796", "n", "2..1795"),
        ("--spectrum=power:1 --data=digits", "spectrum", "only without --data"),
    ],
    "recommend": [
        ("--spectrum=power:1", "spectrum", "give --data"),
        ("--decoder=json:dumps", "decoder", "only with --latents"),
        ("--autoencoder=json:dumps --autoencoders=pca", "autoencoders", "only without --autoencoder"),
        ("--autoencoder=json:dumps --autoencoders=pca,conv", "autoencoder", "factory(): TypeError"),  # as flags.txt gives it
        ("--autoencoder=json:dumps --precision=bfloat16", "precision", "only without --autoencoder"),
        ("--autoencoders=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--readout=state --sampler=linear_vp", "readout", "needs --sampler=rectified_flow or flow_matching"),
        ("--shift=3", "shift", "only with --sampler=flow_matching"),
        ("--latent_scale=2 --standardise=none", "latent_scale", "only without --standardise"),
        ("--sampler=linear_beta_ddim --sampling_steps=1001", "sampling_steps", "2..1000 steps"),
        ("--n=1700", "n", "64..1669"),
        ("--reference=1700", "reference", "128..899"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--autoencoders=vq --latent_dims=3", "latent_dims", "multiple of"),
    ],
    "stopping_by_metric": [
        ("--samples=2049", "samples", "even"),
        ("--n=1700", "n", "2..1669"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--process=vp --readout=state", "readout", "must be rescaled"),
        ("--autoencoders=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
    ],
    "unused_states": [
        ("--states=8:31", "states", "must end at 32"),
        ("--states=8:33", "states", "within 1:32"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--learned_dims=65", "learned_dims", "1..64"),
        ("--sigma_min=100", "sigma_min", "< --sigma_max=80"),
        ("--levels=2000", "levels", "1..1000"),
        ("--spectrum=file.npy", "spectrum", "no file"),
    ],
}  # fmt: skip


def malformed_values(name, parser):
    """Values that a flag must refuse, by what its parser says of itself."""
    kind = type(parser).__name__
    if (
        name in WORDS
        and kind in ("_WordParser", "_ListParser")
        and not hasattr(getattr(parser, "item", None), "choices")
    ):
        return ["", " ", *WORDS[name]]
    if kind == "_ListParser":
        good = getattr(parser.item, "choices", None) or [str(parser.item.high if parser.item.high < HUGE else 2)]
        return [*malformed_values(name, parser.item), f"{good[0]},{good[0]}", f"{good[0]},", f",{good[0]}"]
    if kind == "_NumberParser":
        below = parser.low if parser.low_open else parser.low - 1
        found = ["", "word", "nan", "-inf", "1;2", str(below), str(-HUGE)]
        found += [] if parser.infinite else ["inf"]
        found += [str(HUGE), str(parser.high if parser.high_open else parser.high + 1)] if parser.high < HUGE else []
        return found + (["1.5", "1e3", "0x10", "true"] if parser.kind is int else ["1..5"])
    if kind == "_ChoiceParser":
        return ["", "absent", parser.choices[0].upper(), f"{parser.choices[0]}x"]
    return {
        "_SwitchParser": ["", "maybe", "2", "yes"],
        "_RangeParser": ["", "8", "0:4", "5:4", "1:2:3", "a:b", "nan:2"],
    }[kind]


def commands_of(experiment):
    """(arguments, what the line must hold, whether its main must run) of every malformed command; defines the flags."""
    module = importlib.import_module(f"experiments.{experiment}")
    if hasattr(module, "__path__"):
        module = importlib.import_module(f"experiments.{experiment}.__main__")
    module.define_flags()
    found = []
    for flag in experiment_flags():
        allowed = flag.parser.allowed
        for i, value in enumerate(malformed_values(flag.name, flag.parser)):
            expected = [f"--{flag.name}={' '.join(value.split())}", allowed]
            found.append(([f"--{flag.name}={value}"], expected, i == 0 or is_parsed(flag.parser, value)))
        if flag.boolean:
            found.append(([f"--no{flag.name}=1"], [f"--no{flag.name}=1", "must be without a value"], False))
        else:
            found.append(([f"--{flag.name}"], [f"--{flag.name} has no value", allowed], False))
            found.append(([f"--{flag.name}", "--quick"], [f"--{flag.name}=--quick", allowed], False))
    found += [(words.split(), [f"--{name}=", reason], True) for words, name, reason in TOGETHER[experiment]]
    return found + [
        (["stray"], ["'stray'", "--name=value"], True),
        (["--wrokdir=x"], ["--wrokdir=x", "did you mean --workdir?", "--help"], True),
        (["--flagfile=absent"], ["--flagfile=absent", "readable text file"], True),
        (["--flagfile=tests"], ["--flagfile=tests", "readable text file"], False),
    ]


def experiment_flags():
    """The flags of the experiment whose flags are defined."""
    return [flag for group in command_line.experiment_flags() for flag in group]


def is_parsed(parser, value):
    """Whether only the experiment itself can refuse this value."""
    with contextlib.suppress(ValueError):
        parser.parse(value)
        return True
    return False


def in_child(action):
    """(status, stdout, stderr) of ``action`` in a forked process."""
    out, err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
    child = os.fork()
    if not child:
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        status = 1
        try:
            action()
            status = 0
        except SystemExit as ending:
            status = ending.code
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status or 0)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    texts = []
    for file in (out, err):
        file.seek(0)
        texts.append(file.read().decode())
        file.close()
    return status, *texts


def start(experiment):
    """Runs the experiment with the words in sys.argv."""
    signal.alarm(20)  # a command that is not refused runs for minutes
    runpy.run_module(f"experiments.{experiment}", run_name="__main__", alter_sys=True)


def tabulate(experiment, workdirs):
    """Prints the flags and [arguments, expected, status, stdout, stderr]; the last three are None if main must run."""
    commands, answers = commands_of(experiment), []
    for i, (arguments, expected, needs_main) in enumerate(commands):
        answer = (None, None, None)
        if not needs_main:
            sys.argv = [experiment, *workdirs[i % 2 : i % 2 + 1], *arguments]
            with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
                status = 0
                try:
                    launch.run(lambda: print("not refused"))
                except SystemExit as ending:
                    status = ending.code
            answer = status, out.getvalue(), err.getvalue()
            FLAGS.unparse_flags()
        answers.append([arguments, expected, *answer])
    print(json.dumps({"flags": [flag.name for flag in experiment_flags()], "answers": answers}))


def drive(where):
    """Runs all malformed commands, the workdir new and one with results by turns; writes answers.json."""
    import_experiments()
    workdirs = [f"--workdir={where / name}" for name in ("fresh", "held")]
    results = {}
    for name in sources():
        status, out, err = in_child(functools.partial(tabulate, name, workdirs))
        assert status == 0, err
        results[name] = json.loads(out)
        for i, answer in enumerate(results[name]["answers"]):
            if answer[2] is None:
                sys.argv = [name, *workdirs[i % 2 : i % 2 + 1], *answer[0]]
                answer[2:] = in_child(functools.partial(start, name))
    (where / "answers.json").write_text(json.dumps(results))


def import_experiments():
    """Leaves all that they import in memory, but not the modules that are run: runpy warns of those."""
    importlib.import_module("sklearn.datasets")
    for name in sources():
        module = importlib.import_module(f"experiments.{name}")
        if hasattr(module, "__path__"):
            del sys.modules[importlib.import_module(f"experiments.{name}.__main__").__name__]
        else:
            del sys.modules[module.__name__]


def snapshot(directory):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def driven(tmp_path_factory):
    where = tmp_path_factory.mktemp("malformed")
    (where / "held").mkdir()
    for name in ("records.jsonl", "flags.txt", "curves.npz"):
        (where / "held" / name).write_text(f"the {name} of another run\n")
    before = snapshot(where / "held")
    subprocess.run(
        [sys.executable, __file__, str(where)], check=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert snapshot(where / "held") == before and list((where / "held").iterdir()) != []
    assert sorted(p.name for p in where.iterdir()) == ["answers.json", "held"]
    return json.loads((where / "answers.json").read_text())


@pytest.mark.parametrize("experiment", sources())
def test_malformed_commands_are_refused_with_one_line(driven, experiment):
    answers = driven[experiment]["answers"]
    assert len(answers) >= 8
    wrong = []
    for arguments, expected, status, out, err in answers:
        good = status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        if not (good and err.endswith("\n") and all(part in err for part in expected)):
            wrong.append(f"{arguments} expects {expected}: status {status}, {out[-500:]}{err[-1000:]}")
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("experiment", sources())
def test_every_flag_is_covered(driven, experiment):
    tried = " ".join(word for arguments, *_ in driven[experiment]["answers"] for word in arguments)
    assert {"workdir", "quick"} <= set(driven[experiment]["flags"])
    assert [name for name in driven[experiment]["flags"] if tried.count(f"--{name}=") < 4] == []


@pytest.mark.parametrize(
    ("experiment", "word", "allowed"),
    [
        ("phase_diagram", "--draws=1000000000000", "a whole number >= 1 and <= 1_000_000"),
        ("recommend", "--latent_scale=nan", "a finite number > 0, or one per channel"),
        ("unused_states", "--quick=maybe", "true or false"),
    ],
)
def test_real_command(tmp_path, experiment, word, allowed):
    command = [sys.executable, "-m", f"experiments.{experiment}", f"--workdir={tmp_path / 'out'}", word]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: flag {word}: must be {allowed}\n")
    assert not (tmp_path / "out").exists()


if __name__ == "__main__":
    drive(Path(sys.argv[1]))
