"""sentence-transformers behind FastAPI, as its users write it: `encode` on FastAPI's threads."""

import sys

import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], device="cpu")
app = FastAPI()


class Body(BaseModel):
    input: str | list[str]


@app.post("/v1/embeddings")
def embeddings(body: Body) -> dict[str, object]:
    texts = [body.input] if isinstance(body.input, str) else body.input
    vectors = model.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    data = [{"object": "embedding", "index": n, "embedding": row.tolist()} for n, row in enumerate(vectors)]
    return {"object": "list", "model": "minilm", "data": data}


uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
