"""Which latent dimension, and stop where, before a diffusion model is trained.

Encodes the training images, puts the noise of every level on the latents, decodes, and measures the distance of the
outputs to held-out images: the noisy autoencoder of [OS] (arXiv 2510.08409 v2; ldmjax.recommendation, whose function
`ldmjax.recommend` does the same in a notebook). The curves are those of a model that has learned the law of the latents, with
the mean and covariance of the training images; --sampling_steps=N adds the variance that N steps of a sampler (--solver) lose
of a Gaussian, and stops after steps only. Per feature space and metric it gives the latent dimension and the stopping time
with the smallest distance, their intervals, and a verdict: "stop early", "no gain from stopping", or "cannot tell", then with
about how many images would let it tell.

    python -m experiments.recommend --data=images.npz               # the suite's autoencoders
    python -m experiments.recommend --data=images.npz --autoencoder=module:factory
    python -m experiments.recommend --data=images.npz --latents=z.npz --decoder=module:function
    python -m experiments.recommend --latents=z.npz                 # says what it cannot know

--autoencoder: factory(latent_dim) for every --latent_dims, or factory() if none is given, returns an object with encode
(images ``[N, *image_shape]`` to latents ``[N, ...]``) and decode, on numpy float32 arrays; unsigned 8-bit images come
scaled to [-1, 1], and channels where the data has them. Images that are there several times are used once; images in another
form than the autoencoder expects are refused. A --features function may be called from two threads at once. --latents: an
.npz whose arrays ``[N, ...]`` are candidates, or an .npy; row i is the latent of image i of --data. What to type for SDXL,
SD 3 and Flux:

    --sampler=scaled_linear_euler --sampling_steps=50
    --sampler=flow_matching --shift=3 --sampling_steps=28
    --sampler=flow_matching --shift=dynamic:4096 --sampling_steps=50

Takes 1 min on digits; the numbers obtained stand in docs/results.md#recommend, the guide is docs/recommend.md. The intervals
are checked by `experiments.coverage`, the predictions on trained diffusion models by `experiments.noisy_autoencoder`.
"""

import dataclasses
import functools
import time
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from experiments import launch
from experiments.launch import Report, Results, Stage, setting
from ldmjax import autoencoders, data, oracle, pipelines, stopping
from ldmjax.autoencoders.convolutional import parameter_count
from ldmjax.job import Job, printing
from ldmjax.metrics import Measure
from ldmjax.recommendation import Candidate, Recommendation, RecommendationConfig, compare, inputs, scales
from ldmjax.recommendation.candidates import BLOCKS, digest_of, measures_of, of_autoencoders

SUITES = {"full": (("pca", "conv"), (2, 4, 8, 16, 32, 64)), "small": (("pca",), (2, 8))}
QUICK = {"suite": "small", "samples": 2048, "stops": 10, "most_images": 400}
HOW = ("stops", "samples", "readout", "sampler", "sampling_steps", "solver", "standardise", "seed")
FACTORS = ("latent_scale", "latent_shift")
SECONDS = "seconds of autoencoders"
NOT_ALONE = "not used with --latents alone: give --decoder "


def read_numbers(word: str) -> list[float]:
    """Reads comma-separated finite numbers."""
    numbers = [float(part) for part in word.split(",")]
    if not np.all(np.isfinite(numbers)):
        raise ValueError
    return numbers


def read_factors(word: str) -> list[float]:
    """Reads comma-separated finite numbers > 0."""
    if min(numbers := read_numbers(word)) <= 0:
        raise ValueError
    return numbers


def read_shift(word: str) -> dict[str, float]:
    """Reads the shift of flow matching as arguments of `pipelines.make_sampler`."""
    name, _, tokens = word.rpartition(":")
    try:
        shift = {"tokens": int(tokens)} if name == "dynamic" else {"shift": float(word)}
    except ValueError:
        raise ValueError from None
    pipelines.make_sampler("flow_matching", **shift)
    return shift


