"""ONNX Runtime in int8 behind FastAPI."""

from onnx_fastapi import serve

serve("int8")
