"""What the trail's reading side answers, for the API's description."""

from collections.abc import Mapping
from typing import Any, Final

_TEXT: Final = {"type": "string"}
_TEXT_OR_NULL: Final = {"type": ["string", "null"]}
_NUMBER: Final = {"type": "integer"}
_BASE64: Final = {"type": "string", "contentEncoding": "base64"}
_RECORD: Final = {
    "type": "object",
    "description": "One record; docs/audit.md says what each field means and which kinds have more.",
    "properties": {
        "id": _TEXT,
        "log": _TEXT,
        "seq": _NUMBER,
        "time": {"type": "string", "format": "date-time"},
        "kind": {"enum": ["decision", "completion", "read", "erasure", "hold", "retention", "rotation"]},
        "outcome": _TEXT,
        "status": {"type": ["integer", "null"]},
        "jurisdictions": {"type": "array", "items": _TEXT},
        **dict.fromkeys(("request_id", "tenant", "subject", "subject_country"), _TEXT_OR_NULL),
        **dict.fromkeys(("requested_region", "region", "reason", "rule", "law", "model", "personal"), _TEXT_OR_NULL),
    },
    "required": ["id", "log", "seq", "time", "kind", "outcome"],
}
_PROOF: Final = {
    "type": "object",
    "properties": {
        "kind": {"const": "proof"},
        "record": _RECORD,
        "leaf_index": _NUMBER,
        "tree_size": _NUMBER,
        "leaf_hash": _BASE64,
        "proof": {"type": "array", "items": _BASE64, "description": "RFC 6962, section 2.1.1"},
        "checkpoint": {"type": "string", "description": "C2SP signed note"},
        "key": {"type": "string", "description": "The log's public keys, one a line, newest last (C2SP signed note)"},
    },
    "required": ["kind", "record", "leaf_index", "tree_size", "leaf_hash", "proof", "checkpoint", "key"],
}
_PAGE: Final = {
    "type": "object",
    "properties": {"records": {"type": "array", "items": _RECORD}, "cursor": _TEXT_OR_NULL},
    "required": ["records", "cursor"],
}
_LOG_REPORT: Final = {
    "type": "object",
    "properties": {
        "log": _TEXT,
        "result": {"enum": ["intact", "tampered", "incomplete"]},
        **dict.fromkeys(("records", "first", "last", "open_decisions", "untold"), _NUMBER),
        "checkpoint": {"type": ["integer", "null"]},
        "findings": {"type": "array", "items": {"type": "object"}},
        "remarks": {"type": "array", "items": _TEXT},
    },
}
_REPORT: Final = {
    "type": "object",
    "properties": {
        "result": {"enum": ["intact", "tampered", "incomplete"]},
        "records": _NUMBER,
        "logs": {"type": "array", "items": _LOG_REPORT},
    },
    "required": ["result", "records", "logs"],
}
_PROBLEM: Final = {"application/problem+json": {"schema": {"type": "object"}}}
_REFUSALS: Final = {
    400: "A parameter that is unknown or has a value that no record can have",
    401: "No key, or a wrong one",
    403: "The key lacks the scope",
    404: "No such record, or it is another tenant's, or retention has deleted it",
    503: "The trail cannot be read, or the reading not be recorded, or too many read at once",
    504: "The check took too long",
}


def _responses(media: str, schema: Mapping[str, Any], told: str, *refusals: int) -> dict[int | str, dict[str, Any]]:
    answers: dict[int | str, dict[str, Any]] = {200: {"description": told, "content": {media: {"schema": schema}}}}
    for status in refusals:
        answers[status] = {"description": _REFUSALS[status], "content": _PROBLEM}
    return answers


PAGE: Final = _responses("application/json", _PAGE, "A page; `cursor` is null on the last", 400, 401, 403, 503)
EXPORT: Final = _responses(
    "application/x-ndjson",
    {"type": "string", "description": "Lines of JSON objects: a manifest, records, the checkpoints"},
    "The records; whole only if the last line is of kind `checkpoint`",
    *(400, 401, 403, 503),
)
RECORD: Final = _responses("application/json", _RECORD, "The record", 400, 401, 403, 404, 503)
PROOF: Final = _responses("application/json", _PROOF, "The record and its inclusion proof", 400, 401, 403, 404, 503)
REPORT: Final = _responses("application/json", _REPORT, "What is wrong with which record", 400, 401, 403, 503, 504)
CHECKPOINT: Final = _responses(
    "text/plain",
    {"type": "string", "description": "C2SP signed note; with `old`, the body of C2SP tlog-witness add-checkpoint"},
    "The newest checkpoint",
    *(400, 503),
)
