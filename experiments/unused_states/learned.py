"""One network per level, once for all levels and once for those above the stop: same samples, fewer networks.

Expert k of a model depends on its own level only, so the networks that both models have are the same, and so are the
samples of a chain that stops before the others are asked. Their squared W2 is held against the closed form in two steps:

    (1)  exact score, same x_T:   squared W2 of its samples = closed form
    (2)  |W2(learned, data) - W2(exact chain, data)| <= sqrt(E |x_learned - x_exact|^2)      coupling and triangle inequality

both for the distance between Gaussian fits, which is a metric and at most the distance itself (Gelbrich, 1990). The x_T
have mean 0 and covariance I exactly: with a deterministic sampler (1) then holds up to rounding, without Monte-Carlo
error, and what separates learned samples from the closed form is the networks' error alone.
"""

from functools import partial
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from experiments import launch
from experiments.unused_states import laws
from ldmjax import chains, devices, experts, gaussians, oracle, random, samplers, schedules
from ldmjax.job import NO_JOB, Job

if TYPE_CHECKING:
    from experiments.unused_states import Config

BLOCKS = 64  # of samples, for standard errors
TRAINING_SAMPLES = 16_384  # Gaussian latents whose covariance is made exact
NETWORK = {"batch_size": 128, "hidden": 32}
LEARNING_RATE = 0.003


class Comparisons(NamedTuple):
    """A row per latent dimension; curves ``[T + 1]``; training time of both models, by "dD_all_states" and so on."""

    rows: list[dict]
    arrays: dict[str, np.ndarray]
    seconds: dict[str, float]


def exact_samples(variances: np.ndarray, count: int, key: list[int]) -> np.ndarray:
    """Draws Gaussian samples ``[count, d]`` with mean 0 and covariance exactly diag(variances); count > d."""
    draws = np.random.default_rng(key).standard_normal((count, variances.size))
    draws -= draws.mean(axis=0)
    factor = np.linalg.cholesky(draws.T @ draws / count)
    return np.linalg.solve(factor, draws.T).T * np.sqrt(variances)


def dropped_states(kept: np.ndarray, ladder: schedules.Ladder, config: "Config") -> int:
    """Returns the level to stop on: below --states, or the closed form's best with the exact score, within 1..T - 1."""
    if config.states is not None:
        return config.states[0] - 1
    curve = laws.w2_squared(kept, kept[None], ladder, config.trained_sampler)[0]
    return int(np.clip(laws.best_dropped(curve), min(1, config.levels - 1), config.levels - 1))


def _models(variances, d, config):
    """Returns kept variances, ladder, states dropped, and how the models are trained, by their cleanest level."""
    kept, _ = config.kept(variances, d)
    ladder = config.ladder(config.ladders[0], kept)
    dropped = dropped_states(kept, ladder, config)
    size = {"ladder": ladder, "experts": config.levels, "steps": config.steps, **NETWORK}
    trainings = {low: experts.ExpertsConfig(states=(low, config.levels), **size) for low in (1, dropped + 1)}
    return kept, ladder, dropped, trainings


def plan(variances: np.ndarray, config: "Config") -> list[launch.Stage]:
    """Counts what `compare` does."""
    stages = []
    for d in config.trained_dims(variances.size):
        for low, training in _models(variances, d, config)[-1].items():
            name, networks = f"d = {d}, levels {low}..{config.levels}", len(training.level_blocks)
            size = {
                "steps": config.steps,
                "batch": training.batch_size,
                "parameters": experts.parameter_count(training, d),
            }
            stages.append(launch.Stage.of_steps(f"train {name}", runs=networks, programs=1, **size))
            calls = config.samples * chains.evaluations(config.trained_sampler, networks)
            stages.append(launch.Stage(stage=f"sample {name}", runs=1, programs=2, evaluations=calls))
    return stages


def compare(variances: np.ndarray, config: "Config", job: Job = NO_JOB) -> Comparisons:
    """Trains and samples, for every trained latent dimension, a model of all states and one of those above the stop."""
    rows, arrays, seconds = [], {}, {}
    for d in config.trained_dims(variances.size):
        kept, ladder, dropped, trainings = _models(variances, d, config)
        latents = exact_samples(kept, TRAINING_SAMPLES, [config.seed, 0])
        spec = experts.ModelSpec(seed=config.seed, parameterisation="v", learning_rate=LEARNING_RATE)
        models = {}
        for low, training in trainings.items():
            job.log(f"d = {d}: a network for each of the levels {low}..{config.levels}")
            models[low] = experts.train_experts([spec], latents, training, job=job)
        full, partly = models[1], models[dropped + 1]
        closed = laws.w2_squared(kept, kept[None], ladder, config.trained_sampler)[0]
        found = job.keep(f"learned/d{d}", lambda: _measure(full, partly, kept, dropped, config))  # noqa: B023 - used here
        rows.append(_row(full, partly, d, dropped, closed, found, config))
        arrays |= {f"learned_d{d}_w2_squared": found["full_w2"], f"learned_d{d}_closed_form": closed}
        times = {"all_states": full.seconds, "kept_states": partly.seconds}
        seconds |= {f"d{d}_{name}": float(time[-1]) for name, time in times.items()}
    return Comparisons(rows, arrays, seconds)


