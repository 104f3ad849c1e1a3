"""Three tables and a figure of every task."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from matplotlib import ticker

from experiments.disentangled import BASELINE_LADDER, Config, contest
from experiments.disentangled.contest import PARAMETERISATIONS, SAMPLERS, UNITS, Run, Setting
from experiments.launch import Report, Results
from ldmjax import plotting
from ldmjax.tables import table

METRIC_NAMES = {
    "flow_error": "RMS distance to the exact flow",
    "trajectory_error": "RMS distance to the exact-score chain",
    "sliced_w2_squared": "squared sliced W2",
    "rel_fd": "squared Fréchet distance / total variance",
}
SAMPLER_NAMES = {"ddim": "DDIM", "dpmpp_2m": "2M", "ddim_all": "DDIM"}
SPEED_UPS = dict(zip(UNITS, ("steps x", "samples x", "wall x"), strict=True))


class Outcome(NamedTuple):
    """One task: its runs of the reported seeds by kind, the ladder of its grid, the chosen (kind, sampler)."""

    task: str
    config: Config
    metric: str
    floor: float | None
    ladder: str
    runs: dict[tuple, list[Run]]
    best: tuple[tuple, str]

    @property
    def least(self) -> int:
        """The least of the samples per state."""
        return min(self.config.samples_per_state)

    @property
    def exact(self) -> bool:
        """Whether the exact score is known."""
        return self.metric == "flow_error"

    def finals(self, kind: tuple, chain: str, metric: str) -> np.ndarray:
        """Errors at the end of training, one per seed."""
        return np.array([run.errors[chain][metric][-1] for run in self.runs[kind]])


def report(results: Results) -> Report:
    """Few levels against many, every K against the joint model, the contest; and its figure."""
    outcomes = read_outcomes(results)
    tables = [f"{states_table(o)}\n\n{experts_table(o)}\n\n{contest_table(o)}" for o in outcomes]
    names = ["".join(c if c.isalnum() or c in "._-" else "_" for c in o.task) for o in outcomes]
    figures = {f"contest_{name}": _draw(outcome) for name, outcome in zip(names, outcomes, strict=True)}
    return Report(text="\n\n".join(tables), figures=figures)


def read_outcomes(results: Results) -> list[Outcome]:
    """The tasks of the results."""
    found, config = {}, results.config
    for i, row in enumerate(results.rows):
        found.setdefault(row["task"], []).append((row, _read_run(results, i)))
    outcomes = []
    for task, pairs in found.items():
        metric, last = pairs[0][0]["primary_metric"], pairs[-1][0]
        selection = [run for row, run in pairs if row["role"] == "selection"]
        chosen, runs = contest.best_rates(selection, metric), {}
        for row, run in pairs:
            if row["role"] == "reported":
                runs.setdefault(run.setting.kind, []).append(run)
        best = contest.choose_setting(chosen, config.baseline, metric, levels=config.levels)
        # Every K but 1 and every larger batch is of the grid; without them both are on the baseline's ladder or not.
        ladder = next((kind[0] for kind in runs if kind[0] != BASELINE_LADDER), BASELINE_LADDER)
        outcomes.append(Outcome(task, config, metric, last.get("sliced_floor"), ladder, runs, best))
    return outcomes


def _read_run(results: Results, index: int) -> Run:
    row, arrays = results.rows[index], results.arrays
    errors = {
        chain: {metric: np.array([np.inf if value is None else value]) for metric, value in final.items()}
        for chain, final in row["final"].items()
    }
    for chain in SAMPLERS:
        errors[chain] |= {m: arrays[f"{chain}_{m}"][index] for m in METRIC_NAMES if m in errors[chain]}
    steps = arrays["sequential_steps"][index]
    seconds = np.asarray(results.metadata["training_seconds"][row["name"]])
    return Run(
        setting=Setting(**{name: row[name] for name in Setting._fields}),
        steps=steps,
        sample_gradients=arrays["sample_gradients"][index],
        # Workdirs of earlier versions have those of the whole training alone.
        seconds=seconds if seconds.ndim else np.full(len(steps), np.nan),
        errors=errors,
        parameters=row["parameters"],
        training_bytes=row["training_bytes"],
        diverged=row["diverged"],
    )


def _spread(values: np.ndarray) -> str:
    return f"{np.mean(values):.4f} ±{(values.max() - values.min()) / 2:.4f}"


def states_table(outcome: Outcome) -> str:
    """Training on few levels against many, sampling on few against many, for the joint model on DDPM's ladder."""
    metric, short, long = outcome.metric, outcome.config.levels, outcome.config.many_levels
    rows = []
    for levels in (short, long):
        for p in PARAMETERISATIONS:
            kind = (BASELINE_LADDER, levels, 1, outcome.least, p)
            row = {"trained on": levels, "predicts": p}
            row |= {f"{SAMPLER_NAMES[s]}, {short}": _spread(outcome.finals(kind, s, metric)) for s in SAMPLERS}
            row[f"DDIM, {long}"] = _spread(outcome.finals(kind, "ddim_all", metric)) if levels == long else None
            rows.append(row)
    title = (
        f"{outcome.task}: {short} levels against {long}, joint model on {BASELINE_LADDER}; "
        f"{METRIC_NAMES[metric]}, mean and half range of {len(outcome.config.seeds)} seeds"
    )
    return table(rows, title=title, left=0) + ("" if outcome.exact else _floor_line(outcome))


