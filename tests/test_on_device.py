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

from experiments import on_device
from experiments.benchmark.contests import CONTESTS
from experiments.launch import Results, SettingError
from experiments.on_device import agreement, prepare, reading, report, stages, steps, wheels
from ldmjax import records
from ldmjax.job import Job

ROOT = Path(__file__).parent.parent


def step(folder, name, code, *, stage="stage", needs=0.0, limit=30.0, read=lambda folder: {}):
    """A step that runs a line of Python in a folder of its own."""
    own = folder / "scratch" / name
    words = "-c", f"import os, sys, time; os.chdir({str(own)!r})\n{code}"
    return steps.Step(stage=stage, name=name, folder=own, words=words, needs=needs, limit=limit, read=read)


def run(chosen, folder, *, seconds=1e6, kept=None):
    """The rows by label and the lines of one start, which goes on with what an earlier one in the folder kept."""
    lines = []
    job = Job(folder / "kept", show=lines.append)
    found = job.get("steps") or {}
    steps.run_all(chosen, found, save=lambda: job.put("steps", found), seconds=seconds, kept=kept or {}, job=job)
    return found, lines


def is_alive(pid):
    """Whether a process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_a_failing_step_is_reported_and_does_not_end_the_rest(tmp_path):
    def unreadable(folder):
        raise ValueError("not what it should be")

    chosen = [
        step(tmp_path, "fails", "print('before'); sys.exit('the reason')"),
        step(tmp_path, "unreadable", "", read=unreadable),
        step(
            tmp_path,
            "good",
            "open('x', 'w').write('1.5')",
            read=lambda folder: {"x": float((folder / "x").read_text())},
        ),
    ]
    good = chosen[-1].folder
    found, lines = run(chosen, tmp_path)
    assert [found[s.label]["status"] for s in chosen] == ["failed", "failed", "done"]
    assert found["stage, fails"]["lines"] == ["before", "the reason"] and "    the reason" in lines
    assert "not what it should be" in found["stage, unreadable"]["lines"][-1]
    assert found["stage, good"]["result"] == {"x": 1.5} and not good.exists() and chosen[0].folder.exists()
    assert Job(tmp_path / "kept").get("steps") == found


def test_too_little_time_skips_steps(tmp_path):
    chosen = [step(tmp_path, "long", "", needs=100.0), step(tmp_path, "short", "", needs=1.0)]
    found, lines = run(chosen, tmp_path, seconds=60.0)
    assert list(found) == ["stage, short"]
    assert lines[0] == "stage, long: skipped, 60 s left, needs 100"


def test_earlier_stages_leave_a_stage_what_is_kept_for_it_until_it_is_done(tmp_path):
    chosen = [
        step(tmp_path, "first", "", needs=45.0),
        step(tmp_path, "other", "", stage="other", needs=50.0),
        step(tmp_path, "last", "", stage="last"),
    ]
    found, lines = run(chosen, tmp_path, seconds=60.0, kept={"stage": 0.9, "other": 0.3})
    assert lines[0] == "stage, first: skipped, 42 s left, needs 45" and list(found) == ["other, other", "last, last"]
    found, _ = run(chosen, tmp_path, seconds=60.0, kept={"other": 0.3})
    assert "stage, first" in found


def test_every_stage_of_the_full_plan_has_its_time(tmp_path, monkeypatch):
    """Though each step takes all that it may, of the seconds in BUILD.md."""
    now, given = 0.0, {}

    def take_all(chosen, *, seconds):
        nonlocal now
        now += seconds + steps.GRACE
        given.setdefault(chosen.stage, seconds)
        return row(chosen.stage, chosen.name, None, "stopped", seconds)

    monkeypatch.setattr(steps, "time", SimpleNamespace(monotonic=lambda: now))
    monkeypatch.setattr(steps, "run_step", take_all)
    monkeypatch.setattr(stages, "left_out", lambda asked: {})
    chosen = stages.make_steps(stages.STAGES, places(tmp_path))
    run(chosen, tmp_path, seconds=560.0, kept=stages.KEPT)
    assert tuple(given) == stages.STAGES and now <= 560.0 + 1e-9
    firsts = {s.stage: s for s in reversed(chosen)}
    assert all(given[stage] >= firsts[stage].needs - steps.GRACE for stage in stages.STAGES)
    assert given["machine"] == firsts["machine"].limit and given["main_job"] >= 1.5 * report.MOST_SECONDS


def test_a_step_is_ended_at_its_limit_with_all_that_it_started(tmp_path):
    code = (
        "import subprocess; other = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "open('pids', 'w').write(f'{os.getpid()} {other.pid}'); print('working'); time.sleep(60)"
    )
    slow = step(tmp_path, "slow", code, limit=2.0, read=lambda folder: {"pids": (folder / "pids").read_text()})
    begin = time.monotonic()
    found = run([slow], tmp_path)[0]["stage, slow"]
    assert time.monotonic() - begin < 20.0
    assert found["status"] == "stopped" and found["lines"] == ["working"] and slow.folder.exists()
    assert not any(is_alive(pid) for pid in found["result"]["pids"].split())


def test_what_is_done_is_not_done_again_and_what_was_stopped_goes_on(tmp_path):
    counting = "open('starts', 'a').write('x')"
    first = step(tmp_path, "first", "", read=lambda folder: {"value": 1})
    second = step(
        tmp_path,
        "second",
        f"{counting}; time.sleep(0 if len(open('starts').read()) > 1 else 60)",
        limit=2.0,
        read=lambda folder: {"starts": (folder / "starts").read_text()},
    )
    found, _ = run([first, second], tmp_path)
    assert [found[s.label]["status"] for s in (first, second)] == ["done", "stopped"]
    again = steps.Step(**{**vars(first), "words": ("-c", "raise SystemExit('not again')")})
    found, lines = run([again, second], tmp_path)
    assert lines[0] == "stage, first: done before" and found["stage, first"]["result"] == {"value": 1}
    found = found["stage, second"]
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
    end = time.monotonic() + 240.0
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(30.0) == 143
    assert not is_alive(int(pid.read_text()))
    held = Job(tmp_path / "kept").get("steps")
    assert list(held) == ["stage, first"] and held["stage, first"]["status"] == "done"
    (pid.parent / "again").write_text("")
    assert subprocess.run(command, env=environment, timeout=240.0).returncode == 0
    found = Job(tmp_path / "kept").get("steps")
    assert found["stage, first"] == held["stage, first"]
    assert [(r["step"], r["status"]) for r in found.values()] == [(n, "done") for n in ("first", "second", "third")]
    assert found["stage, second"]["resumed"] and not found["stage, third"]["resumed"]


def test_a_step_without_which_nothing_goes_on_ends_the_command(tmp_path):
    with pytest.raises(SystemExit, match="error: stage, x: failed: ValueError: the reason .its output is in "):
        steps.result_of(step(tmp_path, "x", "print('a line'); raise ValueError('the reason')"))


def test_settings_that_leave_something_out_are_refused(tmp_path):
    with pytest.raises(SettingError, match="needs --carried=FOLDER for agreement, science"):
        on_device.Config(only=("machine", "agreement", "science"))
    with pytest.raises(SettingError, match="cifar=None: must be given"):
        prepare.Config()
    np.savez(tmp_path / "x.npz", images=np.zeros(1))
    with pytest.raises(SettingError, match="images=12999: must be >= 13000 without --quick"):
        prepare.Config(cifar=str(tmp_path / "x.npz"), images=12_999)


@pytest.fixture
def measured(tmp_path, monkeypatch):
    """Starts the stage machine, of steps that do next to nothing, on a device of this name."""

    def start(device, **settings):
        config = on_device.Config(only=("machine", "pytorch"), size="small", scratch=str(tmp_path / "s"), **settings)
        code = "open('x', 'a').write('1')"
        result = {"devices": 1, "device": device, "platform": "gpu"}

        def ceilings(places, name, *_):
            return step(places.scratch, name, code, stage="machine", read=lambda folder: result)

        monkeypatch.setattr(on_device, "BEGIN", time.monotonic())  # this process is older than a command's
        monkeypatch.setattr(stages, "ceilings_step", ceilings)
        monkeypatch.setattr(stages, "left_out", lambda asked: {"pytorch": "PyTorch is not installed"})
        lines = []
        job = Job(tmp_path / "kept", show=lines.append)
        return on_device.compute(config, on_device.Carried(folder=None, cpu=None, digest="c"), job), lines

    return start


def test_another_device_is_refused_and_what_was_measured_stays(measured):
    results, lines = measured("Abacus")
    assert results.metadata["device"] == "1 x Abacus (gpu)" and "machine, ceilings: done" in lines[1]
    with pytest.raises(SettingError, match="holds results of another device, 1 x Abacus"):
        measured("Slide rule")
    results, lines = measured("Abacus", seconds=1.0)
    assert "machine, ceilings: done before" in lines and [r["status"] for r in results.rows] == ["done"]
    assert results.metadata["left_out"] == {"pytorch": "PyTorch is not installed"}


def test_the_science_has_the_images_it_asks_for(tmp_path):
    (science,) = stages.science_steps(places(tmp_path))
    assert {f"--n={stages.TRAINED_ON}", f"--reference={stages.COMPARED_WITH}"} <= set(science.words)


def places(folder, size="full"):
    return stages.Places(scratch=folder, carried=folder, size=size)


def cifar(folder, count=1200):
    """As many images of each of three classes; an image's first two pixels are its number."""
    images = np.zeros((count, 32, 32, 3), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 0, 1] = np.divmod(np.arange(count), 256)
    np.savez(folder / "cifar.npz", images=images, labels=np.repeat(np.arange(3, dtype=np.uint8), count // 3))
    return prepare.Config(cifar=str(folder / "cifar.npz"), images=1000, size="small")


def test_images_are_chosen_by_class_and_the_same_each_time(tmp_path):
    config = cifar(tmp_path)
    chosen = config.load()
    images, labels = chosen.images, chosen.labels
    assert images.shape == (999, 32, 32, 3) and images.dtype == np.uint8
    numbers = 256 * images[:, 0, 0, 0].astype(int) + images[:, 0, 0, 1]
    assert len(set(numbers)) == 999 and np.array_equal(numbers // 400, labels)
    assert np.bincount(labels).tolist() == [333, 333, 333] and np.any(np.diff(labels.astype(int)) < 0)
    assert np.array_equal(config.load().images, images) and config.load().digest == chosen.digest


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"no archive", "must be an .npz file with images and labels"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8)}, "must be an .npz file with images and labels"),
        ({"images": np.zeros((4, 32, 32, 3)), "labels": np.zeros(4, int)}, "uint8"),
        ({"images": np.zeros((4, 3072), np.uint8), "labels": np.zeros(4, int)}, "[N, 32, 32, 3]"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.zeros(3, int)}, "labels [3]"),
        ({"images": np.zeros((4, 32, 32, 3), np.uint8), "labels": np.array([0, 0, 0, 1])}, "images=1000: must be 2..2"),
    ],
)
def test_other_files_than_images_are_refused(tmp_path, content, expected):
    file = tmp_path / "x.npz"
    file.write_bytes(content) if isinstance(content, bytes) else np.savez(file, **content)
    with pytest.raises(SettingError) as refused:
        prepare.Config(cifar=str(file), images=1000, size="small").load()
    assert expected in str(refused.value)


