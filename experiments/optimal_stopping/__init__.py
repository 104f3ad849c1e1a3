"""Trains scores for many latent dimensions at once, checks them against the exact law, and finds the best stopping time.

Claim ([OS], arXiv 2510.08409): the last sampling steps of a latent diffusion model can make samples worse; which stopping
time is best depends on the latent dimension and on caps of the score. Here every (latent dimension, seed, cap) of a class
trains in one program: diagonal linear scores, whose optimum Prop. 4 gives, and MLPs, whose optimum is the exact score when
they see fresh draws of the data's Gaussian twin. Each is then sampled with Euler-Maruyama from the marginal start, and its
stopping curve is read per metric with intervals.

    python -m experiments.optimal_stopping          # digits, n = 500, d = 1..64, seeds 0,1,2
    python -m experiments.optimal_stopping --quick  # one seed, three dimensions, short training

Takes 189 s on two cores; the numbers obtained stand in docs/results.md#optimal_stopping.
"""

import dataclasses

import numpy as np

from experiments.launch import Results, Stage
from experiments.optimal_stopping.evaluation import (
    METRIC_PREFIX,
    SCORE_DRAWS,
    SCORE_LEVELS,
    exact_curve,
    exact_score,
    make_record,
    sampling_widths,
    score_errors,
    stopping_results,
    summarise_errors,
)
from experiments.optimal_stopping.setup import Config, Problems, make_problems, make_specs
from ldmjax import sweeps, training
from ldmjax.job import Job

__all__ = ["QUICK", "Config", "compute", "make_problems", "plan"]

MODELS = ("linear", "mlp")
QUICK = {"seeds": (0,), "usual_dims": (1, 4, 16), "linear_steps": 800, "mlp_steps": 300, "samples": 1024}


def compute(config: Config, problems: Problems, job: Job) -> Results:
    """Trains, checks, samples and reads every run.

    Arrays, with an entry per row on their first axis where they have one:
      name ``[runs]``;
      logsnr ``[stops]``: where sampling may stop; the last is the end;
      w2_squared, mmd_squared, sliced_w2_squared, kl ``[runs, stops]``, debiased; each with its _standard_error;
      oracle_w2_squared ``[runs, stops]``: squared W2 of the exact discretised law; NaN where there is no oracle.
    """
    rows, results, exacts, compilations = [], [], [], {}
    for model in MODELS:
        specs, width = make_specs(config, model, problems), max(problems.latent_dims)
        trained = sweeps.train_scores(
            specs, problems.latents, config.training(model), width=width, runs_per_batch=config.runs_per_batch, job=job
        )
        compilations[model] = trained.compilations
        laws = [exact_score(spec, problems.of(spec)) for spec in specs]
        untrained = dataclasses.replace(trained, params=trained.initial)
        initial, final = job.keep(
            f"{model}/score errors",
            lambda runs=(untrained, trained), laws=laws: [score_errors(r, laws, config) for r in runs],
        )
        stopped = stopping_results(trained, problems, config, job)
        for i, (spec, law) in enumerate(zip(specs, laws, strict=True)):
            exact = None if law is None else exact_curve(law, spec, problems.of(spec), config)
            errors = summarise_errors(*(x[i] for x in final), *(x[i] for x in initial))
            rows.append(make_record(spec, config, stopped[i], exact, errors, trained.failed_at[i]))
            exacts.append(np.full(config.stops, np.nan) if exact is None else exact)
        results += stopped
    arrays = {"logsnr": config.stop_logsnrs, "name": np.array([row["name"] for row in rows])}
    for metric, prefix in METRIC_PREFIX.items():
        arrays[prefix] = np.stack([r[metric].curve for r in results])
        arrays[f"{prefix}_standard_error"] = np.stack([r[metric].standard_error for r in results])
    arrays["oracle_w2_squared"] = np.stack(exacts)
    return Results(rows=rows, arrays=arrays, metadata={"compilations": compilations})


def plan(config: Config, problems: Problems) -> list[Stage]:
    """Training, score errors and sampling of both model classes."""
    stages, width = [], max(problems.latent_dims)
    for model in MODELS:
        specs, own = make_specs(config, model, problems), config.training(model)
        size = {"runs": len(specs), "parameters": training.parameter_count(own, width)}
        stages += [
            Stage.of_steps(f"train {model}", programs=1, steps=own.steps, batch=own.batch_size, **size),
            Stage(
                stage=f"score errors {model}",
                programs=1,
                evaluations=2 * len(specs) * SCORE_LEVELS * SCORE_DRAWS,
                **size,
            ),
            Stage.of_steps(
                f"sample {model}",
                programs=len(sampling_widths(problems.latent_dims)),
                steps=config.sampling_steps,
                batch=config.samples,
                **size,
            ),
        ]
    return stages
