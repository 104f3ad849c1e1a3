"""What steps left in their folders, compared with what a CPU left in the carried folder, a workdir of prepare.py."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from experiments.on_device import agreement
from ldmjax import records

WITHIN = 4.0  # combined standard errors that two curves may differ by


def read_json(folder: Path, name: str) -> Any:
    """What a JSON file in the folder holds."""
    return json.loads((folder / name).read_text())


def load_arrays(file: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz."""
    with np.load(file, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def read_benchmark(folder: Path) -> dict[str, Any]:
    """What `experiments.benchmark` measured, on which machine, with its flag --runs, and what it could not hold.

    Parts of which nothing was measured are not there: "bounds" too, if the device refused them.
    """
    metadata, table = read_json(folder, "metadata.json"), read_json(folder, "table.json")
    measured = {name: rows for name, rows in metadata["measured"].items() if rows}
    return {**measured, "machine": metadata["machine"], "runs": table["runs"], "skipped": metadata["skipped"]}


def compare_parts(carried: Path, folder: Path) -> dict[str, Any]:
    """`agreement.compare` with the carried reference."""
    return agreement.compare(records.load_curves(carried), load_arrays(folder / "found.npz"))


def read_job(folder: Path) -> dict[str, Any]:
    """Records and metadata of a job."""
    return {"records": records.load_records(folder), "metadata": read_json(folder, "metadata.json")}


def compare_jobs(carried: Path, folder: Path) -> dict[str, Any]:
    """The main job against the carried one.

    Returns:
      "runs"; "verdicts", how many there are, and those that have "changed" in words; "curves" by metric (`_apart`);
      "seconds" by the job's own clock, here and there; "compilations".

    Raises:
      ValueError: if the runs are not the same ones.
    """
    pairs = list(zip(records.load_records(carried), records.load_records(folder), strict=True))
    if any(one["name"] != other["name"] for one, other in pairs):
        raise ValueError("the runs are not those of the carried job")
    verdicts = [
        (one["name"], metric, verdict, _verdicts(other)[metric])
        for one, other in pairs
        for metric, verdict in _verdicts(one).items()
    ]
    reference, found = records.load_curves(carried), load_arrays(folder / "curves.npz")
    metrics = [name for name in reference if f"{name}_standard_error" in reference]
    metadata = read_json(folder, "metadata.json")
    return {
        "runs": len(pairs),
        "verdicts": len(verdicts),
        "changed": [f"{name}, {metric}: {a} there, {b} here" for name, metric, a, b in verdicts if a != b],
        "curves": {name: _apart(reference, found, name) for name in metrics},
        "seconds": metadata["seconds"],
        "seconds_there": read_json(carried, "metadata.json")["main_job_seconds"],
        "compilations": metadata["compilations"],
    }


def _verdicts(record):
    """By metric."""
    return {"w2": record["verdict"]} | {metric: fields["verdict"] for metric, fields in record["metrics"].items()}


def _apart(reference, found, name):
    """Points of all curves of a metric, how many are "apart" by more than `WITHIN`, and the "largest" difference.

    Both in combined standard errors. A point that is not finite has no error: it agrees with another such one only.
    """
    curves = reference[name], found[name]
    error = np.hypot(*(arrays[f"{name}_standard_error"] for arrays in (reference, found)))
    finite = np.isfinite(curves[0]) & np.isfinite(curves[1])
    difference = np.where(np.isfinite(curves[0]) == np.isfinite(curves[1]), 0.0, np.inf)
    shift = np.abs(curves[0][finite] - curves[1][finite])
    # Where both curves are exactly one number its error may be 0.
    difference[finite] = np.where(shift > 0.0, shift / np.maximum(error[finite], np.finfo(float).tiny), 0.0)
    return {"points": difference.size, "apart": int(np.sum(difference > WITHIN)), "largest": float(difference.max())}
