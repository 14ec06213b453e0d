"""Tables as text, to be put into a page."""

from __future__ import annotations

from rich.table import Table


def markdown(table: Table) -> str:
    """A table as Markdown, without its title."""
    rows = [[str(column.header) for column in table.columns], ["---"] * len(table.columns)]
    rows += [list(cells) for cells in zip(*(map(str, column.cells) for column in table.columns), strict=True)]
    lines = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    return "\n".join([*lines, *(["", str(table.caption)] if table.caption else [])])
