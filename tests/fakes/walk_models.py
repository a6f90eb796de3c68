"""A tiny Llama that reads the random walks' letters, one token each, in Hugging Face form; and the walks as a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.common.tasks.randomwalks import END_ID, LETTERS, PAD_ID, VOCABULARY, random_walks


def walk_tokenizer() -> Any:
    """A letter's id is its node."""
    vocabulary = {token: at for at, token in enumerate(VOCABULARY)}
    backend = Tokenizer(models.WordLevel(vocabulary, unk_token=VOCABULARY[PAD_ID]))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    ends = {"eos_token": VOCABULARY[END_ID], "pad_token": VOCABULARY[PAD_ID]}
    return PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=32, **ends)


def make_walker(folder: Path, *, seed: int = 0, width: int = 32) -> Path:
    """Random weights of deviation 0.2; two layers, untied."""
    torch.set_num_threads(1)
    config = LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=32,
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    walk_tokenizer().save_pretrained(folder)
    return folder


def write_walks(path: Path, count: int = 400) -> Path:
    """Rows for ILQL: a start, the rest of the walk, its optimality."""
    task = random_walks()
    with path.open("w") as file:
        for walk in task.walks[:count]:
            text = "".join(LETTERS[node] for node in walk)
            row = {"prompt": text[0], "completion": text[1:], "reward": task.optimality(walk)}
            file.write(json.dumps(row) + "\n")
    return path
