"""Noise levels of the schedulers of diffusers: what ldmjax.pipelines is checked against.

`python tests/diffusers_levels.py` writes diffusers_levels.json anew (needs `pip install -e '.[diffusers]'`); the file there was
made with diffusers 0.42.1 and torch 2.13.0.
"""

import json
from pathlib import Path

import numpy as np

from ldmjax import pipelines

GOLDEN = Path(__file__).with_suffix(".json")
STEPS = (20, 50, 1000)
KEPT = 50  # of a chain's levels, at most, in the file
TOKENS, MU = 4096, 1.15  # pipelines.flux.pipeline_flux.calculate_shift of a 1024 x 1024 image
SAMPLERS = {  # by the name in the file: arguments of pipelines.make_sampler
    **{name: {"name": name} for name in pipelines.NAMES if name.startswith(("scaled_linear", "linear_beta")) or name == "edm"},
    "flow_matching, shift 3": {"name": "flow_matching", "shift": 3.0},
    "flow_matching, dynamic": {"name": "flow_matching", "tokens": TOKENS},
}  # fmt: skip


def scheduler_of(name: str, steps: int):
    """A scheduler as it is in the pipelines that use it, ready for so many steps."""
    import diffusers  # an extra, with torch

    if name == "edm":
        scheduler = diffusers.EDMEulerScheduler(prediction_type="epsilon")
    elif name == "flow_matching, dynamic":
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=MU)
        return scheduler
    elif name.startswith("flow_matching"):
        scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=SAMPLERS[name]["shift"])
    else:
        betas, kind = name.rsplit("_", 1)
        ends = {"scaled_linear": (0.00085, 0.012, "scaled_linear"), "linear_beta": (1e-4, 0.02, "linear")}[betas]
        how = dict(zip(("beta_start", "beta_end", "beta_schedule"), ends, strict=True))
        how |= {"timestep_spacing": "leading", "steps_offset": int(betas == "scaled_linear")}
        if kind in ("euler", "karras"):
            scheduler = diffusers.EulerDiscreteScheduler(**how, use_karras_sigmas=kind == "karras")
        else:
            kinds = {"ddpm": diffusers.DDPMScheduler, "ddim": diffusers.DDIMScheduler}
            scheduler = kinds[kind](**how, clip_sample=False)
    scheduler.set_timesteps(steps)
    return scheduler


def levels_of(name: str, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps and logsnr ``[steps]`` at which the steps of diffusers begin."""
    scheduler = scheduler_of(name, steps)
    timesteps = scheduler.timesteps.numpy()
    if name.endswith(("ddpm", "ddim")):
        # Offset 1 puts the first of 1000 timesteps beyond the table, where the scheduler itself fails.
        kept = scheduler.alphas_cumprod.double().numpy()[timesteps.clip(max=999)]
        return timesteps, np.log(kept) - np.log1p(-kept)
    sigmas = scheduler.sigmas.double().numpy()[:-1]
    if name.startswith("flow_matching"):
        with np.errstate(divide="ignore"):
            return timesteps, 2.0 * np.log((1.0 - sigmas) / sigmas)
    return timesteps, 2.0 * np.log((pipelines.EDM_DATA if name == "edm" else 1.0) / sigmas)


def variances_after_steps(name: str, steps: int, variance: float) -> np.ndarray:
    """Of the state ``[steps + 1]`` before and after every step of diffusers, data N(0, variance) and the exact score.

    Deterministic steps are linear: one state tells all. DDPM's noise is drawn 200,000 times.
    """
    import torch

    scheduler, logsnrs = scheduler_of(name, steps), levels_of(name, steps)[1]
    noisy = name.endswith("ddpm")
    generator = torch.Generator().manual_seed(0)
    state = torch.randn(200_000, 1, generator=generator) if noisy else torch.ones(1, 1)
    data_std = pipelines.EDM_DATA if name == "edm" else 1.0
    if name == "edm":
        state = state * scheduler.sigmas[0]
    elif hasattr(scheduler, "init_noise_sigma"):
        state = state * scheduler.init_noise_sigma
    found = [float(torch.mean(state**2))]
    for t, logsnr in zip(scheduler.timesteps, logsnrs, strict=True):
        ratio = np.exp(-0.5 * logsnr)  # sigma over alpha, data of deviation 1
        if name.startswith("flow_matching"):
            s = ratio / (1.0 + ratio) if np.isfinite(ratio) else 1.0
            output = state * (s - (1.0 - s) * variance) / ((1.0 - s) ** 2 * variance + s**2)
        elif name.endswith(("ddpm", "ddim")):
            alpha, sigma = 1.0 / np.hypot(1.0, ratio), ratio / np.hypot(1.0, ratio)
            output = state * sigma / (alpha**2 * variance + sigma**2)
        elif name == "edm":  # the network's output gives c_skip x + c_out output
            clean, sigma = state * variance / (variance + ratio**2), ratio * data_std
            skip = data_std**2 / (sigma**2 + data_std**2)
            output = (clean - skip * state) * np.hypot(sigma, data_std) / (sigma * data_std)
        else:
            output = state * ratio / (variance + ratio**2)
        if name.startswith(("scaled_linear", "linear_beta")) or name == "edm":
            scheduler.scale_model_input(state, t)
        how = {"generator": generator} if noisy else {}
        state = scheduler.step(output, t, state, **how).prev_sample
        found.append(float(torch.mean(state**2)))
    return np.array(found)


def main() -> None:
    """Writes the file."""
    found = {}
    for name in SAMPLERS:
        for steps in STEPS:
            timesteps, logsnrs = levels_of(name, steps)
            kept = np.unique(np.linspace(0, steps - 1, min(steps, KEPT)).round().astype(int))
            found[f"{name}, {steps} steps"] = {
                "index": kept.tolist(),
                "timestep": [round(float(t), 5) for t in timesteps[kept]],
                "logsnr": [None if np.isinf(at) else round(float(at), 5) for at in logsnrs[kept]],
            }
    lines = (f"{json.dumps(key)}: {json.dumps(value)}" for key, value in found.items())
    GOLDEN.write_text("{\n" + ",\n".join(lines) + "\n}\n")


if __name__ == "__main__":
    main()