def test_what_a_cpu_finds_is_kept_step_by_step(tmp_path, monkeypatch):
    """The steps run once, though preparing is started twice; their files become one folder's rows and arrays."""
    arrays = "import numpy as np; np.savez('found.npz', **{'mlp.losses': np.ones(3)})"
    table = "import json; json.dump({'runs': 2}, open('table.json', 'w'))"
    measured = {"bounds": [{"runs": 8}], "contests": {"runs_linear": {"theirs": [1.0]}}}
    rates = f"json.dump({{'measured': {measured}, 'machine': 'm', 'skipped': {{}}}}, open('metadata.json', 'w'))"
    own = "open('records.jsonl', 'w').write('{\"schema_version\": 1, \"name\": \"run0\"}\\n')\n"
    own += "import json, numpy as np; np.savez('curves.npz', w2_squared=np.ones(2))\n"
    own += "json.dump({'seconds': 5.0}, open('metadata.json', 'w'))"
    once = f"\nopen({str(tmp_path / 'count')!r}, 'a').write('x')"
    monkeypatch.setattr(stages, "rate_step", lambda p, runs: step(p.scratch, "rates", f"{table}; {rates}{once}"))
    monkeypatch.setattr(stages, "agreement_steps", lambda p, times: [step(p.scratch, "parts", arrays + once)])
    monkeypatch.setattr(stages, "main_job_steps", lambda p: [step(p.scratch, "job", own + once)])
    config = cifar(tmp_path)
    for _ in range(2):
        results = prepare.compute(config, config.load(), Job(tmp_path / "kept"))
    assert (tmp_path / "count").read_text() == "xxx"
    assert [row["name"] for row in results.rows] == ["run0"] and results.metadata["main_job_seconds"] == 5.0
    assert set(results.arrays) == {"images", "labels", "mlp.losses", "w2_squared"}
    assert results.metadata["rates"] == measured and results.metadata["cores"] >= 1


