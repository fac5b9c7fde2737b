"""From a JSON body to a call: what is refused before any backend is asked."""

from typing import Any

import orjson
import pytest

from app.api.openai import to_call
from app.errors import InvalidRequest


@pytest.mark.parametrize(
    ("fields", "detail", "values"),
    [
        ({}, "field_missing", {}),
        ({"model": None}, "field_missing", {}),
        ({"model": 7}, "field_type", {"expected": "string"}),
        ({"model": ""}, "field_value", {"expected": "length>0"}),
    ],
)
def test_a_model_that_cannot_be_one_is_refused_by_what_is_wrong(
    fields: dict[str, Any], detail: str, values: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        to_call("/v1/embeddings", orjson.dumps(fields), 64, sampled=False)
    assert (caught.value.message_id, caught.value.param) == (f"invalid_request.{detail}", "model")
    assert values.items() <= caught.value.values.items()
