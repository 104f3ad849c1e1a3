"""Which steps there are, in the order of their worth: commands, seconds, and how their results are read."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.on_device import reading
from experiments.on_device.steps import Step

STAGES = ("machine", "agreement", "benchmark", "pytorch", "main_job", "science")
COMPARED = ("agreement", "main_job", "science")  # they need a carried folder
# Loops that XLA's GPU runtime puts whole into a CUDA graph.
COMMAND_BUFFERS = "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"
VARIANTS = {"": "", ", command buffers": COMMAND_BUFFERS}
RUNS, QUICK_RUNS = (1024, 64, 4096), (8,)
CPU_RUNS = 64  # of the rates to compare with: a CPU trains one run after another, however many there are
# Contests of experiments.benchmark that need PyTorch, and the precision of U-Nets there, the most interesting ones first.
PYTORCH = (
    ("unet_train_cifar", "float32"), ("unet_sample_cifar", "float32"), ("unet_train_cifar", "bfloat16"),
    ("unet_sample_cifar", "bfloat16"), ("mlp_vmap", "float32"), ("unet_train_digits", "float32"),
    ("unet_sample_digits", "float32"), ("linear_vmap", "float32"), ("mlp_loop", "float32"), ("linear_loop", "float32"),
    ("experts", "float32"),
)  # fmt: skip
QUICK_PYTORCH = (("mlp_vmap", "float32"), ("unet_train_digits", "bfloat16"))
UNLIMITED = float("inf")
# Shares of all seconds that earlier stages leave to these. Of 560 each has what its first step needs, and machine its limit.
KEPT = {"agreement": 0.1, "benchmark": 0.2, "pytorch": 0.15, "main_job": 0.2, "science": 0.15}
# Images of the stage science: its --n and --reference.
TRAINED_ON, COMPARED_WITH = 8000, 5000


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where steps work and read.

    Attributes:
      scratch: for the folders of the steps.
      carried: the folder that was prepared; None where nothing is compared.
      quick: whether everything is small.
    """

    scratch: Path
    carried: Path | None
    quick: bool

    def of(self, stage: str, name: str) -> Path:
        """The folder of a step."""
        return self.scratch / stage / name.replace(", ", "-").replace(" ", "_")


def make_steps(stages: Sequence[str], places: Places) -> list[Step]:
    """The steps of some of `STAGES`."""
    makers = {
        "machine": machine_steps, "agreement": agreement_steps, "benchmark": benchmark_steps, "pytorch": pytorch_steps,
        "main_job": main_job_steps, "science": science_steps,
    }  # fmt: skip
    chosen = [stage for stage in STAGES if stage in stages and stage not in left_out(stages)]
    return [step for stage in chosen for step in makers[stage](places)]


def left_out(stages: Sequence[str]) -> dict[str, str]:
    """Those of the stages that cannot be measured here, and why."""
    missing = "pytorch" in stages and importlib.util.find_spec("torch") is None
    return {"pytorch": "PyTorch is not installed"} if missing else {}


def device_step(places: Places) -> Step:
    """Says which devices the steps run on: the process that starts them leaves these alone."""
    folder = places.of("machine", "device")
    words = "-m", "experiments.on_device.ceilings", f"{folder}/device.json", "device"
    read = partial(reading.read_json, folder / "device.json")
    return Step(stage="machine", name="device", folder=folder, words=words, needs=0.0, limit=90.0, read=read)


def machine_steps(places: Places) -> list[Step]:
    """Versions and ceilings."""
    folder = places.of("machine", "ceilings")
    words = "-m", "experiments.on_device.ceilings", f"{folder}/ceilings.json", *["quick"] * places.quick
    read = partial(reading.read_json, folder / "ceilings.json")
    return [Step(stage="machine", name="ceilings", folder=folder, words=words, needs=30.0, limit=90.0, read=read)]


def agreement_steps(places: Places, *, times: int = 2) -> list[Step]:
    """All parts in one process, which writes after each; each part is computed ``times`` times."""
    folder = places.of("agreement", "parts")
    words = "-m", "experiments.on_device.agreement", f"{folder}/agreement.npz", f"{times}"
    read = partial(reading.compare_parts, places.carried, folder / "agreement.npz")
    return [Step(stage="agreement", name="parts", folder=folder, words=words, needs=45.0, limit=180.0, read=read)]


