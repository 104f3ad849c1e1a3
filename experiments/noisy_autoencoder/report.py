"""The printed tables, the records and the figures."""

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from experiments import image_models
from experiments.noisy_autoencoder import FAR_FROM_AUTOENCODER, STILL_IMPROVING, Config, Outcome
from experiments.noisy_autoencoder.predictors import PREDICTORS
from experiments.tables import align
from ldmjax import plotting, stopping
from ldmjax.data import Dataset

NAMES = {"w2": "squared Fréchet distance", "mmd": "squared MMD", "sliced_w2": "squared sliced W2"}
MODEL_HEADER = (
    "features|metric|d|trained|improvement %|over autoencoder|at the end|best|its stop|predicted best|predicted stop"
)
CLAIM_HEADER = (
    "features|metric|models|stop early: said|confirmed|contradicted|no gain: said|confirmed|contradicted|regret %: at its stop|"
    "never stopping"
)
CHOICE_HEADER = "features|metric|models|predictor|regret % [90 %]|Kendall tau [90 %]|chosen d|best d"


def _groups(cases):
    found = {}
    for case in cases:
        found.setdefault((case.features, case.metric, case.latent_dim), []).append(case)
    return found


def _stop(index: int, config: Config) -> str:
    logsnr = config.logsnrs[index]
    return "end" if index == len(config.logsnrs) - 1 else f"{logsnr:.1f}"


def table(outcome: Outcome, config: Config) -> str:
    """One row per latent dimension (means over seeds), one per predictor, and the costs."""
    rows = [MODEL_HEADER.split("|")]
    for (features, metric, d), cases in _groups(outcome.cases).items():
        trained = sum((c.seed, c.latent_dim, c.features) in outcome.trained for c in cases)
        model, noisy = (np.mean([getattr(c, name).mean(axis=0) for c in cases], axis=0) for name in ("model", "noisy"))
        rows.append(
            [
                features,
                metric,
                str(d),
                f"{trained}/{len(cases)}",
                f"{100 * np.mean([c.improvement for c in cases]):.1f}",
                f"{np.mean([c.excess for c in cases]):.2f}",
                f"{model[-1]:.4g}",
                f"{model.min():.4g}",
                _stop(int(model.argmin()), config),
                f"{noisy.min():.4g}",
                _stop(int(noisy.argmin()), config),
            ]
        )
    choices = [CHOICE_HEADER.split("|")]
    for c in outcome.comparisons:
        choices.append(
            [
                c.features,
                c.metric,
                c.scope,
                c.predictor,
                f"{100 * c.regret:.1f} [{100 * c.regret_low:.1f}, {100 * c.regret_high:.1f}]",
                "-" if np.isnan(c.tau) else f"{c.tau:.2f} [{c.tau_low:.2f}, {c.tau_high:.2f}]",
                " ".join(str(d) for d, _ in c.chosen.values()),
                " ".join(str(d) for d, _ in c.best.values()),
            ]
        )
    claims = [CLAIM_HEADER.split("|")]
    for c in outcome.claims:
        counts = (c.models, c.early, c.confirmed, c.contradicted, c.never, c.never_confirmed, c.never_contradicted)
        claims.append([c.features, c.metric, *map(str, counts), f"{100 * c.at_stop:.1f}", f"{100 * c.at_end:.1f}"])
    cost = outcome.costs
    ratio = (cost.training + cost.sampling) / cost.prediction
    seeds = ", ".join(map(str, config.seeds))
    lines = [
        f"Diffusion models of {config.autoencoder} autoencoders, means over seeds {seeds}. Trained: the last fifth of steps "
        f"improved the squared Fréchet distance by < {100 * STILL_IMPROVING:g} %, and it is at most "
        f"{FAR_FROM_AUTOENCODER:g} times the autoencoder's own.",
        *align(rows, left=2),
        "",
        "Choices, one per seed. Regret: distance of the trained model at the choice over the best of all, minus 1.",
        *align(choices, left=4),
        "",
        "The noisy autoencoder's verdicts on trained models, confirmed or contradicted by theirs. Its curve is that of a model "
        "that has learned the law of the latents" + (", sampled with as many steps." if config.sampling.chain else "."),
        *align(claims, left=2),
        "",
        f"Per latent dimension: {cost.training:.1f} s to train and {cost.sampling:.1f} s to sample a diffusion model, "
        f"{cost.prediction:.1f} s for the noisy autoencoder: {ratio:.1f} times cheaper.",
    ]
    return "\n".join(["", *lines])


