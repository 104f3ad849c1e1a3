"""The list of what a carried folder holds, with sha256 of every file. Needs nothing but Python: wheels.py reads it."""

import hashlib
import json
from pathlib import Path
from typing import Any

NAME = "manifest.json"


def files_of(folder: Path) -> dict[str, str]:
    """sha256 of every file below ``folder`` but the manifest, by its path there."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / NAME)
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def write(folder: Path, **facts: Any) -> None:
    """Writes the manifest of what ``folder`` holds now, with ``facts``."""
    (folder / NAME).write_text(json.dumps({**facts, "files": files_of(folder)}, indent=1) + "\n")


def read(folder: Path) -> dict[str, Any]:
    """The manifest, once every file is as it says.

    Raises:
      ValueError: with a reason, if there is none or a file is missing or damaged.
    """
    try:
        held = json.loads((folder / NAME).read_text())
        listed = dict(held["files"])
    except FileNotFoundError:
        raise ValueError(f"no {NAME} in it") from None
    except (ValueError, KeyError, TypeError):
        raise ValueError(f"its {NAME} is damaged") from None
    found = files_of(folder)
    for name, digest in listed.items():
        if found.get(name) != digest:
            raise ValueError(f"its {name} is {'damaged' if name in found else 'missing'}")
    return held
