"""README and docs/: the two commands are on the first screen, code runs, links lead somewhere, every experiment is named."""

import re
from pathlib import Path

import matplotlib
import numpy as np
import pytest

from experiments.__main__ import sources

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
PAPERS = {str(path.relative_to(ROOT)): path for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])}


def code(paper: str, begins: str) -> str:
    """The one block of Python in a paper that has this line."""
    blocks = re.findall(r"```python\n(.*?)```", PAPERS[paper].read_text(), flags=re.DOTALL)
    (found,) = [block for block in blocks if begins in block]
    return found


def run(source: str) -> dict:
    names: dict = {}
    exec(compile(source, "paper", "exec"), names)
    return names


def test_first_screen_holds_exactly_the_two_commands():
    screen = "\n".join(TEXT.splitlines()[:20])
    assert [line for line in screen.splitlines() if line.startswith("python3 -m venv")] == [
        "python3 -m venv .venv && .venv/bin/pip install -e . && .venv/bin/python -m experiments.optimal_stopping",
        "python3 -m venv .venv && .venv/bin/pip install -e '.[test]' && .venv/bin/pytest",
    ]


def test_denoiser_example(capsys):
    run(code("docs/architecture.md", "samplers.sample("))
    assert float(capsys.readouterr().out) < 5 * np.sqrt(2 / 10_000)  # the largest of 9 relative errors of a variance


def test_conjecture_example(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    source = code("README.md", "# Conjecture")
    assert len([line for line in source.splitlines() if line.strip()]) <= 20
    run(source)
    assert (tmp_path / "conjecture.png").stat().st_size > 10_000
    assert "d = 4: best stop at noise variance 0.0201" in capsys.readouterr().out


def test_recommend_example(capsys):
    source = code("README.md", "ldmjax.recommend(")
    small = source.replace("(8, 16, 32)})", "(8,)}, samples=512, stops=5)").replace("images / 8", "images[:500] / 8")
    names = run(small)
    assert names["found"].answer.startswith("pca 8 (latent dimension 8")
    assert names["found"].table() in capsys.readouterr().out
    assert isinstance(names["found"].figure(), matplotlib.figure.Figure)


@pytest.mark.parametrize("name", sources())
def test_every_experiment_is_named(name):
    assert f"`{name}`" in TEXT
    assert f"\n## {name}\n" in PAPERS["docs/results.md"].read_text()


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings."""
    prose = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    titles = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("paper", PAPERS)
def test_links_lead_somewhere(paper):
    text = re.sub(r"```.*?```", "", PAPERS[paper].read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = (PAPERS[paper].parent / name) if name else PAPERS[paper]
        assert target.exists(), link
        assert not anchor or anchor in anchors(target.read_text()), link


def test_no_placeholder_is_left():
    for path in [*PAPERS.values(), *ROOT.glob("experiments/**/*.py")]:
        assert "PLACEHOLDER" not in path.read_text()
