"""Every message id in every language, with the same placeholders, translated, and set as that language is set."""

import gettext
import re
import string
from collections import Counter
from typing import Any

import pytest
from babel import Locale
from babel.messages.catalog import Catalog
from babel.messages.pofile import read_po

from app import errors
from app.errors import GatewayError
from app.i18n import LANGUAGES, LOCALES

OTHERS = LANGUAGES[1:]

SAME_AS_ENGLISH: dict[tuple[str, str], str] = {}
"""(language, message id): why this translation reads like the English text."""


def _catalogue(language: str) -> Catalog:
    with (LOCALES / language / "LC_MESSAGES" / "messages.po").open("rb") as file:
        return read_po(file, abort_invalid=True)


CATALOGUES = {language: _catalogue(language) for language in LANGUAGES}


def _id(message: Any) -> str:
    return message.id[0] if message.pluralizable else message.id


def _entries(language: str) -> dict[str, tuple[str, ...]]:
    """The texts of each message id: one, or one for each plural form."""
    return {
        _id(message): message.string if message.pluralizable else (message.string,)
        for message in CATALOGUES[language]
        if message.id
    }


def _placeholders(text: str) -> set[tuple[str, str | None]]:
    """Name and style of each."""
    return {(name, style) for _, name, style, _ in string.Formatter().parse(text) if name is not None}


def _classes(root: type[GatewayError] = GatewayError) -> set[type[GatewayError]]:
    return set().union(*({child} | _classes(child) for child in root.__subclasses__()))


def test_the_six_languages_are_all_there_is() -> None:
    assert sorted(path.name for path in LOCALES.iterdir()) == sorted(LANGUAGES)


def test_every_error_class_has_a_message() -> None:
    classes = _classes()
    assert len(classes) == errors.__doc__.count("- ")  # the tree in the docstring is drawn in full
    assert {error.code for error in classes} <= _entries("en").keys()


def test_every_message_belongs_to_an_error_class() -> None:
    codes = {error.code for error in _classes()}
    assert {message_id.partition(".")[0] for message_id in _entries("en")} <= codes


@pytest.mark.parametrize("language", LANGUAGES)
def test_no_id_stands_twice(language: str) -> None:
    text = (LOCALES / language / "LC_MESSAGES" / "messages.po").read_text()
    ids = re.findall(r'^msgid "(.+)"$', text, re.MULTILINE)
    assert [message_id for message_id, count in Counter(ids).items() if count > 1] == []
    assert not re.search(r"^#~|^#,", text, re.MULTILINE), "obsolete or flagged entries"


@pytest.mark.parametrize("language", OTHERS)
def test_ids_and_their_order_are_those_of_english(language: str) -> None:
    assert list(_entries(language)) == list(_entries("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_entries_are_whole(language: str) -> None:
    for message in CATALOGUES[language]:
        texts = message.string if message.pluralizable else (message.string,)
        assert all(text.strip() for text in texts if message.id), message.id
        assert not message.id or not message.fuzzy, message.id
        assert len(texts) == (CATALOGUES[language].num_plurals if message.pluralizable else 1), message.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_placeholders_and_their_styles_are_those_of_english(language: str) -> None:
    english = _entries("en")
    for message_id, texts in _entries(language).items():
        for text in texts:
            assert _placeholders(text) == _placeholders(english[message_id][0]), message_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_what_counts_has_plural_forms(language: str) -> None:
    for message in CATALOGUES[language]:
        if message.id:
            texts = message.string if message.pluralizable else (message.string,)
            assert message.pluralizable == (("n", "") in _placeholders(texts[0])), message.id


@pytest.mark.parametrize("language", LANGUAGES)
def test_plural_rule_is_that_of_the_language(language: str) -> None:
    """The gettext rule of the header agrees with CLDR's categories, apart from its 'many' of exact millions.

    CLDR has that category in Spanish and French for compact numbers ("1 million de jetons"); a number written in
    digits takes the ordinary plural there.
    """
    catalogue, locale = CATALOGUES[language], Locale.parse(language)
    counts = {"en": 2, "es": 2, "fr": 2, "de": 2, "ja": 1, "zh": 1}
    assert catalogue.num_plurals == counts[language]
    expected = {number: int(locale.plural_form(number) != "one") for number in [*range(1000), 1_000_000]}
    rule = gettext.c2py(catalogue.plural_expr)
    for number, form in expected.items():
        assert rule(number) == (form if catalogue.num_plurals > 1 else 0), number


@pytest.mark.parametrize("language", OTHERS)
def test_nothing_is_left_in_english(language: str) -> None:
    english = _entries("en")
    same = {
        (language, message_id)
        for message_id, texts in _entries(language).items()
        if set(texts) & set(english[message_id])
    }
    assert same == {key for key in SAME_AS_ENGLISH if key[0] == language}


CODE = re.compile(
    r"""X-[A-Z][A-Za-z-]+|Authorization: Bearer KEY|"truncate": true|ISO[ -]3166|\bJSON\b|\bNaN\b|US-CA"""
)


@pytest.mark.parametrize("language", OTHERS)
def test_names_and_codes_stay_as_they_are(language: str) -> None:
    def codes(text: str) -> list[str]:
        return sorted(code.replace("ISO-", "ISO ") for code in CODE.findall(text))

    english = _entries("en")
    for message_id, texts in _entries(language).items():
        for text in texts:
            assert codes(text) == codes(english[message_id][-1]), message_id


QUOTES = {"en": "“”", "es": "«»", "fr": "«»", "de": "„“", "ja": "「」", "zh": "“”"}


@pytest.mark.parametrize("language", LANGUAGES)
def test_typography(language: str) -> None:
    for message_id, texts in _entries(language).items():
        for text in (text.replace('"truncate": true', "") for text in texts):
            quotes = set(re.findall('["“”„«»「」]', text))
            assert quotes <= set(QUOTES[language]), message_id
            assert text[-1] == ("。" if language in ("ja", "zh") else "."), message_id
            assert "  " not in text, message_id
            assert "'" not in text, message_id
            if language == "fr":
                assert not re.search(r"[^\u202f][;!?]|« | »", text), message_id
                prose = text.replace("Authorization:", "")
                assert not re.search(r"[^\u00a0]:(?!or\}|exact\}|raw\})", prose), message_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_header_names_the_language(language: str) -> None:
    assert str(CATALOGUES[language].locale) == language
    assert CATALOGUES[language].charset == "utf-8"
