"""Every setting of every experiment refuses what it does not allow: one line, status 2, nothing written.

The commands are generated from the declarations of the settings (`experiments.launch.settings`); what only a word's own check,
or two settings together, refuse is listed here.
"""

import subprocess
import sys

import pytest
from commands import ROOT, started

from experiments import launch
from experiments.__main__ import settings_page, sources
from experiments.launch.command_line import CommandLine
from experiments.launch.settings import ChoiceParser, ListParser, NumberParser, RangeParser, SwitchParser, WordParser
from ldmjax import chunks, devices

HUGE = 10**12
# Words whose check is their own, and values that it refuses.
WORDS = {
    "data": ["faces", "absent.npz", "absent/folder", "DIGITS"],
    "spectrum": ["cubic:2", "power:", "power:x", "power:nan", "power:-1", "lowrank:0", "absent.npy"],
    "workdir": ["/dev/null", "/dev/null/below"],
    "coordinator_address": ["localhost", "localhost:", ":80", "localhost:0", "localhost:65536", "localhost:x"],
    "features": ["inception", "absent.npz", "pixels,pixels", "pixels,,classifier", ":f", "json:", "absent_module:f"],
    "planted": ["absent.npz", "pyproject.toml", "tests"],
    "carried": ["absent", "pyproject.toml", "pyproject.toml/below"],
    "wheels": ["absent", "pyproject.toml", "pyproject.toml/below"],
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
        ("--n=1700", "n", "128..1669"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
        ("--autoencoders=pca:65", "autoencoders", "1 <= d <= 64"),
        ("--autoencoders=kl:3x3x2", "autoencoders", "must have sides"),
        ("--autoencoders=pca:1 --hidden=2", "autoencoders", "allowed are 2 %"),
    ],
    "noisy_autoencoder": [
        ("--samples=4097", "samples", "even"),
        ("--n=1700", "n", "128..1669"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--process=vp --readout=state", "readout", "must be rescaled"),
        ("--autoencoder=vq --latent_dims=3", "latent_dims", "multiple of"),
        ("--autoencoder=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
    ],
    "on_device": [
        ("--quick", "only", "needs --carried=FOLDER"),
        ("--only=machine,science", "only", "needs --carried=FOLDER"),
        ("--carried=tests", "carried", "folder that experiments.on_device.prepare made"),
        ("--only=machine --process_id=0", "process_id", "only together with"),
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
        ("--autoencoder=json:dumps", "autoencoder", "factory(): TypeError"),
        ("--autoencoder=json:dumps --precision=bfloat16", "precision", "only without --autoencoder"),
        ("--autoencoders=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--readout=state --sampler=linear_vp", "readout", "needs sampler=rectified_flow or flow_matching"),
        ("--shift=3", "shift", "only with sampler=flow_matching"),
        ("--latent_scale=2 --standardise=none", "latent_scale", "only without standardise"),
        ("--sampler=linear_beta_ddim --sampling_steps=1001", "sampling_steps", "2..1000 steps"),
        ("--n=1700", "n", "64..1669"),
        ("--reference=1700", "reference", "128..899"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--autoencoders=vq --latent_dims=3", "latent_dims", "multiple of"),
    ],
    "stopping_by_metric": [
        ("--samples=2049", "samples", "even"),
        ("--n=1700", "n", "128..1669"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--process=vp --readout=state", "readout", "must be rescaled"),
        ("--autoencoders=pca --precision=bfloat16", "precision", "PCA has no activations"),
        ("--spectrum=power:1", "spectrum", "must not be given"),
    ],
    "unused_states": [
        ("--states=8:31", "states", "must end at 32"),
        ("--states=8:33", "states", "must end at 32"),
        ("--latent_dims=65", "latent_dims", "1..64"),
        ("--learned_dims=65", "learned_dims", "1..64"),
        ("--sigma_min=100", "sigma_min", "< --sigma_max=80"),
        ("--levels=2000", "levels", "1..1000"),
        ("--spectrum=file.npy", "spectrum", "no file"),
    ],
}  # fmt: skip


def malformed_values(name, parser):
    """Values that a setting must refuse, by what its parser says of itself."""
    match parser:
        case WordParser():
            return ["", " ", *WORDS[name]]
        case ListParser(item=WordParser()):
            return ["", " ", *WORDS[name]]
        case ListParser():
            item = parser.item
            good = item.choices[0] if isinstance(item, ChoiceParser) else item.high if item.high < HUGE else 2
            return [*malformed_values(name, item), f"{good},{good}", f"{good},", f",{good}"]
        case NumberParser():
            below = parser.low if parser.low_open else parser.low - 1
            found = ["", "word", "nan", "-inf", "1;2", str(below), str(-HUGE)]
            found += [] if parser.infinite else ["inf"]
            found += [str(parser.low + 1)] if parser.multiple > 1 else []
            found += (
                [str(HUGE), str(parser.high if parser.high_open else parser.high + 1)] if parser.high < HUGE else []
            )
            return found + (["1.5", "1e3", "0x10", "true"] if parser.kind is int else ["1..5"])
        case ChoiceParser():
            return ["", "absent", parser.choices[0].upper(), f"{parser.choices[0]}x"]
        case SwitchParser():
            return ["", "maybe", "2", "yes"]
        case RangeParser():
            return ["", "8", "0:4", "5:4", "1:2:3", "a:b", "nan:2"]


def command_line(experiment):
    return CommandLine({launch.OWN: started(experiment).args[0], launch.COMMON: launch.Launch})


def malformed_commands(experiment):
    """(arguments, what the line must hold) of every malformed command."""
    line, found = command_line(experiment), []
    for name in line.flags:
        flag = line[name]
        for value in malformed_values(name, flag.parser.of_setting):
            found.append(([f"--{name}={value}"], [f"--{name}={' '.join(value.split())}", flag.parser.allowed]))
        if flag.boolean:
            found.append(([f"--no{name}=1"], [f"--no{name}=1", "must be without a value"]))
        else:
            found.append(([f"--{name}"], [f"--{name} has no value", flag.parser.allowed]))
            found.append(([f"--{name}", "--quick"], [f"--{name}=--quick", flag.parser.allowed]))
    found += [(words.split(), [f"--{name}=", reason]) for words, name, reason in TOGETHER.get(experiment, [])]
    return found + [
        (["stray"], ["'stray'", "--name=value"]),
        (["--wrokdir=x"], ["--wrokdir=x", "did you mean --workdir?", "--help"]),
        (["--flagfile=absent"], ["--flagfile=absent", "readable text file"]),
        (["--flagfile=tests"], ["--flagfile=tests", "readable text file"]),
    ]


@pytest.fixture
def answer(monkeypatch, capsys):
    """Runs a command in this process; returns its status, stdout and stderr."""
    monkeypatch.setattr(devices, "start", lambda **options: None)
    monkeypatch.setattr(chunks, "obey_signals", lambda: None)
    monkeypatch.chdir(ROOT)

    def run(experiment, words):
        monkeypatch.setattr(sys, "argv", [experiment, *words])
        call, status = started(experiment), 0
        try:
            launch.main(*call.args, **call.kwargs)
        except SystemExit as ending:
            status = ending.code
        return status, *capsys.readouterr()

    return run


def snapshot(directory):
    return {p.name: (p.read_bytes(), p.stat().st_mtime_ns) for p in sorted(directory.rglob("*")) if p.is_file()}


@pytest.mark.parametrize("experiment", sources())
def test_malformed_commands_are_refused_with_one_line(experiment, answer, tmp_path):
    (tmp_path / "held").mkdir()
    for name in ("records.jsonl", "flags.txt", "curves.npz"):
        (tmp_path / "held" / name).write_text(f"the {name} of another run\n")
    before, wrong = snapshot(tmp_path / "held"), []
    workdirs = [f"--workdir={tmp_path / name}" for name in ("fresh", "held")]
    commands = malformed_commands(experiment)
    for i, (words, expected) in enumerate(commands):
        status, out, err = answer(experiment, [*workdirs[i % 2 : i % 2 + 1], *words])
        good = status == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        if not (good and err.endswith("\n") and all(part in err for part in expected)):
            wrong.append(f"{words} expects {expected}: status {status}, {out[-500:]}{err[-1000:]}")
    assert not wrong, "\n".join(wrong)
    assert snapshot(tmp_path / "held") == before and sorted(p.name for p in tmp_path.iterdir()) == ["held"]
    tried = " ".join(word for words, _ in commands for word in words)
    assert [name for name in command_line(experiment).flags if tried.count(f"--{name}=") < 4] == []


@pytest.mark.parametrize("experiment", sources())
def test_help_says_what_every_setting_is_and_allows(experiment, answer):
    status, out, err = answer(experiment, ["--help"])
    line, flat = command_line(experiment), " ".join(out.split())
    assert (status, err) == (0, "")
    for name in line.flags:
        assert f"--{name}=" in out or f"--[no]{name} " in out
        assert " ".join(line[name].help.split()) in flat and (
            line[name].boolean or f"Allowed: {' '.join(line[name].parser.allowed.split())}." in flat
        )


def test_a_real_command(tmp_path):
    words = [f"--workdir={tmp_path / 'out'}", "--draws=1000000000000"]
    command = [sys.executable, "-m", "experiments.phase_diagram", *words]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    line = "error: flag --draws=1000000000000: must be a whole number >= 1 and <= 1_000_000\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", line)
    assert not (tmp_path / "out").exists()


def test_the_docs_tables_of_settings_are_those_of_the_declarations():
    assert (ROOT / "docs/settings.md").read_text() == settings_page(), (
        "python -m experiments --settings > docs/settings.md"
    )
