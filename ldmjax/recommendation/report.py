"""What is recommended: the answer, the table with its sentences, the figure; all made of records and curves alone."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from ldmjax import records as files
from ldmjax.recommendation import figures
from ldmjax.recommendation.choice import NEGLIGIBLE, Record, groups
from ldmjax.recommendation.config import RecommendationConfig
from ldmjax.stopping import is_told
from ldmjax.tables import table

LARGEST = " The largest latent space that it reconstructs best is often not the one that a small network learns best."
BEYOND = {None: "", "first": "<= ", "last": ">= ", "end": "<= "}
NOT_SAID = ("choice", "schema_version", "float32_products")  # of a record, of which the last two are of its file
COLUMNS = (
    "features",
    "metric",
    "latents",
    "at the end",
    "best",
    "gain % [90 %]",
    "stop at logsnr [90 %]",
    "that is to stop",
    "verdict",
    "choice",
)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recommendation:
    """All that was found.

    Attributes:
      records: one per (candidate, feature space, metric), JSON-ready: what is not finite is None, and so is the end of
        sampling as a stop. ``choice`` is "best" or "tied" for those to choose from.
      curves: ``{"candidate/feature space/metric": [S]}`` and the same with "/standard_error"; "candidate/logsnr" ``[S]`` are
        their levels, which candidates need not share, and "logsnr" those of any candidate.
      config: how candidates were compared.
      findings: sentences on the latents' scale.
      noticed: sentences on what looks wrong in the inputs.
      seconds: by candidate.
    """

    records: Sequence[Record]
    curves: Mapping[str, np.ndarray]
    config: RecommendationConfig
    findings: Sequence[str] = ()
    noticed: Sequence[str] = ()
    seconds: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        return f"{self.answer}\n{self.table()}"

    @property
    def compared(self) -> str:
        """What distances are between, and every sentence speaks of: "images", or "latents" where no decoder is known."""
        return self.records[0]["compared"]

    @property
    def recommendations(self) -> list[dict[str, Any]]:
        """The best record per feature space and metric, between latents per candidate too, with all tied names and advice."""
        chosen = []
        for group in groups(self.records):
            for best in (record for record in group if record["choice"] == "best"):
                tied = [record["name"] for record in group if record["choice"]]
                text = advice(best) + beyond(best)
                fields = {name: v for name, v in best.items() if name not in NOT_SAID}
                chosen.append({**fields, "tied": tied, "advice": text})
        return chosen

    @property
    def answer(self) -> str:
        """What to do, by the first metric of the first feature space: the Fréchet distance, unless others were asked for.

        Between latents, whose dimensions cannot be compared, one line for each of them.
        """
        chosen = self.recommendations
        first = [r for r in chosen if (r["features"], r["metric"]) == (chosen[0]["features"], chosen[0]["metric"])]
        others = [r for r in chosen if r not in first]
        return "\n".join(_answer(r, others) for r in first) or "cannot tell: no distance is finite"

    @property
    def unknown(self) -> list[str]:
        """Sentences on what these inputs cannot tell."""
        return unknowns(self.records)

    def table(self) -> str:
        """Text: a row per latents, feature space and metric, the choices marked; advice; what stays unknown."""
        rows = [_row(r) for r in sorted(self.records, key=lambda r: (r["features"], r["metric"]))]
        about = (
            f"Squared distances to held-out {self.compared} of a model that has learned these latents, stopped with noise "
            "left; t* is the smallest value, whatever the verdict"
        )
        if any(r["edge"] for r in self.records):
            about += "; after <= or >= it is at the edge of the levels tried, and may lie beyond"
        advised = [f"{r['features']}, {r['metric']}, {r['name']}: {r['advice']}." for r in self.recommendations]
        noticed = ["Noticed in these inputs:", *(f"- {line}" for line in self.noticed), ""] if self.noticed else []
        unknown = ["Not known from these inputs:", *(f"- {line}" for line in self.unknown)]
        return "\n".join(["", table(rows, title=f"{about}:", left=3), "", *advised, "", *noticed, *unknown])

    def figure(self) -> Figure:
        """Distance against stopping time: a row per feature space and kind of latents, a column per metric."""
        return figures.draw(self.records, self.curves, self.config)

    def summary(self) -> dict[str, Any]:
        """JSON-ready: what is recommended, and all sentences."""
        return {
            "schema_version": files.SCHEMA_VERSION,
            "recommendations": self.recommendations,
            "latents": list(self.findings),
            "noticed": list(self.noticed),
            "unknown": self.unknown,
        }


def _answer(best, others):
    """One sentence or two on the best record; ``others`` are those of other distances."""
    also = [name for name in best["tied"] if name != best["name"]]
    tied = f", as good as {', '.join(also)}" if also else ""
    levels = [_level(best[name]) for name in ("low", "high")]
    text = (
        f"{best['name']} (latent dimension {best['latent_dim']}{tied}), by the {figures.NAMES[best['metric']]} of "
        f"{best['features']}: {best['advice']}. Verdict: {best['verdict']}; the 90 % interval of the best stop is logsnr "
        f"{levels[0]} to {levels[1]}."
    )
    same = [r for r in others if r["compared"] == "images" or r["name"] == best["name"]]
    differ = [r for r in same if r["name"] not in best["tied"] or r["verdict"] != best["verdict"]]
    if differ:
        said = (f"{r['name']}, {r['verdict']}, by the {figures.NAMES[r['metric']]} of {r['features']}" for r in differ)
        text += f" Other distances: {'; '.join(said)}."
    return text


def _row(record):
    gain = [percent(record, name) for name in ("gain", "gain_low", "gain_high")]
    values = (
        record["features"],
        record["metric"],
        record["name"],
        *(_number(record[name]) for name in ("end", "best")),
        "-" if np.isnan(gain[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*gain),
        f"{BEYOND[record['edge']]}{_level(record['logsnr'])} [{_level(record['low'])}, {_level(record['high'])}]",
        stop_words(record),
        record["verdict"],
        record["choice"],
    )
    return dict(zip(COLUMNS, values, strict=True))


def _number(distance):
    return "inf" if distance is None else f"{distance:.4g}"


def _level(logsnr):
    return "end" if logsnr is None else f"{logsnr:.1f}"


def advice(record: Record) -> str:
    """One sentence."""
    if record["verdict"] == "stop early":
        text = f"stop {stop_words(record)}"
        if record["divide_by"] != 1.0:
            text += f" and divide the latent by {record['divide_by']:.3f} before decoding"
        if np.isnan(percent(record, "gain")):
            return f"{text}: the distance falls by {record['gain']:.2g}, from an end that cannot be told from 0"
        # Bias-corrected estimates may fall below 0.
        return f"{text}: the distance falls by {min(percent(record, 'gain'), 100.0):.1f} %"
    if record["verdict"] == "no gain from stopping":
        gain = f"less than {100 * NEGLIGIBLE:g} %"
        return f"do not stop early: a model that has learned the law gains {gain}, networks may gain more"
    return f"cannot tell: run to the end{what_would_tell(record)}"


def what_would_tell(record: Record) -> str:
    """Ends the sentence "cannot tell": how much more data would let it, where that is known."""
    compared = record["compared"]
    if record["edge"] == "end":
        return f"; the distance still falls from logsnr {record['levels'][-2]:.1f} to the end, and no level between was tried"
    if np.isnan(percent(record, "gain")):
        return f", whose distance cannot be told from 0; how many held-out {compared} would let it is not known"
    needed = record["images_needed"]
    if needed is None:
        return ""
    # The lower end may be the number that there is.
    fewest = "" if needed[0] <= 1.5 * record["reference_images"] else f"{needed[0]:.2g} to "
    return f"; {'about' if fewest else 'up to'} {fewest}{needed[1]:.2g} held-out {compared} would let it"


def beyond(record: Record) -> str:
    """Ends the sentence "stop early" where the best stop is at an edge of the levels that were tried."""
    if record["verdict"] != "stop early" or record["edge"] is None:
        return ""
    if record["edge"] == "first":
        return "; this is the noisiest level tried: the best stop may be earlier still"
    if record["sampling_steps"] is None:
        return "; this is the cleanest level tried before the end: the best stop may be later still"
    return "; this is the last stop tried before the end: more sampling steps have later ones"


def stop_words(record: Record) -> str:
    """Where to stop in the words of the record's sampler, as `pipelines.Stop` has them; "at the end" there."""
    if record["logsnr"] is None:
        return "at the end"
    said = []
    if record["step"] is not None:
        said.append(f"after {record['step']} of {record['sampling_steps']} steps")
    if record["sampler"].startswith(("scaled_linear", "linear_beta")):
        said.append(f"at timestep {record['timestep']:.0f}")
    elif record["sampler"] == "linear_vp":
        said.append(f"at alpha = {record['vp_alpha']:.3f}")
    else:
        said.append(f"at sigma = {record['sigma']:.3g}")
    if record["denoising_end"] is not None:
        said.append(f"in SDXL denoising_end = {record['denoising_end']:.3f}")
    return said[0] + (f" ({', '.join(said[1:])})" if said[1:] else "")


