"""The tables and the figures."""

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

from experiments.launch import Report, Results
from ldmjax import plotting, predictors
from ldmjax.predictors import PREDICTORS
from ldmjax.tables import table


def report(results: Results) -> Report:
    """The models, the predictors' choices and the noisy autoencoder's claims; curves and predictions as figures."""
    first, models = results.rows[0], results.frame(record="model")
    costs = results.metadata["costs"]
    ratio = (costs["training"] + costs["sampling"]) / costs["prediction"]
    parts = [
        f"Diffusion models of {first['autoencoder']} autoencoders, means over seeds "
        f"{', '.join(map(str, models['seed'].unique()))}. Trained: the last fifth of steps improved the squared Fréchet "
        f"distance by < {100 * predictors.STILL_IMPROVING:g} %, and it is at most {predictors.FAR_FROM_AUTOENCODER:g} times "
        "the autoencoder's own.\n" + _models_table(results, models),
        "Choices, one per seed. Regret: distance of the trained model at the choice over the best of all, minus 1.\n"
        + _choices_table(results),
        "The noisy autoencoder's verdicts on trained models, confirmed or contradicted by theirs. Its curve is that of a model "
        "that has learned the law of the latents"
        + (", sampled with as many steps.\n" if first["process"] == "rectified_flow" else ".\n")
        + _claims_table(results),
        f"Per latent dimension: {costs['training']:.1f} s to train and {costs['sampling']:.1f} s to sample a diffusion model, "
        f"{costs['prediction']:.1f} s for the noisy autoencoder: {ratio:.1f} times cheaper.",
    ]
    figures = {"curves": _draw_curves(results, models), "predictions": _draw_predictions(results, models)}
    return Report(text="\n\n".join(parts), figures=figures)


def _models_table(results: Results, models: pd.DataFrame) -> str:
    logsnr, rows = results.arrays["logsnr"], []
    for (features, metric, d), own in models.groupby(["features", "metric", "latent_dim"], sort=False):
        model, noisy = (results.arrays[name][own.index].mean(axis=0) for name in ("model", "noisy"))
        stops = ["end" if c.argmin() == len(c) - 1 else f"{logsnr[c.argmin()]:.1f}" for c in (model, noisy)]
        row = {
            "features": features,
            "metric": metric,
            "d": d,
            "trained": f"{own['trained'].sum()}/{len(own)}",
            "improvement %": 100 * own["improvement"].mean(skipna=False),
            "over autoencoder": own["excess"].fillna(np.inf).mean(),
            "at the end": model[-1],
            "best": model.min(),
            "its stop": stops[0],
            "predicted best": noisy.min(),
            "predicted stop": stops[1],
        }
        rows.append(row)
    numbers = {"improvement %": ".1f", "over autoencoder": ".2f"}
    numbers |= dict.fromkeys(("at the end", "best", "predicted best"), ".4g")
    return table(rows, dict.fromkeys(rows[0], "") | numbers, left=2)


def _choices_table(results: Results) -> str:
    def interval(row, name, scale, digits):
        values = [row[name + ending] for ending in ("", "_low", "_high")]
        return (
            "-" if None in values else "{0:.{3}f} [{1:.{3}f}, {2:.{3}f}]".format(*(scale * v for v in values), digits)
        )

    rows = [
        {
            "features": row["features"],
            "metric": row["metric"],
            "models": row["scope"],
            "predictor": row["predictor"],
            "regret % [90 %]": interval(row, "regret", 100, 1),
            "Kendall tau [90 %]": interval(row, "tau", 1, 2),
            "chosen d": " ".join(str(d) for _, d, _ in row["chosen"]),
            "best d": " ".join(str(d) for _, d, _ in row["best"]),
        }
        for row in results.rows
        if row["record"] == "comparison"
    ]
    return table(rows, left=4) if rows else "All models diverged."


def _claims_table(results: Results) -> str:
    counts = {"models": "models", "stop early: said": "early", "confirmed": "confirmed", "contradicted": "contradicted"}
    counts |= {"no gain: said": "never", "confirmed ": "never_confirmed", "contradicted ": "never_contradicted"}
    rows = []
    for _, claims in results.frame(record="claims").iterrows():
        row = {"features": claims["features"], "metric": claims["metric"]}
        row |= {name: claims[field] for name, field in counts.items()}
        row |= {"regret %: at its stop": 100 * claims["at_stop"], "never stopping": 100 * claims["at_end"]}
        rows.append(row)
    if not rows:
        return "No model counts as trained."
    return table(rows, dict.fromkeys(rows[0], "") | dict.fromkeys(list(rows[0])[-2:], ".1f"), left=2)


