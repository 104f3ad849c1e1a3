"""Which steps there are, in the order of their worth: commands, seconds, and how their results are read."""

import dataclasses
import importlib.util
import os
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from experiments.launch.code import digest_of
from experiments.on_device import reading
from experiments.on_device.steps import Step

STAGES = ("machine", "agreement", "benchmark", "pytorch", "main_job", "science")
COMPARED = ("agreement", "main_job", "science")  # they need a carried folder
STARTED = ("benchmark", "optimal_stopping", "noisy_autoencoder", "on_device")  # whose code the steps run
# Loops that XLA's GPU runtime puts whole into a CUDA graph.
VARIANTS = {"": "", ", command buffers": "--xla_gpu_enable_command_buffer=+WHILE,+CONDITIONAL"}
RUNS, SMALL_RUNS = (1024, 64, 4096), (8,)
CPU_RUNS = 64  # of the rates to compare with: a CPU trains one run after another, however many there are
# Contests of experiments.benchmark that need PyTorch, U-Nets in bfloat16 too, the most interesting ones first.
PYTORCH = (
    "unet_train_cifar, unet_sample_cifar, unet_train_cifar bfloat16, unet_sample_cifar bfloat16, mlp_vmap, "
    "unet_train_digits, unet_sample_digits, linear_vmap, mlp_loop, linear_loop, experts"
)
SMALL_PYTORCH = "mlp_vmap, unet_train_digits bfloat16"
# Shares of all seconds that earlier stages leave to these. Of 560 each has what its first step needs, and machine its limit.
KEPT = {"agreement": 0.1, "benchmark": 0.2, "pytorch": 0.15, "main_job": 0.2, "science": 0.15}
# Images of the stage science: its --n and --reference.
TRAINED_ON, COMPARED_WITH = 8000, 5000
SMALL_JOB = (
    "--quick --n=100 --latent_dims=1,2 --linear_steps=100 --mlp_steps=100 --samples=128 --sampling_steps=20 --stops=5 "
    "--batch_size=16 --hidden=8"
)
SCIENCE = {
    "full": f"--n={TRAINED_ON} --reference={COMPARED_WITH} --latent_dims=16,32,64,128,256 --seeds=0 --training_steps=6000 "
    "--hidden=512 --autoencoder_steps=3000 --samples=2048 --sampling_steps=100 --stops=8",
    "small": "--quick --n=400 --reference=200 --latent_dims=2,4 --training_steps=20 --autoencoder_steps=20 --samples=512 "
    "--sampling_steps=20 --stops=3 --hidden=16",
}


def code_of_steps() -> str:
    """Digest of the code that the steps run."""
    found = (importlib.util.find_spec(f"experiments.{name}").origin for name in STARTED)
    return digest_of(map(Path, found))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Places:
    """Where steps work and read.

    Attributes:
      scratch: for the folders of the steps.
      carried: the folder that was prepared; None where nothing is compared.
      size: "full" or "small".
    """

    scratch: Path
    carried: Path | None
    size: str

    @property
    def images(self) -> Path:
        """The carried images as a file that experiments read."""
        return self.scratch / "cifar10.npz"

    def python(self, stage: str, name: str, file: str, module: str, *words: str, **facts) -> Step:
        """A step that runs one of this package's programs, which leaves ``file``."""
        folder = self.scratch / stage / name
        command = ("-m", f"experiments.on_device.{module}", str(folder / file), *words)
        return Step(stage=stage, name=name, folder=folder, words=command, **facts)

    def experiment(self, stage: str, name: str, experiment: str, flags: str, **facts) -> Step:
        """A step that runs an experiment with its folder as workdir."""
        folder = self.scratch / stage / name.replace(", ", "-").replace(" ", "_")
        words = ("-m", f"experiments.{experiment}", f"--workdir={folder}", *flags.split())
        return Step(stage=stage, name=name, folder=folder, words=words, **facts)


def make_steps(stages: Sequence[str], places: Places) -> list[Step]:
    """The steps of some of `STAGES`."""
    makers = (machine_steps, agreement_steps, benchmark_steps, pytorch_steps, main_job_steps, science_steps)
    chosen = [stage for stage in STAGES if stage in stages and stage not in left_out(stages)]
    return [step for stage in chosen for step in makers[STAGES.index(stage)](places)]


