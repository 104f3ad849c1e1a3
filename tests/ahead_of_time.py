"""Compiles programs for an H100 or a TPU v5e on a machine that has neither, and reads what XLA made of them. Nothing is run.

What is asked of a program: `recorded` stands for the arrays that it would be called with, `compiled` gives its `Program`, the
compiler's text read as computations and loops. A *kernel* is one instruction of a computation that is launched; the kernels of
a loop are those of one pass through its body, without those of loops inside it.
"""

import collections
import contextlib
import dataclasses
import functools
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import topologies
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from ldmjax import devices

PLUGINS = {"gpu": "jax_cuda13_plugin", "tpu": "libtpu"}
BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "f32": 4, "s32": 4, "u32": 4, "f64": 8, "s64": 8, "u64": 8}
NOT_LAUNCHED = {
    "get-tuple-element",
    "tuple",
    "parameter",
    "constant",
    "bitcast",
    "after-all",
    "partition-id",
    "replica-id",
    "add-dependency",
    "opt-barrier",
    "optimization-barrier",
    "copy-done",
    "async-done",
    "while",
    "call",
    "conditional",
}
TPU_LAYOUT = ":T("  # tiles, in the types of a TPU's program
UNKNOWN_TRIPS = 100  # stands for a number that the compiler does not know, where loops are put in order
COLLECTIVES = {"all-reduce", "all-gather", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast"}


def missing(platform: str) -> str | None:
    """Why programs for ``platform`` ("gpu" or "tpu") cannot be compiled here, or None."""
    if importlib.util.find_spec(PLUGINS[platform]) is None:
        return f"no {PLUGINS[platform]}: see BUILD.md, Test"
    return None


@functools.cache
def chips(platform: str, count: int) -> Mesh:
    """One H100 or v5e, or eight of them, with all runs' axis."""
    if platform == "gpu":
        target = Path(__file__).with_name("h100.txt").read_text()
        found = topologies.get_topology_desc(platform="cuda", target_config=target, topology=f"1x1x{count}").devices
    else:
        os.environ["TPU_SKIP_MDS_QUERY"] = "1"  # the service that tells a TPU's host what it has
        shape, bounds = {1: ("1x1", [1, 1, 1]), 8: ("2x4", [2, 4, 1])}[count]
        found = topologies.get_topology_desc(
            platform="tpu", topology_name=f"v5e:{shape}", chips_per_host_bounds=bounds
        ).devices
    axes = (devices.RUNS, devices.SAMPLES)
    return Mesh(np.array(found).reshape(count, 1), axes, axis_types=(AxisType.Auto, AxisType.Auto))


@dataclasses.dataclass(frozen=True, eq=False)
class Recorded:
    """A program and the shapes that it was called with: what all runs share, and rows with a leading axis of runs."""

    mapped: devices.MappedRuns
    shared: Any
    rows: tuple
    wide: bool  # whether JAX's 64-bit types were on

    def lower(self, mesh: Mesh, runs: int) -> jax.stages.Lowered:
        """For ``runs`` runs on ``mesh``."""
        rows = jax.tree.map(lambda x: jax.ShapeDtypeStruct((runs, *x.shape[1:]), x.dtype), self.rows)
        with jax.enable_x64(self.wide):
            return self.mapped.lower(self.shared, *rows, mesh=mesh)


@dataclasses.dataclass(frozen=True, eq=False)
class Alone:
    """A jitted function and the shapes of its arguments, without an axis of runs."""

    function: Callable
    arguments: tuple

    def lower(self, mesh: Mesh, runs: int) -> jax.stages.Lowered:
        """On every chip of ``mesh`` the same."""
        del runs
        sharding = NamedSharding(mesh, PartitionSpec())
        spread = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding)  # noqa: E731
        return self.function.lower(*jax.tree.map(spread, self.arguments))


class _Found(Exception):
    pass


def recorded(call: Callable[[], Any], *, program: int) -> Recorded:
    """The shapes with which ``call`` first calls the mapped program of that number, counted from 0; those before give zeros."""
    seen = []

    def of(self, shared, *rows):
        if self not in seen:
            seen.append(self)
        if len(seen) > program:
            raise _Found(Recorded(self, shapes(shared), shapes(rows), jax.config.jax_enable_x64))
        result = jax.eval_shape(jax.vmap(functools.partial(self._function, shared)), *rows)
        return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), result)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices.MappedRuns, "__call__", of)
        try:
            call()
        except _Found as found:
            return found.args[0]
    raise ValueError(f"{len(seen)} programs were called, there is no number {program}")


def shapes(tree: Any) -> Any:
    """What stands for arrays: their shapes and dtypes, as JAX would hold them."""

    def one(x):
        x = x if hasattr(x, "dtype") else np.asarray(x)
        dtype = x.dtype if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else jax.dtypes.canonicalize_dtype(x.dtype)
        return jax.ShapeDtypeStruct(x.shape, dtype)

    return jax.tree.map(one, tree)


def compiled(make: Callable[[], Recorded | Alone], platform: str, *, count: int, runs: int) -> "Program":
    """What ``make`` gives, traced as the platform wants it and compiled for ``count`` of its chips."""
    with devices.made_for(platform), _no_cache():
        made = make().lower(chips(platform, count), runs).compile()
    return Program.read(made.as_text(), made.memory_analysis().temp_size_in_bytes)


@contextlib.contextmanager
def _no_cache() -> Iterator[None]:
    """Nothing is taken from what was traced for another platform, nor from the disk, which is for the devices at hand."""
    jax.clear_caches()
    before = jax.config.jax_enable_compilation_cache
    jax.config.update("jax_enable_compilation_cache", False)
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        jax.clear_caches()


