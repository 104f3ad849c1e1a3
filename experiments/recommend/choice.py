"""The best of all candidates, what is as good, and in words what to do and what stays unknown."""

from collections.abc import Sequence

import numpy as np

from experiments.recommend.candidates import Candidate
from ldmjax.stopping import is_told

NEGLIGIBLE = 0.01
ONE_SIDED_95 = 1.645
LARGEST = " The largest latent space that it reconstructs best is often not the one that a small network learns best."


def choose(records: Sequence[dict], pseudo: dict, *, comparable: bool) -> list[dict]:
    """The record with the smallest best distance of each group, and the latent dimensions that may be as good.

    A dimension is tied with the best if the 95 % lower bound of its excess, each at its own best stop and paired over
    reference images, is below `NEGLIGIBLE` of the best distance.
    """
    groups = {}
    for record in records:
        key = (record["features"], record["metric"]) + (() if comparable else (record["name"],))
        groups.setdefault(key, []).append(record)
    chosen = []
    for group in groups.values():
        finite = [r for r in group if np.isfinite(r["best"])]
        if not finite:
            continue
        best, tied = min(finite, key=lambda r: r["best"]), []
        for record in finite:
            p, q = (pseudo[r["name"], r["features"], r["metric"]] for r in (record, best))
            error = np.std(p - q, ddof=1) / np.sqrt(len(p))
            if np.mean(p - q) - ONE_SIDED_95 * error < NEGLIGIBLE * abs(best["best"]):
                tied.append(record["name"])
        text = advice(best, compared=compared_by(comparable)) + beyond(best)
        chosen.append({**best, "tied": tied, "advice": text})
    return chosen


def compared_by(comparable: bool) -> str:
    """Returns what every sentence calls the things that are compared: images, or latents where no decoder is known."""
    return "images" if comparable else "latents"


def advice(record: dict, *, compared: str = "images") -> str:
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
    return f"cannot tell: run to the end{what_would_tell(record, compared)}"


def what_would_tell(record: dict, compared: str) -> str:
    """Ends the sentence "cannot tell": how much more data would let it, where that is known."""
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


def beyond(record: dict) -> str:
    """Ends the sentence "stop early" where the best stop is at an edge of the levels that were tried."""
    if record["verdict"] != "stop early" or record["edge"] is None:
        return ""
    if record["edge"] == "first":
        return "; this is the noisiest level tried: the best stop may be earlier still"
    if record["sampling_steps"] is None:
        return "; this is the cleanest level tried before the end: the best stop may be later still"
    return "; this is the last stop tried before the end: more sampling steps have later ones"


def stop_words(record: dict) -> str:
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


def percent(record: dict, name: str) -> float:
    """A gain in percent of the distance at the end; NaN where that cannot be told from 0."""
    told = is_told(record["end"], record["end_standard_error"])
    return 100.0 * record[name] / record["end"] if told else float("nan")


def unknowns(candidates: Sequence[Candidate], *, comparable: bool) -> list[str]:
    """What the inputs do not contain."""
    compared = compared_by(comparable)
    lines = [
        "How well a diffusion model of a given size learns each latent space: the noisy autoencoder knows no network."
        + (LARGEST if comparable else ""),
        "What networks lose: the curves are those of a model that has learned the law of the latents, with the mean and "
        f"covariance of the training {compared}. Networks and samplers with few steps lose variance, and then stopping earlier "
        'may help more (--sampling_steps adds what the steps lose). "Cannot tell" is not "no gain".',
    ]
    for space, (_, reference) in candidates[0].measures.items():
        rows, dim = reference.features.shape
        if "w2" in reference.metrics and reference.moments[0].factor.shape[1] >= rows - 1:
            lines.append(
                f"Directions that no held-out {compared[:-1]} shows: there are {rows} {compared} for {dim} {space} features. "
                f"What they may add to the Fréchet distance is in its interval; {dim + 2} {compared} would leave nothing so."
            )
    if not comparable:
        lines.append(
            "Without a decoder distances are between latents: what the autoencoder loses is unknown, latent dimensions "
            "cannot be compared, and the best stop for latents need not be the best one for what they decode to."
        )
    elif len(candidates) == 1:
        lines.append("One latent space was given: nothing is said about other latent dimensions.")
    return lines
