"""Negotiation of the language and formatting of messages, on the catalogues that ship."""

import shutil
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

import pytest
import structlog
from hypothesis import example, given, settings
from hypothesis import strategies as st

from app.i18n import LANGUAGES, LOCALES, Translator

NBSP, NNBSP = "\N{NO-BREAK SPACE}", "\N{NARROW NO-BREAK SPACE}"
ENGLISH = "en"


@pytest.fixture(scope="module")
def translator() -> Translator:
    return Translator(LOCALES, strict=True)


@pytest.mark.parametrize(
    ("header", "language"),
    [
        (None, "en"),
        ("", "en"),
        ("de", "de"),
        ("DE", "de"),
        ("de-AT", "de"),
        ("de-AT, en;q=0.5", "de"),
        ("zh-Hans-CN", "zh"),
        ("zh-TW", "zh"),
        ("zh-Hant-CN-x-private1-private2", "zh"),  # RFC 4647 section 3.4, the fallback pattern
        ("de-CH-1996", "de"),
        ("ja-x-old-style", "ja"),  # a single-letter subtag goes together with what follows it
        ("da, en-gb;q=0.8, en;q=0.7", "en"),  # RFC 9110 section 12.5.4
        ("fr-CH, fr;q=0.9, en;q=0.8, de;q=0.7, *;q=0.5", "fr"),
        ("en;q=0.5, ja;q=0.9", "ja"),
        ("es, fr", "es"),
        ("fr;q=0.5, es;q=0.5", "fr"),  # a tie goes to what stands first
        ("fr;q=0.001, pt", "fr"),
        ("pt", "en"),
        ("pt-BR, es;q=0.1", "es"),
        ("*", "en"),
        ("*;q=0.5, pt", "en"),
        ("en;q=0, *", "es"),
        ("en;q=0, es;q=0.0, *;q=0.1", "fr"),
        ("de;q=0, de-AT, ja;q=0.1", "ja"),
        ("*;q=0", "en"),  # something has to be said
        ("*;q=0, zh;q=0.2", "zh"),
        ("de;q=1.5", "en"),
        ("de;q=0.1234, ja", "en"),
        ("de_AT", "en"),
        ("de;level=1", "en"),
        ("toolonglanguage, de", "en"),
        (", de ,", "de"),
        ("de\x00", "en"),
        ("dé", "en"),
        ("ja," + "xx-yy," * 100_000, "ja"),
        ("xx," * 1000 + "ja", "en"),  # behind the bound
        ("de-" * 50_000 + "x", "en"),
    ],
)
def test_negotiates(translator: Translator, header: str | None, language: str) -> None:
    assert translator.negotiate(header) == language


@settings(deadline=None)
@given(st.text(max_size=3000) | st.text("adefhnjrsz-*;q=0.19, ", max_size=200))
@example("de;q=" + "9" * 2000)
def test_any_header_reads_one_of_the_six(header: str) -> None:
    assert SHARED.negotiate(header) in LANGUAGES


SHARED = Translator(LOCALES)

_RANGES = st.lists(
    st.tuples(st.sampled_from([*LANGUAGES, "pt", "nl"]), st.integers(0, 1000)), min_size=1, unique_by=lambda r: r[0]
)


@settings(deadline=None)
@given(_RANGES)
def test_highest_quality_wins_and_zero_excludes(ranges: list[tuple[str, int]]) -> None:
    found = SHARED.negotiate(", ".join(f"{name};q={quality / 1000:.3f}" for name, quality in ranges))
    known = {name: quality for name, quality in ranges if name in LANGUAGES}
    if any(known.values()):
        assert known[found] == max(known.values())
    elif len(known) < len(LANGUAGES):
        assert found not in known


@pytest.mark.parametrize(
    ("language", "text"),
    [
        ("en", "The request holds 10,000 inputs; at most 128 are allowed."),
        ("es", "La solicitud contiene 10.000 entradas; se permiten 128 como máximo."),
        ("fr", f"La requête contient 10{NNBSP}000 entrées{NNBSP}; maximum autorisé{NBSP}: 128."),
        ("de", "Die Anfrage enthält 10.000 Eingaben; zulässig sind höchstens 128."),
        ("ja", "リクエストに 10,000 件の入力が含まれています。上限は 128 件です。"),
        ("zh", "请求包含 10,000 个输入，最多允许 128 个。"),  # noqa: RUF001 - Chinese punctuation
    ],
)
def test_numbers_as_the_locale_writes_them(translator: Translator, language: str, text: str) -> None:
    assert translator.message("invalid_request.batch_too_large", language, {"n": 10_000, "limit": 128}) == text


