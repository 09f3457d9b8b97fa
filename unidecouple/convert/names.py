"""Names of weights in deepseek-ai's layout and in transformers' (which is ours, too): one table, read in both directions."""

from __future__ import annotations

import re
from dataclasses import dataclass

_ATTENTION_POOL = "vision_model.vision_tower.attn_pool."
_CODEBOOK_USED = "gen_vision_model.quantize.codebook_used"
_OLD_ROTARY = ".rotary_emb.inv_freq"

# {n} stands for a number, {2n+2} for one reckoned from it, {rest} for anything.
_TABLE = (
    ("language_model.model.{rest}", "model.language_model.{rest}"),
    ("language_model.lm_head.{rest}", "lm_head.{rest}"),
    ("vision_model.vision_tower.patch_embed.proj.{rest}", "model.vision_model.embeddings.patch_embedding.{rest}"),
    ("vision_model.vision_tower.pos_embed", "model.vision_model.embeddings.position_embedding.weight"),
    ("vision_model.vision_tower.blocks.{n}.norm1.{rest}", "model.vision_model.encoder.layers.{n}.layer_norm1.{rest}"),
    ("vision_model.vision_tower.blocks.{n}.norm2.{rest}", "model.vision_model.encoder.layers.{n}.layer_norm2.{rest}"),
    ("vision_model.vision_tower.blocks.{n}.attn.qkv.{rest}", "model.vision_model.encoder.layers.{n}.self_attn.qkv.{rest}"),
    (
        "vision_model.vision_tower.blocks.{n}.attn.proj.{rest}",
        "model.vision_model.encoder.layers.{n}.self_attn.projection_layer.{rest}",
    ),
    ("vision_model.vision_tower.blocks.{n}.mlp.{rest}", "model.vision_model.encoder.layers.{n}.mlp.{rest}"),
    ("vision_model.vision_tower.norm.{rest}", "model.vision_model.post_layernorm.{rest}"),
    ("aligner.layers.0.{rest}", "model.aligner.fc1.{rest}"),
    ("aligner.layers.{2n+2}.{rest}", "model.aligner.hidden_layers.{n}.{rest}"),
    ("gen_aligner.layers.0.{rest}", "model.generation_aligner.fc1.{rest}"),
    ("gen_aligner.layers.{2n+2}.{rest}", "model.generation_aligner.hidden_layers.{n}.{rest}"),
    ("gen_embed.{rest}", "model.generation_embeddings.{rest}"),
    ("gen_head.output_mlp_projector.{rest}", "model.generation_head.proj_out.{rest}"),
    ("gen_head.vision_head.{rest}", "model.generation_head.vision_head.{rest}"),
    ("gen_vision_model.encoder.conv_blocks.{n}.res.{rest}", "model.vqmodel.encoder.down.{n}.block.{rest}"),
    ("gen_vision_model.encoder.conv_blocks.{n}.{rest}", "model.vqmodel.encoder.down.{n}.{rest}"),
    ("gen_vision_model.decoder.conv_blocks.{n}.res.{rest}", "model.vqmodel.decoder.up.{n}.block.{rest}"),
    ("gen_vision_model.decoder.conv_blocks.{n}.{rest}", "model.vqmodel.decoder.up.{n}.{rest}"),
    ("gen_vision_model.{coder}.mid.0.{rest}", "model.vqmodel.{coder}.mid.block_1.{rest}"),
    ("gen_vision_model.{coder}.mid.1.{rest}", "model.vqmodel.{coder}.mid.attn_1.{rest}"),
    ("gen_vision_model.{coder}.mid.2.{rest}", "model.vqmodel.{coder}.mid.block_2.{rest}"),
    ("gen_vision_model.{rest}", "model.vqmodel.{rest}"),
)  # fmt: skip
"""deepseek-ai's name, transformers' name; the first row that fits counts. ``qkv`` is three weights in transformers."""

_FIELD = re.compile(r"\{([^}]*)\}")
_MATCHES = {"n": r"(?P<n>\d+)", "2n+2": r"(?P<even>\d*[02468])", "coder": r"(?P<coder>encoder|decoder)", "rest": r"(?P<rest>.+)"}


@dataclass(frozen=True)
class _Rule:
    pattern: re.Pattern[str]
    target: str

    def apply(self, name: str) -> str | None:
        match = self.pattern.fullmatch(name)
        if match is None:
            return None
        found = match.groupdict()
        if "even" in found:
            found["n"] = str(int(found["even"]) // 2 - 1)
        elif "n" in found:
            found["2n+2"] = str(2 * int(found["n"]) + 2)
        return _FIELD.sub(lambda field: found[field[1]], self.target)


def _rules(direction: int) -> tuple[_Rule, ...]:
    def pattern(template: str) -> re.Pattern[str]:
        parts = _FIELD.split(template)
        return re.compile("".join(_MATCHES[part] if index % 2 else re.escape(part) for index, part in enumerate(parts)))

    return tuple(_Rule(pattern(row[direction]), row[1 - direction]) for row in _TABLE)


_FROM_DEEPSEEK, _TO_DEEPSEEK = _rules(0), _rules(1)


def unused(name: str) -> bool:
    """Whether a weight of deepseek-ai's layout takes no part in Janus: SigLIP's pooling, a usage counter, old rotary tables."""
    return name.startswith(_ATTENTION_POOL) or name == _CODEBOOK_USED or name.endswith(_OLD_ROTARY)


def from_deepseek(name: str) -> str | None:
    """Transformers' name of a weight that deepseek-ai calls ``name``; None if Janus has no such weight."""
    return next((found for rule in _FROM_DEEPSEEK if (found := rule.apply(name))), None)


def to_deepseek(name: str) -> str | None:
    """deepseek-ai's name of a weight that transformers calls ``name``; None if Janus has no such weight."""
    return next((found for rule in _TO_DEEPSEEK if (found := rule.apply(name))), None)