def _row(full, partly, d, dropped, closed, found, config):
    row = {
        "kind": "learned",
        "ladder": config.ladders[0],
        "sampler": config.trained_sampler,
        "latent_dim": d,
        "samples": config.samples,
        "states": [dropped + 1, config.levels],
        "w2_squared_closed_form": closed[dropped],
        "w2_squared_exact_score": found["exact_w2"],
        "exact_score_standard_error": found["standard_error"],
        "w2_squared_learned": found["partial_w2"],
        "w2_squared_learned_all_states": found["full_w2"][0],
        "w2_squared_closed_form_all_states": closed[0],
        "trajectory_error": found["trajectory_error"],
        "w2_shift_by_network": abs(np.sqrt(found["partial_w2"]) - np.sqrt(found["exact_w2"])),  # the left of (2)
        "largest_difference_to_full_model": found["largest_difference"],
        "diverged": int(np.sum(partly.failed_at >= 0)),
    }
    for name, model in [("all_states", full), ("kept_states", partly)]:
        networks = len(model.config.level_blocks)
        row |= {
            f"networks_{name}": networks,
            f"parameters_{name}": model.parameter_count,
            f"sample_gradients_{name}": networks * config.steps * model.config.batch_size,
            f"network_evaluations_{name}": chains.evaluations(config.trained_sampler, networks),
        }
    return row


def _measure(full, partly, kept, dropped, config) -> dict:
    """Measures samples; distances are squared W2.

    Returns:
      partial_w2 and exact_w2 of samples of the partial model and of the exact score from the same x_T; standard_error of the
      latter, 0 for a deterministic sampler; trajectory_error, the right of (2); largest_difference between samples of the full
      model stopped on level ``dropped`` and of the partial model; full_w2 ``[T + 1]`` of the full model stopped on every level,
      by states dropped, infinite where it fails.
    """
    ladder, sampler = full.config.ladder, config.trained_sampler
    start = exact_samples(np.ones(kept.size), config.samples, [config.seed, 1])[None].astype(np.float32)
    chain = partial(run_chain, ladder=ladder, sampler=sampler, seed=config.seed)

    def sample(model, final):
        return np.asarray(model.map_models(partial(chain, final=final), start)[0, 0], np.float64)

    exact = devices.map_runs(lambda _, z: chain(oracle.gaussian_denoiser(kept, ladder), z, final=dropped), samples=True)
    everywhere = sample(full, 0)
    # On the way to clean data Heun asks for every level that it passes, so it has to be told where to stop.
    of_full = sample(full, dropped)[-1] if sampler == "heun" else everywhere[-1 - dropped]
    of_partial = sample(partly, dropped)[-1]
    of_exact = np.asarray(devices.collect(exact(0, start), 1)[0, -1], np.float64)
    return {
        "partial_w2": distance(of_partial, kept),
        "exact_w2": distance(of_exact, kept),
        "standard_error": standard_error(of_exact, kept) if sampler in chains.STOCHASTIC else 0.0,
        "trajectory_error": float(np.sqrt(np.mean(np.sum((of_partial - of_exact) ** 2, axis=1)))),
        "largest_difference": float(np.max(np.abs(of_partial - of_full))),
        "full_w2": np.array([distance(z, kept) for z in everywhere[::-1]]),
    }


def run_chain(denoiser, start, *, ladder, sampler, seed, final):
    """Returns states ``[S, B, d]`` on every level from T to ``final``, divided by hypot(alpha, sigma); traceable.

    The chain is told where it ends: Heun's last update must not ask for that level.
    """
    times = ladder.times[: int(ladder.t_max) - final + 1]
    return samplers.sample(
        denoiser,
        ladder,
        start,
        random.key(seed),
        times=times,
        stops=range(len(times)),
        statistic=lambda z, t: z,
        readout="rescaled",
        **chains.SAMPLERS[sampler],
    )


def distance(z: np.ndarray, variances: np.ndarray) -> float:
    """Returns squared W2 between the Gaussian fit of samples ``[N, d]`` and the data; inf if a sample is not finite."""
    if not np.all(np.isfinite(z)):
        return np.inf
    mean = z.mean(axis=0)
    centred = z - mean
    return gaussians.w2_squared(mean, centred.T @ centred / len(z), np.zeros_like(variances), np.diag(variances))


def standard_error(z: np.ndarray, variances: np.ndarray) -> float:
    """Returns the standard error of `distance`, by leaving out one of 64 blocks of samples at a time."""
    groups = np.split(z, BLOCKS)
    left_out = [distance(np.concatenate(groups[:k] + groups[k + 1 :]), variances) for k in range(BLOCKS)]
    return float(np.std(left_out) * np.sqrt(BLOCKS - 1))
