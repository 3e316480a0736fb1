"""Adapter → GGUF: merge (``merge``), llama.cpp's own converter (``converter``), quantize, check."""
