"""Which autoencoder, and how it is trained."""

import dataclasses

from ldmjax.convolutions import PRECISIONS

KINDS = ("pca", "identity", "conv", "kl", "vq")


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoencoderConfig:
    """What all autoencoders of one `fit` have in common; "pca" and "identity" read ``kind`` alone.

    Attributes:
      kind: "pca", "identity", "conv" (plain autoencoder), "kl" (KL-VAE) or "vq" (VQ-VAE).
      channels: feature maps at the coarsest resolution; half as many at each finer one.
      downsampling: image side / coarsest side for vector latents, a power of 2; map latents say it by their own shape.
      steps: optimiser steps.
      batch_size: images per step.
      learning_rate: of Adam, constant after ``warm_up`` steps.
      warm_up: steps over which the learning rate rises linearly.
      ema_gamma: exponent of the power EMA: after step k the average moves by 1 - (1 - 1/k)^(gamma + 1); in runs of more
        than 50,000 steps the decay is at most 0.9999.
      kl_weight: "kl" only; nats against squared pixel error, images having standard deviation 1 (they are standardised inside):
        sum over pixels (x - x')^2 + kl_weight * KL(q(z|x) || N(0, I)). It is twice the pixel noise's variance in the usual
        evidence bound.
      codes: "vq" only; size of the codebook.
      code_dim: "vq" only; entries of a vector latent that share one code. A map latent has one code per position.
      code_decay: "vq" only; decay of the codebook's moving averages.
      commitment: "vq" only; weight of the mean squared distance of a latent entry to its code against that of a pixel.
      eval_batch: images per call of encode and decode on a CPU; an accelerator takes more.
      precision: of the network's activations and products, "float32" or "bfloat16"; all else is in float32.
    """

    kind: str
    channels: int = 32
    downsampling: int = 4
    steps: int = 2000
    batch_size: int = 64
    learning_rate: float = 5e-3
    warm_up: int = 100
    ema_gamma: float = 7.0
    kl_weight: float = 0.01
    codes: int = 256
    code_dim: int = 2
    code_decay: float = 0.99
    commitment: float = 0.25
    eval_batch: int = 256
    precision: str = "float32"

    def __post_init__(self):
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {self.kind!r}")
        least = {"channels": 1, "downsampling": 2, "steps": 1, "batch_size": 1, "warm_up": 0, "codes": 2, "code_dim": 1}
        for name, low in [*least.items(), ("kl_weight", 0), ("commitment", 0), ("ema_gamma", 0), ("eval_batch", 1)]:
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} must be >= {low}, got {getattr(self, name)}")
        if self.downsampling & (self.downsampling - 1):
            raise ValueError(f"downsampling must be a power of 2, got {self.downsampling}")
        if self.precision not in PRECISIONS:
            raise ValueError(f"precision must be one of {', '.join(PRECISIONS)}, got {self.precision!r}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate must be > 0, got {self.learning_rate}")
        if not 0 < self.code_decay < 1:
            raise ValueError(f"code_decay must lie strictly between 0 and 1, got {self.code_decay}")
