"""From text to token ids, within the model's limit."""

from pathlib import Path

from tokenizers import Tokenizer

from regions.wire import InvalidInput

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
            raise InvalidInput(f"The text in {param} is empty.", detail="empty_text", param=param)
        ids: list[int] = self._tokenizer.encode(text).ids
        if len(ids) <= LIMIT:
            return ids, False
        if not truncate:
            raise InvalidInput(
                f"The text in {param} has {len(ids)} tokens; the model takes {LIMIT}. "
                'Shorten it, or send "truncate": true.',
                detail="text_too_long",
                param=param,
                n=len(ids),
                limit=LIMIT,
            )
        return [*ids[: LIMIT - 1], ids[-1]], True
