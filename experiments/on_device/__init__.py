r"""What does all this cost on a GPU, and does it give there what it gives on a CPU? For who has one for fifteen minutes.

One call measures in the order of worth, and stops in time:

- machine: versions; rates of a copy and of products in each precision; a step of a loop, a call of a program.
- agreement: random bits (equal), normals (1e-5), losses of 50 steps of every kind of training (1e-4, each twice: are the
  parameters equal bit for bit?) against a CPU's, and a sampler's squared W2 against the exact law.
- benchmark: training rates against their bound at 64, 1024 and 4096 runs, with and without command buffers; sampling.
- pytorch: the contests against PyTorch, if it is there; U-Nets in bfloat16 too.
- main_job: `experiments.optimal_stopping` in full, its verdicts and curves against a CPU's.
- science: `experiments.noisy_autoencoder` on 15,000 images of CIFAR-10.

What they are compared with is made before, on a CPU, in a folder to carry along; then the GPU's call reads it:

    python -m experiments.on_device --prepare=results/carried --cifar=cifar10.npz
    python -m experiments.on_device --carried=results/carried --seconds=560

Every step is a process of its own (a GPU's memory is free again after each) with a time limit of its own, and is left out when
less than it needs is left of --seconds, part of which is kept for each later stage. What it measured is written at once to
--workdir: STAGE.json, and results.json, which gathers all. The same command goes on: finished steps are not done again, stopped
ones go on from what they kept in --scratch. Another state of the code, another device or another --deterministic is refused
there. The status is 1 if a step failed.

**Not yet run on a GPU**; all of it runs on a CPU with --quick, and does so in tests/test_on_device.py.
"""