def _draw_curves(results: Results, models: pd.DataFrame) -> Figure:
    """Trained models (lines) and the noisy autoencoder (dotted) against the stop, one panel per latent dimension."""
    measures = list(models.groupby(["features", "metric"], sort=False))
    dims = np.unique(models["latent_dim"])
    shown = dims[np.unique(np.linspace(0, len(dims) - 1, 4).round().astype(int))]
    figure, axes = plotting.new_figure(
        len(measures),
        len(shown),
        width=3.4 * len(shown),
        height=1.0 + 2.5 * len(measures),
        title=f"{results.data_name}: trained diffusion models and what the noisy autoencoder foresees",
        caption="Mean over seeds against the stop; rightmost: end of sampling. Markers: smallest values. Band: ± 2 standard "
        "errors of the mean over seeds. Dotted: the training images themselves, the noise floor.",
    )
    for line, ((features, metric), group) in zip(axes, measures, strict=True):
        for panel, d in zip(line, shown, strict=True):
            _draw_panel(panel, results.arrays, group[group["latent_dim"] == d])
            panel.set_title(f"d = {d}: {plotting.METRIC_NAMES[metric]}\nof {features}", fontsize=8.5)
        line[0].set_ylabel("distance", fontsize=9)
    for panel in axes[-1]:
        panel.set_xlabel(plotting.LOGSNR_LABEL, fontsize=8)
    handles = axes[0, 0].get_legend_handles_labels()
    figure.legend(*handles, loc="outside upper center", fontsize=8, ncols=2, handlelength=3.4)
    return figure


def _draw_panel(panel: Axes, arrays: Mapping[str, np.ndarray], own: pd.DataFrame) -> None:
    """Both curves and the noise floor of one latent dimension; ``own`` are its rows, one per seed."""
    logsnr = arrays["logsnr"]
    x = np.where(np.isfinite(logsnr), logsnr, logsnr[np.isfinite(logsnr)].max() + 1.0)
    for k, (name, label) in enumerate({"model": "diffusion model", "noisy": "noisy autoencoder"}.items()):
        mean = arrays[name][own.index].mean(axis=0)
        errors = arrays[f"{name}_standard_error"][own.index]
        error = np.sqrt(np.mean(np.square(errors), axis=0) / len(own))
        style = plotting.line_style(k, markevery=[int(mean.argmin())])
        panel.plot(x, np.where(mean > 0, mean, np.nan), label=label, **style)
        low = np.maximum(mean - 2 * error, 0.5 * np.abs(mean))
        panel.fill_between(x, low, mean + 2 * error, alpha=0.15, color=style["color"], linewidth=0)
    if own["floor"].mean() > 0:
        panel.axhline(own["floor"].mean(), color="#999999", linestyle=":", linewidth=2, label="training images")
    _set_scale(panel, "y")
    panel.grid(alpha=0.25)


def _set_scale(panel: Axes, which: str) -> None:
    """Sets a logarithmic scale with readable ticks where the axis spans more than a factor of three."""
    low, high = getattr(panel, f"get_{which}lim")()
    if low > 0 and high < 3 * low:
        return
    getattr(panel, f"set_{which}scale")("log")
    axis = getattr(panel, f"{which}axis")
    axis.set_major_locator(LogLocator(subs=(1.0, 3.0), numticks=8))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _draw_predictions(results: Results, models: pd.DataFrame) -> Figure:
    """What each predictor says of each latent dimension against what the trained models reach."""
    noisy = results.arrays["noisy"]
    said = (noisy.min(axis=1), noisy[:, -1], models["reconstruction_error"], models["interpolation"])
    models = models.assign(reached=results.arrays["model"].min(axis=1), **dict(zip(PREDICTORS, said, strict=True)))
    measures = list(models.groupby(["features", "metric"], sort=False))
    figure, axes = plotting.new_figure(
        len(measures),
        len(PREDICTORS),
        width=3.3 * len(PREDICTORS),
        height=1.0 + 2.6 * len(measures),
        title=f"{results.data_name}: predictors of the best latent dimension, against trained diffusion models",
        caption="One number per latent dimension, mean over seeds; across: what the predictor says; up: smallest distance of "
        "the trained models over stops. Filled: models that count as trained in every seed. A rising line of numbers is a "
        "predictor that ranks well.",
    )
    for line, ((features, metric), group) in zip(axes, measures, strict=True):
        for panel, predictor in zip(line, PREDICTORS, strict=True):
            for d, own in group.groupby("latent_dim"):
                at = own[[predictor, "reached"]].mean(skipna=False).tolist()
                if min(at) > 0:
                    face = "black" if own["trained"].all() else "white"
                    panel.plot(*at, "o", color="black", markersize=5, markerfacecolor=face)
                    panel.annotate(str(d), at, xytext=(4, -9), textcoords="offset points", fontsize=8)
            panel.margins(0.15)
            for which in "xy":
                _set_scale(panel, which)
            panel.grid(alpha=0.25)
        line[0].set_ylabel(f"{plotting.METRIC_NAMES[metric]}\nof {features}, trained models", fontsize=8)
    for top, bottom, predictor in zip(axes[0], axes[-1], PREDICTORS, strict=True):
        unit = "mean squared pixel error" if predictor == "reconstruction error" else "same distance"
        bottom.set_xlabel(f"predicted: {unit}", fontsize=8)
        top.set_title(predictor, fontsize=9)
    return figure
