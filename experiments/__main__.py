"""Lists the experiments, one line each; with --settings, all their settings as the tables of docs/settings.md."""

import ast
import importlib
import sys
from pathlib import Path

from experiments.launch import Launch
from experiments.launch.settings import Settings, as_word, fields, parsers


def sources() -> dict[str, Path]:
    """The file that holds the docstring of each experiment, by name: what can be run calls ``launch.main``."""
    here = Path(__file__).parent
    files = {
        path.stem: path for path in here.glob("*.py") if path.stem[0] != "_" and "launch.main(" in path.read_text()
    }
    packages = {path.parent.name: path.with_name("__init__.py") for path in here.glob("*/__main__.py")}
    return dict(sorted((files | packages).items()))


def summary(path: Path) -> str:
    """The first line of an experiment's docstring."""
    return ast.get_docstring(ast.parse(path.read_text())).splitlines()[0]


def settings_table(config: type[Settings]) -> list[str]:
    """The settings that a configuration declares, as lines of a Markdown table."""
    known, lines = parsers(config), ["| setting | default | meaning | allowed |", "|---|---|---|---|"]
    for field in fields(config):
        default = "" if field.default is None else f"`{as_word(field.default)}`"
        words = (field.metadata["help"], known[field.name].allowed)
        cells = [f"`--{field.name}`", default, *(text.replace("|", "\\|") for text in words)]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def settings_page() -> str:
    """The contents of docs/settings.md."""
    lines = [
        "# Settings",
        "",
        "Made by `python -m experiments --settings > docs/settings.md`; `--help` shows the same.",
        "",
    ]
    for name, path in sources().items():
        lines += [
            f"## {name}",
            "",
            summary(path),
            "",
            *settings_table(importlib.import_module(f"experiments.{name}").Config),
            "",
        ]
    return "\n".join([*lines, "## All experiments", "", *settings_table(Launch), ""])


def main() -> None:
    if sys.argv[1:] == ["--settings"]:
        print(settings_page(), end="")
        return
    for name, path in sources().items():
        print(f"python -m experiments.{name:18s} {summary(path)}")


if __name__ == "__main__":
    main()
