"""The prepared call: steps end in time and go on, comparisons are right, and, marked slow, all of it on a CPU."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from experiments.benchmark.contests import CONTESTS
from experiments.flags import UsageError
from experiments.on_device import agreement, carrying, manifest, plan, reading, report, steps, wheels

ROOT = Path(__file__).parent.parent
FACTS = {"code": "c", "quick": True}


def step(folder, name, code, *, stage="stage", needs=0.0, limit=30.0, read=dict):
    """A step that runs a line of Python in a folder of its own."""
    own = folder / "scratch" / name
    words = "-c", f"import os, sys, time; os.chdir({str(own)!r})\n{code}"
    return steps.Step(stage=stage, name=name, folder=own, words=words, needs=needs, limit=limit, read=read)


def run(chosen, folder, **options):
    """The results and the lines of one start."""
    lines, results = [], steps.Results.in_workdir(folder, FACTS)
    steps.run_all(chosen, results, report=lines.append, **options)
    return results, lines


def is_alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failing_step_is_reported_and_does_not_end_the_rest(tmp_path):
    def unreadable():
        raise ValueError("not what it should be")

    chosen = [
        step(tmp_path, "fails", "print('before'); sys.exit('the reason')"),
        step(tmp_path, "unreadable", "", read=unreadable),
        step(tmp_path, "good", "open('x', 'w').write('1.5')", read=lambda: {"x": float((good / "x").read_text())}),
    ]
    good = chosen[-1].folder
    results, lines = run(chosen, tmp_path)
    found = results.steps["stage"]
    assert [found[s.name]["status"] for s in chosen] == ["failed", "failed", "done"]
    assert found["fails"]["lines"] == ["before", "the reason"] and "    the reason" in lines
    assert "not what it should be" in found["unreadable"]["lines"][-1]
    assert found["good"]["result"] == {"x": 1.5} and not good.exists() and chosen[0].folder.exists()
    for name in ("stage", "results"):
        assert json.loads((tmp_path / f"{name}.json").read_text())["facts"] == FACTS
    assert json.loads((tmp_path / "results.json").read_text())["steps"] == results.steps


def test_too_little_time_skips_steps(tmp_path):
    chosen = [step(tmp_path, "long", "", needs=100.0), step(tmp_path, "short", "", needs=1.0)]
    results, lines = run(chosen, tmp_path, seconds=60.0)
    assert list(results.steps) == ["stage"] and list(results.steps["stage"]) == ["short"]
    assert lines[0] == "stage, long: skipped, 60 s left, needs 100"


def test_earlier_stages_leave_a_stage_what_is_kept_for_it_until_it_is_done(tmp_path):
    chosen = [
        step(tmp_path, "first", "", needs=45.0),
        step(tmp_path, "other", "", stage="other", needs=50.0),
        step(tmp_path, "last", "", stage="last"),
    ]
    results, lines = run(chosen, tmp_path, seconds=60.0, kept={"stage": 0.9, "other": 0.3})
    assert lines[0] == "stage, first: skipped, 42 s left, needs 45" and list(results.steps) == ["other", "last"]
    results, _ = run(chosen, tmp_path, seconds=60.0, kept={"other": 0.3})
    assert list(results.steps["stage"]) == ["first"]


def test_every_stage_of_the_full_plan_has_its_time(tmp_path, monkeypatch):
    """Though each step takes all that it may, of the seconds in BUILD.md."""
    now, given = 0.0, {}

    def take_all(chosen, *, seconds):
        nonlocal now
        now += seconds + steps.GRACE
        given.setdefault(chosen.stage, seconds)
        return {"status": "stopped", "seconds": seconds, "resumed": False, "result": None, "lines": []}

    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(steps, "run_step", take_all)
    monkeypatch.setattr(plan, "left_out", lambda stages: {})
    chosen = plan.make_steps(plan.STAGES, plan.Places(scratch=tmp_path, carried=tmp_path, quick=False))
    run(chosen, tmp_path, seconds=560.0, kept=plan.KEPT)
    assert tuple(given) == plan.STAGES and now <= 560.0 + 1e-9
    firsts = {s.stage: s for s in reversed(chosen)}
    assert all(given[stage] >= firsts[stage].needs - steps.GRACE for stage in plan.STAGES)
    assert given["machine"] == firsts["machine"].limit and given["main_job"] >= 1.5 * report.MOST_SECONDS


def test_a_step_is_ended_at_its_limit_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess; other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {other.pid}'); print('working'); time.sleep(60)"
    )
    slow = step(tmp_path, "slow", code, limit=2.0, read=lambda: {"pids": (slow.folder / "pids").read_text()})
    begin = time.monotonic()
    results, _ = run([slow], tmp_path)
    assert time.monotonic() - begin < 20.0
    found = results.steps["stage"]["slow"]
    assert found["status"] == "stopped" and found["lines"] == ["working"] and slow.folder.exists()
    assert not any(is_alive(pid) for pid in found["result"]["pids"].split())


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(tmp_path):
    counting = "open('starts', 'a').write('x')"
    first = step(tmp_path, "first", "", read=lambda: {"value": 1})
    second = step(
        tmp_path, "second", f"{counting}; time.sleep(0 if len(open('starts').read()) > 1 else 60)", limit=2.0,
        read=lambda: {"starts": (second.folder / "starts").read_text()},
    )  # fmt: skip
    results, _ = run([first, second], tmp_path)
    assert [results.steps["stage"][name]["status"] for name in ("first", "second")] == ["done", "stopped"]
    again = steps.Step(**{**vars(first), "words": ("-c", "raise SystemExit('not again')")})
    results, lines = run([again, second], tmp_path)
    assert lines[0] == "stage, first: done before" and results.steps["stage"]["first"]["result"] == {"value": 1}
    found = results.steps["stage"]["second"]
    assert (found["status"], found["resumed"], found["result"]) == ("done", True, {"starts": "xx"})
    assert "(resumed)" in lines[1]


SCRIPT = """
import sys
sys.path.insert(0, {tests!r})
import test_on_device as t
from ldmjax import chunks
chunks.obey_signals()
folder = t.Path({folder!r})
waits = "open('pid', 'w').write(str(os.getpid())); time.sleep(0 if os.path.exists('again') else 60); open('again', 'w')"
t.run([t.step(folder, 'first', ''), t.step(folder, 'second', waits), t.step(folder, 'third', '')], folder)
"""


def test_killed_in_a_step_and_started_again(tmp_path):
    """SIGTERM ends the step's process too, and keeps what was finished."""
    command = [sys.executable, "-c", SCRIPT.format(tests=str(ROOT / "tests"), folder=str(tmp_path))]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(command, env=environment)
    pid = tmp_path / "scratch" / "second" / "pid"
    end = time.monotonic() + 60.0
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30.0) == 143
    assert not is_alive(int(pid.read_text()))
    held = json.loads((tmp_path / "results.json").read_text())["steps"]["stage"]
    assert list(held) == ["first"] and held["first"]["status"] == "done"
    (pid.parent / "again").write_text("")
    assert subprocess.run(command, env=environment, timeout=60.0).returncode == 0
    found = json.loads((tmp_path / "results.json").read_text())["steps"]["stage"]
    assert found["first"] == held["first"]
    assert [(name, found[name]["status"]) for name in found] == [(n, "done") for n in ("first", "second", "third")]
    assert found["second"]["resumed"] and not found["third"]["resumed"]


