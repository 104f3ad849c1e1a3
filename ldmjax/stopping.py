"""Stopping curves: which stopping time is best, how sure that is, and what it gains over not stopping.

Input are pseudo-values p ``[K, S]`` of one metric (metrics.py): K independent blocks of samples, S stopping times along the
same chains, the last one being the end of sampling ("no stop"). With f(s) the block mean and gain(s) = f(end) - f(s):

- **t star** is the argmin of f; of equally good stops the last, so that a curve with a flat end says "end". Its 90 % interval
  holds the middle 85 % of the argmins of bootstrap means (blocks resampled, all stops together: paired). A bootstrap curve
  has the sampler's own fine-grained noise twice, so its argmins spread more than the estimate does; with the middle 90 % the
  interval held the truth in 97-98 % of draws. Near the end of sampling that noise decides the argmin and percentiles fail
  (they held a true "no stop" in 50-74 %), so the interval reaches the end unless some stop s beats it by more than chance:
  (f(end) - f(s)) / se > c, with c the 90 % quantile of the largest studentised deviation over the stops that are not clearly
  worse than the end (t > -2; Andrews & Soares, Econometrica 2010). `experiments.coverage` measures the result.
- **gain** = gain(t star). Its interval must survive the choice of t star among S stops, so it comes from simultaneous bounds:
  low = max over s < end of gain(s) - c_low se(s), high = max over s < end of gain(s) + c_high se(s). c_high is the 95 %
  quantile over bootstrap replicates of the largest studentised deviation over all s. c_low is that quantile too, plus 1.16
  standard errors, which takes the error of the lower bound from 5 % to about 0.25 %: on it rests the claim that stopping
  helps, and a curve that is exactly flat must not be called "stop early". The interval holds at least 90 %.
- **verdict**: "stop early" if low > 0; "no gain from stopping" if high < 1 % of f(end); else "cannot tell".

All of it is conditional on the reference: the error of a held-out sample's own covariance is not in the intervals, unless
the pseudo-values contain it (metrics/features.py).

The **noisy autoencoder** (`noisy_autoencoder`) gives such pseudo-values without a diffusion model: encode the images, put
the noise of level t on the latent, decode ([OS], arXiv 2510.08409 v2; docs/theory.md (7.1)). For Gaussian data and a linear
autoencoder mean and covariance of the result are those of the latent diffusion model stopped at t, trained on the images that
are encoded. Its law is another one, noisy atoms at these images, which noise smooths; sliced W2 and MMD would call that a
gain. So these compare disjoint halves of the images (metrics/features.py), and all curves are those of a model that has
learned the law of the latents, with the mean and covariance of the training images. Networks and samplers with few steps lose
variance, and then stopping earlier may help more than the curve says; what a sampler's steps lose of a Gaussian is known, and
can be added (``chain``). "Cannot tell" is not "no gain".
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from scipy import stats

from ldmjax import oracle
from ldmjax.job import Job
from ldmjax.metrics import Measure, measure_curves
from ldmjax.metrics.statistics import ratio
from ldmjax.schedules import RectifiedFlow, Schedule, noise_var_from_logsnr

CLAIM_ERROR = 0.0025
LEAST_BLOCKS = 16  # with fewer their spread says too little of the error: flat curves were called "stop early"
EQUAL = 1e-9  # values that differ by a smaller share are equally good
VERDICTS = ("stop early", "no gain from stopping", "cannot tell")
MARGIN = 1.5  # by which an interval should clear the bound that it must not hold, to be sure
PLAUSIBLE = 1.0  # standard errors by which a true gain may plausibly differ from its estimate
# What is decoded: the state in variance-preserving coordinates, or the state of the rectified flow, not rescaled.
NOISY_READOUTS = ("rescaled", "state")


@dataclasses.dataclass(frozen=True, kw_only=True)
class StoppingResult:
    """One metric's stopping curve, read.

    Attributes:
      curve: ``[S]``, debiased estimates.
      standard_error: ``[S]``.
      end: value at the end of sampling.
      best: smallest value.
      best_stop, best_stop_low, best_stop_high: index of t* and of its interval; S - 1 means no stop. None if not finite.
      gain, gain_low, gain_high: end - best and its interval, in the metric's own units.
      verdict: one of `VERDICTS`.
    """

    curve: np.ndarray
    standard_error: np.ndarray
    end: float
    best: float
    best_stop: int | None
    best_stop_low: int | None
    best_stop_high: int | None
    gain: float
    gain_low: float
    gain_high: float
    verdict: str

    def record(self, **places: np.ndarray) -> dict[str, float | str | None]:
        """Returns the numbers and the verdict by name, and t* with its interval in every unit of ``places``.

        Args:
          **places: where the stops are, ``[S]``, by name: NAME, NAME_low and NAME_high are those of t* and its interval.
        """
        names = ("end", "best", "gain", "gain_low", "gain_high", "verdict")
        stops = {"": self.best_stop, "_low": self.best_stop_low, "_high": self.best_stop_high}
        found = {name: getattr(self, name) for name in names}
        return found | {
            name + ending: None if stop is None else float(values[stop])
            for name, values in places.items()
            for ending, stop in stops.items()
        }


def read_stopping_curve(
    pseudo: np.ndarray, *, replicates: int = 1000, confidence: float = 0.9, negligible: float = 0.01, seed: int = 0
) -> StoppingResult:
    """Reads one stopping curve, as the module's text says.

    Args:
      pseudo: ``[K, S]`` pseudo-values, K >= 16 blocks, S >= 2 stops in order of sampling.
      replicates: bootstrap replicates.
      confidence: of every interval.
      negligible: share of the distance at the end below which a gain does not count.
      seed: of the bootstrap.

    Raises:
      ValueError: for fewer blocks or stops.
    """
    pseudo = np.asarray(pseudo, np.float64)
    blocks, stops = pseudo.shape
    if blocks < LEAST_BLOCKS or stops < 2:
        raise ValueError(f"need at least {LEAST_BLOCKS} blocks and 2 stops, got {blocks} and {stops}")
    curve = pseudo.mean(axis=0) if np.all(np.isfinite(pseudo)) else np.full(stops, np.inf)
    if not np.all(np.isfinite(curve)):
        nan = float("nan")
        undefined = dict.fromkeys(["best_stop", "best_stop_low", "best_stop_high"])
        return StoppingResult(
            curve=curve,
            standard_error=np.full(stops, nan),
            end=float(curve[-1]),
            best=float(curve[-1]),
            **undefined,
            gain=nan,
            gain_low=nan,
            gain_high=nan,
            verdict="cannot tell",
        )
    weights = np.random.default_rng(seed).multinomial(blocks, np.full(blocks, 1.0 / blocks), replicates) / blocks
    # Resampled deviations are too small by (K - 1)/K in variance.
    bootstrap = curve + (weights @ pseudo - curve) * np.sqrt(blocks / (blocks - 1.0))
    # Everything below is about gains over the end of sampling, studentised; a stop that never differs from it has none.
    differences = pseudo[:, -1:] - pseudo
    # A stop that equals the end but for rounding does so exactly.
    differences[:, np.max(np.abs(differences), axis=0) <= EQUAL * np.maximum(np.abs(curve), np.abs(curve[-1]))] = 0.0
    gain = differences.mean(axis=0)
    error = differences.std(axis=0, ddof=1)[:-1] / np.sqrt(blocks)
    deviation = ratio(bootstrap[:, -1:] - bootstrap[:, :-1] - gain[:-1], error)
    tail = 0.5 * (1.0 - confidence)
    upward, downward = (np.quantile(np.max(sign * deviation, axis=1), 1.0 - tail) for sign in (1, -1))
    upward += stats.norm.isf(CLAIM_ERROR) - stats.norm.isf(tail)
    # What equals the end gains exactly 0, which bounds nothing.
    rivals = error > 0 if np.any(error > 0) else np.ones_like(error, bool)
    gain_low, gain_high = (np.max((gain[:-1] + w * error)[rivals]) for w in (-upward, downward))
    low, high = np.quantile(_last_argmin(bootstrap), [1.5 * tail, 1.0 - 1.5 * tail], method="inverted_cdf")
    if _end_may_be_best(ratio(gain[:-1], error), deviation, confidence):
        high = stops - 1
    best = int(_last_argmin(curve))
    if gain_low > 0:
        verdict = "stop early"
    else:
        verdict = "no gain from stopping" if gain_high < negligible * curve[-1] else "cannot tell"
    return StoppingResult(
        curve=curve,
        standard_error=pseudo.std(axis=0, ddof=1) / np.sqrt(blocks),
        end=float(curve[-1]),
        best=float(curve[best]),
        best_stop=best,
        best_stop_low=min(int(low), best),
        best_stop_high=max(int(high), best),
        gain=float(gain[best]),
        gain_low=float(gain_low),
        gain_high=float(max(gain_high, 0.0)),
        verdict=verdict,
    )


def _last_argmin(curves):
    """Returns place of the smallest value along the last axis; of equally good ones the last."""
    least = np.min(curves, axis=-1, keepdims=True)
    good = curves <= least + EQUAL * np.maximum(np.abs(least), np.abs(curves[..., -1:]))
    return curves.shape[-1] - 1 - np.argmax(good[..., ::-1], axis=-1)


def _end_may_be_best(studentised_gain, studentised_deviation, confidence):
    """Says whether no stop before the end beats it by more than chance."""
    rivals = studentised_gain > -2.0
    if not rivals.any():
        return True
    critical = np.quantile(np.max(studentised_deviation[:, rivals], axis=1), confidence)
    return np.max(studentised_gain[rivals]) <= critical


def is_told(distance: float, standard_error: float) -> bool:
    """Says whether a bias-corrected distance can be told from 0: it is more than two standard errors above."""
    return bool(distance > 2.0 * standard_error)


def images_needed(result: StoppingResult, *, images: int, negligible: float = 0.01) -> tuple[int, int] | None:
    """Estimates how many images would turn "cannot tell" into a verdict: a range, as the true gain is not known.

    Interval widths fall as the root of the number of images. If the true gain were g, a verdict would need the smaller of two
    numbers: that which lifts the gain's lower bound above 0, and that which brings its upper bound below ``negligible`` of the
    end. The range is over all g within `PLAUSIBLE` standard errors of the estimate, its upper end with `MARGIN` to spare. On
    simulated curves a verdict followed in some 5 to 50 % of cases at the lower end, in 70 % and more at the upper.

    Args:
      result: a curve without a verdict.
      images: the number that it was measured with.
      negligible: as in `read_stopping_curve`.

    Returns:
      (fewest, most), both above ``images``; or None where the curve is not finite, has a verdict, or ends at a distance that
      cannot be told from 0, of which no share is known.
    """
    target = negligible * result.end
    told = is_told(result.end, result.standard_error[-1])
    if result.verdict != "cannot tell" or not np.isfinite(result.gain) or not told:
        return None
    below, above = result.gain - result.gain_low, result.gain_high - result.gain
    error = PLAUSIBLE * max(below, above) / stats.norm.isf(CLAIM_ERROR)
    gains = np.append(
        np.linspace(max(result.gain - error, 0.0), result.gain + error, 101), target * below / (below + above)
    )
    gains = gains[(gains >= max(result.gain - error, 0.0)) & (gains <= result.gain + error)]
    with np.errstate(divide="ignore"):
        factors = np.minimum(below / gains, np.where(gains < target, above / np.abs(target - gains), np.inf))
    fewest, most = images * max(factors.min(), 1.0) ** 2, images * (MARGIN * max(factors.max(), 1.0)) ** 2
    return max(int(np.ceil(fewest)), images + 1), int(np.ceil(most))


class Chain(NamedTuple):
    """A sampler with few steps, evenly spaced in the schedule's time; arguments of `oracle.variance_kept`."""

    schedule: Schedule
    steps: int
    sampler: str

    @property
    def logsnrs(self) -> np.ndarray:
        """After each step ``[steps]``, rising; the last is +inf."""
        return oracle.variance_kept([1.0], self.schedule, self.steps, sampler=self.sampler)[0]


