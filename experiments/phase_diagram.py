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

Takes 5 s. Obtained (digits, draws 0..19): the best dimension rises from 17 to 61 along sampling; the noise variance
that costs 1 % falls from .66 (d = 1) to .011 (d = 35). The best stop lies before the end in 45 to 70 % of draws at
n = 500 for every d up to the rank, 61, and saves at most .12 % on average, .89 % in one draw; n = 100: at most 2.9 %.
Beyond the rank it does in 6 of 20 draws at n = 100, d = 62, by at most .0006 %, and nowhere else. PCA of 100 images: 4.6 to
5.8 % at d = rank; of 500: at most .15 % at any d. Cap 20: best d = 50 in place of 61, and no stop helps.
"""

import dataclasses
import time

import numpy as np
from absl import flags

from experiments import flags as shared
from experiments import plans
from ldmjax import data, gaussians, oracle, plotting, records, schedules

FLAGS = flags.FLAGS
SCHEDULES = {"ou": schedules.OrnsteinUhlenbeck, "linear_vp": schedules.LinearVP}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """What is computed; the flags of the same names say more."""

    n: tuple[int, ...] = (100, 500)
    latent_dims: tuple[int, ...] | None = None
    draws: int = 20
    seed: int = 0
    noise_levels: int = 1000
    logsnr_max: float = 12.0
    caps: tuple[float, ...] = (np.inf, 20.0, 5.0)
    dynamics: str = "sde"
    tolerance: float = 0.01
    pca_draws: int = 3
    pca_levels: int = 100
    schedule: schedules.OrnsteinUhlenbeck | schedules.LinearVP = schedules.OrnsteinUhlenbeck()

    def __post_init__(self):
        for name, low in [("draws", 1), ("noise_levels", 2), ("pca_draws", 0), ("pca_levels", 2)]:
            if getattr(self, name) < low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if not self.n or min(self.n) < 2:
            raise ValueError(f"n must be whole numbers >= 2, got {self.n}")
        if not 0 < self.noise_var_max < 1:
            raise ValueError(f"the schedule must end at a noise variance in (0, 1), got {self.noise_var_max}")
        if not self.logsnr_max > self.schedule.logsnr(self.schedule.t_max):
            raise ValueError(
                f"logsnr_max must be > {self.schedule.logsnr(self.schedule.t_max):.4g}, where sampling starts"
            )

    @property
    def noise_var_max(self) -> float:
        """Noise variance where sampling starts."""
        return float(self.schedule.sigma(self.schedule.t_max) ** 2)

    def noise_vars(self, levels: int) -> np.ndarray:
        """``[levels]`` noise variances: uniform in logsnr from the start of sampling to logsnr_max, then 0, the end."""
        logsnr = np.linspace(self.schedule.logsnr(self.schedule.t_max), self.logsnr_max, levels - 1)
        nu = np.minimum(schedules.noise_var_from_logsnr(logsnr), self.noise_var_max)
        return np.append(nu, 0.0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PhaseDiagram:
    """Results. L latent dimensions, K noise levels, N values of n, R draws; distances are squared W2.

    Attributes:
      variances: ``[D]`` of the data, largest first.
      latent_dims: ``[L]``.
      noise_var, times: ``[K]``; the last is 0, the end of sampling.
      exact: ``[L, K]``, exact score (n = inf).
      tolerance_noise_var: ``[L]``, noise variance left that costs ``tolerance`` with the exact score.
      first_draw: ``[N, L, K]``, with the estimated variances of draw 0.
      best_noise_var, end, best: ``[N, R, L]``: best stop of each dimension, distance at the end, distance at that stop.
      exact_metrics: one dict per (latent dimension, metric): sliced W2 and MMD with the exact score.
      joint: ``[N, R, 3]``: latent dimension, noise variance and distance of the joint optimum over ``latent_dims``.
      capped: ``[caps, L, K]`` for draw 0 of the largest n, from the marginal start.
      pca: one dict per (n, draw, latent dimension) of the PCA model.
    """

    variances: np.ndarray
    latent_dims: np.ndarray
    noise_var: np.ndarray
    times: np.ndarray
    exact: np.ndarray
    tolerance_noise_var: np.ndarray
    first_draw: np.ndarray
    best_noise_var: np.ndarray
    end: np.ndarray
    best: np.ndarray
    joint: np.ndarray
    exact_metrics: list[dict]
    capped: np.ndarray
    pca: list[dict]

    @property
    def gain_percent(self) -> np.ndarray:
        """``[N, R, L]``: what the best stop saves, in percent of the distance at the end."""
        return 100.0 * np.divide(self.end - self.best, self.end, out=np.zeros_like(self.end), where=self.end > 0)

    @property
    def before_end(self) -> np.ndarray:
        """``[N, R, L]``: the best stop lies before the end of sampling."""
        return self.best_noise_var > 0

    @property
    def at_start(self) -> np.ndarray:
        """``[N, R, L]``: the best stop is the start of sampling: the noise itself, a distance that no step improves."""
        return self.best_noise_var >= self.noise_var[0]


def distance_at(variances: np.ndarray, estimated: np.ndarray, rows: np.ndarray, noise_var: np.ndarray) -> np.ndarray:
    """Squared W2 ``[L]`` of latent dimension ``rows[l] + 1`` stopped at ``noise_var[l]``."""
    result = np.empty(rows.size)
    for part in np.array_split(np.arange(rows.size), max(1, rows.size // 256)):
        curve = oracle.w2_squared_curve(variances, estimated, noise_var[part])
        result[part] = curve[rows[part], np.arange(part.size)]
    return result


def plan(dataset: data.Dataset, config: Config) -> list[plans.Stage]:
    """The stages of the experiment."""
    dim, of_pca = dataset.dim, len(config.n) * config.pca_draws if dataset.samples is not None else 0
    # The model of PCA is computed at powers of two, with two eigenvalue problems of size D for each stop.
    bures = (2 + np.log2(dim)) * config.pca_levels * 8e-4 * (dim / 64) ** 3
    return [
        plans.host(
            "diagonal model", runs=len(config.n) * config.draws, seconds=3e-3 + 1e-7 * dim * config.noise_levels
        ),
        plans.host("PCA model", runs=of_pca, seconds=bures),
        plans.host("tables, figures", runs=1, seconds=3.0),
    ]


def run(dataset: data.Dataset, config: Config) -> PhaseDiagram:
    """Computes everything; the function behind the command.

    Args:
      dataset: its covariance gives the spectrum; its samples, if any, the PCA model.
      config: what to compute; ``latent_dims`` None means 1..D.

    Returns:
      A `PhaseDiagram`.
    """
    variances = gaussians.eigh_descending(dataset.covariance)[0]
    dims = np.arange(1, variances.size + 1) if config.latent_dims is None else np.array(config.latent_dims)
    if dims.min() < 1 or dims.max() > variances.size:
        raise ValueError(f"latent_dims must be 1..{variances.size}, got {config.latent_dims}")
    dims = np.sort(dims)
    rows, nu, nu_max = dims - 1, config.noise_vars(config.noise_levels), config.noise_var_max
    shape = (len(config.n), config.draws, dims.size)
    best_nu, end, best, joint = np.empty(shape), np.empty(shape), np.empty(shape), np.empty((*shape[:2], 3))
    first, widest = np.empty((len(config.n), dims.size, nu.size)), dims.max()
    for i, n in enumerate(config.n):
        estimates = twin_estimates(variances, n=n, draws=config.draws, seed=config.seed)
        first[i] = oracle.w2_squared_curve(variances, estimates[0], nu)[rows]
        for r, estimated in enumerate(estimates):
            kept = oracle.best_noise_var(variances[:widest], estimated[:widest], noise_var_max=nu_max)
            best_nu[i, r] = kept[rows]
            end[i, r] = oracle.w2_squared_curve(variances, estimated, 0.0)[rows, 0]
            # At a root a few ulps from 0 rounding may put the stop above the end by as little.
            best[i, r] = np.minimum(distance_at(variances, estimated, rows, best_nu[i, r]), end[i, r])
            at = int(np.argmin(best[i, r]))
            joint[i, r] = dims[at], best_nu[i, r, at], best[i, r, at]
    largest = max(config.n)
    estimated = twin_estimates(variances, n=largest, draws=1, seed=config.seed)[0]
    return PhaseDiagram(
        variances=variances,
        latent_dims=dims,
        noise_var=nu,
        times=np.append(config.schedule.inverse_logsnr(schedules.logsnr_from_noise_var(nu[:-1])), 0.0),
        exact=oracle.w2_squared_curve(variances, variances, nu)[rows],
        tolerance_noise_var=oracle.tolerance_noise_var(variances, relative=config.tolerance, noise_var_max=nu_max)[
            rows
        ],
        first_draw=first,
        best_noise_var=best_nu,
        end=end,
        best=best,
        joint=joint,
        exact_metrics=_exact_metrics(variances, dims, config),
        capped=np.stack([_capped_curve(variances, estimated, nu, cap, config)[rows] for cap in config.caps]),
        pca=_pca_model(dataset, config, variances, dims),
    )


def shown_dims(latent_dims: np.ndarray) -> np.ndarray:
    """Places of the latent dimensions that the table shows."""
    return np.unique(np.round(np.geomspace(1, latent_dims.size, 8)).astype(int)) - 1


def _exact_metrics(variances, dims, config):
    """Sliced W2 along 64 directions and MMD of kernel width h = the median distance of draws, with the exact score."""
    rng, nu = np.random.default_rng([config.seed, 3]), config.noise_vars(config.noise_levels)
    unit = rng.standard_normal((64, variances.size))
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    pairs = rng.standard_normal((2, 1000, variances.size)) * np.sqrt(variances)
    h = float(np.median(np.linalg.norm(pairs[0] - pairs[1], axis=1)))
    generated, results = oracle.stopped_variances(variances, nu), []
    for d in dims[shown_dims(dims)]:
        curves = {
            "sliced_w2": oracle.sliced_w2_squared_from_variances(variances, generated, int(d), directions=unit),
            "mmd": oracle.mmd_squared_from_variances(variances, generated, int(d), bandwidth=h),
        }
        for metric, curve in curves.items():
            curve = np.where(np.abs(curve) < 1e-12 * curve.max(), 0.0, curve)
            k = curve.size - 1 - int(np.argmin(curve[::-1]))
            results.append(
                {
                    "latent_dim": int(d), "metric": metric, "end": curve[-1], "best": curve[k], "noise_var_best": nu[k],
                    "logsnr_best": _logsnr(nu[k]),
                    "gain_percent": 100.0 * (1.0 - curve[k] / curve[-1]) if curve[-1] > 0 else 0.0,
                }
            )  # fmt: skip
    return results


def _capped_curve(variances, estimated, nu, cap, config):
    generated = oracle.capped_variances(
        estimated, nu, noise_var_max=config.noise_var_max, cap=cap, start="marginal", dynamics=config.dynamics
    )
    return oracle.w2_squared_from_variances(variances, generated)


def _pca_model(dataset, config, variances, dims):
    """PCA of n samples against the covariance of the rest: end and best stop for a few latent dimensions per draw."""
    if dataset.samples is None:
        return []
    nu, results = config.noise_vars(config.pca_levels), []
    for n in config.n:
        for draw in range(config.pca_draws):
            train, held_out = dataset.split(n=n, seed=config.seed + draw)
            estimated, reference = np.cov(train.T, bias=True), np.cov(held_out.T, bias=True)
            shift = np.sum((train.mean(axis=0) - held_out.mean(axis=0)) ** 2)
            rank = int(np.count_nonzero(gaussians.eigh_descending(estimated)[0]))
            allowed = dims[(dims <= rank) | (dims == variances.size)]
            ladder = np.append(2 ** np.arange(17), allowed[allowed <= rank].max(initial=0))
            for d in np.intersect1d(allowed, np.append(ladder, variances.size)):
                curve = shift + oracle.w2_squared_general(reference, estimated, int(d), nu)
                k = curve.size - 1 - int(np.argmin(curve[::-1]))
                results.append(
                    {
                        "n": n,
                        "draw": draw,
                        "latent_dim": int(d),
                        "rank": rank,
                        "w2_squared_end": curve[-1],
                        "w2_squared_best": curve[k],
                        "noise_var_best": nu[k],
                        "logsnr_best": _logsnr(nu[k]),
                        "gain_percent": 100.0 * (1.0 - curve[k] / curve[-1]),
                    }  # fmt: skip
                )
    return results


def _logsnr(noise_var: float) -> float:
    return float(schedules.logsnr_from_noise_var(np.float64(noise_var)))


def make_records(result: PhaseDiagram, config: Config) -> list[dict]:
    """Lines of records.jsonl: latent_dim (over draws), draw (joint optimum), cap, exact_metric, pca."""
    rows, gain = [], result.gain_percent
    for i, n in enumerate(config.n):
        count, at_start = result.before_end[i].sum(axis=0), result.at_start[i].sum(axis=0)
        low, high = wilson_interval(count, config.draws)
        for j, d in enumerate(result.latent_dims):
            rows.append(
                {
                    "kind": "latent_dim",
                    "n": n,
                    "latent_dim": d,
                    "draws": config.draws,
                    "before_end_count": count[j],
                    "before_end_share": count[j] / config.draws,
                    "before_end_low": low[j],
                    "before_end_high": high[j],
                    "at_start_count": at_start[j],
                    "gain_percent_mean": gain[i, :, j].mean(),
                    "gain_percent_max": gain[i, :, j].max(),
                    "w2_squared_end_mean": result.end[i, :, j].mean(),
                    "w2_squared_end_exact": result.exact[j, -1],
                    "tolerance": config.tolerance,
                    "tolerance_noise_var": result.tolerance_noise_var[j],
                    "tolerance_logsnr": _logsnr(result.tolerance_noise_var[j]),
                }  # fmt: skip
            )
        for r, (d, nu, distance) in enumerate(result.joint[i]):
            rows.append(
                {
                    "kind": "draw",
                    "n": n,
                    "draw": r,
                    "latent_dim_best": int(d),
                    "noise_var_best": nu,
                    "logsnr_best": _logsnr(nu),
                    "w2_squared_best": distance,
                }  # fmt: skip
            )
    for cap, curve in zip(config.caps, result.capped, strict=True):
        j, k = np.unravel_index(np.argmin(curve), curve.shape)
        rows.append(
            {
                "kind": "cap",
                "n": max(config.n),
                "draw": 0,
                "cap": cap,
                "dynamics": config.dynamics,
                "latent_dim_best_at_end": result.latent_dims[np.argmin(curve[:, -1])],
                "w2_squared_end": curve[:, -1].min(),
                "latent_dim_best": result.latent_dims[j],
                "noise_var_best": result.noise_var[k],
                "logsnr_best": _logsnr(result.noise_var[k]),
                "w2_squared_best": curve[j, k],
            }  # fmt: skip
        )
    rows += [{"kind": "exact_metric", **entry} for entry in result.exact_metrics]
    return rows + [{"kind": "pca", **entry} for entry in result.pca]


def draw_map(result: PhaseDiagram, config: Config, name: str):
    """Heat maps with the exact score and with each n: best dimension per stop above, best stop per dimension below."""
    titles = ["exact score (n = inf)", *(f"score estimated from n = {n}" for n in config.n)]
    caption = (
        f"{name}: squared W2 between the data and samples of a latent diffusion model, in closed form, for every "
        f"latent dimension and stopping time. Top: percent above the best dimension for that stop (the line is that "
        f"dimension). "
        f"Bottom: percent above the best stop for that dimension (dots mark it; 'end' = sampling not stopped). Dashed: "
        f"with the exact score, stopping there costs {100 * config.tolerance:g} %. Estimates: one draw of the Gaussian "
        f"twin, seed {config.seed}."
    )
    figure, axes = plotting.new_figure(2, len(titles), width=3.9 * len(titles) + 1.2, height=8.6, caption=caption)
    for column, title, curve in zip(axes.T, titles, [result.exact, *result.first_draw], strict=True):
        mesh = plotting.draw_phase_panels(column, curve, result.noise_var, latent_dims=result.latent_dims)
        plotting.draw_ridge(
            column[1], result.tolerance_noise_var, result.latent_dims, style="--",
            label=f"+{100 * config.tolerance:g} % with the exact score",
        )  # fmt: skip
        column[0].set_title(title, fontsize=10)
        for panel in column:
            plotting.add_noise_axis(panel, config.schedule)
        column[1].set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    axes[0, 0].set_ylabel("latent dimension")
    axes[1, 0].set_ylabel("latent dimension")
    figure.colorbar(
        mesh, ax=axes, label="squared W2 distance, percent above the best", format="%g", extend="both", aspect=40
    )
    return figure


def draw_gains(result: PhaseDiagram, config: Config, name: str):
    """Over draws: how often the best stop is before the end, and what it saves, against latent dimension."""
    caption = (
        f"{name}: left, the share of {config.draws} draws of the estimated variances in which the best stop lies "
        f"before the end of sampling (band: 90 % Wilson interval). Right, what that stop saves in percent of the distance "
        f"at the end. Twin model: lines (mean) and dotted lines (largest draw)"
        + ("; PCA of n images against held-out images: open markers, one per draw." if result.pca else ".")
        + " Savings below 1e-4 % are drawn at 1e-4 %."
    )
    figure, axes = plotting.new_figure(1, 2, width=11, height=5, caption=caption)
    for i, n in enumerate(config.n):
        count, gain = result.before_end[i].sum(axis=0), result.gain_percent[i]
        style = plotting.line_style(i, markevery=0.1 if result.latent_dims.size > 10 else 1)
        axes[0, 0].plot(result.latent_dims, count / config.draws, label=f"n = {n}", **style)
        axes[0, 0].fill_between(
            result.latent_dims, *wilson_interval(count, config.draws), color=style["color"], alpha=0.15, linewidth=0
        )
        axes[0, 1].plot(result.latent_dims, gain.mean(axis=0).clip(1e-4), label=f"n = {n}, mean of draws", **style)
        axes[0, 1].plot(
            result.latent_dims, gain.max(axis=0).clip(1e-4), label=f"n = {n}, largest draw",
            **style | {"linestyle": ":", "marker": "", "linewidth": 1.2},
        )  # fmt: skip
        pca = np.array([(p["latent_dim"], p["gain_percent"]) for p in result.pca if p["n"] == n]).reshape(-1, 2)
        if pca.size:
            axes[0, 1].plot(
                pca[:, 0], pca[:, 1].clip(1e-4), linestyle="none", marker=style["marker"], color=style["color"],
                markerfacecolor="none", markersize=8, label=f"n = {n}, PCA of images",
            )  # fmt: skip
    axes[0, 0].set(ylabel="share of draws with a best stop before the end", ylim=(0, 1.03))
    axes[0, 1].set(yscale="log", ylabel="saved by stopping (% of squared W2 at the end)")
    for panel in axes[0]:
        panel.grid(alpha=0.25)
        panel.set_xlabel("latent dimension")
        plotting.set_dimension_scale(panel.xaxis, int(result.latent_dims[-1]))
        plotting.draw_legend(panel, below=True, ncols=len(config.n))
    return figure


def draw_caps(result: PhaseDiagram, config: Config, name: str):
    """One heat map per cap on a common scale: squared W2 in percent of the data's total variance."""
    caption = (
        f"{name}: squared W2 in percent of the data's total variance when the score's weights are bounded by C "
        f"({config.dynamics.upper()} sampler, marginal start, one draw of n = {max(config.n)}). The star is the best "
        f"dimension and stop of its panel; its value is in the title. Where a cap binds it leaves variance in, as an "
        f"early stop does, so a small C asks for fewer dimensions."
    )
    figure, axes = plotting.new_figure(
        1, len(config.caps), width=3.7 * len(config.caps) + 1.2, height=4.6, caption=caption
    )
    total = result.variances.sum()
    for panel, cap, curve in zip(axes[0], config.caps, result.capped, strict=True):
        percent = 100.0 * curve / total
        mesh = plotting.draw_heat_map(
            panel, percent, result.noise_var, latent_dims=result.latent_dims, low=0.1, high=100.0
        )
        j, k = np.unravel_index(np.argmin(curve), curve.shape)
        plotting.draw_ridge(panel, result.noise_var[[k]], result.latent_dims[[j]], label="best", style="", marker="*")
        panel.lines[-1].set(markersize=14, clip_on=False)
        plotting.add_noise_axis(panel, config.schedule)
        panel.set_title(f"C = {cap:g}: best {percent[j, k]:.3g} % at d = {result.latent_dims[j]}", fontsize=10)
        panel.set_xlabel(plotting.LOGSNR_LABEL, fontsize=9)
    axes[0, 0].set_ylabel("latent dimension")
    figure.colorbar(mesh, ax=axes, label="squared W2, percent of the total variance", format="%g", extend="both")
    return figure