@pytest.mark.parametrize(
    ("language", "forms"),
    [
        ("en", {0: "attempts", 1: "attempt)", 2: "attempts"}),
        ("es", {0: "intentos", 1: "intento)", 2: "intentos"}),
        ("fr", {0: "tentative)", 1: "tentative)", 2: "tentatives"}),  # French counts zero as one
        ("de", {0: "Versuche)", 1: "Versuch)", 2: "Versuche)"}),
        ("ja", {0: "試行 0 回", 1: "試行 1 回", 2: "試行 2 回"}),
        ("zh", {0: "尝试 0 次", 1: "尝试 1 次", 2: "尝试 2 次"}),
    ],
)
def test_plural_follows_n(translator: Translator, language: str, forms: dict[int, str]) -> None:
    for n, form in forms.items():
        assert form in translator.message("upstream_failed", language, {"n": n})


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        (0.0, ["1 second", "1 segundo", f"1{NBSP}seconde", "1 Sekunde", "1 秒", "1秒钟"]),
        (-3.0, ["1 second", "1 segundo", f"1{NBSP}seconde", "1 Sekunde", "1 秒", "1秒钟"]),
        (0.4, ["1 second", "1 segundo", f"1{NBSP}seconde", "1 Sekunde", "1 秒", "1秒钟"]),
        (1.5, ["2 seconds", "2 segundos", f"2{NBSP}secondes", "2 Sekunden", "2 秒", "2秒钟"]),
        (119.0, ["119 seconds", "119 segundos", f"119{NBSP}secondes", "119 Sekunden", "119 秒", "119秒钟"]),
        (121.0, ["3 minutes", "3 minutos", "3 minutes", "3 Minuten", "3 分", "3分钟"]),
        (7201.0, ["3 hours", "3 horas", f"3{NBSP}heures", "3 Stunden", "3 時間", "3小时"]),
        (172_800.0, ["48 hours", "48 horas", f"48{NBSP}heures", "48 Stunden", "48 時間", "48小时"]),
    ],
)
def test_waits_are_rounded_up(translator: Translator, seconds: float, texts: list[str]) -> None:
    for language, text in zip(LANGUAGES, texts, strict=True):
        assert text in translator.message("rate_limited", language, {"retry_after": timedelta(seconds=seconds)})


@pytest.mark.parametrize(
    ("seconds", "texts"),
    [
        (0.25, [f"250{NBSP}ms"] * 6),
        (1.5, [f"{n}{NBSP}ms" for n in ("1,500", "1.500", f"1{NNBSP}500", "1.500", "1,500", "1,500")]),
        (30.0, ["30 seconds", "30 segundos", f"30{NBSP}secondes", "30 Sekunden", "30 秒", "30秒钟"]),
        (120.0, ["2 minutes", "2 minutos", "2 minutes", "2 Minuten", "2 分", "2分钟"]),
        (150.0, ["150 seconds", "150 segundos", f"150{NBSP}secondes", "150 Sekunden", "150 秒", "150秒钟"]),
        (7200.0, ["2 hours", "2 horas", f"2{NBSP}heures", "2 Stunden", "2 時間", "2小时"]),
    ],
)
def test_limits_are_told_unrounded(translator: Translator, seconds: float, texts: list[str]) -> None:
    for language, text in zip(LANGUAGES, texts, strict=True):
        message = translator.message("deadline_exceeded", language, {"limit": timedelta(seconds=seconds)})
        assert text in message


@settings(deadline=None)
@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=2)))
def test_an_obedient_caller_never_comes_too_early(wait: timedelta) -> None:
    text = SHARED.message("rate_limited", ENGLISH, {"retry_after": wait}).removesuffix(".").split()
    unit = {"second": 1, "seconds": 1, "minutes": 60, "hours": 3600}[text[-1]]
    assert int(text[-2]) >= 1
    assert wait.total_seconds() <= int(text[-2]) * unit < wait.total_seconds() + max(unit, 1) + 1


