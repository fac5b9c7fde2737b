"""ONNX Runtime behind FastAPI: the model exported once, in float32 or quantised to int8, run on FastAPI's threads."""

import sys
import tempfile
import threading
from pathlib import Path

import numpy as np
import onnxruntime
import torch
import uvicorn
from fastapi import FastAPI
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import BaseModel
from tokenizers import Tokenizer
from transformers import AutoModel


def export(directory: Path, to: Path) -> None:
    """The encoder with tokens of any number; transformers' own eager attention exports best."""
    model = AutoModel.from_pretrained(directory, attn_implementation="eager").eval()

    class Hidden(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
            return self.model(input_ids=ids, attention_mask=mask).last_hidden_state

    ids = torch.ones(2, 9, dtype=torch.long)
    free = {0: "batch", 1: "length"}
    axes = {"ids": free, "mask": free, "hidden": free}
    # The older exporter: what dynamic quantisation finds no matrix products in otherwise.
    names = {"input_names": ["ids", "mask"], "output_names": ["hidden"], "dynamic_axes": axes}
    torch.onnx.export(Hidden(), (ids, ids), str(to), dynamo=False, opset_version=17, **names)


def session(precision: str, directory: Path) -> onnxruntime.InferenceSession:
    with tempfile.TemporaryDirectory() as place:
        path = Path(place) / "model.onnx"
        export(directory, path)
        if precision == "int8":
            small = Path(place) / "int8.onnx"
            quantize_dynamic(str(path), str(small), weight_type=QuantType.QInt8)
            path = small
        options = onnxruntime.SessionOptions()
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def serve(precision: str) -> None:
    directory = Path(sys.argv[1])
    run = session(precision, directory)
    tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
    tokenizer.enable_truncation(256)
    tokenizer.enable_padding()
    app = FastAPI()
    turn = threading.Lock()  # one forward has both cores: twice as fast as several at once

    class Body(BaseModel):
        input: str | list[str]

    @app.post("/v1/embeddings")
    def embeddings(body: Body) -> dict[str, object]:
        encoded = tokenizer.encode_batch([body.input] if isinstance(body.input, str) else body.input)
        ids = np.array([each.ids for each in encoded])
        mask = np.array([each.attention_mask for each in encoded])
        with turn:
            hidden = run.run(None, {"ids": ids, "mask": mask})[0]
        rows = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
        rows /= np.linalg.norm(rows, axis=1, keepdims=True)
        data = [{"object": "embedding", "index": n, "embedding": row.tolist()} for n, row in enumerate(rows)]
        return {"object": "list", "model": "minilm", "data": data}

    uvicorn.run(app, port=int(sys.argv[2]), log_level="error")
