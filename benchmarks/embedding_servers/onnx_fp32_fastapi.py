"""ONNX Runtime in fp32 behind FastAPI."""

from onnx_fastapi import serve

serve("fp32")
