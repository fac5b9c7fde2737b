"""From text to token ids, within the model's limit."""

from pathlib import Path

from tokenizers import Tokenizer

from regions.wire import refusal

LIMIT = 256
"""Tokens of one text, with the two that mark its ends."""


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
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) <= LIMIT:
            return ids, False
        if not truncate:
            text = "The text in {param} has {n} tokens; the model takes {limit}"
            raise refusal(text, "text_too_long", param, n=len(ids), limit=LIMIT)
        return [*ids[: LIMIT - 1], ids[-1]], True
