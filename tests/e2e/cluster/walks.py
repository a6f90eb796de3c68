"""Random walks as files of a run: a tiny model that has learned the data's walks, and the prompts. Knows no cluster."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from services.common.tasks.randomwalks import (
    END_ID,
    MAX_LENGTH,
    PAD_ID,
    VOCABULARY,
    RandomWalks,
    random_walks,
)

WIDTH, LAYERS, BATCH = 64, 2, 100


def make_files(folder: Path, *, steps: int = 150, seed: int = 0) -> Path:
    """model/ and prompts.jsonl. `steps` of 100 walks each: some seconds on one core."""
    walks = random_walks()
    torch.set_num_threads(1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(_config())
        _learn(model, walks, steps)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "model")
    tokenizer().save_pretrained(folder / "model")
    rows = [{"prompt_id": letter, "prompt": letter} for letter in walks.prompts]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def tokenizer() -> Any:
    """A token for each letter, and two more: 23."""
    backend = Tokenizer(models.WordLevel({token: at for at, token in enumerate(VOCABULARY)}))
    backend.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    backend.decoder = decoders.Fuse()
    pad, end = VOCABULARY[PAD_ID], VOCABULARY[END_ID]
    backend.add_special_tokens([pad, end])
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token=end, pad_token=pad, model_max_length=64
    )


def _config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )


def _learn(model: LlamaForCausalLM, walks: RandomWalks, steps: int) -> None:
    """Next nodes of the data's walks, an end after each."""
    rows = torch.full((len(walks.walks), MAX_LENGTH + 1), PAD_ID)
    for row, walk in zip(rows, walks.walks, strict=True):
        row[: len(walk) + 1] = torch.tensor([*walk, END_ID])
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(steps):
        batch = rows[torch.randint(len(rows), (BATCH,))]
        logits = model(batch[:, :-1]).logits
        loss = cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten(), ignore_index=PAD_ID)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
