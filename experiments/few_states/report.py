"""What the command prints and what it writes to records.jsonl and curves.npz."""

import dataclasses

import numpy as np

from experiments.few_states import Config, Outcome, chains
from experiments.few_states.exact import SAMPLERS, USUAL
from experiments.few_states.learned import METRICS
from experiments.few_states.mixture import levels_to_floor

MARKS = {"does not": " ", "only the floor": "f", "matches": "="}
SHORT = {"rel_fd": "rel. FD", "sliced_w2_squared": "sliced W2^2"}


def make_records(outcome: Outcome, config: Config) -> list[dict]:
    """Lines of records.jsonl; kinds exact, verdict, mixture, mixture_floor, learned, difference, acceptance."""
    rows = [{"kind": "exact", **dataclasses.asdict(c)} for c in outcome.chains]
    rows += [
        {"kind": "verdict", "tolerance": config.tolerance, "usual_rel_w2": outcome.usual, **dataclasses.asdict(c)}
        for c in outcome.comparisons
    ]
    rows += [{"kind": "mixture", "samples": config.samples, **dataclasses.asdict(c)} for c in outcome.mixture]
    rows += [
        {
            "kind": "mixture_floor",
            "ladder": ladder,
            "sampler": sampler,
            "samples": config.samples,
            "sliced_w2_squared_floor": outcome.known["floor"],
            "sliced_w2_squared_flow": outcome.known["flow"],
            "levels_to_floor": levels_to_floor(outcome.mixture, ladder, sampler),
        }
        for ladder, sampler in dict.fromkeys((c.ladder, c.sampler) for c in outcome.mixture)
    ]
    for chain in outcome.learned:
        row = {"kind": "learned", "ladder": config.learned_ladder, "samples": config.samples}
        row |= {f.name: getattr(chain, f.name) for f in dataclasses.fields(chain) if f.name not in ("values", "floors")}
        for metric in METRICS:
            value, error = chains.estimate(chain.values[metric])
            row |= {metric: value, f"{metric}_error": error, f"{metric}_floor": chain.floors[metric]}
        rows.append(row)
    rows += [{"kind": "difference", **dataclasses.asdict(d)} for d in outcome.differences]
    return rows + [{"kind": "acceptance", **dataclasses.asdict(a)} for a in outcome.acceptance]


def curve_arrays(outcome: Outcome) -> dict[str, np.ndarray]:
    """Arrays of curves.npz: per part the axes' names and values ``[ladder, sampler, T]``, NaN where there is none."""
    arrays = {}
    for part, found, fields in [
        ("exact", outcome.chains, ("rel_w2", "rel_w2_exact_start", "mismatch", "floor")),
        ("mixture", outcome.mixture, ("rms_to_flow", "sliced_above_floor", "sliced_above_flow", "paired_error")),
    ]:
        if not found:
            continue
        axes = {
            "ladders": list(dict.fromkeys(c.ladder for c in found)),
            "samplers": list(dict.fromkeys(c.sampler for c in found)),
            "levels": sorted({c.levels for c in found}),
        }
        arrays |= {f"{part}_{name}": np.array(values) for name, values in axes.items()}
        for field in fields:
            grid = np.full([len(values) for values in axes.values()], np.nan)
            for c in found:
                place = (axes["ladders"].index(c.ladder), axes["samplers"].index(c.sampler))
                grid[*place, axes["levels"].index(c.levels)] = getattr(c, field)
            arrays[f"{part}_{field}"] = grid
    for metric in METRICS if outcome.learned else ():
        # One row per chain and seed, in the order of the records of kind "learned".
        arrays[f"learned_{metric}"] = np.stack([c.values[metric] for c in outcome.learned])
    return arrays


def table(outcome: Outcome, config: Config) -> str:
    """What the command prints."""
    lines = _exact_lines(outcome, config) + _mixture_lines(outcome, config) + _learned_lines(outcome, config)
    return "\n".join(lines + _acceptance_lines(outcome))


def _exact_lines(outcome, config):
    """A row per ladder, a column per sampler: relW2 with few levels, and how many times that with many."""
    if not outcome.chains:
        return []
    few, many, tolerance = config.few, config.many, config.tolerance
    lines = [
        "",
        f"Exact score, Gaussian data: W2/sqrt(tr) with T = {few}, (times that with T = {many})",
        f"{'ladder':>15s} {'N_eff':>6s} {'floor':>7s}" + "".join(f"{s:>17s}" for s in SAMPLERS),
    ]
    found = {(c.ladder, c.sampler): c for c in outcome.comparisons}
    for ladder in dict.fromkeys(c.ladder for c in outcome.chains):
        own = {c.sampler: c for c in outcome.chains if c.ladder == ladder and c.levels == few}
        if not own:
            continue
        line = f"{ladder:>15s} {own['ddim'].effective_states:6.1f}"
        line += f" {found[(ladder, 'ddim')].floor:7.4f}" if (ladder, "ddim") in found else f" {'':>7s}"
        for sampler in SAMPLERS:
            line += f"{_exact_cell(own.get(sampler), found.get((ladder, sampler))):>17s}"
        lines.append(line)
    count = {verdict: sum(c.verdict == verdict for c in outcome.comparisons) for verdict in MARKS}
    without = [c.ratio_exact_start for c in outcome.comparisons]
    return [
        *lines,
        f"  network evaluations: {few}, heun {2 * few - 1}. Equal: within {tolerance:g}; = matches; f matches, both at the "
        f"floor (shown: of flows, T = {many}); * as good as {USUAL[2]} states of {USUAL[1]} on {USUAL[0]}, {outcome.usual:.4f}",
        f"  of {len(outcome.comparisons)} chains {few} states match {many} in {count['matches']}, only by the floor in "
        f"{count['only the floor']}, not in {count['does not']}; started from the exact law instead of N(0, I) the ratios are "
        + (f"{min(without):.3g} to {max(without):.3g}" if without else "-"),
    ]


