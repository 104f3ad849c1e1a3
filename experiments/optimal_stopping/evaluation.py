"""What is measured on every run: score error against its oracle, stopping curves per metric, the exact law beside them."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from experiments.optimal_stopping.setup import BLOCKS, Config, Problem, Problems
from ldmjax import devices, losses, metrics, oracle, process, random, samplers, stopping, sweeps
from ldmjax.job import NO_JOB, Job

METRIC_PREFIX = {"w2": "w2_squared", "mmd": "mmd_squared", "sliced_w2": "sliced_w2_squared", "kl": "kl"}
SPEC_FIELDS = ("name", "model", "data", "training_draws", "latent_dim", "cap", "seed", "n", "learning_rate")
SCORE_LEVELS, SCORE_DRAWS = 36, 256


def exact_score(spec: sweeps.RunSpec, problem: Problem) -> tuple[np.ndarray, np.ndarray] | None:
    """The law whose (capped) score the run should reach, as (variances ``[d]``, rotation ``[d, d]``), or None.

    Linear: the training sample's second moments (Prop. 4). MLP on fresh draws: the true latent covariance. An MLP on n
    points tends to the score of those n points, which memorises: no useful oracle.
    """
    d = spec.latent_dim
    if spec.model == "linear":
        return problem.variances[:d], np.eye(d)
    if spec.training_draws == "fresh":
        factor = problem.latents.fresh_factor[:d]
        values, vectors = np.linalg.eigh(factor @ factor.T)
        return values.clip(0.0), vectors
    return None


def score_errors(trained: sweeps.TrainedRuns, exact: list, config: Config) -> tuple[np.ndarray, np.ndarray]:
    """Squared noise-prediction errors and exact squared norms by level, ``[runs, SCORE_LEVELS]`` each; NaN without oracle."""
    width, count = trained.width, len(trained.specs)
    variances, rotations = np.zeros((count, width)), np.zeros((count, width, width))
    for i, law in enumerate(exact):
        if law is not None:
            d = len(law[0])
            variances[i, :d], rotations[i, :d, :d] = law
    logsnrs = jnp.linspace(config.logsnr_min, config.logsnr_max, SCORE_LEVELS)

    def errors_of(denoiser, run, sources, law):
        del sources
        key = random.stream(run.key, "score errors")
        return losses.noise_prediction_errors(
            denoiser, *law, run.inputs.cap, key, schedule=config.schedule, logsnrs=logsnrs, count=SCORE_DRAWS
        )

    law = (jnp.asarray(variances, jnp.float32), jnp.asarray(rotations, jnp.float32))
    errors, norms = map(np.array, sweeps.map_trained(trained, errors_of, law)(np.arange(count)))
    missing = np.array([law is None for law in exact])
    errors[missing], norms[missing] = np.nan, np.nan
    return errors, norms


def stopping_results(
    trained: sweeps.TrainedRuns, problems: Problems, config: Config, job: Job = NO_JOB
) -> list[dict[str, stopping.StoppingResult]]:
    """Samples every run and reads its stopping curves: one ``{metric: StoppingResult}`` per run."""
    groups = list(dict.fromkeys((s.data, s.seed, s.n) for s in trained.specs))
    references = {group: problems.by_key[group].reference for group in groups}
    smallest = min(_kernel_count(config), *(len(reference.samples) for reference in references.values()))
    own = [
        metrics.latent_reference(
            reference,
            problems.by_key[group].basis[:, : trained.width],
            count=config.samples,
            kernel_count=smallest,
            directions=32,
        )
        for group, reference in references.items()
    ]
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *own)
    chosen = jnp.asarray([groups.index((s.data, s.seed, s.n)) for s in trained.specs])
    statistics_of = _statistics(config, stacked)

    def read(i, statistics):
        """The stopping curves of run i."""
        spec = trained.specs[i]
        problem = problems.of(spec)
        pseudo = metrics.pseudo_values(
            statistics,
            problem.reference,
            problem.basis[:, : spec.latent_dim],
            count=config.samples,
            kernel_count=smallest,
        )
        return {metric: stopping.read_stopping_curve(values) for metric, values in pseudo.items()}

    results = {}
    with ThreadPoolExecutor(devices.host_threads()) as pool:
        for width, runs in sampling_widths([s.latent_dim for s in trained.specs]).items():
            call = sweeps.map_trained(trained, statistics_of, chosen, width=width, runs_per_batch=config.runs_per_batch)

            def compute(batch, runs=runs, call=call):
                statistics = call(runs[batch])
                each = (jax.tree.map(lambda x, k=k: x[k], statistics) for k in range(len(batch)))
                return [pool.submit(read, i, one) for i, one in zip(runs[batch], each, strict=True)]

            found = job.map(
                compute,
                [f"stopping/{trained.specs[i].name}" for i in runs],
                label=f"{trained.config.model}: sampled runs at latent width {width}",
                at_once=devices.items_at_once(len(runs), _bytes_of_run(config, width), on_cpu=2),
            )
            results |= zip(runs.tolist(), found, strict=True)
    return [results[i] for i in range(len(trained.specs))]


def _statistics(config: Config, references: metrics.LatentReference) -> Callable:
    """What one run's samples are reduced to at every stop, traceable; ``references`` are stacked."""

    def statistics_of(denoiser, run, sources, group):
        start_key, noise_key, chain_key = jax.random.split(random.stream(run.key, "sampling"), 3)
        x0 = sweeps.draw_latents(sources, run, start_key, config.samples)
        noise = random.normal(noise_key, *x0.shape) * run.inputs.mask
        t = jnp.asarray(config.times[0], x0.dtype)
        start = process.perturb(x0, noise, config.schedule, t)
        reference = jax.tree.map(lambda x: x[group], references)
        return samplers.sample(
            denoiser,
            config.schedule,
            start,
            chain_key,
            times=config.times,
            stops=config.stop_steps,
            sampler="euler_maruyama",
            mask=run.inputs.mask,
            statistic=lambda z, _: metrics.sample_statistics(z, reference, run.inputs.mask, blocks=BLOCKS),
        )

    return statistics_of


