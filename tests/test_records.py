"""Result files: round trip, nulls, atomicity, schema."""

import json

import numpy as np
import pytest

from ldmjax import devices, records


def test_round_trip_with_nulls(tmp_path):
    rows = [
        {"a": np.float32(1.5), "b": np.inf, "c": float("nan"), "d": [np.int64(3), np.inf], "e": {"f": np.bool_(True)}}
    ]
    records.write_records(tmp_path, rows)
    (loaded,) = records.load_records(tmp_path)
    assert (loaded.pop("precision"), loaded.pop("float32_products")) == ("float32", "highest")
    assert loaded == {"schema_version": 1, "a": 1.5, "b": None, "c": None, "d": [3, None], "e": {"f": True}}
    assert [p.name for p in tmp_path.iterdir()] == ["records.jsonl"]


def test_a_record_says_how_products_were_computed(tmp_path):
    with devices.made_for("gpu"):
        records.write_records(tmp_path, [{"a": 1}, {"precision": "bfloat16"}])
    rows = records.load_records(tmp_path)
    assert [row["precision"] for row in rows] == ["float32", "bfloat16"]
    assert {row["float32_products"] for row in rows} == {"TF32_TF32_F32_X3"}


def test_damage_is_reported(tmp_path):
    with pytest.raises(ValueError, match="no file"):
        records.load_records(tmp_path)
    (tmp_path / "records.jsonl").write_text('{"schema_version": 1}\n{"schema_ver')
    with pytest.raises(ValueError, match="line 2: not JSON"):
        records.load_records(tmp_path)
    (tmp_path / "records.jsonl").write_text('{"schema_version": 99}\n')
    with pytest.raises(ValueError, match="schema version 99"):
        records.load_records(tmp_path)


def test_metadata_and_curves(tmp_path):
    records.write_metadata(tmp_path, seconds=1.0)
    entry = json.loads((tmp_path / "metadata.json").read_text())
    assert entry["seconds"] == 1.0 and entry["versions"]["jax"] and entry["devices"]
    assert entry["float32_products"] == {"process": "highest", "small_networks": "highest"}
    records.write_curves(tmp_path, {"x": np.arange(3)})
    np.testing.assert_array_equal(np.load(tmp_path / "curves.npz")["x"], [0, 1, 2])


def test_unwritable_workdir(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot write"):
        records.prepare_workdir(str(tmp_path / "file" / "sub"))
