"""Finished pieces of work on disk: a tree of Python values as JSON, its arrays beside it as .npz, each checked when it is read.

What a tree may hold: None, booleans, numbers, text, lists, tuples, dicts, numpy arrays and scalars, dataclasses and named
tuples of these. A file never names code to run: a class is looked up among the modules that are imported already, and has to
be a dataclass or a named tuple.
"""

import dataclasses
import hashlib
import io
import json
import logging
import sys
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from ldmjax.files import reason, written_whole

LOG = logging.getLogger("ldmjax")


class NotImported(ValueError):
    """A piece holds a class whose module is not imported: the piece is sound, but cannot be read in this process."""


def write_piece(path: Path, value: Any) -> None:
    """Writes ``value`` as ``path`` with endings .json and .npz; a disk that refuses is a warning, as nothing else is lost."""
    text, arrays = to_text(value)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # The text comes last: it holds the checksum of both.
        with written_whole(_beside(path, ".npz")) as partial:
            partial.write_bytes(arrays)
        with written_whole(_beside(path, ".json")) as partial:
            partial.write_text(text)
    except OSError as error:
        LOG.warning("%s could not be written: %s", path, reason(error))


class Piece(NamedTuple):
    """A piece as it was read: its files' contents, for other processes, and the value that they hold."""

    text: str
    arrays: bytes
    value: Any


def read_piece(path: Path) -> Piece | None:
    """Returns what `write_piece` wrote; None if there is none or it is damaged.

    Raises:
      NotImported: if it is sound, and holds a class whose module is not imported.
    """
    try:
        text, arrays = _beside(path, ".json").read_text(), _beside(path, ".npz").read_bytes()
        return Piece(text, arrays, from_text(text, arrays))
    except FileNotFoundError:
        return None
    except NotImported:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, OSError) as error:
        LOG.warning("%s is damaged: it is computed again (%s)", path, reason(error))
        return None


def _beside(path: Path, ending: str) -> Path:
    return path.with_name(path.name + ending)


def to_text(value: Any) -> tuple[str, bytes]:
    """Returns the tree as JSON with a checksum of all, and its arrays as the bytes of an .npz.

    Raises:
      TypeError: if the tree holds anything else than what this module's text names.
    """
    arrays: dict[str, np.ndarray] = {}
    tree = _encode(value, arrays)
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    content = buffer.getvalue()
    return json.dumps({"sha256": _digest(tree, content), "tree": tree}, indent=1), content


def from_text(text: str, arrays: bytes) -> Any:
    """Returns the inverse of `to_text`; ValueError if a checksum does not match."""
    found = json.loads(text)
    if found["sha256"] != _digest(found["tree"], arrays):
        raise ValueError("its contents do not match their sha256")
    with np.load(io.BytesIO(arrays), allow_pickle=False) as stored:
        return _decode(found["tree"], {name: stored[name] for name in stored.files})


def _digest(tree: Any, arrays: bytes) -> str:
    return hashlib.sha256(json.dumps(tree).encode() + arrays).hexdigest()


def _encode(value: Any, arrays: dict[str, np.ndarray]) -> Any:
    """JSON's own types as they are; every other one as an object with one key, which names it."""
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, jax.Array | np.ndarray | np.generic):
        name = f"array{len(arrays)}"
        arrays[name] = np.asarray(value)
        kind = arrays[name].dtype
        if kind.hasobject or (kind.kind == "V" and kind.names is None) or isinstance(value, np.ma.MaskedArray):
            raise TypeError(f"a {type(value).__name__} of {kind} cannot be kept")
        return {"scalar" if isinstance(value, np.generic) else "array": name}
    if type(value) is list:
        return [_encode(v, arrays) for v in value]
    if type(value) is tuple:
        return {"tuple": [_encode(v, arrays) for v in value]}
    if type(value) is dict:
        return {"dict": [[_encode(k, arrays), _encode(v, arrays)] for k, v in value.items()]}
    if (names := _fields(type(value))) is None:
        raise TypeError(f"{type(value).__name__} cannot be kept")
    kind = f"{_lasting_name(type(value).__module__)}:{type(value).__qualname__}"
    return {"fields": [kind, {name: _encode(getattr(value, name), arrays) for name in names}]}


def _decode(tree: Any, arrays: dict[str, np.ndarray]) -> Any:
    if isinstance(tree, list):
        return [_decode(v, arrays) for v in tree]
    if not isinstance(tree, dict):
        return tree
    ((kind, content),) = tree.items()
    match kind:
        case "array":
            return arrays[content]
        case "scalar":
            return arrays[content][()]
        case "tuple":
            return tuple(_decode(v, arrays) for v in content)
        case "dict":
            return {_decode(k, arrays): _decode(v, arrays) for k, v in content}
        case "fields":
            cls, fields = _class(content[0]), content[1]
            if set(_fields(cls)) != set(fields):
                raise ValueError(f"{content[0]} has other fields now")
            return cls(**{name: _decode(v, arrays) for name, v in fields.items()})
    raise ValueError(f"unknown kind {kind!r}")


def _fields(cls: type) -> tuple[str, ...] | None:
    """Names of the fields that make a dataclass or named tuple; None for any other class."""
    if dataclasses.is_dataclass(cls):
        return tuple(field.name for field in dataclasses.fields(cls) if field.init)
    return cls._fields if issubclass(cls, tuple) and hasattr(cls, "_fields") else None


def _lasting_name(module: str) -> str:
    """The name by which a module is imported, also of the one that was started as a command."""
    if module != "__main__":
        return module
    main = sys.modules["__main__"]
    spec, file = getattr(main, "__spec__", None), getattr(main, "__file__", None)
    return spec.name.removesuffix(".__main__") if spec else Path(file).stem if file else module


def _class(described: str) -> type:
    module, _, name = described.partition(":")
    found = sys.modules.get("__main__" if module == _lasting_name("__main__") else module)
    for part in name.split("."):
        found = getattr(found, part, None)
    if found is None:
        raise NotImported(f"{described.replace(':', '.')} is not imported: import the module that defines it first")
    if not isinstance(found, type) or _fields(found) is None:
        raise ValueError(f"{described} is not a dataclass or named tuple")
    return found
