"""The printed table and the figure."""

import numpy as np

from experiments.recommend import Config, Outcome
from experiments.recommend.choice import percent, stop_words
from experiments.tables import align
from ldmjax import plotting

NAMES = {"w2": "squared Fréchet distance", "mmd": "squared MMD", "sliced_w2": "squared sliced W2"}
TITLES = {"images": "The noisy autoencoder", "latents": "Noisy latents"}
DRAWN = {"images": "decoded noisy latents", "latents": "noisy latents"}
BEYOND = {None: "", "first": "<= ", "last": ">= ", "end": "<= "}
HEADER = "features|metric|latents|at the end|best|gain % [90 %]|stop at logsnr [90 %]|that is to stop|verdict|choice"


def table(outcome: Outcome) -> str:
    """One row per latents, feature space and metric, the choices marked; advice; what stays unknown."""
    rows = [HEADER.split("|")]
    chosen = {(r["features"], r["metric"], r["name"]) for r in outcome.recommendations}
    tied = {(r["features"], r["metric"], name) for r in outcome.recommendations for name in r["tied"]} - chosen
    for r in sorted(outcome.records, key=lambda r: (r["features"], r["metric"])):
        key = r["features"], r["metric"], r["name"]
        gain = [percent(r, name) for name in ("gain", "gain_low", "gain_high")]
        rows.append(
            [
                *key,
                f"{r['end']:.4g}",
                f"{r['best']:.4g}",
                "-" if np.isnan(gain[0]) else "{:.2f} [{:.2f}, {:.2f}]".format(*gain),
                f"{BEYOND[r['edge']]}{_stop(r['logsnr'])} [{_stop(r['low'])}, {_stop(r['high'])}]",
                stop_words(r),
                r["verdict"],
                "best" if key in chosen else "tied" if key in tied else "",
            ]
        )
    advice = [f"{r['features']}, {r['metric']}, {r['name']}: {r['advice']}." for r in outcome.recommendations]
    unknown = [f"- {line}" for line in outcome.unknown]
    about = (
        f"Squared distances to held-out {outcome.compared} of a model that has learned these latents, stopped with noise left; "
        "t* is the smallest value, whatever the verdict"
    )
    if any(r["edge"] for r in outcome.records):
        about += "; after <= or >= it is at the edge of the levels tried, and may lie beyond"
    noticed = ["Noticed in these inputs:", *(f"- {line}" for line in outcome.noticed), ""] if outcome.noticed else []
    return "\n".join(
        ["", f"{about}:", *align(rows, left=3), "", *advice, "", *noticed, "Not known from these inputs:", *unknown]
    )


def _stop(logsnr: float | None) -> str:
    return "end" if logsnr is None else f"{logsnr:.1f}"


def draw(outcome: Outcome, config: Config):
    """Distance against stopping time: a row per feature space and kind of latents, a column per metric, a line per latents."""
    rows = list(dict.fromkeys((r["features"], r["name"].split()[0]) for r in outcome.records))
    measured, compared = list(dict.fromkeys(r["metric"] for r in outcome.records)), outcome.compared
    figure, axes = plotting.new_figure(
        len(rows), len(measured), width=4.4 * len(measured) + 0.8, height=0.9 + 3.4 * len(rows),
        title=f"{TITLES[compared]}: where would a diffusion model on these latents best stop?",
        caption=f"Distance to held-out {compared} of {DRAWN[compared]}, as of a model that has learned "
        "their law; networks and samplers with few steps lose variance, and may want an earlier stop. Marker: smallest "
        "value, with ± 2 standard errors and the 90 % interval of the stopping time. Grey line: the training "
        f"{compared} themselves. Rightmost point: end of sampling, no noise. Bias-corrected estimates may fall below 0; such "
        "points are not shown.",
    )  # fmt: skip
    for i, (space, kind) in enumerate(rows):
        for j, metric in enumerate(measured):
            own = [
                r for r in outcome.records
                if (r["features"], r["metric"], r["name"].split()[0]) == (space, metric, kind)
            ]  # fmt: skip
            _draw_panel(axes[i, j], own, outcome, config)
            axes[i, j].set_title(f"{NAMES[metric]} of {space}", fontsize=10)
            axes[i, j].set_ylabel("distance", fontsize=9)
        axes[i, -1].legend(fontsize=7.5, handlelength=3.4, loc="upper left", bbox_to_anchor=(1.01, 1.0))
    return figure


def _draw_panel(axes, rows, outcome, config):
    first, finite = config.logsnrs[:-1], outcome.curves["logsnr"][:-1]
    # The end has one place for all candidates, whichever levels were added to each.
    end = finite[-1] + 1.5 * (np.ptp(first) / (len(first) - 1) if len(first) > 1 else 1.0)
    smallest = np.inf
    for k, r in enumerate(rows):
        key = f"{r['name']}/{r['features']}/{r['metric']}"
        curve, error = outcome.curves[key], outcome.curves[f"{key}/standard_error"]
        x = np.append(outcome.curves[f"{r['name']}/logsnr"][:-1], end)
        shown = np.where(curve > 0, curve, np.nan)
        style = plotting.line_style(k)
        axes.plot(x, shown, label=r["name"], **style)
        best, low, high = (end if r[name] is None else r[name] for name in ("logsnr", "low", "high"))
        if r["best"] > 0:
            spread = 2 * error[list(x).index(best)]
            axes.errorbar(
                [best], [r["best"]], xerr=[[best - low], [high - best]], yerr=[[min(spread, 0.9 * r["best"])], [spread]],
                fmt=plotting.MARKERS[k % 8], color=style["color"], markersize=5.5, linewidth=1, capsize=2,
            )  # fmt: skip
        smallest = min(smallest, np.nanmin(shown, initial=np.inf))
    floor = rows[0]["floor"]
    if floor is not None and floor > 0:
        axes.axhline(floor, color="#999999", linewidth=2.5, zorder=0, label=f"training {outcome.compared}")
        smallest = min(smallest, floor)
    axes.set_yscale("log")
    if np.isfinite(smallest):
        axes.set_ylim(bottom=0.7 * smallest)
    axes.set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    ticks = np.arange(np.ceil(min(config.logsnr_min, finite[0]) / 2) * 2, finite[-1] + 0.1, 2)
    ticks = ticks[end - ticks > 0.08 * (end - finite[0])]  # their numbers stay clear of "end"
    axes.set_xticks([*ticks, end], [*(f"{t:g}" for t in ticks), "end"])
    top = axes.secondary_xaxis("top")
    shares = 100.0 * config.pipeline.share(ticks[::2])
    top.set_xticks(ticks[::2], [f"{s:.3g} %" for s in shares], fontsize=7.5)
    top.set_xlabel(f"share of sampling steps ({config.sampler})", fontsize=7.5)
    axes.grid(alpha=0.25)
