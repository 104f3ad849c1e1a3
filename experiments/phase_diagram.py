"""Maps squared W2 over latent dimension and stopping time from closed forms: best dimension, best stop, gains, caps.

Claim ([OS], arXiv 2510.08409, Prop. 1, 2): the best latent dimension depends on when sampling stops (few components
while much noise is left), and with an estimated score the best stop of a fixed dimension can lie before the end; with
the exact score it never does in W2. What remains true is a tolerance: the noise left that costs 1 % falls with the
dimension. By sliced W2 and MMD noise can help although the score is exact, as it fills in for dropped components; the table
says for which dimensions, in closed form.

Two models of estimation from n samples. *Twin*: the Gaussian with the data's eigenvalues and a diagonal score, lamh_i
= lam_i chi2_n / n, in the data's own basis. *PCA* (only with samples): PCA of n of the images, compared by the exact
Bures distance with mean and covariance of the images held out; for latent dimensions up to the rank of the estimate and D,
since between the two the basis is arbitrary.

    python -m experiments.phase_diagram                                       # digits
    python -m experiments.phase_diagram --spectrum=power:1.5 --data_dim=256 --n=50,500

Takes 5 s; the numbers obtained stand in docs/results.md#phase_diagram.
"""

import dataclasses
import math

import numpy as np

from experiments import launch
from experiments.launch import Report, Results, Stage, setting
from ldmjax import data, gaussians, oracle, plotting, schedules
from ldmjax.job import Job
from ldmjax.metrics.statistics import ratio, wilson_interval
from ldmjax.random_matrices import twin_estimates
from ldmjax.tables import table

SCHEDULES = {"ou": schedules.OrnsteinUhlenbeck, "linear_vp": schedules.LinearVP}
QUICK = {"draws": 4, "noise_levels": 60, "pca_draws": 1, "pca_levels": 20}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config(launch.DataSettings):
    """What is computed."""

    n: tuple[int, ...] = setting((100, 500), "Sample sizes that the score is estimated from.", low=2, high=1_000_000)
    latent_dims: tuple[int, ...] | None = setting(
        None, "Latent dimensions; all of 1..D if not given.", low=1, high=100_000
    )
    caps: tuple[float, ...] = setting(
        (np.inf, 20.0, 5.0), "Bounds C on the score's weights.", low=1, low_open=True, infinite=True
    )
    draws: int = setting(20, "Draws of the estimated variances per n.", low=1, high=1_000_000)
    seed: int = launch.seed(help="Seed of the first draw.")
    noise_levels: int = setting(1000, "Stopping times, the end included.", low=2, high=100_000)
    logsnr_max: float = setting(12.0, "Cleanest of the stopping times before the end, as logsnr.", low=-100, high=100)
    tolerance: float = setting(
        0.01, "Share of squared W2 that the noise left may cost with the exact score.", low=0, low_open=True, high=1e3
    )
    pca_draws: int = setting(3, "Draws of n images for the PCA model (0: none; only with --data).", low=0, high=1000)
    pca_levels: int = setting(100, "Stopping times of the PCA model.", low=2, high=100_000)
    schedule: str = setting("ou", "Whose time is shown.", choices=tuple(SCHEDULES))
    t_max: float | None = setting(
        None, "Time where sampling starts; 2 for ou, 1 for linear_vp if not given.", low=0, low_open=True
    )
    dynamics: str = setting("sde", "Sampler of the capped score.", choices=oracle.capped.DYNAMICS)

    def __post_init__(self):
        super().__post_init__()
        if not 0 < self.noise_var_max < 1:
            raise self.refuse("t_max", "must leave a noise variance in (0, 1)")
        if not self.logsnr_max > self.logsnr_min:
            raise self.refuse("logsnr_max", f"must be > {self.logsnr_min:.4g}, where sampling starts")

    def load(self) -> data.Dataset:
        """The data, which have the latent dimensions and the images that are asked for."""
        dataset = super().load()
        if self.latent_dims is not None:
            self.check_latent_dims(dataset)
        if self.pca_draws:
            self.check_n(dataset)
        return dataset

    @property
    def noising(self) -> schedules.OrnsteinUhlenbeck | schedules.LinearVP:
        """The schedule itself."""
        kind = SCHEDULES[self.schedule]
        return kind() if self.t_max is None else kind(t_max=self.t_max)

    @property
    def noise_var_max(self) -> float:
        """Noise variance where sampling starts."""
        return float(self.noising.sigma(self.noising.t_max) ** 2)

    @property
    def logsnr_min(self) -> float:
        """Logsnr where sampling starts."""
        return float(self.noising.logsnr(self.noising.t_max))

    def noise_vars(self, levels: int) -> np.ndarray:
        """``[levels]`` noise variances: uniform in logsnr from the start of sampling to logsnr_max, then 0, the end."""
        nu = schedules.noise_var_from_logsnr(np.linspace(self.logsnr_min, self.logsnr_max, levels - 1))
        return np.append(np.minimum(nu, self.noise_var_max), 0.0)


