"""The command line of the recommendation."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import image_plans, plans, recommend, unchanged
from experiments.recommend import candidates, expected_images, latents, report
from experiments.recommend.distinct import choose_distinct, choose_distinct_latents, in_words
from ldmjax import autoencoders, data, oracle, pipelines, plotting, records, stopping
from ldmjax.checkpoints import fingerprint

FLAGS = flags.FLAGS
QUICK = {"latent_dims": [2, 8], "autoencoders": ["pca"], "samples": 2048, "stops": 10}
LARGEST_SAMPLE, LARGEST_QUICK_SAMPLE = 5000, 400
CONFIGURED = "stops samples readout sampler sampling_steps solver seed"


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags()
    shared.define_common_flags("recommend")
    shared.define_choice(
        "channels", "auto", "Where images of --data have them; your functions take the same.", data.channels.LAYOUTS
    )
    shared.define_choices(
        "autoencoders",
        "pca,conv",
        "Autoencoders of the suite, trained on the n images, for every --latent_dims.",
        ("pca", "conv", "kl", "vq"),
    )
    shared.define_import("autoencoder", "The user's own instead: a function that makes them.")
    shared.define_word(
        "latents", None, "Stored latents instead: arrays [N, ...], row i for image i.", allowed="an .npz or .npy file",
        check=shared.check_arrays,
    )  # fmt: skip
    shared.define_import("decoder", "With --latents, a function from latents to images.")
    shared.define_list("latent_dims", None, "Latent dimensions; default 2,4,8,16,32,64 as far as D.", int, 1, 100_000)
    shared.define_integer(
        "n",
        None,
        f"Training images: those a diffusion model would see; default half, at most {LARGEST_SAMPLE}.",
        low=64,
        high=1_000_000,
    )
    shared.define_integer(
        "reference", None, f"Held-out images; default the rest, at most {LARGEST_SAMPLE}.", low=128, high=1_000_000
    )
    shared.define_integer("samples", 8192, "Least number of decoded images per noise level.", low=128, high=1_048_576)
    shared.define_integer(
        "stops", 20, "Noise levels, the last one none; more by half where needed.", low=2, high=10_000
    )
    shared.define_integer("decode_batch", 256, "Images per call of the user's encode and decode.", low=1, high=65_536)
    shared.define_integer(
        "autoencoder_steps", 2000, "Optimiser steps of the suite's autoencoders.", low=1, high=10_000_000
    )
    shared.define_precision_flag()
    shared.define_seed("seed", 0, "Chooses the split, the autoencoders' initialisation and the noise.")
    shared.define_choice(
        "readout", "rescaled", "What is decoded, VP coordinates or the flow's state.", stopping.NOISY_READOUTS
    )
    shared.define_choice(
        "sampler", "rectified_flow", "In whose words stops are given: SDXL scaled_linear_euler, SD3 and Flux flow_matching.",
        pipelines.NAMES,
    )  # fmt: skip
    shared.define_word(
        "shift", None, "Of --sampler=flow_matching: 3 for SD3; dynamic:4096 for Flux at 1024 x 1024 (pixels / 256 tokens).",
        allowed="a number from 0.01 to 100 or dynamic:TOKENS", check=read_shift,
    )  # fmt: skip
    shared.define_integer(
        "sampling_steps", None, "Of the sampler: stops after steps, with what they lose of a Gaussian; default: many.",
        low=2, high=100_000,
    )  # fmt: skip
    shared.define_choice("solver", None, "That takes the --sampling_steps; default: the sampler's own.", oracle.KEPT_BY)
    shared.define_choice(
        "standardise", "all", "Bring latents to mean 0 and deviation 1: by one pair of numbers, one of each channel, or not.",
        latents.STANDARDISE,
    )  # fmt: skip
    shared.define_word(
        "latent_scale", None, "Multiply latents by this instead, as diffusers' scaling_factor; one number or one per channel.",
        allowed="a finite number > 0, or one per channel", check=read_factors,
    )  # fmt: skip
    shared.define_word(
        "latent_shift", None, "Subtracted before, as diffusers' shift_factor; one number or one per channel.",
        allowed="a finite number, or one per channel", check=read_numbers,
    )  # fmt: skip


def read_numbers(word: str) -> list[float]:
    """Comma-separated finite numbers."""
    numbers = [float(part) for part in word.split(",")]
    if not np.all(np.isfinite(numbers)):
        raise ValueError
    return numbers


def read_factors(word: str) -> list[float]:
    """Comma-separated finite numbers > 0."""
    numbers = read_numbers(word)
    if min(numbers) <= 0:
        raise ValueError
    return numbers


def read_shift(word: str) -> dict[str, float]:
    """Arguments of `pipelines.make_sampler`."""
    name, _, tokens = word.rpartition(":")
    try:
        shift = {"tokens": int(tokens)} if name == "dynamic" else {"shift": float(word)}
    except ValueError:
        raise ValueError from None
    pipelines.make_sampler("flow_matching", **shift)
    return shift


def check_flags() -> None:
    """What can be refused before anything is read; --quick replaces the flags that were not given."""
    if FLAGS.spectrum is not None:
        raise shared.bad("spectrum", FLAGS.spectrum, "images are needed, a spectrum has none: give --data")
    if FLAGS.autoencoder is not None and FLAGS.latents is not None:
        raise shared.bad("autoencoder", FLAGS.autoencoder, "allowed only without --latents")
    own = FLAGS.autoencoder is not None or FLAGS.latents is not None
    if own and _is_changed("autoencoders"):
        raise shared.bad("autoencoders", FLAGS.autoencoders, "allowed only without --autoencoder and --latents")
    if own and _is_changed("precision"):
        raise shared.bad("precision", FLAGS.precision, "allowed only without --autoencoder and --latents")
    shared.check_precision(FLAGS.autoencoders)
    if FLAGS.latents is not None and FLAGS.decoder is None and _is_changed("features"):
        raise shared.bad("features", FLAGS.features, "not used with --latents alone: give --decoder and --data too")
    if FLAGS.latents is not None and FLAGS.decoder is None and _is_changed("channels"):
        raise shared.bad("channels", FLAGS.channels, "not used with --latents alone: give --decoder and --data too")
    if FLAGS.decoder is not None and FLAGS.latents is None:
        raise shared.bad("decoder", FLAGS.decoder, "allowed only with --latents")
    if FLAGS.latents is not None and FLAGS.latent_dims is not None:
        raise shared.bad(
            "latent_dims", FLAGS.latent_dims, "allowed only without --latents, whose arrays have their own"
        )
    if FLAGS.latents is not None and FLAGS.decoder is not None and FLAGS.data is None:
        raise shared.bad("decoder", FLAGS.decoder, "needs --data, the images that the latents encode, to compare with")
    if FLAGS.latents is not None and FLAGS.decoder is None and FLAGS.data is not None:
        raise shared.bad("data", FLAGS.data, "not used with --latents alone: give --decoder too, or leave --data out")
    if FLAGS.shift is not None and FLAGS.sampler != "flow_matching":
        raise shared.bad("shift", FLAGS.shift, "allowed only with --sampler=flow_matching")
    if FLAGS.readout == "state" and pipelines.make_sampler(FLAGS.sampler).state != "flow":
        raise shared.bad("readout", FLAGS.readout, "needs --sampler=rectified_flow or flow_matching, whose state it is")
    if FLAGS.sampling_steps is None and FLAGS.solver is not None:
        raise shared.bad("solver", FLAGS.solver, "needs --sampling_steps, which it takes")
    for flag in ("latent_scale", "latent_shift"):
        if FLAGS[flag].value is not None and FLAGS.standardise != "all":
            raise shared.bad(flag, FLAGS[flag].value, "allowed only without --standardise")
    read_config()
    for name in ("autoencoder", "decoder"):
        if FLAGS[name].value is not None:
            shared.import_named(name)
    shared.check_features()
    # A user's own latent spaces have their own dimensions.
    shared.apply_quick({name: value for name, value in QUICK.items() if not (own and name == "latent_dims")})


def read_config() -> recommend.Config:
    """How candidates are compared; `UsageError` if a sampler leaves no stops."""
    try:
        multiply = None if FLAGS.latent_scale is None else read_factors(FLAGS.latent_scale)
        shift = None if FLAGS.latent_shift is None else read_numbers(FLAGS.latent_shift)
        scaling = latents.Scaling(FLAGS.standardise, multiply, shift)
        flow = {} if FLAGS.shift is None else read_shift(FLAGS.shift)
        return recommend.Config(**{name: FLAGS[name].value for name in CONFIGURED.split()}, **flow, scaling=scaling)
    except ValueError as error:
        raise shared.bad("sampling_steps", FLAGS.sampling_steps, str(error)) from error


def _is_changed(name: str) -> bool:
    """Not its default: flags.txt, which reruns a job, gives every flag."""
    return FLAGS[name].value != FLAGS[name].default


def largest_sample() -> int:
    """Images of a kind, training or reference, that are used unless a flag asks for more."""
    return LARGEST_QUICK_SAMPLE if FLAGS.quick else LARGEST_SAMPLE


def most_images() -> int:
    """Images that are used at most."""
    return (FLAGS.n or largest_sample()) + (FLAGS.reference or largest_sample())


def sample_sizes(count: int, flag: str, left_out: Sequence[str]) -> tuple[int, int]:
    """(training, reference) images or latents out of ``count``; ``left_out`` says why there are not more."""
    noun = "latents" if flag == "latents" else "images"
    least, most, images = 2 * candidates.BLOCKS, largest_sample(), in_words(count, left_out, noun=noun)
    if count < 2 * least:
        raise shared.bad(flag, FLAGS[flag].value, f"needs at least {2 * least} {noun}, got {images}")
    n = min(count // 2, most) if FLAGS.n is None else FLAGS.n
    if not n <= count - least:
        raise shared.bad("n", n, f"must be {candidates.BLOCKS}..{count - least}: {images}, {least} held out at least")
    reference = min(count - n, most) if FLAGS.reference is None else FLAGS.reference
    if not reference <= count - n:
        raise shared.bad("reference", reference, f"must be {least}..{count - n}: {images}, {n} of them for training")
    return n, reference


def fit_autoencoders(training: np.ndarray, job: shared.Job) -> dict[str, autoencoders.Autoencoder]:
    """The suite's autoencoders by name."""
    shapes, named = [(d,) for d in FLAGS.latent_dims], {}
    for kind in FLAGS.autoencoders:
        steps, precision = FLAGS.autoencoder_steps, FLAGS.precision
        config = autoencoders.AutoencoderConfig(kind=kind, steps=steps, precision=precision)
        options = {"seeds": [FLAGS.seed] * len(shapes), "store": job.store, "report": job.report}
        try:
            fitted = autoencoders.fit(training, shapes, config, **options)
        except ValueError as error:
            raise shared.bad("autoencoders", FLAGS.autoencoders, f"{kind}: {error}") from error
        named |= {f"{kind} {d}": fit for d, fit in zip(FLAGS.latent_dims, fitted, strict=True)}
    return named


