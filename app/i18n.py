"""The six languages of the gateway: which one a caller reads, and what a message id says in it.

Catalogues are plain `.po` files whose msgid is the code of an error, read once at start and frozen. A placeholder may
carry a style after a colon: `{hosts:or}` joins a list with the language's "or" instead of "and", `{limit:exact}` leaves
a duration unrounded, `{shape:raw}` formats nothing.
"""

import gettext
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from functools import lru_cache
from math import ceil
from pathlib import Path
from string import Formatter
from types import MappingProxyType
from typing import Any, Final, Literal

import structlog
from babel import Locale
from babel.dates import format_date, format_datetime, format_timedelta
from babel.lists import format_list
from babel.messages.pofile import read_po
from babel.numbers import format_decimal

LANGUAGES: Final = ("en", "es", "fr", "de", "ja", "zh")
"""In the order of preference for a caller who states none; the first is the language of last resort."""

LOCALES: Final = Path(__file__).resolve().parent.parent / "locales"
"""Where the catalogues lie, in a checkout and in an installed wheel alike."""

_STYLES: Final = frozenset({"", "or", "exact", "raw"})
_FALLBACK: Final = "internal_error"
_NOTHING: Final = "\N{EN DASH}"
_STRING_LIMIT: Final = 200
_HEADER_LIMIT: Final = 1024
_HEADERS_KEPT: Final = 256
_MINUTE, _HOUR = 60, 3600

log = structlog.get_logger("tidegate.i18n")


@dataclass(frozen=True, slots=True)
class _Slot:
    name: str
    style: str


@dataclass(frozen=True, slots=True)
class _Catalogue:
    """One language: for each message id its templates, one for each plural form; a template is text and slots."""

    locale: Locale
    plural: Callable[[int], int]
    templates: Mapping[str, tuple[tuple[str | _Slot, ...], ...]]


class Translator:
    """Messages in six languages; immutable once built, so that any number of requests may share it.

    Raises `OSError` where a catalogue is missing and `ValueError` where one cannot be read. With `strict` an unknown
    message id or a missing value is a `KeyError`; without, the caller is told what the code alone says, or else of an
    internal error, and the log is told why.
    """

    __slots__ = ("_catalogues", "_look_up", "_strict")

    def __init__(self, directory: Path, *, strict: bool = False) -> None:
        self._catalogues = MappingProxyType({language: _read(directory, language) for language in LANGUAGES})
        self._strict = strict
        # Asked for every request, and few callers differ; the bound on length bounds the memory.
        self._look_up = lru_cache(maxsize=_HEADERS_KEPT)(_look_up)

    def negotiate(self, accept_language: str | None) -> str:
        """The language for this Accept-Language header (RFC 9110 section 12.5.4, RFC 4647 section 3.4); never raises.

        A header that breaks the grammar counts as absent; of a very long one only the first ranges count.
        """
        if accept_language is None:
            return LANGUAGES[0]
        if len(accept_language) > _HEADER_LIMIT:
            accept_language = accept_language[:_HEADER_LIMIT].rpartition(",")[0]
        return self._look_up(accept_language)

    def message(self, message_id: str, language: str, values: Mapping[str, Any]) -> str:
        """What this id says in one of `LANGUAGES`; the plural form follows the value `n`."""
        catalogue = self._catalogues[language]
        templates = catalogue.templates.get(message_id)
        if templates is None:
            if self._strict:
                raise KeyError(message_id)
            log.error("unknown message id", message_id=message_id)
            # A worker of a newer release may name a detail that this one has never heard of.
            code = message_id.partition(".")[0]
            templates = catalogue.templates.get(code) or catalogue.templates[_FALLBACK]
        count = values.get("n")
        form = catalogue.plural(count) if len(templates) > 1 and isinstance(count, int) else -1
        return "".join(
            part if isinstance(part, str) else self._fill(part, message_id, values, catalogue.locale)
            for part in templates[form]
        )

    def _fill(self, slot: _Slot, message_id: str, values: Mapping[str, Any], locale: Locale) -> str:
        if slot.name in values:
            return _show(values[slot.name], slot.style, locale)
        if self._strict:
            raise KeyError(f"{message_id}: {slot.name}")
        log.error("missing value in message", message_id=message_id, value=slot.name)
        return _NOTHING


