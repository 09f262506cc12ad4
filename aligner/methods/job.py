"""The job that a method's `train` gets, and the responses that the report shows from before and
after training."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from aligner.config.choices import SHARDED
from aligner.config.recipe import TrainRecipe
from aligner.data.rows import Messages, Row, as_turns, question_of, variables_of
from aligner.errors import DataError
from aligner.events import Event, Notice, OnEvent, StageStarted, Warned
from aligner.launch.world import world
from aligner.runs.run import Run
from aligner.tokenization.dataset import TokenizedData

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from aligner.generation.decode import Completion
    from aligner.losses.types import Objective
    from aligner.reward_models.base import Scorer
    from aligner.reward_models.card import Card

KEEPS_FLOAT32 = (*SHARDED, "zero1", "zero2")
"""Strategies under which weights are updated in float32, whatever data type they are loaded in."""


@dataclass(frozen=True)
class Job:
    """One training job: the frozen recipe, its run directory, the tokenizer, the tokenized data,
    the listener."""

    recipe: TrainRecipe
    run: Run
    tokenizer: PreTrainedTokenizerBase
    prepared: TokenizedData
    on_event: OnEvent | None = None
    questions: Sequence[tuple[str | Messages, str | None]] = field(default_factory=tuple)
    """Held-out prompts with their expected answers, for the report."""
    arena_prompts: Sequence[tuple[str | Messages, str | None]] = field(default_factory=tuple)
    """Held-out prompts with their expected answers, for battles with the start."""
    max_new_tokens: int | None = None
    """Of an answer for the report; None for what the recipe says."""
    objective: Objective | None = None
    """The loss, where it was given as a function in Python."""
    scorers: Mapping[str, Scorer] = field(default_factory=dict)
    """What stands in the recipe for scorers that were given in Python -> these."""

    @property
    def is_sharded(self) -> bool:
        """Say whether this process will hold a part of the model alone."""
        return self.recipe.launch.strategy in SHARDED and world()[1] > 1

    def say(self, text: str) -> None:
        """Tell the listener that a part of the work begins."""
        if self.on_event:
            self.on_event(StageStarted(text))

    def note(self, text: str) -> None:
        """Tell the listener something that is good to know."""
        if self.on_event:
            self.on_event(Notice(text))

    def warn(self, text: str) -> None:
        """Tell the listener something to look at, and keep it for the report."""
        if world()[0] == 0 and text not in (kept := self.run.read_json("warnings.json") or []):
            self.run.write_json("warnings.json", [*kept, text])
        if self.on_event:
            self.on_event(Warned(text))

    def announce_walls(self, cards: Sequence[Card]) -> None:
        """Warn of what programs can do that scorers of these cards run, and keep which walls
        stand."""
        from aligner.reward_models.isolation import announce_walls

        def warn(event: Event) -> None:
            assert isinstance(event, Warned)
            self.warn(event.text)

        self.run.record_isolation(announce_walls(cards, warn))

    def tell_trained(self, model: Any, rate: float) -> None:
        """Say how many weights are trained, where, and what is left out; keep it for the report and
        the card."""
        from aligner.models.trained_weights import describe_trained, trained_of, unmoved

        found = trained_of(model, self.recipe.model.lora)
        for line in describe_trained(found, self.recipe.model.quantization):
            self.note(line)
        if world()[0] == 0:
            self.run.write_json("weights.json", found.to_json())
        if self.recipe.launch.strategy not in KEEPS_FLOAT32 and (remark := unmoved(model, rate)):
            self.warn(remark)

    def answer_before(self, model: Any) -> None:
        """Let the model that training starts from answer the held-out prompts; kept over a
        resumption."""
        if self._answers_here() and self.run.read_json("samples.json") is None:
            self.say(f"answering {self._prompts} before training")
            texts = self._answers(model)
            samples = [
                {"prompt": _shown(prompt), "before": text, "after": None, "expected": expected}
                for (prompt, expected), text in zip(self.questions, texts)
            ]
            self.run.write_json("samples.json", samples)

    def answer_after(self, trainer: Any) -> None:
        """Let the trained model answer the same prompts."""
        if self._answers_here():
            self.say(f"answering {self._prompts} after training")
            texts = self._answers(trainer.accelerator.unwrap_model(trainer.model))
            samples = self.run.read_json("samples.json") or []
            self.run.write_json(
                "samples.json", [{**old, "after": new} for old, new in zip(samples, texts)]
            )

    @property
    def _prompts(self) -> str:
        return "prompts of training rows" if self.prepared.eval is None else "held-out prompts"

    def _answers_here(self) -> bool:
        """Only the main process answers, and only a model that it holds whole."""
        if not self.questions or world()[0] != 0:
            return False
        if self.recipe.launch.strategy in SHARDED and world()[1] > 1:
            if self.on_event:
                self.on_event(
                    Notice("the report shows no answers: no process holds the whole model")
                )
            return False
        return True

    def _answers(self, model: Any) -> list[str]:
        prompts = [prompt for prompt, _ in self.questions]
        longest = self.max_new_tokens or self.recipe.report.max_new_tokens
        return [answer.text for answer in self.greedy(model, prompts, longest, batch_size=8)]

    def greedy(
        self,
        model: Any,
        prompts: Sequence[str | Messages],
        longest: int,
        *,
        batch_size: int,
        on_progress: Callable[[int, int], None] | None = None,
    ) -> list[Completion]:
        """Return the likeliest answer of a model of this run to each prompt, of at most `longest`
        tokens."""
        from aligner.generation.decode import generate
        from aligner.generation.engines import HELD, engine_for
        from aligner.generation.sampling import Sampling
        from aligner.launch.devices import best_device

        if self.recipe.model.quantization == "none":
            model.to(best_device())
        sampling = Sampling(max_new_tokens=longest, temperature=0.0)
        name = self.recipe.generation.engine
        engine = engine_for(model, name=name if name in HELD else "auto", batch_size=batch_size)
        answers = generate(
            model,
            self.tokenizer,
            prompts,
            sampling,
            batch_size=batch_size,
            on_progress=on_progress,
            engine=engine,
        )
        return [samples[0] for samples in answers]


def questions_from(rows: Sequence[Row], number: int) -> list[tuple[str | Messages, str | None]]:
    """Return the first prompts of held-out rows with their expected answers, for the report: of
    rows that need no tools and set no variables of the chat template."""
    without = [row for row in rows if not getattr(row, "tools", None) and not variables_of(row)]
    found = [question for row in without if (question := question_of(row)) is not None]
    return found[:number]


def arena_prompts_from(rows: Sequence[Row], number: int) -> list[tuple[str | Messages, str | None]]:
    """Return the first different prompts of held-out rows with their expected answers, for battles
    with the start.

    Raises: DataError where there are fewer than two.
    """
    found: dict[str, tuple[str | Messages, str | None]] = {}
    for prompt, expected in questions_from(rows, len(rows)):
        if len(found) < number:
            found.setdefault(json.dumps(as_turns(prompt, "user")), (prompt, expected))
    if len(found) < 2:
        raise DataError(
            f"eval.arena: held-out rows have {len(found)} prompts that can be answered",
            "hold out more rows (data.eval); rows with tools and plain text have no such prompt",
        )
    return list(found.values())


def _shown(prompt: str | Messages) -> str:
    if isinstance(prompt, str):
        return prompt
    if len(prompt) == 1:
        return str(prompt[0]["content"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)