@dataclasses.dataclass(frozen=True, kw_only=True)
class Inputs:
    """What is known, and has been tried on a few images, before anything is written.

    Attributes:
      make: gives the candidates; trains and encodes where that is needed.
      name: of the data.
      digest: of the data.
      n: training images.
      shapes: of one latent of each candidate.
      trained: autoencoders of the suite by kind, (runs, mean parameters of one).
      noticed: sentences on what looks wrong.
      digests: of what the user's functions give on a few images, by setting.
      about: for metadata.json.
    """

    make: Callable[[Job], list[Candidate]]
    name: str
    digest: str = ""
    n: int
    shapes: Sequence[tuple[int, ...]]
    trained: Mapping[str, tuple[int, float]] = dataclasses.field(default_factory=dict)
    noticed: Sequence[str]
    digests: Mapping[str, str] = dataclasses.field(default_factory=dict)
    about: Mapping[str, object] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings, launch.FeatureSettings):
    """What is compared, and how."""

    channels: str = setting(
        "auto", "Where images of --data have them; your functions take the same.", choices=data.channels.LAYOUTS
    )
    suite: str = setting(
        "full",
        "The suite's autoencoders and latent dimensions, as far as D, where neither your own nor others are given: pca,conv "
        "with 2,4,8,16,32,64, or pca with 2,8.",
        choices=tuple(SUITES),
    )
    autoencoders: tuple[str, ...] | None = setting(
        None, "Of the suite, trained on the n images, for every --latent_dims.", choices=("pca", "conv", "kl", "vq")
    )
    autoencoder: str | None = launch.function("The user's own instead: a function that makes them.")
    latents: str | None = setting(
        None,
        "Stored latents instead: arrays [N, ...], row i for image i.",
        allowed="an .npz or .npy file",
        check=lambda path: launch.check_file(path, ".npz", ".npy"),
    )
    decoder: str | None = launch.function("With --latents, a function from latents to images.")
    latent_dims: tuple[int, ...] | None = setting(None, "Latent dimensions.", low=1, high=100_000)
    n: int | None = setting(
        None, "Training images: those a diffusion model would see; half if not given.", low=BLOCKS, high=1_000_000
    )
    reference: int | None = setting(None, "Held-out images; the rest if not given.", low=inputs.FEWEST, high=1_000_000)
    most_images: int = setting(
        inputs.LARGEST, "Of either kind, where no other number is given.", low=inputs.FEWEST, high=1_000_000
    )
    samples: int = setting(8192, "Least number of decoded images per noise level.", low=128, high=1_048_576)
    stops: int = setting(20, "Noise levels, the last one none; more by half where needed.", low=2, high=10_000)
    decode_batch: int = setting(inputs.BATCH, "Images per call of the user's encode and decode.", low=1, high=65_536)
    autoencoder_steps: int = setting(2000, "Optimiser steps of the suite's autoencoders.", low=1, high=10_000_000)
    precision: str = launch.precision_setting()
    seed: int = launch.seed(help="Chooses the split, the autoencoders' initialisation and the noise.")
    readout: str = setting(
        "rescaled", "What is decoded, VP coordinates or the flow's state.", choices=stopping.NOISY_READOUTS
    )
    sampler: str = setting(
        "rectified_flow", "In whose words stops are given; for SDXL, SD3 and Flux see above.", choices=pipelines.NAMES
    )
    shift: str | None = setting(
        None,
        "Of --sampler=flow_matching: 3 for SD3; dynamic:4096 for Flux at 1024 x 1024 (pixels / 256 tokens).",
        allowed="a number from 0.01 to 100 or dynamic:TOKENS",
        check=read_shift,
    )
    sampling_steps: int | None = setting(
        None, "Of the sampler: stops after steps, with what they lose of a Gaussian.", low=2, high=100_000
    )
    solver: str | None = setting(
        None, "That takes the --sampling_steps; the sampler's own if not given.", choices=oracle.KEPT_BY
    )
    standardise: str = setting(
        "all", "Bring latents to mean 0 and deviation 1: all, each channel, or not.", choices=scales.STANDARDISE
    )
    latent_scale: str | None = setting(
        None,
        "Multiply latents by this instead, as diffusers' scaling_factor; one number or one per channel.",
        allowed="a finite number > 0, or one per channel",
        check=read_factors,
    )
    latent_shift: str | None = setting(
        None,
        "Subtracted before, as diffusers' shift_factor; one number or one per channel.",
        allowed="a finite number, or one per channel",
        check=read_numbers,
    )

    def __post_init__(self):
        super().__post_init__()
        own, alone = self.autoencoder or self.latents, self.latents and not self.decoder
        default = {field.name: field.default for field in dataclasses.fields(self)}
        changed = {name for name, value in default.items() if getattr(self, name) != value}
        together = {
            "spectrum": (True, "images are needed, a spectrum has none: give --data"),
            "autoencoder": (self.latents, "allowed only without --latents"),
            "autoencoders": (own, "allowed only without --autoencoder and --latents"),
            "precision": (own, "allowed only without --autoencoder and --latents"),
            "features": (alone, f"{NOT_ALONE}and --data too"),
            "channels": (alone, f"{NOT_ALONE}and --data too"),
            "data": (alone, f"{NOT_ALONE}too, or leave --data out"),
            "latent_dims": (self.latents, "allowed only without --latents, whose arrays have their own"),
        }
        for name, (refused, allowed) in together.items():
            if refused and name in changed:
                raise self.refuse(name, allowed)
        if self.decoder and not self.latents:
            raise self.refuse("decoder", "allowed only with --latents")
        if self.decoder and not self.data:
            raise self.refuse("decoder", "needs --data, the images that the latents encode, to compare with")
        launch.check_precision(self, self.kinds)
        self.allowing(self.how)

    @property
    def kinds(self) -> tuple[str, ...]:
        """Autoencoders of the suite."""
        return self.autoencoders or SUITES[self.suite][0]

    def how(self, name: str = "") -> RecommendationConfig:
        """How candidates are compared, with the name of the data."""
        given = {key: getattr(self, key) for key in HOW}
        factors = {key: word and read_numbers(word) for key in FACTORS for word in [getattr(self, key)]}
        shift = {} if self.shift is None else read_shift(self.shift)
        return RecommendationConfig(**given, **factors, **shift, data=name)

    def allowing(self, function: Callable, *args, otherwise: str = "", **options):
        """What ``function`` gives; a ValueError is the refusal of the setting that it begins with, or of ``otherwise``."""
        try:
            return function(*args, **options)
        except launch.SettingError:
            raise
        except ValueError as error:
            name, _, allowed = str(error).partition(": ")
            name = "data" if name == "images" else name
            if not hasattr(self, name):
                name, allowed = otherwise, str(error)
            raise self.refuse(name, allowed) from error

    def load(self) -> Inputs:
        """Reads what the settings name, tries the user's functions on a few images, and shows what is noticed."""
        functions = {
            name: launch.import_named(self, name) for name in ("autoencoder", "decoder") if getattr(self, name)
        }
        self.import_features()
        stored, lines = {}, []
        if self.latents is not None:
            stored, lines = self.allowing(data.load_latents, self.latents, otherwise="latents")
        how = {"n": self.n, "reference": self.reference, "most": self.most_images, "seed": self.seed}
        if stored and not self.decoder:
            found, noticed = self.allowing(inputs.latents_alone, stored, **how, otherwise="latents")
            known = self._given(found, name=self.latents, noticed=noticed)
        else:
            known = self._load_images(stored, how, **functions)
        self.allowing(scales.check_factors, self.how().scaling, known.shapes)
        for line in [*lines, *known.noticed]:
            print(line, flush=True)
        return known

    def _load_images(self, stored, how, *, autoencoder=None, decoder=None) -> Inputs:
        dataset = super().load(layout=self.channels)
        self.check_images(dataset)
        split = self.allowing(inputs.split_images, dataset, **how)
        maps = {space.name: space for space in self.load_features(dataset, job=Job(show=printing))}
        measures = self.allowing(measures_of, maps, split.held_out, self.seed, otherwise="features")
        digests = {name: space.digest for name, space in maps.items()}
        fields = {"name": dataset.name, "digest": dataset.digest, "about": {"features_sha256": digests}}
        digests = {"features": " ".join(digests.values())}
        options = {"batch": self.decode_batch, "channels_first": dataset.channels_first}
        if autoencoder is not None:
            call = functools.partial(self.allowing, otherwise="autoencoder")
            named = call(inputs.made_by, autoencoder, self.latent_dims)
            tried = call(of_autoencoders, named, split.training[:2], measures, **options)
            noticed = call(inputs.check_forms, named, split.training, measures, **options)
            fields |= {"noticed": split.noticed + noticed, "digests": digests | {"autoencoder": digest_of(tried)}}
            return Inputs(
                make=lambda job: call(of_autoencoders, named, split.training, measures, job=job, **options),
                n=len(split.training),
                shapes=[one.latents.shape[1:] for one in tried],
                **fields,
            )
        if not stored:
            return self._of_suite(dataset, split, measures, digests=digests, **fields)
        call = functools.partial(self.allowing, otherwise="decoder")
        found, noticed = call(inputs.stored_latents, stored, decoder, split, measures, **options)
        fields |= {"noticed": split.noticed + noticed, "digests": digests | {"decoder": digest_of(found)}}
        return self._given(found, **fields)

    def _given(self, found: list[Candidate], **fields) -> Inputs:
        """Candidates that need no training."""
        for one in found:
            self.allowing(scales.scale_of, one.latents, self.how().scaling, otherwise="latents")
        shapes = [one.latents.shape[1:] for one in found]
        return Inputs(make=lambda job: found, n=len(found[0].latents), shapes=shapes, **fields)

    def _of_suite(
        self, dataset: data.Dataset, split: inputs.Split, measures: Mapping[str, Measure], **fields
    ) -> Inputs:
        """Candidates of the suite's autoencoders."""
        n, image_shape = len(split.training), dataset.image_shape
        if self.latent_dims is not None:
            self.check_latent_dims(dataset)
        shapes = [
            (d,) for d in self.latent_dims or SUITES[self.suite][1] if self.latent_dims or d <= min(dataset.dim, n)
        ]
        how = {"steps": self.autoencoder_steps, "precision": self.precision}
        kinds = {kind: autoencoders.AutoencoderConfig(kind=kind, **how) for kind in self.kinds}
        for kind in kinds:
            self.check_latent_shapes("latent_dims", kind, shapes, dataset, n=n)

        def make(job):
            begin, named = time.perf_counter(), {}
            fit = functools.partial(autoencoders.fit, seeds=[self.seed] * len(shapes), job=job)
            for kind, config in kinds.items():
                fitted = self.allowing(fit, split.training, shapes, config, otherwise="autoencoders")
                named |= {f"{kind} {d}": one for (d,), one in zip(shapes, fitted, strict=True)}
            job.keep(SECONDS, lambda: time.perf_counter() - begin)
            return of_autoencoders(named, split.training, measures, batch=self.decode_batch, job=job)

        trained = {
            kind: (len(shapes), np.mean([parameter_count(config, image_shape, shape) for shape in shapes]))
            for kind, config in kinds.items()
            if kind != "pca"
        }
        return Inputs(make=make, n=n, shapes=shapes * len(kinds), trained=trained, noticed=split.noticed, **fields)


