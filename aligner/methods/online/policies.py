"""The policies of the rounds: which model each is, how the next one is trained from it, against
which reference, and whose weights stay on disk. Policy 0 is the start.

Under LoRA the start is the reference in every round all the same: the first round has the base
below its adapter, later ones train that adapter further, and name the start as reference.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.config.recipe import Model
from aligner.errors import UsageError
from aligner.events import Notice, OnEvent, StageStarted, tell
from aligner.methods.online.average import is_averaged, write_average
from aligner.methods.online.pair_stage import pair_file
from aligner.methods.online.recipe import OnlineRecipe
from aligner.methods.online.train_stage import Training, train
from aligner.methods.stage_run import final_of
from aligner.models.fingerprint import model_fingerprint
from aligner.runs.changes import untracked
from aligner.runs.stages import Stage, Stages

OF_MACHINES = {"machine_rank", "main_process_ip", "main_process_port"}
"""Keys of `launch` that no result depends on."""


def name_of(number: int) -> str:
    """Return the folder of a round."""
    return f"rounds/{number:02d}"


@dataclass
class Policies:
    """The start, and the policy of each round that was trained.

    `pairs` and `trained` are the stages of the rounds so far; `temporary` those of policies that
    are asked once and never trained further (`online.future`).
    """

    recipe: OnlineRecipe
    origins: dict[str, str]
    stages: Stages
    on_event: OnEvent | None
    pairs: list[Stage] = field(default_factory=list)
    trained: list[Stage] = field(default_factory=list)
    temporary: list[Stage] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.start = self.recipe.model.model_copy(update={"lora": None})
        self._start_key = model_fingerprint(self.start)
        self._served: int | None = None

    def section(self, number: int) -> Model:
        """Return a policy as a model to sample from."""
        return self.start if number == 0 else self.section_of(self.trained[number - 1])

    def section_of(self, stage: Stage) -> Model:
        """Return what a stage trained as a model to sample from."""
        place = str(final_of(stage))
        return self.start.model_copy(
            update={"name_or_path": place, "revision": None, "new_tokens": []}
        )

    def key(self, number: int) -> str:
        """Return what tells a policy from all others."""
        return self._start_key if number == 0 else self.trained[number - 1].digest

    def train(self, number: int) -> None:
        """Train the policy of a round on the pairs that are there by then."""
        self.trained.append(self._trained(number, "train"))

    def train_temporary(self, number: int) -> Stage:
        """Train another policy on the pairs that are there by then, as that of the round would be:
        the temporary one of `online.future`."""
        stage = self._trained(number, "train-future")
        self.temporary.append(stage)
        return stage

    def _trained(self, number: int, name: str) -> Stage:
        stage = self.stages.open(f"{name_of(number)}/{name}", self._made_of(number))
        if not stage.is_done:
            self.ensure(self._start_of(number))
            self._carry_out(stage, number)
        return stage

    def ensure(self, number: int) -> None:
        """Train a policy again whose weights are needed and were not kept."""
        if number:
            self._ensure(self.trained[number - 1], number)

    def _ensure(self, stage: Stage, number: int) -> None:
        if not stage.is_pruned:
            return
        tell(self.on_event, Notice(f"{stage.name} is done again: its weights were not kept"))
        stage.reset()
        self.ensure(self._start_of(number))
        self._carry_out(stage, number)

    def _start_of(self, number: int) -> int:
        return 0 if self.recipe.online.start == "initial" else number - 1

    def _carry_out(self, stage: Stage, number: int) -> None:
        train(stage, self.recipe, self.origins, self._training(number), self.on_event)

    def _made_of(self, number: int) -> dict[str, Any]:
        online, recipe = self.recipe.online, self.recipe
        pairs = self.pairs if online.start == "initial" or online.replay else self.pairs[-1:]
        lora = recipe.model.lora
        return {
            "pairs": [stage.digest for stage in pairs],
            "replay": online.replay,
            "start": self.key(self._start_of(number)),
            "reference": self._reference_key(number),
            "loss": recipe.dpo.model_dump(mode="json") if online.train == "dpo" else "sft",
            "preference": recipe.preference.model_dump(mode="json"),
            "lora": None if lora is None else lora.model_dump(mode="json"),
            "quantization": recipe.model.quantization,
            "dtype": recipe.model.dtype,
            "trainer": untracked(recipe.trainer),
            "max_length": recipe.data.max_length,
            "launch": recipe.launch.model_dump(mode="json", exclude=OF_MACHINES),
            "seed": recipe.seed,
        }

    def _training(self, number: int) -> Training:
        """What a round trains."""
        online, start = self.recipe.online, self._start_of(number)
        section = self.section(start).model_copy(update={"lora": self.recipe.model.lora})
        if start == 0:
            section = self.recipe.model
        files = [pair_file(stage) for stage in self.pairs[:number]]
        reference = self._reference(number, start)
        if online.start == "initial":
            return Training(section, files, [], reference)
        own = (self.pairs[number - 1].facts or {})["pairs"]
        each = round(online.replay * own / max(1, number - 1))
        return Training(section, files[-1:], [(file, each) for file in files[:-1]], reference)

    # --- the reference ----------------------------------------------------------------------------

    def _reference(self, number: int, start: int) -> str | None:
        """Return the folder of the reference; None for the model that this training starts from."""
        online = self.recipe.online
        if online.train == "sft" or number == 1:
            return None
        if online.reference == "ema":
            return str(self._averaged(number - 1))
        wanted = 0 if online.reference == "initial" else number - 1
        if wanted == start:
            return None
        self.ensure(wanted)
        return self.folder(wanted)

    def _reference_key(self, number: int) -> str:
        online = self.recipe.online
        if online.train == "sft":
            return "none"
        if online.reference == "ema":
            keys = [self.key(place) for place in range(number)]
            return f"ema {online.ema_decay} {sha256(json.dumps(keys).encode()).hexdigest()}"
        return self.key(0 if online.reference == "initial" else number - 1)

    def _averaged(self, number: int) -> Path:
        """Return the folder of the average behind a round, made where it is not there."""
        if number == 0:
            return Path(self.folder(0))
        decay = self.recipe.online.ema_decay
        folder = self.stages.root / name_of(number) / "average"
        key = f"{decay} {' '.join(self.key(place) for place in range(number + 1))}"
        if not is_averaged(folder, key):
            before = self._averaged(number - 1)
            self.ensure(number)
            write_average(before, Path(self.folder(number)), decay, folder, key)
        return folder

    def folder(self, number: int) -> str:
        """Return the folder of a policy; of a start on the hub that of its revision on this
        machine."""
        section = self.section(number)
        if Path(section.name_or_path).expanduser().exists():
            return section.name_or_path
        from huggingface_hub import snapshot_download

        found: str = snapshot_download(
            section.name_or_path, revision=section.revision, local_files_only=True
        )
        return found

    # --- weights ----------------------------------------------------------------------------------

    def prune(self, best: int) -> None:
        """Remove the weights of rounds that are not to be kept: never the best, nor the last."""
        keep, last = self.recipe.online.keep, len(self.trained)
        for stage in self.temporary if keep != "all" else []:
            stage.prune(is_weights)
        kept = {best, last, *([last - 1] if keep == "last2" else [])}
        for number, stage in enumerate(self.trained, 1):
            if keep != "all" and number not in kept:
                stage.prune(is_weights)

    def serve(self, number: int) -> None:
        """Make sure that a policy is there, and that the server serves it."""
        self.ensure(number)
        if self.recipe.online.serve is not None and self._served != number:
            self._serve(self.folder(number), number)
            self._served = number

    def serve_temporary(self, stage: Stage, number: int) -> None:
        """Make sure that the temporary policy of a round is there, and that the server serves it;
        the pairs of the round are still those that it was trained on."""
        self._ensure(stage, number)
        if self.recipe.online.serve is not None:
            self._served = None
            self._serve(str(final_of(stage)), number)

    def _serve(self, folder: str, number: int) -> None:
        command = self.recipe.online.serve or ""
        line = command.replace("{model}", folder).replace("{round}", str(number))
        tell(self.on_event, StageStarted(f"serving the policy of round {number}"))
        done = subprocess.run(line, shell=True, capture_output=True, text=True, check=False)
        if done.returncode:
            raise UsageError(
                f"online.serve ended with {done.returncode}: {line}\n{done.stderr[-2000:]}",
                "it must end with 0 once the server answers for the new policy",
            )


def is_weights(name: str) -> bool:
    return name.endswith(".safetensors")


def digests(stages: Sequence[Stage | None]) -> list[str]:
    """Return what finished stages hold, in short."""
    return [stage.digest for stage in stages if stage is not None]
