"""Reading bodies: off the event loop where they are large, and what the reader refuses as the gateway's own error."""

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final

from app.config import Settings
from app.errors import InvalidRequest
from app.types import Call
from regions.wire import InvalidInput

_LARGE = 64 << 10
"""Bytes above which reading takes longer than handing the work to a thread."""

_DEPTH: Final = {"minimal": 256, "standard": 64, "strict": 32}
"""Levels that a JSON body may nest, by gateway.security."""


def depth_of(settings: Settings) -> int:
    """How deep a JSON body may nest."""
    return _DEPTH[settings.gateway.security]


async def read_call(to_call: Callable[..., Call], *arguments: Any) -> Call:
    """`to_call(*arguments)`, in a thread where a body among the arguments is large: other requests go on meanwhile."""
    if any(isinstance(one, bytes) and len(one) > _LARGE for one in arguments):
        return await asyncio.to_thread(to_call, *arguments)
    return to_call(*arguments)


@contextmanager
def refusals() -> Iterator[None]:
    """Turn `InvalidInput` into `InvalidRequest`, detail, param and values kept."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidRequest(error.detail, param=error.param, **error.values) from None
