"""What a job keeps on disk, so that a job killed at any moment goes on where it was: checkpoints of trainings, finished pieces.

A *training* is a loop over steps (chunks.py); its state is kept every so many seconds, asynchronously, by orbax. Checkpoints
hold host arrays without padding: they fit any number of devices and processes. Each carries the sha256 of its leaves; one that
does not match is deleted and the one before it is taken. A *piece* is the result of any other work (one model sampled
and measured, say), kept when it is finished. The first process reads and writes; the others get what it read.

A `Store` knows nothing of flags: whoever makes it has to give every job a directory of its own.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import re
import shutil
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import jax
import numpy as np
from jaxtyping import PyTree

from ldmjax.devices import from_first_process, is_first_process

LOG = logging.getLogger("ldmjax")
Result = TypeVar("Result")


class Store:
    """Checkpoints and pieces of one job in a directory; without one nothing is kept."""

    def __init__(self, directory: Path | None = None, *, every: float = 30.0, keep: int = 2):
        """Makes the store; the directory appears with the first thing that is kept.

        Args:
          directory: of the job, or None.
          every: seconds of training between checkpoints, >= 0.
          keep: newest checkpoints of a training that are kept, >= 1.
        """
        if not every >= 0 or keep < 1:
            raise ValueError(f"need every >= 0 and keep >= 1, got {every} and {keep}")
        self.directory = None if directory is None else Path(directory).absolute()
        self.every, self.keep = every, keep

    def piece(self, name: str, compute: Callable[[], Result]) -> Result:
        """The piece ``name``, from disk if it was finished before.

        Args:
          name: unique in the job.
          compute: its result can be pickled, is not None, and depends on nothing but the job.
        """
        found = self.get(name)
        if found is None:
            found = compute()
            self.put(name, found)
        return found

    def get(self, name: str) -> Any:
        """The piece ``name``, None if it was not finished; on all processes in the same order."""
        if self.directory is None:
            return None
        content = from_first_process(_read_piece(self._piece_path(name)) if is_first_process() else None)
        return None if content is None else pickle.loads(content)

    def put(self, name: str, value: Any) -> None:
        """Keeps a finished piece; a thread may do so."""
        if self.directory is not None and is_first_process():
            _write_piece(self._piece_path(name), pickle.dumps(value))

    def _piece_path(self, name: str) -> Path:
        return self.directory / "pieces" / f"{_file_name(name)}.pickle"

    @contextlib.contextmanager
    def training(self, name: str) -> "Iterator[TrainingCheckpoints]":
        """The checkpoints of one training; everything is on disk when the context ends."""
        own = None if self.directory is None else self.directory / _file_name(name)
        checkpoints = TrainingCheckpoints(own, name=name, every=self.every, keep=self.keep)
        try:
            yield checkpoints
        finally:
            checkpoints.close()


NOTHING_KEPT = Store()


class TrainingCheckpoints:
    """Checkpoints of one training, newest `keep` of them; made by `Store.training`."""

    def __init__(self, directory: Path | None, *, name: str, every: float, keep: int):
        self.directory, self.name, self.every, self.keep = directory, name, every, keep
        self._manager, self._last = None, time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one; the first process's opinion counts."""
        return self.directory is not None and time.perf_counter() - self._last >= self.every

    def restore(self, template: PyTree) -> tuple[int, PyTree] | None:
        """(step, state) of the newest good checkpoint, or None.

        Args:
          template: a pytree of arrays or shapes like the state that was saved.
        """
        self.close()  # one that is being written would look like half of one
        self._last = time.perf_counter()
        if self.directory is None:
            return None
        content = None
        if is_first_process():
            found = self._newest_good(template)
            content = None if found is None else pickle.dumps((found[0], jax.tree.leaves(found[1])))
        content = from_first_process(content)
        if content is None:
            return None
        step, leaves = pickle.loads(content)
        return step, jax.tree.unflatten(jax.tree.structure(template), leaves)

    def save(self, step: int, state: PyTree) -> None:
        """Keeps ``state``, numpy arrays, after ``step`` steps; writes in the background. Says so if the disk refuses."""
        self._last = time.perf_counter()
        if self.directory is None or not is_first_process():
            return
        ocp = _orbax()
        described = {"step": step, "sha256": digest(state)}
        items = ocp.args.Composite(
            state=ocp.args.StandardSave({"bytes": _joined(state)}), described=ocp.args.JsonSave(described)
        )
        self._guarded(lambda: self._open().save(step, args=items, force=True))

    def close(self) -> None:
        """Waits until all is written."""
        if self._manager is not None:
            self._guarded(self._manager.close)
            self._manager = None

    def _guarded(self, write: Callable) -> None:
        """A checkpoint that cannot be written costs no results: training goes on, the next one may succeed."""
        try:
            write()
        except Exception as error:  # of this one, or of the one that was being written in the background
            LOG.warning("a checkpoint of %s could not be written: %s", self.name, _reason(error))
            # A manager that failed once keeps failing.
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                if manager is not None:
                    manager.close()
            self._delete_halves()

    def _delete_halves(self) -> None:
        """What a kill, or a full disk, left of checkpoints that were being written."""
        for path in self.directory.glob("*.orbax-checkpoint-tmp*"):
            shutil.rmtree(path, ignore_errors=True)

    def _open(self):
        if self._manager is None:
            ocp = _orbax()
            alone = ocp.options.MultiprocessingOptions(
                primary_host=0, active_processes={0}, barrier_sync_key_prefix="first-process"
            )
            several = {"multiprocessing_options": alone} if jax.process_count() > 1 else {}
            self.directory.mkdir(parents=True, exist_ok=True)
            options = ocp.CheckpointManagerOptions(max_to_keep=self.keep, create=False, **several)
            self._manager = ocp.CheckpointManager(self.directory, options=options)
        return self._manager

    def _newest_good(self, template: PyTree) -> tuple[int, PyTree] | None:
        """Walks back from the newest checkpoint; damaged ones lose their name, as nothing can be saved before them."""
        self._delete_halves()
        steps = sorted((int(p.name) for p in self.directory.glob("*") if p.name.isdigit()), reverse=True)
        for step in steps:
            try:
                return step, self._read(step, template)
            except MemoryError:
                raise
            except Exception as error:
                LOG.warning("checkpoint at step %d of %s is damaged and left out: %s", step, self.name, _reason(error))
                self.close()
                shutil.rmtree(self.directory / f"{step}.damaged", ignore_errors=True)
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        return None

    def _read(self, step: int, template: PyTree) -> PyTree:
        ocp = _orbax()
        like = _joined(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template))
        items = ocp.args.Composite(state=ocp.args.StandardRestore({"bytes": like}), described=ocp.args.JsonRestore())
        found = self._open().restore(step, args=items)
        state = _split(np.asarray(found.state["bytes"]), template)
        if found.described["step"] != step or found.described["sha256"] != digest(state):
            raise ValueError("its contents do not match their sha256")
        return state


