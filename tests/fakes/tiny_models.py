"""Tiny random models on disk, made in the test: real architectures, real tokenizers, a few thousand weights.

The tokenizer is byte-level without merges: one token for each byte, so that any text can be encoded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

END = "<|end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}<|{{ message['role'] }}|>{{ message['content'] }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
PAD = "<|pad|>"
SPECIALS = [END, PAD, "<|user|>", "<|assistant|>", "<|system|>", "[CLS]", "[SEP]"]


def tiny_tokenizer(*, chat_template: bool = True, extra: tuple[str, ...] = ()) -> Any:
    """A byte-level tokenizer of 256 bytes and a few special tokens; `extra` ones change its fingerprint."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: index for index, token in enumerate([*SPECIALS, *extra, *alphabet])}
    backend = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    backend.add_special_tokens([*SPECIALS, *extra])
    roles = {"eos_token": END, "pad_token": PAD, "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, model_max_length=100_000, **roles)
    if chat_template:
        tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def word_tokenizer(words: str) -> Any:
    """One token for each of these words, and end and pad: a vocabulary small enough to learn over by chance."""
    vocabulary = {token: index for index, token in enumerate([END, PAD, *words.split()])}
    backend = Tokenizer(models.WordLevel(vocab=vocabulary, unk_token=PAD))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.add_special_tokens([END, PAD])
    return PreTrainedTokenizerFast(tokenizer_object=backend, eos_token=END, pad_token=PAD)


def make_tiny_causal(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 16,
    context_length: int = 128,
    chat_template: bool = True,
    extra_tokens: tuple[str, ...] = (),
    tokenizer: Any = None,
) -> Path:
    """A random Llama in Hugging Face form (tied head, safetensors, float32), with its tokenizer."""
    torch.set_num_threads(1)
    tokenizer = tokenizer or tiny_tokenizer(chat_template=chat_template, extra=extra_tokens)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=context_length,
        tie_word_embeddings=True,
        # Wider than the default 0.02, so that distributions are far from uniform and numbers differ visibly.
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_encoder(folder: Path, *, seed: int = 0, width: int = 16, context_length: int = 128) -> Path:
    """A random BERT in Hugging Face form, with the same byte-level tokenizer."""
    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer(chat_template=False)
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=context_length,
        initializer_range=0.2,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertModel(config, add_pooling_layer=False)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_reward_model(
    folder: Path, *, pooling: str = "last", seed: int = 0, max_tokens: int = 96, poison: bool = False
) -> Path:
    """A random reward model: causal for "last", encoder for "mean". `poison`: its scores are infinite."""
    from services.models.reward_model import new_reward_model

    base = folder.with_name(f"{folder.name}-base")
    make = make_tiny_causal if pooling == "last" else make_tiny_encoder
    make(base, seed=seed)
    model = new_reward_model(str(base), dtype="float32", threads=1, seed=seed, max_tokens=max_tokens)
    if poison:
        with torch.no_grad():
            # Finite weights, so that loading accepts them; the product overflows.
            model.head.weight.fill_(3e38)
            model.head.bias.fill_(3e38)
    folder.mkdir(parents=True, exist_ok=True)
    model.save(folder)
    return folder


def make_tiny_gpt2(folder: Path, *, seed: int = 0, width: int = 32, context_length: int = 128) -> Path:
    """A random GPT-2 in Hugging Face form: a causal model that is not of the Llama family's form."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.set_num_threads(1)
    tokenizer = tiny_tokenizer()
    config = GPT2Config(
        vocab_size=len(tokenizer),
        n_embd=width,
        n_layer=2,
        n_head=2,
        n_positions=context_length,
        initializer_range=0.2,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = GPT2LMHeadModel(config)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_tiny_t5(
    folder: Path,
    *,
    seed: int = 0,
    layers: int = 2,
    width: int = 16,
    gated: bool = False,
    tokenizer: Any = None,
    **settings: Any,
) -> Path:
    """A random T5, with one more layer in its encoder; `gated`: T5 1.1, which does not scale states before its head."""
    from transformers import T5Config, T5ForConditionalGeneration

    torch.set_num_threads(1)
    tokenizer = tokenizer or tiny_tokenizer(chat_template=False)
    config = T5Config(
        vocab_size=len(tokenizer),
        d_model=width,
        d_kv=width // 2,
        d_ff=2 * width,
        num_layers=layers + 1,
        num_decoder_layers=layers,
        num_heads=2,
        relative_attention_num_buckets=8,
        relative_attention_max_distance=16,
        feed_forward_proj="gated-gelu" if gated else "relu",
        tie_word_embeddings=not gated,
        **{
            "pad_token_id": tokenizer.pad_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "decoder_start_token_id": tokenizer.pad_token_id,
            **settings,
        },
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = T5ForConditionalGeneration(config)
        for name, parameter in model.named_parameters():
            # Wide enough that distributions are far from uniform and positions matter.
            if "relative_attention_bias" in name:
                torch.nn.init.normal_(parameter)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