def _look_up(header: str) -> str:
    from webob.acceptparse import create_accept_language_header  # noqa: PLC0415 - a start does not wait for its parsers

    accept = create_accept_language_header(header)
    # The default is the first language that the caller did not rule out: `en;q=0, *` reads anything but English.
    for default in LANGUAGES:
        found = accept.lookup(LANGUAGES, default_tag=default, default="")
        if found:
            return str(found)
    return LANGUAGES[0]


def _read(directory: Path, language: str) -> _Catalogue:
    with (directory / language / "LC_MESSAGES" / "messages.po").open("rb") as file:
        catalog = read_po(file, locale=language, abort_invalid=True)
    templates = {}
    for message in catalog:
        if message.id:  # the header's id is empty
            # A message with plural forms has pairs where another has text; babel's types do not tell them apart.
            message_id: Any = message.id[0] if message.pluralizable else message.id
            strings: Any = message.string if message.pluralizable else (message.string,)
            templates[str(message_id)] = tuple(_parse(text) for text in strings)
    return _Catalogue(Locale.parse(language), gettext.c2py(catalog.plural_expr), MappingProxyType(templates))


def _parse(text: str) -> tuple[str | _Slot, ...]:
    """Text and slots in turn; raises ValueError for a slot that is not a plain name with a known style."""
    parts: list[str | _Slot] = []
    for literal, name, style, conversion in Formatter().parse(text):
        parts.append(literal)
        if name is not None:
            if not name.isidentifier() or style not in _STYLES or conversion:
                raise ValueError(f"{text!r}: {{{name}}} is not a placeholder; write {{name}} or {{name:style}}")
            parts.append(_Slot(name, style))
    return tuple(parts)


def _show(value: Any, style: str, locale: Locale) -> str:
    """One value as this locale writes it."""
    if isinstance(value, str) or style == "raw":
        return _safe(str(value))
    if isinstance(value, bool):
        return "true" if value else "false"  # JSON's words, in every language
    if isinstance(value, int | float | Decimal):
        return format_decimal(value, locale=locale, decimal_quantization=False)
    if isinstance(value, date | timedelta):
        return _time(value, style, locale)
    items = () if value is None else [_show(item, "", locale) for item in value]
    return format_list(items, "or" if style == "or" else "standard", locale) if items else _NOTHING


def _time(value: date | timedelta, style: str, locale: Locale) -> str:
    if isinstance(value, timedelta):
        return _exact(value, locale) if style == "exact" else _wait(value, locale)
    if isinstance(value, datetime):
        return format_datetime(value, "long", tzinfo=UTC, locale=locale)
    return format_date(value, "long", locale=locale)


def _safe(text: str) -> str:
    """Text of unknown origin, fit for one line of a log or page: nothing invisible, and not much of it."""
    if len(text) > _STRING_LIMIT:
        text = text[: _STRING_LIMIT - 1] + "…"
    if not text.isprintable():
        text = "".join(c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text)
    return text or '""'


def _wait(duration: timedelta, locale: Locale) -> str:
    """A time to wait: at least a second, rounded up, so that a caller who obeys does not come too early.

    Hours are the largest unit: what follows a preposition keeps its form there ("in 48 Stunden", but "in 2 Tagen").
    """
    seconds = max(1, ceil(duration.total_seconds()))
    unit = 1 if seconds < 2 * _MINUTE else _MINUTE if seconds < 2 * _HOUR else _HOUR
    return _units(ceil(seconds / unit) * unit, unit, locale)


def _exact(duration: timedelta, locale: Locale) -> str:
    """A length of time that was set: in the largest unit of which it is a whole multiple, down to milliseconds."""
    milliseconds = -(-duration // timedelta(milliseconds=1))
    seconds, rest = divmod(milliseconds, 1000)
    if rest or not seconds:
        return f"{format_decimal(milliseconds, locale=locale)}\N{NO-BREAK SPACE}ms"
    unit = next(unit for unit in (_HOUR, _MINUTE, 1) if seconds % unit == 0 and (seconds >= 2 * unit or unit == 1))
    return _units(seconds, unit, locale)


def _units(seconds: int, unit: int, locale: Locale) -> str:
    names: Mapping[int, Literal["second", "minute", "hour"]] = {1: "second", _MINUTE: "minute", _HOUR: "hour"}
    # An unreachable threshold leaves the granularity to choose the unit.
    return format_timedelta(timedelta(seconds=seconds), names[unit], threshold=float("inf"), locale=locale)
