"""Lists the experiments, one line each."""

import ast
from pathlib import Path

SUPPORT = ("__init__", "__main__", "flags", "tasks", "tables", "image_models")


def main() -> None:
    here = Path(__file__).parent
    sources = {path.stem: path for path in here.glob("*.py")}
    sources |= {path.parent.name: path for path in here.glob("*/__init__.py")}
    for name in sorted(set(sources) - set(SUPPORT)):
        summary = ast.get_docstring(ast.parse(sources[name].read_text())).splitlines()[0]
        print(f"python -m experiments.{name:18s} {summary}")


if __name__ == "__main__":
    main()
