"""The served models, loaded once for this folder, and a hundred texts unlike each other."""

import pytest

from regions.models.load import load
from regions.settings import WorkerSettings


@pytest.fixture(scope="session")
def shared():
    return {}


@pytest.fixture(scope="session")
def exact():
    return WorkerSettings(precision="fp32")


@pytest.fixture(scope="session")
def minilm(shared, exact):
    return load("minilm", exact, shared)


@pytest.fixture(scope="session")
def minilm_moe(shared, exact):
    return load("minilm-moe", exact, shared)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """A hundred: one token, scripts and emoji, control characters, long ones up to 256 tokens, and ordinary text."""
    odd = [
        "a",
        "?",
        "hello world",
        "  spaced   out\ttext \n",
        "Zürich ist schön, und Ärger gibt es auch dort.",
        "Ça va? Où êtes-vous allés l'été dernier?",
        "東京の天気は晴れです。",
        "我们的产品支持多种语言。",
        "Привет, как дела?",
        "مرحبا بالعالم",
        "नमस्ते दुनिया",
        "안녕하세요 세계",
        "emoji 🎉🚀 and flags 🇩🇪🇫🇷 and a family 👨‍👩‍👧",
        "zero\u200bwidth and nul\x00 and bell\x07",
        "e\u0301 is not é until it is composed",
        "[CLS] [SEP] [MASK] [PAD] [UNK] in the text itself",
        "https://example.com/a/b?c=d&e=f#g",
        "x" * 300,
        "supercalifragilisticexpialidocious antidisestablishmentarianism",
        "SELECT * FROM t WHERE a = 'b' -- c",
        "word " * 254,
        "one two three " * 80,
    ]
    themes = ["harbour", "enzyme", "contract", "violin", "glacier", "compiler", "mortgage", "orchard", "goalkeeper"]
    ordinary = [
        " ".join(f"The {theme} number {n} was seen by {n * 7} people near the {themes[n % 9]}." for n in range(1, size))
        for theme in themes
        for size in range(2, 11)
    ]
    return (odd + ordinary)[:100]
