"""The running project as a caller sees it: a gateway for each region, asked through the unmodified `openai` SDK."""

import json
import re
import shlex
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
import openai

from tests.compose.host import ROOT
from tests.compose.project import REGIONS, Project
from tests.compose.report import Failure, Report

_README = (ROOT / "README.md").read_text(encoding="utf-8")
_TIMEOUT_S = 15.0


@dataclass(frozen=True, slots=True)
class Answer:
    """What came back: status, headers, and the body of a refusal."""

    status: int
    headers: Mapping[str, str]
    error: dict[str, Any]

    @property
    def region(self) -> str | None:
        return self.headers.get("x-served-region")

    @property
    def reason(self) -> str | None:
        return self.headers.get("x-route-reason")

    def __str__(self) -> str:
        return f"{self.status} {self.region or ''} {self.reason or ''} {self.error.get('code', '')}".strip()


class Scene:
    """What the checks look at, and say what they found to."""

    def __init__(self, report: Report, project: Project) -> None:
        self.report = report
        self.project = project
        self.key = project.key()
        self._web = httpx.Client(trust_env=False, timeout=_TIMEOUT_S, headers={"authorization": f"Bearer {self.key}"})

    def embed(self, region: str, text: str | None = None, **headers: str) -> Answer:
        """Ask the gateway in a region for an embedding, of a text never seen before; underscores stand for hyphens."""
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return self.send(region, {"model": "minilm", "input": text or f"the tide, {uuid.uuid4()}"}, named)

    def send(self, region: str, body: dict[str, Any], headers: dict[str, str]) -> Answer:
        web = openai.DefaultHttpxClient(trust_env=False)
        with openai.OpenAI(
            base_url=f"{url(region)}/v1", api_key=self.key, max_retries=0, timeout=_TIMEOUT_S, http_client=web
        ) as client:
            try:
                raw = client.embeddings.with_raw_response.create(**body, extra_headers=headers)
            except openai.APIStatusError as error:
                refused = error.body if isinstance(error.body, dict) else {}
                return Answer(error.status_code, error.response.headers, refused)
            if len(raw.parse().data[0].embedding) != 384:
                raise Failure(f"an embedding of minilm has 384 numbers; {url(region)} sent others")
            return Answer(raw.status_code, raw.headers, {})

    def get(self, region: str, path: str, **query: str) -> Any:
        """What a gateway answers to a reading, which must be granted."""
        return self._web.get(url(region) + path, params=query).raise_for_status().json()

    def up(self, region: str) -> bool:
        """Whether every gateway takes that region for well."""
        return self._healths(region) == {"up"}

    def down(self, region: str) -> bool:
        """Whether none does."""
        return "up" not in self._healths(region)

    def _healths(self, region: str) -> set[str]:
        seen = [each for at in REGIONS for each in self.get(at, "/v1/regions")["data"] if each["id"] == region]
        return {each["health"] for each in seen}


def url(region: str) -> str:
    """Where a region's gateway is published."""
    return f"http://127.0.0.1:{REGIONS[region]}"


def readme_requests() -> tuple[dict[str, Any], list[dict[str, str]]]:
    """The body that README.md sends, and the headers of each of its requests, in its order."""
    body = re.search(r"""-d '(\{.*?\})' "\$@\"""", _README)
    lines = re.findall(r"^embed(?! *\()(.*)$", _README, re.MULTILINE)
    if not body or len(lines) != 3:
        raise Failure("README.md no longer shows three requests by its shell function `embed`; adapt readme_requests")
    return json.loads(body[1]), [_headers(line) for line in lines]


def _headers(line: str) -> dict[str, str]:
    words = shlex.split(line.split(" | ", maxsplit=1)[0])
    named = [words[index + 1] for index, word in enumerate(words) if word == "-H"]
    return {name: value for name, _, value in (each.partition(": ") for each in named)}
