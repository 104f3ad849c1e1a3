"""The same computations on a CPU and on another device: python -m experiments.on_device.agreement FILE TIMES.

Each part gives arrays to compare and, where it trains, the parameters it ends with. With TIMES = 2 it is computed twice: are
both equal bit for bit? FILE, an .npz, is written anew after every part: PART.NAME for an array, PART.equal, PART.seconds.
"""

import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ldmjax import (
    autoencoders,
    data,
    devices,
    experts,
    metrics,
    oracle,
    random,
    samplers,
    schedules,
    stopping,
    sweeps,
    training,
)
from ldmjax.files import written_whole

STEPS, CHUNK = 50, 10  # of every training, and how many make one loss
DRAWS, DIM, POINTS, BATCH = 4096, 16, 1024, 256
SAMPLES, SAMPLING_STEPS, STOPS = 4096, 250, 25
MAP_SHAPE, CHANNELS = (8, 8, 1), (8, 16)
CODED_DIMS = (4, 8)
VARIANCES = 1.0 / np.arange(1, DIM + 1) ** 1.5
LIMITS = {"bits": 0.0, "normals": 1e-5, "losses": 1e-4, "deviation": 4.0}  # what `compare` gives is to be no more

Computed = tuple[dict[str, np.ndarray], Any]  # arrays to compare, and a pytree that two computations have in common


def random_numbers() -> Computed:
    """Bits of keys made in every way, and normals."""
    key = random.key(7)
    keys = [key, *jax.random.split(key, 3), jax.random.fold_in(key, 5)]
    bits = jnp.stack([jax.random.bits(k, (DRAWS,)) for k in keys])
    index = jax.random.randint(key, (DRAWS,), 0, POINTS)
    return {"bits": np.append(bits, np.uint32(index)), "normals": np.asarray(random.normal(key, DRAWS, DIM))}, None


def sweep(model: str, latent_dims: tuple[int, ...], seeds: int, **options: Any) -> Computed:
    """Losses of score models on Gaussian latents."""
    width, rate = max(latent_dims), training.DEFAULT_LEARNING_RATES[model]
    scale = np.arange(1, width + 1) ** -0.75
    latents = {
        ("gaussian", seed, POINTS): sweeps.Latents(
            sample=_normals(seed, POINTS, width) * scale, fresh_factor=np.diag(scale)
        )
        for seed in range(seeds)
    }
    draws = sweeps.DRAWS if model == "mlp" else ("sample",)
    specs = [
        sweeps.RunSpec(
            model=model,
            data="gaussian",
            training_draws=draw,
            latent_dim=d,
            seed=seed,
            n=POINTS,
            learning_rate=rate,
            cap=20.0 if model == "linear" and seed else np.inf,
        )
        for draw in draws
        for d in latent_dims
        for seed in range(seeds)
    ]
    config = training.TrainingConfig(model=model, steps=STEPS, **({"batch_size": BATCH} | options))
    trained = sweeps.train_scores(specs, latents, config, chunk=CHUNK)
    return {"losses": trained.losses}, trained.params


def expert_models() -> Computed:
    """Losses of the experts of T-space, both parameterisations."""
    ladder = schedules.Ladder(*schedules.karras_levels(16, sigma_min=0.002, sigma_max=80.0))
    marks = tuple(range(CHUNK, STEPS, CHUNK))
    config = experts.ExpertsConfig(ladder=ladder, experts=8, batch_size=128, steps=STEPS, checkpoints=marks)
    specs = [experts.ModelSpec(seed=0, parameterisation=p, learning_rate=0.003) for p in experts.PARAMETERISATIONS]
    trained = experts.train_experts(specs, _normals(0, POINTS, DIM) * np.sqrt(VARIANCES), config, chunk=CHUNK)
    return {"losses": trained.losses}, trained.params


def coder(kind: str) -> Computed:
    """Losses of autoencoders of digits: one number a run, the mean of all steps."""
    images = data.digits().samples[:512].reshape(-1, 8, 8).astype(np.float32)
    config = autoencoders.AutoencoderConfig(kind=kind, steps=STEPS, channels=16)
    shapes = [(d,) for d in CODED_DIMS]
    fitted = autoencoders.fit(images, shapes, config, seeds=[0] * len(shapes))
    return {"losses": np.stack([f.losses for f in fitted])}, [(f.params, f.codes) for f in fitted]