def _floor_line(outcome: Outcome) -> str:
    if outcome.floor is None:
        return ""
    samples = (
        f"{outcome.config.samples} draws of the law" if outcome.exact else "the training samples against those held out"
    )
    return f"\nsquared sliced W2 of {samples}: {outcome.floor:.4f}"


def _ratio(
    runs: Sequence[Run], references: Sequence[Run], sampler: str, metric: str, unit: str, chains=contest.ALL_CHAINS
) -> str:
    """Median [least, largest] speed-up over seeds; "<1 in 2": two seeds never got there, which bounds theirs by 1.

    ">" are seeds that were there by the first checkpoint. Seeds whose reference diverged set no target.
    """
    targets = [contest.final_target(reference, metric, chains=chains) for reference in references]
    found = [
        contest.speed_up(run, sampler, metric, target)
        for run, target in zip(runs, targets, strict=True)
        if np.isfinite(target.error)
    ]
    if not found:
        return "no target"
    if any(np.isnan(f.bound[unit]) for f in found):
        return "not kept"
    sign = {"never": "<", "at once": ">"}
    others = {reached: [f.bound[unit] for f in found if f.reached == reached] for reached in sign}
    missing = [f"{sign[r]}{np.median(b):.2g} in {len(b)}" for r, b in others.items() if b]
    ratios = [f.ratio[unit] for f in found if f.reached == "yes"]
    if not ratios:
        return "; ".join(missing)
    median = f"{np.median(ratios):.3g}"
    return "; ".join([median, *missing]) if missing else f"{median} [{min(ratios):.2g}, {max(ratios):.2g}]"


def experts_table(outcome: Outcome) -> str:
    """Joint (K = 1) to complete disentanglement (K = T), each against the joint model of the same parameterisation."""
    config, metric, sampler, rows = outcome.config, outcome.metric, outcome.best[1], []
    for p in PARAMETERISATIONS:
        references = outcome.runs[outcome.ladder, config.levels, 1, outcome.least, p]
        for per_state in config.samples_per_state:
            for k in config.experts:
                kind = (outcome.ladder, config.levels, k, per_state, p)
                runs = outcome.runs[kind]
                row = {
                    "predicts": p,
                    "per state": per_state,
                    "K": k,
                    "parameters": runs[0].parameters,
                    "MB": runs[0].training_bytes / 1e6,
                    "trajectory": outcome.finals(kind, sampler, "trajectory_error").mean() if outcome.exact else None,
                    "sliced W2²": _spread(outcome.finals(kind, sampler, "sliced_w2_squared")),
                    "relFD": outcome.finals(kind, sampler, "rel_fd").mean(),
                }
                ratios = {n: _ratio(runs, references, sampler, metric, u, (sampler,)) for u, n in SPEED_UPS.items()}
                rows.append(row | ratios)
    title = (
        f"{outcome.task}: K experts on the {config.levels} levels of {outcome.ladder}, sampled by {SAMPLER_NAMES[sampler]}; "
        f"speed-up to the final quality of the joint model that predicts the same, {outcome.least} per state"
    )
    columns = dict.fromkeys(rows[0], "") | {"MB": ".2f", "trajectory": ".4f", "relFD": ".4f"}
    return table(rows, columns, title=title, left=0) + _floor_line(outcome)