def test_results_of_another_kind_are_refused_unless_overwritten(tmp_path):
    run([step(tmp_path, "first", "")], tmp_path)
    with pytest.raises(ValueError, match="another code"):
        steps.Results.in_workdir(tmp_path, {**FACTS, "code": "d"})
    assert steps.Results.in_workdir(tmp_path, {**FACTS, "code": "d"}, overwrite=True).steps == {}
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match="damaged"):
        steps.Results.in_workdir(tmp_path, FACTS)


COMMANDS = """
import contextlib, io, json, sys, types
from pathlib import Path
from absl import flags
from experiments.flags import UsageError, command_line, jobs
from experiments.on_device import __main__ as program, carrying, plan, steps

folder, commands = Path(sys.argv[1]), json.loads(sys.argv[2])
sys.argv = ["on_device"]
program.define_flags()
words = "-c", "print('a line'); raise ValueError('the reason')"
fails = steps.Step(
    stage="main_job", name="reference", folder=folder / "fails", words=words, needs=0.0, limit=9.0, read=dict
)
carrying.reference_steps = lambda places: [(fails, {})]
plan.importlib = types.SimpleNamespace(util=types.SimpleNamespace(find_spec=lambda name: None))
for name, facts in {"device": {"device": "1 x Abacus (gpu)"}, "switch": {"deterministic": True}}.items():
    (folder / name).mkdir()
    facts = {"code": jobs.describe_job()["code"], "quick": True, "deterministic": False} | facts
    (folder / name / "results.json").write_text(json.dumps({"facts": facts, "steps": {}}))
answers = []
for words in commands:
    flags.FLAGS.unparse_flags()
    with contextlib.redirect_stdout(io.StringIO()) as out:
        try:
            command_line.parse(["on_device", *words.replace("FOLDER", str(folder)).split()])
            program.main()
            answers.append(["done", out.getvalue()])
        except (UsageError, SystemExit) as error:
            answers.append([type(error).__name__, str(error)])
print(json.dumps(answers))
"""


