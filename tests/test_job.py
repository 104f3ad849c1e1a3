"""The handle of long work: what it keeps, maps and shows."""

import dataclasses
import json
import sys
import threading
import types
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
import pytest

from ldmjax import pieces
from ldmjax.job import Job
from ldmjax.schedules import LinearVP, RectifiedFlow

NAMES = [f"piece {i}" for i in range(5)]


class Pair(NamedTuple):
    first: object
    second: object


@dataclasses.dataclass(frozen=True)
class Record:
    values: np.ndarray
    name: str = "x"


TREES = [
    None, True, 7, -0.0, float("inf"), "text", [1, [2.5, "a"]], (1, (2,)), {"a": 1, ("w2", 3): (4,)}, np.float32(0.1),
    np.int64(3), np.arange(6.0).reshape(2, 3), np.zeros((0, 3)), np.array(["a", "bc"]), Pair(1, np.ones(2)),
    [Record(np.arange(3), "y")], RectifiedFlow(), LinearVP(beta_max=10.0),
]  # fmt: skip


def alike(a, b):
    assert type(a) is type(b)
    if isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)
    elif isinstance(a, dict):
        assert list(a) == list(b)
        alike(list(a.values()), list(b.values()))
    elif isinstance(a, list | tuple):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            alike(x, y)
    elif dataclasses.is_dataclass(a):
        alike(vars(a), vars(b))
    else:
        assert repr(a) == repr(b)


@pytest.mark.parametrize("tree", TREES, ids=str)
def test_trees_come_back_as_they_were(tree):
    alike(pieces.from_text(*pieces.to_text(tree)), tree)


def test_nan_comes_back():
    assert np.isnan(pieces.from_text(*pieces.to_text({"x": [float("nan")]}))["x"][0])


@pytest.mark.parametrize("tree", [{1, 2}, object(), np.array([object()]), lambda: 1, int, 1j])
def test_what_is_no_tree_is_refused(tree):
    with pytest.raises(TypeError, match="cannot be kept"):
        pieces.to_text([tree])


@pytest.mark.parametrize("kind", ["os:system", "subprocess:Popen", "builtins:dict", "absent:X", "ldmjax.job:Job"])
def test_a_file_names_no_code(kind):
    text, arrays = pieces.to_text(Pair(1, 2))
    tree = json.loads(text)["tree"]
    tree["fields"][0] = kind
    with pytest.raises((ValueError, KeyError, TypeError)):
        pieces.from_text(json.dumps({"sha256": pieces._digest(tree, arrays), "tree": tree}), arrays)


def test_a_piece_is_computed_once_and_again_if_damaged(tmp_path, caplog):
    calls = []

    def compute():
        calls.append(1)
        return {"curve": np.arange(3.0), "text": "x"}

    job = Job(tmp_path)
    for _ in range(2):
        found = job.keep("stopping/d4/seed 0", compute)
        assert found["text"] == "x" and found["curve"].tolist() == [0, 1, 2]
    assert len(calls) == 1 and job.get("stopping/d4_seed 0") is None
    files = sorted(tmp_path.glob("pieces/*"))
    assert [path.suffix for path in files] == [".json", ".npz"]
    assert json.loads(files[0].read_text())["tree"]["dict"][1] == ["text", "x"], "readable without this library"
    damages = [(path, where) for path in files for where in (0.3, 0.6, 0.9)]
    for path, where in damages:
        content = bytearray(path.read_bytes())
        content[int(where * len(content))] ^= 4
        path.write_bytes(content)
        assert job.keep("stopping/d4/seed 0", compute)["text"] == "x"
    for path in files:
        path.write_bytes(path.read_bytes()[:40])
        assert job.keep("stopping/d4/seed 0", compute)["text"] == "x"
    assert len(calls) == 1 + len(damages) + 2 and caplog.text.count("damaged") == len(damages) + 2


def test_without_a_directory_nothing_is_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    calls = []
    for _ in range(2):
        Job().keep("x", lambda: calls.append(1) or 1)
    assert len(calls) == 2 and not list(tmp_path.iterdir())


@pytest.mark.parametrize("options", [{"every": -1.0}, {"every": float("nan")}, {"keep_checkpoints": 0}])
def test_refusals(options):
    with pytest.raises(ValueError, match="need every >= 0 and keep_checkpoints >= 1"):
        Job(None, **options)


def test_only_what_is_missing_is_computed(tmp_path):
    calls, lines = [], []
    job = Job(tmp_path, show=lines.append)

    def compute(indices):
        calls.append(indices)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [10 * i for i in indices]

    with pytest.raises(KeyboardInterrupt):
        job.map(compute, NAMES, label="pieces", at_once=2)
    assert lines == []
    found = job.map(compute, NAMES, label="pieces", at_once=2)
    assert found == [0, 10, 20, 30, 40]
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 4]]
    assert len(lines) == 1 and lines[0].startswith("pieces: 5/5, ") and lines[0].endswith("/s, 0 s left")
    assert job.map(lambda indices: 1 / 0, NAMES, label="pieces") == found and len(lines) == 1


