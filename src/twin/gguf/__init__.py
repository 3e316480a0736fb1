"""Adapter → GGUF: ``make`` calls the steps, ``merge``, ``converter``, ``quantize`` and ``check``."""
