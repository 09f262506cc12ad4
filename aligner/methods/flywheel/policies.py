"""The models of the flywheel: which there are, what each is trained from, and on what.

A strategy's training starts from the model of the strategy before it in the round: DPO from SFT, RL
from DPO. SFT starts from the SFT model of the last round, or from `model` (`flywheel.sft.start`).
The reward model is trained from `model`, as in the paper, unless its training names another one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from aligner.config.battles import Contestant
from aligner.config.load import Resolved
from aligner.config.recipe import Model, Source, TrainRecipe
from aligner.config.yaml_lines import KeyPath
from aligner.errors import TrainingError
from aligner.events import OnEvent, StageStarted, tell
from aligner.methods.flywheel.recipe import FlywheelRecipe, Strategy
from aligner.methods.flywheel.trainings import Given, settings_of, training_of
from aligner.methods.stage_run import RUN, carry_out, final_of, last_measured, rows_of
from aligner.models.fingerprint import model_fingerprint
from aligner.runs.changes import untracked
from aligner.runs.stages import Stage, Stages

OF_MACHINES = {"machine_rank", "main_process_ip", "main_process_port"}
"""Keys of `launch` that no result depends on."""
OF_PLACE = {"output_dir", "data", "launch"}
"""Keys of a training's recipe whose value is where, or how many; what they stand for is digested
apart."""
SHOWN = ("loss", "rewards/accuracies", "rewards/margins", "reward", "kl")

START = "start"


@dataclass(frozen=True)
class Policy:
    """A model of the run. `key`: what tells it from all others."""

    name: str
    section: Model
    key: str
    stage: Stage | None = None

    @property
    def contestant(self) -> Contestant:
        """The same as one who answers."""
        return Contestant(name=self.name, model=self.section)


@dataclass
class Policies:
    """The models so far, in the order of their making."""

    resolved: Resolved
    stages: Stages
    on_event: OnEvent | None
    made: list[Policy] = field(default_factory=list)

    def __post_init__(self) -> None:
        start = self.recipe.model.model_copy(update={"lora": None})
        self.base = Policy(START, start, model_fingerprint(start))
        self.made.append(self.base)

    @property
    def recipe(self) -> FlywheelRecipe:
        """The recipe of the run."""
        recipe: FlywheelRecipe = self.resolved.recipe
        return recipe

    def named(self, name: str) -> Policy:
        """Return a model by its name."""
        return next(policy for policy in self.made if policy.name == name)

    def trained_section(self, policy: Policy) -> Model:
        """Return a model as it is trained further: with the adapters of the recipe, if it has
        any."""
        if policy is self.base:
            return self.recipe.model
        return policy.section.model_copy(update={"lora": self.recipe.model.lora})

    def initial(self, files: Sequence[Source], digests: Sequence[str]) -> Policy:
        """Train `model` on the rows that come before the first round (SFT-I0)."""
        return self._train("sft", "rounds/00/train", "sft-0", self.base, files, digests)

    def train(
        self,
        number: int,
        strategy: Strategy,
        start: Policy,
        files: Sequence[Source],
        digests: Sequence[str],
        prompts: Sequence[Source],
    ) -> Policy:
        """Train a strategy of a round on what was selected; `prompts`: what `rl` samples from."""
        place, name = f"rounds/{number:02d}/{strategy}", f"{strategy}-{number}"
        if strategy != "rl":
            return self._train(strategy, f"{place}/train", name, start, files, digests)
        reward = self._stage("reward", f"{place}/reward", self.base, files, digests, {})
        settings = settings_of(self.recipe, "rlhf", str(reward.folder / RUN))
        key = [*digests, reward.digest]
        return self._train("rlhf", f"{place}/train", name, start, prompts, key, settings)

    def _train(
        self,
        method: str,
        place: str,
        name: str,
        start: Policy,
        files: Sequence[Source],
        digests: Sequence[str],
        settings: Mapping[KeyPath, Any] | None = None,
    ) -> Policy:
        stage = self._stage(method, place, start, files, digests, settings or {})
        place = str(final_of(stage))
        section = self.base.section.model_copy(
            update={"name_or_path": place, "revision": None, "new_tokens": []}
        )
        made = Policy(name, section, stage.digest, stage)
        self.made.append(made)
        return made

    def _stage(
        self,
        method: str,
        place: str,
        start: Policy,
        files: Sequence[Source],
        digests: Sequence[str],
        settings: Mapping[KeyPath, Any],
    ) -> Stage:
        """Return the finished stage of a training."""
        folder = self.stages.root / place / RUN
        given = Given(self.trained_section(start), files, folder, settings)
        inner, origins = training_of(self.resolved, method, given)
        stage = self.stages.open(place, self._made_of(inner, start, digests))
        if not stage.is_done:
            tell(self.on_event, StageStarted(f"{method} of {place.removesuffix('/train')}"))
            results, kept = carry_out(stage, inner, origins, self.on_event)
            run = stage.folder / RUN
            facts = {**results, **last_measured(run, SHOWN), "rows": rows_of(run)}
            stage.finish({**facts, "method": method, "from": start.name}, kept)
        return stage

    def _made_of(self, inner: TrainRecipe, start: Policy, digests: Sequence[str]) -> dict[str, Any]:
        """What a training depends on: its settings, what it starts from, and its rows."""
        settings = inner.model_dump(mode="json", exclude=OF_PLACE)
        settings["trainer"] = untracked(settings["trainer"])
        model = settings["model"]
        model.pop("name_or_path")
        if "rlhf" in settings:
            settings["rlhf"].pop("reward_models")
        data = inner.data.model_dump(mode="json", exclude={"train"})
        launch = inner.launch.model_dump(mode="json", exclude=OF_MACHINES)
        made = {**settings, "data": data, "launch": launch}
        key = start.key
        if inner.model.name_or_path != self.trained_section(start).name_or_path:
            key = model_fingerprint(inner.model)
        return {"start": key, "rows": list(digests), **made}


def final_section(policy: Policy) -> Path:
    """Return the folder of a trained model.

    Raises: TrainingError where nothing was trained.
    """
    if policy.stage is None:
        raise TrainingError("nothing was trained", "see why the rounds ended")
    return final_of(policy.stage)
