"""Lists the experiments, one line each."""

import ast
from pathlib import Path


def sources() -> dict[str, Path]:
    """The file that holds the docstring of each experiment, by name: what can be run calls ``launch.main``."""
    here = Path(__file__).parent
    files = {
        path.stem: path for path in here.glob("*.py") if path.stem[0] != "_" and "launch.main(" in path.read_text()
    }
    packages = {path.parent.name: path.with_name("__init__.py") for path in here.glob("*/__main__.py")}
    return dict(sorted((files | packages).items()))


def main() -> None:
    for name, path in sources().items():
        summary = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
        print(f"python -m experiments.{name:18s} {summary}")


if __name__ == "__main__":
    main()