def make_records(outcome: Outcome, dataset: Dataset, config: Config) -> list[dict]:
    """One line per case, then one per comparison and one per measure's claims; ``record`` says which."""
    sampling, rows = config.sampling, []
    about = {
        "data": dataset.name, "autoencoder": config.autoencoder, "n": config.n,
        "reference": min(config.reference, len(dataset.samples) - config.n), "samples": sampling.samples,
        "process": sampling.process, "sampling_steps": sampling.steps, "readout": config.readout,
        "training_steps": config.training_steps, "batch_size": config.batch_size,
        "learning_rate": config.learning_rate, "hidden": config.hidden,
        "precision": image_models.precision_used(config.autoencoder, config.network.model, asked=config.precision),
    }  # fmt: skip
    for c in outcome.cases:
        row = {
            "record": "model",
            "seed": c.seed,
            "latent_dim": c.latent_dim,
            "features": c.features,
            "metric": c.metric,
        }
        for name, pseudo in (("model", c.model), ("noisy", c.noisy)):
            result = stopping.read_stopping_curve(pseudo)
            stops = {"": result.best_stop, "_low": result.best_stop_low, "_high": result.best_stop_high}
            row |= {f"{name}_{key}": getattr(result, key) for key in "end best gain gain_low gain_high verdict".split()}
            row |= {f"{name}_logsnr{k}": None if s is None else config.logsnrs[s] for k, s in stops.items()}
        row |= {
            "trained": (c.seed, c.latent_dim, c.features) in outcome.trained, "improvement": c.improvement, "excess": c.excess,
            "reconstruction_error": c.reconstruction_error, "interpolation": c.interpolation, "floor": c.floor,
            "memorisation": c.memorisation, "diverged_at_step": c.failed_at, **about,
        }  # fmt: skip
        rows.append(row)
    for c in outcome.comparisons:
        where = {
            name: [[s, d, config.logsnrs[k]] for s, (d, k) in getattr(c, name).items()] for name in ("chosen", "best")
        }
        rows.append({"record": "comparison", **c._asdict(), "dims": list(c.dims.items()), **where, **about})
    rows += [{"record": "claims", **c._asdict(), **about} for c in outcome.claims]
    return rows


def make_curves(outcome: Outcome, config: Config) -> dict[str, np.ndarray]:
    """Arrays for curves.npz; rows are the model lines of records.jsonl."""
    return {
        "logsnr": config.logsnrs,
        "model": np.stack([c.model.mean(axis=0) for c in outcome.cases]),
        "noisy": np.stack([c.noisy.mean(axis=0) for c in outcome.cases]),
        "model_standard_error": np.stack([c.model.std(axis=0, ddof=1) / np.sqrt(len(c.model)) for c in outcome.cases]),
        "noisy_standard_error": np.stack([c.noisy.std(axis=0, ddof=1) / np.sqrt(len(c.noisy)) for c in outcome.cases]),
    }


