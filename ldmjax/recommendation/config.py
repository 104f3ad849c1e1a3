"""How latent spaces are compared: noise levels, the sampler whose stops they are, the scale of latents."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from ldmjax import oracle, pipelines, stopping
from ldmjax.recommendation.scales import STANDARDISE, Scaling


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecommendationConfig:
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
      standardise: how latents are brought to deviation 1, out of `scales.STANDARDISE`: "all", "channel" or "none".
      latent_scale, latent_shift: instead, ``(latents - shift) * scale`` as in diffusers; one number or one per channel.
      seed: of the split and the noise.
      data: name of the data, for the records.

    Raises:
      ValueError: for what is not allowed; the text begins with the name of the attribute and a colon.
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
    standardise: str = "all"
    latent_scale: float | Sequence[float] | None = None
    latent_shift: float | Sequence[float] | None = None
    seed: int = 0
    data: str = ""

    def __post_init__(self):
        for name in ("stops", "passes", "samples"):
            least = {"stops": 2}.get(name, 1)
            if getattr(self, name) < least:
                raise ValueError(f"{name}: must be at least {least}, got {getattr(self, name)}")
        self._check_words()
        self._check_sampler()
        for name, numbers in (("latent_scale", self.scaling.multiply), ("latent_shift", self.scaling.shift)):
            if numbers is not None and self.standardise != "all":
                raise ValueError(f"{name}: allowed only without standardise")
            if numbers is not None and not (
                np.all(np.isfinite(numbers)) and (name == "latent_shift" or min(numbers) > 0)
            ):
                raise ValueError(
                    f"{name}: must hold finite numbers{' > 0' if name == 'latent_scale' else ''}, got {numbers}"
                )

    def _check_words(self):
        allowed = {"readout": stopping.NOISY_READOUTS, "sampler": pipelines.NAMES, "standardise": STANDARDISE}
        if self.solver is not None:
            allowed["solver"] = oracle.KEPT_BY
        for name, words in allowed.items():
            if getattr(self, name) not in words:
                raise ValueError(f"{name}: must be one of {', '.join(words)}, got {getattr(self, name)!r}")

    def _check_sampler(self):
        if self.sampler != "flow_matching" and not self.shift is self.tokens is None:
            raise ValueError("shift: allowed only with sampler=flow_matching")
        try:
            state = self.pipeline.state
        except ValueError as error:
            raise ValueError(f"shift: {error}") from error
        if self.readout == "state" and state != "flow":
            raise ValueError("readout: needs sampler=rectified_flow or flow_matching, whose state it is")
        if self.sampling_steps is None and self.solver is not None:
            raise ValueError("solver: needs sampling_steps, which it takes")
        try:
            count = len(self.logsnrs)
        except ValueError as error:
            raise ValueError(f"sampling_steps: {error}") from error
        if count < 2:
            between = f"between logsnr {self.logsnr_min:g} and {self.logsnr_max:g}"
            raise ValueError(f"sampling_steps: must leave a stop {between}: more steps of {self.sampler}")

    @functools.cached_property
    def pipeline(self) -> pipelines.Sampler:
        """The sampler."""
        return pipelines.make_sampler(self.sampler, shift=self.shift, tokens=self.tokens)

    @property
    def scaling(self) -> Scaling:
        """How latents are brought to deviation 1."""
        return Scaling(self.standardise, *map(_numbers, (self.latent_scale, self.latent_shift)))

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


def _numbers(given):
    return None if given is None else np.atleast_1d(given).tolist()