def percent(record: Record, name: str) -> float:
    """A gain in percent of the distance at the end; NaN where that cannot be told from 0."""
    end, error = record["end"], record["end_standard_error"]
    known = None not in (end, error, record[name]) and is_told(end, error)
    return 100.0 * record[name] / end if known else float("nan")


def unknowns(records: Sequence[Record]) -> list[str]:
    """Sentences on what the inputs do not contain."""
    compared = records[0]["compared"]
    lines = [
        "How well a diffusion model of a given size learns each latent space: the noisy autoencoder knows no network."
        + (LARGEST if compared == "images" else ""),
        "What networks lose: the curves are those of a model that has learned the law of the latents, with the mean and "
        f"covariance of the training {compared}. Networks and samplers with few steps lose variance, and then stopping earlier "
        'may help more (sampling_steps adds what the steps lose). "Cannot tell" is not "no gain".',
    ]
    for space, record in {r["features"]: r for r in records if r["metric"] == "w2"}.items():
        rows, dim = record["reference_images"], record["feature_dim"]
        if record["reference_rank"] >= rows - 1:
            lines.append(
                f"Directions that no held-out {compared[:-1]} shows: there are {rows} {compared} for {dim} {space} features. "
                f"What they may add to the Fréchet distance is in its interval; {dim + 2} {compared} would leave nothing so."
            )
    if compared == "latents":
        lines.append(
            "Without a decoder distances are between latents: what the autoencoder loses is unknown, latent dimensions "
            "cannot be compared, and the best stop for latents need not be the best one for what they decode to."
        )
    elif len({record["name"] for record in records}) == 1:
        lines.append("One latent space was given: nothing is said about other latent dimensions.")
    return lines
