"""Layers: every module imports only from lower layers, the library reads no flags and never sets jax's precision for others."""

import ast
from pathlib import Path

import pytest

import ldmjax

ROOT = Path(ldmjax.__file__).parent

LAYERS = {
    0: ["typing", "files"],
    1: ["schedules", "gaussians", "random_matrices", "devices", "threefry", "random", "pieces"],
    2: [
        "pipelines",
        "process",
        "oracle",
        "mixtures",
        "data",
        "convolutions",
        "loops",
        "checkpoints",
        "job",
        "chunks",
        "optimiser",
    ],
    3: ["networks", "autoencoders", "features", "losses", "metrics"],
    4: ["training", "sweeps", "experts", "samplers", "stopping"],
    5: ["pipelines", "records", "plotting", "tables", "tasks", "chains", "latent_diffusion", "predictors"],
    6: ["recommendation"],
}
LAYER = {module: layer for layer, modules in LAYERS.items() for module in modules}
SAME_LAYER = {
    ("random", "threefry"),
    ("oracle", "process"),
    ("mixtures", "process"),
    ("job", "checkpoints"),
    ("chunks", "checkpoints"),
    ("chunks", "job"),
    ("chunks", "loops"),
    ("optimiser", "loops"),
    ("oracle", "loops"),
    ("sweeps", "training"),
    ("stopping", "samplers"),
    ("experts", "training"),
    ("chains", "tasks"),
}

# The files that compute in float64 with jax: tables on devices, and methods of the user's schedules. They draw no random
# numbers (the same key gives others in float64), and the context manager ends float64 as soon as it returns; the configuration
# would change every program that comes after.
SCOPED_FLOAT64 = ("oracle/tables.py", "schedules/own.py")


def library_sources():
    return {str(path.relative_to(ROOT)): path.read_text() for path in sorted(ROOT.rglob("*.py"))}


def imported_names(source):
    """Dotted names that a source imports anywhere; ``from a import b`` gives a.b, a relative import a leading dot."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names)


def layer_violations(sources):
    found = []
    for path, source in sources.items():
        module = path.removesuffix(".py").split("/")[0]
        if module == "__init__":
            found += [f"{path} imports {n}" for n in imported_names(source) if n.startswith((".", "ldmjax"))]
            continue
        if module not in LAYER:
            found.append(f"{path} is not in the table of layers")
            continue
        for name in imported_names(source):
            parts = name.split(".")
            if parts[0] not in ("ldmjax", "") or name == "ldmjax.__version__":
                continue
            target = parts[1] if parts[0] and len(parts) > 1 else ""
            inside = "/" in path and target == module  # a package may import its own files
            lower = target in LAYER and LAYER[target] < LAYER[module]
            if not (inside or lower or (module, target) in SAME_LAYER):
                found.append(f"{path} imports {name}")
    return found


def scoped_float64(tree):
    """The nodes "jax.enable_x64" of each ``with jax.enable_x64(True)``."""
    contexts = [item.context_expr for node in ast.walk(tree) if isinstance(node, ast.With) for item in node.items]
    return [context.func for context in contexts if ast.unparse(context) == "jax.enable_x64(True)"]


def forbidden(sources):
    found = []
    for path, source in sources.items():
        found += [f"{path} imports {n}" for n in imported_names(source) if n.startswith("absl.flags")]
        tree = ast.parse(source)
        allowed = scoped_float64(tree) if path in SCOPED_FLOAT64 else []
        for node in ast.walk(tree):
            if node in allowed:
                continue
            field = {ast.Constant: "value", ast.Attribute: "attr", ast.Name: "id"}.get(type(node))
            if field and getattr(node, field) in ("jax_enable_x64", "enable_x64"):
                found.append(f"{path}:{node.lineno} sets the precision")
    return found


def test_every_module_imports_from_lower_layers():
    sources = library_sources()
    assert "gaussians.py" in sources and "oracle/stopped.py" in sources
    assert layer_violations(sources) == []


def test_the_library_reads_no_flags_and_never_sets_jax_precision_for_others():
    assert forbidden(library_sources()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("schedules.py", "import ldmjax.oracle"),
        ("schedules.py", "from ldmjax import gaussians"),  # same layer, not allowed
        ("gaussians.py", "def f():\n    from ldmjax.oracle.stopped import check_spectra"),
        ("process.py", "from ldmjax.oracle import capped"),  # only the other way round
        ("oracle/new.py", "from ldmjax.data import load"),
        ("metrics.py", "from ldmjax.samplers import sample"),
        ("training.py", "from ldmjax.sweeps import RunSpec"),
        ("data.py", "from . import oracle"),
        ("data.py", "import ldmjax"),
        ("__init__.py", "from ldmjax.schedules import LinearVP"),
        ("job.py", "from ldmjax import chunks"),  # only the other way round
        ("predictors.py", "from ldmjax.recommendation import recommend"),
        ("utils.py", ""),
    ],
)
def test_violations_are_seen(path, source):
    assert len(layer_violations({path: source})) == 1


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("oracle/new.py", "from ldmjax.oracle.stopped import a\nfrom ldmjax.process import b\nimport ldmjax.schedules"),
        ("sweeps.py", "from ldmjax import training, devices, networks"),
        ("stopping.py", "from ldmjax.samplers import c"),
        ("plotting.py", "import numpy as np\nfrom ldmjax import oracle"),
    ],
)
def test_allowed_imports_pass(path, source):
    assert layer_violations({path: source}) == []


@pytest.mark.parametrize(
    "source",
    [
        "from absl import flags",
        "import absl.flags",
        "from absl.flags import FLAGS",
        'import jax\njax.config.update("jax_enable_x64", True)',
        "import jax\njax.config.jax_enable_x64 = True",
        "from jax.experimental import enable_x64\nwith enable_x64():\n    pass",
    ],
)
def test_flags_and_precision_are_seen(source):
    assert len(forbidden({"metrics.py": source})) == 1


SCOPE = "import jax\nwith jax.enable_x64(True):\n    pass"


def test_two_files_may_compute_in_float64():
    assert forbidden(dict.fromkeys(SCOPED_FLOAT64, SCOPE)) == []
    assert len(forbidden({"oracle/new.py": SCOPE})) == 1


@pytest.mark.parametrize(
    "source",
    [
        'import jax\njax.config.update("jax_enable_x64", True)',
        "import jax\nscope = jax.enable_x64(True)\nscope.__enter__()",
        "import jax\njax.enable_x64(True)",
    ],
)
def test_it_may_do_so_only_inside_a_with(source):
    assert len(forbidden({SCOPED_FLOAT64[0]: source})) == 1