def plan(config: Config, dataset: data.Dataset) -> list[Stage]:
    """Closed forms of both models."""
    of_pca = 0 if dataset.samples is None else len(config.n) * config.pca_draws
    return [
        Stage(stage="twin model", runs=len(config.n) * config.draws),
        Stage(stage="PCA model", runs=of_pca),
    ]


def compute(config: Config, dataset: data.Dataset, job: Job) -> Results:
    """Everything; the covariance of the data gives the spectrum, their samples, if any, the PCA model.

    Rows are of kind latent_dim (over draws), draw (joint optimum), cap, exact_metric (sliced W2 and MMD with the exact
    score), pca. Arrays, with L latent dimensions, K noise levels, N values of n, R draws; distances are squared W2:
      variances ``[D]`` of the data, largest first; latent_dims ``[L]``; n ``[N]``; caps;
      noise_var, times ``[K]``; the last is 0, the end of sampling;
      exact ``[L, K]``, exact score (n = inf);
      tolerance_noise_var ``[L]``, noise variance left that costs ``tolerance`` with the exact score;
      first_draw ``[N, L, K]``, with the estimated variances of draw 0;
      best_noise_var, end, best ``[N, R, L]``: best stop of each dimension, distance at the end, distance at that stop;
      joint ``[N, R, 3]``: latent dimension, noise variance and distance of the joint optimum over the latent dimensions;
      capped ``[caps, L, K]`` for draw 0 of the largest n, from the marginal start.
    """
    variances = gaussians.eigh_descending(dataset.covariance)[0]
    dims = np.sort(np.arange(1, dataset.dim + 1) if config.latent_dims is None else config.latent_dims)
    nu, places = config.noise_vars(config.noise_levels), dims - 1
    tolerated = oracle.tolerance_noise_var(variances, relative=config.tolerance, noise_var_max=config.noise_var_max)
    twins = [_twin_model(variances, dims, n, config) for n in config.n]
    estimated = twin_estimates(variances, n=max(config.n), draws=1, seed=config.seed)[0]
    arrays = {
        "variances": variances,
        "latent_dims": dims,
        "noise_var": nu,
        "times": np.append(config.noising.inverse_logsnr(schedules.logsnr_from_noise_var(nu[:-1])), 0.0),
        "exact": oracle.w2_squared_curve(variances, variances, nu)[places],
        "tolerance_noise_var": tolerated[places],
        **{name: np.stack([twin[name] for twin in twins]) for name in twins[0]},
        "capped": np.stack([_capped_curve(variances, estimated, nu, cap, config)[places] for cap in config.caps]),
        "n": np.array(config.n),
        "caps": np.array(config.caps),
    }
    cases = [] if dataset.samples is None else [(n, draw) for n in config.n for draw in range(config.pca_draws)]
    of_pca = job.map(
        lambda chosen: (_pca_model(dataset, *cases[i], dims, config) for i in chosen),
        [f"PCA of {n} images, draw {draw}" for n, draw in cases],
        label="PCA of images",
    )
    rows = [*_twin_rows(arrays, config), *_cap_rows(arrays, config), *_exact_metric_rows(variances, dims, config)]
    return Results(rows=[*rows, *(row for found in of_pca for row in found)], arrays=arrays)


