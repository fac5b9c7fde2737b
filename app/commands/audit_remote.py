"""What the commands of `tidegate audit` ask of a running gateway with `--url`."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Self

import click
import httpx
import orjson

_PATIENCE = 600.0
"""Seconds to wait for the next byte of an answer: a full check of a large trail takes minutes."""


class Unanswered(click.ClickException):
    """The gateway could not be reached, or refused with `status`; the message says which and why."""

    def __init__(self, message: str, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class Remote:
    """A gateway's API, asked with a key; a context. Every method may raise `Unanswered`."""

    def __init__(self, url: str, key: str) -> None:
        self._url = url.rstrip("/")
        timeout = httpx.Timeout(10.0, read=_PATIENCE)
        self._client = httpx.Client(
            headers={"Authorization": f"Bearer {key}"},
            timeout=timeout,
            trust_env=False,  # no proxy gets to see the key, nor whom it is about
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> Any:
        """The JSON at a path."""
        return self._json("GET", path, parameters)

    def post(self, path: str, content: Mapping[str, Any]) -> Any:
        """The JSON that a path answers to this."""
        return self._json("POST", path, content=content)

    def delete(self, path: str) -> Any:
        """The JSON that a path answers to being deleted."""
        return self._json("DELETE", path)

    def _json(
        self,
        method: str,
        path: str,
        parameters: Mapping[str, str] | None = None,
        content: Mapping[str, Any] | None = None,
    ) -> Any:
        with self._answer(path, parameters, method, content) as response:
            try:
                return orjson.loads(response.read())
            except orjson.JSONDecodeError as error:
                raise Unanswered(f"{self._url}{path} answered something else than JSON") from error

    def lines(self, path: str, parameters: Mapping[str, str]) -> Iterator[bytes]:
        """The lines of an answer as they come, each with its newline."""
        return self._lines(path, parameters, "GET")

    def posted_lines(self, path: str, content: Mapping[str, Any]) -> Iterator[bytes]:
        """The lines of what a path answers to this, likewise."""
        return self._lines(path, None, "POST", content)

    def _lines(
        self,
        path: str,
        parameters: Mapping[str, str] | None,
        method: str,
        content: Mapping[str, Any] | None = None,
    ) -> Iterator[bytes]:
        with self._answer(path, parameters, method, content) as response:
            rest = b""
            for part in response.iter_bytes():
                *lines, rest = (rest + part).split(b"\n")
                yield from (line + b"\n" for line in lines)
            if rest:
                yield rest

    @contextmanager
    def _answer(
        self, path: str, parameters: Mapping[str, str] | None, method: str, content: Mapping[str, Any] | None
    ) -> Iterator[httpx.Response]:
        try:
            with self._client.stream(method, self._url + path, params=parameters, json=content) as response:
                if response.is_success:
                    yield response
                else:
                    response.read()
                    told = f"{self._url}{path} answered {response.status_code}: {_told(response)}"
                    raise Unanswered(told, response.status_code)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise Unanswered(f"{self._url} cannot be asked: {error or type(error).__name__}") from error


def _told(response: httpx.Response) -> str:
    """What a refusal says of itself."""
    try:
        return str(orjson.loads(response.content)["detail"])
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return response.reason_phrase
