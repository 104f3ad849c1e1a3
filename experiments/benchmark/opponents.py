"""What a competent PyTorch user writes: the same losses, fused Adam, foreach EMA, no host synchronisation in a step.

U-Nets keep their maps channels last; ``half`` computes them in bfloat16 by autocast. Float32 is float32: no TF32.
"""

import gc
import itertools
import math
import time

import jax
import torch
from torch.nn import functional

torch.backends.cudnn.allow_tf32 = False
BUMPS, LOW, HIGH = 16, -10.0, 9.0  # of logsnr
DEVICE = "cuda" if jax.default_backend() == "gpu" else "cpu"  # where our side runs
LEVELS = torch.linspace(LOW, HIGH, 128, device=DEVICE)[:, None]
CENTRES = torch.linspace(LOW, HIGH, BUMPS, device=DEVICE)


def network(p, u, features=None):
    h = u @ p["encode"]
    inner = h @ p["up"]
    if features is not None:
        inner = inner * (1 + features @ p["scale"]) + features @ p["shift"]
    h = h + functional.silu(inner) @ p["down"]
    return (h if features is None else h * (1 + features @ p["gain"])) @ p["decode"]


def unet(p, u, features, half=False):
    """On latents ``[B, H W C]``, row by row and channels last, so that no copy is needed."""
    _, height, width = p["position"].shape
    levels = 1 + sum(name.startswith("halve") for name in p)
    with torch.autocast(DEVICE, torch.bfloat16, enabled=half):
        h = convolve(u.unflatten(1, (height, width, -1)).permute(0, 3, 1, 2), p["encode"])
        h, skips = h + p["position"].to(h.dtype), []
        for r in range(levels):
            h = block(p, f"down.{r}.0.", convolve(h, p[f"halve.{r - 1}"], stride=2) if r else h, features)
            skips.append(h)
        for r in reversed(range(levels - 1)):
            larger = functional.interpolate(functional.conv2d(h, p[f"double.{r}"]), scale_factor=2)
            larger = larger[..., : skips[r].shape[2], : skips[r].shape[3]]
            h = block(p, f"up.{r}.0.", skips[r] + larger, features)
        h = h * (1 + features @ p["gain"])[..., None, None]
        return convolve(h, p["decode"]).permute(0, 2, 3, 1).flatten(1).float()


def block(p, name, h, features):
    scale, shift = (1 + features @ p[name + "scale"])[..., None, None], (features @ p[name + "shift"])[..., None, None]
    return h + convolve(functional.silu(convolve(h, p[name + "up"]) * scale + shift), p[name + "down"])


def convolve(maps, kernel, stride=1):
    return functional.conv2d(maps, kernel, stride=stride, padding=1)


def time_features(logsnr):
    return torch.exp(-0.5 * ((logsnr[:, None] - CENTRES) * ((BUMPS - 1) / (HIGH - LOW))) ** 2)


def mlp_loss(p, x0, noise, logsnr, std, mask, net=network):
    alpha, sigma = torch.sigmoid(logsnr).sqrt()[:, None], torch.sigmoid(-logsnr).sqrt()[:, None]
    radius = (alpha**2 * std**2 + sigma**2).sqrt()
    target = (sigma * x0 - alpha * std**2 * noise) / (radius * std)
    error = (net(p, (alpha * x0 + sigma * noise) / radius, time_features(logsnr)) - target) * mask
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


def new_unet(map_shape, channels):
    (height, width, depth), first, pairs = map_shape, channels[0], list(itertools.pairwise(channels))
    shapes = {"encode": (first, depth, 3, 3), "position": (first, height, width), "gain": (BUMPS, first)}
    shapes |= {f"halve.{r}": (b, a, 3, 3) for r, (a, b) in enumerate(pairs)} | {"decode": (depth, first, 3, 3)}
    shapes |= {f"double.{r}": (a, b, 1, 1) for r, (a, b) in enumerate(pairs)}
    for way, used in (("down", channels), ("up", channels[:-1])):
        for r, c in enumerate(used):
            shapes |= {f"{way}.{r}.0.{name}": (c, c, 3, 3) for name in ("up", "down")}
            shapes |= {f"{way}.{r}.0.{name}": (BUMPS, c) for name in ("scale", "shift")}
    p = {name: torch.randn(shape, device=DEVICE) / math.prod(shape[1:]) ** 0.5 for name, shape in shapes.items()}
    return {name: v.contiguous(memory_format=torch.channels_last) if v.ndim == 4 else v for name, v in p.items()}


def ddim_step(p, z, coefficients, std, net):
    logsnr, alpha, sigma, alpha_next, sigma_next = coefficients.unbind()
    radius = (alpha**2 * std**2 + sigma**2).sqrt()
    x0 = alpha * std**2 / radius**2 * z + sigma * std / radius * net(p, z / radius, time_features(logsnr[None]))
    return alpha_next * x0 + sigma_next * (z - alpha * x0) / sigma


def sample(step, p, z, coefficients):
    """States ``[B, D]`` after all steps, from ``z``; coefficients [N, 5]."""
    with torch.no_grad():
        z = z.clone()
        for row in coefficients:
            z.copy_(step(p, z, row))
    return z


def train(kind, loss, p, data, mask, std, *, batch, steps, rate, cap, logsnr, warm_up=20):
    """Seconds of ``steps`` steps on ``data`` [n, D], or [R, n, D] for R runs with a vmapped ``loss``."""
    *lead, n, width = data.shape
    p = {k: v.requires_grad_() for k, v in p.items()}
    values, ema = list(p.values()), [v.detach().clone() for v in p.values()]
    runs, bound = torch.arange(math.prod(lead), device=DEVICE)[:, None], cap * torch.sigmoid(-LEVELS)
    grid = LOW + (HIGH - LOW) * torch.arange(batch, device=DEVICE) / batch
    adam = torch.optim.Adam(values, lr=rate, betas=(0.9, 0.99), fused=True)
    for k in range(warm_up + steps):
        if k == warm_up:
            begin = synchronised_time()
        rows = torch.randint(n, (*lead, batch), device=DEVICE)
        x0, noise = data[runs, rows] if lead else data[rows], torch.randn(*lead, batch, width, device=DEVICE)
        levels = (
            grid + torch.rand(*lead, 1, device=DEVICE) * ((HIGH - LOW) / batch) if kind in ("mlp", "unet") else logsnr
        )
        loss(p, x0, noise * mask[..., None, :] if lead else noise, levels, std, mask).sum().backward()
        adam.param_groups[0]["lr"] = rate * min(1, (k + 1) / 50)
        adam.step()
        adam.zero_grad()
        if kind == "linear":
            p["table"].data.clamp_(-bound, bound)
        torch._foreach_lerp_(ema, [v.data for v in values], 1 - (1 - 1 / (k + 1)) ** 8)
    return synchronised_time() - begin


def release_memory():
    gc.collect()
    if DEVICE == "cuda":
        torch.cuda.empty_cache()


def synchronised_time():
    return time.perf_counter() if DEVICE == "cpu" else torch.cuda.synchronize() or time.perf_counter()