def draw_curves(outcome: Outcome, config: Config, name: str):
    """Trained models (lines) and the noisy autoencoder (dotted) against the stop, one panel per latent dimension."""
    measured = list(dict.fromkeys((c.features, c.metric) for c in outcome.cases))
    dims = sorted({c.latent_dim for c in outcome.cases})
    shown = dims if len(dims) <= 4 else [dims[i] for i in np.linspace(0, len(dims) - 1, 4).round().astype(int)]
    figure, axes = plotting.new_figure(
        len(measured), len(shown), width=3.4 * len(shown), height=1.0 + 2.5 * len(measured),
        title=f"{name}: trained diffusion models and what the noisy autoencoder foresees",
        caption="Mean over seeds against the stop; rightmost: end of sampling. Markers: smallest values. Band: ± 2 standard "
        "errors of the mean over seeds. Dotted: the training images themselves, the noise floor.",
    )  # fmt: skip
    finite = config.logsnrs[np.isfinite(config.logsnrs)]
    x = np.where(np.isfinite(config.logsnrs), config.logsnrs, finite.max() + 1.0)
    groups = _groups(outcome.cases)
    for i, (features, metric) in enumerate(measured):
        for j, d in enumerate(shown):
            panel, cases = axes[i, j], groups[features, metric, d]
            for k, key in enumerate(("model", "noisy")):
                curves = np.stack([getattr(c, key).mean(axis=0) for c in cases])
                errors = [getattr(c, key).std(axis=0, ddof=1) / np.sqrt(getattr(c, key).shape[0]) for c in cases]
                mean, error = curves.mean(axis=0), np.sqrt(np.mean(np.square(errors), axis=0) / len(cases))
                style = plotting.line_style(k, markevery=[int(mean.argmin())])
                panel.plot(
                    x, np.where(mean > 0, mean, np.nan), label=("diffusion model", "noisy autoencoder")[k], **style
                )
                panel.fill_between(x, np.maximum(mean - 2 * error, 0.5 * np.abs(mean)), mean + 2 * error, alpha=0.15,
                                   color=style["color"], linewidth=0)  # fmt: skip
            floor = np.mean([c.floor for c in cases])
            if floor > 0:
                panel.axhline(floor, color="#999999", linestyle=":", linewidth=2, label="training images")
            _set_scale(panel, "y")
            panel.grid(alpha=0.25)
            panel.set_title(f"d = {d}: {NAMES[metric]}\nof {features}", fontsize=8.5)
            if i == len(measured) - 1:
                panel.set_xlabel(plotting.LOGSNR_LABEL, fontsize=8)
        axes[i, 0].set_ylabel("distance", fontsize=9)
    figure.legend(
        *axes[0, 0].get_legend_handles_labels(), loc="outside upper center", fontsize=8, ncols=2, handlelength=3.4
    )
    return figure


def _set_scale(panel, which: str) -> None:
    """Logarithmic with readable ticks where the axis spans more than a factor of three."""
    low, high = getattr(panel, f"get_{which}lim")()
    if low > 0 and high < 3 * low:
        return
    getattr(panel, f"set_{which}scale")("log")
    axis = getattr(panel, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def draw_predictions(outcome: Outcome, name: str):
    """What each predictor says of each latent dimension against what the trained models reach."""
    measured = list(dict.fromkeys((c.features, c.metric) for c in outcome.cases))
    figure, axes = plotting.new_figure(
        len(measured), len(PREDICTORS), width=3.3 * len(PREDICTORS), height=1.0 + 2.6 * len(measured),
        title=f"{name}: predictors of the best latent dimension, against trained diffusion models",
        caption="One number per latent dimension, mean over seeds; across: what the predictor says; up: smallest distance of "
        "the trained models over stops. Filled: models that count as trained in every seed. A rising line of numbers is a "
        "predictor that ranks well.",
    )  # fmt: skip
    groups = _groups(outcome.cases)
    for i, (features, metric) in enumerate(measured):
        for j, predictor in enumerate(PREDICTORS):
            panel = axes[i, j]
            for (own_features, own_metric, d), cases in groups.items():
                if (own_features, own_metric) != (features, metric):
                    continue
                counts = all((c.seed, c.latent_dim, c.features) in outcome.trained for c in cases)
                said = np.mean([c.prediction(predictor)[0] for c in cases])
                reached = np.mean([c.model.mean(axis=0).min() for c in cases])
                if said <= 0 or reached <= 0:
                    continue
                panel.plot(
                    said, reached, "o", color="black", markersize=5, markerfacecolor="black" if counts else "white"
                )
                panel.annotate(str(d), (said, reached), xytext=(4, -9), textcoords="offset points", fontsize=8)
            panel.margins(0.15)
            for which in "xy":
                _set_scale(panel, which)
            panel.grid(alpha=0.25)
            if j == 0:
                panel.set_ylabel(f"{NAMES[metric]}\nof {features}, trained models", fontsize=8)
            if i == len(measured) - 1:
                unit = "mean squared pixel error" if predictor == "reconstruction error" else "same distance"
                panel.set_xlabel(f"predicted: {unit}", fontsize=8)
            if i == 0:
                panel.set_title(predictor, fontsize=9)
    return figure
