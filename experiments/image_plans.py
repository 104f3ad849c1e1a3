"""Stages of experiments on images, for --dry_run: how much `image_models` does, from the sizes of everything.

Constants were measured on the machine of plans.py.
"""

from collections.abc import Mapping, Sequence

import jax
import numpy as np
from flax import nnx

from experiments import plans
from experiments.image_models import SamplingConfig
from ldmjax import training
from ldmjax.autoencoders import AutoencoderConfig
from ldmjax.autoencoders.convolutional import ConvolutionalNetwork, geometry_of, network_flops

LINEAR = ("pca", "identity")
UNET_SLOWNESS = 4.0  # of an operation in the small convolutions of a U-Net, relative to one in an MLP
KERNEL_ROWS = 2048  # reference rows that the MMD uses, at most
KERNEL_ENTRY, KERNEL_ENTRY_FEATURE, MOMENT = 1e-8, 5e-11, 1e-10  # seconds


def autoencoders(
    shapes: Mapping[str, Sequence[tuple[int, ...]]], image_shape: tuple[int, ...], *, seeds: int, steps: int
) -> list[plans.Stage]:
    """`image_models.fit_autoencoders` for each of some seeds: latent shapes by kind, optimiser steps."""
    stages = []
    for kind, wanted in shapes.items():
        if kind in LINEAR:
            continue
        config = AutoencoderConfig(kind=kind, steps=steps)
        costs = [network_size(config, image_shape, shape) for shape in wanted]
        flops, parameters = np.mean(costs, axis=0)
        stages.append(
            plans.training(
                f"train {kind} autoencoders",
                runs=seeds * len(wanted),
                steps=steps,
                batch=config.batch_size,
                flops=flops,
                entries=0,
                parameters=parameters,
                programs=3 * len({s[:-1] for s in wanted}),
            )  # fmt: skip
        )
    return stages


def network_size(
    config: AutoencoderConfig, image_shape: tuple[int, ...], latent_shape: tuple[int, ...]
) -> tuple[float, float]:
    """(floating-point operations of encoding and decoding one image, parameters)."""
    if config.kind in LINEAR:
        return 4.0 * np.prod(image_shape) * np.prod(latent_shape), 0.0
    geometry = geometry_of(image_shape, latent_shape, downsampling=config.downsampling)
    rng = np.random.default_rng(0)
    params = nnx.split(ConvolutionalNetwork(geometry, config, latent_dim=latent_shape[-1], rng=rng))[1]
    return network_flops(geometry, config), sum(x.size for x in jax.tree.leaves(params))


def decoding(shapes: Mapping[str, Sequence[tuple[int, ...]]], image_shape: tuple[int, ...]) -> float:
    """Mean operations of decoding one image: half of those of `network_size`."""
    sizes = [network_size(AutoencoderConfig(kind=k), image_shape, s)[0] for k, wanted in shapes.items() for s in wanted]
    return float(np.mean(sizes)) / 2


def diffusion(
    models: Sequence[tuple[training.TrainingConfig, int]], sampling: SamplingConfig, *, times_sampled: int = 1
) -> list[plans.Stage]:
    """`image_models.train_models` and `sample_states`: (network, latent dimension) of each model."""
    stages = []
    for network in dict.fromkeys(network for network, _ in models):
        dims = [dim for other, dim in models if other == network]
        width = max(dims)
        flops = training.flops(network, width) * (UNET_SLOWNESS if network.model == "unet" else 1.0)
        parameters = training.parameter_count(network, width)
        size = {"flops": flops, "entries": width}
        chains = sampling.samples // sampling.chunk
        name = f"{network.model} on {width} entries" + (" at most" if min(dims) < width else "")
        stages += [
            plans.training(
                f"train {name}", runs=len(dims), steps=network.steps, batch=network.batch_size, parameters=parameters,
                programs=2, **size,
            ),
            plans.sampling(
                f"sample {name}", runs=len(dims) * chains * times_sampled, steps=sampling.steps, samples=sampling.chunk,
                noise=False, **size,
            ),
        ]  # fmt: skip
    return stages


def measuring(
    what: str, *, sets: int, samples: int, reference: int, dims: Sequence[int], pixels: int, decoding: float
) -> plans.Stage:
    """Distances of decoded images to others.

    Args:
      what: is measured.
      sets: of images.
      samples: images of a set.
      reference: images that it is compared with.
      dims: of the feature spaces.
      pixels: values of an image.
      decoding: operations of decoding one.
    """
    seconds = 0.0
    for dim in dims:
        entries = samples * (min(reference, KERNEL_ROWS) + samples / 4)
        seconds += entries * (KERNEL_ENTRY + KERNEL_ENTRY_FEATURE * dim) + MOMENT * dim**2 * (samples + 10 * dim)
    stage = plans.host(what, runs=sets, seconds=seconds, programs=1)
    return plans.Stage(
        what=what, runs=sets, programs=stage.programs,
        seconds=stage.seconds + sets * samples * decoding * plans.probe().operation,
    )  # fmt: skip
