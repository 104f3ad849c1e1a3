"""How experiments are started: settings, workdirs that belong to one job, results and reports, statuses."""

import ast
import dataclasses
import fcntl
import functools
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
import toy
from commands import ROOT, digest

from experiments import launch
from experiments.launch import SettingError, code, workdir
from ldmjax import chunks, devices, records


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the toy experiment in this process; returns its status, stdout and stderr."""
    monkeypatch.setattr(devices, "start", lambda **options: None)
    monkeypatch.setattr(chunks, "obey_signals", lambda: None)
    monkeypatch.chdir(tmp_path)

    def start(*words, config=toy.Config, compute=toy.compute, report=toy.report, plan=None):
        monkeypatch.setattr(sys, "argv", ["toy", *words])
        status = 0
        try:
            launch.main(config, compute, report, quick=toy.QUICK, plan=plan)
        except SystemExit as ending:
            status = ending.code
        finally:
            while workdir._LOCKS:  # the process goes on, its job has ended
                os.close(workdir._LOCKS.pop())
        return status, *capsys.readouterr()

    return start


def files(directory):
    return {p.relative_to(directory): digest(p) for p in Path(directory).rglob("*") if p.is_file()}


@pytest.mark.parametrize(
    ("values", "name", "allowed"),
    [
        ({"n": (0,)}, "n", "must be comma-separated whole numbers >= 1 and <= 100, none twice"),
        ({"n": (2, 2)}, "n", "none twice"),
        ({"n": (1.5,)}, "n", "whole numbers"),
        ({"rate": 0.0}, "rate", "must be a finite number > 0 and <= 2"),
        ({"rate": float("nan")}, "rate", "finite"),
        ({"cap": 0.5}, "cap", "must be a number >= 1 or inf"),
        ({"kind": "c"}, "kind", "must be one of a, b"),
        ({"kind": None}, "kind", "must be one of a, b"),
        ({"states": (3, 2)}, "states", "LOW:HIGH"),
        ({"loud": "perhaps"}, "loud", "true or false"),
        ({"kind": "b", "rate": 1.5}, "rate", "<= 1 with --kind=b"),
    ],
)
def test_a_configuration_refuses_what_its_flags_refuse(values, name, allowed, run):
    with pytest.raises(SettingError) as refused:
        toy.Config(**values)
    assert refused.value.name == name and allowed in refused.value.allowed
    if None not in values.values():
        words = [
            f"--{key}={launch.settings.as_word(launch.Range(v) if key == 'states' else v)}" for key, v in values.items()
        ]
        status, out, err = run(*words)
        assert (status, out) == (2, "") and err.startswith(f"error: flag --{name}=") and allowed in err


def test_values_that_are_allowed_stay_as_they_are():
    config = toy.Config(n=(3, 1), rate=2.0, cap=np.inf, states=(2, 5), file="x", loud=True)
    assert (config.n, config.rate, config.cap, config.states, config.loud) == ((3, 1), 2.0, np.inf, (2, 5), True)
    assert dataclasses.replace(config, n=(4,)).n == (4,) and toy.Config().states is None


def test_a_field_that_says_not_what_is_allowed_is_no_setting():
    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Wrong(launch.Settings):
        name: str = launch.setting("x", "Any text.")

    with pytest.raises(TypeError, match="says not what is allowed"):
        Wrong()


def test_results_are_written_read_and_reported(run, tmp_path):
    status, out, err = run("--n=1,2,3", "--workdir=w")
    assert status == 0 and err == "" and "\n7\n" in out and "3 records in" in out, (out, err)
    written = {p.name for p in (tmp_path / "w").iterdir()}
    assert written == {
        "flags.txt",
        "metadata.json",
        "records.jsonl",
        "curves.npz",
        "squares.png",
        "toy.json",
        "checkpoints",
    }
    rows = records.load_records(tmp_path / "w")
    assert [row["square"] for row in rows] == [0.5, 2.0, 4.5] and rows[0]["cap"] is None
    assert (
        "workdir" not in (tmp_path / "w/flags.txt").read_text()
        and "--n=1,2,3" in (tmp_path / "w/flags.txt").read_text()
    )
    about = json.loads((tmp_path / "w/metadata.json").read_text())
    assert about["note"] == "hello" and about["seconds"] >= 0 and about["versions"]["jax"] == jax.__version__
    again = run("--flagfile=w/flags.txt", "--workdir=v")
    assert again[0] == 0 and digest(tmp_path / "v/records.jsonl") == digest(tmp_path / "w/records.jsonl")


def test_a_report_is_made_again_from_the_files_alone(run, tmp_path):
    assert run("--n=5", "--kind=b", "--workdir=w")[0] == 0
    for name in ("squares.png", "toy.json", "metadata.json"):
        (tmp_path / "w" / name).unlink()
    (tmp_path / "w/flags.txt").write_text((tmp_path / "w/flags.txt").read_text() + "--a_flag_that_is_gone=1\n")
    before = files(tmp_path / "w")
    forbidden = functools.wraps(toy.compute)(lambda *arguments: pytest.fail("computed"))
    status, out, err = run("--redraw", "--workdir=w", compute=forbidden)
    assert status == 0 and out.startswith("12.5\n"), err
    assert json.loads((tmp_path / "w/toy.json").read_text()) == {"kind": "b"} and (tmp_path / "w/squares.png").exists()
    assert before.items() <= files(tmp_path / "w").items()
    for words, said in [
        (["--redraw", "--n=1", "--workdir=w"], "only without --redraw"),
        (["--redraw", "--workdir=absent"], "there is no flags.txt"),
    ]:
        status, out, err = run(*words)
        assert (status, out) == (2, "") and said in err and len(err.splitlines()) == 1
    (tmp_path / "w/records.jsonl").write_text('{"schema_version": 1, "n": 5}\n')
    status, out, err = run("--redraw", "--workdir=w")
    assert status == 2 and "they lack 'square'" in err and len(err.splitlines()) == 1
    (tmp_path / "w/records.jsonl").write_text("{")
    assert run("--redraw", "--workdir=w")[0] == 2


def test_quick_replaces_what_is_not_given(run, tmp_path):
    assert run("--quick", "--workdir=w")[0] == 0 and len(records.load_records(tmp_path / "w")) == 1
    assert run("--quick", "--n=4,5", "--workdir=v")[0] == 0 and len(records.load_records(tmp_path / "v")) == 2
    assert run("--n=4,5", "--workdir=u")[0] == 0
    # Also of a field that is no flag.
    hidden = [json.loads((tmp_path / name / "metadata.json").read_text())["hidden"] for name in "wvu"]
    assert hidden == [1, 1, 3]


def test_dry_run_writes_nothing(run, tmp_path):
    stages = [launch.Stage(stage="train", runs=3, steps=2000, parameters=12_345), launch.Stage(stage="none", runs=0)]
    status, out, err = run("--dry_run", "--workdir=w", plan=lambda config, data: stages)
    assert status == 0 and not (tmp_path / "w").exists() and "nothing was written there" in out and " w;" in out
    assert [line.split() for line in out.splitlines()[:2]] == [
        ["stage", "runs", "programs", "steps", "evaluations", "parameters"],
        ["train", "3", "0", "2,000", "12,345"],
    ] and "none" not in out


def test_other_settings_are_refused_and_overwrite_starts_anew(run, tmp_path):
    assert run("--workdir=w")[0] == 0
    (tmp_path / "w/mine.txt").write_text("not theirs")
    (tmp_path / "w/old.png").write_text("a figure of the job before")
    before = files(tmp_path / "w")
    status, out, err = run("--n=1,2", "--workdir=w")
    assert status == 2 and out == "" and len(err.splitlines()) == 1
    assert "flag --n=1,2: the job in --workdir=w has --n=1,2,3" in err and "--overwrite starts anew" in err
    assert files(tmp_path / "w") == before
    status, out, err = run("--n=1,2", "--workdir=w", "--overwrite")
    assert status == 0 and len(records.load_records(tmp_path / "w")) == 2, err
    assert (tmp_path / "w/mine.txt").exists() and not (tmp_path / "w/old.png").exists()


IDENTITY = workdir.Identity(
    experiment="x", flags={"n": "6", "data": "a.npz"}, files={"data": "1"}, data="d", code="1",
    versions={"jax": "0.2", "numpy": "2"},
)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"code": "0"}, "holds results of another state of the code that computes"),
        ({"versions": {"jax": "0.1", "numpy": "2"}}, "holds results of jax 0.1: "),
        ({"files": {"data": "0"}}, "flag --data=a.npz: its contents have changed"),
        ({"data": "e"}, "holds results of other data"),
        ({"experiment": "y"}, "holds results of experiments.y"),
        ({"flags": {"n": "5", "data": "a.npz"}}, "flag --n=6: the job in --workdir=w has --n=5"),
        (
            {"flags": {"data": "a.npz", "old": "1"}},
            "flag --old not given, --n=6: the job in --workdir=w has --old=1, --n not given",
        ),
        ({"more": 1}, "job.json is damaged"),
    ],
)
def test_what_is_not_the_same_job(tmp_path, monkeypatch, change, expected):
    monkeypatch.chdir(tmp_path)
    for directory in (Path("w"), Path("v")):
        workdir.claim(directory, IDENTITY, overwrite=False)
        while workdir._LOCKS:
            os.close(workdir._LOCKS.pop())
    held = json.loads(Path("w/checkpoints/job.json").read_text())
    Path("w/checkpoints/job.json").write_text(json.dumps(held | change))
    with pytest.raises(launch.UsageError) as refused:
        workdir.claim(Path("w"), IDENTITY, overwrite=False)
    assert expected in str(refused.value) and "--overwrite" in str(refused.value)
    workdir.claim(Path("v"), IDENTITY, overwrite=False)


def test_files_that_settings_name_belong_to_the_job(run, tmp_path):
    (tmp_path / "numbers").write_text("1")
    assert run("--file=numbers", "--workdir=w")[0] == 0
    (tmp_path / "numbers").write_text("2")
    status, _, err = run("--file=numbers", "--workdir=w")
    assert status == 2 and "flag --file=numbers: its contents have changed" in err


def test_what_is_no_job_of_ours_is_neither_used_nor_deleted(run, tmp_path):
    (tmp_path / "w/checkpoints/pieces").mkdir(parents=True)
    (tmp_path / "w/checkpoints/pieces/x.json").write_text("")
    for words in ([], ["--overwrite"]):
        status, _, err = run("--workdir=w", *words)
        assert status == 2 and "not of a job that is known" in err
    assert (tmp_path / "w/checkpoints/pieces/x.json").exists()
    (tmp_path / "v").mkdir()
    (tmp_path / "v/records.jsonl").write_text("")
    assert "unknown job" in run("--workdir=v")[2]
    (tmp_path / "u/checkpoints").mkdir(parents=True)
    (tmp_path / "u/checkpoints/job.json.partial").write_text("{")  # killed while it described itself
    assert run("--workdir=u")[0] == 0 and not (tmp_path / "u/checkpoints/job.json.partial").exists()


def test_one_process_at_a_time_in_a_workdir(run, tmp_path):
    (tmp_path / "w/checkpoints").mkdir(parents=True)
    with open(tmp_path / "w/checkpoints/lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        status, _, err = run("--workdir=w")
        assert status == 2 and "another process is working in it" in err
    assert run("--workdir=w")[0] == 0, "a lock file alone is no lock"


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (MemoryError("one run at a time"), 4, "out of memory: one run at a time"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 5 bytes"), 4, "out of memory: RESOURCE_EXHAUSTED: of 5"),
        (OSError(28, "No space left on device"), 3, "No space left on device; what was finished is kept"),
        (SystemExit(130), 130, "stopped by Ctrl-C: the same command (without --overwrite) goes on"),
        (SystemExit(143), 143, "stopped by SIGTERM"),
        (toy.Config().refuse("n", "must suit the user's function"), 2, "flag --n=1,2,3: must suit the user's function"),
    ],
)
def test_statuses(run, error, status, text):
    def failing(config, data, job):
        raise error

    failing.__module__ = "toy"
    found, _, err = run("--workdir=w", compute=failing)
    assert found == status and text in err and len(err.splitlines()) == 1
    for other in (jax.errors.JaxRuntimeError("INTERNAL: x"), ZeroDivisionError()):
        error = other
        with pytest.raises(type(other)):
            run("--workdir=v", compute=failing)


def test_what_is_finished_is_kept_when_the_computation_ends_early(run):
    calls = []

    def stopping(config, data, job):
        def square(index):
            calls.append(index)
            if len(calls) == 2:
                raise MemoryError("of the third")
            return toy._square(config, index)

        rows = job.map(lambda places: map(square, places), ["n1", "n2", "n3"], label="squares")
        return launch.Results(rows=rows, arrays={"n": np.array(config.n)})

    stopping.__module__ = "toy"
    assert run("--workdir=w", compute=stopping)[0] == 4
    assert run("--workdir=w", compute=stopping)[0] == 0 and calls == [0, 1, 1, 2]


@pytest.mark.parametrize(
    ("old", "new", "same"),
    [
        ("Squares the numbers.", "Of numbers the squares.", True),
        ('"Numbers."', '"The numbers."', True),
        ('label="squares"', 'label="numbers squared"', False),
        ("must be <= 1 with --kind=b", "must be at most 1 with --kind=b", True),
        ("self.rate > 1", "self.rate > 1.5", False),
        (":g}", ":.3f}", True),
        ('["square"].sum()', '["square"].mean()', True),
        ("figure.subplots()", "figure.subplots(1)", True),
        ("** 2", "** 3", False),
        ("(1, 2, 3)", "(1, 2, 4)", False),
        ("import numpy as np", "import numpy as np  # arrays", True),
        ("    assert data is None\n", "    assert data is None\n    np.log(1.0)\n", False),
        ("    assert data is None\n", '    assert data is None\n    job.log("starts")\n', True),
    ],
)
def test_the_code_that_computes_is_known_from_the_code_that_reports(tmp_path, old, new, same):
    text = (ROOT / "tests/toy.py").read_text()
    assert text.count(old) >= 1
    meanings = [code._meaning(code._computing(ast.parse(t).body)) for t in (text, text.replace(old, new))]
    assert (meanings[0] == meanings[1]) == same


def test_what_compute_reaches_without_naming_it_computes():
    """By a registry, by a string, in a module beside it, behind a decorator."""
    text = (
        "M = {}\ndef register(f):\n    M[f.__name__] = f\n    return f\n@register\ndef _third(x):\n    return 3 * x\n"
        "def _fourth(x):\n    return 4 * x\ndef compute(c, d, j):\n    return M['_third'](1) + globals()['_fourth'](1)\n"
        "def report(r):\n    return _third(1), _fourth(1), _shown()\ndef _shown():\n    return 5\n"
    )
    meaning = lambda source: code._meaning(code._computing(ast.parse(source).body))  # noqa: E731
    assert len({meaning(text.replace(*change)) for change in [("3 *", "2 *"), ("4 *", "2 *"), ("5", "5")]}) == 3
    assert meaning(text.replace("5", "6")) == meaning(text)


def test_modules_beside_an_experiment_compute(tmp_path):
    (tmp_path / "exp.py").write_text(
        "import helper\ndef compute(c, d, j):\n    return helper.f(3)\ndef report(r):\n    pass\n"
    )
    digests = set()
    for factor in (2, 5):
        (tmp_path / "helper.py").write_text(f"from deeper import K\ndef f(x):\n    return K * x * {factor}\n")
        for depth in (1, 2):
            (tmp_path / "deeper.py").write_text(f"K = {depth}\n")
            digests.add(code.digest_of([tmp_path / "exp.py"]))
    assert len(digests) == 4


def test_a_workdir_of_another_experiment_is_not_redrawn(run, tmp_path):
    assert run("--n=5", "--workdir=w")[0] == 0
    job = json.loads((tmp_path / "w/checkpoints/job.json").read_text())
    (tmp_path / "w/checkpoints/job.json").write_text(json.dumps(job | {"experiment": "other"}))
    status, out, err = run("--redraw", "--workdir=w")
    assert (status, out) == (2, "") and "holds results of experiments.other" in err


def test_the_library_is_part_of_the_code_that_computes_but_for_what_reports():
    package = ROOT / "ldmjax"
    assert {path.stem for path in package.glob("*.py")} >= code.REPORTING
    assert code.digest(toy.compute) == code.digest(toy.compute) and len(code.digest(toy.compute)) == 64


def command(directory, *words, before=None, prefix=()):
    variables = {**os.environ, "PYTHONPATH": str(ROOT)}
    words = [*prefix, sys.executable, str(ROOT / "tests/toy.py"), f"--workdir={directory}", *words]
    done = subprocess.run(words, env=variables, capture_output=True, text=True, preexec_fn=before)
    return done.returncode, done.stdout, done.stderr


def test_a_file_that_the_system_refuses_ends_with_status_3(tmp_path):
    """Files may not grow beyond 9 kB: the figure cannot be written, the results are whole."""
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (9_000, 9_000))  # noqa: E731
    status, out, err = command(tmp_path, before=limit)
    assert status == 3 and len(err.splitlines()) == 1 and "File too large" in err and "the same command goes on" in err
    assert len(records.load_records(tmp_path)) == 3 and not list(tmp_path.glob("*.png*"))
    assert command(tmp_path)[0] == 0 and (tmp_path / "squares.png").exists()


def can_mount():
    return shutil.which("unshare") and subprocess.run(["unshare", "-rm", "true"], capture_output=True).returncode == 0


@pytest.mark.skipif(not can_mount(), reason="needs a user namespace in which a small file system can be mounted")
def test_a_full_disk_ends_with_status_3_and_one_line(tmp_path):
    script = f'mount -t tmpfs -o size=24k tmpfs {tmp_path} && exec "$0" "$@"'
    status, out, err = command(tmp_path / "w", prefix=("unshare", "-rm", "sh", "-c", script))
    lines = err.strip().splitlines()
    assert status == 3 and "No space left on device" in lines[-1] and "Traceback" not in err, err
