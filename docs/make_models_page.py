"""Renews the table of networks in docs/models.md from the registry: python docs/make_models_page.py."""

from __future__ import annotations

from pathlib import Path

from vesalius.core.files import write_text
from vesalius.models import factory

PAGE = Path(__file__).with_name("models.md")
BEGIN, END = "<!-- registry: begin (made by docs/make_models_page.py) -->", "<!-- registry: end -->"


def table() -> str:
    """One row per registered network."""
    lines = ["| name | what it is | dimensions | source | licence |", "|---|---|---|---|---|"]
    for name in factory.names():
        card = factory.card(name)
        dims = " and ".join(str(number) for number in card.dims)
        lines.append(f"| `{name}` | {card.summary} | {dims} | {card.source} | {card.licence} |")
    return "\n".join(lines)


def page(text: str) -> str:
    """`text` with the table between the two marks renewed."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table()}\n{END}{after}"


if __name__ == "__main__":
    write_text(PAGE, page(PAGE.read_text(encoding="utf-8")))