def left_out(stages: Sequence[str]) -> dict[str, str]:
    """Those of the stages that cannot be measured here, and why."""
    missing = "pytorch" in stages and importlib.util.find_spec("torch") is None
    return {"pytorch": "PyTorch is not installed"} if missing else {}


def ceilings_step(places: Places, name: str, what: str, needs: float) -> Step:
    """The program ceilings.py."""
    read = partial(reading.read_json, name="found.json")
    return places.python("machine", name, "found.json", "ceilings", what, needs=needs, limit=90.0, read=read)


def machine_steps(places: Places) -> list[Step]:
    """Versions and ceilings."""
    return [ceilings_step(places, "ceilings", places.size, 30.0)]


def agreement_steps(places: Places, *, times: int = 2) -> list[Step]:
    """All parts in one process, which writes after each; each part is computed ``times`` times."""
    facts = {"needs": 45.0, "limit": 180.0, "read": partial(reading.compare_parts, places.carried)}
    return [places.python("agreement", "parts", "found.npz", "agreement", str(times), **facts)]


def benchmark_step(places: Places, stage: str, name: str, flags: str, xla: str = "", **seconds: float) -> Step:
    """One call of `experiments.benchmark`."""
    environment = {"XLA_FLAGS": " ".join(filter(None, [os.environ.get("XLA_FLAGS"), xla]))}
    size = "--rounds=1 --steps=5" if places.size == "small" else "--rounds=3 --steps=100"
    facts = {"read": reading.read_benchmark, "environment": environment, **seconds}
    return places.experiment(stage, name, "benchmark", f"{size} {flags}", **facts)


def rate_step(places: Places, runs: int, variant: str = "") -> Step:
    """Training rates of that many runs: MLPs beside their bound, linear scores beside those of a quarter of the runs."""
    flags = f"--only=bound,runs_linear --widths=128 --bound_runs={runs} --runs={runs // 4}"
    return benchmark_step(places, "benchmark", f"R={runs}{variant}", flags, VARIANTS[variant], needs=30.0, limit=90.0)


def benchmark_steps(places: Places) -> list[Step]:
    """Rates at every number of runs, and sampling, in both variants."""
    small = places.size == "small"
    size = "--samples=512 --sampling_steps=50" if small else "--samples=4096 --sampling_steps=1000"
    rates = [rate_step(places, count, variant) for count in (SMALL_RUNS if small else RUNS) for variant in VARIANTS]
    how = {"needs": 20.0, "limit": 60.0}
    return rates + [
        benchmark_step(places, "benchmark", f"sampling{variant}", f"--only=sampling {size}", xla, **how)
        for variant, xla in VARIANTS.items()
    ]


def pytorch_steps(places: Places) -> list[Step]:
    """Contests; a step is named after its contest, and its precision if that is not float32."""
    # On a CPU PyTorch compiles for minutes.
    contests, runs, limit = (SMALL_PYTORCH, 8, 300.0) if places.size == "small" else (PYTORCH, 64, 80.0)
    steps = []
    for contest in contests.split(", "):
        name, _, precision = contest.partition(" ")
        flags = f"--only={name} --runs={runs} --precision={precision or 'float32'}"
        label = f"{name}, {precision}" if precision else name
        steps.append(benchmark_step(places, "pytorch", label, flags, needs=30.0, limit=limit))
    return steps


def main_job_steps(places: Places) -> list[Step]:
    """The main job; its programs are compiled anew, as it is timed with compilation."""
    facts = {"needs": 60.0, "limit": 240.0, "read": partial(reading.compare_jobs, places.carried)}
    flags = SMALL_JOB if places.size == "small" else ""
    step = places.experiment("main_job", "optimal_stopping", "optimal_stopping", flags, **facts)
    return [dataclasses.replace(step, environment={"JAX_COMPILATION_CACHE_DIR": str(step.folder / "compiled")})]


def science_steps(places: Places) -> list[Step]:
    """Does the noisy autoencoder foresee the latent dimension on natural images? It may take all the time that is left."""
    facts = {"needs": 80.0, "limit": float("inf"), "read": reading.read_job}
    flags = f"--data={places.images} {SCIENCE[places.size]}"
    return [places.experiment("science", "noisy_autoencoder", "noisy_autoencoder", flags, **facts)]
