"""Prompts of benchmarks.step: about 20 tokens each in SmolLM2's chat form, the same text on both sides."""

from __future__ import annotations

TOPICS = (
    "a garden",
    "the sea",
    "a train ride",
    "the first snow",
    "a school day",
    "an old house",
    "a birthday",
    "the weather",
    "a long walk",
    "a library",
    "the kitchen",
    "a new job",
    "a small dog",
    "the city at night",
    "a football match",
    "a mountain",
    "breakfast",
    "a letter",
    "the market",
    "a rainy morning",
    "a bicycle",
    "the moon",
    "a painting",
    "a summer evening",
    "the hospital",
    "a wedding",
    "an airport",
    "a river",
    "the radio",
    "a broken cup",
    "a neighbour",
    "the forest",
)


def texts() -> list[str]:
    """One prompt for each topic."""
    return [
        f"<|im_start|>user\nWrite one sentence about {topic}.<|im_end|>\n<|im_start|>assistant\n"
        for topic in TOPICS
    ]
