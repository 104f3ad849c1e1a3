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
scaled to [-1, 1]. A --features function may be called from two threads at once. --latents: an .npz file whose arrays
``[N, ...]`` are candidates, row i the latent of image i of --data.

Obtained: README's section on images. 10,000 MNIST images, six given convolutional autoencoders: 163 s on two cores. The
intervals of t* are checked by `python -m experiments.coverage --analyses=noisy_autoencoder`, the predictions on trained
diffusion models by `python -m experiments.noisy_autoencoder`.
"""

import dataclasses
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from experiments import image_plans, plans
from experiments.recommend.candidates import Candidate
from experiments.recommend.choice import NEGLIGIBLE, choose, compared_by, unknowns
from experiments.recommend.levels import edge_of, missing_levels
from ldmjax import metrics, schedules, stopping
from ldmjax.autoencoders import LatentScale
from ldmjax.checkpoints import NOTHING_KEPT, Store

__all__ = ["Candidate", "Config", "Outcome", "plan", "run"]

SCHEDULES = {"rectified_flow": schedules.RectifiedFlow(), "linear_vp": schedules.LinearVP()}
WHITENED = 1.1  # latents whose components' standard deviations differ by less than this factor


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """How candidates are compared.

    Attributes:
      stops: noise levels, the last of them the end of sampling (no noise).
      passes: over the levels; every one after the first adds at most half as many levels where curves need them (levels.py).
      logsnr_min, logsnr_max: range of the others, evenly spaced.
      samples: least number of decoded images per level; every training image is decoded at least twice.
      readout: one of `stopping.NOISY_READOUTS`.
      schedule: a name of `SCHEDULES`, whose steps denoising_end counts.
      sampling_steps: None for a perfect sampler, else the steps whose loss of variance is added; stops are after steps.
      solver: that takes these steps, one of `oracle.KEPT_BY`.
      latent_scale: None to standardise latents by their own mean and deviation, or the number to divide them by.
      seed: of the split and the noise.
      data: name of the images, for the records.
    """

    stops: int = 20
    passes: int = 2
    logsnr_min: float = -2.0
    logsnr_max: float = 11.0
    samples: int = 8192
    readout: str = "rescaled"
    schedule: str = "rectified_flow"
    sampling_steps: int | None = None
    solver: str = "euler"
    latent_scale: float | None = None
    seed: int = 0
    data: str = ""

    def __post_init__(self):
        if len(self.logsnrs) < 2:
            raise ValueError(
                f"must leave a stop between logsnr {self.logsnr_min:g} and {self.logsnr_max:g}: more steps on {self.schedule}"
            )

    @property
    def chain(self) -> stopping.Chain | None:
        """The sampler with ``sampling_steps`` steps."""
        if self.sampling_steps is None:
            return None
        return stopping.Chain(SCHEDULES[self.schedule], self.sampling_steps, self.solver)

    @property
    def logsnrs(self) -> np.ndarray:
        """Of the first pass: rising ``[stops]``, the last +inf; fewer if the sampler has fewer steps in the range."""
        if self.chain is None:
            return np.append(np.linspace(self.logsnr_min, self.logsnr_max, self.stops - 1), np.inf)
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
      unknown: sentences on what these inputs cannot tell.
      seconds: by candidate.
      compared: "images" or "latents", what distances are between.
    """

    records: list[dict]
    recommendations: list[dict]
    curves: dict[str, np.ndarray]
    findings: list[str]
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
        unknown=unknowns(candidates, comparable=comparable),
        seconds={name: found.seconds for name, found in of.items()},
        compared=compared_by(comparable),
    )


class _Measured(NamedTuple):
    """What is kept of one candidate; ``pseudo`` are the values at its best stop by (feature space, metric)."""

    findings: list[str]
    records: list[dict]
    curves: dict[str, np.ndarray]
    pseudo: dict[tuple[str, str], np.ndarray]
    seconds: float


def _measure(candidate: Candidate, config: Config, *, comparable: bool, report: Callable[[str], None]) -> _Measured:
    """Noise, decoding and distances of one candidate."""
    begin = time.perf_counter()
    scale, finding = check_scale(candidate, config.latent_scale)
    findings = [finding] if candidate.training is None or not comparable else [finding, check_decoder(candidate)]
    _report_all(findings, report)
    logsnrs, values = measure_passes(candidate, scale, config, report=report)
    floors, rows, pseudo = floor_of(candidate), [], {}
    curves = {f"{candidate.name}/logsnr": logsnrs}
    for (space, metric), p in values.items():
        result = stopping.read_stopping_curve(p, negligible=NEGLIGIBLE)
        key = f"{candidate.name}/{space}/{metric}"
        curves |= {key: result.curve, f"{key}/standard_error": result.standard_error}
        pseudo[space, metric] = p[:, -1 if result.best_stop is None else result.best_stop]
        rows.append(make_record(candidate, space, metric, result, floors, scale, config, logsnrs=logsnrs))
    return _Measured(findings, rows, curves, pseudo, time.perf_counter() - begin)


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
        more = missing_levels(logsnrs, results, most=config.most_added, chain=config.chain, negligible=NEGLIGIBLE)
        if not len(more):
            break
        report(f"{candidate.name}: {len(more)} more noise levels, logsnr {more[0]:.1f} to {more[-1]:.1f}")
        added = measured(more)
        order = np.argsort(np.append(logsnrs, more))
        logsnrs = np.append(logsnrs, more)[order]
        values = {key: np.concatenate([p, added[key]], axis=1)[:, order] for key, p in values.items()}
    return logsnrs, values


