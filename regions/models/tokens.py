"""From text to token ids, within the model's limit."""

from pathlib import Path

from tokenizers import Tokenizer

from regions.wire import refusal

LIMIT = 256
"""Tokens of one text, with the two that mark its ends."""
_LONGEST_WORD = 100
"""Letters of the longest word that is looked up (`max_input_chars_per_word` of BERT's WordPiece), hence its tokens."""
CHARACTERS = LIMIT * 128
"""Characters that one text may have, runs of white space counted as one: what takes longer to read than to compute.

A token stands for at most `_LONGEST_WORD` letters and a space; the rest is room for marks that the tokenizer drops.
"""
_HEAD = LIMIT * 16
"""Characters that hold `LIMIT` tokens of nearly any text."""


class TextTokens:
    """The tokenizer of a checkpoint, without the truncation and padding that its file asks for."""

    def __init__(self, directory: Path) -> None:
        self._tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def encode(self, text: str, *, param: str, truncate: bool) -> tuple[list[int], bool]:
        """(ids with both end marks, whether the text was cut). Raises InvalidInput for an empty or too long text."""
        if not text or text.isspace():
            raise refusal("The text in {param} is empty", "empty_text", param)
        kept = _collapsed(text)
        if len(kept) > CHARACTERS and not truncate:
            told = "The text in {param} has {n} characters; at most {limit} are allowed"
            raise refusal(told, "text_characters", param, n=len(text), limit=CHARACTERS)
        ids = self._first(kept) if truncate else self._ids(kept)
        if len(ids) <= LIMIT:
            return ids, len(kept) > CHARACTERS
        if not truncate:
            told = "The text in {param} has {n} tokens; the model takes {limit}"
            raise refusal(told, "text_too_long", param, n=len(ids), limit=LIMIT)
        return [*ids[: LIMIT - 1], ids[-1]], True

    def _first(self, text: str) -> list[int]:
        """Ids of as much of `text` as the limit can need; the first `LIMIT - 1` are those of its first `CHARACTERS`."""
        if len(text) > _HEAD:
            ids = self._ids(text[:_HEAD])
            if len(ids) >= LIMIT + _LONGEST_WORD:  # only the tokens of the word that the cut went through may differ
                return ids
        return self._ids(text[:CHARACTERS])

    def _ids(self, text: str) -> list[int]:
        # Of the ways to encode, the one that lets other threads run meanwhile, and that keeps no offsets.
        ids: list[int] = self._tokenizer.encode_batch_fast([text])[0].ids
        return ids


def _collapsed(text: str) -> str:
    """A long text with its runs of white space made one space each, at least as far as `CHARACTERS` reach."""
    if len(text) <= CHARACTERS:
        return text
    # So many words with their spaces fill `CHARACTERS`: what follows them stays one piece, however long it is.
    return " ".join(text.split(maxsplit=CHARACTERS // 2))
