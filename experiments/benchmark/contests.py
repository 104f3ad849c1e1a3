"""The contests by name."""

import importlib
from functools import partial

from experiments.benchmark import closed_forms, sampling, sweeping
from experiments.benchmark.contest import GROWTH, Contest


def _torch(module, function, *arguments):
    """Prepares sides in a module that imports PyTorch, which need not be there."""

    def prepare(sizes, job):
        return getattr(importlib.import_module(f"experiments.benchmark.{module}"), function)(*arguments, sizes, job)

    return prepare


_MLP = "train MLPs (128 wide, 3 layers, batch 256, d <= 16)"
_LINEAR = "train linear scores (128 levels, batch 256, d <= 16)"
_LAW = "exact law of 1000 steps, d = 16, all stops"
_MODEL = "states of a trained model on the same (d, t) grid"
_LOOP, _VMAP = "PyTorch, run after run", "PyTorch, torch.func.vmap"
_EXPERTS, _SCAN = "PyTorch, one after the other", "lax.scan that stores the states"

CONTESTS = {
    "mlp_loop": Contest(_MLP, _LOOP, 4.0, _torch("training", "sweep_sides", "mlp", False)),
    "mlp_vmap": Contest(_MLP, _VMAP, 2.0, _torch("training", "sweep_sides", "mlp", True)),
    "linear_loop": Contest(_LINEAR, _LOOP, 15.0, _torch("training", "sweep_sides", "linear", False)),
    "linear_vmap": Contest(_LINEAR, _VMAP, 3.0, _torch("training", "sweep_sides", "linear", True)),
    "experts": Contest("train 32 experts of T-space", _EXPERTS, 5.0, _torch("training", "expert_sides")),
    "law": Contest(_LAW, "4096 samples, NumPy", 1000.0, partial(closed_forms.law_sides, "numpy")),
    "law_sampler": Contest(_LAW, "4096 samples, our sampler", 1000.0, partial(closed_forms.law_sides, "sampler")),
    "sampling": Contest("sample 8 runs, moments on the way", _SCAN, 5.0, sampling.sampling_sides),
    "table": Contest("128 discretisation errors", "the recursions in a NumPy loop", 8.0, closed_forms.table_sides),
    "noisy_autoencoder": Contest(
        "noisy autoencoder, without decoding", _MODEL, 50.0, partial(sampling.noisy_sides, False)
    ),
    "noisy_decoded": Contest(
        "noisy autoencoder, with decoding", f"{_MODEL}, decoded", 1.0, partial(sampling.noisy_sides, True)
    ),
    "runs_mlp": Contest("four times the runs, MLP", GROWTH, 4.2, partial(sweeping.growth_sides, "mlp")),
    "runs_linear": Contest("four times the runs, linear scores", GROWTH, 4.2, partial(sweeping.growth_sides, "linear")),
    **{
        f"unet_{work}_{name}": Contest(
            f"{work} a U-Net of maps {'x'.join(map(str, unet.map_shape))}, channels {', '.join(map(str, unet.channels))}",
            "PyTorch, channels last",
            1.0,
            _torch("unets", f"{work}_sides", name),
        )
        for work in ("train", "sample")
        for name, unet in sweeping.UNETS.items()
    },
}