def _exact_cell(chain, comparison):
    if chain is None:
        return "-  "
    if comparison is None:
        return f"{chain.rel_w2:.4f}" + " " * 10
    ratio = f"({comparison.ratio:.3g})"
    mark = MARKS[comparison.verdict] + ("*" if comparison.matches_usual else " ")
    return f"{chain.rel_w2:.4f} {ratio:>7s}{mark}"


def _mixture_lines(outcome, config):
    """A row per ladder: levels until the floor, then the two distances with few levels, per sampler."""
    if not outcome.mixture:
        return []
    few = config.few
    lines = [
        "",
        f"Exact score, 8-D mixture, {config.samples} samples: T from which on the chain is at the floor; with T = {few} RMS "
        f"distance to the exact flow, 1000 x sliced W2^2 above it",
        f"{'ladder':>15s}" + "".join(f"{s:>26s}" for s in SAMPLERS),
    ]
    for ladder in dict.fromkeys(c.ladder for c in outcome.mixture):
        line = f"{ladder:>15s}"
        for sampler in SAMPLERS:
            own = [c for c in outcome.mixture if (c.ladder, c.sampler, c.levels) == (ladder, sampler, few)]
            needed = levels_to_floor(outcome.mixture, ladder, sampler)
            line += f"{_mixture_cell(own, needed):>26s}"
        lines.append(line)
    known = outcome.known
    return [
        *lines,
        f"  1000 x sliced W2^2: floor of {config.samples} draws {1e3 * known['floor']:.3g}, of the exact flow's samples "
        f"{1e3 * known['flow']:.3g}. At the floor: floor + excess within W2 x {config.tolerance:g} of the floor, up to 2 "
        f"standard errors",
    ]


def _mixture_cell(own, needed):
    if not own:
        return "-  "
    chain, text = own[0], "-" if needed is None else str(needed)
    rms = "     " if np.isnan(chain.rms_to_flow) else f"{chain.rms_to_flow:.3f}"
    return f"{text:>4s} {rms} {1e3 * chain.sliced_above_flow:6.2f}±{1e3 * chain.paired_error:<5.2f}"


def _learned_lines(outcome, config):
    """A row per task, sampler and metric: few levels, many, the difference and what it says, then the few-levels model."""
    if not outcome.learned:
        return []
    few, many = config.few, config.many
    lines = [
        "",
        f"Learned scores ({config.learned_ladder}, {len(config.seeds)} seeds, floor subtracted): one network of "
        f"{many} levels with T = {few} and {many}; a network of {few} levels only",
        f"{'task':>12s} {'sampler':>9s} {'metric':>12s} {f'T = {few}':>9s} {f'T = {many}':>9s} {'difference':>19s} "
        f"{'':>12s} {'trained on few - many':>22s}",
    ]
    by_key = {}
    for d in outcome.differences:
        by_key.setdefault((d.task, d.sampler, d.metric), []).append(d)
    for (task, sampler, metric), (states, trained) in by_key.items():
        floor = next(c.floors[metric] for c in outcome.learned if c.task == task)
        lines.append(
            f"{task:>12s} {sampler:>9s} {SHORT[metric]:>12s} {states.base + states.mean - floor:9.5f} "
            f"{states.base - floor:9.5f} {states.mean:9.5f} ± {states.half_width:.5f} {states.verdict:>12s} "
            f"{trained.mean:9.5f} ± {trained.half_width:.5f} {trained.verdict}"
        )
    return [*lines, f"  ±: 95 % interval over seeds; matches: the whole interval within W2 x {config.tolerance:g}"]


def _acceptance_lines(outcome):
    if not outcome.acceptance:
        return []
    first = outcome.acceptance[0]
    return [
        "",
        f"Mixture, {first.samples} samples: sliced W2^2 above the floor, {first.floor:.2e}",
        *(
            f"{a.sampler:>12s} exact score {a.exact:.6f} ± {a.exact_error:.6f}, learned {a.learned:.6f} ± "
            f"{a.learned_error:.6f}; difference {a.difference:.6f} ± {a.paired_error:.6f} (paired), allowed "
            f"{a.allowed:.6f}: {'passes' if a.passed else 'does not pass'}"
            for a in outcome.acceptance
        ),
    ]
