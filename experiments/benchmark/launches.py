"""How many kernels a compiled program launches in each pass of its loop, and what a launch costs on this device.

The count is read from the optimised text of the program. An accelerator runs each instruction of it that computes or moves
something as one kernel; a CPU launches nothing.
"""

import re

import jax
import numpy as np

from experiments.benchmark.contest import NotHeldError, timed
from ldmjax import devices

LAUNCHES = 5000
NOT_LAUNCHED = {
    "parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id",
    "opt-barrier", "add-dependency",
}  # fmt: skip


def loop_kernels(text: str, trips: int) -> int:
    """Kernels of one pass of the loop that is known to make ``trips`` passes; where several do, of the largest.

    Calls count as what they call, inner loops as their passes (one pass where their number is not known).

    Args:
      text: the optimised program.
      trips: passes of the loop.

    Raises:
      NotHeldError: if no loop is known to make so many.
    """
    computations = _computations(text)
    loops = [line for lines in computations.values() for line in lines if _opcode(line) == "while"]
    counts = [_kernels(computations, _called(line, "body")) for line in loops if _trips(line) == trips]
    if not counts:
        raise NotHeldError(f"no loop of {trips} passes among those of {[_trips(line) for line in loops]} passes")
    return max(counts)


def _computations(text):
    """Instruction lines by the name of their computation."""
    found, lines = {}, []
    for line in text.splitlines():
        if head := re.match(r"(?:ENTRY )?%?([\w.\-]+) \(.*\{$", line):
            lines = found.setdefault(head[1], [])
        elif " = " in line:
            lines.append(line)
    return found


def _opcode(line):
    """The first lower-case word before a parenthesis, after the type."""
    return re.search(r"[ )}\]]([a-z][\w\-]*)\(", line.split(" = ", 1)[1])[1]


def _called(line, role):
    return re.search(rf"\b{role}=%?([\w.\-]+)", line)[1]


def _trips(line):
    known = re.search(r'known_trip_count"?:\{"n":"(\d+)"', line)
    return int(known[1]) if known else None


def _kernels(computations, name):
    total = 0
    for line in computations[name]:
        code = _opcode(line)
        if code == "call":
            total += _kernels(computations, _called(line, "to_apply"))
        elif code == "while":
            total += (_trips(line) or 1) * _kernels(computations, _called(line, "body"))
        else:
            total += code not in NOT_LAUNCHED and not code.endswith(("-done", "-update"))
    return total


def launch_program() -> devices.MappedRuns:
    """A loop of kernels that do almost nothing."""
    return devices.map_runs(lambda _, x: jax.lax.fori_loop(0, LAUNCHES, lambda i, x: 0.999 * x + 0.001, x))


def launch_seconds() -> float:
    """Seconds per kernel of a compiled loop of kernels that do almost nothing, the best of five; 0 on a CPU."""
    if devices.platform() == "cpu":
        return 0.0
    program, rows = launch_program(), devices.place(np.zeros((jax.device_count(), 32), np.float32))
    kernels = loop_kernels(program.lower(0, rows).compile().as_text(), LAUNCHES)
    program(0, rows)
    return min(timed(lambda: program(0, rows)) for _ in range(5)) / (LAUNCHES * kernels)
