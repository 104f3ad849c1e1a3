"""Trains scores for many latent dimensions at once, checks them against the exact law, and finds the best stopping time.

Claim ([OS], arXiv 2510.08409): the last sampling steps of a latent diffusion model can make samples worse; which stopping
time is best depends on the latent dimension and on caps of the score. Here every (latent dimension, seed, cap) of a class
trains in one program: diagonal linear scores, whose optimum Prop. 4 gives, and MLPs, whose optimum is the exact score when
they see fresh draws of the data's Gaussian twin. Each is then sampled with Euler-Maruyama from the marginal start, and its
stopping curve is read per metric with intervals.

    python -m experiments.optimal_stopping          # digits, n = 500, d = 1..64, seeds 0,1,2
    python -m experiments.optimal_stopping --quick  # one seed, three dimensions, short training

Takes 189 s on two cores. Obtained: linear scores within .0016 to .0074 of Prop. 4's (relative error of the predicted
noise; .16 to .45 before training), their curves within 3.7 standard errors of the exact discretised law at every
stop; MLPs on fresh draws within .013 (d <= 4), .018 (8), .023 (16), .030 (32), .079 (64) of the exact score. Squared
W2 gains nothing from stopping with MLPs on fresh draws (21 of 21 runs); with MLPs on 500 digits at d = 32 stopping at
logsnr 3.7 saves 1.8 to 3.0 %, "stop early" in 3 of 3 seeds and by every metric, each at its own time (MMD and sliced
W2: 2.2). The paper's claim shows there, and is tiny (<= .3 %) elsewhere.
"""

import dataclasses
from collections.abc import Callable

import numpy as np

from experiments import plans
from experiments.optimal_stopping.evaluation import (
    METRIC_PREFIX,
    exact_curve,
    exact_score,
    make_record,
    score_errors,
    stopping_results,
    summarise_errors,
)
from experiments.optimal_stopping.setup import Config, Problems, make_problems, make_specs
from ldmjax import sweeps
from ldmjax.checkpoints import NOTHING_KEPT, Store
from ldmjax.training import flops as flops_of

__all__ = ["Config", "Outcome", "make_problems", "plan", "run"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Outcome:
    """All results, one entry per run on each leading axis.

    Attributes:
      records: the lines of records.jsonl.
      logsnrs: ``[stops]``, where sampling may stop; the last is the end.
      curves: ``{metric: [runs, stops]}``, debiased estimates, squared where records say so.
      standard_errors: the same shapes.
      exact: ``[runs, stops]``, squared W2 of the exact discretised law; NaN where there is no oracle.
      compilations: compiled training programs per model class.
    """

    records: list[dict]
    logsnrs: np.ndarray
    curves: dict[str, np.ndarray]
    standard_errors: dict[str, np.ndarray]
    exact: np.ndarray
    compilations: dict[str, int]


def plan(problems: Problems, config: Config) -> list[plans.Stage]:
    """The stages of `run`."""
    stages, width = [], max(config.latent_dims)
    for model in ("linear", "mlp"):
        specs, training = make_specs(config, model, problems), config.training(model)
        if model == "linear":
            # Every level of the table sees the batch, as its second moments.
            flops, parameters = 2 * 128 * width, 128 * width
        else:
            flops, parameters = flops_of(training, width), flops_of(training, width) // 2
        size = {"runs": len(specs), "flops": flops, "entries": width}
        stages.append(
            plans.training(
                f"train {model}", steps=training.steps, batch=training.batch_size, parameters=parameters, **size
            )
        )
        stages.append(
            plans.sampling(
                f"sample {model}", steps=config.sampling_steps, samples=config.samples, noise=True, programs=2, **size
            )
        )
    curves = sum(s.runs for s in stages) // 2
    return [*stages, plans.host("read stopping curves, draw figures", runs=curves, seconds=0.5)]


def run(
    problems: Problems, config: Config, report: Callable[[str], None] = print, store: Store = NOTHING_KEPT
) -> Outcome:
    """Trains, checks, samples and reads every run; the function behind the command.

    Args:
      problems: from `make_problems`.
      config: the same that made them.
      report: receives progress lines.
      store: where trainings and finished runs are kept.
    """
    latents = {key: problem.latents for key, problem in problems.items()}
    rows, results, exacts, compilations = [], [], [], {}
    for model in ("linear", "mlp"):
        specs = make_specs(config, model, problems)
        trained = sweeps.train(
            specs, latents, config.training(model), width=max(config.latent_dims),
            runs_per_batch=config.runs_per_batch, store=store, report=report,
        )  # fmt: skip
        compilations[model] = trained.compilations
        laws = [exact_score(s, problems[(s.data, s.seed, s.n)]) for s in specs]
        untrained = dataclasses.replace(trained, params=trained.initial)
        initial, final = store.piece(
            f"{model}/score errors",
            lambda runs=(untrained, trained), laws=laws: [score_errors(r, laws, config) for r in runs],
        )
        stopped = stopping_results(trained, problems, config, store, report)
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
        compilations=compilations,
    )