@dataclasses.dataclass(frozen=True)
class Instruction:
    """One line of the compiler's text."""

    name: str
    opcode: str
    shape: str
    operands: tuple[str, ...]
    line: str

    @classmethod
    def read(cls, line: str) -> "Instruction":
        name, right = line.removeprefix("ROOT ").split(" = ", 1)
        # The type is a tuple in brackets, or a word; then comes "opcode(operands)".
        end = _closing(right) + 1 if right.startswith("(") else right.index(" ")
        rest = right[end:].strip()
        opcode, inside = rest.split("(", 1)
        return cls(name, opcode, right[:end], tuple(re.findall(r"%[\w.\-]+", inside[: _closing("(" + inside)])), line)

    def called(self, attribute: str) -> list[str]:
        """Computations that an attribute names."""
        found = re.search(rf"\b{attribute}=(?:\{{([^}}]*)\}}|(%?[\w.\-]+))", self.line)
        return re.findall(r"%?([\w.\-]+)", found[1] or found[2]) if found else []

    @property
    def bytes(self) -> int:
        """Size of the result."""
        sizes = (
            (BYTES.get(kind, 0), [int(n) for n in sides.split(",") if n])
            for kind, sides in re.findall(r"\b(\w+)\[([\d,]*)\]", self.shape)
        )
        return sum(width * int(np.prod(sides)) for width, sides in sizes)

    @property
    def target(self) -> str:
        """Of a custom call."""
        found = re.search(r'custom_call_target="([^"]+)"', self.line)
        return found[1] if found else ""


def _closing(text: str) -> int:
    """Where the bracket that opens ``text`` closes."""
    depth = 0
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if depth == 0:
            return place
    raise ValueError(f"no closing bracket in {text[:80]!r}")


@dataclasses.dataclass(frozen=True)
class Loop:
    """One `while`.

    Attributes:
      body: name of its computation.
      around: the loops that it lies in, innermost first.
      trips: how often it is passed through, None if the compiler does not know.
      kernels: opcodes launched in one pass, without loops inside, and how often.
      traffic: bytes of their operands and results.
      opcodes: all that it contains, loops inside and fused instructions included.
    """

    body: str
    around: tuple["Loop", ...]
    trips: int | None
    kernels: collections.Counter
    traffic: int
    opcodes: frozenset[str]

    @property
    def launches(self) -> int:
        """Kernels of all passes in one call of the program."""
        return self.kernels.total() * math.prod(loop.trips or UNKNOWN_TRIPS for loop in (self, *self.around))


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiler made.

    Attributes:
      text: of the optimised program.
      temporaries: bytes that one chip needs besides arguments and results.
      instructions: of all computations.
      loops: all of them, the one that launches most kernels first.
    """

    text: str
    temporaries: int
    instructions: list[Instruction]
    loops: list[Loop]

    @classmethod
    def read(cls, text: str, temporaries: int) -> "Program":
        """Reads the compiler's text."""
        computations, current, entry = {}, [], ""
        for line in text.splitlines():
            if head := re.match(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$", line):
                current = computations.setdefault(head[2], [])
                entry = head[2] if head[1] else entry
            elif " = " in line and line.startswith(" "):
                current.append(Instruction.read(line.strip()))
        instructions = [i for computation in computations.values() for i in computation]
        loops = sorted(_loops(computations, entry), key=lambda loop: -loop.launches)
        return cls(text, temporaries, instructions, loops)

    @property
    def opcodes(self) -> set[str]:
        """All opcodes, fused ones included."""
        return {i.opcode for i in self.instructions}


def _loops(computations, name, around=()):
    """All loops that a computation leads to."""
    for i in computations[name]:
        if i.opcode == "while":
            yield (loop := _loop(computations, i, around))
            yield from _loops(computations, loop.body, (loop, *around))
        for inner in i.called("to_apply") + i.called("branch_computations"):
            yield from _loops(computations, inner, around)


def _loop(computations, instruction, around):
    (body,) = instruction.called("body")
    launched = list(_launched(computations, body))
    return Loop(
        body=body,
        around=around,
        trips=_trips(computations, instruction),
        kernels=collections.Counter(kernel.opcode for kernel, _ in launched),
        traffic=sum(size for _, size in launched),
        opcodes=frozenset(i.opcode for i in _within(computations, body)),
    )


def _trips(computations, loop):
    """What the compiler noted; a TPU's notes nothing, there the condition compares a counter from 0 with a constant, or not."""
    if noted := re.search(r'known_trip_count"?:\{"n":"(\d+)"', loop.line):
        return int(noted[1])
    condition = computations[loop.called("condition")[0]]
    constants = {i.name: re.search(r" constant\((\d+)\)", i.line) for i in condition if i.opcode == "constant"}
    if (
        TPU_LAYOUT in loop.shape
        and "direction=LT" in condition[-1].line
        and (limit := constants.get(condition[-1].operands[1]))
    ):
        return int(limit[1])
    return None


def _launched(computations, name):
    """Kernels of a computation with the bytes of their operands and results; of a conditional both sides count."""
    size = {i.name: i.bytes for i in computations[name]}
    for i in computations[name]:
        for inner in i.called("to_apply") if i.opcode == "call" else i.called("branch_computations"):
            yield from _launched(computations, inner)
        if i.opcode not in NOT_LAUNCHED:
            yield i, i.bytes + sum(size[operand] for operand in i.operands if operand in size)


def _within(computations, name):
    """All instructions that a computation leads to."""
    for i in computations[name]:
        yield i
        for attribute in ("body", "condition", "calls", "to_apply", "branch_computations"):
            for inner in i.called(attribute):
                yield from _within(computations, inner)
