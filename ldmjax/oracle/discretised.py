"""Exact laws of samplers with finitely many steps: recursions on D variances.

Source: arXiv 2405.14250; docs/theory.md, section 5.

For a linear score -m z every scheme multiplies each variance by a factor and adds noise. With w2 = dB/dt at t_k,
dt = t_k - t_{k+1}, DB = B(t_k) - B(t_{k+1}) and m = min(C, 1/(sigma^2 + alpha^2 lamh)) at t_k:

    (1) euler_maruyama  V' = (1 + dt w2 (1 - 2m))^2 V + 2 dt w2
    (2) exponential     V' = (1 + expm1(DB) (1 - 2m))^2 V + expm1(2 DB)
    (3) euler_ode       V' = (1 + dt w2 (1 - m))^2 V
    (4) heun_ode        explicit trapezoid of dz/dt = -k z, k = w2 (1 - m)

Chains over a ladder of levels (alpha, sigma), Dn = alpha^2 lam + sigma^2, r = sigma/alpha, tau^2 = sigma'^2 (1 -
(sigma' alpha / (alpha' sigma))^2) and c = sqrt(sigma'^2 - eta^2 tau^2) (docs/t_space.md (1.1)-(1.7)):

    (5) ddim            v' = ((alpha' alpha lam + c sigma) / Dn)^2 v + eta^2 tau^2
    (6) ddpm_exact      (5) with eta = 1 plus the posterior variance (alpha' - c alpha/sigma)^2 lam sigma^2 / Dn
"""

import numpy as np
from jaxtyping import Float

from ldmjax.oracle.capped import STARTS, capped_score_weights, capped_variances, check_choice
from ldmjax.oracle.stopped import check_spectra, stopped_variances, w2_squared_from_variances
from ldmjax.schedules import (
    VARIANCE_PRESERVING_METHODS,
    Ladder,
    Schedule,
    VariancePreserving,
    check_schedule,
    on_host,
)
from ldmjax.typing import ArrayLike

SCHEMES = ("euler_maruyama", "exponential", "euler_ode", "heun_ode")
CHAINS = ("ddim", "ddpm_exact", "heun", "dpmpp_2m")
KEPT_BY = ("euler_ode", "ddim", "ddpm", "dpmpp_2m")  # samplers of `variance_kept`
COLUMNS = 64  # components at a time: their arrays stay in the processor's cache


def sampler_variances(
    estimated_variances: ArrayLike,
    schedule: Schedule,
    times: ArrayLike,
    *,
    scheme: str,
    cap: float = np.inf,
    start: str,
) -> Float[np.ndarray, "points D"]:
    """Returns variance of every component after each step of a discretised sampler, equations (1)-(4).

    Args:
      estimated_variances: lamh ``[D]``.
      schedule: a variance-preserving schedule.
      times: ``[N + 1]``, strictly decreasing forward times.
      scheme: "euler_maruyama", "exponential", "euler_ode" or "heun_ode".
      cap: bound C > 1 on the score's weights, inf for none.
      start: "marginal" (alpha^2 lamh + sigma^2 at times[0]) or "standard" (1).

    Returns:
      ``[N + 1, D]``, time-major; row 0 is the start law. heun_ode evaluates the score at the new time, so it is
      infinite or NaN where lamh = 0 and times[-1] = 0 without a cap.

    Raises:
      ValueError: if the schedule is not variance preserving, or an argument is out of range.
    """
    check_schedule(schedule, VARIANCE_PRESERVING_METHODS, what="sampler_variances")
    schedule = on_host(schedule)
    (estimated,) = check_spectra(estimated_variances)
    times = np.asarray(times, np.float64)
    if times.ndim != 1 or times.size < 1 or not np.all(np.diff(times) < 0) or times[-1] < 0:
        raise ValueError("times must be [N + 1], strictly decreasing and >= 0")
    check_choice("scheme", scheme, SCHEMES)
    check_choice("start", start, STARTS)
    noise_var = schedule.sigma(times) ** 2
    integrated, rate = schedule.B(times), schedule.w_squared(times)
    weights = capped_score_weights(estimated, noise_var, cap).T
    first = stopped_variances(estimated, noise_var[0])[:, 0] if start == "marginal" else np.ones(estimated.size)
    dt, rate, grown = -np.diff(times)[:, None], rate[:, None], -np.diff(integrated)[:, None]
    # An infinite weight (lamh = 0 at t = 0 without a cap) gives an infinite or NaN variance, as documented.
    with np.errstate(invalid="ignore", over="ignore"):
        if scheme == "euler_maruyama":
            factor, noise = 1.0 + dt * rate[:-1] * (1.0 - 2.0 * weights[:-1]), 2.0 * dt * rate[:-1]
        elif scheme == "exponential":
            factor, noise = 1.0 + np.expm1(grown) * (1.0 - 2.0 * weights[:-1]), np.expm1(2.0 * grown)
        elif scheme == "euler_ode":
            factor, noise = 1.0 + dt * rate[:-1] * (1.0 - weights[:-1]), np.zeros_like(dt)
        else:
            here, there = rate[:-1] * (1.0 - weights[:-1]), rate[1:] * (1.0 - weights[1:])
            factor, noise = 1.0 + 0.5 * dt * (here + there * (1.0 + dt * here)), np.zeros_like(dt)
        return np.concatenate([first[None], _accumulate(factor**2, noise, first)])


