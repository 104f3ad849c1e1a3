"""Lists the experiments, one line each."""

import ast
from pathlib import Path

SUPPORT = ("__init__", "__main__", "flags")


def main() -> None:
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in SUPPORT:
            summary = ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]
            print(f"python -m experiments.{path.stem:18s} {summary}")


if __name__ == "__main__":
    main()
