"""Files that appear whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Gives a temporary name to write to, and renames it to ``path``: readers see the old file or the new one."""
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes ``text`` whole or not at all."""
    with written_whole(path) as partial:
        partial.write_text(text)


def reason(error: Exception) -> str:
    """Returns the first line of an error, shortened, for a warning."""
    return (str(error) or type(error).__name__).splitlines()[0][:160]