def test_a_carried_folder_is_whole_and_of_this_code_and_size(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "code_of_steps", lambda: "c")
    facts = {"code": "c", "size": "full", "rates": {"bounds": []}, "cores": 2}

    def load(**changes):
        (tmp_path / "metadata.json").write_text(json.dumps(facts | changes))
        return on_device.Config(carried=str(tmp_path)).load()

    for missing in ("curves.npz", "records.jsonl"):
        np.savez(tmp_path / "curves.npz", images=np.zeros(100), labels=np.zeros(1))
        (tmp_path / "records.jsonl").write_text('{"schema_version": 1}\n')
        assert load().cpu == {"bounds": [], "cores": 2}
        (tmp_path / missing).unlink()
        with pytest.raises(SettingError, match="must be a folder that experiments.on_device.prepare made"):
            load()
    np.savez(tmp_path / "curves.npz", images=np.zeros(100), labels=np.zeros(1))
    (tmp_path / "records.jsonl").write_text('{"schema_version": 1}\n')
    for changes, expected in (({"code": "d"}, "another state of the code"), ({"size": "small"}, "--size=small")):
        with pytest.raises(SettingError, match=expected):
            load(**changes)
    whole = (tmp_path / "curves.npz").read_bytes()
    (tmp_path / "curves.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SettingError, match="curves.npz"):
        load()


def test_a_missing_package_comes_from_the_wheels(tmp_path, monkeypatch):
    folder = tmp_path / "own"
    folder.mkdir()
    for name, module in (("absent_on_purpose", "absent_on_purpose"), ("numpy", "not_unpacked")):
        with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
            archive.writestr(f"{module}.py", "VALUE = 5\n")
            archive.writestr(f"{name}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", "before")
    wheels.offer([f"--wheels={folder}"])
    assert os.environ["PYTHONPATH"] == "before", "nothing was missing"
    monkeypatch.setattr(wheels, "NEEDED", ("absent_on_purpose", "absent_on_purpose.part", "numpy"))
    assert [name for name in wheels.NEEDED if wheels.is_missing(name)] == [
        "absent_on_purpose",
        "absent_on_purpose.part",
    ]
    wheels.offer(["--carried=elsewhere", "--quick"])
    assert os.environ["PYTHONPATH"] == "before"
    wheels.offer(["--quick", f"--wheels={folder}"])
    target = os.environ["PYTHONPATH"].removeprefix(f"before{os.pathsep}")
    assert sys.path[-1] == target and sorted(p.name for p in Path(target).glob("*.py")) == ["absent_on_purpose.py"]
    import absent_on_purpose

    assert absent_on_purpose.VALUE == 5


def test_parts_are_compared_by_kind():
    reference = {
        "random numbers.bits": np.array([1, 2, 3], np.uint32),
        "random numbers.normals": np.array([0.1, 4.0]),
        "mlp.losses": np.array([[1.0, 2.0]]),
    }
    found = {
        "random numbers.bits": np.array([1, 5, 3], np.uint32),
        "random numbers.normals": np.array([0.1002, 4.0004]),
        "mlp.losses": np.array([[1.0, 2.002]]),
        "sampler.curve": np.array([1.0, 2.0]),
        "sampler.standard_error": np.array([0.1, 0.5]),
        "sampler.exact": np.array([1.2, 3.5]),
        **{
            f"{name}.{key}": np.array(value)
            for name in ("random numbers", "mlp", "sampler")
            for key, value in (("equal", name == "mlp"), ("seconds", 2.0))
        },
    }
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


def job_files(folder, verdicts, w2, error):
    folder.mkdir()
    lines = [
        {"schema_version": 1, "name": f"run{i}", "verdict": verdict, "metrics": {"mmd": {"verdict": "cannot tell"}}}
        for i, verdict in enumerate(verdicts)
    ]
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    np.savez(folder / "curves.npz", w2_squared=w2, w2_squared_standard_error=error, logsnr=np.zeros(2))
    (folder / "metadata.json").write_text(json.dumps({"seconds": 5.0, "main_job_seconds": 7.0, "compilations": 1}))
    return folder


def test_jobs_are_compared_in_verdicts_and_standard_errors(tmp_path):
    error = np.full((3, 2), 0.3)
    there = job_files(tmp_path / "there", "ENN", np.array([[1.0, 2.0], [3.0, 4.0], [np.inf, np.inf]]), error)
    here = job_files(tmp_path / "here", "NNN", np.array([[1.0, 4.5], [3.5, 4.0], [np.inf, 1.0]]), np.full((3, 2), 0.4))
    found = reading.compare_jobs(there, here)
    assert (found["seconds"], found["seconds_there"]) == (5.0, 7.0)
    assert (found["runs"], found["verdicts"], found["changed"]) == (3, 6, ["run0, w2: E there, N here"])
    assert found["curves"] == {"w2_squared": {"points": 6, "apart": 2, "largest": np.inf}}
    same = reading.compare_jobs(there, there)
    assert same["changed"] == [] and same["curves"]["w2_squared"] == {"points": 6, "apart": 0, "largest": 0.0}
    shifted = job_files(
        tmp_path / "shifted", "ENN", np.array([[1.0, 2.0], [3.5, 4.0], [np.inf, np.inf]]), 4 / 3 * error
    )
    assert reading.compare_jobs(there, shifted)["curves"]["w2_squared"]["largest"] == pytest.approx(1.0)
    with pytest.raises(ValueError):
        reading.compare_jobs(there, job_files(tmp_path / "few", "EN", np.ones((2, 2)), np.ones((2, 2))))


def row(stage, name, result, status="done", seconds=50.0, resumed=False):
    """Of a step."""
    facts = {"stage": stage, "step": name, "status": status, "seconds": seconds}
    return {**facts, "resumed": resumed, "result": result, "lines": []}


def rates(seconds, linear, runs=1024):
    bound = {"runs": runs, "seconds": seconds, "bound_seconds": 6e-6, "set_by": "operations"}
    contest = {"ours": [1.0], "theirs": [linear], "sides": {"opponent": "it", "unit": "step"}}
    return {"bounds": [bound], "contests": {"runs_linear": contest}, "machine": "m", "runs": runs // 4, "skipped": {}}


def line_of(text, *words):
    (line,) = (line for line in text.splitlines() if all(word in line for word in words))
    return line


def table(rows, cpu=None, **facts):
    facts = {"device": "1 x Abacus (gpu)", "deterministic": False, "cpu": cpu, "left_out": {}} | facts
    return report.report(Results(rows=rows, metadata=facts)).text


def contest(theirs, opponent, name):
    sides = {"opponent": opponent, "unit": "run-step"}
    found = {"ours": [2.0, 1.0, 1.0], "theirs": [theirs, theirs, 5.0], "sides": sides}
    return {"contests": {name.partition(",")[0]: found}, "machine": "m", "runs": 64, "skipped": {}}


PARTS = {
    "mlp": {"losses": 2e-4, "equal": True},
    "vq autoencoder": {"losses": None, "equal": False},
    "random numbers": {"bits": 0, "normals": 9e-6, "equal": True},
}
MAIN_JOB = {
    "verdicts": 4,
    "changed": ["run0, w2: E there, N here"],
    "seconds": 1.0,
    "seconds_there": 189.0,
    "curves": {"w2_squared": {"points": 25, "apart": 0, "largest": 1.25}},
}


def test_goals_stand_beside_numbers():
    cpu = {**rates(1e-3, 0.64e-3 * 64, runs=64), "cores": 2}
    bfloat16 = "unet_train_cifar, bfloat16"
    rows = [
        row("agreement", "parts", PARTS),
        row("benchmark", "R=1024", rates(1e-5, 1024 * 1e-5)),
        row("benchmark", "R=64", rates(1e-3, 64 * 1e-3, runs=64)),
        row("pytorch", "mlp_vmap", contest(0.9, "eager", "mlp_vmap")),
        row("pytorch", bfloat16, contest(1.5, "autocast to bfloat16", bfloat16)),
        row("main_job", "optimal_stopping", MAIN_JOB),
        row("science", "noisy_autoencoder", None, "stopped"),
    ]
    text = table(rows, cpu, deterministic=True, left_out={"machine": "why"})

    def told(*words):
        return line_of(text, *words)

    assert "Device: 1 x Abacus (gpu), deterministic kernels." in text and "left out, why" in told(
        "machine", "all of it"
    )
    assert told("mlp: losses").endswith("no") and told("vq autoencoder: losses", "not finite").endswith("no")
    assert told("bits that differ").endswith("yes") and told("normals").endswith("yes")
    assert "60%" in told("R=1024: MLP, share") and told("R=1024: MLP, share").endswith("yes")
    assert ">=" not in told("R=64: MLP, share")
    assert "100" in told("R=1024: MLP, times 2 cores") and told("R=1024: MLP, times").endswith("yes")
    assert "64" in told("R=1024: linear scores, times 2 cores")
    assert told("eager / ours", "0.9").endswith("no")
    assert told(f"{bfloat16}: autocast to bfloat16 / ours", ">= 1").endswith("yes")
    assert told("verdicts that changed, of 4").endswith("no") and "run0, w2: E there, N here" in text
    assert "0, largest 1.25" in told("of 25 points") and told("of 25 points").endswith("yes")
    assert "50.0, 189 there" in text and told("start and compilation").endswith("yes")
    assert "stopped after 50.0 s" in told("noisy_autoencoder")
    resumed = table([row("main_job", "optimal_stopping", MAIN_JOB, resumed=True)])
    assert "<=" not in line_of(resumed, "start and compilation")


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
    text = table([row("benchmark", "R=4096", linear), row("benchmark", "R=4096, command buffers", none)], cpu)
    assert "left out by experiments.benchmark" in line_of(text, "R=4096: MLP")
    assert "1e+05 run-steps/s" in line_of(text, "R=4096: linear scores ")
    assert "64" in line_of(text, "R=4096: linear scores, times 2 cores (64 runs)")
    assert "not held: RESOURCE_EXHAUSTED" in line_of(text, "R=4096, command buffers: runs_linear")
    with pytest.raises(KeyError, match="bounds"):  # those of the CPU must be there: others are compared with them
        prepare.read_rates(tmp_path / "linear")


def test_every_contest_against_pytorch_is_measured():
    expected = [name for name, contest in CONTESTS.items() if contest.against.startswith("PyTorch")]
    expected += [f"unet_{work}_cifar bfloat16" for work in ("train", "sample")]
    assert sorted(stages.PYTORCH.split(", ")) == sorted(expected)


def test_steps_come_in_the_order_of_the_stages_in_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "left_out", lambda asked: {})
    for size in ("full", "small"):
        chosen = stages.make_steps(stages.STAGES, places(tmp_path, size))
        order = [stages.STAGES.index(s.stage) for s in chosen]
        assert order == sorted(order) and {stages.STAGES[i] for i in order} == set(stages.STAGES)
        assert len({s.folder for s in chosen}) == len(chosen)
    assert [s.name for s in stages.make_steps(("machine",), places(tmp_path))] == ["ceilings"]


@pytest.mark.slow
def test_all_of_it_runs_on_a_cpu(tmp_path):
    """Preparing, then every stage, at sizes that say nothing; nothing may run for the first time on a GPU."""
    labels = np.arange(1000) % 10
    images = np.random.default_rng(0).integers(0, 256, (1000, 32, 32, 3)).astype(np.uint8)
    np.savez(tmp_path / "cifar.npz", images=images, labels=labels)
    options = {"env": {**os.environ, "PYTHONPATH": str(ROOT)}, "capture_output": True, "text": True}
    command, carried = [sys.executable, "-m"], f"{tmp_path / 'carried'}"
    made = ["experiments.on_device.prepare", f"--cifar={tmp_path / 'cifar.npz'}", f"--workdir={carried}", "--quick"]
    done = subprocess.run([*command, *made], **options)
    assert done.returncode == 0, done.stdout + done.stderr
    workdir = tmp_path / "w"
    command += ["experiments.on_device", "--quick", f"--carried={carried}", f"--scratch={tmp_path / 'scratch'}"]
    measure = [*command, f"--workdir={workdir}", "--seconds=3000"]
    done = subprocess.run(measure, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = records.load_records(workdir)
    assert {r["stage"] for r in rows} >= set(stages.STAGES) - {"pytorch"} and {r["status"] for r in rows} == {"done"}
    files = [path for path in workdir.rglob("*") if path.is_file()]
    assert len(files) <= 8 and sum(path.stat().st_size for path in files) < 2**20
    found = {r["stage"]: r["result"] for r in rows}
    parts, job = found["agreement"], found["main_job"]
    assert set(parts) == set(agreement.PARTS) and all(part["equal"] for part in parts.values())
    assert parts["random numbers"]["bits"] == 0 and max(part.get("losses", 0.0) for part in parts.values()) < 1e-4
    assert job["verdicts"] == 4 * job["runs"] > 0 and job["changed"] == []
    assert all(curve["apart"] == 0 for curve in job["curves"].values()) and len(job["curves"]) == 4
    assert "run-steps/s" in line_of(done.stdout, "R=8, command buffers: MLP, share")
    assert found["science"]["records"]
    again = subprocess.run(measure, **options)
    assert again.returncode == 0 and again.stdout.count("done before") == len(rows)
    (tmp_path / "carried" / "curves.npz").write_bytes(b"")
    refused = subprocess.run([*measure, "--overwrite"], **options)
    assert refused.returncode == 2 and refused.stdout == "" and "curves.npz" in refused.stderr
    assert records.load_records(workdir) == rows