def user_autoencoders(factory) -> dict[str, autoencoders.Autoencoder]:
    """What the user's factory makes: one object, or one for every --latent_dims."""
    named = {}
    for d in FLAGS.latent_dims or [None]:
        try:
            made = factory() if d is None else factory(d)
        except Exception as error:  # the user's factory may raise anything
            raise ValueError(f"factory({'' if d is None else d}): {type(error).__name__}: {error}") from error
        if not isinstance(made, autoencoders.Autoencoder):
            raise ValueError(f"factory must return an object with encode and decode, got {type(made).__name__}")
        named["own" if d is None else f"own {d}"] = made
    return named


class Inputs(NamedTuple):
    """What is known, and has been tried on a few images, before anything is written.

    Attributes:
      make: gives the candidates; trains and encodes where that is needed.
      stages: what `make` and `recommend.run` will do, for a configuration.
      about: what metadata.json says of the data.
      digests: of what the user's functions give on a few images, by flag.
      shapes: of one latent of each candidate.
      stored: latents that are known in full.
    """

    make: Callable[[shared.Job], list[candidates.Candidate]]
    stages: Callable[[recommend.Config], list[plans.Stage]]
    about: dict
    digests: dict[str, str]
    shapes: list[tuple[int, ...]]
    stored: Sequence[np.ndarray] = ()


