"""How a report is written: Markdown to read, JSON and CSV to go on with. Pure, and the same report is the same text.

Text that a caller, or whoever wrote the configuration, chose is made harmless in each: it can neither break a table nor
be taken for markup, nor for a formula by a spreadsheet (https://owasp.org/www-community/attacks/CSV_Injection).
"""

import csv
import json
import re
from collections.abc import Iterator
from typing import Final

from app.audit.report.document import Report
from app.audit.report.tables import Cell, Section

TO_BE_FILLED_IN: Final = "to be filled in by the controller"

_MARKUP: Final = re.compile(r"([\\`*_{}\[\]<>&|~#])")
_CONTROLS: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_FORMULA: Final = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]")
_HEAD: Final = ("law", "from", "to", "tenant", "section", "source", "row", "column", "value")


def markdown(report: Report) -> str:
    """One table a section; an empty one says so."""
    period = f"Period: {report.period.first} to {report.period.last}, both included, UTC."
    tenant = f" Tenant: {_text(report.tenant)}." if report.tenant else ""
    made = (
        f"From Tidegate's audit trail and configuration; *{TO_BE_FILLED_IN}*: what neither can know. Not legal advice."
    )
    lines = [f"# {report.title}", "", f"{period}{tenant} {made}"]
    for number, section in enumerate(report.sections, 1):
        lines += ["", f"## {number}. {section.title}", "", f"Source: {section.source}.", "", *_table(section)]
        for note in section.notes:
            lines += ["", note]
    return "\n".join(lines) + "\n"


def as_json(report: Report) -> str:
    """An object with a list of sections; each row an object by column. Null is for the controller to fill in."""
    content = {
        "law": report.law,
        "title": report.title,
        "from": str(report.period.first),
        "to": str(report.period.last),
        "tenant": report.tenant,
        "null": TO_BE_FILLED_IN,
        "sections": [
            {
                "id": section.id,
                "title": section.title,
                "source": section.source,
                "notes": list(section.notes),
                "columns": list(section.columns),
                "rows": [dict(zip(section.columns, row, strict=True)) for row in section.rows],
            }
            for section in report.sections
        ],
    }
    return json.dumps(content, ensure_ascii=False, indent=2) + "\n"


def as_csv(report: Report) -> str:
    """One line a cell, as the tables have different columns: a spreadsheet's pivot puts any of them together again."""
    text = _Text()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEAD)
    period = (str(report.period.first), str(report.period.last))
    for section in report.sections:
        for number, row in enumerate(section.rows, 1):
            for column, value in zip(section.columns, row, strict=True):
                place = (report.law, *period, report.tenant or "", section.id, section.source, number, column)
                writer.writerow([_plain(cell) for cell in (*place, value)])
    return "".join(text)


class _Text(list[str]):
    """What a csv writer writes to."""

    def write(self, part: str) -> None:
        self.append(part)


def _table(section: Section) -> Iterator[str]:
    if not section.rows:
        yield "None in the period."
        return
    yield _line(section.columns)
    yield _line(["---:" if _numeric(section, place) else "---" for place in range(len(section.columns))])
    for row in section.rows:
        yield _line([f"*{TO_BE_FILLED_IN}*" if cell is None else _text(cell) for cell in row])


def _numeric(section: Section, place: int) -> bool:
    return all(isinstance(row[place], int) for row in section.rows)


def _line(cells: list[str] | tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def _text(value: str | int) -> str:
    return _MARKUP.sub(r"\\\1", _CONTROLS.sub(" ", str(value)))


def _plain(value: Cell) -> str | int:
    if value is None:
        return TO_BE_FILLED_IN
    if isinstance(value, int):
        return value
    text = _CONTROLS.sub(" ", value)
    return f"'{text}" if _FORMULA.match(text) else text