def _kernel_count(config: Config) -> int:
    """Most samples that MMD's kernels take."""
    return min(1024, config.samples)


def _bytes_of_run(config: Config, width: int) -> float:
    """Roughly, of one run that is sampled: states at all stops, a few more of activations, kernels, sums over blocks."""
    states = config.samples * (2 * config.stops * width + 16 * config.hidden)
    kernels = samplers.STOPS_AT_ONCE * 3 * 2 * _kernel_count(config) ** 2
    return 4.0 * (states + kernels + 2 * config.stops * BLOCKS * width**2)


def sampling_widths(latent_dims: Sequence[int]) -> dict[int, np.ndarray]:
    """Places of runs of these latent dimensions by the padded width to sample at: at most 16 if narrow, full for the rest."""
    dims, full = np.array(latent_dims), max(latent_dims)
    width_of = np.where(dims <= 16, min(16, full), full)
    return {int(width): np.flatnonzero(width_of == width) for width in np.unique(width_of)}


def exact_curve(
    law: tuple[np.ndarray, np.ndarray], spec: sweeps.RunSpec, problem: Problem, config: Config
) -> np.ndarray:
    """Squared W2 of the exact discretised sampler at the same stops ``[stops]``, with the exact (capped) score."""
    variances, rotation = law
    stepped = oracle.sampler_variances(
        variances, config.schedule, config.times, scheme="euler_maruyama", cap=spec.cap, start="marginal"
    )
    basis = problem.basis[:, : spec.latent_dim] @ rotation
    distance = oracle.w2_squared_projected(problem.reference.covariance, basis, stepped[config.stop_steps].T)
    return distance + np.sum(problem.reference.mean**2)


def make_record(
    spec: sweeps.RunSpec, config: Config, result: dict, exact: np.ndarray | None, errors: dict, failed_at: int
) -> dict:
    """One line of records.jsonl; distances are squared where the name says so, gains in the same unit."""
    logsnrs = config.stop_logsnrs

    def fields(metric):
        r = result[metric]
        prefix, end = METRIC_PREFIX[metric], len(logsnrs) - 1

        def logsnr(stop):
            return None if stop is None or stop == end else float(logsnrs[stop])

        return {
            f"{prefix}_end": r.end,
            f"{prefix}_best": r.best,
            "logsnr_best": logsnr(r.best_stop),
            "logsnr_best_low": logsnr(r.best_stop_low),
            "logsnr_best_high": logsnr(r.best_stop_high),
            **{name: getattr(r, name) for name in ("gain", "gain_low", "gain_high", "verdict")},
        }

    record = {
        **{name: getattr(spec, name) for name in SPEC_FIELDS},
        "samples": config.samples,
        "logsnr_end": config.logsnr_max,
        "diverged_at_step": None if failed_at < 0 else int(failed_at),
        **errors,
        **fields("w2"),
    }
    if exact is None:
        record |= dict.fromkeys(["oracle_w2_squared_end", "oracle_w2_squared_best", "oracle_logsnr_best"])
    else:
        best = int(np.argmin(exact))
        record |= {
            "oracle_w2_squared_end": exact[-1],
            "oracle_w2_squared_best": exact[best],
            "oracle_logsnr_best": None if best == len(exact) - 1 else logsnrs[best],
        }
    return record | {"metrics": {metric: fields(metric) for metric in METRIC_PREFIX if metric != "w2"}}


def summarise_errors(errors: np.ndarray, norms: np.ndarray, initial: np.ndarray, initial_norms: np.ndarray) -> dict:
    """Score-error fields of one run from its levels ``[SCORE_LEVELS]``: root of summed squares, relative."""
    thirds = zip(np.array_split(errors, 3), np.array_split(norms, 3), strict=True)
    return {
        "score_error": np.sqrt(errors.sum() / norms.sum()),
        "score_error_init": np.sqrt(initial.sum() / initial_norms.sum()),
        "score_error_thirds": [np.sqrt(e.sum() / m.sum()) for e, m in thirds],
    }
