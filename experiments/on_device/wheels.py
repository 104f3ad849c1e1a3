"""Packages that a bare machine lacks, from the wheels in the carried folder. Needs nothing but Python, not even pip."""

import importlib.util
import os
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from experiments.on_device import manifest

NEEDED = (
    "absl", "chex", "flax", "jax", "jaxtyping", "matplotlib", "numpy", "optax", "orbax.checkpoint", "PIL", "scipy",
    "sklearn", "threadpoolctl",
)  # fmt: skip


def missing() -> list[str]:
    """Modules of `NEEDED` that cannot be imported."""

    def absent(name):
        try:
            return importlib.util.find_spec(name) is None
        except ModuleNotFoundError:  # of the package above it
            return True

    return [name for name in NEEDED if absent(name)]


def offer(words: Sequence[str]) -> None:
    """If a module is missing, unpacks carried wheels of what is not installed, for this process and its children.

    Args:
      words: the command line, which may hold --carried=FOLDER. A folder that is not whole is left to who reads it later.
    """
    folder = next((Path(word.partition("=")[2]) for word in words if word.startswith("--carried=")), None)
    if folder is None or not (folder / "wheels").is_dir() or not missing():
        return
    try:
        manifest.read(folder)
    except ValueError:
        return
    target = unpack(sorted((folder / "wheels").glob("*.whl")), Path(tempfile.mkdtemp(prefix="ldmjax-wheels-")))
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