def _twin_model(variances: np.ndarray, dims: np.ndarray, n: int, config: Config) -> dict[str, np.ndarray]:
    """The arrays of one n."""
    rows, widest = dims - 1, dims.max()
    shape = config.draws, dims.size
    stop, end, best = np.empty(shape), np.empty(shape), np.empty(shape)
    estimates = twin_estimates(variances, n=n, draws=config.draws, seed=config.seed)
    for r, estimated in enumerate(estimates):
        found = oracle.best_noise_var(variances[:widest], estimated[:widest], noise_var_max=config.noise_var_max)
        stop[r] = found[rows]
        end[r] = oracle.w2_squared_curve(variances, estimated, 0.0)[rows, 0]
        # At a root a few ulps from 0 rounding may put the stop above the end by as little.
        best[r] = np.minimum(distance_at(variances, estimated, rows, stop[r]), end[r])
    at = np.arange(config.draws), np.argmin(best, axis=1)
    first = oracle.w2_squared_curve(variances, estimates[0], config.noise_vars(config.noise_levels))[rows]
    joint = np.stack([dims[at[1]], stop[at], best[at]], axis=1)
    return {"first_draw": first, "best_noise_var": stop, "end": end, "best": best, "joint": joint}


def distance_at(variances: np.ndarray, estimated: np.ndarray, rows: np.ndarray, noise_var: np.ndarray) -> np.ndarray:
    """Squared W2 ``[L]`` of latent dimension ``rows[l] + 1`` stopped at ``noise_var[l]``."""
    result = np.empty(rows.size)
    for part in np.array_split(np.arange(rows.size), max(1, rows.size // 256)):
        curve = oracle.w2_squared_curve(variances, estimated, noise_var[part])
        result[part] = curve[rows[part], np.arange(part.size)]
    return result


def gain_percent(arrays: dict[str, np.ndarray]) -> np.ndarray:
    """``[N, R, L]``: what the best stop saves, in percent of the distance at the end."""
    return 100.0 * ratio(arrays["end"] - arrays["best"], arrays["end"])


def shown_dims(latent_dims: np.ndarray) -> np.ndarray:
    """Places of the latent dimensions that the table shows."""
    return np.unique(np.round(np.geomspace(1, latent_dims.size, 8)).astype(int)) - 1


def _capped_curve(variances, estimated, nu, cap, config):
    generated = oracle.capped_variances(
        estimated, nu, noise_var_max=config.noise_var_max, cap=cap, start="marginal", dynamics=config.dynamics
    )
    return oracle.w2_squared_from_variances(variances, generated)


def _pca_model(dataset: data.Dataset, n: int, draw: int, dims: np.ndarray, config: Config) -> list[dict]:
    """PCA of n samples against the covariance of the rest: end and best stop for a few latent dimensions."""
    nu = config.noise_vars(config.pca_levels)
    train, held_out = dataset.split(n=n, seed=config.seed + draw)
    estimated, reference = np.cov(train.T, bias=True), np.cov(held_out.T, bias=True)
    shift = np.sum((train.mean(axis=0) - held_out.mean(axis=0)) ** 2)
    rank = int(np.count_nonzero(gaussians.eigh_descending(estimated)[0]))
    allowed = dims[(dims <= rank) | (dims == dataset.dim)]
    ladder = np.append(2 ** np.arange(17), allowed[allowed <= rank].max(initial=0))
    rows = []
    for d in np.intersect1d(allowed, np.append(ladder, dataset.dim)).tolist():
        curve = shift + oracle.w2_squared_general(reference, estimated, d, nu)
        k = _last_argmin(curve)
        distances = {"w2_squared_end": curve[-1], "w2_squared_best": curve[k]}
        stop = {"noise_var_best": nu[k], "logsnr_best": _logsnr(nu[k])}
        gain = {"gain_percent": 100.0 * (1.0 - curve[k] / curve[-1])}
        rows.append({"kind": "pca", "n": n, "draw": draw, "latent_dim": d, "rank": rank, **distances, **stop, **gain})
    return rows


def _exact_metric_rows(variances: np.ndarray, dims: np.ndarray, config: Config) -> list[dict]:
    """Sliced W2 along 64 directions and MMD of kernel width h = the median distance of draws, with the exact score."""
    rng, nu, rows = np.random.default_rng([config.seed, 3]), config.noise_vars(config.noise_levels), []
    unit = rng.standard_normal((64, variances.size))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = rng.standard_normal((2, 1000, variances.size)) * np.sqrt(variances)
    h = float(np.median(np.linalg.norm(pairs[0] - pairs[1], axis=1)))
    generated = oracle.stopped_variances(variances, nu)
    for d in dims[shown_dims(dims)].tolist():
        curves = {
            "sliced_w2": oracle.sliced_w2_squared_from_variances(variances, generated, d, directions=unit),
            "mmd": oracle.mmd_squared_from_variances(variances, generated, d, bandwidth=h),
        }
        for metric, curve in curves.items():
            curve = np.where(np.abs(curve) < 1e-12 * curve.max(), 0.0, curve)
            k = _last_argmin(curve)
            gain = 100.0 * (1.0 - curve[k] / curve[-1]) if curve[-1] > 0 else 0.0
            stop = {"end": curve[-1], "best": curve[k], "noise_var_best": nu[k], "logsnr_best": _logsnr(nu[k])}
            rows.append({"kind": "exact_metric", "latent_dim": d, "metric": metric, **stop, "gain_percent": gain})
    return rows


def _last_argmin(curve: np.ndarray) -> int:
    return curve.size - 1 - int(np.argmin(curve[::-1]))


def _logsnr(noise_var: float) -> float:
    return float(schedules.logsnr_from_noise_var(np.float64(noise_var)))


def _twin_rows(arrays: dict[str, np.ndarray], config: Config) -> list[dict]:
    """For every n one row per latent dimension, over draws, then one per draw."""
    rows, gain = [], gain_percent(arrays)
    for i, n in enumerate(config.n):
        stop = arrays["best_noise_var"][i]
        before_end = np.sum(stop > 0, axis=0)
        # The noise itself, a distance that no step improves.
        at_start = np.sum(stop >= arrays["noise_var"][0], axis=0)
        low, high = wilson_interval(before_end, config.draws)
        for j, d in enumerate(arrays["latent_dims"]):
            share = {"before_end_count": before_end[j], "before_end_share": before_end[j] / config.draws}
            share |= {"before_end_low": low[j], "before_end_high": high[j], "at_start_count": at_start[j]}
            gains = {"gain_percent_mean": gain[i, :, j].mean(), "gain_percent_max": gain[i, :, j].max()}
            ends = {
                "w2_squared_end_mean": arrays["end"][i, :, j].mean(),
                "w2_squared_end_exact": arrays["exact"][j, -1],
            }
            tolerated = arrays["tolerance_noise_var"][j]
            tolerance = {"tolerance": config.tolerance, "tolerance_noise_var": tolerated}
            tolerance["tolerance_logsnr"] = _logsnr(tolerated)
            named = {"kind": "latent_dim", "n": n, "latent_dim": d, "draws": config.draws}
            rows.append(named | share | gains | ends | tolerance)
        for r, (d, nu, distance) in enumerate(arrays["joint"][i]):
            best = {"noise_var_best": nu, "logsnr_best": _logsnr(nu), "w2_squared_best": distance}
            rows.append({"kind": "draw", "n": n, "draw": r, "latent_dim_best": int(d), **best})
    return rows


def _cap_rows(arrays: dict[str, np.ndarray], config: Config) -> list[dict]:
    rows, dims = [], arrays["latent_dims"]
    for cap, curve in zip(config.caps, arrays["capped"], strict=True):
        j, k = np.unravel_index(np.argmin(curve), curve.shape)
        at_end = {"latent_dim_best_at_end": dims[np.argmin(curve[:, -1])], "w2_squared_end": curve[:, -1].min()}
        nu = arrays["noise_var"][k]
        best = {"noise_var_best": nu, "logsnr_best": _logsnr(nu), "w2_squared_best": curve[j, k]}
        named = {"kind": "cap", "n": max(config.n), "draw": 0, "cap": cap, "dynamics": config.dynamics}
        rows.append(named | at_end | {"latent_dim_best": dims[j]} | best)
    return rows


def report(results: Results) -> Report:
    """Gains by dimension, joint optima, caps, other metrics and PCA as tables; three figures."""
    tables = [_dimension_table, _joint_table, _cap_table, _exact_metric_table, _pca_table]
    text = "\n\n".join(filter(None, (make(results) for make in tables)))
    figures = {"phase_diagram": _draw_map(results), "gains": _draw_gains(results), "caps": _draw_caps(results)}
    return Report(text=text, figures=figures)


def _tabulate(rows, columns: dict[str, tuple[str, str]], title: str) -> str:
    """A table of rows; ``columns`` says for each name which field it shows, and how its numbers are written."""
    shown = [{name: row[field] for name, (field, _) in columns.items()} for row in rows]
    return table(shown, {name: how for name, (_, how) in columns.items()}, title=title, left=0)


def _dimension_table(results: Results) -> str:
    dims = results.arrays["latent_dims"]
    shown = results.frame(kind="latent_dim")
    shown = shown[shown["latent_dim"].isin(dims[shown_dims(dims)])]
    ends = zip(shown["before_end_low"], shown["before_end_high"], strict=True)
    shown["interval"] = [f"[{low:.2f}, {high:.2f}]" for low, high in ends]
    shown["at_start"] = shown["at_start_count"] / shown["draws"]
    columns = {"n": ("n", ""), "d": ("latent_dim", ""), "W2^2 at end": ("w2_squared_end_mean", ".5g")}
    columns |= {"P(best stop before end)": ("before_end_share", ".2f"), "[90 %]": ("interval", "")}
    columns |= {"P(at start)": ("at_start", ".2f"), "gain mean %": ("gain_percent_mean", ".4f")}
    columns |= {"gain max %": ("gain_percent_max", ".4f")}
    columns |= {f"nu for +{100 * results.config.tolerance:g} %": ("tolerance_noise_var", ".3g")}
    title = "Squared W2 of the twin model and its best stop, over draws:"
    return _tabulate(shown.to_dict("records"), columns, title)


def _joint_table(results: Results) -> str:
    largest, rows = results.frame(kind="latent_dim").groupby("n")["gain_percent_max"].max(), []
    for n, own in results.frame(kind="draw").groupby("n", sort=False):
        dims, before_end = own["latent_dim_best"], int(np.sum(own["noise_var_best"] > 0))
        counts = {"best d": f"{dims.min()}..{dims.max()}", "stop before the end": f"{before_end} of {len(own)} draws"}
        rows.append({"n": n, **counts, "largest gain at any d, %": largest[n]})
    columns = dict.fromkeys(rows[0], "") | {"largest gain at any d, %": ".3f"}
    return table(rows, columns, title="Joint optimum over dimension and stop:", left=0)


def _cap_table(results: Results) -> str:
    rows = [row | {"cap": math.inf if row["cap"] is None else row["cap"]} for row in results.of_kind("cap")]
    columns = {"C": ("cap", "g"), "d at the end": ("latent_dim_best_at_end", ""), "W2^2": ("w2_squared_end", ".5g")}
    columns |= {"d with the best stop": ("latent_dim_best", ""), "nu": ("noise_var_best", ".3g")}
    columns |= {"W2^2 ": ("w2_squared_best", ".5g")}
    title = f"Weights bounded by a cap C ({rows[0]['dynamics']}, n = {rows[0]['n']}, draw 0):"
    return _tabulate(rows, columns, title)


def _exact_metric_table(results: Results) -> str:
    columns = {"d": ("latent_dim", ""), "metric": ("metric", ""), "end": ("end", ".4g"), "best": ("best", ".4g")}
    columns |= {"nu": ("noise_var_best", ".3g"), "gain %": ("gain_percent", ".2f")}
    title = "Other metrics with the exact score, at the end and at the best stop:"
    return _tabulate(results.of_kind("exact_metric"), columns, title)


def _pca_table(results: Results) -> str:
    if not results.of_kind("pca"):
        return ""
    own = results.frame(kind="pca").groupby(["n", "latent_dim"], sort=False)
    shown = own.agg(
        draws=("draw", "size"),
        end=("w2_squared_end", "mean"),
        best=("w2_squared_best", "mean"),
        low=("gain_percent", "min"),
        high=("gain_percent", "max"),
    )
    columns = {"n": ("n", ""), "d": ("latent_dim", ""), "draws": ("draws", ""), "W2^2": ("end", ".5g")}
    columns |= {"with the best stop": ("best", ".5g"), "gain min %": ("low", ".3f"), "gain max %": ("high", ".3f")}
    return _tabulate(shown.reset_index().to_dict("records"), columns, "PCA of n images, against images held out:")


def _draw_map(results: Results):
    """Heat maps with the exact score and with each n: best dimension per stop above, best stop per dimension below."""
    config, arrays = results.config, results.arrays
    titles = ["exact score (n = inf)", *(f"score estimated from n = {n}" for n in arrays["n"])]
    caption = (
        f"{results.data_name}: squared W2 between the data and samples of a latent diffusion model, in closed form, for every "
        f"latent dimension and stopping time. Top: percent above the best dimension for that stop (the line is that "
        f"dimension). Bottom: percent above the best stop for that dimension (dots mark it; 'end' = sampling not stopped). "
        f"Dashed: with the exact score, stopping there costs {100 * config.tolerance:g} %. Estimates: one draw of the Gaussian "
        f"twin, seed {config.seed}."
    )
    figure, axes = plotting.new_figure(2, len(titles), width=3.9 * len(titles) + 1.2, height=8.6, caption=caption)
    for column, title, curve in zip(axes.T, titles, [arrays["exact"], *arrays["first_draw"]], strict=True):
        mesh = plotting.draw_phase_panels(column, curve, arrays["noise_var"], latent_dims=arrays["latent_dims"])
        plotting.draw_ridge(
            column[1],
            arrays["tolerance_noise_var"],
            arrays["latent_dims"],
            style="--",
            label=f"+{100 * config.tolerance:g} % with the exact score",
        )
        column[0].set_title(title, fontsize=10)
        for panel in column:
            plotting.add_noise_axis(panel, config.noising)
        column[1].set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    axes[0, 0].set_ylabel("latent dimension")
    axes[1, 0].set_ylabel("latent dimension")
    figure.colorbar(
        mesh, ax=axes, label="squared W2 distance, percent above the best", format="%g", extend="both", aspect=40
    )
    return figure


def _draw_gains(results: Results):
    """Over draws: how often the best stop is before the end, and what it saves, against latent dimension."""
    dims, sizes = results.arrays["latent_dims"], results.arrays["n"]
    of_twin, of_pca = results.frame(kind="latent_dim"), results.frame(kind="pca")
    caption = (
        f"{results.data_name}: left, the share of {of_twin['draws'].iloc[0]} draws of the estimated variances in which the "
        f"best stop lies before the end of sampling (band: 90 % Wilson interval). Right, what that stop saves in percent of "
        f"the distance at the end. Twin model: lines (mean) and dotted lines (largest draw)"
        + ("; PCA of n images against held-out images: open markers, one per draw." if len(of_pca) else ".")
        + " Savings below 1e-4 % are drawn at 1e-4 %."
    )
    figure, axes = plotting.new_figure(1, 2, width=11, height=5, caption=caption)
    for i, n in enumerate(sizes):
        own, style = of_twin[of_twin["n"] == n], plotting.line_style(i, markevery=0.1 if dims.size > 10 else 1)
        axes[0, 0].plot(dims, own["before_end_share"], label=f"n = {n}", **style)
        axes[0, 0].fill_between(
            dims, own["before_end_low"], own["before_end_high"], color=style["color"], alpha=0.15, linewidth=0
        )
        axes[0, 1].plot(dims, own["gain_percent_mean"].clip(1e-4), label=f"n = {n}, mean of draws", **style)
        axes[0, 1].plot(
            dims,
            own["gain_percent_max"].clip(1e-4),
            label=f"n = {n}, largest draw",
            **style | {"linestyle": ":", "marker": "", "linewidth": 1.2},
        )
        if len(of_pca):
            images = of_pca[of_pca["n"] == n]
            axes[0, 1].plot(
                images["latent_dim"],
                images["gain_percent"].clip(1e-4),
                linestyle="none",
                marker=style["marker"],
                color=style["color"],
                markerfacecolor="none",
                markersize=8,
                label=f"n = {n}, PCA of images",
            )
    axes[0, 0].set(ylabel="share of draws with a best stop before the end", ylim=(0, 1.03))
    axes[0, 1].set(yscale="log", ylabel="saved by stopping (% of squared W2 at the end)")
    for panel in axes[0]:
        panel.grid(alpha=0.25)
        panel.set_xlabel("latent dimension")
        plotting.set_dimension_scale(panel.xaxis, int(dims[-1]))
        plotting.draw_legend(panel, below=True, ncols=sizes.size)
    return figure


def _draw_caps(results: Results):
    """One heat map per cap on a common scale: squared W2 in percent of the data's total variance."""
    config, arrays = results.config, results.arrays
    caption = (
        f"{results.data_name}: squared W2 in percent of the data's total variance when the score's weights are bounded by C "
        f"({config.dynamics.upper()} sampler, marginal start, one draw of n = {max(arrays['n'])}). The star is the best "
        f"dimension and stop of its panel; its value is in the title. Where a cap binds it leaves variance in, as an "
        f"early stop does, so a small C asks for fewer dimensions."
    )
    figure, axes = plotting.new_figure(
        1, arrays["caps"].size, width=3.7 * arrays["caps"].size + 1.2, height=4.6, caption=caption
    )
    total = arrays["variances"].sum()
    for panel, cap, curve in zip(axes[0], arrays["caps"], arrays["capped"], strict=True):
        percent = 100.0 * curve / total
        mesh = plotting.draw_heat_map(
            panel, percent, arrays["noise_var"], latent_dims=arrays["latent_dims"], low=0.1, high=100.0
        )
        j, k = np.unravel_index(np.argmin(curve), curve.shape)
        plotting.draw_ridge(
            panel, arrays["noise_var"][[k]], arrays["latent_dims"][[j]], label="best", style="", marker="*"
        )
        panel.lines[-1].set(markersize=14, clip_on=False)
        plotting.add_noise_axis(panel, config.noising)
        panel.set_title(f"C = {cap:g}: best {percent[j, k]:.3g} % at d = {arrays['latent_dims'][j]}", fontsize=10)
        panel.set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    axes[0, 0].set_ylabel("latent dimension")
    figure.colorbar(mesh, ax=axes, label="squared W2, percent of the total variance", format="%g", extend="both")
    return figure


if __name__ == "__main__":
    launch.main(Config, compute, report, quick=QUICK, plan=plan)
