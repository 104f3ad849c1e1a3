"""Every experiment, in small: stopped in the middle and started again it ends as if it had been left alone, and is redrawn."""

import numpy as np
import pytest
from commands import started
from interrupted import run_in_sessions

from experiments.__main__ import sources
from experiments.launch.results import read_results, write_results
from ldmjax.job import Job

IMAGES = {"n": (300,), "reference": 200, "training_steps": 20, "batch_size": 16, "samples": 128, "sampling_steps": 8}
SETTINGS = {
    "capped_scores": {"n": (50,), "draws": 2, "caps": (2.0, 50.0), "zooms": 1, "points": 3},
    "coverage": {"analyses": ("sampler",), "draws": 2},
    "disentangled": {
        "tasks": ("gaussian",), "ladders": ("linear_beta",), "levels": 8, "many_levels": 40, "experts": (1, 8),
        "samples_per_state": (2,), "sample_budget": 512, "checkpoints": 3, "learning_rates": (0.003, 0.01), "seeds": (0, 1),
        "samples": 64, "hidden": 8, "experts_per_batch": 2,
    },
    "few_states": {
        "spectrum": "exponential:0.5", "data_dim": 8, "levels": (4, 16), "few": 4, "ladders": ("karras", "rectified_flow"),
        "tasks": ("gaussian",), "samples": 512, "seeds": (5, 6), "steps": 20, "hidden": 4, "batch_size": 8,
    },
    "latent_vs_pixel": IMAGES | {
        "n": 300, "autoencoders": ("pca:12",), "seeds": (0, 1), "hidden": 64, "mlp_blocks": 1, "stops": 4,
    },
    "noisy_autoencoder": IMAGES | {
        "n": 300, "autoencoder": "pca", "latent_dims": (2, 4), "seeds": (0,), "hidden": 16, "stops": 3, "samples": 512,
    },
    "optimal_stopping": {
        "n": (60,), "latent_dims": (1, 3), "seeds": (0,), "caps": (np.inf, 5.0), "linear_steps": 200, "mlp_steps": 200,
        "batch_size": 32, "hidden": 8, "samples": 256, "sampling_steps": 30, "stops": 6,
    },
    "paper_figures": {"draws": 3, "levels": 11, "steps": 20, "samples": 128, "sampling_steps": 10, "stops": 3},
    "phase_diagram": {"spectrum": "power:1", "data_dim": 6, "n": (50,), "draws": 3},
    "recommend": {"n": 150, "reference": 128, "samples": 300, "stops": 4, "autoencoders": ("pca",), "latent_dims": (2, 4)},
    "stopping_by_metric": IMAGES | {
        "n": 300, "autoencoders": ("pca",), "latent_dims": (2,), "seeds": (0, 3), "hidden": 16, "stops": 4,
    },
    "unused_states": {
        "spectrum": "power:1.5", "data_dim": 6, "latent_dims": (2, 6), "levels": 8, "ladders": ("karras",),
        "learned_dims": (2,),
    },
}  # fmt: skip
TIMED = {"benchmark", "on_device"}  # their results are seconds


def test_every_experiment_is_here():
    assert set(sources()) == set(SETTINGS) | TIMED


@pytest.mark.parametrize("experiment", SETTINGS)
def test_an_interrupted_experiment_ends_like_a_whole_one_and_is_redrawn(experiment, tmp_path):
    config_of, compute, report = started(experiment).args
    config = config_of(**SETTINGS[experiment])
    data, lines = config.load() if hasattr(config, "load") else None, []
    whole = compute(config, data, Job(show=lines.append, line_every=0.0))
    if len(lines) > 1:
        again, _ = run_in_sessions(lambda job: compute(config, data, job), tmp_path / "job", at=[2 * len(lines) // 3])
        np.testing.assert_equal(list(map(dict, again.rows)), list(map(dict, whole.rows)))
        np.testing.assert_equal(dict(again.arrays), dict(whole.arrays))
    (tmp_path / "files").mkdir()
    write_results(tmp_path / "files", whole)
    shown = report(read_results(tmp_path / "files", config))
    assert shown.text and (shown.figures or experiment == "coverage")
