"""Checkpoints of a training, a loop over steps (chunks.py), so that one killed at any moment goes on where it was.

Its state is kept every so many seconds, asynchronously, by orbax. Checkpoints hold host arrays without padding: they fit any
number of devices and processes. Each carries the sha256 of its leaves; one that does not match is put aside and the one before
it is taken. The first process reads and writes; the others get what it read.

What orbax is given is one vector of bytes, not the tree of the state: it writes every leaf by a task of its own, and on a full
disk each of them ends in a traceback of its own on stderr (92 lines for a state of 23 leaves, orbax 0.12.8).
"""

import contextlib
import hashlib
import logging
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import PyTree

from ldmjax.devices import from_first_process, is_first_process
from ldmjax.files import reason

LOG = logging.getLogger("ldmjax")


class TrainingCheckpoints:
    """Checkpoints of one training, newest `keep` of them; made by `ldmjax.job.Job.training`."""

    def __init__(self, directory: Path | None, *, name: str, every: float, keep: int):
        self.directory, self.name, self.every, self.keep = directory, name, every, keep
        self._manager, self._last = None, time.perf_counter()

    @property
    def due(self) -> bool:
        """Whether the last checkpoint is old enough for another one; the first process's opinion counts."""
        return self.directory is not None and time.perf_counter() - self._last >= self.every

    def restore(self, template: PyTree) -> tuple[int, PyTree] | None:
        """Returns (step, state) of the newest good checkpoint, or None.

        Args:
          template: a pytree of arrays or shapes like the state that was saved.
        """
        self.close()  # one that is being written would look like half of one
        self._last = time.perf_counter()
        if self.directory is None:
            return None
        found = self._newest_good(template) if is_first_process() else None
        if jax.process_count() == 1:
            return found
        content = from_first_process(found and np.int64(found[0]).tobytes() + _joined(found[1]).tobytes())
        if content is None:
            return None
        return int(np.frombuffer(content[:8], np.int64)[0]), _split(np.frombuffer(content[8:], np.uint8), template)

    def save(self, step: int, state: PyTree) -> None:
        """Keeps ``state``, numpy arrays, after ``step`` steps; writes in the background. Says so if the disk refuses."""
        self._last = time.perf_counter()
        if self.directory is None or not is_first_process():
            return
        items = _orbax().args.StandardSave({"bytes": _joined(state)})
        described = {"step": step, "sha256": digest(state)}
        self._guarded(lambda: self._open().save(step, args=items, custom_metadata=described, force=True))

    def close(self) -> None:
        """Waits until all is written."""
        if self._manager is not None:
            self._guarded(self._manager.close)
            self._manager = None

    def _guarded(self, write: Callable) -> None:
        """Writes; a checkpoint that cannot be written costs no results: training goes on, the next one may succeed."""
        try:
            write()
        except Exception as error:  # of this one, or of the one that was being written in the background
            LOG.warning("a checkpoint of %s could not be written: %s", self.name, reason(error))
            # A manager that failed once keeps failing.
            manager, self._manager = self._manager, None
            with contextlib.suppress(Exception):
                if manager is not None:
                    manager.close()
            self._delete_halves()

    def _delete_halves(self) -> None:
        """Deletes what a kill, or a full disk, left of checkpoints that were being written."""
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
                LOG.warning("checkpoint at step %d of %s is damaged and left out: %s", step, self.name, reason(error))
                self.close()
                shutil.rmtree(self.directory / f"{step}.damaged", ignore_errors=True)
                (self.directory / str(step)).rename(self.directory / f"{step}.damaged")
        return None

    def _read(self, step: int, template: PyTree) -> PyTree:
        like = _joined(jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template))
        found = self._open().restore(step, args=_orbax().args.StandardRestore({"bytes": like}))
        state = _split(np.asarray(found["bytes"]), template)
        if self._open().metadata(step).custom_metadata != {"step": step, "sha256": digest(state)}:
            raise ValueError("its contents do not match their sha256")
        return state


def digest(state: PyTree) -> str:
    """Returns sha256 of all leaves of a pytree of numpy arrays, with their places, types and shapes."""
    total = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        array = np.ascontiguousarray(leaf)
        total.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        total.update(array.reshape(-1).view(np.uint8))
    return total.hexdigest()


def _joined(state: PyTree) -> np.ndarray:
    """Returns all leaves as one vector of bytes."""
    leaves = [np.ascontiguousarray(leaf).reshape(-1).view(np.uint8) for leaf in jax.tree.leaves(state)]
    return np.concatenate(leaves) if leaves else np.zeros(0, np.uint8)


def _split(joined: np.ndarray, template: PyTree) -> PyTree:
    """Returns the inverse of `_joined`, with the shapes and types of ``template``."""
    leaves, structure = jax.tree.flatten(template)
    sizes = [int(np.prod(leaf.shape)) * np.dtype(leaf.dtype).itemsize for leaf in leaves]
    parts = np.split(joined, np.cumsum(sizes)[:-1])
    return jax.tree.unflatten(
        structure, [part.view(x.dtype).reshape(x.shape) for part, x in zip(parts, leaves, strict=True)]
    )


def fingerprint(description: str, arrays: PyTree = ()) -> str:
    """Names a training by all that it depends on: what the text says, and arrays."""
    return hashlib.sha256(f"{description} {digest(arrays)}".encode()).hexdigest()[:16]


def _orbax():
    import orbax.checkpoint  # here: 0.2 s that experiments in closed form need not pay

    return orbax.checkpoint
