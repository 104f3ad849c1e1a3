"""What an experiment gives: results, which are kept, and the report that is made of them alone, at once or later."""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from experiments.launch.settings import Settings
from ldmjax import plotting, records
from ldmjax.files import write_text


@dataclasses.dataclass(frozen=True, kw_only=True)
class Results:
    """What was computed; a report sees it as it is read again from the files of a workdir.

    Attributes:
      rows: one dict per run, the lines of records.jsonl. NaN and infinity are None when they are read.
      arrays: named arrays, of curves.npz.
      config: the configuration that was computed.
      metadata: what may differ from run to run (seconds, compilations), for metadata.json.
    """

    rows: Sequence[Mapping[str, Any]]
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    config: Settings | None = None
    metadata: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def frame(self, **where: Any) -> pd.DataFrame:
        """The rows as a table of numbers, text and NaN for None; only those whose fields equal ``where``."""
        chosen = [row for row in self.rows if all(row.get(name) == value for name, value in where.items())]
        return pd.DataFrame(chosen).infer_objects()

    @property
    def data_name(self) -> str:
        """What the data are called, for titles."""
        named = (getattr(self.config, name, None) for name in ("data", "spectrum"))
        return self.metadata.get("data") or next(filter(None, named), "digits")

    def of_kind(self, kind: str) -> list[Mapping[str, Any]]:
        """The rows with this ``kind``."""
        return [row for row in self.rows if row.get("kind") == kind]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Report:
    """What a reader sees.

    Attributes:
      text: tables and sentences, printed.
      figures: by name of their .png, without ending.
      files: JSON-ready contents by file name.
    """

    text: str
    figures: Mapping[str, Figure] = dataclasses.field(default_factory=dict)
    files: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def write_results(workdir: Path, results: Results, **about: Any) -> None:
    """Writes records.jsonl, curves.npz and metadata.json, the last with what else is known ``about`` the job."""
    records.write_records(workdir, results.rows)
    if results.arrays:
        records.write_curves(workdir, results.arrays)
    records.write_metadata(workdir, **{**about, **results.metadata})


def read_results(workdir: Path, config: Settings) -> Results:
    """Reads what `write_results` wrote; ValueError if it is not there or damaged."""
    rows, metadata = records.load_records(workdir), workdir / "metadata.json"
    return Results(
        rows=rows,
        arrays=records.load_curves(workdir),
        config=config,
        metadata=json.loads(metadata.read_text()) if metadata.exists() else {},
    )


def show(report: Report, workdir: Path) -> None:
    """Prints the text, writes figures and files."""
    print(report.text, flush=True)
    for name, content in report.files.items():
        write_text(workdir / name, json.dumps(records.plain(content), indent=2) + "\n")
    for name, figure in report.figures.items():
        plotting.save(figure, workdir / f"{name}.png")
