"""What does a CPU find, for `experiments.on_device` to compare a GPU with? Makes the folder to carry along.

Its workdir holds all: in curves.npz images of CIFAR-10 and a CPU's arrays, in records.jsonl the main job's records, in
metadata.json a CPU's training rates and the state of the code. It is at most 60 MiB. Takes four minutes on two cores.

    python -m experiments.on_device.prepare --cifar=cifar10.npz --workdir=results/carried
"""

import dataclasses
import hashlib

import numpy as np

from experiments import launch
from experiments.launch import Report, Results, setting
from experiments.on_device import SIZES, reading, stages
from experiments.on_device.steps import Step, result_of
from ldmjax import devices, records
from ldmjax.job import Job

LEAST_IMAGES = stages.TRAINED_ON + stages.COMPARED_WITH
QUICK = {"images": 1000, "size": "small"}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Images:
    """Images ``[N, 32, 32, 3]`` and labels ``[N]``."""

    images: np.ndarray
    labels: np.ndarray
    name: str = "cifar10"

    @property
    def digest(self) -> str:
        """Of both."""
        return hashlib.sha256(self.images.tobytes() + self.labels.tobytes()).hexdigest()


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.Settings):
    """What is prepared."""

    cifar: str | None = setting(
        None,
        "Images [N, 32, 32, 3] of uint8 and labels [N]; must be given.",
        allowed="an .npz file",
        check=lambda path: launch.check_file(path, ".npz"),
    )
    images: int = setting(
        15_000, f"How many, as many of each class; at least {LEAST_IMAGES} in full size.", low=1000, high=20_000
    )
    size: str = setting("full", SIZES, choices=("full", "small"))

    def __post_init__(self):
        super().__post_init__()
        if self.cifar is None:
            raise self.refuse("cifar", "must be given: the images to carry")
        if self.size == "full" and self.images < LEAST_IMAGES:
            needed = f"the stage science trains on {stages.TRAINED_ON} and compares with {stages.COMPARED_WITH} others"
            raise self.refuse("images", f"must be >= {LEAST_IMAGES} without --quick: {needed}")

    def load(self) -> Images:
        """As many images of each class, in an order that mixes them; what the classes cannot share evenly is left out."""
        try:
            with np.load(self.cifar, allow_pickle=False) as archive:
                images, labels = archive["images"], archive["labels"]
        except Exception as error:  # zipfile, zlib and numpy each have their own for a file that is damaged
            raise self.refuse("cifar", f"must be an .npz file with images and labels ({error})") from error
        if images.dtype != np.uint8 or images.shape[1:] != (32, 32, 3) or labels.shape != images.shape[:1]:
            got = f"{images.dtype} {list(images.shape)} and labels {list(labels.shape)}"
            raise self.refuse("cifar", f"must hold images [N, 32, 32, 3] of uint8 and labels [N], got {got}")
        classes, members = np.unique(labels, return_counts=True)
        each = self.images // len(classes)
        if each == 0 or members.min() < each:
            most = members.min() * len(classes)
            raise self.refuse("images", f"must be {len(classes)}..{most} with --cifar={self.cifar}")
        rng = np.random.default_rng(0)
        chosen = np.concatenate([rng.permutation(np.flatnonzero(labels == c))[:each] for c in classes])
        chosen = rng.permutation(chosen)
        return Images(images=images[chosen], labels=labels[chosen])


def compute(config: Config, chosen: Images, job: Job) -> Results:
    """What a CPU finds; images and labels, arrays of `agreement`, and those of the main job."""
    places = stages.Places(scratch=job.directory / "stages", carried=None, size=config.size)

    def keep(step: Step, read):
        on_cpu = {**step.environment, "JAX_PLATFORMS": "cpu"}
        found = job.keep(step.label, lambda: _read_arrays(dataclasses.replace(step, environment=on_cpu), read))
        job.log(f"{step.label}: done")
        return found

    rates = keep(
        stages.rate_step(places, stages.SMALL_RUNS[0] if config.size == "small" else stages.CPU_RUNS), read_rates
    )
    (step,) = stages.agreement_steps(places, times=1)
    arrays = keep(step, lambda folder: reading.load_arrays(folder / "found.npz"))
    (step,) = stages.main_job_steps(places)
    main_job = keep(step, lambda f: {**reading.read_job(f), "curves": reading.load_arrays(f / "curves.npz")})
    facts = {"code": stages.code_of_steps(), "cores": devices.host_threads(), "rates": rates}
    return Results(
        rows=main_job["records"],
        arrays={"images": chosen.images, "labels": chosen.labels, **arrays, **main_job["curves"]},
        metadata={**facts, "main_job_seconds": main_job["metadata"]["seconds"], "size": config.size},
    )


def _read_arrays(step, read):
    """What ``read`` gives of the step's folder once it is done; `Step.read` is for JSON alone."""
    found = {}
    result_of(dataclasses.replace(step, read=lambda folder: found.update(read(folder)) or {}))
    return found


def read_rates(folder) -> dict:
    """What others are compared with: KeyError unless both kinds of training were measured."""
    found = reading.read_benchmark(folder)
    return records.plain({"bounds": found["bounds"], "contests": {"runs_linear": found["contests"]["runs_linear"]}})


def report(results: Results) -> Report:
    """What the folder holds."""
    images, runs = len(results.arrays["images"]), len(results.rows)
    return Report(text=f"{images} images, {runs} runs of the main job in {results.metadata['main_job_seconds']:.0f} s")


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK)
