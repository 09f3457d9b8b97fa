"""Configuration of our decoder: a Llama whose FFNs may be task-aware mixtures of experts, with or without LoRA."""

from __future__ import annotations

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, JanusConfig, LlamaConfig
from transformers.configuration_utils import SubConfigSpec
from transformers.models.janus.configuration_janus import JanusVisionConfig, JanusVQVAEConfig

from unidecouple.batch import TASK_KEYS
from unidecouple.models.deltas import count_forms
from unidecouple.models.groups import GROUP_NAMES, LAYER_PARTS
from unidecouple.models.schema import SCHEMA_VERSION, Fields, versioned

FFN_KINDS = ("dense", "moe", "ta_moe", "typed_moe")
ROUTINGS = ("learned", "label")
GROUP_BYS = tuple(GROUP_NAMES)
ATTENDED = ("all", "group")
LORA_KINDS = ("plain", "interaction", "modality")
EXPERT_BACKENDS = ("grouped_mm", "loop")
_FORMER = {
    "experts_per_task": "num_experts",
    "first_token": "bos_kv",
    "split": "group_by",
    "untied_attention": "per_group_attention",
    "untied_layers": "per_group_layers",
    "untied_norm": "per_group_norm",
}
LORA_TARGETS = ("attention", "experts", "shared_expert", "mlp", "router")


def _from_older(given: Fields) -> Fields:
    out = {_FORMER.get(name, name): value for name, value in given.items()}
    if "experts_per_task" in given:  # it counted experts per task of a plain mixture, too
        out["num_experts"] = given["experts_per_task"] * given.get("num_tasks", 2)
    if given.get("split") == "drawn":
        out["group_by"] = "image_out"
    return out


_SINCE = {"task_deltas": 3} | dict.fromkeys(("shared_expert_per_task", "per_group_parts", "lora_kind", "lora_experts"), 4)