def ingredients(outcome: Outcome) -> list[tuple[str, tuple, str]]:
    """(what changed, kind, sampler) from the baseline to the chosen setting, then the joint v model at equal terms."""
    kind, sampler = outcome.best
    ladder, levels, experts, per_state, p = kind
    base, many, least = BASELINE_LADDER, outcome.config.many_levels, outcome.least
    steps = [
        (f"its chain of {levels}, DDIM", (base, many, 1, least, "noise"), "ddim"),
        (f"+ sampler {SAMPLER_NAMES[sampler]}", (base, many, 1, least, "noise"), sampler),
        (f"+ {levels} training levels", (base, levels, 1, least, "noise"), sampler),
        (f"+ ladder {ladder}", (ladder, levels, 1, least, "noise"), sampler),
        (f"+ predicts {p}", (ladder, levels, 1, least, p), sampler),
        (f"+ {per_state} per state", (ladder, levels, 1, per_state, p), sampler),
        (f"+ K = {experts}", kind, sampler),
        (f"joint v, T = {many}", (base, many, 1, least, "v"), sampler),
        (f"joint v, T = {levels}, {ladder}", (ladder, levels, 1, least, "v"), sampler),
    ]
    return [step for i, step in enumerate(steps) if i == 0 or step[1:] != steps[i - 1][1:]]


def contest_table(outcome: Outcome) -> str:
    """From the baseline to the chosen setting, one change at a time."""
    config, metric = outcome.config, outcome.metric
    references = outcome.runs[config.baseline]
    target = np.mean([contest.final_target(r, metric).error for r in references])
    first = {
        "setting": f"baseline: joint noise, T = {config.many_levels}",
        "rate": references[0].setting.learning_rate,
        "final error": f"{target:.4f}",
    }
    rows = [first | dict.fromkeys(SPEED_UPS.values(), "1")]
    for label, kind, sampler in ingredients(outcome):
        runs = outcome.runs[kind]
        label += ", chosen" if (kind, sampler) == outcome.best else ""
        row = {"setting": label, "rate": runs[0].setting.learning_rate}
        row["final error"] = _spread(outcome.finals(kind, sampler, metric))
        rows.append(row | {n: _ratio(runs, references, sampler, metric, unit) for unit, n in SPEED_UPS.items()})
    title = (
        f"{outcome.task}: the contest. Chosen on seed {config.selection_seed}, reported on seeds "
        f"{','.join(map(str, config.seeds))}: median [least, largest]. Target: the baseline's final {METRIC_NAMES[metric]} "
        f"by the best of its chains, {target:.4f}"
    )
    return table(rows, dict.fromkeys(rows[0], "") | {"rate": "g"}, title=title)


