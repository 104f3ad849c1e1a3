"""Trains scores for many latent dimensions at once, checks them against the exact law, and finds the best stopping time.

Claim ([OS], arXiv 2510.08409): the last sampling steps of a latent diffusion model can make samples worse; which stopping
time is best depends on the latent dimension and on caps of the score. Here every (latent dimension, seed, cap) of a class
trains in one program: diagonal linear scores, whose optimum Prop. 4 gives, and MLPs, whose optimum is the exact score when
they see fresh draws of the data's Gaussian twin. Each is then sampled with Euler-Maruyama from the marginal start, and its
stopping curve is read per metric with intervals.

    python -m experiments.optimal_stopping            # sklearn digits, n = 500, d = 1..64, seeds 0,1,2
    python -m experiments.optimal_stopping --quick    # one seed, three dimensions, short training

RESULTS_PLACEHOLDER
"""

import dataclasses
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags

from ldmjax import data, devices, losses, metrics, oracle, samplers, schedules, stopping, sweeps
from ldmjax import training as training_lib

FLAGS = flags.FLAGS
METRIC_PREFIX = {"w2": "w2_squared", "mmd": "mmd_squared", "sliced_w2": "sliced_w2_squared", "kl": "kl"}
SCORE_LEVELS, SCORE_DRAWS = 36, 256
BLOCKS = 64


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What the main job does; the flags of the same names say more."""

    n: tuple[int, ...] = (500,)
    latent_dims: tuple[int, ...] = (1, 2, 4, 8, 16, 32, 64)
    seeds: tuple[int, ...] = (0, 1, 2)
    caps: tuple[float, ...] = (np.inf, 20.0)
    learning_rates: tuple[float, ...] | None = None
    linear_steps: int = 3000
    mlp_steps: int = 1500
    batch_size: int = 256
    hidden: int = 64
    samples: int = 4096
    sampling_steps: int = 250
    stops: int = 25
    logsnr_min: float = -10.0
    logsnr_max: float = 9.0
    runs_per_batch: int = 1
    schedule: schedules.LinearVP = schedules.LinearVP()

    @property
    def times(self) -> np.ndarray:
        """Sampling times ``[sampling_steps + 1]``, uniform in logsnr."""
        return schedules.uniform_logsnr_times(
            self.schedule, self.sampling_steps, logsnr_min=self.logsnr_min, logsnr_max=self.logsnr_max
        )

    @property
    def stop_steps(self) -> np.ndarray:
        """Step counts at which sampling may stop, evenly spaced; the last is the end."""
        return np.round(np.linspace(0, self.sampling_steps, self.stops + 1)[1:]).astype(int)

    @property
    def stop_logsnrs(self) -> np.ndarray:
        """Logsnr at each stop ``[stops]``."""
        return np.linspace(self.logsnr_min, self.logsnr_max, self.sampling_steps + 1)[self.stop_steps]

    def training(self, model: str) -> training_lib.TrainingConfig:
        """The training configuration of one model class."""
        steps = {"linear": self.linear_steps, "mlp": self.mlp_steps}[model]
        return training_lib.TrainingConfig(
            model=model,
            steps=steps,
            batch_size=128 if model == "linear" else self.batch_size,
            hidden=self.hidden,
            logsnr_min=self.logsnr_min,
            logsnr_max=self.logsnr_max,
            schedule=self.schedule,
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class Problem:
    """One (data, seed, n): its PCA autoencoder, its training latents, and what samples are compared with."""

    variances: np.ndarray
    basis: np.ndarray
    latents: sweeps.Latents
    reference: metrics.Reference


def make_problem(dataset: data.Dataset, *, twin: bool, seed: int, n: int) -> Problem:
    """Draws the n samples (of the data, or of its Gaussian twin), fits PCA, and sets the reference."""
    if twin:
        train = dataset.twin_draws(n, seed=seed)
        reference = metrics.Reference(
            mean=np.zeros(dataset.dim), covariance=dataset.covariance, samples=dataset.twin_draws(4096, seed=seed, stream=1)
        )
    else:
        train, held_out = dataset.split(n=n, seed=seed)
        reference = metrics.Reference(
            mean=held_out.mean(axis=0), covariance=np.cov(held_out.T, bias=True), samples=held_out
        )
    variances, basis = data.principal_components(train)
    factor = basis.T @ data.covariance_factor(dataset.covariance)
    latents = sweeps.Latents(sample=train @ basis, fresh_factor=factor)
    return Problem(variances=variances, basis=basis, latents=latents, reference=reference)


def make_specs(config: Config, model: str, *, twin: str, real: str | None) -> list[sweeps.RunSpec]:
    """All runs of one model class: the linear class on samples with every cap, the MLP on samples and on fresh draws."""
    sources = [(twin, "sample")] + ([(real, "sample")] if real else [])
    if model == "mlp":
        sources.insert(0, (twin, "fresh"))
    rates = config.learning_rates or (training_lib.DEFAULT_LEARNING_RATES[model],)
    return [
        sweeps.RunSpec(
            model=model, data=name, training_draws=draws, latent_dim=d, seed=seed, n=n, cap=cap, learning_rate=rate
        )
        for name, draws in sources
        for cap in (config.caps if model == "linear" else (np.inf,))
        for n in config.n
        for rate in rates
        for d in config.latent_dims
        for seed in config.seeds
    ]


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
        key = jax.random.fold_in(run.key, 2)
        return losses.noise_prediction_errors(
            denoiser, *law, run.inputs.cap, key, schedule=config.schedule, logsnrs=logsnrs, count=SCORE_DRAWS
        )

    law = (jnp.asarray(variances, jnp.float32), jnp.asarray(rotations, jnp.float32))
    errors, norms = map(np.array, sweeps.map_trained(trained, errors_of, law)(np.arange(count)))
    missing = np.array([law is None for law in exact])
    errors[missing], norms[missing] = np.nan, np.nan
    return errors, norms


def stopping_results(
    trained: sweeps.TrainedRuns, problems: dict, config: Config, report: Callable[[str], None]
) -> list[dict[str, stopping.StoppingResult]]:
    """Samples every run and reads its stopping curves: one ``{metric: StoppingResult}`` per run."""
    kernel_count = min(1024, config.samples)
    groups = list(dict.fromkeys((s.data, s.seed, s.n) for s in trained.specs))
    smallest = min(kernel_count, *(len(problems[g].reference.samples) for g in groups))
    references = [
        metrics.latent_reference(
            problems[g].reference, problems[g].basis[:, : trained.width], count=config.samples,
            kernel_count=smallest, directions=32,
        )
        for g in groups
    ]  # fmt: skip
    stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves), *references)
    chosen = jnp.asarray([groups.index((s.data, s.seed, s.n)) for s in trained.specs])
    times, stops = config.times, config.stop_steps

    def statistics_of(denoiser, run, sources, group):
        start_key, noise_key, chain_key = jax.random.split(jax.random.fold_in(run.key, 3), 3)
        x0 = sweeps.draw_latents(sources, run, start_key, config.samples)
        noise = jax.random.normal(noise_key, x0.shape[::-1]).T * run.inputs.mask
        t = jnp.asarray(times[0], x0.dtype)
        start = config.schedule.alpha(t) * x0 + config.schedule.sigma(t) * noise
        reference = jax.tree.map(lambda x: x[group], stacked)
        return samplers.sample(
            denoiser, config.schedule, start, chain_key, times=times, stops=stops, sampler="euler_maruyama",
            mask=run.inputs.mask,
            statistic=lambda z, _: metrics.sample_statistics(z, reference, run.inputs.mask, blocks=BLOCKS),
        )  # fmt: skip

    def read(spec, statistics):
        problem = problems[(spec.data, spec.seed, spec.n)]
        pseudo = metrics.pseudo_values(
            statistics, problem.reference, problem.basis[:, : spec.latent_dim], count=config.samples,
            kernel_count=smallest,
        )  # fmt: skip
        return {metric: stopping.read_stopping_curve(values) for metric, values in pseudo.items()}

    futures, begin, done, total = {}, time.perf_counter(), 0, len(trained.specs)
    with ThreadPoolExecutor(jax.device_count()) as pool:
        for width, indices in _by_width(trained).items():
            call = sweeps.map_trained(
                trained, statistics_of, chosen, width=width, runs_per_batch=config.runs_per_batch
            )
            size = 2 * jax.device_count()
            for first in range(0, len(indices), size):
                batch = indices[first : first + size]
                statistics = jax.tree.map(np.asarray, call(np.pad(batch, (0, size - len(batch)), mode="edge")))
                for k, i in enumerate(batch):
                    one = jax.tree.map(lambda x, k=k: x[k], statistics)
                    futures[i] = pool.submit(read, trained.specs[i], one)
                done, seconds = done + len(batch), time.perf_counter() - begin
                report(
                    f"{trained.config.model}: sampled {done}/{total} runs at latent width {width}, "
                    f"{done / seconds:.1f} runs/s"
                )
        return [futures[i].result() for i in range(total)]


def _by_width(trained: sweeps.TrainedRuns) -> dict[int, np.ndarray]:
    """Indices of the runs by the padded width they are sampled at: 16 for the narrow ones, the full width for the rest."""
    dims = np.array([s.latent_dim for s in trained.specs])
    narrow = min(16, trained.width)
    groups = {narrow: np.flatnonzero(dims <= narrow), trained.width: np.flatnonzero(dims > narrow)}
    return {width: indices for width, indices in groups.items() if indices.size}


def exact_curve(law: tuple[np.ndarray, np.ndarray], spec: sweeps.RunSpec, problem: Problem, config: Config) -> np.ndarray:
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
            f"{prefix}_end": r.end, f"{prefix}_best": r.best, "logsnr_best": logsnr(r.best_stop),
            "logsnr_best_low": logsnr(r.best_stop_low), "logsnr_best_high": logsnr(r.best_stop_high),
            "gain": r.gain, "gain_low": r.gain_low, "gain_high": r.gain_high, "verdict": r.verdict,
        }  # fmt: skip

    record = {
        "name": spec.name, "model": spec.model, "data": spec.data, "training_draws": spec.training_draws,
        "latent_dim": spec.latent_dim, "cap": spec.cap, "seed": spec.seed, "n": spec.n,
        "learning_rate": spec.learning_rate, "samples": config.samples, "logsnr_end": config.logsnr_max,
        "diverged_at_step": None if failed_at < 0 else int(failed_at), **errors, **fields("w2"),
    }  # fmt: skip
    if exact is None:
        record |= dict.fromkeys(["oracle_w2_squared_end", "oracle_w2_squared_best", "oracle_logsnr_best"])
    else:
        best = int(np.argmin(exact))
        record |= {
            "oracle_w2_squared_end": exact[-1], "oracle_w2_squared_best": exact[best],
            "oracle_logsnr_best": None if best == len(exact) - 1 else logsnrs[best],
        }  # fmt: skip
    return record | {"metrics": {metric: fields(metric) for metric in METRIC_PREFIX if metric != "w2"}}


def summarise_errors(errors: np.ndarray, norms: np.ndarray, initial: np.ndarray, initial_norms: np.ndarray) -> dict:
    """Score-error fields of one run from its levels ``[SCORE_LEVELS]``: root of summed squares, relative."""
    thirds = zip(np.array_split(errors, 3), np.array_split(norms, 3), strict=True)
    return {
        "score_error": np.sqrt(errors.sum() / norms.sum()),
        "score_error_init": np.sqrt(initial.sum() / initial_norms.sum()),
        "score_error_thirds": [np.sqrt(e.sum() / m.sum()) for e, m in thirds],
    }


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results: one entry per run in each list; curves are ``[runs, stops]``, NaN where there is no oracle."""

    records: list[dict]
    logsnrs: np.ndarray
    curves: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    exact: np.ndarray
    compilations: dict[str, int]