@versioned(_FORMER, _from_older, _SINCE)
@strict
class UniLlamaConfig(LlamaConfig):
    """Llama with weights per task or per kind of token.

    Attributes:
        ffn: "dense", "moe" (experts without task knowledge, the control), "ta_moe" (UniDecouple's task-aware mixture) or
            "typed_moe" (groups of experts chosen by ``group_by``, without a task router).
        num_experts: E, routed experts of a layer over all groups.
        group_sizes: experts per group of a "typed_moe", in the order of ``GROUP_NAMES``. None: equal groups.
        num_experts_per_tok: k, experts a token is sent to inside its group.
        shared_expert: add ``alpha * SharedExpert(x)`` (arXiv 2506.03591, eq. 1).
        shared_expert_per_task: one shared expert and one alpha per group of a "ta_moe", each with its own low-rank update. Ours.
        alpha_init: alpha before training. Unpublished; ours is 0.5, since from 0 it never grows.
        task_routing: "learned" (the task-aware router decides) or "label" (``group_by`` decides).
        group_by: which tokens form group 1 where groups come from labels: "task" (generation, by ``task_ids``), "modality" (all
            image tokens) or "image_out" (image tokens to be generated); all others form group 0. "type" has three groups: text,
            image tokens to be understood, image tokens to be generated.
        moe_layers: layers that are mixtures, counted from 0; the others keep a dense FFN. None: all layers.
        per_group_layers: layers with one set of weights per group of ``group_by``, counted from 0.
        per_group_parts: which of their weights: some of "attention", "ffn", "norms"; the others serve all groups.
        per_group_norm: whether the final norm has one set per group, too.
        per_group_attention: what tokens of these layers attend to: "all" before them, or those of their own "group".
        num_tasks: 2, or 1 for a model slimmed to one task (``unidecouple convert --task``), which has one group of experts.
        bos_kv: whether every layer stores the keys and values of the BOS. A model slimmed to generation needs them: the BOS counts
            as understanding (see ``Task``), whose weights it lacks.
        context_router: whether a task-aware router before the layers attends to the tokens before. It alone routes the first
            mixture; later ones add to its logits. Ours, not the paper's.
        experts_backend: "grouped_mm", or "loop" where that kernel is missing; both give the same numbers.
        lora_rank: r of low-rank updates, 0 for none.
        lora_alpha: LoRA's scale is lora_alpha / r.
        lora_targets: of "attention", "experts", "shared_expert", "mlp" (a dense FFN), "router" (W_task and W_e of each mixture,
            which are small and usually trained in full; a context router always is).
        lora_kind: "plain", or several pairs whose sum a router weighs per token: "interaction" (I-LoRA) or "modality" (MoDE), see
            ``MixedLoraLinear``.
        lora_experts: n pairs that the router weighs; 0 where ``lora_kind`` is "plain".
        lora_per_task: targets with one (A, B) pair per task. Ours, not the paper's.
        task_deltas: weights of one task beside a layer's own: task key -> module of the decoder ("layers.0.self_attn.q_proj",
            "norm", "embed_tokens"; of an Emu3 also "lm_head") -> form, see ``models/deltas.py``. Written by
            ``unidecouple decouple``.
        schema_version: of these fields, see ``schema.versioned``.
    """

    model_type = "unidecouple_llama"

    ffn: str = "dense"
    num_experts: int = 4
    group_sizes: list[int] | None = None
    num_experts_per_tok: int = 1
    shared_expert: bool = True
    shared_expert_per_task: bool = False
    alpha_init: float = 0.5
    task_routing: str = "learned"
    group_by: str = "task"
    moe_layers: list[int] | None = None
    per_group_layers: list[int] | None = None
    per_group_parts: list[str] = field(default_factory=lambda: [*LAYER_PARTS])
    per_group_norm: bool = False
    per_group_attention: str = "all"
    num_tasks: int = 2
    bos_kv: bool = False
    context_router: bool = False
    experts_backend: str = "grouped_mm"
    lora_rank: int = 0
    lora_alpha: float = 16.0
    lora_targets: list[str] = field(default_factory=list)
    lora_kind: str = "plain"
    lora_experts: int = 0
    lora_per_task: list[str] = field(default_factory=list)
    task_deltas: dict[str, dict[str, str]] = field(default_factory=dict)
    schema_version: int = SCHEMA_VERSION

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        choices = {"ffn": FFN_KINDS, "task_routing": ROUTINGS, "group_by": GROUP_BYS, "per_group_attention": ATTENDED}
        choices |= {"experts_backend": EXPERT_BACKENDS, "lora_kind": LORA_KINDS}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name}={getattr(self, name)!r} is not one of {', '.join(allowed)}")
        if self.context_router and self.ffn != "ta_moe":
            raise ValueError(f"context_router=True with ffn={self.ffn!r}: there is no task to route to; use ffn='ta_moe'")
        if self.num_tasks not in (1, 2) or (self.num_tasks == 1 and (self.ffn in ("ta_moe", "typed_moe") or self.lora_per_task)):
            raise ValueError(
                f"num_tasks={self.num_tasks} with ffn={self.ffn!r}, lora_per_task={self.lora_per_task}: only 2 tasks can part"
            )
        if self.shared_expert_per_task and not (self.ffn == "ta_moe" and self.shared_expert):
            raise ValueError(
                f"shared_expert_per_task=True with ffn={self.ffn!r}, shared_expert={self.shared_expert}: use ffn='ta_moe' and "
                "shared_expert=True"
            )
        self._check_moe_layers()
        self._check_untied_layers()
        self._check_groups()
        self._check_lora_kind()
        self._check_lora()
        self._check_deltas()

    def _check_groups(self) -> None:
        if self.ffn != "typed_moe" and (self.group_sizes is not None or self.group_by == "type"):
            raise ValueError(
                f"group_sizes={self.group_sizes}, group_by={self.group_by!r} with ffn={self.ffn!r}: use ffn='typed_moe'"
            )
        sizes = self.expert_groups
        if len(sizes) != self.num_groups or sum(sizes) != self.num_experts or min(sizes) < 1:
            raise ValueError(
                f"group_sizes={self.group_sizes} must part the {self.num_experts} experts of a layer among the groups "
                f"{', '.join(GROUP_NAMES[self.group_by])}"
            )
        if not 1 <= self.num_experts_per_tok <= self.experts_per_group:
            raise ValueError(
                f"num_experts_per_tok={self.num_experts_per_tok} must be from 1 to the {self.experts_per_group} experts of a group"
            )

    def _check_moe_layers(self) -> None:
        if self.moe_layers is None:
            return
        wrong = [layer for layer in self.moe_layers if not 0 <= layer < self.num_hidden_layers]
        if wrong or self.ffn == "dense" or not self.moe_layers or len(set(self.moe_layers)) < len(self.moe_layers):
            raise ValueError(
                f"moe_layers={self.moe_layers} with ffn={self.ffn!r}: name some of the layers 0 to "
                f"{self.num_hidden_layers - 1}, each once, for a mixture; leave it out for all, or where ffn='dense'"
            )

    def _check_untied_layers(self) -> None:
        parts = self.per_group_parts
        if not parts or not set(parts) <= set(LAYER_PARTS) or len(set(parts)) < len(parts):
            raise ValueError(f"per_group_parts={parts}: name some of {', '.join(LAYER_PARTS)}, each once")
        if self.per_group_layers is None:
            if self.per_group_norm or self.per_group_attention != "all" or len(parts) < len(LAYER_PARTS):
                raise ValueError(
                    f"per_group_norm={self.per_group_norm}, per_group_attention={self.per_group_attention!r}, "
                    f"per_group_parts={parts} without per_group_layers: name them"
                )
            return
        wrong = [layer for layer in self.per_group_layers if not 0 <= layer < self.num_hidden_layers]
        if wrong or not self.per_group_layers or len(set(self.per_group_layers)) < len(self.per_group_layers):
            raise ValueError(
                f"per_group_layers={self.per_group_layers}: name some of the layers 0 to {self.num_hidden_layers - 1}, each once, "
                "or leave it out for none"
            )
        if self.ffn != "dense" or self.lora_rank or self.num_tasks != 2:
            raise ValueError(
                f"per_group_layers={self.per_group_layers} with ffn={self.ffn!r}, lora_rank={self.lora_rank}, "
                f"num_tasks={self.num_tasks}: untied layers go with dense FFNs and two tasks, and take no low-rank updates"
            )

    def _check_lora_kind(self) -> None:
        if (self.lora_kind == "plain") != (self.lora_experts == 0) or self.lora_experts < 0:
            raise ValueError(f"lora_experts={self.lora_experts} with lora_kind={self.lora_kind!r}: 0 for plain, else at least 1")
        if self.lora_kind != "plain" and (not self.lora_rank or self.ffn != "dense" or self.lora_per_task):
            raise ValueError(
                f"lora_kind={self.lora_kind!r} with lora_rank={self.lora_rank}, ffn={self.ffn!r}, lora_per_task="
                f"{self.lora_per_task}: it takes a rank, a dense decoder, and no update per task"
            )
        if self.lora_kind == "modality" and self.group_by != "modality":
            raise ValueError(f"lora_kind='modality' with group_by={self.group_by!r}: use group_by='modality'")

    def _check_lora(self) -> None:
        for target in (*self.lora_targets, *self.lora_per_task):
            if target not in LORA_TARGETS:
                raise ValueError(f"LoRA target {target!r} is not one of {', '.join(LORA_TARGETS)}")
        for target in self.lora_targets if self.lora_rank else ():
            if target not in self.adaptable:
                raise ValueError(
                    f"LoRA target {target!r} is not in a model with ffn={self.ffn!r}; it has {', '.join(self.adaptable)}"
                )
        if "router" in self.lora_targets and len(set(self.expert_groups)) > 1:
            raise ValueError(f"LoRA target 'router' with groups of {self.expert_groups} experts: train expert_router in full")
        if "router" in self.lora_per_task:
            raise ValueError("lora_per_task has 'router', which is what tells the tasks apart; leave it to lora_targets")
        if self.ffn in ("moe", "typed_moe") and self.lora_per_task:
            raise ValueError(f"lora_per_task={self.lora_per_task}: a {self.ffn!r} knows no task to route by; use ffn='ta_moe'")
        stacked = "experts" in self.lora_targets or (self.shared_expert_per_task and "shared_expert" in self.lora_targets)
        if stacked and self.experts_backend == "grouped_mm" and self.lora_rank % 4:
            raise ValueError(
                f"lora_rank={self.lora_rank} on experts must be a multiple of 4 (8 in bf16): grouped_mm needs 16-byte rows"
            )

    def _check_deltas(self) -> None:
        if unknown := sorted(self.task_deltas.keys() - set(TASK_KEYS)):
            raise ValueError(f"task_deltas of {unknown[0]!r}: tasks are {', '.join(TASK_KEYS)}")
        plain = self.ffn == "dense" and self.per_group_layers is None and not self.lora_rank and self.group_by == "task"
        if self.task_deltas and not (plain and self.num_tasks == 2 and not (self.attention_bias or self.mlp_bias)):
            raise ValueError(
                f"task_deltas with ffn={self.ffn!r}, per_group_layers={self.per_group_layers}, lora_rank={self.lora_rank}, "
                f"group_by={self.group_by!r}, num_tasks={self.num_tasks}, attention_bias={self.attention_bias}, "
                f"mlp_bias={self.mlp_bias}: they go with a dense decoder without biases and low-rank updates, and with two tasks"
            )

    @property
    def adaptable(self) -> tuple[str, ...]:
        """The ``LORA_TARGETS`` that this structure has."""
        mixtures = len(self.mixture_layers)
        shared = ("shared_expert",) if self.shared_expert else ()
        dense = ("mlp",) if mixtures < self.num_hidden_layers else ()
        return ("attention", *(("experts", *shared, "router") if mixtures else ()), *dense)

    @property
    def described(self) -> str:
        """The structure in a few words: "dense", "4 of 24 layers untied by task", or a mixture's kind, groups and layers."""
        several = {
            "plain": "",
            "interaction": f" with {self.lora_experts} B per A",
            "modality": f" with {self.lora_experts} + 1 pairs",
        }
        low = f", LoRA r={self.lora_rank}{several[self.lora_kind]}" if self.lora_rank else ""
        if self.per_group_layers is not None:
            parts = "" if len(self.per_group_parts) == len(LAYER_PARTS) else f" ({', '.join(self.per_group_parts)} only)"
            return f"{len(self.per_group_layers)} of {self.num_hidden_layers} layers with weights per {self.group_by}{parts}"
        if self.ffn == "dense":
            counted = {task: count_forms(some).items() for task, some in self.task_deltas.items()}
            forms = [f"{task} {', '.join(f'{n} {kind}' for kind, n in some)}" for task, some in counted.items()]
            return f"dense{low}" + (f" with weights per task ({'; '.join(forms)})" if forms else "")
        group = f"{self.num_groups} group(s) of {'/'.join(map(str, self.expert_groups))} experts, top {self.num_experts_per_tok}"
        each = " per task" if self.shared_expert_per_task else ""
        shared = f", a shared expert{each}" if self.shared_expert else ""
        return f"{self.ffn}: {group}{shared} in {len(self.mixture_layers)} of {self.num_hidden_layers} layers{low}"

    @property
    def labelled_updates(self) -> bool:
        """Whether low-rank updates or deltas per group need labels: nothing in a dense model learns to route."""
        routed = any(self.num_lora_pairs(target) > 1 for target in self.lora_targets)
        return self.ffn == "dense" and (routed or bool(self.task_deltas) or self.lora_kind == "modality")

    @property
    def switchable_updates(self) -> bool:
        """Whether a dense decoder has low-rank updates and a token without a group meets none of them."""
        pairs = [self.num_lora_pairs(target) for target in self.lora_targets]
        return self.ffn == "dense" and bool(self.lora_rank and pairs) and (self.lora_kind == "modality" or min(pairs) > 1)

    @property
    def mixture_layers(self) -> tuple[int, ...]:
        """Layers whose FFN is a mixture of experts, in order."""
        if self.ffn == "dense":
            return ()
        return tuple(range(self.num_hidden_layers)) if self.moe_layers is None else tuple(sorted(self.moe_layers))

    def num_weight_sets(self, layer: int, part: str | None = None) -> int:
        """Sets of weights of ``part`` (of ``LAYER_PARTS``; None: of any) in ``layer``: one, or one per group."""
        untied = self.per_group_layers is not None and layer in self.per_group_layers
        return self.num_tasks if untied and (part is None or part in self.per_group_parts) else 1

    @property
    def num_groups(self) -> int:
        """Expert groups: one per task, those of ``group_by``, or a single one for a plain mixture."""
        if self.ffn == "typed_moe":
            return len(GROUP_NAMES[self.group_by])
        return self.num_tasks if self.ffn == "ta_moe" else 1

    @property
    def expert_groups(self) -> tuple[int, ...]:
        """Experts of each group, in order."""
        if self.group_sizes is not None:
            return tuple(self.group_sizes)
        return (self.num_experts // self.num_groups,) * self.num_groups

    @property
    def experts_per_group(self) -> int:
        """Experts per group; where groups differ in size, of the smallest, which bounds ``num_experts_per_tok``."""
        return min(self.expert_groups)

    def num_lora_pairs(self, target: str) -> int:
        """Return the number of (A, B) pairs of ``target``: 0 (not adapted), 1, or one per task."""
        if not self.lora_rank or target not in self.lora_targets:
            return 0
        return 2 if target in self.lora_per_task else 1


@versioned({}, dict)
@strict
class UniVQConfig(JanusVQVAEConfig):
    """The image tokenizer's configuration.

    Attributes:
        encode_window: pixels a side of the windows that are encoded each on its own, 0 for the whole image as Janus does.
            Normalisation and attention over a whole image tell every token what is drawn elsewhere, which a small
            generator cannot learn to predict (docs/experiments/image-tokenizer.md). Ours, for tiny models.
    """

    encode_window: int = 0


@versioned({}, dict)
@strict
class UniJanusConfig(JanusConfig):
    """Janus with our decoder: ``text_config`` is a ``UniLlamaConfig``, the rest is transformers' own."""

    model_type = "unidecouple_janus"
    sub_configs_defaults = {
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="unidecouple_llama"),
        "vision_config": JanusVisionConfig,
        "vq_config": UniVQConfig,
    }

    schema_version: int = SCHEMA_VERSION


AutoConfig.register("unidecouple_llama", UniLlamaConfig)
AutoConfig.register("unidecouple_janus", UniJanusConfig)
