"""The hot programs, compiled for an H100 and a TPU v5e without either: nothing in them waits for the host or wastes kernels.

Each is compiled once, for one chip and with its runs spread over eight. XLA takes a minute or more for a v5e's programs: there
the sweeps of linear scores and MLPs, of eight runs, stand for all others.
"""

import dataclasses
import functools
from collections.abc import Callable

import ahead_of_time
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments import optimal_stopping
from experiments.few_states import learned, mixture
from experiments.optimal_stopping.evaluation import stopping_results
from experiments.optimal_stopping.setup import make_specs
from ldmjax import autoencoders, devices, experts, latent_diffusion, oracle, schedules, sweeps, tasks, training
from ldmjax.autoencoders import fitting
from ldmjax.autoencoders.convolutional import geometry_of

pytestmark = pytest.mark.slow
STEPS, POINTS = 100, 1024
LADDER = schedules.Ladder(*schedules.karras_levels(32, sigma_min=0.002, sigma_max=80.0))
FLOW = {"schedule": schedules.RectifiedFlow(), "logsnr_min": -12.0, "logsnr_max": 12.0}
DIGITS = {"map_shape": (8, 8, 1), "channels": (8, 16), "batch_size": 64, **FLOW}
CIFAR = {"map_shape": (32, 32, 3), "channels": (32, 64, 128), "batch_size": 128, **FLOW}
UNEVEN = {"sampling_steps": 20, "stops": 7, "samples": 256}  # stops are two or three steps apart
TRAINING = 1  # of the programs that a sweep calls: the first initialises


def sweep(model, dims, **options):
    """Trains one run of each latent dimension."""
    width = max(dims)
    latents = {
        ("points", 0, POINTS): sweeps.Latents(sample=np.ones((POINTS, width), np.float32), fresh_factor=np.eye(width))
    }
    specs = [
        sweeps.RunSpec(
            model=model,
            data="points",
            training_draws="sample",
            latent_dim=d,
            seed=0,
            n=POINTS,
            learning_rate=0.005,
            cap=20.0 if model == "linear" else np.inf,
        )
        for d in dims
    ]
    config = training.TrainingConfig(model=model, steps=STEPS, **options)
    return sweeps.train_scores(specs, latents, config, chunk=STEPS)


def train_linear():
    return ahead_of_time.recorded(lambda: sweep("linear", (2, 4, 8, 16), batch_size=256), program=TRAINING)


def train_mlp():
    return ahead_of_time.recorded(lambda: sweep("mlp", (2, 4, 8, 16), batch_size=256, hidden=128), program=TRAINING)


def train_unet(**options):
    dim = int(np.prod(options["map_shape"]))
    return ahead_of_time.recorded(lambda: sweep("unet", (dim,), **options), program=TRAINING)


def train_experts(count):
    config = experts.ExpertsConfig(ladder=LADDER, experts=count, batch_size=128, steps=STEPS)
    spec = experts.ModelSpec(seed=0, parameterisation="noise", learning_rate=0.003)
    samples = np.ones((POINTS, 16), np.float32)
    return ahead_of_time.recorded(lambda: experts.train_experts([spec], samples, config, chunk=STEPS), program=TRAINING)


def sample_main_job(**options):
    """The MLPs of the main job, drawn from and measured at every stop."""
    config = optimal_stopping.Config(latent_dims=(64,), seeds=(0,), mlp_steps=STEPS, **options)
    problems = config.load()
    twins = {key: p for key, p in problems.by_key.items() if p.is_twin}
    problems = dataclasses.replace(problems, by_key=twins)
    specs = make_specs(config, "mlp", problems)

    def job():
        trained = sweeps.train_scores(specs, problems.latents, config.training("mlp"))
        stopping_results(trained, problems, config)

    return ahead_of_time.recorded(job, program=TRAINING + 1)


def sample_images():
    """A pixel model's chains: a U-Net on digits."""

    def job():
        trained = sweep("unet", (64,), **DIGITS)
        model = latent_diffusion.DiffusionModel(
            autoencoder=None, seed=0, spec=trained.specs[0], trained=trained, index=0
        )
        latent_diffusion.sample_states(model, latent_diffusion.SamplingConfig())

    return ahead_of_time.recorded(job, program=TRAINING + 1)


def images(shape):
    return np.random.default_rng(0).standard_normal((256, *shape)).astype(np.float32)


def train_autoencoder(kind, shape=(32, 32, 3), latent=(8, 8, 4)):
    config = autoencoders.AutoencoderConfig(kind=kind, steps=STEPS)
    return ahead_of_time.recorded(lambda: autoencoders.fit(images(shape), [latent], config, seeds=[0]), program=0)


