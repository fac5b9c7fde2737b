"""Problems of the schema in words that need no knowledge of pydantic: what is wrong and what would be right."""

from collections.abc import Sequence
from datetime import date
from ipaddress import ip_network
from typing import Any

from pydantic_core import ErrorDetails

from app.yaml_source import Key

_SECRET = frozenset({"api_key", "keys"})
_COMPARISONS = {
    "greater_than": ("gt", "greater than"),
    "greater_than_equal": ("ge", "at least"),
    "less_than": ("lt", "less than"),
    "less_than_equal": ("le", "at most"),
}
_KINDS = {
    "string": "text; put it in quotes",
    "int": "a whole number",
    "float": "a number",
    "finite": "a number",
    "bool": "true or false",
    "date": "a date; write YYYY-MM-DD",
    "tuple": "a list; write such as [a, b]",
    "model": "a mapping of names to values",
    "dict": "a mapping of names to values",
    "path": "a path",
}


def words(key: Key, details: Sequence[ErrorDetails], suggestion: str) -> str:
    """The problem at `key` in words; `details` holds one entry for each option of a union that was tried there."""
    # A validator of ours says more than pydantic's own, and a list of choices more than a kind.
    for kind in ("value_error", "literal_error"):
        chosen = [detail for detail in details if detail["type"] == kind]
        if chosen and (kind == "value_error" or len(chosen) == len(details)):
            return _one(key, chosen[0], suggestion)
    return _one(key, details[0], suggestion)


def _one(key: Key, detail: ErrorDetails, suggestion: str) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    value = shown(key, detail["input"])
    if kind in _COMPARISONS:
        name, comparison = _COMPARISONS[kind]
        return f"{value} is out of range; it must be {comparison} {context[name]:g}"
    if kind.startswith("ip_v"):
        return _network(value, detail["input"])
    if expected := _KINDS.get(kind.partition("_")[0]):
        return f"{value} is not {expected}"
    return {
        "value_error": str(context.get("error")),
        "extra_forbidden": f"unknown key; {suggestion}",
        "literal_error": f"{value} is not allowed; write {str(context.get('expected')).replace(chr(39), '')}",
        "invalid_key": "holds a name that is not text; put it in quotes",
        "missing": f"is missing; {'[from, to] are expected' if key and isinstance(key[-1], int) else 'it is required'}",
        "too_long": f"has too many entries; at most {context.get('max_length')} may stand here",
        "too_short": "is empty; at least one entry is needed",
    }.get(kind, f"{value}: {detail['msg']}")


def shown(key: Key, value: Any) -> str:
    """`value` as YAML would spell it, where it is short and no secret."""
    if _SECRET.intersection(key):
        return "the value"
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str | int | float | date):
        text = repr(value) if isinstance(value, str) else str(value)
        return text if len(text) <= 80 else text[:77] + "..."  # noqa: PLR2004 - what fits a line
    return "a list" if isinstance(value, list | tuple) else "a mapping" if isinstance(value, dict) else "the value"


def _network(value: str, text: Any) -> str:
    try:
        return f"{value} names one host of a network; write {ip_network(str(text), strict=False)}"
    except ValueError:
        return f"{value} is not a network; write such as 10.0.0.0/8 or fd00::/8"
