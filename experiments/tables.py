"""Tables on the terminal."""

from collections.abc import Sequence


def align(rows: Sequence[Sequence[str]], *, left: int) -> list[str]:
    """Lines with columns of one width each, the first ``left`` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [f"{{:{'<' if k < left else '>'}{width}}}" for k, width in enumerate(widths)]
    return ["  ".join(pad).format(*row) for row in rows]