def code(kind, way, shape=(32, 32, 3), latent=(8, 8, 4)):
    """Encoding or decoding of a batch."""
    config = autoencoders.AutoencoderConfig(kind=kind)
    geometry = geometry_of(shape, latent, downsampling=config.downsampling)
    state = fitting.init_state(config, geometry, fitting.AutoencoderSpec(name="", seed=0, latent_dim=latent[-1]))
    params, codes = fitting.averaged(state.params, state.memory)
    batch = {"encode": (shape,), "decode": (latent,)}[way][0]
    arguments = {"encode": (params, 4), "decode": (params, codes, 4)}[way]
    arguments = *arguments, np.zeros((config.eval_batch, *batch), np.float32)
    program = getattr(fitting.coding_programs(config, geometry), way)
    return ahead_of_time.Alone(program, ahead_of_time.shapes(arguments))


def tabulate():
    variances = np.arange(64, 0, -1) / 64
    return ahead_of_time.recorded(
        lambda: oracle.discretisation_table(
            variances,
            variances,
            schedules.LinearVP(),
            schemes=("euler_maruyama", "exponential", "euler_ode", "heun_ode"),
            steps=(10, 1000),
            t_ends=(0.0, 0.001),
            starts=("marginal", "standard"),
        ),
        program=0,
    )


@functools.cache
def mixture_task():
    return tasks.mixture_task()


def sample_few_states(sampler):
    """Chains of the exact score on several ladders, as rows of one program."""
    task, count = mixture_task(), 4096
    named = [
        (f"karras{T}", T, schedules.Ladder(*schedules.karras_levels(T, sigma_min=0.002, sigma_max=80.0)))
        for T in (8, 64)
    ]
    states = np.ones((count, task.dim), np.float32)

    def job():
        mixture.run_chains(task, named, states, states, sampler=sampler)

    return ahead_of_time.recorded(job, program=0)


def sample_learned():
    """Chains of trained experts, a few levels out of many."""
    task = mixture_task()
    config = experts.ExpertsConfig(ladder=LADDER, experts=1, batch_size=128, steps=STEPS)
    specs = [experts.ModelSpec(seed=seed, parameterisation="v", learning_rate=0.003) for seed in range(8)]

    def job():
        trained = experts.train_experts(specs, task.training, config, chunk=STEPS)
        learned.sample_models(trained, task, (4,), samples=4096, sampler="ddim")

    return ahead_of_time.recorded(job, program=TRAINING + 1)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Case:
    """A program and what it is held to.

    Attributes:
      make: gives it.
      runs: that are compiled for one H100; for eight, the next multiple of that.
      megabytes: temporaries of one chip at that.
      steps: of the loop that launches most; 0 if there is none.
      kernels: at most, in a pass through that loop.
      stops: of a sampler, whose statistics are a loop of their own.
      stop_kernels: at most, of one stop: of the loop around its steps, and its share of the statistics'.
      gigabytes: read and written in a pass through it, at most.
      tpu_runs: that are compiled for a v5e; 0 for not at all, because another program stands for it.
      wide: float64 is meant.
      spread: compiled for eight chips too; if not, it has no runs or another program stands for it.
    """

    make: Callable[[], ahead_of_time.Recorded | ahead_of_time.Alone]
    runs: int
    megabytes: float
    steps: int = 0
    kernels: int = 0
    stops: int = 0
    stop_kernels: int = 0
    gigabytes: float = np.inf
    tpu_runs: int = 0
    wide: bool = False
    spread: bool = True


CASES = {
    "linear": Case(make=train_linear, steps=STEPS, runs=64, megabytes=20, kernels=14, tpu_runs=8),
    "mlp": Case(make=train_mlp, steps=STEPS, runs=64, megabytes=200, kernels=36, tpu_runs=8),
    "mlp, 1024 runs": Case(make=train_mlp, steps=STEPS, runs=1024, megabytes=3000, kernels=42, spread=False),
    "experts, one for a level": Case(make=lambda: train_experts(32), steps=STEPS, runs=32, megabytes=20, kernels=35),
    "experts, one for a block": Case(make=lambda: train_experts(8), steps=STEPS, runs=8, megabytes=20),
    "main job's samples": Case(
        make=sample_main_job, steps=10, runs=16, megabytes=1100, kernels=17, stops=25, stop_kernels=12
    ),
    "main job's samples, uneven stops": Case(
        make=lambda: sample_main_job(**UNEVEN), steps=20, runs=16, megabytes=20, kernels=17, spread=False
    ),
    "images": Case(make=sample_images, steps=250, runs=8, megabytes=60),
    "unet, digits": Case(make=lambda: train_unet(**DIGITS), steps=STEPS, runs=3, megabytes=100, kernels=84),
    "unet, cifar": Case(make=lambda: train_unet(**CIFAR), steps=STEPS, runs=1, megabytes=500, gigabytes=2.0),
    "conv": Case(make=lambda: train_autoencoder("conv", latent=(16,)), steps=STEPS, runs=3, megabytes=100),
    "kl": Case(make=lambda: train_autoencoder("kl"), steps=STEPS, runs=3, megabytes=100),
    "vq": Case(make=lambda: train_autoencoder("vq"), steps=STEPS, runs=3, megabytes=100),
    "kl encodes": Case(make=lambda: code("kl", "encode"), runs=1, megabytes=40, spread=False),
    "kl decodes": Case(make=lambda: code("kl", "decode"), runs=1, megabytes=40, spread=False),
    "vq decodes": Case(make=lambda: code("vq", "decode"), runs=1, megabytes=40, spread=False),
    "tables": Case(make=tabulate, steps=1000, runs=8, megabytes=1, wide=True),
    "few states, ddim": Case(make=lambda: sample_few_states("ddim"), steps=64, runs=8, megabytes=30),
    "few states, heun": Case(make=lambda: sample_few_states("heun"), steps=64, runs=8, megabytes=30, spread=False),
    "few states, learned": Case(make=sample_learned, steps=4, runs=8, megabytes=100, spread=False),
}
PLATFORMS = {"gpu": CASES, "tpu": {name: case for name, case in CASES.items() if case.tpu_runs}}