def run(dataset: data.Dataset, config: Config, report: Callable[[str], None] = print) -> Outcome:
    """Trains, checks, samples and reads every run; the function behind the command."""
    twin, real = f"{dataset.name}_twin", (dataset.name if dataset.samples is not None else None)
    problems = {
        (name, seed, n): make_problem(dataset, twin=name == twin, seed=seed, n=n)
        for name in (twin, real) if name for seed in config.seeds for n in config.n
    }  # fmt: skip
    latents = {key: problem.latents for key, problem in problems.items()}
    rows, results, exacts = [], [], []
    for model in training_lib.MODELS:
        specs = make_specs(config, model, twin=twin, real=real)
        trained = sweeps.train(
            specs, latents, config.training(model), width=max(config.latent_dims),
            runs_per_batch=config.runs_per_batch, report=report,
        )  # fmt: skip
        laws = [exact_score(s, problems[(s.data, s.seed, s.n)]) for s in specs]
        final = score_errors(trained, laws, config)
        initial = score_errors(dataclasses.replace(trained, params=trained.initial), laws, config)
        stopped = stopping_results(trained, problems, config, report)
        for i, spec in enumerate(specs):
            problem = problems[(spec.data, spec.seed, spec.n)]
            exact = None if laws[i] is None else exact_curve(laws[i], spec, problem, config)
            errors = summarise_errors(*(x[i] for x in final), *(x[i] for x in initial))
            rows.append(make_record(spec, config, stopped[i], exact, errors, trained.failed_at[i]))
            exacts.append(np.full(config.stops, np.nan) if exact is None else exact)
        results += stopped
    return Outcome(
        records=rows,
        logsnrs=config.stop_logsnrs,
        curves={m: np.stack([r[m].curve for r in results]) for m in METRIC_PREFIX},
        standard_errors={m: np.stack([r[m].standard_error for r in results]) for m in METRIC_PREFIX},
        exact=np.stack(exacts),
        compilations={},
    )


if __name__ == "__main__":
    devices.use_all_cores()
    ds = data.digits()
    import sys
    t=time.time()
    def rep(x): print(f"{time.time()-t:.1f} {time.process_time():.0f} {x}",flush=True)
    o = run(ds, eval('Config('+sys.argv[1]+')'), rep)
    rep("done")
    import pickle
    pickle.dump(o, open("/tmp/o.pkl","wb"))
    for r in o.records:
        if 1: print(r["name"], r["score_error"] and round(float(r["score_error"]),4), round(float(r["score_error_init"]),3), round(r["w2_squared_end"],4), round(r["w2_squared_best"],4), r["oracle_w2_squared_end"] and round(float(r["oracle_w2_squared_end"]),4), r["logsnr_best_low"],r["logsnr_best"],r["logsnr_best_high"],r["oracle_logsnr_best"],r["verdict"])