def digest(state: PyTree) -> str:
    """sha256 of all leaves of a pytree of numpy arrays, with their places, types and shapes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def _joined(state: PyTree) -> np.ndarray:
    """All leaves as one vector of bytes: a file for each would make as many errors of one."""
    leaves = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(state)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.uint8)


def _split(joined: np.ndarray, template: PyTree) -> PyTree:
    """The inverse of `_joined`, with the shapes and types of ``template``."""
    leaves, structure = jax.tree.flatten(template)
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    parts = np.split(joined, np.cumsum(sizes)[:-1])
    return jax.tree.unflatten(
        structure, [part.view(x.dtype).reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    )


def fingerprint(description: str, arrays: PyTree = ()) -> str:
    """Names a training by all that it depends on: what the text says, and arrays."""
    return hashlib.sha256(f"{description} {digest(arrays)}".encode()).hexdigest()[:16]


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


def _orbax():
    import orbax.checkpoint  # here: 0.2 s that experiments in closed form need not pay

    return orbax.checkpoint


def _file_name(name: str) -> str:
    """Readable and without collisions."""
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{zlib.crc32(name.encode()):08x}"


def _read_piece(path: Path) -> bytes | None:
    """The content of a piece, None if there is none or it is damaged."""
    try:
        stored = path.read_bytes()
    except FileNotFoundError:
        return None
    checksum, content = stored[:32], stored[32:]
    if hashlib.sha256(content).digest() != checksum:
        LOG.warning("%s is damaged: it is computed again", path)
        return None
    return content


def _write_piece(path: Path, content: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with written_whole(path) as partial:
            partial.write_bytes(hashlib.sha256(content).digest() + content)
    except OSError as error:
        LOG.warning("%s could not be written: %s", path, _reason(error))


def _reason(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:160]