def given(found: list[candidates.Candidate], about: dict, digests: dict[str, str]) -> Inputs:
    """Candidates that need no training."""
    size = {"candidates": len(found), "n": len(found[0].latents), "pixels": found[0].training[0].size}
    return Inputs(
        make=lambda job: found,
        stages=lambda config: recommend.plan(found[0].measures, config, decoding=0.0, **size),
        about=about,
        digests=digests,
        shapes=[one.latents.shape[1:] for one in found],
        stored=[one.latents for one in found],
    )


def digest_of(tried: list[candidates.Candidate]) -> str:
    """Of the latents and decoded images of two images."""
    return fingerprint("", [(c.latents[:2], c.decode(c.latents[:2])) for c in tried])


def read_inputs() -> Inputs:
    """Reads what the flags name."""
    arrays = None
    if FLAGS.latents is not None:
        try:
            arrays = candidates.load_latents(FLAGS.latents)
            if FLAGS.decoder is None:
                arrays, noticed = choose_distinct_latents(arrays, most=most_images(), seed=FLAGS.seed)
                n, reference = sample_sizes(len(next(iter(arrays.values()))), "latents", noticed)
                found = candidates.of_latents_alone(arrays, n=n, reference=reference, seed=FLAGS.seed)
                return given(found, {"data": FLAGS.latents, "noticed": noticed}, {})
        except ValueError as error:
            raise shared.bad("latents", FLAGS.latents, str(error)) from error
    dataset = shared.load_dataset(layout=FLAGS.channels)
    shared.check_images(dataset)
    order, noticed = choose_distinct(dataset.samples, most=most_images(), seed=FLAGS.seed)
    n, reference = sample_sizes(len(order), "data", noticed)
    maps = {space.name: space for space in shared.load_features(dataset)}
    chosen = order[:n]
    training = dataset.images(dataset.samples[chosen])
    held_out = dataset.images(dataset.samples[order[n : n + reference]])
    try:
        measures = candidates.measures_of(maps, held_out, FLAGS.seed)
    except ValueError as error:
        raise shared.bad("features", FLAGS.features, str(error)) from error
    about = {
        "data": dataset.name,
        "data_sha256": dataset.digest,
        "noticed": noticed,
        "features_sha256": {name: space.digest for name, space in maps.items()},
    }
    digests = {"features": " ".join(space.digest for space in maps.values())}
    if FLAGS.autoencoder is not None:
        return inputs_of_own(training, measures, about, digests, channels_first=dataset.channels_first)
    if arrays is None:
        return inputs_of_suite(dataset, training, measures, about, digests)
    count = len(next(iter(arrays.values())))
    if count != len(dataset.samples):
        raise shared.bad(
            "latents", FLAGS.latents, f"must have one row for each of {len(dataset.samples)} images, got {count}"
        )
    try:
        decoder = shared.import_named("decoder")
        options = {"batch": FLAGS.decode_batch, "channels_first": dataset.channels_first}
        found = candidates.of_latents(arrays, chosen, decoder, training, measures, **options)
        digests = digests | {"decoder": digest_of(found)}
        for one in found:
            decoded = one.decode(one.latents[: expected_images.FEW])
            layout = {"channels_first": dataset.channels_first}
            noticed += expected_images.check_decoded(one.name, decoded, training[: len(decoded)], **layout)
        return given(found, about, digests)
    except ValueError as error:
        raise shared.bad("decoder", FLAGS.decoder, str(error)) from error