def _draw(outcome: Outcome):
    """Error against steps and against samples, and final error against K."""
    config, sampler = outcome.config, outcome.best[1]
    budgets = ", ".join(f"{m} samples per state: {config.steps(m)} steps" for m in config.samples_per_state)
    figure, axes = plotting.new_figure(
        1,
        3,
        width=15.5,
        height=5.6,
        title=f"{outcome.task}: few noise levels and independent experts against the joint model on {config.many_levels}",
        caption=f"Left and middle: lines are means, bands the range of {len(config.seeds)} seeds; every chain has "
        f"{config.levels} levels. Grey line: final quality of the baseline by the best of its chains. "
        f"Right: at the end of training, {SAMPLER_NAMES[sampler]} on {config.levels} levels of {outcome.ladder}; "
        f"{budgets}. One sample gradient is one noised sample through one expert.",
    )
    _draw_curves(axes[0, 0], outcome, "sequential_steps", "optimiser steps in sequence")
    _draw_curves(axes[0, 1], outcome, "sample_gradients", "sample gradients, all experts")
    _draw_experts(axes[0, 2], outcome)
    unit = "data units" if outcome.exact else "data units²"
    for panel in axes[0]:
        panel.set_ylabel(f"{METRIC_NAMES[outcome.metric]} ({unit})", fontsize=9)
        panel.grid(alpha=0.25, which="both")
        panel.legend(fontsize=8, handlelength=3.2, loc="upper right")
    return figure


def _draw_curves(panel, outcome: Outcome, unit: str, label: str) -> None:
    config, metric, least = outcome.config, outcome.metric, outcome.least
    kind, sampler = outcome.best
    most, name = max(config.experts), SAMPLER_NAMES[sampler]
    shown = {
        f"joint, T = {config.many_levels}, noise, DDIM (baseline)": (config.baseline, "ddim"),
        f"joint, T = {config.many_levels}, v, {name}": ((*config.baseline[:4], "v"), sampler),
        f"K = {most}, v, {least} per state, {name}": ((outcome.ladder, config.levels, most, least, "v"), sampler),
        f"chosen: K = {kind[2]}, {kind[4]}, {kind[3]} per state, {name}": (kind, sampler),
    }
    lowest, highest = np.inf, 0.0
    for i, (line, (kind, sampler)) in enumerate(shown.items()):
        runs = outcome.runs[kind]
        cost = runs[0].costs[unit]
        errors = [run.errors[sampler][metric] for run in runs if not run.diverged] or [np.full(len(cost), np.nan)]
        _draw_band(panel, cost, np.stack(errors, axis=1), i, line)
        if np.isfinite(errors).all():
            # The baseline starts far off: the others set the range.
            lowest, highest = min(lowest, np.min(errors)), max(highest, np.max(errors) if i else 0.0)
    targets = [contest.final_target(r, metric).error for r in outcome.runs[config.baseline]]
    targets = [target for target in targets if np.isfinite(target)]
    if targets:
        panel.axhline(np.mean(targets), color="0.5", linewidth=1)
        highest = max(highest, np.mean(targets))
    panel.set(xscale="log", yscale="log", xlabel=label)
    if lowest < highest:
        panel.set_ylim(0.8 * lowest, highest * (highest / lowest) ** 0.6)  # room for the legend


def _draw_experts(panel, outcome: Outcome) -> None:
    config, metric, sampler = outcome.config, outcome.metric, outcome.best[1]
    lines = [(p, m) for p in PARAMETERISATIONS for m in config.samples_per_state]
    for i, (p, m) in enumerate(lines):
        kinds = [(outcome.ladder, config.levels, k, m, p) for k in config.experts]
        values = np.stack([outcome.finals(kind, sampler, metric) for kind in kinds])
        values = np.where(np.isfinite(values), values, np.nan)  # a gap where a seed diverged
        _draw_band(panel, config.experts, values, i, f"{p}, {m} samples per state and step")
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(config.experts, [str(k) for k in config.experts])
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    panel.set_xlabel(f"K, experts (1: joint; {config.levels}: one model per level)")


def _draw_band(panel, x, values: np.ndarray, index: int, label: str) -> None:
    """The mean over seeds, ``[X, seeds]``, and their range."""
    style = plotting.line_style(index)
    panel.plot(x, values.mean(axis=1), label=label, **style)
    panel.fill_between(x, values.min(axis=1), values.max(axis=1), color=style["color"], alpha=0.15, linewidth=0)
