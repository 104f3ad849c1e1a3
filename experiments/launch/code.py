"""Which code a job's numbers come from: a digest that a changed report, docstring, comment or message leaves as it is."""

import ast
import hashlib
import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import ldmjax

REPORTING = {"plotting", "tables", "records", "files"}  # of ldmjax: what computes no number
LAUNCHED = [Path(__file__).with_name(name) for name in ("data.py", "diffusion.py")]  # of launch/: what computes
REPORTS = {"report", "figures", "__main__"}  # modules of a package


def digest(compute: Callable) -> str:
    """sha256 of the sources behind ``compute``: the library, and the experiment without its report."""
    return digest_of([Path(inspect.unwrap(compute).__globals__["__file__"])])


def digest_of(paths: Iterable[Path]) -> str:
    """As `digest`, of several experiments by their files (of a package its ``__init__.py``), which need not be imported."""
    total = hashlib.sha256()
    library = Path(ldmjax.__file__).parent
    for path in sorted(library.rglob("*.py")):
        if path.relative_to(library).parts[0].removesuffix(".py") not in REPORTING and path.stem not in REPORTS:
            total.update(_meaning(ast.parse(path.read_text()).body).encode())
    for path in itertools.chain(LAUNCHED, *map(_sources, paths)):
        total.update(_meaning(_computing(ast.parse(path.read_text()).body)).encode())
    return total.hexdigest()


def _sources(path: Path) -> list[Path]:
    """The experiment's file, or all of its package but the reports, with the modules beside it that they import."""
    found = [path]
    if path.stem == "__init__" or path.parent.name != "experiments" and (path.parent / "__init__.py").exists():
        found = sorted(p for p in path.parent.rglob("*.py") if p.stem not in REPORTS)
    for source in found:  # grows on the way
        found += [p for p in _beside(source) if p not in found]
    return found


def _beside(source: Path) -> Iterator[Path]:
    """The files that a source imports from its own folder, but for reports."""
    for node in ast.walk(ast.parse(source.read_text())):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        for name in names:
            path = source.with_name(f"{name.rpartition('.')[2]}.py")
            if path.is_file() and path.stem not in REPORTS and name != "experiments":
                yield path


def _computing(body: list[ast.stmt]) -> list[ast.stmt]:
    """The statements of a module without functions that its report alone needs."""
    functions = {node.name: node for node in body if isinstance(node, ast.FunctionDef)}
    if "report" not in functions or "compute" not in functions:
        return body
    needed, of_report = (_reachable(name, functions) for name in ("compute", "report"))
    # A decorator may hand a function on under another name.
    others = [node for node in body if not isinstance(node, ast.FunctionDef) or node.decorator_list]
    needed |= {name for node in others for name in _names(node) & set(functions)} - {"report"}
    needed = set().union(*(_reachable(name, functions) for name in needed))
    dropped = of_report - needed - {node.name for node in functions.values() if node.decorator_list}
    return [node for node in body if getattr(node, "name", None) not in dropped]


def _reachable(name: str, functions: dict[str, ast.FunctionDef]) -> set[str]:
    found, left = set(), [name]
    while left:
        one = left.pop()
        if one in functions and one not in found:
            found.add(one)
            left += _names(functions[one])
    return found


def _names(node: ast.AST) -> set[str]:
    """Names in a node, also those that it may look up by attribute or by a string."""
    found = ((getattr(n, "id", None), getattr(n, "attr", None), getattr(n, "value", None)) for n in ast.walk(node))
    return {name for names in found for name in names if isinstance(name, str)}


class _Meaning(ast.NodeTransformer):
    """Takes out what no number depends on: docstrings, help, the words of errors and of lines that are shown."""

    def _without_docstring(self, node):
        self.generic_visit(node)
        if node.body and isinstance(node.body[0], ast.Expr) and isinstance(node.body[0].value, ast.Constant):
            node.body = node.body[1:] or [ast.Pass()]
        return node

    visit_FunctionDef = visit_ClassDef = visit_Module = _without_docstring  # noqa: N815 - ast's names

    def visit_Raise(self, node):
        """An error by its type alone."""
        kind = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(exc=kind, cause=None)

    def visit_If(self, node):
        """The guard that starts a command computes nothing."""
        self.generic_visit(node)
        return node.orelse if "__main__" in ast.unparse(node.test) else node

    def visit_Expr(self, node):
        """Lines that a job shows."""
        self.generic_visit(node)
        name = ast.unparse(node.value.func) if isinstance(node.value, ast.Call) else ""
        return None if name in ("job.log", "self.job.log", "LOG.warning") else node

    def visit_AnnAssign(self, node):
        """The help of a setting is its second argument."""
        self.generic_visit(node)
        if isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in ("setting", "launch.setting"):
            node.value.args = node.value.args[:1]
        return node


def _meaning(body: Iterable[ast.stmt]) -> str:
    return ast.dump(_Meaning().visit(ast.Module(body=list(body), type_ignores=[])))
