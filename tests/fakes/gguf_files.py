"""GGUF files of tiny models, as llama.cpp's own package writes them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from tests.fakes.tiny_runs import loaded_from


def write_gguf(path: Path, folder: Path, claims: Mapping[str, int] | None = None) -> None:
    """The tiny model of this folder as a GGUF in float32, with a tokenizer of its own bytes.

    claims: sizes in place of the model's own, by the writer's method.
    """
    from gguf import GGUFWriter, TokenType

    loaded = loaded_from(folder)
    config, state = loaded.model.config, loaded.model.state_dict()
    writer = GGUFWriter(str(path), "llama")
    sizes = {
        "add_context_length": config.max_position_embeddings,
        "add_embedding_length": config.hidden_size,
        "add_block_count": config.num_hidden_layers,
        "add_feed_forward_length": config.intermediate_size,
        "add_head_count": config.num_attention_heads,
        "add_head_count_kv": config.num_key_value_heads,
        "add_layer_norm_rms_eps": config.rms_norm_eps,
        "add_rope_dimension_count": config.head_dim,
        "add_vocab_size": config.vocab_size,
    }
    for method, value in (sizes | dict(claims or {})).items():
        getattr(writer, method)(value)
    words = sorted(loaded.tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list([word for word, _ in words])
    writer.add_token_types([TokenType.CONTROL if at < 7 else TokenType.NORMAL for at in range(len(words))])
    writer.add_token_merges(["a b"])
    writer.add_eos_token_id(0)
    names = {
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
        "input_layernorm": "attn_norm",
        "post_attention_layernorm": "ffn_norm",
    }
    writer.add_tensor("token_embd.weight", state["model.embed_tokens.weight"].numpy())
    writer.add_tensor("output_norm.weight", state["model.norm.weight"].numpy())
    for layer in range(config.num_hidden_layers):
        for ours, theirs in names.items():
            value = state[f"model.layers.{layer}.{ours}.weight"].numpy()
            if theirs in ("attn_q", "attn_k"):
                # llama.cpp keeps the two halves of each rotary pair side by side.
                heads = config.num_attention_heads if theirs == "attn_q" else config.num_key_value_heads
                rows, width = value.shape
                value = value.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)
            writer.add_tensor(f"blk.{layer}.{theirs}.weight", np.ascontiguousarray(value))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