def test_commands_that_would_mix_or_ignore_something_are_refused_with_one_line(tmp_path):
    """In one process; what each word may be for itself is in test_malformed_flags.py."""
    np.savez(tmp_path / "cifar.npz", images=np.zeros((1000, 32, 32, 3), np.uint8), labels=np.arange(1000) % 10)
    making = "--prepare=FOLDER/new --cifar=FOLDER/cifar.npz"
    refused = {
        "--only=machine --quick --workdir=FOLDER/device": "holds results with another device: --overwrite",
        "--only=machine --quick --workdir=FOLDER/switch": "holds results with another deterministic and device: --over",
        "--only=machine --images=15000": "flag --images=15000: allowed only with --prepare",
        "--only=machine --cifar=FOLDER/cifar.npz": "allowed only with --prepare",
        f"{making} --carried=FOLDER": "allowed only without --prepare",
        f"{making} --only=machine": "flag --only=machine: allowed only without --prepare",
        f"{making} --seconds=9": "flag --seconds=9.0: allowed only without --prepare",
        "--only=machine --checkpoint_every=3": "flag --checkpoint_every=3.0: must not be given",
        f"{making} --keep_checkpoints=3": "flag --keep_checkpoints=3: must not be given",
        f"{making} --images=12999": "flag --images=12999: must be >= 13000 without --quick",
    }
    failing, without_torch = f"{making} --quick", "--only=pytorch --quick --workdir=FOLDER/w"
    commands = [*refused, failing, without_torch]
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, str(tmp_path), json.dumps(commands)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    answers = dict(zip(commands, json.loads(done.stdout), strict=True))
    for words, expected in refused.items():
        kind, line = answers[words]
        assert kind == "UsageError" and expected in line and len(line.splitlines()) == 1, (words, line)
    output = tmp_path / "fails" / "output.txt"
    line = f"error: main_job, reference: failed: ValueError: the reason (its output is in {output})"
    assert answers[failing] == ["SystemExit", line] and not (tmp_path / "new").exists()
    kind, text = answers[without_torch]
    assert kind == "done" and text.startswith("pytorch: left out, PyTorch is not installed\n")
    assert row(text, "all of it", "left out, PyTorch is not installed") and "x cpu (cpu)" in row(text, "Device:")


def test_the_science_has_the_images_it_asks_for(tmp_path):
    (science,) = plan.science_steps(plan.Places(scratch=tmp_path, carried=tmp_path, quick=False))
    assert {f"--n={plan.TRAINED_ON}", f"--reference={plan.COMPARED_WITH}"} <= set(science.words)


