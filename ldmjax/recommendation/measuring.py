"""Noise, decoding and distances of every candidate: the curves, their readings, and the choice.

Encodes the training images, puts the noise of every level on the latents, decodes, and measures the distance of the
outputs to held-out images: the noisy autoencoder of [OS] (arXiv 2510.08409 v2; ldmjax.stopping).
"""

import dataclasses
import time
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ldmjax import metrics, pipelines, records, stopping
from ldmjax.autoencoders import LatentScale
from ldmjax.job import NO_JOB, Job
from ldmjax.recommendation import scales
from ldmjax.recommendation.candidates import Candidate
from ldmjax.recommendation.choice import NEGLIGIBLE, choose
from ldmjax.recommendation.config import RecommendationConfig
from ldmjax.recommendation.levels import edge_of, missing_levels
from ldmjax.recommendation.report import Recommendation

HARDLY = 0.9  # of the images' variance: a reconstruction error that is larger is said
COMPARED = ("images", "latents")


def compare(
    candidates: Sequence[Candidate],
    config: RecommendationConfig = RecommendationConfig(),  # noqa: B008 - frozen
    *,
    compared: str = "images",
    noticed: Sequence[str] = (),
    job: Job = NO_JOB,
) -> Recommendation:
    """Measures every candidate and chooses.

    Args:
      candidates: at least one.
      config: how.
      compared: what distances are between: "images", whose latent spaces can be compared, or "latents", each in a space of its
        own.
      noticed: sentences on what looked wrong before.
      job: keeps measured candidates, receives lines.

    Raises:
      ValueError: with one line, for latents without a scale, or a user's function that fails.
    """
    if compared not in COMPARED or not candidates:
        raise ValueError(f"compared: must be one of {', '.join(COMPARED)}, of some candidates, got {compared!r}")
    findings, noticed, measured = [], list(noticed), {}
    for candidate in candidates:
        scale = _scale_of(candidate, config)
        said = [scales.describe(candidate.name, candidate.latents, config.scaling, scale)]
        if candidate.training is not None and compared == "images":
            said.append(check_decoder(candidate))
        odd = scales.notices(candidate.name, candidate.latents, config.scaling)
        for line in said + odd:
            job.log(line)
        findings, noticed = findings + said, noticed + odd
        measured[candidate.name] = job.keep(
            f"measured/{candidate.name}",
            lambda candidate=candidate, scale=scale: _measure(candidate, scale, config, compared=compared, job=job),
        )
    rows = [row for found in measured.values() for row in found.records]
    at_best = {(name, *key): p for name, found in measured.items() for key, p in found.at_best.items()}
    curves = {key: curve for found in measured.values() for key, curve in found.curves.items()}
    levels = np.unique(np.concatenate([curves[f"{name}/logsnr"] for name in measured]))
    return Recommendation(
        records=choose(rows, at_best),
        curves={"logsnr": levels, **curves},
        config=config,
        findings=findings,
        noticed=noticed,
        seconds={name: found.seconds for name, found in measured.items()},
    )


class _Measured(NamedTuple):
    """What is kept of one candidate; ``at_best`` are the pseudo-values at its best stop by (feature space, metric)."""

    records: list[dict]
    curves: dict[str, np.ndarray]
    at_best: dict[tuple[str, str], np.ndarray]
    seconds: float


def _scale_of(candidate: Candidate, config: RecommendationConfig) -> LatentScale:
    try:
        return scales.scale_of(candidate.latents, config.scaling)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error


def _measure(
    candidate: Candidate, scale: LatentScale, config: RecommendationConfig, *, compared: str, job: Job
) -> _Measured:
    """Noise, decoding and distances of one candidate."""
    begin = time.perf_counter()
    logsnrs, values = measure_passes(candidate, scale, config, job=job)
    floors, rows, at_best = floor_of(candidate), [], {}
    curves = {f"{candidate.name}/logsnr": logsnrs}
    for (space, metric), p in values.items():
        result = stopping.read_stopping_curve(p, negligible=NEGLIGIBLE)
        key = f"{candidate.name}/{space}/{metric}"
        curves |= {key: result.curve, f"{key}/standard_error": result.standard_error}
        at_best[space, metric] = p[:, -1 if result.best_stop is None else result.best_stop]
        row = make_record(candidate, space, metric, result, floors, scale, config, logsnrs=logsnrs)
        rows.append(records.plain(row | {"compared": compared}))
    return _Measured(rows, curves, at_best, time.perf_counter() - begin)


