"""How often intervals hold the truth, per case and metric and then per metric; how often the better dimension is chosen."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from experiments.coverage.few_rows import LATENT_DIMS
from experiments.launch import Report, Results
from ldmjax.stopping import VERDICTS
from ldmjax.tables import table

LARGE_GAIN = 0.1
ABOUT = "Share of draws whose 90 % interval of t* holds the exact optimum; width: median, in logsnr."
SHARES = ("inside covered", "end covered", "gain covered", "exact gain", *VERDICTS)


def report(results: Results) -> Report:
    """The tables of every analysis."""
    parts = []
    for name in results.config.analyses:
        own = [row for row in results.rows if row["analysis"] == name]
        intervals = pd.DataFrame([row for row in own if not row.get("choice")])
        choices = [row for row in own if row.get("choice")]
        parts.append(f"{name}:")
        parts += [cases_table(intervals), metrics_table(intervals)] if len(intervals) else []
        parts += [choices_table(choices)] if choices else []
    return Report(text="\n\n".join(parts))


def cases_table(frame: pd.DataFrame) -> str:
    """Per case and metric: draws with an optimum inside or at the end, how many intervals hold it, verdicts."""
    rows = []
    for (case, metric), own in frame.groupby(["case", "metric"], sort=False):
        inside, at_end = own[own["interior"]], own[~own["interior"]]
        row = {
            "case": case,
            "metric": metric,
            "draws": len(own),
            "inside": len(inside),
            "inside covered": inside["covered"].mean(),
            "at end": len(at_end),
            "end covered": at_end["covered"].mean(),
            "width": own["interval_width"].median(),
            "gain covered": own["gain_covered"].mean(),
            "exact gain": own["exact_gain"].mean(),
        }
        rows.append(row | {verdict: (own["verdict"] == verdict).mean() for verdict in VERDICTS})
    columns = dict.fromkeys(rows[0], "") | dict.fromkeys(SHARES, ".1%") | {"width": ".2f", "exact gain": ".3%"}
    return table(rows, columns, title=ABOUT, left=2)


def metrics_table(frame: pd.DataFrame) -> str:
    """Per metric what all cases together show: mean and least of the cases' shares, claims that are false and found."""
    rows = []
    for metric, own in frame.groupby("metric", sort=False):
        shares = own.groupby("case")[["covered", "gain_covered"]].mean()
        early = own["verdict"] == "stop early"
        rows.append(
            {
                "metric": metric,
                "t* covered, mean of cases": shares["covered"].mean(),
                "least": shares["covered"].min(),
                "gain covered, mean": shares["gain_covered"].mean(),
                "least ": shares["gain_covered"].min(),
                '"stop early" where nothing is gained': _share(early[own["exact_gain"] <= 0]),
                "where 10 % or more is": _share(early[own["exact_gain"] >= LARGE_GAIN]),
            }
        )
    means = ("t* covered, mean of cases", "gain covered, mean")
    columns = dict.fromkeys(rows[0], "") | dict.fromkeys(means, ".1%") | dict.fromkeys(("least", "least "), ".0%")
    return table(rows, columns)


def _share(found: pd.Series) -> str:
    return f"{found.mean():.1%} of {len(found)}" if len(found) else "of 0"


def choices_table(rows: Sequence[Mapping]) -> str:
    """Per number of held-out points how often the better dimension was chosen, and both best distances."""
    shown = []
    for case, own in pd.DataFrame(rows).groupby("case", sort=False):
        right, tied = (own[name].astype(bool) for name in ("right", "tied"))
        row = {"case": case, "draws": len(own), "right": right.mean(), "tied": tied.mean()}
        row["wrong and not tied"] = (~right & ~tied).mean()
        best, exact = (np.mean([*own[name]], axis=0) for name in ("best", "exact_best"))
        for d, found, truth in zip(LATENT_DIMS, best, exact, strict=True):
            row |= {f"d = {d}": found, f"d = {d}, exactly": truth}
        shown.append(row)
    columns = dict.fromkeys(shown[0], ".2f") | dict.fromkeys(("right", "tied", "wrong and not tied"), ".0%")
    title = (
        'Two latent dimensions, the better one chosen; "tied": the other may be as good. Best distances, also exact:'
    )
    return table(shown, columns | {"case": "", "draws": ""}, title=title)