def sampled() -> Computed:
    """Squared W2 at every stop of Euler-Maruyama chains with the exact score, its standard error, and the exact law's."""
    schedule = schedules.LinearVP()
    times = schedules.uniform_logsnr_times(schedule, SAMPLING_STEPS, logsnr_min=-10.0, logsnr_max=9.0)
    stops = np.round(np.linspace(0, SAMPLING_STEPS, STOPS + 1)[1:]).astype(int)
    denoiser = oracle.gaussian_denoiser(VARIANCES, schedule)

    def chain(_, key):
        start_key, noise_key = jax.random.split(key)
        start, how = random.normal(start_key, SAMPLES, DIM), {"times": times, "stops": stops}
        measure = {"sampler": "euler_maruyama", "statistic": lambda z, t: metrics.block_moments(z)}
        return samplers.sample(denoiser, schedule, start, noise_key, **how, **measure)

    mapped = devices.map_runs(chain, samples=True)(0, jax.random.split(random.key(3), 1))
    mean, second = (x[0] for x in devices.collect(mapped, 1))
    reference = metrics.Reference(mean=np.zeros(DIM), covariance=np.diag(VARIANCES), samples=np.zeros((2, DIM)))
    pseudo = metrics.moment_pseudo_values(mean, second, reference, np.eye(DIM), with_kl=False)["w2"]
    curve = stopping.read_stopping_curve(pseudo)
    stepped = oracle.sampler_variances(VARIANCES, schedule, times, scheme="euler_maruyama", start="standard")
    exact = oracle.w2_squared_from_variances(VARIANCES, stepped[stops].T)[-1]
    return {"curve": curve.curve, "standard_error": curve.standard_error, "exact": exact}, None


PARTS: dict[str, Callable[[], Computed]] = {
    "random numbers": random_numbers,
    "linear": partial(sweep, "linear", (2, 4, 8, 16), 2),
    "mlp": partial(sweep, "mlp", (2, 4, 8, 16), 1, hidden=128),
    "experts": expert_models,
    "unet": partial(sweep, "unet", (64,), 2, map_shape=MAP_SHAPE, channels=CHANNELS, batch_size=64),
    "conv autoencoder": partial(coder, "conv"),
    "kl autoencoder": partial(coder, "kl"),
    "vq autoencoder": partial(coder, "vq"),
    "sampler": sampled,
}


def _normals(seed, *shape):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def compute_parts(file: Path, *, times: int) -> None:
    """Computes every part ``times`` times and writes ``file``, as the module says."""
    found: dict[str, np.ndarray] = {}
    for name, part in PARTS.items():
        begin = time.perf_counter()
        computed = [part() for _ in range(times)]
        found |= {f"{name}.{key}": value for key, value in computed[0][0].items()}
        found[f"{name}.equal"] = np.array(all(_equal(computed[0], other) for other in computed[1:]))
        found[f"{name}.seconds"] = np.array(time.perf_counter() - begin)
        with written_whole(file) as partial_file, open(partial_file, "wb") as opened:
            np.savez_compressed(opened, **found)
        print(f"{name}: {time.perf_counter() - begin:.1f} s")


def _equal(one: Computed, other: Computed) -> bool:
    pairs = zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True)
    return all(np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in pairs)


DIFFERENCES = {
    "bits": lambda a, b: int(np.sum(a != b)),
    "normals": lambda a, b: float(np.max(np.abs(a - b) / np.maximum(1.0, np.abs(a)))),
    "losses": lambda a, b: float(np.max(np.abs(b / a - 1.0))),
}


def compare(reference: Mapping[str, np.ndarray], found: Mapping[str, np.ndarray]) -> dict[str, dict[str, Any]]:
    """How far the parts that were found are from the reference.

    Returns:
      By part: "bits" (how many differ), "normals" (largest difference over the larger of 1 and the normal), "losses" (largest
      relative difference), "deviation" (of a curve from the exact law, largest, in standard errors), as far as the part has
      them; "equal" (two computations on the device, bit for bit) and "seconds" (of both, with compilation).
    """
    compared: dict[str, dict[str, Any]] = {}
    for name in PARTS:
        if f"{name}.seconds" not in found:
            continue
        row = compared[name] = {key: found[f"{name}.{key}"].item() for key in ("equal", "seconds")}
        for key, difference in DIFFERENCES.items():
            if f"{name}.{key}" in found:
                row[key] = difference(reference[f"{name}.{key}"], found[f"{name}.{key}"])
        if f"{name}.curve" in found:
            curve, error, exact = (found[f"{name}.{key}"] for key in ("curve", "standard_error", "exact"))
            row["deviation"] = float(np.max(np.abs(curve - exact) / error))
    return compared


if __name__ == "__main__":
    devices.start()
    compute_parts(Path(sys.argv[1]), times=int(sys.argv[2]))