def table(result: PhaseDiagram, config: Config) -> str:
    """What the command prints: gains by dimension, joint optima, caps, PCA."""
    lines, gain = [], result.gain_percent
    chosen = shown_dims(result.latent_dims)
    lines.append(
        "    n    d  W2^2 at end  P(best stop before end) [90 %]  P(at start)  gain mean %  gain max %  nu for "
        f"+{100 * config.tolerance:g} %"
    )
    for i, n in enumerate(config.n):
        count, at_start = result.before_end[i].sum(axis=0), result.at_start[i].sum(axis=0)
        low, high = wilson_interval(count, config.draws)
        shares = at_start / config.draws
        lines += [
            f"{n:5d} {result.latent_dims[j]:4d} {result.end[i, :, j].mean():12.5g} {count[j] / config.draws:14.2f} "
            f"[{low[j]:.2f}, {high[j]:.2f}] {shares[j]:18.2f} {gain[i, :, j].mean():12.4f} {gain[i, :, j].max():11.4f} "
            f"{result.tolerance_noise_var[j]:12.3g}"
            for j in chosen
        ]
    for i, n in enumerate(config.n):
        d, nu = result.joint[i, :, 0], result.joint[i, :, 1]
        lines.append(
            f"joint optimum, n = {n}: d {d.min():.0f}..{d.max():.0f}, stop before the end in {np.sum(nu > 0)} of "
            f"{config.draws} draws, largest gain at any d {gain[i].max():.3f} %"
        )
    for record in make_records(result, config):
        if record["kind"] == "cap":
            lines.append(
                f"cap {record['cap']:6g} ({config.dynamics}, n = {record['n']}, draw 0): at the end d = "
                f"{record['latent_dim_best_at_end']}, W2^2 {record['w2_squared_end']:.5g}; with the best stop d = "
                f"{record['latent_dim_best']}, nu {record['noise_var_best']:.3g}, W2^2 {record['w2_squared_best']:.5g}"
            )
    for entry in result.exact_metrics:
        lines.append(
            "exact score, d = {latent_dim:4d}, {metric:>9}: {end:.4g} -> {best:.4g}, best stop at nu {noise_var_best:.3g}, "
            "gain {gain_percent:.2f} %".format(**entry)
        )
    keys = dict.fromkeys((p["n"], p["latent_dim"]) for p in result.pca)
    for n, d in keys:
        entries = [p for p in result.pca if (p["n"], p["latent_dim"]) == (n, d)]
        end, best = (np.mean([p[f"w2_squared_{k}"] for p in entries]) for k in ("end", "best"))
        gains = [p["gain_percent"] for p in entries]
        lines.append(
            f"PCA of {n} images, d = {d:4d} ({len(entries)} draws): W2^2 {end:.5g} -> {best:.5g}, gain "
            f"{np.min(gains):.3f}..{np.max(gains):.3f} %"
        )
    return "\n".join(lines)


