"""Answers to several texts as the answers to each: an embedding depends on its own text alone. Pure.

An answer is taken apart and put together around its vectors, whose bytes stay as they came (`msgspec.Raw`).
"""

from collections.abc import Sequence
from itertools import accumulate

import msgspec


class _Item(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    object: str = "embedding"
    index: int
    embedding: msgspec.Raw


class _Usage(msgspec.Struct, forbid_unknown_fields=True):
    prompt_tokens: int
    total_tokens: int


class _Answer(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """OpenAI's answer of embeddings. One that says more says it of all its texts together, and is not taken apart."""

    object: str = "list"
    data: list[_Item]
    model: str
    usage: _Usage


_decode = msgspec.json.Decoder(_Answer).decode
_encode = msgspec.json.Encoder().encode


def split(body: bytes, texts: Sequence[str]) -> list[bytes] | None:
    """For each text the answer that it would have had alone; None where the answer cannot be taken apart.

    The tokens, which the answer counts together, are shared out by the texts' lengths and add up to the same.
    """
    answer = _read(body, len(texts))
    if answer is None:
        return None
    tokens = _shared(answer.usage.total_tokens, [len(text) or 1 for text in texts])
    return [_encode(_answer([item], answer.model, share)) for item, share in zip(answer.data, tokens, strict=True)]


def merged(answers: Sequence[bytes]) -> bytes | None:
    """One answer out of those to each text; None where they are not of one model."""
    items: list[_Item] = []
    tokens = 0
    models = set()
    for body in answers:
        answer = _read(body, 1)
        if answer is None:
            return None
        items += answer.data
        tokens += answer.usage.total_tokens
        models.add(answer.model)
    if len(models) != 1:
        return None
    return _encode(_answer(items, models.pop(), tokens))


def _answer(items: Sequence[_Item], model: str, tokens: int) -> _Answer:
    data = [_Item(index=index, embedding=item.embedding) for index, item in enumerate(items)]
    return _Answer(data=data, model=model, usage=_Usage(tokens, tokens))


def _read(body: bytes, count: int) -> _Answer | None:
    try:
        answer = _decode(body)
    except msgspec.DecodeError:
        return None
    answer.data.sort(key=lambda item: item.index)
    usage = answer.usage
    sound = [item.index for item in answer.data] == list(range(count)) and usage.prompt_tokens == usage.total_tokens
    return answer if sound else None


def _shared(total: int, lengths: Sequence[int]) -> list[int]:
    """Whole numbers in proportion to the lengths, whose sum is the total."""
    whole = sum(lengths)
    ends = [total * end // whole for end in accumulate(lengths)]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
