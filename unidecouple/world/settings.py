"""Settings of the synthetic benchmark's training data and tests: ``data: {kind: world, …}`` in a recipe."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal

from unidecouple import bounds
from unidecouple.batch import Task
from unidecouple.data.settings import DataSettings
from unidecouple.world.catalog import NEW_WORDS


@dataclass(frozen=True)
class CurriculumPhase:
    """Steps at the start of a run in which understanding is trained on simpler samples than conversations.

    Attributes:
        kind: "pointing" (image, class word, then its colour), "describing" (as pointing, then the two words of its position in
            either order), "asking" (as pointing, with a question mark and the assistant's turn before the colour), "placing" (as
            asking, for its position), "caption" (a conversation that is the caption alone), "presence" (POPE questions alone) or
            "conversation" (as after the curriculum).
        steps: how many.
        batch_size: samples per step, in place of ``mmu_batch_size``; the sequences are short.
    """

    kind: Literal["pointing", "describing", "asking", "placing", "caption", "presence", "conversation"]
    steps: int
    batch_size: int = 64

    def __post_init__(self) -> None:
        bounds.at_least(0, self, "steps")
        bounds.at_least(1, self, "batch_size")


@dataclass(frozen=True)
class SyntheticEvaluation:
    """Sizes of the synthetic benchmark's validation and test sets.

    Attributes:
        eval_images, eval_prompts: images asked about, and prompts per tag (one image each), in scores during training.
        pope_images: images of POPE at the end (18 distinct questions each); at least 2, whose classes differ.
        vqa_questions: questions per kind.
        prompts_per_tag: test prompts per GenEval tag (102 exist); at least 2, since another prompt is the judge's floor.
        num_images: images per prompt; 4 in GenEval's protocol.
        edits_per_kind: test edits of each kind; 0: none.
        visual_cot_questions: questions of the benchmark ``visual_cot`` about each kind of edit, at least 2; 0: none.
        passages: English passages (64 exist) whose likelihood is scored, during training too; 0: none.
        multiple_choice: questions (80 exist) of the benchmark ``multiple_choice`` that are scored, during training too; 0: none.
        instructions: fixed instructions (6 exist) whose answers the report shows; 0: none.
    """

    eval_images: int = 24
    eval_prompts: int = 8
    pope_images: int = 100
    vqa_questions: int = 200
    prompts_per_tag: int = 102
    num_images: int = 4
    passages: int = 0
    edits_per_kind: int = 0
    visual_cot_questions: int = 0
    multiple_choice: int = 0
    instructions: int = 0

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "eval_prompts", "vqa_questions", "num_images")
        bounds.at_least(2, self, "eval_images", "pope_images", "prompts_per_tag")
        bounds.at_least(0, self, "passages", "edits_per_kind", "visual_cot_questions", "multiple_choice", "instructions")
        if self.visual_cot_questions == 1:
            raise ValueError("visual_cot_questions=1 leaves no other question whose image is the wrong one: give 2 or more, or 0")


@dataclass(frozen=True)
class SyntheticData(DataSettings):
    """The synthetic benchmark: OpenMoji scenes with captions, questions and prompts.

    Attributes:
        pairs, scenes, seed: size and seed of the training data (see ``WorldData``).
        t2i_batch_size: text-to-image samples per step; 0: understanding only.
        mmu_batch_size: conversations about images per step; 0: generation only.
        turns: maximum questions per conversation; 0: captions alone, as diagnoses use them.
        curriculum: phases of simpler understanding samples, one after the other, before conversations. A model from scratch needs
            them to use the image at all (docs/experiments/learning-to-look.md).
        single_object_steps: steps at the start of the run whose pairs show one object with its colour named. A model that has
            never generated images otherwise ignores the prompt (docs/experiments/reading-prompts.md); Janus-Pro's first stage
            starts from single objects, too (arXiv 2501.17811, section 2.2).
        edit_fraction: fraction of the text-to-image samples that are edits: a scene, an instruction, and the scene that results
            (``world/edits.py``); as many different ones as ``pairs``.
        edit_question_fraction: fraction of the conversations that are a question about the scene after an edit, half of them with
            the edited image after the source (``world/edit_questions.py``), as the benchmark ``visual_cot`` asks.
        cond_dropout_prob: fraction of prompts dropped, for classifier-free guidance.
        router_aux_samples: images of pairs per step that are also given as understanding inputs, with random words or their
            prompt as the conversation. They train the task router where there is little or no understanding data; no answer is
            learned from them. Ours.
        new_words: number of new words (``catalog.NEW_WORDS``; even, at most 8). The first half is plentiful in conversations and
            rare in prompts, the second half the reverse. The run must add them to the tokenizer: ``add_tokens``.
        new_word_share: chance that a sample uses a new word.
        rare_samples: scenes, or pairs, of each rare word; 0: only the other task's data use it.
        text_share: fraction of understanding samples that are English text without an image (``world/text.py``), curriculum
            included. Their loss is on every token, so a passage of 60 tokens counts as much as 60 tokens of answers.
        evaluation: sizes of the validation and test sets.
    """

    kind: Literal["world"] = "world"
    pairs: int = 12000
    scenes: int = 6000
    seed: int = 0
    turns: int = 6
    curriculum: tuple[CurriculumPhase, ...] = ()
    single_object_steps: int = 0
    edit_fraction: float = 0.0
    edit_question_fraction: float = 0.0
    cond_dropout_prob: float = 0.1
    router_aux_samples: int = 0
    new_words: int = 0
    new_word_share: float = 0.25
    rare_samples: int = 0
    text_share: float = 0.0
    evaluation: SyntheticEvaluation = field(default_factory=SyntheticEvaluation)

    GENERATED: ClassVar[bool] = True
    TEST_SETTINGS: ClassVar[tuple[str, ...]] = tuple(
        f"evaluation.{one.name}" for one in fields(SyntheticEvaluation) if not one.name.startswith("eval_")
    )
    RENAMED_KEYS: ClassVar[dict[str, str]] = {
        "lessons": "curriculum",
        "simple_steps": "single_object_steps",
        "router_pairs": "router_aux_samples",
    }

    def __post_init__(self) -> None:
        bounds.at_least(1, self, "pairs", "scenes")
        natural = ("seed", "t2i_batch_size", "mmu_batch_size", "turns", "single_object_steps", "router_aux_samples")
        bounds.at_least(0, self, *natural, "rare_samples")
        bounds.between(0, 1, self, "cond_dropout_prob", "new_word_share", "edit_fraction", "edit_question_fraction", "text_share")
        if self.new_words % 2 or not 0 <= self.new_words <= len(NEW_WORDS):
            raise ValueError(f"new_words={self.new_words} must be an even number from 0 to {len(NEW_WORDS)}")

    @property
    def planning_note(self) -> str:
        """See ``DataSettings``."""
        notes = {
            "the curriculum is planned as conversations of the recipe's batch size": self.curriculum,
        }
        return "; ".join(note for note, applies in notes.items() if applies)

    def samples(self, task: Task, steps: range) -> int:
        """See ``DataSettings``; phases of the curriculum have separate batch sizes."""
        found, end = super().samples(task, steps), 0
        for phase in self.curriculum if task is Task.MMU else ():
            begin, end = end, end + phase.steps
            there = max(0, min(end, steps.stop) - max(begin, steps.start))
            found += there * (phase.batch_size - self.mmu_batch_size)
        return found

    def _sizes(self) -> tuple[int, ...]:
        return (*super()._sizes(), *(phase.batch_size for phase in self.curriculum))
