"""Writes the tables of metrics.md from the catalog, between its markers. Run: python docs/render_metrics.py."""

from pathlib import Path

from smpd.metrics.catalog import FAMILIES

PAGE = Path(__file__).parent.joinpath("reference", "metrics.md")


def render(page: str) -> str:
    """The page with a fresh table between its markers."""
    head, rest = page.split("<!-- metrics -->\n")
    _, tail = rest.split("<!-- end metrics -->\n")
    return f"{head}<!-- metrics -->\n{_table()}<!-- end metrics -->\n{tail}"


def _table() -> str:
    rows = ["| metric | kind | labels | what it says |", "|---|---|---|---|"]
    for family in FAMILIES.values():
        labels = ", ".join(f"`{label}`" for label in family.labels)
        rows.append(f"| `{family.name}` | {family.kind} | {labels} | {family.help} |")
    return "\n".join(rows) + "\n"


if __name__ == "__main__":
    PAGE.write_text(render(PAGE.read_text()))
