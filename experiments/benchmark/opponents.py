"""What a competent PyTorch user writes: the same losses, fused Adam, foreach EMA, no host synchronisation in a step."""

import math
import time

import jax
import torch

BUMPS, LOW, HIGH = 16, -10.0, 9.0  # of logsnr
DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"  # where our side runs
LEVELS = torch.linspace(LOW, HIGH, 128, device=DEVICE)[:, None]
CENTRES = torch.linspace(LOW, HIGH, BUMPS, device=DEVICE)


def network(p, u, features=None):
    h = u @ p["encode"]
    inner = h @ p["up"]
    if features is not None:
        inner = inner * (1 + features @ p["scale"]) + features @ p["shift"]
    h = h + torch.nn.functional.silu(inner) @ p["down"]
    return (h if features is None else h * (1 + features @ p["gain"])) @ p["decode"]


def mlp_loss(p, x0, noise, logsnr, std, mask):
    alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
    radius = (alpha**2 * std**2 + sigma**2).sqrt()
    features = torch.exp(-0.5 * ((logsnr[:, None] - CENTRES) * ((BUMPS - 1) / (HIGH - LOW))) ** 2)
    target = (sigma * x0 - alpha * std**2 * noise) / (radius * std)
    error = (network(p, (alpha * x0 + sigma * noise) / radius, features) - target) * mask
    return (error**2).sum(1).mean() / mask.sum()


def linear_loss(p, x0, noise, logsnr, std, mask):  # equation (2) of ldmjax/losses.py; the table holds a = sigma^2 m
    ratio, a = torch.exp(-0.5 * LEVELS), p["table"]
    square, cross, noise_square = (x0 * x0).mean(0), (x0 * noise).mean(0), (noise * noise).mean(0)
    error = a**2 * square / ratio**2 - 2 * a * (1 - a) * cross / ratio + (1 - a) ** 2 * noise_square
    return (error * mask).sum(1).mean() / mask.sum()


def expert_loss(p, x0, noise, logsnr, std, mask):  # noise-prediction at one level, no time input
    alpha, sigma = torch.sigmoid(logsnr[:1]).sqrt(), torch.sigmoid(-logsnr[:1]).sqrt()
    return ((network(p, (alpha * x0 + sigma * noise) / (alpha**2 * std**2 + sigma**2).sqrt()) - noise) ** 2).mean()


def new_parameters(kind, width, hidden, lead=()):
    if kind == "linear":
        return {"table": torch.sigmoid(-LEVELS).expand(*lead, len(LEVELS), width).clone()}
    shapes = {"encode": (width, hidden), "up": (hidden, hidden), "down": (hidden, hidden), "decode": (hidden, width)}
    shapes |= {} if kind == "expert" else dict.fromkeys(("gain", "scale", "shift"), (BUMPS, hidden))
    p = {name: torch.zeros(*lead, *shape, device=DEVICE) for name, shape in shapes.items()}
    return p | {name: p[name].normal_(0, shapes[name][0] ** -0.5) for name in ("encode", "up")}


def train(kind, loss, data, mask, std, *, hidden, batch, steps, rate, cap, logsnr, warm_up=20):
    """Seconds of ``steps`` steps on ``data`` [n, D], or [R, n, D] for R runs with a vmapped ``loss``."""
    *lead, n, width = data.shape
    p = {k: v.requires_grad_() for k, v in new_parameters(kind, width, hidden, lead).items()}
    values, ema = list(p.values()), [v.detach().clone() for v in p.values()]
    runs, bound = torch.arange(math.prod(lead), device=DEVICE)[:, None], cap * torch.sigmoid(-LEVELS)
    grid = LOW + (HIGH - LOW) * torch.arange(batch, device=DEVICE) / batch
    adam = torch.optim.Adam(values, lr=rate, betas=(0.9, 0.99), fused=True)
    for k in range(warm_up + steps):
        if k == warm_up:
            begin = synchronised_time()
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
    return synchronised_time() - begin


def synchronised_time():
    return time.perf_counter() if DEVICE == "cpu" else torch.cuda.synchronize() or time.perf_counter()
