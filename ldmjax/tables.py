"""Tables as text for a terminal, drawn by rich."""

import io
from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table


def table(
    rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None, *, title: str = "", left: int = 1
) -> str:
    """Returns rows as text, one line each under a line of names.

    Args:
      rows: a dict per line, or ``frame.to_dict("records")`` of pandas; what is missing, None or NaN leaves its place empty.
      columns: what to show, in order: the column's name in the rows and how its numbers are written (".3f"), "" for as they
        are. By default all columns of the first row.
      title: a line above.
      left: columns that are flush left; the others are flush right.
    """
    columns = dict.fromkeys(rows[0] if rows else (), "") if columns is None else columns
    drawn = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_edge=False)
    for place, name in enumerate(columns):
        drawn.add_column(name, justify="left" if place < left else "right", no_wrap=True)
    for row in rows:
        drawn.add_row(*(_cell(row.get(name), how) for name, how in columns.items()))
    console = Console(file=io.StringIO(), width=10_000, color_system=None, markup=False, highlight=False, emoji=False)
    console.print(drawn)
    lines = [line.rstrip() for line in console.file.getvalue().rstrip().splitlines()]
    return "\n".join([title, *lines] if title else lines)


def _cell(value: Any, how: str) -> str:
    if value is None or value != value:  # noqa: PLR0124 - NaN
        return ""
    return format(value, how) if how and not isinstance(value, str) else str(value)
