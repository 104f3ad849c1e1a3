"""The Colab notebook: executed on this machine's CPU, its flags exist, and it is stored without outputs."""

import json
import re
import subprocess
import sys
from pathlib import Path

import nbclient
import nbformat
import pytest

ROOT = Path(__file__).parent.parent
TINY = (
    "--seeds=0 --latent_dims=1,2 --linear_steps=20 --mlp_steps=10 --hidden=4 --samples=128 --sampling_steps=10 --stops=5"
    " --n=30 --spectrum=power:1.5 --data_dim=4"
)


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(ROOT / "experiments" / "colab.ipynb", as_version=4)


def cell_of(notebook: nbformat.NotebookNode, cell_id: str) -> nbformat.NotebookNode:
    return next(cell for cell in notebook.cells if cell.id == cell_id)


def printed(cell: nbformat.NotebookNode) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook with a tiny job, whose cell is run a second time, as after a disconnect, and what the kernel imported."""
    where, notebook = tmp_path_factory.mktemp("colab"), read_notebook()
    settings, run = cell_of(notebook, "settings"), cell_of(notebook, "run")
    settings.source, replaced = re.subn(r'FLAGS = ".*?"', f'FLAGS = "{TINY}"', settings.source)
    assert replaced == 1
    keep = nbformat.v4.new_code_cell("first_bytes = (WORKDIR / 'records.jsonl').read_bytes()")
    again = nbformat.v4.new_code_cell(run.source, id="run_again")
    same = nbformat.v4.new_code_cell("assert (WORKDIR / 'records.jsonl').read_bytes() == first_bytes")
    notebook.cells[notebook.cells.index(run) + 1 : notebook.cells.index(run) + 1] = [keep, again, same]
    notebook.cells.append(nbformat.v4.new_code_cell("print('jax' in sys.modules)", id="modules"))
    client = nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(where)}})
    return where, client.execute()  # a cell that raises fails here


@pytest.mark.slow
def test_job_runs_and_runs_again(executed):
    where, notebook = executed
    assert re.search(r"^jax \d+\.\d+.* on \[", printed(cell_of(notebook, "install")), flags=re.MULTILINE)
    assert "step 20/20" in printed(cell_of(notebook, "run"))
    for name in ("run", "run_again"):
        text = printed(cell_of(notebook, name))
        assert "results/optimal_stopping" in text and "Traceback" not in text
    assert len((where / "results/optimal_stopping/records.jsonl").read_text().splitlines()) == 8


@pytest.mark.slow
def test_figures_and_records_are_shown(executed):
    where, notebook = executed
    figures = [output.data for output in cell_of(notebook, "figures").outputs if output.output_type == "display_data"]
    assert len(figures) == len(list((where / "results/optimal_stopping").glob("*.png"))) == 2
    assert all(len(data["image/png"]) > 10_000 for data in figures)
    (table,) = cell_of(notebook, "records").outputs
    assert table.data["text/html"].count("<tr") == 9 and "w2_squared_best" in table.data["text/html"]
    assert "experiments.optimal_stopping" in printed(cell_of(notebook, "more"))


@pytest.mark.slow
def test_kernel_never_imports_jax(executed):
    """A TPU belongs to one process: the experiment's."""
    assert printed(cell_of(executed[1], "modules")) == "False\n"


def test_every_flag_exists():
    lines = [line for cell in read_notebook().cells for line in cell.source.splitlines()]
    named = {
        flag for line in lines if "git clone" not in line and "pip" not in line for flag in re.findall(r"--(\w+)", line)
    }
    assert {"quick", "workdir"} <= named
    command = [sys.executable, "-m", "experiments.optimal_stopping", "--help"]
    text = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert named - {"help"} <= set(re.findall(r"--(?:\[no\])?(\w+)", text))


def test_no_output_is_stored():
    for cell in json.loads((ROOT / "experiments" / "colab.ipynb").read_text())["cells"]:
        assert cell["cell_type"] == "markdown" or (cell["outputs"], cell["execution_count"]) == ([], None)