def _report_all(lines: Sequence[str], report: Callable[[str], None]) -> None:
    for line in lines:
        report(line)


def check_scale(candidate: Candidate, latent_scale: float | None) -> tuple[LatentScale, str]:
    """The scale that latents are brought to before noise is added, and a sentence on it.

    Noise levels mean something only relative to the latents' scale: latents with standard deviation 5 that are not divided
    by it see a noise level of logsnr l as l + 2 log 5.
    """
    own = LatentScale.measure(candidate.latents)
    components = candidate.latents.reshape(len(candidate.latents), -1).std(axis=0)
    spread = components.max() / max(components.min(), np.finfo(np.float32).tiny)
    text = f"{candidate.name}: {candidate.latent_dim} latent entries, mean {own.mean:.3g}, standard deviation {own.std:.3g}"
    if spread < WHITENED:
        text += " (nearly equal in all of them: if they are also uncorrelated, stopping changes the covariance little)"
    if latent_scale is None:
        return (
            own,
            text + "; noise is added after bringing them to mean 0 and deviation 1: train the diffusion model so too",
        )
    ratio = own.std / latent_scale
    text += f"; divided by {latent_scale:g} as asked, which leaves a deviation of {ratio:.3g}"
    if not 1 / WHITENED < ratio < WHITENED:
        text += f": not 1, which shifts every stop by {-2 * np.log(ratio):+.2g} in logsnr against standardised latents"
    return LatentScale(mean=0.0, std=latent_scale), text


def check_decoder(candidate: Candidate) -> str:
    """A sentence on the reconstruction of up to 1000 training images, which shows a range of values that does not fit."""
    images = candidate.training[:1000]
    error = np.mean((candidate.decode(candidate.latents[: len(images)]) - images) ** 2)
    variance = np.mean((images - images.mean(axis=0)) ** 2)
    text = (
        f"{candidate.name}: images have shape {list(images.shape[1:])} and values {images.min():.3g} to {images.max():.3g}; "
        f"reconstruction error {error:.3g} per value, {100 * error / variance:.3g} % of their variance"
    )
    if error > variance:
        text += ": WORSE THAN THE MEAN IMAGE. Do encode and decode expect this range of values?"
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
    edge = edge_of(result, logsnrs, chain=config.chain, negligible=NEGLIGIBLE)
    needed = stopping.images_needed(result, images=len(reference.features), negligible=NEGLIGIBLE)
    stop = [None if k in (None, len(logsnrs) - 1) else logsnrs[k] for k in stops]
    return {
        "name": candidate.name,
        "features": space,
        "metric": metric,
        "squared": True,
        "latent_dim": candidate.latent_dim,
        **stop_fields(stop[0], config.schedule),
        "divide_by": divisor(stop[0], config),
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
        "solver": None if config.sampling_steps is None else config.solver,
        "latent_mean": scale.mean,
        "latent_std": scale.std,
        "training_images": len(candidate.latents),
        "reference_images": len(reference.features),
        "decoded_images": config.decoded(len(candidate.latents)),
        "feature_dim": reference.features.shape[1],
        "precision": candidate.precision,
        "data": config.data,
        "seed": config.seed,
    }  # fmt: skip


def stop_fields(logsnr: float | None, schedule: str) -> dict:
    """One stopping time in four languages; the end of sampling is logsnr null, rf_time 0, vp_alpha 1, denoising_end 1.

    denoising_end is the share of the steps to run, as in diffusers, with steps evenly spaced in the schedule's time.
    """
    if logsnr is None:
        return {"logsnr": None, "rf_time": 0.0, "vp_alpha": 1.0, "denoising_end": 1.0}
    chosen = SCHEDULES[schedule]
    return {
        "logsnr": logsnr,
        "rf_time": float(schedules.RectifiedFlow().inverse_logsnr(logsnr)),
        "vp_alpha": float(np.sqrt(1.0 - schedules.noise_var_from_logsnr(logsnr))),
        "denoising_end": 1.0 - float(chosen.inverse_logsnr(logsnr)) / chosen.t_max,
    }


def divisor(logsnr: float | None, config: Config) -> float:
    """What a stopped latent is divided by before it is decoded: the state of a rectified flow is narrower than its VP twin."""
    if logsnr is None or config.readout == "state" or config.schedule != "rectified_flow":
        return 1.0
    flow = schedules.RectifiedFlow()
    return float(flow.radius(flow.inverse_logsnr(logsnr)))
