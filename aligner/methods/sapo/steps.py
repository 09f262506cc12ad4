"""The steps of `sapo`: those of every method, on rows with one good answer."""

from __future__ import annotations

from aligner.config.defaults import trainer_value
from aligner.config.loss_names import BATCH_DEPENDENT, REFERENCE_FREE_LOSSES
from aligner.memory.footprint import (
    Footprint,
    Lengths,
    Pass,
    Sampling,
    Step,
    answers_together,
    halved,
)
from aligner.methods.sapo.recipe import SapoRecipe
from aligner.methods.steps import TrainingSteps


class SapoSteps(TrainingSteps):
    """Self-Augmented Preference Optimization."""

    task = "sft"

    def memory(self, recipe: SapoRecipe, lengths: Lengths) -> Footprint:
        """Return an update on pairs of answers and rewrites of them, as long as the answers, and
        the writing; average and reference are copies of the trained weights."""
        sapo = recipe.sapo
        answer = lengths.longest if lengths.trained is None else lengths.trained
        prompt = max(0, lengths.longest - answer)
        together = None if lengths.trained is None else prompt + 2 * answer
        pairs = Lengths(lengths.longest, together, 2 * answer)
        batch = answers_together(recipe, pairs)
        copies = ["average"]
        passes = [Pass("update", batch, trains=True)]
        if sapo.loss not in REFERENCE_FREE_LOSSES:
            copies.append("reference")
            passes.append(Pass("reference", batch))
        steps = int(trainer_value(recipe, "gradient_accumulation_steps"))
        rows = int(trainer_value(recipe, "per_device_train_batch_size")) * steps
        rows = sapo.generation_batch_size or rows * sapo.responses_per_prompt
        new = answer if sapo.window == "all" else min(answer, int(sapo.window))
        writing = Sampling("writing", rows, lengths.longest - new, new)
        slower = Step({"sapo.offload": True}, 1.5, "weights are copied to and fro at each step")
        lines = [halved("sapo.generation_batch_size", rows, 1.0, "slower writing")]
        return Footprint(
            tuple(passes),
            (writing,),
            copies=() if sapo.offload else tuple(copies),
            lines=tuple(lines if sapo.offload else [*lines, (slower,)]),
            statistic=sapo.loss if sapo.loss in BATCH_DEPENDENT else "",
        )


STEPS = SapoSteps()
