"""Backends that answer queries: OpenAI-compatible servers, transformers, vLLM."""
