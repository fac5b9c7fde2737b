"""A stream's end comes exactly once, also where its client left before it took a part."""

from collections.abc import AsyncGenerator

import pytest

from app.delivery import Stream


@pytest.mark.parametrize(("taken", "ended"), [(0, ["unread"]), (1, ["parts"]), (2, ["parts"]), (3, ["parts"])])
async def test_a_stream_ends_once_wherever_it_is_left(taken: int, ended: list[str]) -> None:
    ends = []

    async def parts() -> AsyncGenerator[bytes]:
        try:
            yield b"a"
            yield b"b"
        finally:
            ends.append("parts")

    async def unread() -> None:
        ends.append("unread")

    stream = Stream(parts(), unread)
    for _ in range(taken):
        await anext(stream, None)
    await stream.aclose()
    await stream.aclose()
    assert ends == ended
