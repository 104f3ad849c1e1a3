"""Result files of a workdir: flags.txt, metadata.json, records.jsonl, curves.npz, each written whole or not at all.

records.jsonl holds one object per run with deterministic fields only; NaN and infinity become null. What varies from run to
run (seconds, device, versions) is in metadata.json.
"""

import json
import math
import os
import platform
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from ldmjax import __version__
from ldmjax.devices import product_precision
from ldmjax.files import write_text, written_whole

SCHEMA_VERSION = 1
PACKAGES = ("ldmjax", "jax", "jaxlib", "flax", "optax", "numpy", "scipy")


def prepare_workdir(workdir: str | os.PathLike) -> Path:
    """Creates the directory and proves that it can be written; ValueError if not."""
    path = Path(workdir)
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe = path / ".probe"
        probe.write_text("")
        probe.unlink()
    except OSError as error:
        raise ValueError(f"cannot write to {str(workdir)!r}: {error.strerror}") from error
    return path


def write_records(workdir: Path, records: Iterable[Mapping[str, Any]]) -> None:
    """Writes records.jsonl, one object per line in the order given, with ``schema_version`` first.

    ``precision`` comes next, what networks computed in ("float32" unless a record says otherwise), and ``float32_products``,
    how linear scores and MLPs computed products of float32 matrices (`devices.product_precision`).
    """
    precisions = {"precision": "float32", "float32_products": product_precision()}
    first = {"schema_version": SCHEMA_VERSION} | precisions
    lines = [json.dumps(first | plain(dict(record))) for record in records]
    write_text(workdir / "records.jsonl", "".join(line + "\n" for line in lines))


def write_curves(workdir: Path, curves: Mapping[str, np.ndarray]) -> None:
    """Writes curves.npz."""
    with written_whole(workdir / "curves.npz") as partial, open(partial, "wb") as file:
        np.savez_compressed(file, **curves)


def write_metadata(workdir: Path, **fields: Any) -> None:
    """Writes metadata.json: versions, platform, devices, precision of products, git state, and the given fields."""
    import jax  # here, so that closed-form experiments that read no device do not initialise one at import

    entry = {
        "schema_version": SCHEMA_VERSION,
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "versions": versions(),
        "devices": [str(device) for device in jax.devices()],
        "float32_products": {"process": jax.config.jax_default_matmul_precision, "small_networks": product_precision()},
        "git": _git_state(),
        **fields,
    }
    write_text(workdir / "metadata.json", json.dumps(plain(entry), indent=2) + "\n")


def load_records(workdir: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads a workdir's records.jsonl.

    Raises:
      ValueError: if the file is missing, a line is not JSON, or a record has another schema version.
    """
    path = Path(workdir) / "records.jsonl"
    if not path.is_file():
        raise ValueError(f"no file {str(path)!r}")
    records = []
    for number, line in enumerate(path.read_text().splitlines(), start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
        if record.get("schema_version") != SCHEMA_VERSION:
            raise ValueError(
                f"{path}, line {number}: schema version {record.get('schema_version')!r}, this ldmjax reads {SCHEMA_VERSION}"
            )
        records.append(record)
    return records


def load_curves(workdir: str | os.PathLike) -> dict[str, np.ndarray]:
    """Reads a workdir's curves.npz; empty if there is none.

    Raises:
      ValueError: if the file is damaged.
    """
    path = Path(workdir) / "curves.npz"
    if not path.is_file():
        return {}
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in stored.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise ValueError(f"{path}: not a readable .npz ({error})") from error


def plain(value: Any) -> Any:
    """Returns JSON-ready: numpy scalars and arrays become Python's, NaN and infinity become None."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.bool_ | np.integer):
        return value.item()
    if isinstance(value, float | np.floating):
        return float(value) if math.isfinite(value) else None
    return value


def versions() -> dict[str, str | None]:
    """Versions of `PACKAGES`; None for one that is not there. This package need not be installed."""

    def version(name):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    return {name: version(name) for name in PACKAGES} | {"ldmjax": __version__}


def _git_state() -> str | None:
    """Returns commit and whether the tree differs from it, or None outside a checkout."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
