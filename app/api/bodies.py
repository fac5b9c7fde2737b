"""What a reader of `regions.wire` refuses, as the gateway's own error."""

from collections.abc import Iterator
from contextlib import contextmanager

from app.errors import InvalidRequest
from regions.wire import InvalidInput


@contextmanager
def refusals() -> Iterator[None]:
    """Turn `InvalidInput` into `InvalidRequest`, detail, param and values kept."""
    try:
        yield
    except InvalidInput as error:
        raise InvalidRequest(error.detail, param=error.param, **error.values) from None
