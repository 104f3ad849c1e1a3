"""Which latent dimension, and stop where, before a diffusion model is trained.

Encodes the training images, puts the noise of every level on the latents, decodes, and measures the distance of the
outputs to held-out images: the noisy autoencoder of [OS] (arXiv 2510.08409 v2; ldmjax.stopping). The curves are those of
a model that has learned the law of the latents, with the mean and covariance of the training images; --sampling_steps=N adds
the variance that N steps of a sampler (--solver) lose of a Gaussian, and stops after steps only. Per feature space and
metric it gives the latent dimension and the stopping time with the smallest distance, their intervals, and a verdict:
"stop early", "no gain from stopping", or "cannot tell", then with about how many images would let it tell.

    python -m experiments.recommend --data=images.npz               # the suite's autoencoders
    python -m experiments.recommend --data=images.npz --autoencoder=module:factory
    python -m experiments.recommend --data=images.npz --latents=z.npz --decoder=module:function
    python -m experiments.recommend --latents=z.npz                 # says what it cannot know

--autoencoder: factory(latent_dim) for every --latent_dims, or factory() if none is given, returns an object with encode
(images ``[N, *image_shape]`` to latents ``[N, ...]``) and decode, on numpy float32 arrays; unsigned 8-bit images come
scaled to [-1, 1], and channels where the data has them. Images that are there several times are used once (`distinct`); images
in another form than the autoencoder expects are refused (`expected_images`). A --features function may be called from two
threads at once. --latents: an .npz whose arrays ``[N, ...]`` are candidates, or an .npy; row i is the latent of image i of
--data. What to type for SDXL, SD 3 and Flux:

    --sampler=scaled_linear_euler --sampling_steps=50
    --sampler=flow_matching --shift=3 --sampling_steps=28
    --sampler=flow_matching --shift=dynamic:4096 --sampling_steps=50

Obtained: README's section on images. 10,000 MNIST images, six given convolutional autoencoders: 163 s on two cores. The
intervals of t* are checked by `python -m experiments.coverage --analyses=noisy_autoencoder`, the predictions on trained
diffusion models by `python -m experiments.noisy_autoencoder`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import image_plans, plans
from experiments.recommend import latents
from experiments.recommend.candidates import Candidate
from experiments.recommend.choice import NEGLIGIBLE, choose, compared_by, unknowns
from experiments.recommend.levels import edge_of, missing_levels
from ldmjax import metrics, pipelines, stopping
from ldmjax.autoencoders import LatentScale
from ldmjax.checkpoints import NOTHING_KEPT, Store

__all__ = ["Candidate", "Config", "Outcome", "plan", "run"]

HARDLY = 0.9  # of the images' variance: a reconstruction error that is larger is said


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How candidates are compared.

    Attributes:
      stops: noise levels, the last of them the end of sampling (no noise).
      passes: over the levels; every one after the first adds at most half as many levels where curves need them (levels.py).
      logsnr_min, logsnr_max: range of the others in the first pass, evenly spaced, as far as the sampler goes.
      samples: least number of decoded images per level; every training image is decoded at least twice.
      readout: one of `stopping.NOISY_READOUTS`.
      sampler: out of `pipelines.NAMES`, in whose words stops are given.
      shift, tokens: of flow matching, as in `pipelines.make_sampler`.
      sampling_steps: None for a perfect sampler, else the steps whose loss of variance is added; stops are after steps.
      solver: that takes these steps, out of `oracle.KEPT_BY`; None for the sampler's own.
      scaling: how latents are brought to deviation 1.
      seed: of the split and the noise.
      data: name of the images, for the records.
    """

    stops: int = 20
    passes: int = 2
    logsnr_min: float = -2.0
    logsnr_max: float = 11.0
    samples: int = 8192
    readout: str = "rescaled"
    sampler: str = "rectified_flow"
    shift: float | None = None
    tokens: int | None = None
    sampling_steps: int | None = None
    solver: str | None = None
    scaling: latents.Scaling = latents.Scaling()
    seed: int = 0
    data: str = ""

    def __post_init__(self):
        if len(self.logsnrs) < 2:
            raise ValueError(
                f"must leave a stop between logsnr {self.logsnr_min:g} and {self.logsnr_max:g}: more steps of {self.sampler}"
            )
        if self.readout == "state" and self.pipeline.state != "flow":
            raise ValueError(f"{self.sampler} has no state of a rectified flow, which readout 'state' decodes")

    @functools.cached_property
    def pipeline(self) -> pipelines.Sampler:
        """The sampler."""
        return pipelines.make_sampler(self.sampler, shift=self.shift, tokens=self.tokens)

    @property
    def span(self) -> tuple[float, float]:
        """Logsnr of the sampler's noisiest and cleanest level."""
        return float(self.pipeline.logsnrs(pipelines.TIMESTEPS)[0]), self.pipeline.largest

    @property
    def chain(self) -> stopping.Chain | None:
        """The sampler with ``sampling_steps`` steps."""
        if self.sampling_steps is None:
            return None
        schedule = self.pipeline.schedule(self.sampling_steps)
        return stopping.Chain(schedule, self.sampling_steps, self.solver or self.pipeline.solver)

    @property
    def logsnrs(self) -> np.ndarray:
        """Of the first pass: rising ``[stops]``, the last +inf; fewer if the sampler has fewer steps in the range."""
        if self.chain is None:
            last, count = min(self.logsnr_max, self.pipeline.largest), self.stops - 1
            # The sampler's largest logsnr is its end.
            finite = np.linspace(self.logsnr_min, last, count, endpoint=last < self.pipeline.largest)
            return np.append(finite, np.inf)
        within = [at for at in self.chain.logsnrs[:-1] if self.logsnr_min <= at <= self.logsnr_max]
        places = np.linspace(0, len(within) - 1, min(self.stops - 1, len(within))).round().astype(int)
        return np.append(np.array(within)[places], np.inf)

    @property
    def most_added(self) -> int:
        """Levels that a pass after the first may add to a candidate."""
        return max(len(self.logsnrs) // 2, 1)

    def decoded(self, n: int) -> int:
        """Decoded images per level of ``n`` training images: every one equally often in both draws of the noise."""
        return 2 * n * -(-self.samples // (2 * n))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results.

    Attributes:
      records: one per (candidate, feature space, metric).
      recommendations: the best of them per (feature space, metric), or per candidate too if they cannot be compared.
      curves: ``{"candidate/feature space/metric": [S]}`` and the same with "/standard_error"; "candidate/logsnr" ``[S]`` are
        their levels, which candidates need not share, and "logsnr" those of any candidate.
      findings: sentences on the latents' scale.
      noticed: sentences on what looks wrong in the inputs.
      unknown: sentences on what these inputs cannot tell.
      seconds: by candidate.
      compared: "images" or "latents", what distances are between.
    """

    records: list[dict]
    recommendations: list[dict]
    curves: dict[str, np.ndarray]
    findings: list[str]
    noticed: list[str]
    unknown: list[str]
    seconds: dict[str, float]
    compared: str


def plan(
    measures: Mapping[str, metrics.Measure], config: Config, *, candidates: int, n: int, pixels: int, decoding: float
) -> list[plans.Stage]:
    """The stages of `run`.

    Args:
      measures: feature spaces by name.
      config: how candidates are compared.
      candidates: their number.
      n: training images.
      pixels: values of an image.
      decoding: operations of decoding one image; those of a user's function are not known.
    """
    references = [measure.reference.features for measure in measures.values()]
    measuring = image_plans.measuring(
        "noisy autoencoder", sets=candidates * (len(config.logsnrs) + (config.passes - 1) * config.most_added),
        samples=config.decoded(n), reference=len(references[0]),
        dims=[features.shape[1] for features in references], pixels=pixels, decoding=decoding,
    )  # fmt: skip
    return [measuring, plans.host("choose, draw figure", runs=1, seconds=5.0)]


def run(
    candidates: Sequence[Candidate],
    config: Config,
    *,
    comparable: bool,
    report: Callable[[str], None] = print,
    store: Store = NOTHING_KEPT,
) -> Outcome:
    """Measures every candidate and chooses; the function behind the command.

    Args:
      candidates: at least one.
      config: how.
      comparable: whether the candidates' distances are in one space (images), so that dimensions can be compared.
      report: receives progress lines.
      store: where measured candidates are kept.
    """
    of = {}
    for candidate in candidates:
        name = f"measured/{candidate.name}"
        found = store.get(name)
        if found is None:
            found = _measure(candidate, config, comparable=comparable, report=report)
            store.put(name, found)
        else:
            _report_all(found.findings, report)
        of[candidate.name] = found
    rows = [record for found in of.values() for record in found.records]
    pseudo = {(name, *key): p for name, found in of.items() for key, p in found.pseudo.items()}
    curves = {key: curve for found in of.values() for key, curve in found.curves.items()}
    levels = np.unique(np.concatenate([found.curves[f"{name}/logsnr"] for name, found in of.items()]))
    return Outcome(
        records=rows,
        recommendations=choose(rows, pseudo, comparable=comparable),
        curves={"logsnr": levels, **curves},
        findings=[line for found in of.values() for line in found.findings],
        noticed=[line for found in of.values() for line in found.noticed],
        unknown=unknowns(candidates, comparable=comparable),
        seconds={name: found.seconds for name, found in of.items()},
        compared=compared_by(comparable),
    )


class _Measured(NamedTuple):
    """What is kept of one candidate; ``pseudo`` are the values at its best stop by (feature space, metric)."""

    findings: list[str]
    noticed: list[str]
    records: list[dict]
    curves: dict[str, np.ndarray]
    pseudo: dict[tuple[str, str], np.ndarray]
    seconds: float


def _measure(candidate: Candidate, config: Config, *, comparable: bool, report: Callable[[str], None]) -> _Measured:
    """Noise, decoding and distances of one candidate."""
    begin = time.perf_counter()
    try:
        scale = latents.scale_of(candidate.latents, config.scaling)
    except ValueError as error:
        raise ValueError(f"{candidate.name}: {error}") from error
    findings = [latents.describe(candidate.name, candidate.latents, config.scaling, scale)]
    if candidate.training is not None and comparable:
        findings.append(check_decoder(candidate))
    noticed = latents.notices(candidate.name, candidate.latents, config.scaling)
    _report_all(findings + noticed, report)
    logsnrs, values = measure_passes(candidate, scale, config, report=report)
    floors, rows, pseudo = floor_of(candidate), [], {}
    curves = {f"{candidate.name}/logsnr": logsnrs}
    for (space, metric), p in values.items():
        result = stopping.read_stopping_curve(p, negligible=NEGLIGIBLE)
        key = f"{candidate.name}/{space}/{metric}"
        curves |= {key: result.curve, f"{key}/standard_error": result.standard_error}
        pseudo[space, metric] = p[:, -1 if result.best_stop is None else result.best_stop]
        rows.append(make_record(candidate, space, metric, result, floors, scale, config, logsnrs=logsnrs))
    return _Measured(findings, noticed, rows, curves, pseudo, time.perf_counter() - begin)


def measure_passes(
    candidate: Candidate, scale: LatentScale, config: Config, *, report: Callable[[str], None]
) -> tuple[np.ndarray, dict[tuple[str, str], np.ndarray]]:
    """Measures the levels of the first pass, then those that its curves lack, with the same latents and noise.

    Returns:
      Levels ``[S]``, and by (feature space, metric) the pseudo-values ``[K, S]``: those of one pass over all these levels.
    """

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
            report=lambda line: report(f"{candidate.name}: {line}"),
        )

    logsnrs = config.logsnrs
    values = measured(logsnrs)
    for _ in range(config.passes - 1):
        results = [stopping.read_stopping_curve(p, negligible=NEGLIGIBLE) for p in values.values()]
        how = {"chain": config.chain, "span": config.span, "negligible": NEGLIGIBLE}
        more = missing_levels(logsnrs, results, most=config.most_added, **how)
        if not len(more):
            break
        report(f"{candidate.name}: more noise levels, {len(more)} from logsnr {more[0]:.1f} to {more[-1]:.1f}")
        added = measured(more)
        order = np.argsort(np.append(logsnrs, more))
        logsnrs = np.append(logsnrs, more)[order]
        values = {key: np.concatenate([p, added[key]], axis=1)[:, order] for key, p in values.items()}
    return logsnrs, values


def _report_all(lines: Sequence[str], report: Callable[[str], None]) -> None:
    for line in lines:
        report(line)


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
    """One line of records.jsonl."""
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
        "levels": list(logsnrs),
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
        "precision": candidate.precision,
        "data": config.data,
        "seed": config.seed,
    }  # fmt: skip


def stop_fields(logsnr: float | None, config: Config) -> dict:
    """The fields of `pipelines.Stop`; the end of sampling is logsnr null, rf_time 0, vp_alpha 1."""
    fields = dataclasses.asdict(pipelines.stop_at(config.pipeline, logsnr, config.sampling_steps))
    fields = {**fields, "logsnr": logsnr, "divide_by": 1.0 if config.readout == "state" else fields["divide_by"]}
    return {name: value for name, value in fields.items() if name != "steps"}