def measure_passes(
    candidate: Candidate, scale: LatentScale, config: RecommendationConfig, *, job: Job = NO_JOB
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """Measures the levels of the first pass, then those that its curves lack, with the same latents and noise.

    Returns:
      Levels ``[S]``, and by (feature space, metric) the pseudo-values ``[K, S]``: those of one pass over all these levels.
    """
    own = job.within(candidate.name)

    def measured(logsnrs):
        return stopping.noisy_autoencoder(
            scale.standardise(candidate.latents),
            lambda z: candidate.decode(scale.unstandardise(z)),
            candidate.measures,
            logsnrs=logsnrs,
            samples=config.decoded(len(candidate.latents)),
            readout=config.readout,
            chain=config.chain,
            seed=config.seed,
            report=own.log,
        )

    logsnrs = config.logsnrs
    values = measured(logsnrs)
    for _ in range(config.passes - 1):
        results = [stopping.read_stopping_curve(p, negligible=NEGLIGIBLE) for p in values.values()]
        how = {"chain": config.chain, "span": config.span, "negligible": NEGLIGIBLE}
        more = missing_levels(logsnrs, results, most=config.most_added, **how)
        if not len(more):
            break
        own.log(f"more noise levels, {len(more)} from logsnr {more[0]:.1f} to {more[-1]:.1f}")
        added = measured(more)
        order = np.argsort(np.append(logsnrs, more))
        logsnrs = np.append(logsnrs, more)[order]
        values = {key: np.concatenate([p, added[key]], axis=1)[:, order] for key, p in values.items()}
    return logsnrs, values


def check_decoder(candidate: Candidate) -> str:
    """A sentence on the reconstruction of up to 1000 training images, which shows a range of values that does not fit."""
    images = candidate.training[:1000]
    error = np.mean((candidate.decode(candidate.latents[: len(images)]) - images) ** 2)
    variance = np.mean((images - images.mean(axis=0)) ** 2)
    text = (
        f"{candidate.name}: images have shape {list(images.shape[1:])} and values {images.min():.3g} to {images.max():.3g}; "
        f"reconstruction error {error:.3g} per value, {100 * error / variance:.3g} % of their variance"
    )
    if error > HARDLY * variance:
        than = "WORSE THAN" if error > variance else "HARDLY BETTER THAN"
        text += f": {than} THE MEAN IMAGE. Do encode and decode expect this range of values and order of axes?"
    return text


def floor_of(candidate: Candidate) -> dict[tuple[str, str], float]:
    """Distance of the training images themselves to the reference: no autoencoder, no noise."""
    if candidate.training is None:
        return {}
    twice = np.stack([candidate.training, candidate.training])
    return {key: float(p.mean()) for key, p in metrics.measure(twice, candidate.measures, copies=1).items()}


def make_record(candidate, space, metric, result, floors, scale, config, *, logsnrs) -> dict:
    """Makes the record of one curve; ``reference_rank`` counts the directions that held-out features vary in."""
    reference = candidate.measures[space].reference
    stops = result.best_stop, result.best_stop_low, result.best_stop_high
    # A fall to the end that is not resolved is no verdict, and images do not resolve it.
    edge = edge_of(result, logsnrs, chain=config.chain, span=config.span, negligible=NEGLIGIBLE)
    needed = stopping.images_needed(result, images=len(reference.features), negligible=NEGLIGIBLE)
    stop = [None if k in (None, len(logsnrs) - 1) else logsnrs[k] for k in stops]
    return {
        "name": candidate.name,
        "features": space,
        "metric": metric,
        "squared": True,
        "latent_dim": candidate.latent_dim,
        **stop_fields(stop[0], config),
        "low": stop[1],
        "high": stop[2],
        "edge": edge,
        "levels": logsnrs,
        "end": result.end,
        "end_standard_error": result.standard_error[-1],
        "best": result.best,
        "gain": result.gain,
        "gain_low": result.gain_low,
        "gain_high": result.gain_high,
        "verdict": "cannot tell" if edge == "end" else result.verdict,
        "images_needed": None if edge == "end" else needed,
        "floor": floors.get((space, metric)),
        "readout": config.readout,
        "sampling_steps": config.sampling_steps,
        "sampler": config.sampler,
        "solver": None if config.chain is None else config.chain.sampler,
        "latent_mean": np.ravel(scale.mean).tolist() if np.ndim(scale.mean) else scale.mean,
        "latent_std": np.ravel(scale.std).tolist() if np.ndim(scale.std) else scale.std,
        "training_images": len(candidate.latents),
        "reference_images": len(reference.features),
        "decoded_images": config.decoded(len(candidate.latents)),
        "feature_dim": reference.features.shape[1],
        "reference_rank": reference.moments[0].factor.shape[1] if metric == "w2" else None,
        "precision": candidate.precision,
        "data": config.data,
        "seed": config.seed,
    }


def stop_fields(logsnr: float | None, config: RecommendationConfig) -> dict:
    """The fields of `pipelines.Stop`; the end of sampling is logsnr null, rf_time 0, vp_alpha 1."""
    fields = dataclasses.asdict(pipelines.stop_at(config.pipeline, logsnr, config.sampling_steps))
    fields = {**fields, "logsnr": logsnr, "divide_by": 1.0 if config.readout == "state" else fields["divide_by"]}
    return {name: value for name, value in fields.items() if name != "steps"}
