"""Jobs whose results are kept one by one."""

import numpy as np
import pytest

from experiments import pieces
from ldmjax.checkpoints import NOTHING_KEPT, Store

NAMES = [f"job {i}" for i in range(5)]


def test_only_what_is_missing_is_computed(tmp_path):
    calls, lines = [], []
    how = {"store": Store(tmp_path), "at_once": 2, "label": "jobs", "report": lines.append}

    def compute(indices):
        calls.append(indices)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [10 * i for i in indices]

    with pytest.raises(KeyboardInterrupt):
        pieces.finish(NAMES, compute, **how)
    assert lines == []
    found = pieces.finish(NAMES, compute, **how)
    assert found == [0, 10, 20, 30, 40]
    assert calls == [[0, 1], [2, 3], [2, 3], [4, 4]]
    assert len(lines) == 1 and lines[0].startswith("jobs: 5/5, ") and lines[0].endswith("/s, 0 s left")
    assert pieces.finish(NAMES, None, **how) == found and len(lines) == 1


def test_without_a_store_all_are_computed_so_many_at_once(monkeypatch):
    monkeypatch.setattr(pieces, "SECONDS_BETWEEN_LINES", 0.0)
    calls, lines = [], []
    how = {"store": NOTHING_KEPT, "label": "jobs", "report": lines.append, "at_once": 2}
    assert pieces.finish(NAMES, lambda indices: calls.append(indices) or indices, **how) == list(range(5))
    assert calls == [[0, 1], [2, 3], [4, 4]], "always equally many: another number would be another program"
    assert [line.split(",")[0] for line in lines] == ["jobs: 2/5", "jobs: 4/5", "jobs: 5/5"]


def test_checkpoints_go_once_the_piece_behind_them_is_kept(tmp_path):
    def compute(store):
        with pytest.raises(RuntimeError), store.training("t") as checkpoints:
            checkpoints.save(1, {"x": np.zeros(3)})
            raise RuntimeError
        assert [p.name for p in tmp_path.iterdir()] == ["unfinished"] and store.every == 7.0
        return "result"

    store = Store(tmp_path, every=7.0)
    assert pieces.after_training("p", compute, store=store) == "result"
    assert [p.name for p in tmp_path.iterdir()] == ["pieces"]
    assert pieces.after_training("p", None, store=store) == "result"
    assert pieces.after_training("p", lambda store: store.directory or "none", store=NOTHING_KEPT) == "none"
