"""The writer of SAPO's pairs: windows of good answers, rewritten by the weights that the model has
at the moment."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aligner.generation.decode import continue_ids
from aligner.generation.engines import engine_for
from aligner.generation.sampling import Sampling, number_of
from aligner.methods.sapo.recipe import Sapo
from aligner.methods.sapo.replay_buffer import Rewrite
from aligner.methods.sapo.windows import sample_window, splice
from aligner.reward_models.base import Scorer


@dataclass(frozen=True, slots=True)
class Writer:
    """Rewrites rows with whatever weights the model has at the moment."""

    tokenizer: Any
    settings: Sapo
    seed: int
    batch_size: int
    stops: tuple[int, ...]
    scorer: Scorer | None = None
    engine: str = "auto"
    """One of `aligner.generation.engines.HELD`."""

    def rewrite(
        self,
        model: Any,
        rows: Sequence[dict[str, Any]],
        step: int | str,
        window: int | None,
        samples: int = 1,
    ) -> list[Rewrite]:
        """Return `samples` pairs of each row; useless ones are written again, up to
        `settings.retries` times."""
        places = [(row, sample) for row in rows for sample in range(samples)]
        done = self._attempt(model, places, step, window, 0)
        for attempt in range(1, self.settings.retries + 1):
            useless = [i for i, rewrite in enumerate(done) if rewrite.is_useless]
            again = self._attempt(model, [places[i] for i in useless], step, window, attempt)
            for i, rewrite in zip(useless, again):
                done[i] = rewrite
        return done

    def _judge(
        self,
        rewrites: Sequence[Rewrite],
        whole: Sequence[list[int]],
        rows: Sequence[dict[str, Any]],
    ) -> None:
        """Mark the rewrites that the verifier scores at least as high as the answers, each with its
        suffix (`whole`)."""
        judged = [one for one in zip(rewrites, whole, rows) if not one[0].is_identical]
        if self.scorer is None or not judged:
            return
        prompts, answers = (
            [json.loads(row["prompt"]) for *_, row in judged],
            [row["answer"] for *_, row in judged],
        )
        texts = [
            self.tokenizer.decode(
                list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
            )
            for _, ids, _ in judged
        ]
        theirs = self.scorer.score(prompts, texts, answers)
        ours = self.scorer.score(prompts, answers, answers)
        for (rewrite, *_), one, other in zip(judged, theirs, ours):
            rewrite.is_as_good = one >= other

    def _attempt(
        self,
        model: Any,
        places: Sequence[tuple[dict[str, Any], int]],
        step: int | str,
        window: int | None,
        attempt: int,
    ) -> list[Rewrite]:
        if not places:
            return []
        keys = [number_of(self.seed, step, row["row"], sample, attempt) for row, sample in places]
        windows = [
            sample_window(len(row["chosen_ids"]), window, random.Random(key))
            for key, (row, _) in zip(keys, places)
        ]
        contexts = [
            [*row["prompt_ids"], *row["chosen_ids"][:start]]
            for (row, _), (start, _) in zip(places, windows)
        ]
        sampling = [
            Sampling(
                max_new_tokens=size,
                temperature=self.settings.temperature,
                top_k=self.settings.top_k,
                top_p=self.settings.top_p,
            )
            for _, size in windows
        ]
        engine = engine_for(model, name=self.engine, batch_size=self.batch_size)
        written = continue_ids(
            model, self.tokenizer, contexts, sampling, streams=keys, engine=engine
        )
        done, whole = [], []
        for (row, sample), (start, size), (answer,) in zip(places, windows, written):
            chosen = list(row["chosen_ids"])
            glued = splice(chosen, start, size, answer.token_ids, self.stops, keep_suffix=True)
            rejected = glued
            if self.settings.suffix == "drop":
                rejected = splice(
                    chosen, start, size, answer.token_ids, self.stops, keep_suffix=False
                )
            created_step, same = step if isinstance(step, int) else 0, glued == chosen
            done.append(
                Rewrite(
                    row["row"],
                    sample,
                    list(row["prompt_ids"]),
                    chosen,
                    rejected,
                    created_step,
                    is_same=same,
                )
            )
            whole.append(glued)
        self._judge(done, whole, [row for row, _ in places])
        return done