def define_flags() -> None:
    shared.define_data_flags()
    shared.define_common_flags("phase_diagram")
    shared.define_list("n", "100,500", "Sample sizes that the score is estimated from.", int, 2, 1_000_000)
    shared.define_list("latent_dims", None, "Latent dimensions; all of 1..D if not given.", int, 1, 100_000)
    shared.define_list("caps", "inf,20,5", "Bounds C on the score's weights.", float, 1, low_open=True, infinite=True)
    shared.define_integer("draws", 20, "Draws of the estimated variances per n.", low=1, high=1_000_000)
    shared.define_seed("seed", 0, "Seed of the first draw.")
    shared.define_integer("noise_levels", 1000, "Stopping times, the end included.", low=2, high=100_000)
    shared.define_integer(
        "pca_draws", 3, "Draws of n images for the PCA model (0: none; only with --data).", low=0, high=1000
    )
    shared.define_choice("schedule", "ou", "Whose time is shown.", list(SCHEDULES))
    help_text = "Time where sampling starts; by default 2 for ou, 1 for linear_vp."
    shared.define_float("t_max", None, help_text, low=0.0, low_open=True)
    shared.define_choice("dynamics", "sde", "Sampler of the capped score.", oracle.capped.DYNAMICS)


def read_config() -> Config:
    """The configuration that the flags ask for; `UsageError` if they do not fit together."""
    kind = SCHEDULES[FLAGS.schedule]
    limit = 2 if FLAGS.quick else None
    try:
        return Config(
            n=tuple(FLAGS.n[:limit]),
            latent_dims=None if FLAGS.latent_dims is None else tuple(FLAGS.latent_dims),
            draws=min(FLAGS.draws, 4) if FLAGS.quick else FLAGS.draws,
            seed=FLAGS.seed,
            noise_levels=min(FLAGS.noise_levels, 60) if FLAGS.quick else FLAGS.noise_levels,
            caps=tuple(FLAGS.caps),
            dynamics=FLAGS.dynamics,
            pca_draws=min(FLAGS.pca_draws, 1) if FLAGS.quick else FLAGS.pca_draws,
            pca_levels=20 if FLAGS.quick else 100,
            schedule=kind() if FLAGS.t_max is None else kind(t_max=FLAGS.t_max),
        )
    except ValueError as error:
        raise shared.bad("t_max", FLAGS.t_max, str(error)) from error


def main() -> None:
    begin = time.perf_counter()
    config = read_config()
    dataset = shared.load_dataset()
    if FLAGS.latent_dims is not None:
        shared.check_latent_dims(dataset)
    if FLAGS.pca_draws:
        shared.check_n(dataset)
    job = shared.open_job(lambda: plan(dataset, config))
    result = run(dataset, config)
    print(table(result, config))
    records.write_records(job.workdir, make_records(result, config))
    arrays = {
        field.name: getattr(result, field.name)
        for field in dataclasses.fields(result)
        if field.name not in ("pca", "exact_metrics")
    }
    records.write_curves(job.workdir, arrays | {"n": np.array(config.n), "caps": np.array(config.caps)})
    for name, draw in [("phase_diagram", draw_map), ("gains", draw_gains), ("caps", draw_caps)]:
        plotting.save(draw(result, config, dataset.name), job.workdir / f"{name}.png")
    seconds = time.perf_counter() - begin
    records.write_metadata(job.workdir, seconds=seconds, data_sha256=dataset.digest)
    print(f"{seconds:.1f} s; results in {job.workdir}")


if __name__ == "__main__":
    define_flags()
    shared.run(main)
