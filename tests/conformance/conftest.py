"""The topology that these tests share, started once, and the reference that embeddings are compared with."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import openai
import pytest

from app.config import DEMO_KEY
from regions.models.source import find_text_model
from tests.conformance.topology import Topology

Reference = Callable[[Sequence[str]], npt.NDArray[np.float32]]


def _tenant(key: str, **fields: Any) -> dict[str, Any]:
    hashed = "sha256:" + hashlib.sha256(f"{key}-key".encode()).hexdigest()
    return {"id": key, "keys": [hashed], "scopes": ["infer"], "subject": "US", **fields}


# Each with the key `<id>-key`.
TENANTS = (
    _tenant("tight", limits={"requests": "2/hour"}),
    _tenant("small", limits={"tokens": "100/hour"}),
    _tenant("narrow", allow_regions=["us-east"]),
    _tenant("auditor", scopes=["audit:read"]),
    _tenant("nobody", subject=None),
)


@pytest.fixture(scope="session")
def topology(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Topology]:
    running = Topology(tmp_path_factory.mktemp("topology"), TENANTS)
    try:
        running.start()
        yield running
    finally:
        running.stop()
    assert running.complaints() == []  # all that the tests did was foreseen


@pytest.fixture
def sdk(topology: Topology) -> Iterator[openai.OpenAI]:
    """The client as a developer makes it, but without retries: a failure shall show."""
    with openai.OpenAI(base_url=topology.url + "/v1", api_key=DEMO_KEY, max_retries=0) as client:
        yield client


@pytest.fixture(scope="session")
def reference() -> Reference:
    """Embeddings [n, 384] by the library that the model was published for."""
    from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - takes seconds that only some tests need

    model = SentenceTransformer(str(find_text_model(None)), device="cpu")
    return lambda texts: model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False)


@pytest.fixture(scope="session")
def close_to(reference: Reference) -> Callable[[Any, Sequence[str]], None]:
    """Asserts that embeddings are those of the texts: cosine 0.999 to the reference, which bf16 keeps."""

    def check(vectors: Any, texts: Sequence[str]) -> None:
        given = np.asarray(vectors, dtype=np.float64)
        assert given.shape == (len(texts), 384)
        cosines = (given * reference(texts)).sum(axis=1) / np.linalg.norm(given, axis=1)
        assert cosines.min() > 0.999, cosines

    return check
