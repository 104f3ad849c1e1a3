"""The command line: flags, files and what is printed."""

import time

from absl import flags

from experiments import flags as shared
from experiments import image_models
from experiments.stopping_by_metric import AUTOENCODERS, Config, compare, report, run
from ldmjax import data, devices, plotting, records

FLAGS = flags.FLAGS


QUICK = {
    "latent_dims": [4, 16], "seeds": [0], "autoencoder_steps": 200, "training_steps": 300, "samples": 256,
    "sampling_steps": 100, "stops": 8,
}  # fmt: skip


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_feature_flags(default="pixels,classifier")
    shared.define_common_flags("stopping_by_metric")
    shared.define_choices("autoencoders", "pca,conv", f"Out of {', '.join(AUTOENCODERS)}.", AUTOENCODERS)
    shared.define_list("latent_dims", "4,8,16,32", "Latent dimensions.", int, 1)
    shared.define_list("seeds", "0,1,2", "Each seed has its own split, initialisations and noise.", int, 0)
    shared.define_integer("n", 1200, "Training images, of autoencoders and diffusion models alike.", low=2)
    shared.define_integer("reference", 2000, "Held-out images to compare with, at most.", low=2 * image_models.BLOCKS)
    flags.DEFINE_enum("process", "rectified_flow", image_models.PROCESSES, "Forward process, and how it is sampled.")
    flags.DEFINE_enum("readout", "rescaled", ["state", "rescaled"], "What is decoded of a stopped state.")
    shared.define_integer("sampling_steps", 250, "Steps of every chain.", low=2)
    shared.define_integer("samples", 2048, "Generated images per model, even.", low=2 * image_models.BLOCKS)
    shared.define_integer("stops", 20, "Stops in the second half of the chain, denser towards its end.", low=2)
    shared.define_integer("autoencoder_steps", 1000, "Optimiser steps of an autoencoder.", low=1)
    shared.define_integer("training_steps", 2000, "Optimiser steps of every diffusion model.", low=1)
    shared.define_integer("hidden", 128, "Width of its network.", low=1)


def read_config(dataset: data.Dataset) -> Config:
    """Flags to configuration; --quick replaces the flags that were not given; `UsageError` if they do not fit together."""
    shared.apply_quick(QUICK)
    shared.check_images(dataset)
    shared.check_n(dataset, held_out=2 * image_models.BLOCKS)
    shared.check_latent_dims(dataset)
    try:
        sampling = image_models.SamplingConfig(
            process=FLAGS.process,
            steps=FLAGS.sampling_steps,
            samples=FLAGS.samples,
            stops=FLAGS.stops,
            batch=min(FLAGS.samples, 1024),
        )
    except ValueError as error:
        raise shared.bad("samples", FLAGS.samples, str(error)) from error
    names = "n reference readout autoencoder_steps training_steps hidden".split()
    lists = "autoencoders latent_dims seeds".split()
    try:
        return Config(
            **{name: FLAGS[name].value for name in names},
            **{name: tuple(FLAGS[name].value) for name in lists},
            sampling=sampling,
        )
    except ValueError as error:
        raise shared.bad("readout", FLAGS.readout, str(error)) from error


def main() -> None:
    begin = time.perf_counter()
    dataset = shared.load_dataset()
    config = read_config(dataset)
    spaces = shared.load_features(dataset)
    workdir = shared.prepare_workdir()
    try:
        runs = run(dataset, spaces, config, lambda line: print(line, flush=True))
        agreement = compare(runs, config.logsnrs)
    except ValueError as error:
        # Which latents an autoencoder can have is only known to it, and which models train once they have.
        raise shared.bad("latent_dims", FLAGS.latent_dims, str(error)) from error
    print(report.table(runs, agreement, config))
    records.write_records(workdir, report.make_records(runs, agreement, config, spaces, dataset))
    records.write_curves(workdir, report.make_curves(runs, config))
    plotting.save(report.draw_agreement(agreement, dataset.name), workdir / "agreement.png")
    plotting.save(report.draw_stops(runs, config, dataset.name), workdir / "stops.png")
    seconds = time.perf_counter() - begin
    accuracy = {space.name: space.accuracy for space in spaces if space.accuracy is not None}
    records.write_metadata(workdir, seconds=seconds, data_sha256=dataset.digest, classifier_accuracy=accuracy)
    print(f"{seconds:.0f} s; results in {workdir}")


if __name__ == "__main__":
    devices.use_all_cores()
    define_flags()
    shared.run(main)