def benchmark_step(places: Places, stage: str, name: str, flags: str, xla: str = "", **seconds: float) -> Step:
    """One call of `experiments.benchmark`."""
    folder = places.of(stage, name)
    environment = {"XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), xla]))}
    size = "--rounds=1 --steps=5" if places.quick else "--rounds=3 --steps=100"
    words = "-m", "experiments.benchmark", f"--workdir={folder}", *size.split(), *flags.split()
    read = partial(reading.read_benchmark, folder)
    return Step(stage=stage, name=name, folder=folder, words=words, read=read, environment=environment, **seconds)


def rate_step(places: Places, stage: str, runs: int, variant: str = "") -> Step:
    """Training rates of that many runs: MLPs beside their bound, linear scores beside those of a quarter of the runs."""
    flags = f"--only=bound,runs_linear --widths=128 --bound_runs={runs} --runs={runs // 4}"
    xla = VARIANTS[variant]
    return benchmark_step(places, stage, f"R={runs}{variant}", flags, xla, needs=30.0, limit=90.0)


def benchmark_steps(places: Places) -> list[Step]:
    """Rates at every number of runs, and sampling, in both variants."""
    runs = QUICK_RUNS if places.quick else RUNS
    size = "--samples=512 --sampling_steps=50" if places.quick else "--samples=4096 --sampling_steps=1000"
    return [
        *(rate_step(places, "benchmark", count, variant) for count in runs for variant in VARIANTS),
        *(
            benchmark_step(places, "benchmark", f"sampling{v}", f"--only=sampling {size}", xla, needs=20.0, limit=60.0)
            for v, xla in VARIANTS.items()
        ),
    ]


def pytorch_steps(places: Places) -> list[Step]:
    """Contests; a step is named after its contest, and its precision if that is not float32."""
    # On a CPU PyTorch compiles for minutes.
    contests, runs, limit = (QUICK_PYTORCH, 8, 300.0) if places.quick else (PYTORCH, 64, 80.0)
    return [
        benchmark_step(
            places, "pytorch", name if precision == "float32" else f"{name}, {precision}",
            f"--only={name} --runs={runs} --precision={precision}", needs=30.0, limit=limit,
        )
        for name, precision in contests
    ]  # fmt: skip


def main_job_steps(places: Places) -> list[Step]:
    """The main job; its programs are compiled anew, as it is timed with compilation."""
    folder = places.of("main_job", "optimal_stopping")
    size = (
        "--quick --n=100 --latent_dims=1,2 --linear_steps=100 --mlp_steps=100 --samples=128 --sampling_steps=20 --stops=5 "
        "--batch_size=16 --hidden=8"
    )
    words = "-m", "experiments.optimal_stopping", f"--workdir={folder}", *(size.split() if places.quick else [])
    return [
        Step(
            stage="main_job", name="optimal_stopping", folder=folder, words=words, needs=60.0, limit=240.0,
            read=partial(reading.compare_jobs, places.carried, folder),
            environment={"JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")},
        )
    ]  # fmt: skip


def science_steps(places: Places) -> list[Step]:
    """Does the noisy autoencoder foresee the latent dimension on natural images? It may take all the time that is left."""
    folder = places.of("science", "noisy_autoencoder")
    size = (
        "--quick --n=400 --reference=200 --latent_dims=2,4 --training_steps=20 --autoencoder_steps=20 --samples=512 "
        "--sampling_steps=20 --stops=3 --hidden=16"
        if places.quick
        else f"--n={TRAINED_ON} --reference={COMPARED_WITH} --latent_dims=16,32,64,128,256 --seeds=0 --training_steps=6000 "
        "--hidden=512 --autoencoder_steps=3000 --samples=2048 --sampling_steps=100 --stops=8"
    )
    words = "-m", "experiments.noisy_autoencoder", f"--data={places.carried}/cifar10.npz", f"--workdir={folder}"
    read = partial(reading.read_job, folder)
    return [
        Step(
            stage="science", name="noisy_autoencoder", folder=folder, words=(*words, *size.split()), needs=80.0,
            limit=UNLIMITED, read=read,
        )
    ]  # fmt: skip
