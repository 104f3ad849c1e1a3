"""The rows of the table."""

from functools import partial

from experiments.benchmark import Contest, unets
from experiments.benchmark.closed_forms import law_sides, table_sides
from experiments.benchmark.sampling import noisy_sides, sampling_sides
from experiments.benchmark.training import expert_sides, growth_sides, sweep_sides

_MLP = "train MLPs (128 wide, 3 layers, batch 256, d <= 16)"
_LINEAR = "train linear scores (128 levels, batch 256, d <= 16)"
_MODEL = "states of a trained model on the same (d, t) grid"

CONTESTS = {
    "mlp_loop": Contest(
        what=_MLP, against="PyTorch, run after run", goal=4.0, sides=partial(sweep_sides, "mlp", False), needs_torch=True
    ),
    "mlp_vmap": Contest(
        what=_MLP, against="PyTorch, torch.func.vmap", goal=2.0, sides=partial(sweep_sides, "mlp", True), needs_torch=True
    ),
    "linear_loop": Contest(
        what=_LINEAR, against="PyTorch, run after run", goal=15.0, sides=partial(sweep_sides, "linear", False),
        needs_torch=True,
    ),
    "linear_vmap": Contest(
        what=_LINEAR, against="PyTorch, torch.func.vmap", goal=3.0, sides=partial(sweep_sides, "linear", True),
        needs_torch=True,
    ),
    "experts": Contest(
        what="train 32 experts of T-space", against="PyTorch, one after the other", goal=5.0, sides=expert_sides,
        needs_torch=True,
    ),
    "law": Contest(
        what="exact law of 1000 steps, d = 16, all stops", against="4096 samples, NumPy", goal=1000.0,
        sides=partial(law_sides, "numpy"),
    ),
    "law_sampler": Contest(
        what="exact law of 1000 steps, d = 16, all stops", against="4096 samples, our sampler", goal=1000.0,
        sides=partial(law_sides, "sampler"),
    ),
    "sampling": Contest(
        what="sample 8 runs, moments on the way", against="lax.scan that stores the states", goal=5.0,
        sides=sampling_sides,
    ),
    "table": Contest(
        what="128 discretisation errors", against="the recursions in a NumPy loop", goal=8.0, sides=table_sides
    ),
    "noisy_autoencoder": Contest(
        what="noisy autoencoder, without decoding", against=_MODEL, goal=50.0, sides=partial(noisy_sides, False)
    ),
    "noisy_decoded": Contest(
        what="noisy autoencoder, with decoding", against=f"{_MODEL}, decoded", goal=1.0, sides=partial(noisy_sides, True)
    ),
    "runs_mlp": Contest(
        what="four times the runs, MLP", against="linear growth", goal=4.2, sides=partial(growth_sides, "mlp"),
        goal_is_ceiling=True,
    ),
    "runs_linear": Contest(
        what="four times the runs, linear scores", against="linear growth", goal=4.2,
        sides=partial(growth_sides, "linear"), goal_is_ceiling=True,
    ),
    **{
        f"unet_{work}_{name}": Contest(
            what=f"{work} a U-Net of maps {'x'.join(map(str, size.map_shape))}, channels {', '.join(map(str, size.channels))}",
            against="PyTorch, channels last", goal=1.0, sides=partial(sides, name), needs_torch=True,
        )
        for work, sides in (("train", unets.training_sides), ("sample", unets.sampling_sides))
        for name, size in unets.SIZES.items()
    },
}  # fmt: skip
