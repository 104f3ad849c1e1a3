"""A job is not continued with functions that give other numbers."""

import pytest
from absl import flags

from experiments import unchanged
from experiments.flags import UsageError
from ldmjax.checkpoints import NOTHING_KEPT, Store


def test_other_numbers_are_refused(tmp_path, monkeypatch):
    values = flags.FlagValues()
    flags.DEFINE_string("features", "mine:f", "", flag_values=values)
    flags.DEFINE_string("workdir", "here", "", flag_values=values)
    values.mark_as_parsed()
    monkeypatch.setattr(unchanged, "FLAGS", values)
    for digest in ("one", "one", "one"):
        unchanged.check("features", digest, store=Store(tmp_path))
    with pytest.raises(UsageError, match="flag --features=mine:f: gives other numbers than .* --workdir=here began"):
        unchanged.check("features", "two", store=Store(tmp_path))
    unchanged.check("decoder", "two", store=Store(tmp_path))
    unchanged.check("features", "two", store=NOTHING_KEPT)
