"""Latent diffusion models, their latent dimension and their stopping time, checked against exact laws."""