def _accumulate(slopes, noise, first):
    """Returns V_1 .. V_N ``[N, D]`` of V_{k+1} = slopes_k V_k + noise_k: log2(N) rounds of doubling and no loop over N steps.

    After a round, entry k holds the map that the last 1, 2, 4, ... steps up to k make together. All terms are positive, so
    no digits are lost.
    """
    blocks = []
    for i in range(0, slopes.shape[1], COLUMNS):
        slope = slopes[:, i : i + COLUMNS].copy()
        offset = np.broadcast_to(noise, slope.shape).copy()
        span = 1
        while span < len(slope):
            offset[span:] += slope[span:] * offset[:-span]
            slope[span:] *= slope[:-span]
            span *= 2
        blocks.append(slope * first[i : i + COLUMNS] + offset)
    return np.concatenate(blocks, axis=1)


def chain_variances(
    variances: ArrayLike,
    alpha: ArrayLike,
    sigma: ArrayLike,
    *,
    sampler: str,
    eta: float = 0.0,
    start: str = "standard",
    score_variances: ArrayLike | None = None,
) -> Float[np.ndarray, "points D"]:
    """Returns variance of every component along a chain over a ladder of noise levels, last update to clean data; (5), (6).

    Args:
      variances: data variances ``[D]``.
      alpha: ``[T]``, noisiest level first, all > 0; the first may be 0 (pure noise) except for "heun".
      sigma: ``[T]``, all > 0; sigma/alpha strictly decreasing.
      sampler: "ddim" (with ``eta``), "ddpm_exact", "heun" (second order in sigma/alpha, last update Euler) or
        "dpmpp_2m".
      eta: 0 deterministic to 1 ancestral with the small posterior variance; "ddim" only.
      start: "standard" (variance 1) or "marginal" (alpha_T^2 variances + sigma_T^2).
      score_variances: what the score assumes, ``[D]`` or a row per level ``[T, D]``; default ``variances``.

    Returns:
      ``[T + 1, D]``; row k is the law after k updates.

    Raises:
      ValueError: if the levels are not a ladder, or an argument is out of range.
    """
    (variances,) = check_spectra(variances)
    check_choice("sampler", sampler, CHAINS)
    check_choice("start", start, STARTS)
    ladder = Ladder(alpha, sigma)
    alpha, sigma = np.array(ladder.alpha_levels), np.array(ladder.sigma_levels)
    if sampler == "heun" and alpha[0] == 0:
        raise ValueError("sampler 'heun' steps in sigma / alpha and needs alpha > 0 at every level")
    if not 0.0 <= eta <= 1.0 or (eta and sampler != "ddim"):
        raise ValueError(f"eta must lie in [0, 1] and needs sampler 'ddim', got {eta} with {sampler!r}")
    assumed = np.broadcast_to(variances if score_variances is None else score_variances, (alpha.size, variances.size))
    alpha_next, sigma_next = np.append(alpha[1:], 1.0), np.append(sigma[1:], 0.0)
    result = np.empty((alpha.size + 1, variances.size))
    result[0] = alpha[0] ** 2 * variances + sigma[0] ** 2 if start == "marginal" else 1.0
    if sampler in ("heun", "dpmpp_2m"):
        gains = _heun_gains(alpha, sigma, assumed) if sampler == "heun" else _dpmpp_2m_gains(alpha, sigma, assumed)
        result[1:] = gains**2 * result[0]
        return result
    eta = 1.0 if sampler == "ddpm_exact" else eta
    for k, lam in enumerate(assumed):
        a, s, a_next, s_next = alpha[k], sigma[k], alpha_next[k], sigma_next[k]
        tau_squared = s_next**2 * (1.0 - (s_next * a / (a_next * s)) ** 2)
        c = np.sqrt(s_next**2 - eta**2 * tau_squared)
        marginal = a**2 * lam + s**2
        result[k + 1] = ((a_next * a * lam + c * s) / marginal) ** 2 * result[k] + eta**2 * tau_squared
        if sampler == "ddpm_exact":
            result[k + 1] += (a_next - c * a / s) ** 2 * lam * s**2 / marginal
    return result