@pytest.fixture
def cifar(tmp_path):
    """40 images of each of three classes; an image's first pixel is its number."""
    images = np.zeros((120, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0] = np.arange(120)
    np.savez(tmp_path / "cifar.npz", images=images, labels=np.repeat(np.arange(3, dtype=np.uint8), 40))
    return str(tmp_path / "cifar.npz")


def test_images_are_chosen_by_class_and_the_same_each_time(cifar):
    images, labels = carrying.choose_images(cifar, 31)
    assert images.shape == (30, 32, 32, 3) and images.dtype == np.uint8
    numbers = images[:, 0, 0, 0]
    assert len(set(numbers)) == 30 and np.array_equal(numbers // 40, labels)
    assert np.bincount(labels).tolist() == [10, 10, 10] and np.any(np.diff(labels.astype(int)) < 0)
    assert np.array_equal(carrying.choose_images(cifar, 31)[0], images)


@pytest.mark.parametrize(
    ("content", "count", "expected"),
    [
        (b"no archive", 10, "must be an .npz file with images and labels"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, 4, "must be an .npz file with images and labels"),
        ({"images": np.zeros((4, 32, 32, 3)), "labels": np.zeros(4, int)}, 4, "uint8"),
        ({"images": np.zeros((4, 3072), np.uint8), "labels": np.zeros(4, int)}, 4, "[N, 32, 32, 3]"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)}, 4, "labels [3]"),
        (
            {"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.array([0, 0, 0, 1])},
            4,
            "--images=4: must be 2..2",
        ),
    ],
)
def test_other_files_than_images_are_refused(tmp_path, content, count, expected):
    file = tmp_path / "x.npz"
    file.write_bytes(content) if isinstance(content, bytes) else np.savez(file, **content)
    with pytest.raises(UsageError) as refused:
        carrying.choose_images(str(file), count)
    assert expected in str(refused.value) and len(str(refused.value).splitlines()) == 1


def prepared(folder, **facts):
    (folder / "sub").mkdir(parents=True)
    (folder / "sub" / "a").write_text("1")
    manifest.write(folder, **facts)
    return folder


def test_a_carried_folder_is_whole_and_of_this_code(tmp_path):
    folder = prepared(tmp_path / "f", code="c", quick=False)
    carrying.check(folder, code="c", quick=False)
    for facts, expected in (
        ({"code": "d", "quick": False}, "another state"),
        ({"code": "c", "quick": True}, "out --quick"),
    ):
        with pytest.raises(UsageError, match=expected):
            carrying.check(folder, **facts)
    (folder / "sub" / "a").write_text("2")
    with pytest.raises(UsageError, match="sub/a is damaged"):
        carrying.check(folder, code="c", quick=False)
    (folder / "sub" / "a").unlink()
    with pytest.raises(UsageError, match="sub/a is missing"):
        carrying.check(folder, code="c", quick=False)
    (folder / manifest.NAME).write_text("{}")
    with pytest.raises(UsageError, match="manifest.json is damaged"):
        carrying.check(folder, code="c", quick=False)


def prepare(folder, cifar, monkeypatch, *, code="open('r', 'w').write('1')", **options):
    """Prepares ``folder`` with one reference step that runs ``code``."""
    chosen = step(folder.parent, "reference", code)
    monkeypatch.setattr(carrying, "reference_steps", lambda places: [(chosen, {"r": "main_job/r"})])
    places = plan.Places(scratch=folder.parent / "scratch", carried=None, quick=True)
    arguments = {"cifar": cifar, "images": 30, "wheels": None, "places": places, "code": "c", **options}
    carrying.prepare(folder, **arguments, report=lambda line: None)


def test_a_folder_is_made_whole_or_not_at_all(tmp_path, cifar, monkeypatch):
    folder = tmp_path / "carried"
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "x-1-py3-none-any.whl").write_bytes(b"wheel")
    prepare(folder, cifar, monkeypatch, wheels=str(tmp_path / "own"))
    carrying.check(folder, code="c", quick=True)
    expected = ["cifar10.npz", "main_job/r", "wheels/x-1-py3-none-any.whl"]
    assert sorted(manifest.read(folder)["files"]) == expected and not (tmp_path / "scratch").exists()
    before = manifest.read(folder)
    with pytest.raises(steps.NotDoneError, match="stage, reference: failed: the reason"):
        prepare(folder, cifar, monkeypatch, code="sys.exit('the reason')")
    monkeypatch.setattr(carrying, "LARGEST", 100)
    with pytest.raises(UsageError, match="must stay within 0 MiB, would hold cifar10.npz"):
        prepare(folder, cifar, monkeypatch)
    assert manifest.read(folder) == before and not (tmp_path / "carried.partial").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("")
    with pytest.raises(UsageError, match="holds something else"):
        prepare(tmp_path / "mine", cifar, monkeypatch)
    assert (tmp_path / "mine" / "file").exists()


