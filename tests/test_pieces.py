"""Jobs whose results are kept one by one."""

import jax
import pytest

from experiments import pieces
from ldmjax.checkpoints import NOTHING_KEPT, Store

NAMES = [f"job {i}" for i in range(5)]


def test_only_what_is_missing_is_computed(tmp_path):
    calls, done = [], []

    def compute(indices):
        calls.append(indices)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return [10 * i for i in indices]

    with pytest.raises(KeyboardInterrupt):
        pieces.finish(NAMES, compute, store=Store(tmp_path), at_once=2, report=done.append)
    assert done == [2]
    found = pieces.finish(NAMES, compute, store=Store(tmp_path), at_once=2, report=done.append)
    assert found == [0, 10, 20, 30, 40]
    assert calls == [[0, 1], [2, 3], [2, 3], [4]] and done == [2, 4, 5]
    assert pieces.finish(NAMES, None, store=Store(tmp_path)) == found


def test_without_a_store_all_are_computed_one_per_device():
    calls = []
    pieces.finish(NAMES, lambda indices: calls.append(indices) or indices, store=NOTHING_KEPT)
    assert sum(calls, []) == list(range(5)) and max(map(len, calls)) == jax.device_count()
