"""The last thing that is printed: what was measured, on which device, and beside it the goals."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from experiments.launch import Report, Results
from experiments.on_device import agreement, reading, stages
from ldmjax.tables import table

GOAL_RUNS = 1024  # training rates are judged there
LEAST_SHARE, LEAST_SPEEDUP, LEAST_RATIO, MOST_SECONDS = 0.6, 50.0, 1.0, 60.0
UNITS = {
    "bits": "bits that differ",
    "normals": "normals, largest difference",
    "losses": "losses, largest relative difference",
    "deviation": "W2 curve from the exact law, standard errors",
}

Line = dict[str, str]  # what, measured, goal, and whether it is met


def report(results: Results) -> Report:
    """A row per number."""
    facts, lines = results.metadata, []
    for stage in stages.STAGES:
        for row in results.rows:
            lines += [{"stage": stage, **line} for line in _lines(row, facts["cpu"])] if row["stage"] == stage else []
        if stage in facts["left_out"]:
            lines.append({"stage": stage, "what": "all of it", "measured": f"left out, {facts['left_out'][stage]}"})
    columns = dict.fromkeys(("stage", "what", "measured", "goal", "met"), "")
    return Report(text=f"{_device_line(results)}\n{table(lines, columns, left=5)}")


def _device_line(results):
    """The device that all steps ran on, and of its machine what the stage machine found."""
    facts, found = results.metadata, next((r["result"] for r in results.rows if r["stage"] == "machine"), None)
    parts = [facts["device"], *["deterministic kernels"] * facts["deterministic"]]
    if found:
        versions = [f"{name} {found['versions'][name]}" for name in ("ldmjax", "jax")]
        parts += [f"{found['host_threads']} threads", *versions]
    return f"Device: {', '.join(parts)}."


def _line(
    what: str, measured: str, value: Any = None, *, most: float | None = None, least: float | None = None
) -> Line:
    """A line, with a goal if there is one; a value that is not finite (None) does not meet it."""
    if most is None and least is None:
        return {"what": what, "measured": measured}
    met = value is not None and (value <= most if most is not None else value >= least)
    goal = f"<= {most:g}" if most is not None else f">= {least:g}"
    return {"what": what, "measured": measured, "goal": goal, "met": "yes" if met else "no"}


def _lines(row: Mapping[str, Any], cpu: Mapping[str, Any] | None) -> Iterator[Line]:
    """Of one step: its seconds, then its numbers."""
    note = f"{row['seconds']:.1f} s" + " (resumed)" * row["resumed"]
    yield _line(row["step"], note if row["status"] == "done" else f"{row['status']} after {note}")
    stage, result = row["stage"], row["result"]
    if not result:
        return
    if stage == "machine":
        yield from _machine(result)
    elif stage == "agreement":
        yield from _agreement(result)
    elif stage == "main_job":
        yield from _main_job(row, result)
    elif stage == "science":
        yield _line("records", str(len(result["records"])))
    else:
        yield from _training_rates(row["step"], result, cpu)
        yield from _contests(row, result)


def _machine(result):
    yield _line("copy", f"{result['copy_bytes_per_second'] / 1e9:.3g} GB/s")
    for precision, rate in result["operations_per_second"].items():
        yield _line(f"products of side {result['product_side']}, {precision}", f"{rate / 1e12:.3g} TFLOP/s")
    yield _line("one step of a loop of one kernel", f"{1e6 * result['loop_step_seconds']:.3g} us")
    yield _line("one call of a program", f"{1e6 * result['call_seconds']:.3g} us")


def _agreement(result):
    for part, found in result.items():
        for key in (key for key in UNITS if key in found):
            shown = "not finite" if found[key] is None else f"{found[key]:.3g}"
            yield _line(f"{part}: {UNITS[key]}", shown, found[key], most=agreement.LIMITS[key])
        yield _line(f"{part}: twice the same bits", "yes" if found["equal"] else "no")


def _training_rates(name, result, cpu):
    """MLPs beside their bound, and both kinds of training beside a CPU's."""
    for bound in result.get("bounds", []):
        share, rate = bound["bound_seconds"] / bound["seconds"], 1 / bound["seconds"]
        what, shown = f"{name}: MLP, share of the bound ({bound['set_by']})", f"{share:.0%}, {rate:.4g} run-steps/s"
        yield _line(what, shown, share, least=LEAST_SHARE if bound["runs"] == GOAL_RUNS else None)
        if cpu:
            yield _speedup(f"{name}: MLP", bound["runs"], cpu["bounds"][0]["seconds"] * rate, cpu)
    contests, key = result.get("contests", {}), "runs_linear"
    if "bounds" not in result and key in {**contests, **result["skipped"]}:  # they are asked for together
        yield _line(f"{name}: MLP", "left out by experiments.benchmark")
    if key in contests:  # "theirs" is a step of all runs, "ours" of a quarter of them
        runs = 4 * result["runs"]
        rate = runs / np.median(contests[key]["theirs"])
        yield _line(f"{name}: linear scores", f"{rate:.4g} run-steps/s")
        if cpu:
            there = np.median(cpu["contests"][key]["theirs"]) / cpu["bounds"][0]["runs"]
            yield _speedup(f"{name}: linear scores", runs, there * rate, cpu)


def _speedup(what, runs, ratio, cpu):
    what = f"{what}, times {cpu['cores']} cores ({cpu['bounds'][0]['runs']} runs)"
    return _line(what, f"{ratio:.3g}", ratio, least=LEAST_SPEEDUP if runs == GOAL_RUNS else None)


def _contests(row, result):
    for contest, found in result.get("contests", {}).items():
        if contest != "runs_linear":
            ours, theirs = np.median(found["ours"]), np.median(found["theirs"])
            what = f"{row['step']}: {found['sides']['opponent']} / ours"
            shown = f"{theirs / ours:.3g}, ours {ours:.3g} s per {found['sides']['unit']}"
            yield _line(what, shown, theirs / ours, least=LEAST_RATIO if row["stage"] == "pytorch" else None)
    for contest, reason in result["skipped"].items():
        yield _line(f"{row['step']}: {contest}", f"not held: {reason}")


def _main_job(row, result):
    changed = len(result["changed"])
    yield _line(f"verdicts that changed, of {result['verdicts']}", str(changed), changed, most=0.0)
    for line in result["changed"]:
        yield _line(f"  {line}", "")
    for metric, found in result["curves"].items():
        what = f"{metric}: of {found['points']} points, further apart than {reading.WITHIN:g} standard errors"
        largest = "infinite" if found["largest"] is None else f"{found['largest']:.3g}"
        yield _line(what, f"{found['apart']}, largest {largest}", found["apart"], most=0.0)
    seconds, most = row["seconds"], None if row["resumed"] else MOST_SECONDS
    what = "seconds with start and compilation" + ", since it was resumed" * row["resumed"]
    yield _line(what, f"{seconds:.1f}, {result['seconds_there']:.0f} there", seconds, most=most)