def inputs_of_own(
    training: np.ndarray, measures: Mapping, about: dict, digests: dict[str, str], *, channels_first: bool
) -> Inputs:
    """Candidates of the user's autoencoders, tried on two images."""
    layout = {"channels_first": channels_first}
    try:
        named = user_autoencoders(shared.import_named("autoencoder"))
    except ValueError as error:
        raise shared.bad("autoencoder", FLAGS.autoencoder, str(error)) from error
    tried = encoded(named, training[:2], measures, **layout)
    digests = digests | {"autoencoder": digest_of(tried)}
    about["noticed"].extend(check_forms(named, training, measures, layout))
    size = {"candidates": len(named), "n": len(training), "pixels": training[0].size, "decoding": 0.0}
    return Inputs(
        make=lambda job: encoded(named, training, measures, store=job.store, **layout),
        stages=lambda config: recommend.plan(measures, config, **size),
        about=about,
        digests=digests,
        shapes=[one.latents.shape[1:] for one in tried],
    )


def check_forms(named: Mapping, training: np.ndarray, measures: Mapping, layout: dict[str, bool]) -> list[str]:
    """Lines on the user's autoencoders that may expect another form of images; `UsageError` if one does."""
    lines = []
    for name, made in named.items():

        def reconstruct(images, name=name, made=made):
            (one,) = candidates.of_autoencoders({name: made}, images, measures, batch=FLAGS.decode_batch, **layout)
            return one.decode(one.latents)

        try:
            lines += expected_images.check_autoencoder(name, reconstruct, training, **layout)
        except ValueError as error:
            raise shared.bad("autoencoder", FLAGS.autoencoder, str(error)) from error
    return lines