def noisy_autoencoder(
    latents: np.ndarray,
    decode: Callable[[np.ndarray], np.ndarray],
    measures: Mapping[str, Measure],
    *,
    logsnrs: np.ndarray,
    samples: int = 4096,
    readout: str = "rescaled",
    chain: Chain | None = None,
    seed: int = 0,
    report: Callable[[str], None] = print,
) -> dict[tuple[str, str], np.ndarray]:
    """Returns pseudo-values of the noisy autoencoder's stopping curves, one decoding per noise level.

    Every level sees the same latents and the same noise (common random numbers). The law that is measured is that of a model
    that has learned the encoded images (module docstring).

    Args:
      latents: encoded training images ``[n, ...]`` on the scale that the diffusion model would be trained on.
      decode: latents on that scale ``[N, ...]`` -> images ``[N, ...]``.
      measures: feature spaces by name.
      logsnrs: ``[S]``, rising; +inf is the end of sampling, no noise.
      samples: least number of decoded images per level, half with one draw of the noise and half with another; rounded up to a
        multiple of 2 n, as every latent is used equally often.
      readout: one of `NOISY_READOUTS`.
      chain: takes from every principal component of the latents the variance that this sampler loses of a Gaussian with the
        exact score (or adds to it); ``logsnrs`` are then among those after its steps. None for a perfect sampler.
      seed: of the noise and the order.
      report: receives lines on how far it is.

    Returns:
      ``{(feature space, metric): [K, S]}`` for `read_stopping_curve`.

    Raises:
      ValueError: for levels that do not rise, or are not the chain's, or an unknown readout.
    """
    logsnrs = np.asarray(logsnrs, np.float64)
    if readout not in NOISY_READOUTS:
        raise ValueError(f"readout must be one of {', '.join(NOISY_READOUTS)}, got {readout!r}")
    if logsnrs.ndim != 1 or np.any(np.diff(logsnrs) <= 0) or np.any(np.isnan(logsnrs)):
        raise ValueError(f"logsnrs must rise, got {logsnrs.tolist()}")
    rng = np.random.default_rng([seed, 2])
    copies = max(-(-samples // (2 * len(latents))), 1)
    clean = np.repeat(np.asarray(latents, np.float32)[rng.permutation(len(latents))], copies, axis=0)
    noise = rng.standard_normal((2, *clean.shape), np.float32)
    shrink = (lambda state, *at: state) if chain is None else _shrinking(latents, chain, logsnrs)

    def levels():
        with Job(show=report).progress("noisy autoencoder", len(logsnrs), unit="level") as progress:
            for done, logsnr in enumerate(logsnrs, start=1):
                noise_var = noise_var_from_logsnr(logsnr)
                signal, spread, radius = np.sqrt(1.0 - noise_var), np.sqrt(noise_var), 1.0
                if readout == "state":
                    schedule = RectifiedFlow()
                    radius = schedule.radius(schedule.inverse_logsnr(logsnr))
                state = radius * shrink(signal * clean + spread * noise, signal, logsnr)
                images = decode(state.astype(np.float32).reshape(-1, *clean.shape[1:]))
                yield images.reshape(2, len(clean), *images.shape[1:])
                progress.update(done)

    return measure_curves(levels(), measures, copies=copies)


def _shrinking(latents, chain, logsnrs):
    """Returns (variance-preserving states ``[2, N, ...]``, alpha, logsnr) -> states with the chain's loss."""
    flat = np.reshape(latents, (len(latents), -1)).astype(np.float64)
    mean = flat.mean(axis=0)
    _, singular, axes = np.linalg.svd(flat - mean, full_matrices=False)
    # The last entry stands for all directions in which the latents do not vary.
    variances = np.append(singular**2 / len(flat), 0.0)
    stops, kept = oracle.variance_kept(variances, chain.schedule, chain.steps, sampler=chain.sampler)
    places = {float(at): np.argmin(np.abs(stops - at)) if np.isfinite(at) else len(stops) - 1 for at in logsnrs}
    if wrong := [at for at, k in places.items() if at != stops[k] and not abs(at - stops[k]) < 1e-6]:
        raise ValueError(f"logsnrs must be levels of the chain's {chain.steps} steps, got {wrong[0]:.6g}")

    def shrink(state, signal, logsnr):
        root = np.sqrt(kept[places[float(logsnr)]])
        away = state.reshape(*state.shape[:2], -1) - signal * mean
        away = root[-1] * away + ((away @ axes.T) * (root[:-1] - root[-1])) @ axes
        return (signal * mean + away).reshape(state.shape)

    return shrink
