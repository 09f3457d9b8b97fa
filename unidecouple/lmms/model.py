"""A checkpoint of ours as a model of lmms-eval (0.7): greedy answers, and likelihoods of given ones.

Answers are about any number of images, also after an auxiliary image that the model generates first. A likelihood with several
images is an error that names its document. Arguments in ``--model_args``: pretrained, device, dtype, seed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import torch
from lmms_eval.api.instance import Instance
from lmms_eval.api.model import lmms
from tqdm import tqdm

from unidecouple.convert.load import load
from unidecouple.data.pictures import to_rgb
from unidecouple.data.sequences import SequenceBuilder
from unidecouple.generate.image import decode_images, draw_tokens
from unidecouple.generate.jobs import ImageJob
from unidecouple.generate.likelihood import log_likelihood
from unidecouple.generate.sampling import image_sampling
from unidecouple.generate.stopping import before_stop
from unidecouple.generate.text import answer

_LONGEST = 32
"""Default longest answer, in tokens."""
_MARKS: Final = ("GEN_PROMPT", "QUESTION")


class Unidecouple(lmms):
    """See the module.

    Args:
        pretrained: checkpoint folder, run, or shipped base.
        batch_size: requests answered together; answers do not depend on it.
        device: as torch names it.
        dtype: of the weights, as torch names it.
        seed: of generated images, whose sampling is the checkpoint's.
    """

    def __init__(
        self,
        pretrained: str,
        batch_size: int | str = 1,
        device: str = "cpu",
        dtype: str = "float32",
        seed: int | str = 0,
        **_given: Any,
    ) -> None:
        super().__init__()
        self._seed = int(seed)
        model, self._processor = load(pretrained, getattr(torch, dtype))
        self._model, self._batch_size = model.to(device), int(batch_size)
        self._builder = SequenceBuilder(self._processor)

    def generate_until(self, requests: Sequence[Instance]) -> list[str]:
        """Greedy answers, cut before the first of a task's "until" texts."""
        answers: list[str] = []
        for start in tqdm(range(0, len(requests), self._batch_size), desc="answering", disable=None):
            batch = [request.args for request in requests[start : start + self._batch_size]]
            pictures = [self._pictures(*arguments[2:6]) for arguments in batch]
            answers += self._answers(batch, pictures, [arguments[0] for arguments in batch])
        return answers

    def generate_visual_cot(self, requests: Sequence[Instance]) -> list[str]:
        """Answers as ``generate_until``, about a document's images and, after them, one that the model generates from them first.

        A context has its prompt in [GEN_PROMPT]...[/GEN_PROMPT] and its question in [QUESTION]...[/QUESTION]; as in lmms-eval's
        protocol (tasks/unig2u/README.md) the whole context stands in place of either that is missing. An image depends on the
        seed, the number of its document, its prompt and its source images.
        """
        answers: list[str] = []
        for start in tqdm(range(0, len(requests), self._batch_size), desc="generating, then answering", disable=None):
            batch = [request.args for request in requests[start : start + self._batch_size]]
            pictures = [self._pictures(*arguments[2:6]) for arguments in batch]
            prompts, questions = ([_marked(arguments[0], mark) for arguments in batch] for mark in _MARKS)
            sampling = image_sampling(self._model.generation_config)
            jobs = [
                ImageJob.of(self._builder, prompt, (self._seed, arguments[3], 0), sampling, pictures=shown)
                for prompt, arguments, shown in zip(prompts, batch, pictures, strict=True)
            ]
            auxiliary = decode_images(self._model, draw_tokens(self._model, self._builder, jobs))
            together = [[*shown, image] for shown, image in zip(pictures, auxiliary, strict=True)]
            answers += self._answers(batch, together, questions)
        return answers

    def _answers(
        self, batch: Sequence[tuple[Any, ...]], pictures: Sequence[Sequence[np.ndarray]], questions: Sequence[str]
    ) -> list[str]:
        settings = [dict(arguments[1]) for arguments in batch]
        longest = max(int(setting.get("max_new_tokens", _LONGEST)) for setting in settings)
        found = answer(self._model, self._builder, pictures, questions, longest, len(batch))
        return [before_stop(text, _stops(setting)) for text, setting in zip(found, settings, strict=True)]

    def loglikelihood(self, requests: Sequence[Instance]) -> list[tuple[float, bool]]:
        """Of each continuation, how likely it is (nats, summed over its tokens) and whether greedy decoding would begin with it.

        A target of a task with output_type loglikelihood gets its log-probability, as documented. A choice of multiple_choice
        gets minus that: lmms-eval 0.7 takes the smallest value for the best there, since its own models return losses.

        Raises:
            ValueError: a choice without a document, as mutual information asks for (0.7.3 pairs those values wrongly), several
                images, or an empty continuation.
        """
        found: list[tuple[float, bool]] = []
        for start in tqdm(range(0, len(requests), self._batch_size), desc="weighing", disable=None):
            found += self._weighed([request.args for request in requests[start : start + self._batch_size]])
        return found

    def generate_until_multi_round(self, requests: Sequence[Instance]) -> list[str]:
        """Not supported: our models are asked one question at a time."""
        raise NotImplementedError("unidecouple answers single questions; choose a task of one round")

    def _weighed(self, batch: Sequence[tuple[Any, ...]]) -> list[tuple[float, bool]]:
        """What ``loglikelihood`` gives for the arguments of some requests; those without an image go by themselves."""
        if any(len(arguments) < 6 for arguments in batch):
            raise ValueError("acc_mutual_info asks for choices without a document, and cannot be had: leave it out of the metrics")
        shown = [bool(arguments[2](self.task_dict[arguments[4]][arguments[5]][arguments[3]])) for arguments in batch]
        found: dict[int, tuple[float, bool]] = {}
        for seen in set(shown):
            mine = [place for place, one in enumerate(shown) if one is seen]
            pictures = [self._picture(*batch[place][2:6]) for place in mine] if seen else None
            said = [self._continuation(*batch[place][1:6]) for place in mine]
            asked = [batch[place][0] for place in mine]
            values = log_likelihood(self._model, self._builder, pictures, asked, said)
            for place, (value, greedy) in zip(mine, values, strict=True):
                found[place] = (-value if isinstance(batch[place][1], str) else value, greedy)
        return [found[place] for place in range(len(batch))]

    def _continuation(self, target: Any, _to_visual: Any, number: int, task: str, split: str) -> str:
        """A choice is given as text, a target as what finds it in the document."""
        return target if isinstance(target, str) else str(target(self.task_dict[task][split][number]))

    def _pictures(self, to_visual: Any, number: int, task: str, split: str) -> list[np.ndarray]:
        visuals = to_visual(self.task_dict[task][split][number]) or []
        return [self._processor.understood(to_rgb(one)) for one in visuals]

    def _picture(self, *document: Any) -> np.ndarray:
        pictures = self._pictures(*document)
        if len(pictures) != 1:
            raise ValueError(
                f"document {document[1]} of {document[2]} has {len(pictures)} images; unidecouple weighs answers about one"
            )
        return pictures[0]


def _stops(setting: Mapping[str, Any]) -> list[str]:
    until = setting.get("until") or []
    return [stop for stop in ([until] if isinstance(until, str) else until) if stop]


def _marked(context: str, mark: str) -> str:
    """What stands between ``[mark]`` and ``[/mark]`` in ``context``; all of it where there are none."""
    found = re.search(rf"\[{mark}\](.*?)\[/{mark}\]", context, re.DOTALL)
    return (found.group(1) if found else context).strip()