def inputs_of_suite(
    dataset: data.Dataset, training: np.ndarray, measures: Mapping, about: dict, digests: dict[str, str]
) -> Inputs:
    """Candidates of the suite's autoencoders."""
    if FLAGS.latent_dims is None:
        FLAGS.latent_dims = [d for d in (2, 4, 8, 16, 32, 64) if d <= min(dataset.dim, len(training))]
    shared.check_latent_dims(dataset)
    shapes = {kind: [(d,) for d in FLAGS.latent_dims] for kind in FLAGS.autoencoders}
    for kind, wanted in shapes.items():
        shared.check_latent_shapes("latent_dims", kind, wanted, dataset, n=len(training))

    def make(job):
        begin = time.perf_counter()
        named = fit_autoencoders(training, job)
        seconds = job.store.piece("seconds of autoencoders", lambda: time.perf_counter() - begin)
        about["autoencoder_seconds"] = seconds
        return encoded(named, training, measures, store=job.store)

    def stages(config):
        size = {"candidates": len(shapes) * len(FLAGS.latent_dims), "n": len(training), "pixels": dataset.dim}
        decoding = image_plans.decoding(shapes, dataset.image_shape)
        return [
            *image_plans.autoencoders(shapes, dataset.image_shape, seeds=1, steps=FLAGS.autoencoder_steps),
            *recommend.plan(measures, config, decoding=decoding, **size),
        ]

    return Inputs(make, stages, about, digests, shapes=[(d,) for d in FLAGS.latent_dims])


def encoded(named: Mapping, training: np.ndarray, measures: Mapping, **options) -> list[candidates.Candidate]:
    """Candidates that encode ``training``; `UsageError` if the user's functions fail."""
    try:
        return candidates.of_autoencoders(named, training, measures, batch=FLAGS.decode_batch, **options)
    except ValueError as error:
        raise shared.bad("autoencoder", FLAGS.autoencoder, str(error)) from error


def main() -> None:
    start = time.perf_counter()
    check_flags()
    inputs = read_inputs()
    config = dataclasses.replace(read_config(), data=inputs.about["data"])
    try:
        latents.check_factors(config.scaling, inputs.shapes)
        for known in inputs.stored:
            latents.scale_of(known, config.scaling)
    except ValueError as error:
        raise shared.UsageError(str(error)) from error
    for line in inputs.about["noticed"]:
        print(line, flush=True)
    job = shared.open_job(lambda: inputs.stages(config))
    for flag, digest in inputs.digests.items():
        unchanged.check(flag, digest, store=job.store)
    chosen = inputs.make(job)
    comparable = FLAGS.latents is None or FLAGS.decoder is not None
    try:
        outcome = recommend.run(chosen, config, comparable=comparable, report=job.report, store=job.store)
    except ValueError as error:
        # From a user's decode or features, which the line names, on inputs that come late.
        raise shared.UsageError(str(error)) from error
    outcome = dataclasses.replace(outcome, noticed=inputs.about["noticed"] + outcome.noticed)
    records.write_records(job.workdir, outcome.records)
    records.write_curves(job.workdir, outcome.curves)
    summary = {
        "schema_version": records.SCHEMA_VERSION,
        "recommendations": outcome.recommendations,
        "latents": outcome.findings,
        "noticed": outcome.noticed,
        "unknown": outcome.unknown,
    }
    records.write_text(job.workdir / "recommend.json", json.dumps(records.plain(summary), indent=2) + "\n")
    print(report.table(outcome))
    plotting.save(report.draw(outcome, config), job.workdir / "recommend.png")
    seconds = time.perf_counter() - start
    records.write_metadata(job.workdir, seconds=seconds, candidate_seconds=outcome.seconds, **inputs.about)
    print(f"Latent spaces: {len(chosen)}, in {seconds:.0f} s; recommend.json and recommend.png are in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