def variance_kept(
    variances: ArrayLike, schedule: Schedule, steps: int, *, sampler: str
) -> tuple[Float[np.ndarray, " N"], Float[np.ndarray, "N D"]]:
    """Returns what a sampler with the exact Gaussian score makes of every component's variance, when stopped after each step.

    The steps are evenly spaced in the schedule's time, from pure noise (variance 1) to clean data.

    Args:
      variances: lam ``[D]``.
      schedule: rectified flow, a variance-preserving schedule, or a ladder of N levels.
      steps: N >= 2.
      sampler: "euler_ode", "ddim", "ddpm" (ancestral, small posterior variance) or "dpmpp_2m"; the first two are
        the same on rectified flow and on ladders.

    Returns:
      (logsnr ``[N]`` after each step, rising, the last +inf; variance over alpha^2 lam + sigma^2 ``[N, D]``: below 1 where the
      sampler loses variance, above where it adds some, as Euler does on variance-preserving schedules; 1 where 0 is expected,
      though Euler leaves a little there).

    Raises:
      ValueError: for an unknown sampler, or fewer steps.
    """
    (variances,) = check_spectra(variances)
    check_choice("sampler", sampler, KEPT_BY)
    if steps < 2:
        raise ValueError(f"steps must be >= 2, got {steps}")
    check_schedule(schedule, what="variance_kept")
    flow_needs_time = sampler == "euler_ode" and isinstance(schedule, VariancePreserving)
    schedule = on_host(schedule)
    times = np.linspace(schedule.t_max, 0.0, steps + 1)
    alpha, sigma = schedule.alpha(times), schedule.sigma(times)
    if flow_needs_time:
        stepped = sampler_variances(variances, schedule, times, scheme="euler_ode", start="standard")
    else:
        chain = "ddim" if sampler in ("euler_ode", "ddpm") else sampler
        stepped = chain_variances(variances, alpha[:-1], sigma[:-1], sampler=chain, eta=float(sampler == "ddpm"))
    exact = (alpha**2)[1:, None] * variances + (sigma**2)[1:, None]
    kept = np.divide(stepped[1:], exact, out=np.ones_like(exact), where=exact > 0)
    return np.append(schedule.logsnr(times[1:-1]), np.inf), kept


