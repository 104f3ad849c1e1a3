"""Packages that a bare machine lacks, from a folder of wheels. Needs nothing but Python, not even pip."""

import importlib.util
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

FLAG = "--wheels="
NEEDED = ("absl", "chex", "flax", "jax", "jaxtyping", "matplotlib", "numpy", "optax", "orbax.checkpoint", "pandas")
NEEDED += ("PIL", "rich", "scipy", "sklearn", "threadpoolctl")


def is_missing(name: str) -> bool:
    """Whether a module cannot be imported."""
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:  # of the package above it
        return True


def offer(words: Sequence[str]) -> None:
    """If a module of `NEEDED` is missing, unpacks wheels of what is not installed, for this process and its children.

    Args:
      words: the command line, which may hold --wheels=FOLDER.
    """
    folder = next((Path(word.removeprefix(FLAG)) for word in words if word.startswith(FLAG)), None)
    if folder is None or not any(map(is_missing, NEEDED)):
        return
    target = unpack(sorted(folder.glob("*.whl")), Path(tempfile.mkdtemp(prefix="ldmjax-wheels-")))
    # Last: what is installed comes first.
    sys.path.append(str(target))
    os.environ["PYTHONPATH"] = os.pathsep.join([*filter(None, [os.environ.get("PYTHONPATH")]), str(target)])


def unpack(wheels: Sequence[Path], target: Path) -> Path:
    """Unpacks into ``target``, which it returns, those wheels whose distribution is not installed in any version."""
    for wheel in wheels:
        try:
            metadata.version(wheel.name.partition("-")[0])
        except metadata.PackageNotFoundError:
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(target)
    return target