def test_a_missing_package_comes_from_the_wheels(tmp_path, monkeypatch):
    folder = tmp_path / "carried"
    (folder / "wheels").mkdir(parents=True)
    for name, module in (("absent_on_purpose", "absent_on_purpose"), ("numpy", "not_unpacked")):
        with zipfile.ZipFile(folder / "wheels" / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{module}.py", "VALUE = 5\n")
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    manifest.write(folder)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    wheels.offer([f"--carried={folder}"])
    assert os.environ["PYTHONPATH"] == "before", "nothing was missing"
    monkeypatch.setattr(wheels, "NEEDED", ("absent_on_purpose", "absent_on_purpose.part", "numpy"))
    assert wheels.missing() == ["absent_on_purpose", "absent_on_purpose.part"]
    wheels.offer(["--carried=elsewhere", "--quick"])
    assert os.environ["PYTHONPATH"] == "before"
    wheels.offer(["--quick", f"--carried={folder}"])
    target = os.environ["PYTHONPATH"].removeprefix(f"before{os.pathsep}")
    assert sys.path[-1] == target and sorted(p.name for p in Path(target).glob("*.py")) == ["absent_on_purpose.py"]
    import absent_on_purpose

    assert absent_on_purpose.VALUE == 5


def test_parts_are_compared_by_kind():
    reference = {
        "random numbers.bits": np.array([1, 2, 3], np.uint32), "random numbers.normals": np.array([0.1, 4.0]),
        "mlp.losses": np.array([[1.0, 2.0]]),
    }  # fmt: skip
    found = {
        "random numbers.bits": np.array([1, 5, 3], np.uint32), "random numbers.normals": np.array([0.1002, 4.0004]),
        "mlp.losses": np.array([[1.0, 2.002]]), "sampler.curve": np.array([1.0, 2.0]),
        "sampler.standard_error": np.array([0.1, 0.5]), "sampler.exact": np.array([1.2, 3.5]),
        **{f"{name}.{key}": np.array(value) for name in ("random numbers", "mlp", "sampler")
           for key, value in (("equal", name == "mlp"), ("seconds", 2.0))},
    }  # fmt: skip
    compared = agreement.compare(reference, found)
    assert list(compared) == ["random numbers", "mlp", "sampler"]  # the others were not reached
    assert compared["random numbers"]["bits"] == 1 and not compared["random numbers"]["equal"]
    assert compared["random numbers"]["normals"] == pytest.approx(2e-4)
    assert compared["mlp"]["losses"] == pytest.approx(1e-3) and compared["mlp"]["equal"]
    assert compared["sampler"]["deviation"] == pytest.approx(3.0)


def test_twice_the_same_means_bit_for_bit():
    one = {"losses": np.float32([0.1, np.nan])}, [np.float32([1.0]), None]
    assert agreement._equal(one, (dict(one[0]), [np.float32([1.0]), None]))
    assert not agreement._equal(one, (one[0], [np.nextafter(np.float32([1.0]), np.float32(2.0)), None]))


def test_the_sampler_follows_its_exact_law():
    arrays, _ = agreement.sampled()
    deviation = np.abs(arrays["curve"] - arrays["exact"]) / arrays["standard_error"]
    assert arrays["curve"].shape == (agreement.STOPS,) and deviation.max() < agreement.LIMITS["deviation"]
    assert deviation.max() > 0.1  # they are two computations


def job(folder, verdicts, w2, error):
    folder.mkdir()
    lines = [
        {"schema_version": 1, "name": f"run{i}", "verdict": verdict, "metrics": {"mmd": {"verdict": "cannot tell"}}}
        for i, verdict in enumerate(verdicts)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(folder / "curves.npz", w2_squared=w2, w2_squared_standard_error=error, logsnr=np.zeros(2))
    (folder / "metadata.json").write_text(json.dumps({"seconds": 5.0, "compilations": {"mlp": 1}}))
    return folder


def test_jobs_are_compared_in_verdicts_and_standard_errors(tmp_path):
    error = np.full((3, 2), 0.3)
    there = job(tmp_path / "main_job", "ENN", np.array([[1.0, 2.0], [3.0, 4.0], [np.inf, np.inf]]), error)
    here = job(tmp_path / "here", "NNN", np.array([[1.0, 4.5], [3.5, 4.0], [np.inf, 1.0]]), np.full((3, 2), 0.4))
    found = reading.compare_jobs(tmp_path, here)
    assert (found["runs"], found["verdicts"], found["changed"]) == (3, 6, ["run0, w2: E there, N here"])
    assert found["curves"] == {"w2_squared": {"points": 6, "apart": 2, "largest": np.inf}}
    same = reading.compare_jobs(tmp_path, there)
    assert same["changed"] == [] and same["curves"]["w2_squared"] == {"points": 6, "apart": 0, "largest": 0.0}
    shifted = job(tmp_path / "shifted", "ENN", np.array([[1.0, 2.0], [3.5, 4.0], [np.inf, np.inf]]), 4 / 3 * error)
    assert reading.compare_jobs(tmp_path, shifted)["curves"]["w2_squared"]["largest"] == pytest.approx(1.0)
    with pytest.raises(ValueError):
        reading.compare_jobs(tmp_path, job(tmp_path / "few", "EN", np.ones((2, 2)), np.ones((2, 2))))


def outcome(result, status="done", seconds=50.0, resumed=False):
    return {"status": status, "seconds": seconds, "resumed": resumed, "result": result, "lines": []}


def rates(seconds, linear, runs=1024):
    bound = {"runs": runs, "seconds": seconds, "bound_seconds": 6e-6, "set_by": "operations"}
    contest = {"ours": [1.0], "theirs": [linear], "sides": {"opponent": "it", "unit": "step"}}
    return {"bounds": [bound], "contests": {"runs_linear": contest}, "machine": "m", "runs": runs // 4, "skipped": {}}


def row(text, *words):
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line


def test_goals_stand_beside_numbers():
    cpu = {**rates(1e-3, 0.64e-3 * 64, runs=64), "cores": 2}
    measured = {
        "agreement": {"parts": outcome({
            "mlp": {"losses": 2e-4, "equal": True}, "vq autoencoder": {"losses": None, "equal": False},
            "random numbers": {"bits": 0, "normals": 9e-6, "equal": True},
        })},
        "benchmark": {"R=1024": outcome(rates(1e-5, 1024 * 1e-5)), "R=64": outcome(rates(1e-3, 64 * 1e-3, runs=64))},
        "pytorch": {name: outcome({"contests": {name.partition(",")[0]: {
            "ours": [2.0, 1.0, 1.0], "theirs": [theirs, theirs, 5.0], "sides": {"opponent": opponent, "unit": "run-step"}}},
            "machine": "m", "runs": 64, "skipped": {}}) for name, theirs, opponent in (
                ("mlp_vmap", 0.9, "eager"), ("unet_train_cifar, bfloat16", 1.5, "autocast to bfloat16"))},
        "main_job": {"optimal_stopping": outcome({
            "verdicts": 4, "changed": ["run0, w2: E there, N here"], "seconds": 1.0, "seconds_there": 189.0,
            "curves": {"w2_squared": {"points": 25, "apart": 0, "largest": 1.25}},
        })},
        "science": {"noisy_autoencoder": outcome(None, "stopped")},
    }  # fmt: skip
    facts = {"code": "c", "quick": False, "deterministic": True, "device": "1 x Abacus (gpu)"}
    text = report.table(measured, cpu, facts, {})
    assert "Device: 1 x Abacus (gpu), deterministic kernels." in text
    assert row(text, "mlp: losses").endswith("no") and row(text, "vq autoencoder: losses", "not finite").endswith("no")
    assert row(text, "bits that differ").endswith("yes") and row(text, "normals").endswith("yes")
    assert "60 %" in row(text, "R=1024: MLP, share") and row(text, "R=1024: MLP, share").endswith("yes")
    assert ">=" not in row(text, "R=64: MLP, share")
    assert "100" in row(text, "R=1024: MLP, times 2 cores") and row(text, "R=1024: MLP, times").endswith("yes")
    assert "64" in row(text, "R=1024: linear scores, times 2 cores")
    assert row(text, "eager / ours", "0.9").endswith("no")
    assert row(text, "unet_train_cifar, bfloat16: autocast to bfloat16 / ours", ">= 1").endswith("yes")
    assert row(text, "verdicts that changed, of 4").endswith("no") and "run0, w2: E there, N here" in text
    assert "0, largest 1.25" in row(text, "of 25 points") and row(text, "of 25 points").endswith("yes")
    assert "50.0, 189 there" in text and row(text, "start and compilation").endswith("yes")
    assert "stopped after 50.0 s" in row(text, "noisy_autoencoder")
    measured["main_job"]["optimal_stopping"]["resumed"] = True
    assert "<=" not in row(report.table(measured, None, facts, {}), "start and compilation")


def benchmarked(folder, contests, skipped):
    """What experiments.benchmark leaves in its workdir where the device refused a bound."""
    folder.mkdir()
    measured = {"bounds": [], "contests": contests, "growth": []}
    (folder / "metadata.json").write_text(json.dumps({"measured": measured, "machine": "m", "skipped": skipped}))
    (folder / "table.json").write_text(json.dumps({"runs": 1024}))
    return reading.read_benchmark(folder)


def test_rates_without_a_bound_are_reported(tmp_path):
    cpu = {**rates(1e-3, 0.64e-3 * 64, runs=64), "cores": 2}
    linear = benchmarked(tmp_path / "linear", rates(1.0, 4096 * 1e-5)["contests"], {})
    none = benchmarked(tmp_path / "none", {}, {"runs_linear": "RESOURCE_EXHAUSTED"})
    measured = {"benchmark": {"R=4096": outcome(linear), "R=4096, command buffers": outcome(none)}}
    text = report.table(measured, cpu, {"device": "1 x Abacus (gpu)", "deterministic": False}, {})
    assert "left out by experiments.benchmark" in row(text, "R=4096: MLP")
    assert "1e+05 run-steps/s" in row(text, "R=4096: linear scores ")
    assert "64" in row(text, "R=4096: linear scores, times 2 cores (64 runs)")
    assert "not held: RESOURCE_EXHAUSTED" in row(text, "R=4096, command buffers: runs_linear")
    with pytest.raises(KeyError, match="bounds"):  # those of the CPU must be there: others are compared with them
        reading.read_reference_rates(tmp_path / "linear")


def test_every_contest_against_pytorch_is_measured():
    expected = [(name, "float32") for name, contest in CONTESTS.items() if contest.needs_torch]
    expected += [(f"unet_{work}_cifar", "bfloat16") for work in ("train", "sample")]
    assert sorted(plan.PYTORCH) == sorted(expected)


def test_steps_come_in_the_order_of_the_stages_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "left_out", lambda stages: {})
    for quick in (False, True):
        places = plan.Places(scratch=tmp_path, carried=tmp_path, quick=quick)
        chosen = plan.make_steps(plan.STAGES, places)
        order = [plan.STAGES.index(s.stage) for s in chosen]
        assert order == sorted(order) and {plan.STAGES[i] for i in order} == set(plan.STAGES)
        assert len({s.folder for s in chosen}) == len(chosen)
    assert [s.name for s in plan.make_steps(("machine",), places)] == ["ceilings"]


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    """Preparing, then every stage, at sizes that say nothing; nothing may run for the first time on a GPU."""
    labels = np.arange(1000) % 10
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "cifar.npz", images=images, labels=labels)
    command = [sys.executable, "-m", "experiments.on_device", "--quick", f"--scratch={tmp_path / 'scratch'}"]
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    made = [f"--prepare={tmp_path / 'carried'}", f"--cifar={tmp_path / 'cifar.npz'}"]
    done = subprocess.run([*command, *made], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    workdir = tmp_path / "w"
    measure = [*command, f"--carried={tmp_path / 'carried'}", f"--workdir={workdir}", "--seconds=3000"]
    done = subprocess.run(measure, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((workdir / "results.json").read_text())["steps"]
    assert set(found) >= set(plan.STAGES) - {"pytorch"}
    assert {s["status"] for stage in found.values() for s in stage.values()} == {"done"}
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) <= 8 and sum(path.stat().st_size for path in files) < 2**20
    parts = found["agreement"]["parts"]["result"]
    assert set(parts) == set(agreement.PARTS) and all(row["equal"] for row in parts.values())
    assert parts["random numbers"]["bits"] == 0 and max(row.get("losses", 0.0) for row in parts.values()) < 1e-4
    job = found["main_job"]["optimal_stopping"]["result"]
    assert job["verdicts"] == 4 * job["runs"] > 0 and job["changed"] == []
    assert all(row["apart"] == 0 for row in job["curves"].values()) and len(job["curves"]) == 4
    assert "run-steps/s" in row(done.stdout, "R=8, command buffers: MLP, share")
    assert found["science"]["noisy_autoencoder"]["result"]["records"]
    again = subprocess.run(measure, **options)
    assert again.returncode == 0 and again.stdout.count("done before") == sum(map(len, found.values()))
    damaged = tmp_path / "carried" / "cifar10.npz"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    refused = subprocess.run([*measure, "--overwrite"], **options)
    assert refused.returncode == 2 and refused.stdout == "" and "cifar10.npz is damaged" in refused.stderr
    assert json.loads((workdir / "results.json").read_text())["steps"] == found