@pytest.mark.parametrize(
    ("language", "conjunction", "alternative"),
    [
        ("en", "a, b, and c", "x or y"),
        ("es", "a, b y c", "x o y"),
        ("fr", "a, b et c", "x ou y"),
        ("de", "a, b und c", "x oder y"),
        ("ja", "a、b、c", "xまたはy"),
        ("zh", "a、b和c", "x或y"),
    ],
)
def test_lists_are_joined(translator: Translator, language: str, conjunction: str, alternative: str) -> None:
    known = translator.message("unknown_region", language, {"region": "z", "regions": ["a", "b", "c"]})
    assert conjunction in known
    hosts = translator.message("misdirected", language, {"region": "z", "hosts": ("x", "y")})
    assert alternative in hosts


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("", '""'),
        ("plain {param} {0}", "plain {param} {0}"),
        ("a\r\nb\x1b[31m", r"a\r\nb\x1b[31m"),
        ("right\u202eleft\u2028line", r"right\u202eleft\u2028line"),
        ("half \ud800 surrogate", r"half \ud800 surrogate"),
        ("Zürich 東京", "Zürich 東京"),
        (None, "–"),  # noqa: RUF001 - the dash that stands for nothing
        ([], "–"),  # noqa: RUF001 - the dash that stands for nothing
        (True, "true"),
        (10_000, "10.000"),
        (1234.5, "1.234,5"),
        (float("inf"), "∞"),
        (Decimal("0.0001"), "0,0001"),
        (date(2026, 11, 22), "22. November 2026"),
        (datetime(2026, 11, 22, 10, 5, tzinfo=UTC), "22. November 2026, 10:05:00 UTC"),
    ],
)
def test_values(translator: Translator, value: object, text: str) -> None:
    message = translator.message("invalid_request.header", "de", {"param": "X-Region", "value": value})
    assert message == f"Der Wert des Headers X-Region ist nicht lesbar: {text}."


def test_long_values_are_cut(translator: Translator) -> None:
    message = translator.message("not_found", "en", {"path": "/" + "x" * 100_000})
    assert len(message) < 250
    assert message.endswith("x….")


def test_a_shape_is_no_prose(translator: Translator) -> None:
    values = {"name": "input", "shape": [1, 76_800], "expected": "[n, 768]"}
    text = "Der Tensor input hat die Form [1, 76800]; erwartet wird [n, 768]."
    assert translator.message("invalid_request.tensor_shape", "de", values) == text


@settings(deadline=None)
@given(st.sampled_from(LANGUAGES), st.text(max_size=400))
def test_no_value_breaks_a_line(language: str, value: str) -> None:
    message = SHARED.message("invalid_request.header", language, {"param": "X-Region", "value": value})
    assert len(message.splitlines()) == 1
    message.encode()


def test_strict_raises_for_what_is_missing(translator: Translator) -> None:
    with pytest.raises(KeyError, match="no_such_code"):
        translator.message("no_such_code", "de", {})
    with pytest.raises(KeyError, match="tenant"):
        translator.message("forbidden", "de", {})
    with pytest.raises(KeyError, match="pt"):
        translator.message("forbidden", "pt", {"tenant": "demo"})


def test_production_says_what_it_can_and_logs_why() -> None:
    with structlog.testing.capture_logs() as logs:
        message = SHARED.message("no_such_code", "de", {"request_id": "r-1"})
        assert SHARED.message("forbidden.scope", "de", {}) == "Diesem Schlüssel fehlt die Berechtigung –."  # noqa: RUF001 - as above
        assert SHARED.message("not_found.newer_detail", "de", {"path": "/x"}) == "Unter /x gibt es nichts."
    assert message == SHARED.message("internal_error", "de", {"request_id": "r-1"})
    assert [entry["message_id"] for entry in logs] == ["no_such_code", "forbidden.scope", "not_found.newer_detail"]


@pytest.fixture
def copied(tmp_path: Path) -> Path:
    return Path(shutil.copytree(LOCALES, tmp_path / "locales"))


@pytest.mark.parametrize("slot", ["{param.__class__}", "{param[0]}", "{}", "{param!r}", "{param:.3f}", "{param"])
def test_refuses_a_catalogue_with_odd_placeholders(copied: Path, slot: str) -> None:
    file = copied / "ja" / "LC_MESSAGES" / "messages.po"
    file.write_text(file.read_text().replace("{param}", slot, 1))
    with pytest.raises(ValueError, match=r"param|placeholder|expected '}'"):
        Translator(copied)


def test_a_missing_catalogue_stops_the_start(copied: Path) -> None:
    shutil.rmtree(copied / "zh")
    with pytest.raises(FileNotFoundError):
        Translator(copied)
