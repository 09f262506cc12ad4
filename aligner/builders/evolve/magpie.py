"""Magpie (arXiv 2406.08464): an aligned model continues its own chat template where a user's words
begin, and so writes an instruction.

What ends the instruction is what ends a user's turn: the template's mark, or the model's stop
token. What was cut, is empty, holds control tokens or refuses is a typed failure, and the row is
drawn again or dropped as `evolve.failures` says. At a low temperature many instructions are the
same; the check of duplicates counts them.

Where we differ from the paper: nothing is filtered by difficulty, quality or a reward model here;
the checks are those of every mode. A system prompt steers the instruction only, and the answer is
asked for as in every mode.

Goes to `/completions` of a server, or to a local model. No seeds.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from aligner.builders.evolve.evolving import Clients, Evolution
from aligner.builders.evolve.failures import Failure
from aligner.builders.evolve.made import Turn
from aligner.builders.evolve.recipe import Evolve, EvolveRecipe
from aligner.builders.evolve.seeds import Seed
from aligner.config.recipe import Endpoint, Model
from aligner.data.refusals import refuses
from aligner.endpoints.request import ChatRequest, Completion, LLMError
from aligner.errors import EndpointError
from aligner.models.tokenizers import load_tokenizer
from aligner.tokenization.user_turn import UserTurn, text_of_ids, user_turn

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NEXT_TRY = 1_000_000_000
"""Between the sample indices of two tries at one row."""
NO_COMPLETIONS = (404, 405, 501)


class Magpie:
    """Writes instructions from nothing, as an `Author` of rows. `seed`: of the recipe."""

    def __init__(
        self, roles: Clients, settings: Evolve, tokenizer: PreTrainedTokenizerBase, seed: int
    ) -> None:
        """Raises: RecipeError or DataError, where the chat template does not fit."""
        self.roles, self.settings, self.tokenizer, self.seed = roles, settings, tokenizer, seed
        self.turn = user_turn(tokenizer, settings.magpie.system)
        text = text_of_ids(tokenizer, self.turn.ids)
        self.prompt = self.turn.ids if text is None else text

    def method_id(self, seed: Seed, round_: int) -> str | None:
        """None: rows have no evolving method."""

    async def write(
        self,
        seed: Seed,
        round_: int,
        instruction: str,
        history: Sequence[Turn],
        *,
        temperature: float | None,
        sample_index: int,
    ) -> Evolution:
        """Return the instruction of a row, which follows from its number and the seed alone.
        Further tries draw again, at the same temperature.

        Raises: LLMError where there is no reply; EndpointError for a server that continues no
        texts.
        """
        magpie = self.settings.magpie
        request = ChatRequest(
            prompt=self.prompt,
            temperature=magpie.temperature,
            top_p=magpie.top_p,
            max_tokens=magpie.max_tokens,
            stop=self.turn.ends,
            seed=self.seed,
            sample_index=seed.number + NEXT_TRY * sample_index,
            purpose="evolve",
        )
        try:
            completion = await self.roles.evolver.chat(request)
        except LLMError as error:
            if error.status not in NO_COMPLETIONS:
                raise
            raise EndpointError(
                f"mode magpie continues a chat template, and the server does not: {error.message}",
                "use a server with /completions for this model (vLLM, transformers serve, "
                "llama.cpp), or `backend: local`",
            ) from error
        return self.read(completion)

    def read(self, completion: Completion) -> Evolution:
        """Return the instruction that a continuation is, with its class of failure."""
        text = completion.text
        if completion.token_ids is not None:  # so that control tokens show
            text = self.tokenizer.decode(completion.token_ids, skip_special_tokens=False)
        text, is_cut = _until_end(text, self.turn, is_cut=completion.truncated)
        return Evolution(text, _failure(text, is_cut, self.turn), completion)


def _until_end(text: str, turn: UserTurn, *, is_cut: bool) -> tuple[str, bool]:
    """Return a continuation up to the end of the user's turn, and whether it has none."""
    places = [place for end in turn.ends if (place := text.find(end)) >= 0]
    return (text[: min(places)].strip(), False) if places else (text.strip(), is_cut)


def _failure(text: str, is_cut: bool, turn: UserTurn) -> Failure | None:
    if any(token in text for token in turn.control):
        return "template_leak"
    if is_cut:
        return "truncated"
    if not text:
        return "empty"
    return "refusal" if refuses(text) else None


def open_magpie(roles: Clients, recipe: EvolveRecipe) -> Magpie:
    """Return the author of a recipe's instructions. Asks nobody, and loads the tokenizer.

    Raises: RecipeError, where the template does not fit.
    """
    model = tokenizer_of(recipe.endpoint, recipe.evolve)
    tokenizer = load_tokenizer(model, needs_model=False)
    return Magpie(roles, recipe.evolve, tokenizer, recipe.seed)


def tokenizer_of(endpoint: Endpoint, settings: Evolve) -> Model:
    """Return the model whose tokenizer is the endpoint's: a rule asks for its name where the
    endpoint is a server."""
    return Model(name_or_path=settings.magpie.tokenizer or endpoint.model)
