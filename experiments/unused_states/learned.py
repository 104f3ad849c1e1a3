"""One network per level, once for all levels and once for those above the stop: same samples, fewer networks.

Expert k of a model depends on its own level only, so the networks that both models have are the same, and so are the
samples of a chain that stops before the others are asked. Their squared W2 is held against the closed form in two steps:

    (1)  exact score, same x_T:   squared W2 of its samples = closed form
    (2)  |W2(learned, data) - W2(exact chain, data)| <= sqrt(E |x_learned - x_exact|^2)      coupling and triangle inequality

both for the distance between Gaussian fits, which is a metric and at most the distance itself (Gelbrich, 1990). The x_T
have mean 0 and covariance I exactly: with a deterministic sampler (1) then holds up to rounding, without Monte-Carlo
error, and what separates learned samples from the closed form is the networks' error alone.
"""

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np

from experiments import plans, tasks
from experiments.unused_states import Config, kept_variances, laws
from ldmjax import devices, experts, gaussians, oracle, samplers, threefry
from ldmjax.checkpoints import NOTHING_KEPT, Store

BLOCKS = 64
STOCHASTIC = ("ddpm", "ddpm_exact")


@dataclasses.dataclass(frozen=True, kw_only=True)
class LearnedConfig:
    """How the networks are trained and sampled.

    Attributes:
      latent_dims: one pair of models each.
      ladder, sampler: names.
      states: (lowest, T) level to train; None for all above the number that the closed form drops (at least one state).
      steps, batch_size, hidden, learning_rate: of every network.
      training_samples: Gaussian latents whose covariance is made exact.
      samples: drawn from each model, a multiple of 64.
      seed: of everything.
    """

    latent_dims: tuple[int, ...]
    ladder: str
    sampler: str
    states: tuple[int, int] | None = None
    steps: int = 1000
    batch_size: int = 128
    hidden: int = 32
    learning_rate: float = 0.003
    training_samples: int = 16_384
    samples: int = 8192
    seed: int = 0

    def __post_init__(self):
        if self.samples % BLOCKS or self.samples < 2 * BLOCKS:
            raise ValueError(f"samples must be a multiple of {BLOCKS}, at least {2 * BLOCKS}, got {self.samples}")
        if self.sampler not in laws.CHAINS:
            raise ValueError(f"sampler must be one of {', '.join(laws.CHAINS)}, got {self.sampler!r}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """One latent dimension: a model of all states, and one of the states above the stop. Distances are squared W2.

    Attributes:
      latent_dim: d.
      dropped: j, the level that sampling stops on.
      full, partial: the trained models.
      closed_form: ``[T + 1]`` with the exact score, by states dropped.
      partial_w2, exact_w2: of samples of the partial model and of the exact score from the same x_T.
      standard_error: of ``exact_w2``; 0 for a deterministic sampler.
      trajectory_error: sqrt(E |x_partial - x_exact|^2).
      largest_difference: between samples of the full model stopped on level j and those of the partial model.
      full_w2: ``[T + 1]`` of the full model stopped on every level, by states dropped; NaN where it fails.
      evaluations: network evaluations per sample, of all states and up to the stop.
    """

    latent_dim: int
    dropped: int
    full: experts.TrainedExperts
    partial: experts.TrainedExperts
    closed_form: np.ndarray
    partial_w2: float
    exact_w2: float
    standard_error: float
    trajectory_error: float
    largest_difference: float
    full_w2: np.ndarray
    evaluations: tuple[int, int]

    @property
    def network_shift(self) -> float:
        """|W2(learned) - W2(exact chain)|, the left of (2)."""
        return abs(np.sqrt(self.partial_w2) - np.sqrt(self.exact_w2))


def exact_samples(variances: np.ndarray, count: int, key: list[int]) -> np.ndarray:
    """Gaussian samples ``[count, d]`` with mean 0 and covariance exactly diag(variances); count > d."""
    draws = np.random.default_rng(key).standard_normal((count, variances.size))
    draws -= draws.mean(axis=0)
    factor = np.linalg.cholesky(draws.T @ draws / count)
    return np.linalg.solve(factor, draws.T).T * np.sqrt(variances)


def dropped_states(kept: np.ndarray, config: Config, learned: LearnedConfig) -> int:
    """The level to stop on: below --states, or the closed form's best with the exact score, within 1..T - 1."""
    if learned.states is not None:
        return learned.states[0] - 1
    ladder = config.ladder(learned.ladder, kept)
    curve = laws.w2_squared(kept, kept[None], ladder, learned.sampler)[0]
    return int(np.clip(laws.best_dropped(curve), min(1, config.levels - 1), config.levels - 1))


def plan(variances: np.ndarray, config: Config, learned: LearnedConfig) -> list[plans.Stage]:
    """The stages of `compare`."""
    stages = []
    for d in learned.latent_dims:
        ladder, dropped = _stop(variances, d, config, learned)
        for low in dict.fromkeys((1, dropped + 1)):
            settings, size = _settings(ladder, low, learned), {"width": d, "models": 1}
            name = f"d = {d}, levels {low}..{config.levels}"
            sampling = {"evaluations": config.levels, "samples": learned.samples, "programs": 2}
            stages.append(tasks.training_stage(f"train {name}", settings, **size))
            stages.append(tasks.sampling_stage(f"sample {name}", settings, **size, **sampling))
    return stages


def compare(
    variances: np.ndarray,
    config: Config,
    learned: LearnedConfig,
    report: Callable[[str], None] = lambda line: None,
    store: Store = NOTHING_KEPT,
) -> list[Comparison]:
    """Trains and samples both models of every latent dimension in ``learned``.

    Args:
      variances: ``[D]`` of the data, largest first.
      config: its levels, range and scale of the latents.
      learned: how to train and sample.
      report: receives progress lines.
      store: where trainings and what was measured are kept.
    """
    return [_compare(variances, d, config, learned, report, store) for d in learned.latent_dims]


def _stop(variances, d, config, learned):
    """The ladder, and the level that sampling stops on."""
    kept, _ = kept_variances(variances, d, rescale=config.rescale)
    return config.ladder(learned.ladder, kept), dropped_states(kept, config, learned)


def _settings(ladder, low, learned):
    levels = int(ladder.t_max)
    return experts.ExpertsConfig(
        ladder=ladder, experts=levels, states=(low, levels), steps=learned.steps, batch_size=learned.batch_size,
        hidden=learned.hidden,
    )  # fmt: skip


def _compare(variances, d, config, learned, report, store):
    kept, _ = kept_variances(variances, d, rescale=config.rescale)
    ladder, dropped = _stop(variances, d, config, learned)
    data = exact_samples(kept, learned.training_samples, [learned.seed, 0])
    spec = experts.ModelSpec(seed=learned.seed, parameterisation="v", learning_rate=learned.learning_rate)
    models = {}
    for low in dict.fromkeys((1, dropped + 1)):
        report(f"d = {d}: a network for each of the levels {low}..{config.levels}")
        models[low] = experts.train([spec], data, _settings(ladder, low, learned), store=store, report=report)
    full, kept_model = models[1], models[dropped + 1]
    return Comparison(
        latent_dim=d,
        dropped=dropped,
        full=full,
        partial=kept_model,
        closed_form=laws.w2_squared(kept, kept[None], ladder, learned.sampler)[0],
        evaluations=tuple(laws.evaluations(learned.sampler, config.levels, j) for j in (0, dropped)),
        **store.piece(f"learned/d{d}", lambda: _measure(full, kept_model, kept, dropped, learned)),
    )


def _measure(full, kept_model, kept, dropped, learned) -> dict:
    """What a `Comparison` says of samples."""
    ladder = full.config.ladder
    start = exact_samples(np.ones(kept.size), learned.samples, [learned.seed, 1])[None].astype(np.float32)
    chain = partial(_chain, ladder=ladder, learned=learned)

    def sample(model, final):
        return np.asarray(model.map_models(partial(chain, final=final), start)[0, 0], np.float64)

    exact = devices.map_runs(lambda _, z: chain(oracle.gaussian_denoiser(kept, ladder), z, final=dropped), samples=True)
    everywhere = sample(full, 0)
    # On the way to clean data Heun asks for every level that it passes, so it has to be told where to stop.
    of_full = sample(full, dropped)[-1] if learned.sampler == "heun" else everywhere[-1 - dropped]
    of_partial = sample(kept_model, dropped)[-1]
    of_exact = np.asarray(devices.collect(exact(0, start), 1)[0, -1], np.float64)
    return {
        "partial_w2": _distance(of_partial, kept),
        "exact_w2": _distance(of_exact, kept),
        "standard_error": _standard_error(of_exact, kept) if learned.sampler in STOCHASTIC else 0.0,
        "trajectory_error": float(np.sqrt(np.mean(np.sum((of_partial - of_exact) ** 2, axis=1)))),
        "largest_difference": float(np.max(np.abs(of_partial - of_full))),
        "full_w2": np.array([_distance(z, kept) for z in everywhere[::-1]]),
    }


def _chain(denoiser, start, *, ladder, learned, final):
    """States ``[S, B, d]`` on every level from T to ``final``, divided by hypot(alpha, sigma); traceable.

    The chain is told where it ends: Heun's last update must not ask for that level.
    """
    options = {"sampler": "ddim", "eta": 1.0} if learned.sampler == "ddpm" else {"sampler": learned.sampler}
    times = ladder.times[: int(ladder.t_max) - final + 1]
    return samplers.sample(
        denoiser, ladder, start, threefry.key(learned.seed), times=times, stops=range(len(times)),
        statistic=lambda z, t: z, readout="rescaled", **options,
    )  # fmt: skip


def _distance(z: np.ndarray, variances: np.ndarray) -> float:
    """Squared W2 between the Gaussian fit of samples ``[N, d]`` and the data; inf if a sample is not finite."""
    if not np.all(np.isfinite(z)):
        return np.inf
    centred = z - z.mean(axis=0)
    return gaussians.w2_squared(
        z.mean(axis=0), centred.T @ centred / len(z), np.zeros_like(variances), np.diag(variances)
    )


def _standard_error(z: np.ndarray, variances: np.ndarray) -> float:
    """Of `_distance`, by leaving out one of 64 blocks of samples at a time."""
    groups = np.split(z, BLOCKS)
    left_out = [_distance(np.concatenate(groups[:k] + groups[k + 1 :]), variances) for k in range(BLOCKS)]
    return float(np.std(left_out) * np.sqrt(BLOCKS - 1))


def make_records(comparisons: list[Comparison], learned: LearnedConfig) -> list[dict]:
    """Lines of records.jsonl: one per latent dimension."""
    rows = []
    for c in comparisons:
        per_network = learned.steps * learned.batch_size
        row = {
            "kind": "learned",
            "ladder": learned.ladder,
            "sampler": learned.sampler,
            "latent_dim": c.latent_dim,
            "states": [c.dropped + 1, c.closed_form.size - 1],
            "w2_squared_closed_form": c.closed_form[c.dropped],
            "w2_squared_exact_score": c.exact_w2,
            "exact_score_standard_error": c.standard_error,
            "w2_squared_learned": c.partial_w2,
            "w2_squared_learned_all_states": c.full_w2[0],
            "w2_squared_closed_form_all_states": c.closed_form[0],
            "trajectory_error": c.trajectory_error,
            "w2_shift_by_network": c.network_shift,
            "largest_difference_to_full_model": c.largest_difference,
            "diverged": int(np.sum(c.partial.failed_at >= 0)),
        }  # fmt: skip
        for name, model, count in [("all_states", c.full, 0), ("kept_states", c.partial, 1)]:
            networks = len(model.config.level_blocks)
            row |= {
                f"networks_{name}": networks,
                f"parameters_{name}": model.parameter_count,
                f"sample_gradients_{name}": networks * per_network,
                f"network_evaluations_{name}": c.evaluations[count],
            }
        rows.append(row)
    return rows


def make_curves(comparisons: list[Comparison]) -> dict[str, np.ndarray]:
    """Arrays of curves.npz, by states dropped: the model of all states stopped on every level, and the closed form."""
    curves = {}
    for c in comparisons:
        curves[f"learned_d{c.latent_dim}_w2_squared"] = c.full_w2
        curves[f"learned_d{c.latent_dim}_closed_form"] = c.closed_form
    return curves


def seconds(comparisons: list[Comparison]) -> dict[str, float]:
    """Training time of both models by latent dimension, for metadata.json: what varies between runs."""
    return {
        f"d{c.latent_dim}_{name}": float(model.seconds[-1])
        for c in comparisons
        for name, model in [("all_states", c.full), ("kept_states", c.partial)]
    }
