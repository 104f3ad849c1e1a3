"""README: its first screen holds the two commands, its code runs, and it names every experiment."""

import re
from pathlib import Path

import numpy as np
import pytest

from experiments.__main__ import sources

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```python\n(.*?)```", TEXT, flags=re.DOTALL)


def test_first_screen_holds_exactly_the_two_commands():
    screen = "\n".join(TEXT.splitlines()[:20])
    assert [line for line in screen.splitlines() if line.startswith("python3 -m venv")] == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python -m experiments.optimal_stopping",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ]


def test_denoiser_example(capsys):
    exec(compile(BLOCKS[0], "README.md", "exec"), {})
    assert float(capsys.readouterr().out) < 5 * np.sqrt(2 / 10_000)  # the largest of 9 relative errors of a variance


def test_conjecture_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    code = BLOCKS[1]
    assert len([line for line in code.splitlines() if line.strip()]) <= 20
    exec(compile(code, "README.md", "exec"), {})
    assert (tmp_path / "conjecture.png").stat().st_size > 10_000
    assert "d = 4: best stop at noise variance 0.0201" in capsys.readouterr().out


@pytest.mark.parametrize("name", sources())
def test_every_experiment_is_named(name):
    assert f"`{name}`" in TEXT


def test_no_placeholder_is_left():
    for path in [ROOT / "README.md", *ROOT.glob("experiments/**/*.py")]:
        assert "PLACEHOLDER" not in path.read_text()
    assert not re.search(r"\b(RESULTS_TABLE|TRUTHS|COVERAGE_TIME|PAPER_TIME)\b|^COVERAGE$", TEXT, flags=re.MULTILINE)
