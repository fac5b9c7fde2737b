"""LitServe with dynamic batching over sentence-transformers."""

import sys

import litserve
import numpy as np
from sentence_transformers import SentenceTransformer


class Embeddings(litserve.LitAPI):
    def setup(self, device: str) -> None:  # noqa: ARG002 - the protocol's
        self.model = SentenceTransformer(sys.argv[1], device="cpu")

    def decode_request(self, request: dict[str, str]) -> str:
        return request["input"]

    def predict(self, texts: list[str]) -> list[np.ndarray]:
        return list(self.model.encode(list(texts), normalize_embeddings=True, show_progress_bar=False))

    def encode_response(self, vector: np.ndarray) -> dict[str, object]:
        data = [{"object": "embedding", "index": 0, "embedding": vector.tolist()}]
        return {"object": "list", "model": "minilm", "data": data}


if __name__ == "__main__":
    api = Embeddings(max_batch_size=32, batch_timeout=0.005, api_path="/v1/embeddings")
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1)
    server.run(port=int(sys.argv[2]), host="127.0.0.1", generate_client_file=False, log_level="error")