def test_all_are_computed_so_many_at_once():
    calls, lines = [], []
    job = Job(show=lines.append, line_every=0.0).within("d = 4")
    assert job.map(lambda indices: calls.append(indices) or indices, NAMES, label="pieces", at_once=2) == list(range(5))
    assert calls == [[0, 1], [2, 3], [4, 4]], "always equally many: another number would be another program"
    assert [line.split(",")[0] for line in lines] == ["d = 4: pieces: 2/5", "d = 4: pieces: 4/5", "d = 4: pieces: 5/5"]


def test_checkpoints_go_once_the_piece_behind_them_is_kept(tmp_path):
    def train(job):
        with pytest.raises(RuntimeError), job.training("t") as checkpoints:
            checkpoints.save(1, {"x": np.zeros(3)})
            raise RuntimeError
        assert [p.name for p in tmp_path.iterdir()] == ["unfinished"] and job.every == 7.0
        return "result"

    job = Job(tmp_path, every=7.0)
    assert job.keep_result("p", train) == "result"
    assert [p.name for p in tmp_path.iterdir()] == ["pieces"]
    assert job.keep_result("p", lambda job: 1 / 0) == "result"
    assert Job().keep_result("p", lambda job: job.directory or "none") == "none"


def test_what_no_setting_says_is_compared(tmp_path):
    assert Job(tmp_path).is_same("features", "abc") and Job(tmp_path).is_same("features", "abc")
    assert not Job(tmp_path).is_same("features", "abd")


def test_numbers_go_to_a_series():
    class Series:
        seen = []

        def add_scalar(self, name, value, step):
            self.seen.append((name, step, value))

    with Job(series=Series()).progress("linear", 20, unit="step", each=3) as progress:
        progress.update(10, loss=0.5)
        progress.update(20, loss=0.25)
    assert [entry for entry in Series.seen if "loss" in entry[0]] == [
        ("linear/loss", 10, 0.5),
        ("linear/loss", 20, 0.25),
    ]
    assert {entry[0] for entry in Series.seen} == {"linear/loss", "linear/rate"}


def test_a_piece_of_a_class_that_is_not_imported_is_not_damaged(tmp_path, monkeypatch):
    """As when another process reads what a script kept: `__main__` is known by the name that it is imported by."""
    job, main = Job(tmp_path), types.ModuleType("__main__")
    main.__file__ = "own_network.py"
    main.Own = dataclasses.make_dataclass("Own", ["size"], frozen=True, namespace={"__module__": "__main__"})
    monkeypatch.setitem(sys.modules, "__main__", main)
    job.put("x", main.Own(3))
    assert job.get("x") == main.Own(3)
    monkeypatch.setitem(sys.modules, "__main__", types.ModuleType("__main__"))
    with pytest.raises(pieces.NotImported, match="own_network.Own is not imported"):
        job.get("x")
    monkeypatch.setitem(sys.modules, "own_network", main)
    assert job.get("x") == main.Own(3)


@pytest.mark.parametrize("value", [jnp.ones(2, jnp.bfloat16), np.ma.masked_array([1.0, 2.0], [True, False])])
def test_arrays_that_would_come_back_as_others_are_refused(value):
    with pytest.raises(TypeError, match="cannot be kept"):
        pieces.to_text([value])


def test_futures_are_kept_when_they_are_done(tmp_path):
    """The first results are still being made while the second ones are asked for."""
    job, second = Job(tmp_path), threading.Event()

    def compute(indices):
        if 2 in indices:
            second.set()
        return [pool.submit(lambda i=i: second.wait(10) and 10 * i) for i in indices]

    with ThreadPoolExecutor(2) as pool:
        assert job.map(compute, NAMES[:4], label="pieces", at_once=2) == [0, 10, 20, 30]
    assert [job.get(name) for name in NAMES[:4]] == [0, 10, 20, 30]


def test_a_map_gives_every_result_of_distinct_names():
    with pytest.raises(ValueError, match="names of pieces must differ"):
        Job().map(lambda indices: indices, ["a", "a"], label="x")
    with pytest.raises(ValueError, match="fewer results"):
        Job().map(lambda indices: indices[:1], ["a", "b"], label="x", at_once=2)


def test_bars_of_jobs_within_one_another_share_the_terminal(capsys):
    lines = []
    job = Job(show=lines.append, live=True)
    with job.progress("outer", 1, unit="task") as outer:
        inner = job.within("inner")
        with inner.progress("steps", 2, unit="step") as steps:
            steps.update(1, loss=0.5)
            inner.log("said while bars are drawn")
            steps.update(2, loss=0.25)
        outer.update(1)
    assert lines == [] and "inner: said while bars are drawn" in capsys.readouterr().out
    inner.log("afterwards")
    with pytest.raises(ZeroDivisionError), inner.progress("fails", 2, unit="step"):
        raise ZeroDivisionError
    inner.log("and after an error")
    assert lines == ["inner: afterwards", "inner: and after an error"]
