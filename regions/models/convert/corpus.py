"""The text that a conversion learns from and is judged by: what gensim ships, and files that the user names.

Nothing that the evaluation reads is trained on.
"""

import bz2
import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

HELD_OUT = 500
SEED = 1
_WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"
_SENTENCE_END = re.compile(r"(?<=[.!?]) +(?=[A-Z\"(])")
_SHORTEST, _LONGEST = 12, 1600
"""Characters of a text that is trained on."""
_SPANS = (1, 1, 1, 2, 2, 3, 5, 8)
"""Sentences of one text; drawn from, so that short texts are the most, as they are in requests."""


class CorpusError(Exception):
    """Text that a conversion needs cannot be had; `str()` is one line for the operator."""


@dataclass(frozen=True, slots=True)
class Rated:
    """Two words and how alike people found them, on the scale of its set."""

    first: str
    second: str
    rating: float


def training_texts(files: Sequence[Path]) -> list[str]:
    """Texts of one to eight sentences out of gensim's sample of Wikipedia and `files`, without doubles, shuffled.

    A file is UTF-8 text with a paragraph a line. The same files give the same texts. Raises CorpusError.
    """
    paragraphs = [*_wikipedia(), *(line for file in files for line in _lines(file))]
    draw = random.Random(SEED)  # noqa: S311 - chance that must repeat, not secrets
    texts = [text for paragraph in paragraphs for text in _spans(paragraph, draw)]
    kept = list(dict.fromkeys(text for text in texts if _SHORTEST <= len(text) <= _LONGEST))
    draw.shuffle(kept)
    return kept


def held_out_texts() -> list[str]:
    """HELD_OUT texts of kinds that are not trained on: news (Lee et al. 2005) and film reviews (Pang & Lee 2005)."""
    draw = random.Random(SEED)  # noqa: S311 - as above
    reviews = [line.split(" ", 1)[1] for line in _latin("pang_lee_polarity.cor")]
    news = _latin("lee.cor")
    more = [text for line in _latin("lee_background.cor") for text in _spans(line, draw)]
    draw.shuffle(more)
    texts = [*reviews, *news, *(text for line in news for text in _spans(line, draw)), *more]
    kept = dict.fromkeys(" ".join(text.split()) for text in texts)
    return [text for text in kept if len(text) >= _SHORTEST][:HELD_OUT]


def rated_pairs() -> dict[str, list[Rated]]:
    """Human judgements by name of their set: WordSim-353 (Finkelstein 2002) and SimLex-999 (Hill et al. 2015)."""
    return {name: _rated(file) for name, file in (("WordSim-353", "wordsim353.tsv"), ("SimLex-999", "simlex999.txt"))}


def _rated(file: str) -> list[Rated]:
    lines = _shipped(file).read_text(encoding="utf-8").splitlines()
    rows = [line.split("\t") for line in lines if line and not line.startswith("#")]
    return [Rated(first, second, float(rating)) for first, second, rating, *_ in rows]


def _wikipedia() -> Iterator[str]:
    source = _shipped(_WIKIPEDIA)
    # An extra that only conversions have, and that takes a second to import.
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki  # noqa: PLC0415 - see above

    with bz2.open(source) as file:
        for _, markup, _ in extract_pages(file, ("0",)):
            for line in filter_wiki(markup).splitlines():
                yield re.sub(r"'{2,}|={2,}|^[*#:;|!]+", " ", line)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise CorpusError(f"{file}: cannot be read ({error.strerror}); name a text file") from error
    except UnicodeDecodeError as error:
        raise CorpusError(f"{file}: is not UTF-8; save it as UTF-8") from error


def _spans(paragraph: str, draw: random.Random) -> Iterator[str]:
    sentences = _SENTENCE_END.split(" ".join(paragraph.split()))
    while sentences:
        size = draw.choice(_SPANS)
        yield " ".join(sentences[:size])
        sentences = sentences[size:]


def _latin(name: str) -> list[str]:
    return _shipped(name).read_text(encoding="latin-1").splitlines()


def _shipped(name: str) -> Path:
    """A file of gensim's test data."""
    spec = find_spec("gensim")
    if spec is None or not spec.submodule_search_locations:
        raise CorpusError("the package gensim is not installed; pip install 'tidegate[convert]'")
    path = Path(spec.submodule_search_locations[0], "test", "test_data", name)
    if not path.is_file():
        raise CorpusError(f"{path} is missing; pip install --force-reinstall gensim")
    return path