def plan(config: Config, known: Inputs) -> list[Stage]:
    """Autoencoders that are trained, then sets of images that are decoded and measured, the second pass counted in full."""
    how, steps = config.how(), config.autoencoder_steps
    levels = len(known.shapes) * (len(how.logsnrs) + (how.passes - 1) * how.most_added)
    return [
        *(
            Stage(stage=f"train {kind} autoencoders", runs=runs, programs=3, steps=steps, parameters=int(parameters))
            for kind, (runs, parameters) in known.trained.items()
        ),
        Stage(stage="noisy autoencoder", runs=levels, programs=1, evaluations=levels * how.decoded(known.n)),
    ]


def compute(config: Config, known: Inputs, job: Job) -> Results:
    """Records and curves of `Recommendation`."""
    for name, digest in known.digests.items():
        config.refuse_change(name, digest, job)
    candidates = known.make(job)
    compared = "latents" if config.latents and not config.decoder else "images"
    try:
        found = compare(candidates, config.how(known.name), compared=compared, noticed=known.noticed, job=job)
    except ValueError as error:
        # From a user's decode or features, which the line names, on inputs that come late.
        raise launch.UsageError(str(error)) from error
    about = {"candidate_seconds": found.seconds, "latents": found.findings, "noticed": found.noticed, **known.about}
    if known.trained or not config.latents and not config.autoencoder:
        about["autoencoder_seconds"] = job.get(SECONDS)
    return Results(rows=found.records, arrays=found.curves, metadata=about)


def report(results: Results) -> Report:
    """The recommendation's table, figure and recommend.json."""
    said = results.metadata
    found = Recommendation(
        records=results.rows,
        curves=results.arrays,
        config=results.config.how(),
        findings=said["latents"],
        noticed=said["noticed"],
    )
    return Report(text=found.table(), figures={"recommend": found.figure()}, files={"recommend.json": found.summary()})


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
