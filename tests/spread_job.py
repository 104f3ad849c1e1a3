"""A small job for test_devices.py: trains, samples and keeps on any number of devices and processes, writes what it found.

Usage: spread_job.py OUTPUT.npz WORKDIR [PORT PROCESSES PROCESS]
"""

import logging
import sys

import jax
import numpy as np

from ldmjax import chunks, devices, experts, samplers, schedules, sweeps, training
from ldmjax.job import Job, printing

SCHEDULE = schedules.LinearVP()
DIMS = (1, 2, 3)


def spec(d):
    return sweeps.RunSpec(
        model="mlp", data="x", training_draws="sample", latent_dim=d, seed=0, n=64, learning_rate=5e-3
    )


def sample_runs(trained, count):
    """Moments of 256 samples of the first ``count`` runs: with fewer runs than devices the samples are spread."""
    times = schedules.uniform_logsnr_times(SCHEDULE, 20, logsnr_min=-10.0, logsnr_max=9.0)

    def one(denoiser, run, sources, extra):
        start_key, chain_key = jax.random.split(jax.random.fold_in(run.key, 3))
        start = jax.random.normal(start_key, (3, 256)).T * run.inputs.mask
        return samplers.sample(
            denoiser,
            SCHEDULE,
            start,
            chain_key,
            times=times,
            stops=[10, 20],
            sampler="euler_maruyama",
            mask=run.inputs.mask,
            statistic=lambda z, t: (z.mean(axis=0), z.T @ z / len(z), jax.numpy.sort(z, axis=0)[::50]),
        )

    return sweeps.map_trained(trained, one, np.zeros(len(trained.specs)))(np.arange(count))


def run(job):
    sample = np.random.default_rng(0).standard_normal((64, 3)) * [2.0, 1.0, 0.5]
    latents = {("x", 0, 64): sweeps.Latents(sample=sample, fresh_factor=np.eye(3))}
    config = training.TrainingConfig(model="mlp", steps=40, batch_size=32, hidden=16, schedule=SCHEDULE)
    trained = sweeps.train_scores([spec(d) for d in DIMS], latents, config, chunk=10, job=job)
    found = {f"sampled_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(sample_runs(trained, 3)))}
    # The samples of a single run; as a piece, so that processes have to agree on what is on disk.
    single = job.keep("single run", lambda: sample_runs(trained, 1))
    found |= {f"single_{i}": leaf for i, leaf in enumerate(jax.tree.leaves(single))}
    model = experts.ModelSpec(seed=0, parameterisation="v", learning_rate=5e-3)
    ladder = schedules.Ladder(*schedules.karras_levels(6, sigma_min=0.01, sigma_max=50.0))
    settings = experts.ExpertsConfig(ladder=ladder, experts=3, batch_size=16, steps=30, hidden=8)
    expert = experts.train_experts([model], sample, settings, job=job)
    ends = expert.map_models(
        lambda denoiser, x: denoiser(x, jax.numpy.full(8, 3.0)), sample[None, :8].astype(np.float32)
    )
    return found | {"params": jax.tree.leaves(trained.params)[0], "experts": expert.params, "denoised": ends}


def main():
    output, workdir, *several = sys.argv[1:]
    logging.getLogger("absl").setLevel(logging.CRITICAL)
    if several:
        port, count, number = map(int, several)
        devices.start(coordinator_address=f"localhost:{port}", num_processes=count, process_id=number)
    else:
        devices.start()
    chunks.obey_signals()
    found = run(Job(workdir, every=0.0, show=printing))
    np.savez(output, devices=jax.device_count(), **jax.tree.map(np.asarray, found))


if __name__ == "__main__":
    main()
