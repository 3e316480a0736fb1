"""Ollama: its HTTP API (``client``), the Modelfile for people (``modelfile``), and registration (``register``)."""