def _heun_gains(alpha, sigma, assumed):
    """Returns accumulated gain ``[T, D]`` on z of Heun's method in r = sigma/alpha, the last update (to r = 0) by Euler."""
    ratio = np.append(sigma / alpha, 0.0)
    slope = ratio[:-1, None] / (assumed + ratio[:-1, None] ** 2)
    step = np.diff(ratio)[:, None]
    gains = 1.0 + step * slope
    gains[:-1] = 1.0 + 0.5 * step[:-1] * (slope[:-1] + slope[1:] * (1.0 + step[:-1] * slope[:-1]))
    return np.cumprod(gains, axis=0) * np.append(alpha[1:], 1.0)[:, None] / alpha[0]


def _dpmpp_2m_gains(alpha, sigma, assumed):
    """Returns accumulated gain ``[T, D]`` on z of DPM-Solver++(2M), linear in the last two x0-predictions."""
    with np.errstate(divide="ignore"):  # alpha = 0 at the first level: an infinite step, which DPM-Solver++ takes well
        half_logsnr = np.log(alpha / sigma)
    state, previous, gains = np.ones(assumed.shape[1]), None, []
    for k, lam in enumerate(assumed):
        prediction = alpha[k] * lam / (alpha[k] ** 2 * lam + sigma[k] ** 2) * state
        if k == alpha.size - 1:
            state = prediction
        else:
            h, combined = half_logsnr[k + 1] - half_logsnr[k], prediction
            if previous is not None:
                ratio = h / (2.0 * (half_logsnr[k] - half_logsnr[k - 1]))
                combined = (1.0 + ratio) * prediction - ratio * previous
            state = sigma[k + 1] / sigma[k] * state - alpha[k + 1] * np.expm1(-h) * combined
        previous = prediction
        gains.append(state)
    return np.stack(gains)


def error_split(
    variances: ArrayLike,
    estimated_variances: ArrayLike,
    schedule: Schedule,
    times: ArrayLike,
    *,
    scheme: str,
    cap: float = np.inf,
) -> dict[str, np.ndarray]:
    """Returns squared W2 of each error source on its own, and of all together, for every latent dimension.

    Source: arXiv 2405.14250 §4.

    Args:
      variances: ``[D]``, largest first.
      estimated_variances: ``[D]``.
      schedule: a variance-preserving schedule.
      times: ``[N + 1]``, strictly decreasing; times[0] is where sampling starts, times[-1] = t_eps where it ends.
      scheme: as in `sampler_variances`.
      cap: bound on the score's weights, part of the "score" error.

    Returns:
      Arrays ``[D]``: "initialisation" (exact score, continuous time to t = 0, from N(0, I)), "truncation" (exact law at
      t_eps), "discretisation" (exact score, marginal start, to t_eps, measured against the exact law there), "score"
      (plug-in capped score, continuous time from its marginal start to t = 0), "total" (everything at once).
      "discretisation" compares kept components only; the others include the variance of the dropped ones.
    """
    variances, estimated = check_spectra(variances, estimated_variances)
    noise_var = on_host(schedule).sigma(times) ** 2
    dynamics = "ode" if scheme.endswith("ode") else "sde"

    def continuous(spectrum, start, bound):
        return capped_variances(
            spectrum, 0.0, noise_var_max=float(noise_var[0]), cap=bound, start=start, dynamics=dynamics
        )

    def last(spectrum, start, bound):
        return sampler_variances(spectrum, schedule, times, scheme=scheme, cap=bound, start=start)[-1]

    exact_end = stopped_variances(variances, noise_var[-1])[:, 0]
    stepped = last(variances, "marginal", np.inf)
    return {
        "initialisation": w2_squared_from_variances(variances, continuous(variances, "standard", np.inf))[:, 0],
        "truncation": w2_squared_from_variances(variances, exact_end[:, None])[:, 0],
        "discretisation": np.cumsum((np.sqrt(stepped) - np.sqrt(exact_end)) ** 2),
        "score": w2_squared_from_variances(variances, continuous(estimated, "marginal", cap))[:, 0],
        "total": w2_squared_from_variances(variances, last(estimated, "standard", cap)[:, None])[:, 0],
    }
