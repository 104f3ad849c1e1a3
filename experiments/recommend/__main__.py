"""The command line of the recommendation."""

import dataclasses
import json
import time
from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import image_plans, plans, recommend, unchanged
from experiments.recommend import candidates, report
from ldmjax import autoencoders, data, oracle, plotting, records, stopping
from ldmjax.checkpoints import fingerprint

FLAGS = flags.FLAGS
QUICK = {"latent_dims": [2, 8], "autoencoders": ["pca"], "samples": 2048, "stops": 10}
LARGEST_SAMPLE, LARGEST_QUICK_SAMPLE = 5000, 400
CONFIGURED = "stops samples readout schedule sampling_steps solver latent_scale seed"


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags()
    shared.define_common_flags("recommend")
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
        "schedule", "rectified_flow", "Schedule whose steps denoising_end counts.", list(recommend.SCHEDULES)
    )
    shared.define_integer(
        "sampling_steps", None, "Adds what so many steps of the sampler lose of a Gaussian; default: a perfect sampler.",
        low=2, high=100_000,
    )  # fmt: skip
    shared.define_choice("solver", "euler", "That takes the --sampling_steps on --schedule.", oracle.KEPT_BY)
    shared.define_float(
        "latent_scale",
        None,
        "Divide latents by this; default: bring them to mean 0 and deviation 1.",
        low=0.0,
        low_open=True,
    )


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
    if FLAGS.readout == "state" and FLAGS.schedule != "rectified_flow":
        raise shared.bad("readout", FLAGS.readout, "needs --schedule=rectified_flow, whose state it is")
    if FLAGS.sampling_steps is None and _is_changed("solver"):
        raise shared.bad("solver", FLAGS.solver, "needs --sampling_steps, which it takes")
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
        return recommend.Config(**{name: FLAGS[name].value for name in CONFIGURED.split()})
    except ValueError as error:
        raise shared.bad("sampling_steps", FLAGS.sampling_steps, str(error)) from error


def _is_changed(name: str) -> bool:
    """Not its default: flags.txt, which reruns a job, gives every flag."""
    return FLAGS[name].value != FLAGS[name].default


def sample_sizes(count: int, flag: str) -> tuple[int, int]:
    """(training, reference) images out of ``count``."""
    least, what = 2 * candidates.BLOCKS, "latents" if flag == "latents" else "images"
    if count < 2 * least:
        raise shared.bad(flag, FLAGS[flag].value, f"needs at least {2 * least} {what}, got {count}")
    most = LARGEST_QUICK_SAMPLE if FLAGS.quick else LARGEST_SAMPLE
    n = min(count // 2, most) if FLAGS.n is None else FLAGS.n
    if not n <= count - least:
        raise shared.bad(
            "n", n, f"must be {candidates.BLOCKS}..{count - least}: {count} {what}, {least} held out at least"
        )
    reference = min(count - n, most) if FLAGS.reference is None else FLAGS.reference
    if not reference <= count - n:
        raise shared.bad(
            "reference", reference, f"must be {least}..{count - n}: {count} {what}, {n} of them for training"
        )
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
    """

    make: Callable[[shared.Job], list[candidates.Candidate]]
    stages: Callable[[recommend.Config], list[plans.Stage]]
    about: dict
    digests: dict[str, str]


def given(found: list[candidates.Candidate], about: dict, digests: dict[str, str]) -> Inputs:
    """Candidates that need no training."""
    size = {"candidates": len(found), "n": len(found[0].latents), "pixels": found[0].training[0].size}
    return Inputs(
        make=lambda job: found,
        stages=lambda config: recommend.plan(found[0].measures, config, decoding=0.0, **size),
        about=about,
        digests=digests,
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
                n, reference = sample_sizes(len(next(iter(arrays.values()))), "latents")
                found = candidates.of_latents_alone(arrays, n=n, reference=reference, seed=FLAGS.seed)
                return given(found, {"data": FLAGS.latents}, {})
        except ValueError as error:
            raise shared.bad("latents", FLAGS.latents, str(error)) from error
    dataset = shared.load_dataset()
    n, reference = sample_sizes(len(dataset.samples), "data")
    maps = {space.name: space for space in shared.load_features(dataset)}
    chosen, held_out = dataset.split_indices(n=n, seed=FLAGS.seed)
    training = dataset.images(dataset.samples[chosen])
    held_out = dataset.images(dataset.samples[held_out[:reference]])
    try:
        measures = candidates.measures_of(maps, held_out, FLAGS.seed)
    except ValueError as error:
        raise shared.bad("features", FLAGS.features, str(error)) from error
    about = {
        "data": dataset.name,
        "data_sha256": dataset.digest,
        "features_sha256": {name: space.digest for name, space in maps.items()},
    }
    digests = {"features": " ".join(space.digest for space in maps.values())}
    if FLAGS.autoencoder is not None:
        return inputs_of_own(training, measures, about, digests)
    if arrays is None:
        return inputs_of_suite(dataset, training, measures, about, digests)
    count = len(next(iter(arrays.values())))
    if count != len(dataset.samples):
        raise shared.bad(
            "latents", FLAGS.latents, f"must have one row for each of {len(dataset.samples)} images, got {count}"
        )
    try:
        decoder = shared.import_named("decoder")
        found = candidates.of_latents(arrays, chosen, decoder, training, measures, batch=FLAGS.decode_batch)
        return given(found, about, digests | {"decoder": digest_of(found)})
    except ValueError as error:
        raise shared.bad("decoder", FLAGS.decoder, str(error)) from error


def inputs_of_own(training: np.ndarray, measures: Mapping, about: dict, digests: dict[str, str]) -> Inputs:
    """Candidates of the user's autoencoders, tried on two images."""
    try:
        named = user_autoencoders(shared.import_named("autoencoder"))
    except ValueError as error:
        raise shared.bad("autoencoder", FLAGS.autoencoder, str(error)) from error
    digests = digests | {"autoencoder": digest_of(encoded(named, training[:2], measures))}
    size = {"candidates": len(named), "n": len(training), "pixels": training[0].size, "decoding": 0.0}
    return Inputs(
        make=lambda job: encoded(named, training, measures, store=job.store),
        stages=lambda config: recommend.plan(measures, config, **size),
        about=about,
        digests=digests,
    )


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

    return Inputs(make, stages, about, digests)


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
    records.write_records(job.workdir, outcome.records)
    records.write_curves(job.workdir, outcome.curves)
    summary = {
        "schema_version": records.SCHEMA_VERSION,
        "recommendations": outcome.recommendations,
        "latents": outcome.findings,
        "unknown": outcome.unknown,
    }
    records.write_text(job.workdir / "recommend.json", json.dumps(records.plain(summary), indent=2) + "\n")
    print(report.table(outcome))
    plotting.save(report.draw(outcome, config), job.workdir / "recommend.png")
    seconds = time.perf_counter() - start
    records.write_metadata(job.workdir, seconds=seconds, candidate_seconds=outcome.seconds, **inputs.about)
    print(f"{len(chosen)} latent spaces in {seconds:.0f} s; recommend.json and recommend.png are in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
