"""The best of all candidates, what is as good, and in words what to do and what stays unknown."""

from collections.abc import Sequence

import numpy as np

from experiments.recommend.candidates import Candidate

NEGLIGIBLE = 0.01
ONE_SIDED_95 = 1.645


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
        chosen.append({**best, "tied": tied, "advice": advice(best)})
    return chosen


def advice(record: dict) -> str:
    """One sentence."""
    if record["verdict"] == "stop early":
        text = f"stop {stop_words(record)}"
        if record["divide_by"] != 1.0:
            text += f" and divide the latent by {record['divide_by']:.3f} before decoding"
        if np.isnan(percent(record, "gain")):
            return f"{text}: the distance falls by {record['gain']:.2g}, from an end that cannot be told from 0"
        return f"{text}: the distance falls by {percent(record, 'gain'):.1f} %"
    if record["verdict"] == "no gain from stopping":
        return f"do not stop early: it gains less than {100 * NEGLIGIBLE:g} %"
    needed = record["images_needed"]
    more = "" if needed is None else "; about {:.2g} to {:.2g} held-out images would let it".format(*needed)
    return f"cannot tell: run to the end{more}"


def stop_words(record: dict) -> str:
    """Where to stop in the words of the record's sampler, as `pipelines.Stop` has them; "at the end" there."""
    if record["logsnr"] is None:
        return "at the end"
    said = []
    if record["step"] is not None:
        said.append(f"after {record['step']} of {record['sampling_steps']} steps")
    if record["denoising_end"] is not None:
        said.append(f"at denoising_end = {record['denoising_end']:.3f}")
    if record["sampler"].startswith(("scaled_linear", "linear_beta")):
        said.append(f"at timestep {record['timestep']:.0f}")
    elif record["sampler"] == "linear_vp":
        said.append(f"at alpha = {record['vp_alpha']:.3f}")
    else:
        said.append(f"at sigma = {record['sigma']:.3g}")
    return said[0] + (f" ({', '.join(said[1:])})" if said[1:] else "")


def percent(record: dict, name: str) -> float:
    """A gain in percent of the distance at the end; NaN where that cannot be told from 0."""
    told = record["end"] > 2.0 * record["end_standard_error"]
    return 100.0 * record[name] / record["end"] if told else float("nan")


def unknowns(candidates: Sequence[Candidate], *, comparable: bool) -> list[str]:
    """What the inputs do not contain."""
    lines = [
        "How well a diffusion model of a given size learns each latent space: the noisy autoencoder knows no network. The "
        "largest latent space that it reconstructs best is often not the one that a small network learns best.",
        "What networks lose: the curves are those of a model that has learned the law of the latents, with the mean and "
        "covariance of the training images. Networks and samplers with few steps lose variance, and then stopping earlier may "
        'help more (--sampling_steps adds what the steps lose). "Cannot tell" is not "no gain".',
    ]
    for space, (_, reference) in candidates[0].measures.items():
        rows, dim = reference.features.shape
        if "w2" in reference.metrics and reference.moments[0].factor.shape[1] >= rows - 1:
            lines.append(
                f"Directions that no held-out image shows: there are {rows} images for {dim} {space} features. What they may "
                f"add to the Fréchet distance is in its interval; {dim + 2} images would leave nothing of the kind."
            )
    if not comparable:
        lines.append(
            "Without a decoder distances are between latents: what the autoencoder loses is unknown, latent dimensions "
            "cannot be compared, and the best stop for latents need not be the best one for images."
        )
    elif len(candidates) == 1:
        lines.append("One latent space was given: nothing is said about other latent dimensions.")
    return lines
