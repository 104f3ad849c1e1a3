"""Tables, records and figures of the contest."""

from pathlib import Path

import numpy as np
from matplotlib import ticker

from experiments.disentangled import contest
from experiments.disentangled.setup import SAMPLERS, Config, Run
from ldmjax import plotting

METRIC_NAMES = {
    "flow_error": "RMS distance to the exact flow",
    "trajectory_error": "RMS distance to the exact-score chain",
    "sliced_w2_squared": "squared sliced W2",
    "rel_fd": "squared Fréchet distance / total variance",
}
SAMPLER_NAMES = {"ddim": "DDIM", "dpmpp_2m": "2M", "ddim_all": "DDIM"}


def tables(outcome: contest.TaskOutcome, config: Config) -> str:
    """The three tables of one task."""
    parts = _states_table(outcome, config), _experts_table(outcome, config), _contest_table(outcome, config)
    return "\n\n".join("\n".join(lines) for lines in parts)


def _values(runs: list[Run], sampler: str, metric: str) -> np.ndarray:
    return np.array([run.errors[sampler][metric][-1] for run in runs])


def _spread(values: np.ndarray, digits: int = 4) -> str:
    return f"{np.mean(values):.{digits}f} ±{(values.max() - values.min()) / 2:.{digits}f}"


def _states_table(outcome: contest.TaskOutcome, config: Config) -> list[str]:
    """Training on few levels against many, sampling on few against many, for the joint model on DDPM's ladder."""
    metric, short, long = contest.primary_metric(outcome.task), config.levels, config.many_levels
    lines = [
        f"{outcome.task.name}: {short} levels against {long}, joint model on {contest.BASELINE_LADDER}; "
        f"{METRIC_NAMES[metric]}, mean and half range of {len(config.seeds)} seeds",
        f"{'trained on':>10} {'predicts':>9} {f'DDIM, {short}':>18} {f'2M, {short}':>18} {f'DDIM, {long}':>18}",
    ]
    least = min(config.samples_per_state)
    for levels in (short, long):
        for p in contest.PARAMETERISATIONS:
            runs = outcome.reported[contest.BASELINE_LADDER, levels, 1, least, p]
            cells = [_spread(_values(runs, s, metric)) for s in SAMPLERS]
            cells.append(_spread(_values(runs, "ddim_all", metric)) if levels == long else "-")
            lines.append(f"{levels:>10} {p:>9} " + " ".join(f"{cell:>18}" for cell in cells))
    if metric == "sliced_w2_squared":
        lines.append(f"the training samples against those held out: {outcome.task.sliced_floor(config.samples):.4f}")
    return lines


