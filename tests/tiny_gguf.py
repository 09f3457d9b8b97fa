"""A tiny language model as a GGUF file, written as llama.cpp's converter writes a Llama."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import gguf
from safetensors.torch import load_file
from torch import Tensor

_NAMES = {
    "model.embed_tokens.": "token_embd.",
    "model.norm.": "output_norm.",
    "model.layers.": "blk.",
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


def write_gguf(language: Path, file: Path) -> Path:
    """Write the model in ``language`` to ``file``: matrices in Q4_1, norms in float32."""
    config = json.loads((language / "config.json").read_text())
    tokenizer = json.loads((language / "tokenizer.json").read_text())["model"]
    file.parent.mkdir(parents=True)
    writer = gguf.GGUFWriter(file, "llama")
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_rope_dimension_count(config["hidden_size"] // heads)
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(config["rope_parameters"]["rope_theta"])
    writer.add_vocab_size(config["vocab_size"])
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(sorted(tokenizer["vocab"], key=tokenizer["vocab"].__getitem__))
    writer.add_token_types([3 if number < 3 else 1 for number in range(len(tokenizer["vocab"]))])
    writer.add_token_merges([" ".join(pair) for pair in tokenizer["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    for published, tensor in load_file(language / "model.safetensors").items():
        name = functools.reduce(lambda text, pair: text.replace(*pair), _NAMES.items(), published)
        weight = _interleaved(tensor, name, config)
        if weight.ndim == 1 or weight.shape[-1] % 32:
            writer.add_tensor(name, weight.numpy())
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(name, gguf.quants.quantize(weight.numpy(), kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


def _interleaved(weight: Tensor, name: str, config: dict[str, int]) -> Tensor:
    """GGUF has the two halves of a head's rotation interleaved."""
    count = {"attn_q": config["num_attention_heads"], "attn_k": config["num_key_value_heads"]}
    heads = next((number for part, number in count.items() if part in name), None)
    if heads is None:
        return weight
    return weight.unflatten(0, (heads, 2, -1)).transpose(1, 2).reshape(weight.shape).contiguous()
