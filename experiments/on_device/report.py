"""The last thing that is printed: what was measured, on which device, and beside it the goals."""

from collections.abc import Iterator, Mapping
from typing import Any

from experiments.on_device import agreement, plan, reading
from experiments.tables import align

GOAL_RUNS = 1024  # training rates are judged there
LEAST_SHARE, LEAST_SPEEDUP, LEAST_RATIO, MOST_SECONDS = 0.6, 50.0, 1.0, 60.0

Row = tuple[str, str, str, str, str]  # stage, what, measured, goal, whether it is met
Measured = Mapping[str, Mapping[str, Mapping[str, Any]]]  # `steps.Results.steps`


def table(steps: Measured, cpu: Mapping[str, Any] | None, facts: Mapping[str, Any], left_out: Mapping[str, str]) -> str:
    """A row per number.

    Args:
      steps: what was measured.
      cpu: the same of the CPU that prepared the carried folder, with its "cores"; None without.
      facts: `steps.Results.facts`.
      left_out: stages that cannot be measured here, and why.
    """
    rows = [("stage", "what", "measured", "goal", "met")]
    for stage in plan.STAGES:
        for name, step in steps.get(stage, {}).items():
            rows += _rows(stage, name, step, cpu)
        if stage in left_out:
            rows.append((stage, "all of it", f"left out, {left_out[stage]}", "", ""))
    return "\n".join(["", device_line(steps, facts), *map(str.rstrip, align(rows, left=5))])


def device_line(steps: Measured, facts: Mapping[str, Any]) -> str:
    """The device that all steps ran on, and of its machine what the stage machine found."""
    parts = [facts["device"], *["deterministic kernels"] * facts["deterministic"]]
    if found := steps.get("machine", {}).get("ceilings", {}).get("result"):
        parts += [
            f"{found['host_threads']} threads",
            *(f"{name} {found['versions'][name]}" for name in ("ldmjax", "jax")),
        ]
    return f"Device: {', '.join(parts)}."


def _rows(stage: str, name: str, step: Mapping[str, Any], cpu: Mapping[str, Any] | None) -> Iterator[Row]:
    """Of one step: its seconds, then its numbers."""
    note = f"{step['seconds']:.1f} s" + " (resumed)" * step["resumed"]
    yield stage, name, note if step["status"] == "done" else f"{step['status']} after {note}", "", ""
    result = step["result"]
    if not result:
        return
    if stage == "machine":
        yield from _machine(result)
    elif stage == "agreement":
        yield from _agreement(result)
    elif stage in ("benchmark", "pytorch"):
        yield from _benchmark(stage, name, result, cpu)
    elif stage == "main_job":
        yield from _main_job(step, result)
    elif stage == "science":
        yield stage, "records", str(len(result["records"])), "", ""


def _judged(
    stage: str, what: str, value: float | None, shown: str, *, most: float | None = None, least: float | None = None
) -> Row:
    """A row with a goal; a value that is not finite (None) does not meet it."""
    if most is None and least is None:
        return stage, what, shown, "", ""
    met = value is not None and (value <= most if most is not None else value >= least)
    return stage, what, shown, f"<= {most:g}" if most is not None else f">= {least:g}", "yes" if met else "no"


def _machine(result):
    yield "machine", "copy", f"{result['copy_bytes_per_second'] / 1e9:.3g} GB/s", "", ""
    for precision, rate in result["operations_per_second"].items():
        yield "machine", f"products of side {result['product_side']}, {precision}", f"{rate / 1e12:.3g} TFLOP/s", "", ""
    yield "machine", "one step of a loop of one kernel", f"{1e6 * result['loop_step_seconds']:.3g} us", "", ""
    yield "machine", "one call of a program", f"{1e6 * result['call_seconds']:.3g} us", "", ""


UNITS = {
    "bits": "bits that differ", "normals": "normals, largest difference", "losses": "losses, largest relative difference",
    "deviation": "W2 curve from the exact law, standard errors",
}  # fmt: skip


def _agreement(result):
    for part, row in result.items():
        for key, words in UNITS.items():
            if key in row:
                shown = "not finite" if row[key] is None else f"{row[key]:.3g}"
                yield _judged("agreement", f"{part}: {words}", row[key], shown, most=agreement.LIMITS[key])
        yield "agreement", f"{part}: twice the same bits", "yes" if row["equal"] else "no", "", ""


def _benchmark(stage, name, result, cpu):
    for row in result.get("bounds", []):
        goal = LEAST_SHARE if row["runs"] == GOAL_RUNS else None
        share = row["bound_seconds"] / row["seconds"]
        what = f"{name}: MLP, share of the bound ({row['set_by']})"
        yield _judged(stage, what, share, f"{100 * share:.0f} %, {1 / row['seconds']:.4g} run-steps/s", least=goal)
        if cpu:
            yield _speedup(stage, f"{name}: MLP", row["runs"], cpu["bounds"][0]["seconds"] / row["seconds"], cpu)
    contests = result.get("contests", {})
    if "bounds" not in result and "runs_linear" in {**contests, **result["skipped"]}:  # they are asked for together
        yield stage, f"{name}: MLP", "left out by experiments.benchmark", "", ""
    for contest, row in contests.items():
        ours, theirs = (_median(row[key]) for key in ("ours", "theirs"))
        if contest == "runs_linear":  # "theirs" is a step of all runs, "ours" of a quarter of them
            runs = 4 * result["runs"]
            yield stage, f"{name}: linear scores", f"{runs / theirs:.4g} run-steps/s", "", ""
            if cpu:
                there = _median(cpu["contests"]["runs_linear"]["theirs"]) / cpu["bounds"][0]["runs"]
                yield _speedup(stage, f"{name}: linear scores", runs, there * runs / theirs, cpu)
        else:
            goal = LEAST_RATIO if stage == "pytorch" else None
            what = f"{name}: {row['sides']['opponent']} / ours"
            yield _judged(
                stage,
                what,
                theirs / ours,
                f"{theirs / ours:.3g}, ours {ours:.3g} s per {row['sides']['unit']}",
                least=goal,
            )
    for contest, reason in result["skipped"].items():
        yield stage, f"{name}: {contest}", f"not held: {reason}", "", ""


def _speedup(stage, what, runs, ratio, cpu):
    goal = LEAST_SPEEDUP if runs == GOAL_RUNS else None
    return _judged(
        stage,
        f"{what}, times {cpu['cores']} cores ({cpu['bounds'][0]['runs']} runs)",
        ratio,
        f"{ratio:.3g}",
        least=goal,
    )


def _median(values):
    return sorted(values)[len(values) // 2]


def _main_job(step, result):
    changed = len(result["changed"])
    yield _judged("main_job", f"verdicts that changed, of {result['verdicts']}", changed, str(changed), most=0.0)
    for line in result["changed"]:
        yield "main_job", f"  {line}", "", "", ""
    for metric, row in result["curves"].items():
        what = f"{metric}: of {row['points']} points, further apart than {reading.WITHIN:g} standard errors"
        largest = "infinite" if row["largest"] is None else f"{row['largest']:.3g}"
        yield _judged("main_job", what, row["apart"], f"{row['apart']}, largest {largest}", most=0.0)
    seconds = step["seconds"]
    what = "seconds with start and compilation" + ", since it was resumed" * step["resumed"]
    yield _judged(
        "main_job",
        what,
        seconds,
        f"{seconds:.1f}, {result['seconds_there']:.0f} there",
        most=None if step["resumed"] else MOST_SECONDS,
    )