def _ratio(
    runs: list[Run],
    references: list[Run],
    sampler: str,
    metric: str,
    unit: str,
    chains: tuple[str, ...] = contest.ALL_CHAINS,
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
    sign = {"never": "<", "at once": ">"}
    others = {reached: [f.bound[unit] for f in found if f.reached == reached] for reached in sign}
    missing = [f"{sign[r]}{np.median(b):.2g} in {len(b)}" for r, b in others.items() if b]
    ratios = [f.ratio[unit] for f in found if f.reached == "yes"]
    if not ratios:
        return "; ".join(missing)
    median, low, high = contest.median_and_range(ratios)
    return "; ".join([f"{median:.3g}", *missing]) if missing else f"{median:.3g} [{low:.2g}, {high:.2g}]"


def _experts_table(outcome: contest.TaskOutcome, config: Config) -> list[str]:
    """Joint (K = 1) to complete disentanglement (K = T), each against the joint model of the same parameterisation."""
    metric = contest.primary_metric(outcome.task)
    known = outcome.task.exact is not None
    sampler, least = outcome.best[1], min(config.samples_per_state)
    lines = [
        f"{outcome.task.name}: K experts on the {config.levels} levels of {outcome.ladder}, sampled by "
        f"{SAMPLER_NAMES[sampler]}; speed-up to the final quality of the joint model that predicts the same, {least} per state",
        f"{'predicts':>8} {'per state':>9} {'K':>3} {'parameters':>10} {'MB':>6} {'trajectory':>10} {'sliced W2²':>16} "
        f"{'relFD':>7} {'steps x':>18} {'samples x':>18} {'wall x':>18}",
    ]
    for p in contest.PARAMETERISATIONS:
        for per_state in config.samples_per_state:
            references = outcome.reported[outcome.ladder, config.levels, 1, least, p]
            for k in config.experts:
                runs = outcome.reported[outcome.ladder, config.levels, k, per_state, p]
                trajectory = f"{_values(runs, sampler, 'trajectory_error').mean():.4f}" if known else "-"
                ratios = " ".join(
                    f"{_ratio(runs, references, sampler, metric, unit, (sampler,)):>18}" for unit in contest.UNITS
                )
                lines.append(
                    f"{p:>8} {per_state:>9} {k:>3} {runs[0].parameters:>10} {runs[0].training_bytes / 1e6:>6.2f} "
                    f"{trajectory:>10} {_spread(_values(runs, sampler, 'sliced_w2_squared')):>16} "
                    f"{_values(runs, sampler, 'rel_fd').mean():>7.4f} {ratios}"
                )
    floor = f"{config.samples} draws of the law" if known else "the training samples against those held out"
    lines.append(f"squared sliced W2 of {floor}: {outcome.task.sliced_floor(config.samples):.4f}")
    return lines


def ingredients(outcome: contest.TaskOutcome, config: Config) -> list[tuple[str, tuple, str]]:
    """(what changed, kind, sampler) from the baseline to the chosen setting, then the joint v model at equal terms."""
    kind, sampler = outcome.best
    ladder, levels, experts, per_state, p = kind
    least = min(config.samples_per_state)
    base = contest.BASELINE_LADDER
    steps = [
        (f"its chain of {levels}, DDIM", (base, config.many_levels, 1, least, "noise"), "ddim"),
        (f"+ sampler {SAMPLER_NAMES[sampler]}", (base, config.many_levels, 1, least, "noise"), sampler),
        (f"+ {levels} training levels", (base, levels, 1, least, "noise"), sampler),
        (f"+ ladder {ladder}", (ladder, levels, 1, least, "noise"), sampler),
        (f"+ predicts {p}", (ladder, levels, 1, least, p), sampler),
        (f"+ {per_state} per state", (ladder, levels, 1, per_state, p), sampler),
        (f"+ K = {experts}", kind, sampler),
        (f"joint v, T = {config.many_levels}", (base, config.many_levels, 1, least, "v"), sampler),
        (f"joint v, T = {levels}, {ladder}", (ladder, levels, 1, least, "v"), sampler),
    ]
    return [step for i, step in enumerate(steps) if i == 0 or step[1:] != steps[i - 1][1:]]


def _contest_table(outcome: contest.TaskOutcome, config: Config) -> list[str]:
    metric = contest.primary_metric(outcome.task)
    references = outcome.reported[contest.baseline_kind(config)]
    target = np.mean([contest.final_target(r, metric).error for r in references])
    lines = [
        f"{outcome.task.name}: the contest. Chosen on seed {config.selection_seed}, reported on seeds "
        f"{','.join(map(str, config.seeds))}: median [least, largest]. Target: the baseline's final {METRIC_NAMES[metric]} "
        f"by the best of its chains, {target:.4f}",
        f"{'setting':<32} {'rate':>6} {'final error':>16} {'steps x':>18} {'samples x':>18} {'wall x':>18}",
    ]
    rate = references[0].setting.learning_rate
    ones = " ".join(f"{1:>18}" for _ in contest.UNITS)
    lines.append(f"{f'baseline: joint noise, T = {config.many_levels}':<32} {rate:>6g} {target:>16.4f} {ones}")
    for label, kind, sampler in ingredients(outcome, config):
        runs = outcome.reported[kind]
        ratios = " ".join(f"{_ratio(runs, references, sampler, metric, unit):>18}" for unit in contest.UNITS)
        final = _spread(_values(runs, sampler, metric))
        label += ", chosen" if (kind, sampler) == outcome.best else ""
        lines.append(f"{label:<32} {runs[0].setting.learning_rate:>6g} {final:>16} {ratios}")
    return lines


def make_records(outcome: contest.TaskOutcome, config: Config) -> list[dict]:
    """The lines of records.jsonl, one per run, without what varies from machine to machine."""
    metric = contest.primary_metric(outcome.task)
    baseline = {run.setting.seed: run for run in outcome.reported[contest.baseline_kind(config)]}
    rows = []
    for role, run in all_runs(outcome):
        s = run.setting
        row = {
            "name": run_name(outcome, role, run), "task": outcome.task.name, "role": role, "ladder": s.ladder,
            "levels": s.levels, "experts": s.experts, "samples_per_state": s.samples_per_state,
            "parameterisation": s.parameterisation, "learning_rate": s.learning_rate, "seed": s.seed,
            "steps": int(run.steps[-1]), "sample_gradients": int(run.sample_gradients[-1]), "parameters": run.parameters,
            "training_bytes": run.training_bytes, "diverged": run.diverged, "primary_metric": metric,
            "final": {sampler: {k: float(v[-1]) for k, v in errors.items()} for sampler, errors in run.errors.items()},
            "chosen": any((s.kind, sampler) == outcome.best for sampler in SAMPLERS) and role == "reported",
        }  # fmt: skip
        if role == "reported":
            row["speed_up"] = {
                sampler: {
                    f"{share:g}": _speed_up_fields(run, baseline[s.seed], sampler, metric, share)
                    for share in (0.25, 0.5, 1.0)
                }
                for sampler in SAMPLERS
            }
        rows.append(row)
    return rows


def _speed_up_fields(run: Run, reference: Run, sampler: str, metric: str, share: float) -> dict:
    target = contest.final_target(reference, metric, share=share)
    found = contest.speed_up(run, sampler, metric, target)
    units = [unit for unit in contest.UNITS if unit != "wall_clock"]
    return {
        "target": target.error,
        "target_chain": target.chain,
        "reached": found.reached,
        **{unit: found.ratio[unit] for unit in units},
        **{f"{unit}_bound": None if found.reached == "yes" else found.bound[unit] for unit in units},
    }


def all_runs(outcome: contest.TaskOutcome) -> list[tuple[str, Run]]:
    """(role, run): those of the selection seed, then those reported."""
    reported = [("reported", run) for runs in outcome.reported.values() for run in runs]
    return [("selection", run) for run in outcome.selection] + reported


def run_name(outcome: contest.TaskOutcome, role: str, run: Run) -> str:
    """Unique among the runs of the experiment."""
    s = run.setting
    return (
        f"{outcome.task.name}/{s.ladder}/T{s.levels}/K{s.experts}/m{s.samples_per_state}/{s.parameterisation}"
        f"/lr{s.learning_rate:g}/seed{s.seed}"
    )


def curve_arrays(outcomes: list[contest.TaskOutcome]) -> dict[str, np.ndarray]:
    """The arrays of curves.npz; run order is that of records.jsonl; metrics that a task lacks are NaN."""
    runs = [(outcome, role, run) for outcome in outcomes for role, run in all_runs(outcome)]
    arrays = {
        "name": np.array([run_name(*entry) for entry in runs]),
        "sequential_steps": np.stack([run.steps for *_, run in runs]),
        "sample_gradients": np.stack([run.sample_gradients for *_, run in runs]),
    }
    for sampler in SAMPLERS:
        for metric in METRIC_NAMES:
            missing = np.full(len(runs[0][2].steps), np.nan)
            arrays[f"{sampler}_{metric}"] = np.stack([run.errors[sampler].get(metric, missing) for *_, run in runs])
    return arrays


def seconds_of(outcomes: list[contest.TaskOutcome]) -> dict[str, float]:
    """Training seconds of every run on this machine, for metadata.json."""
    return {
        run_name(outcome, role, run): round(float(run.seconds[-1]), 4)
        for outcome in outcomes
        for role, run in all_runs(outcome)
    }


def save_figure(workdir: Path, outcome: contest.TaskOutcome, config: Config) -> None:
    """Writes contest_TASK.png: error against steps and against samples, and final error against K."""
    metric = contest.primary_metric(outcome.task)
    best_kind, sampler = outcome.best
    figure, axes = plotting.new_figure(
        1, 3, width=15.5, height=5.6,
        title=f"{outcome.task.name}: few noise levels and independent experts against the joint model on {config.many_levels}",
        caption=f"Left and middle: lines are means, bands the range of {len(config.seeds)} seeds; every chain has "
        f"{config.levels} levels. Grey line: final quality of the baseline by the best of its chains. "
        f"Right: at the end of training, {SAMPLER_NAMES[sampler]} on {config.levels} levels of {outcome.ladder}; "
        f"{_budgets(config)}. One sample gradient is one noised sample through one expert.",
    )  # fmt: skip
    for panel, unit in zip(axes[0, :2], ("sequential_steps", "sample_gradients"), strict=True):
        _curves_panel(panel, outcome, config, unit)
    _experts_panel(axes[0, 2], outcome, config)
    for panel in axes[0]:
        panel.set_ylabel(
            f"{METRIC_NAMES[metric]} (data units{'²' if metric == 'sliced_w2_squared' else ''})", fontsize=9
        )
        panel.grid(alpha=0.25, which="both")
        panel.legend(fontsize=8, handlelength=3.2, loc="upper right")
    name = "".join(c if c.isalnum() or c in "._-" else "_" for c in outcome.task.name)
    plotting.save(figure, workdir / f"contest_{name}.png")


def _budgets(config: Config) -> str:
    """What every model was trained on, in words."""
    return ", ".join(f"{m} samples per state: {config.steps(m)} steps" for m in config.samples_per_state)


def _curves_panel(panel, outcome: contest.TaskOutcome, config: Config, unit: str) -> None:
    metric, least = contest.primary_metric(outcome.task), min(config.samples_per_state)
    best_kind, best_sampler = outcome.best
    shown = [
        (f"joint, T = {config.many_levels}, noise, DDIM (baseline)", contest.baseline_kind(config), "ddim"),
        (f"joint, T = {config.many_levels}, v, {SAMPLER_NAMES[best_sampler]}",
         (contest.BASELINE_LADDER, config.many_levels, 1, least, "v"), best_sampler),
        (f"K = {max(config.experts)}, v, {least} per state, {SAMPLER_NAMES[best_sampler]}",
         (outcome.ladder, config.levels, max(config.experts), least, "v"), best_sampler),
        (f"chosen: K = {best_kind[2]}, {best_kind[4]}, {best_kind[3]} per state, {SAMPLER_NAMES[best_sampler]}",
         best_kind, best_sampler),
    ]  # fmt: skip
    lowest, highest = np.inf, 0.0
    for i, (label, kind, sampler) in enumerate(shown):
        runs = outcome.reported[kind]
        cost = runs[0].steps if unit == "sequential_steps" else runs[0].sample_gradients
        errors = np.stack(
            [run.errors[sampler][metric] for run in runs if not run.diverged] or [np.full(len(cost), np.nan)]
        )
        style = plotting.line_style(i)
        panel.plot(cost, errors.mean(axis=0), label=label, **style)
        panel.fill_between(cost, errors.min(axis=0), errors.max(axis=0), color=style["color"], alpha=0.15, linewidth=0)
        if np.isfinite(errors).all():
            # The baseline starts far off: the others set the range.
            lowest, highest = min(lowest, errors.min()), max(highest, errors.max() if i else 0.0)
    targets = [contest.final_target(r, metric).error for r in outcome.reported[contest.baseline_kind(config)]]
    targets = [target for target in targets if np.isfinite(target)]
    if targets:
        panel.axhline(np.mean(targets), color="0.5", linewidth=1)
        highest = max(highest, np.mean(targets))
    panel.set(xscale="log", yscale="log")
    if lowest < highest:
        panel.set_ylim(0.8 * lowest, highest * (highest / lowest) ** 0.6)  # room for the legend
    panel.set_xlabel("optimiser steps in sequence" if unit == "sequential_steps" else "sample gradients, all experts")


def _experts_panel(panel, outcome: contest.TaskOutcome, config: Config) -> None:
    metric, sampler = contest.primary_metric(outcome.task), outcome.best[1]
    index = 0
    for p in contest.PARAMETERISATIONS:
        for per_state in config.samples_per_state:
            kinds = [(outcome.ladder, config.levels, k, per_state, p) for k in config.experts]
            values = np.stack([_values(outcome.reported[kind], sampler, metric) for kind in kinds])
            values = np.where(np.isfinite(values), values, np.nan)  # a gap where a seed diverged
            style = plotting.line_style(index)
            panel.plot(
                config.experts, values.mean(axis=1), label=f"{p}, {per_state} samples per state and step", **style
            )
            panel.fill_between(
                config.experts, values.min(axis=1), values.max(axis=1), color=style["color"], alpha=0.15, lw=0
            )
            index += 1
    panel.set(xscale="log", yscale="log")
    panel.set_xticks(config.experts, [str(k) for k in config.experts])
    panel.xaxis.set_minor_locator(ticker.NullLocator())
    panel.yaxis.set_minor_formatter(ticker.LogFormatter(minor_thresholds=(2, 0.5)))
    low, high = panel.get_ylim()
    panel.set_ylim(low, high * (high / low) ** 0.35)  # room for the legend
    panel.set_xlabel(f"K, experts (1: joint; {config.levels}: one model per level)")
