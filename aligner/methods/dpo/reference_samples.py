"""Samples of the reference, drawn once before training, on which the forward KL to it is estimated.

E_x KL(pi_ref || pi) is the mean of log pi_ref(y|x) - log pi(y|x) over answers y of the reference.
Each pair gets one answer to its prompt, sampled at temperature 1 without any cut of the
distribution, so that pairs with the same prompt have different ones; its log-probability under the
reference goes along, so that what is logged is a KL and not a likelihood. Only log pi(y|x) has a
gradient.

An answer that is not finished after `dpo.forward_kl_tokens` tokens, or where `data.max_length`
ends, is a beginning of one: then the divergence is that of beginnings, which is never larger than
that of whole answers.

They are kept as the reference's log-probabilities are (`aligner.training.reference`), under a hash
of the reference, the prompts, the seed and the lengths. An answer does not depend on how many
processes share the work.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object
from safetensors.torch import load_file, save_file

from aligner.events import Notice, StageProgress, Warned
from aligner.generation.decode import continue_ids
from aligner.generation.engines import HELD
from aligner.generation.mismatch import Compared, Mismatch
from aligner.generation.sampling import Sampling
from aligner.generation.writers import open_engine
from aligner.models.answers import batched_logps
from aligner.runs.cache import cache_folder, check_cache, is_kept, keep
from aligner.training.reference import (
    ReferenceScorer,
    content_key,
    load_reference,
    reference_section,
)

if TYPE_CHECKING:
    from datasets import Dataset

VERSION = "1"
"""Changed when the way the samples are made changes, so that old ones are not used."""

SUSPICIOUS = 0.1
"""KL in nats a token between an engine and the reference, far above what kernels differ by."""

Written = tuple[int, list[int], float, bool]
"""Row, token ids, log-probability under the reference, whether the answer is only a beginning."""


def with_samples(rows: Dataset, scorer: ReferenceScorer, name: str) -> Dataset:
    """Add `sample_ids` (N, tokens) and `reference_sample` (N,), from the cache or written now."""
    recipe, section = scorer.recipe, reference_section(scorer.recipe)
    version = f"{VERSION} {recipe.seed} {recipe.dpo.forward_kl_tokens} {recipe.data.max_length}"
    if recipe.generation.engine not in HELD:  # those draw the same numbers
        version += f" {recipe.generation.engine}"
    key = content_key(version, recipe, section, scorer.bf16, rows, ("prompt_ids",))
    file = cache_folder("samples") / f"{key}.safetensors"
    if agreed(is_kept(file, scorer.tell)):
        written = agreed(_read(file) if PartialState().is_main_process else None)
        text = f"answers of the reference to the {name} prompts: from the cache ({file})"
        scorer.tell(Notice(text))
    else:
        check_cache(file)
        written = _write(rows, scorer, name)
        if PartialState().is_main_process:
            keep(file, partial(_save, written))
        PartialState().wait_for_everyone()
    if unfinished := sum(one[3] for one in written):
        where = f"dpo.forward_kl_tokens={recipe.dpo.forward_kl_tokens}, or data.max_length"
        share = f"{unfinished / len(written):.0%} of the reference's answers to the {name} prompts"
        text = f"{share} end unfinished ({where}); the forward KL is that of their beginnings"
        scorer.tell(Notice(text))
    columns = {
        "sample_ids": [one[1] for one in written],
        "reference_sample": [one[2] for one in written],
    }
    for column, values in columns.items():
        rows = rows.add_column(column, values)
    return rows


def agreed(value: Any) -> Any:
    """Return what the main process holds, on every process."""
    if PartialState().num_processes == 1:
        return value
    return broadcast_object_list([value])[0]


def _write(rows: Dataset, scorer: ReferenceScorer, name: str) -> list[Written]:
    """Let the reference answer every prompt, each process its part, and return all of it on every
    process."""
    model, autocast = load_reference(scorer, reference_section(scorer.recipe))
    state = PartialState()
    mine = range(state.process_index, len(rows), state.num_processes)
    prompts = rows.select(mine)["prompt_ids"]
    answers, unfinished = _answers(model, scorer, prompts, list(mine), name)
    logps = batched_logps(
        model,
        lambda i: [(prompts[i], answers[i])],
        [len(prompt) + len(answer) for prompt, answer in zip(prompts, answers)],
        pad_token_id=scorer.tokenizer.pad_token_id,
        batch_rows=scorer.batch_size,
        autocast=autocast,
    )
    parts = list(zip(mine, answers, [logp for (logp,) in logps], unfinished))
    return sorted(gather_object(parts) if state.num_processes > 1 else parts)


def _answers(
    model: Any, scorer: ReferenceScorer, prompts: list[list[int]], places: list[int], name: str
) -> tuple[list[list[int]], list[bool]]:
    """Return an answer to each prompt, cut where a row may be no longer, and whether it is only a
    beginning."""
    recipe = scorer.recipe

    def on_progress(done: int, total: int) -> None:
        scorer.tell(StageProgress(f"answers of the reference, {name}", done, total))

    longest = recipe.dpo.forward_kl_tokens
    rooms = [max(1, min(longest, recipe.data.max_length - len(prompt))) for prompt in prompts]
    sampling = [Sampling(max_new_tokens=room, seed=recipe.seed) for room in rooms]
    with open_engine(
        recipe.generation,
        reference_section(recipe),
        scorer.tokenizer,
        load=lambda: model,
        batch_size=scorer.batch_size,
        exact=True,
        on_event=scorer.on_event,
    ) as (writer, engine):
        if recipe.generation.engine not in HELD:
            engine = Compared(engine, model, partial(_tell_mismatch, scorer))
        written = continue_ids(
            writer,
            scorer.tokenizer,
            prompts,
            sampling,
            batch_size=scorer.batch_size,
            streams=places,
            on_progress=on_progress,
            engine=engine,
        )
    ids = [
        one.token_ids[: recipe.data.max_length - len(prompt)]
        for prompt, (one,) in zip(prompts, written)
    ]
    unfinished = [
        one.finish_reason == "length" or len(kept) < len(one.token_ids)
        for kept, (one,) in zip(ids, written)
    ]
    return ids, unfinished


def _tell_mismatch(scorer: ReferenceScorer, found: Mismatch | None) -> None:
    engine = f"the engine `{scorer.recipe.generation.engine}`"
    if found is None:
        text = f"{engine} tells no log-probabilities, and none are compared with the reference's"
        scorer.tell(Notice(text))
    elif found.kl > SUSPICIOUS:
        text = f"{engine} has other weights, or another template, than the reference: {found}"
        scorer.tell(Warned(text))
    else:
        scorer.tell(Notice(f"{engine} beside the reference: {found}"))


def _save(written: list[Written], file: Path) -> None:
    columns = {
        "ids": torch.tensor([token for one in written for token in one[1]], dtype=torch.int32),
        "lengths": torch.tensor([len(one[1]) for one in written]),
        "logps": torch.tensor([one[2] for one in written], dtype=torch.float64),
        "unfinished": torch.tensor([one[3] for one in written]),
    }
    save_file(columns, str(file))


def _read(file: Path) -> list[Written]:
    found = load_file(str(file))
    ids = [part.tolist() for part in found["ids"].split(found["lengths"].tolist())]
    return list(zip(range(len(ids)), ids, found["logps"].tolist(), found["unfinished"].tolist()))
