"""docs/new_experiment.md: the experiment of its text runs, goes on, is redrawn and refuses, as the text says."""

import json
import os
import re
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest
from commands import NOT_OPTIMISED, ROOT

TEXT = (ROOT / "docs/new_experiment.md").read_text()
SOURCE, TRAINING = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture(scope="module")
def script(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "sample_size.py"
    path.write_text(SOURCE)
    return path


def start(script, *words):
    variables = {**os.environ, "PYTHONPATH": str(ROOT), "XLA_FLAGS": NOT_OPTIMISED}
    command = [sys.executable, str(script), *map(str, words)]
    done = subprocess.run(command, env=variables, cwd=script.parent, capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


def test_it_is_as_short_as_it_says():
    assert len(SOURCE.splitlines()) <= 60


def test_it_runs_goes_on_and_is_redrawn(script):
    words = ["--spectrum=power:1.5", "--n=10,100", "--draws=4"]
    status, out, err = start(script, *words)
    assert status == 0, err
    workdir = script.parent / "results" / "sample_size"
    rows = [json.loads(line) for line in (workdir / "records.jsonl").open()]
    assert [row["n"] for row in rows] == [10, 100] and rows[0]["mean"] > rows[1]["mean"] > 0
    assert {"flags.txt", "metadata.json", "curves.npz", "sample_size.png"} <= {p.name for p in workdir.iterdir()}
    (workdir / "records.jsonl").unlink()
    (workdir / "sample_size.png").unlink()
    script.write_text(SOURCE.replace('"samples n"', '"number of samples n"'))
    status, again, err = start(script, *words)
    assert status == 0 and "sample sizes:" in out and "sample sizes:" not in again, "all pieces were kept"
    assert [json.loads(line) for line in (workdir / "records.jsonl").open()] == rows
    (workdir / "sample_size.png").unlink()
    status, redrawn, err = start(script, "--redraw")
    assert status == 0 and (workdir / "sample_size.png").exists(), err
    shown = [line for line in out.splitlines() if line.split()[0] in ("n", "10", "100")]
    assert len(shown) == 3 and set(shown) <= set(redrawn.splitlines())


def test_a_changed_computation_and_bad_settings_are_refused(script):
    script.write_text(SOURCE)
    assert start(script, "--quick", "--spectrum=power:1", "--workdir=own")[0] == 0
    script.write_text(SOURCE.replace("np.mean(ends) - exact", "np.mean(ends)"))
    status, out, err = start(script, "--quick", "--spectrum=power:1", "--workdir=own")
    assert status == 2 and "another state of the code that computes" in err
    script.write_text(SOURCE)
    for word, allowed in [("--n=1", ">= 2"), ("--latent_dim=65", "1..64"), ("--draws=x", "a whole number")]:
        status, out, err = start(script, word, "--workdir=refused")
        assert status == 2 and out == "" and len(err.splitlines()) == 1 and word in err and allowed in err
    assert not (script.parent / "refused").exists()


def test_the_training_of_the_text_learns_the_law_and_comes_back(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(TRAINING, names)
    np.testing.assert_allclose(names["found"][-1], names["exact"], rtol=0.1)
    z, t = jnp.ones((2, 5)), jnp.full(2, 0.3)
    np.testing.assert_array_equal(names["again"](z, t), names["trained"].denoiser(4)(z, t))
    assert names["specs"][-1].name in TRAINING