@functools.cache
def program(name: str, platform: str, count: int) -> ahead_of_time.Program:
    case = CASES[name]
    runs = case.runs if platform == "gpu" else case.tpu_runs
    return ahead_of_time.compiled(case.make, platform, count=count, runs=runs + -runs % count)


def cases(*, counts=(1, 8), platforms=tuple(PLATFORMS), wanted=lambda case: True):
    """Parameters: names, platforms, numbers of chips; skipped where the compiler is not there."""
    return pytest.mark.parametrize(
        "name, platform, count",
        [
            pytest.param(
                name,
                platform,
                count,
                id=f"{name}-{platform}-{count}",
                marks=pytest.mark.skipif(reason is not None, reason=str(reason)),
            )
            for platform in platforms
            for reason in [ahead_of_time.missing(platform)]
            for name, case in PLATFORMS[platform].items()
            for count in counts
            if wanted(case) and (count == 1 or case.spread)
        ],
    )


@cases()
def test_no_loop_asks_the_host(name, platform, count):
    made = program(name, platform, count)
    assert [loop.body for loop in made.loops if loop.kernels and loop.trips is None] == []
    assert not made.opcodes & {"infeed", "outfeed", "send", "recv"}
    assert [i.target for i in made.instructions if "callback" in i.target] == []


@cases(wanted=lambda case: case.steps)
def test_the_steps_are_in_a_loop(name, platform, count):
    """What the other tests say of loops would hold for a program without any."""
    assert program(name, platform, count).loops[0].trips == CASES[name].steps


@cases()
def test_nothing_is_scattered(name, platform, count):
    """Sums by scattering come in an order of their own each time."""
    assert "scatter" not in program(name, platform, count).opcodes


@cases(platforms=("gpu",))
def test_only_tables_have_doubles(name, platform, count):
    assert ("f64[" in program(name, platform, count).text) == CASES[name].wide


@cases(counts=(8,))
def test_chips_do_not_wait_for_each_other_in_a_loop(name, platform, count):
    for loop in program(name, platform, count).loops:
        assert [op for op in loop.opcodes if op.removesuffix("-start") in ahead_of_time.COLLECTIVES] == []


@cases(counts=(1,), platforms=("gpu",), wanted=lambda case: case.kernels)
def test_a_step_launches_few_kernels(name, platform, count):
    assert program(name, platform, count).loops[0].kernels.total() <= CASES[name].kernels


@cases(counts=(1,), platforms=("gpu",), wanted=lambda case: case.stops)
def test_a_stop_launches_few_kernels(name, platform, count):
    case, loops = CASES[name], program(name, platform, count).loops
    (around,) = loops[0].around
    (statistics,) = (loop for loop in loops if loop is not around and case.stops % loop.trips == 0 and not loop.around)
    assert around.trips == case.stops
    assert around.kernels.total() + statistics.kernels.total() * statistics.trips / case.stops <= case.stop_kernels


@cases(counts=(1,))
def test_temporaries_are_bounded(name, platform, count):
    assert program(name, platform, count).temporaries <= CASES[name].megabytes * 1e6


@cases(counts=(1,), platforms=("gpu",), wanted=lambda case: case.gigabytes < np.inf)
def test_a_step_moves_few_bytes(name, platform, count):
    assert program(name, platform, count).loops[0].traffic <= CASES[name].gigabytes * 1e9


def make_bad():
    """A loop of unknown length with a sum over chips and a sum by scattering."""

    def function(length, run):
        def body(_, x):
            return x.at[jnp.abs(jnp.round(x)).astype(int) % 64].add(jax.lax.psum(x, devices.RUNS))

        return jax.lax.fori_loop(0, length, body, run)

    shapes = ahead_of_time.shapes((np.int32(3), np.ones((8, 64), np.float32)))
    return ahead_of_time.Recorded(devices.map_runs(function), shapes[0], shapes[1:], wide=False)


@pytest.mark.skipif(ahead_of_time.missing("gpu") is not None, reason=str(ahead_of_time.missing("gpu")))
def test_what_is_bad_is_found():
    made = ahead_of_time.compiled(make_bad, "gpu", count=8, runs=8)
    (loop,) = made.loops
    assert loop.trips is None and loop.kernels.total() >= 2 and "scatter" in made.opcodes
    assert [op for op in loop.opcodes if op.removesuffix("-start") in ahead_of_time.COLLECTIVES]
