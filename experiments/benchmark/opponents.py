"""What a competent PyTorch user writes: the same losses, fused Adam, foreach EMA, no host synchronisation in a step.

`train` takes one run, or, with ``runs`` given, R runs at once by torch.func.vmap. Parameters, noise and batches are a run's own.
"""

import math
import time

import torch
import torch.nn.functional as F

BUMPS, LOW, HIGH = 16, -10.0, 9.0  # of logsnr
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
LEVELS = torch.linspace(LOW, HIGH, 128, device=DEVICE)[:, None]


def network(p, u, features=None):
    h = u @ p["encode"]
    inner = h @ p["up"]
    if features is not None:
        inner = inner * (1 + features @ p["scale"]) + features @ p["shift"]
    h = h + F.silu(inner) @ p["down"]
    h = h if features is None else h * (1 + features @ p["gain"])
    return h @ p["decode"]


def mlp_loss(p, x0, noise, logsnr, std, mask):
    alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
    radius = (alpha**2 * std**2 + sigma**2).sqrt()
    centres = torch.linspace(LOW, HIGH, BUMPS, device=x0.device)
    features = torch.exp(-0.5 * ((logsnr[:, None] - centres) * ((BUMPS - 1) / (HIGH - LOW))) ** 2)
    target = (sigma * x0 - alpha * std**2 * noise) / (radius * std)
    error = (network(p, (alpha * x0 + sigma * noise) / radius, features) - target) * mask
    return (error**2).sum(1).mean() / mask.sum()


def linear_loss(p, x0, noise, logsnr, std, mask):
    ratio = torch.exp(-0.5 * LEVELS)  # sigma / alpha; the table holds a = sigma^2 m
    square, cross, noise_square = (x0 * x0).mean(0), (x0 * noise).mean(0), (noise * noise).mean(0)
    a = p["table"]
    error = a**2 * square / ratio**2 - 2 * a * (1 - a) * cross / ratio + (1 - a) ** 2 * noise_square
    return (error * mask).sum(1).mean() / mask.sum()


def expert_loss(p, x0, noise, logsnr, std, mask):  # noise-prediction at one level, no time input
    alpha, sigma = torch.sigmoid(logsnr[:1]).sqrt(), torch.sigmoid(-logsnr[:1]).sqrt()
    radius = (alpha**2 * std**2 + sigma**2).sqrt()
    return ((network(p, (alpha * x0 + sigma * noise) / radius) - noise) ** 2).mean()


def new_parameters(kind, width, hidden, lead=()):
    normal, zeros = (lambda *s: torch.randn(*lead, *s, device=DEVICE)), (lambda *s: torch.zeros(*lead, *s, device=DEVICE))
    if kind == "linear":
        return {"table": torch.sigmoid(-LEVELS).expand(*lead, len(LEVELS), width).clone()}
    p = {"encode": normal(width, hidden) / math.sqrt(width), "up": normal(hidden, hidden) / math.sqrt(hidden)}
    p |= {"down": zeros(hidden, hidden), "decode": zeros(hidden, width)}
    return p if kind == "expert" else p | {name: zeros(BUMPS, hidden) for name in ("gain", "scale", "shift")}


def train(kind, loss, data, mask, std, *, hidden, batch, steps, rate, cap=math.inf, logsnr=None, warm_up=20):
    """Seconds of ``steps`` steps on ``data`` [n, D], or [R, n, D] for R runs with a vmapped ``loss``, and the parameters."""
    *lead, n, width = data.shape
    p = {k: v.requires_grad_() for k, v in new_parameters(kind, width, hidden, lead).items()}
    values, ema = list(p.values()), [v.detach().clone() for v in p.values()]
    runs, bound = torch.arange(math.prod(lead), device=DEVICE)[:, None], cap * torch.sigmoid(-LEVELS)
    grid = LOW + (HIGH - LOW) * torch.arange(batch, device=DEVICE) / batch
    adam = torch.optim.Adam(values, lr=rate, betas=(0.9, 0.99), fused=True)
    for k in range(warm_up + steps):
        if k == warm_up:
            begin = _now()
        rows = torch.randint(n, (*lead, batch), device=DEVICE)
        x0, noise = data[runs, rows] if lead else data[rows], torch.randn(*lead, batch, width, device=DEVICE)
        levels = grid + torch.rand(*lead, 1, device=DEVICE) * ((HIGH - LOW) / batch) if kind == "mlp" else logsnr
        loss(p, x0, noise * mask[..., None, :] if lead else noise, levels, std, mask).sum().backward()
        adam.param_groups[0]["lr"] = rate * min(1, (k + 1) / 50)
        adam.step()
        adam.zero_grad()
        if kind == "linear":
            p["table"].data.clamp_(-bound, bound)
        torch._foreach_lerp_(ema, [v.data for v in values], 1 - (1 - 1 / (k + 1)) ** 8)
    return _now() - begin, p


def _now():
    torch.cuda.synchronize() if DEVICE == "cuda" else None
    return time.perf_counter()
