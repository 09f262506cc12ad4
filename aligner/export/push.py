"""Push the model of a run, or of a folder, to a hub: its files and its card, in one commit.

What leaves is a list of names that a model is loaded from; everything else stays. So checkpoints,
optimizer states, caches of tokens and records with paths of this machine never leave. A new
repository is private unless the user says otherwise, and one that is there already and public is
refused as long as the user does not say so. An adapter whose base is a folder on this machine is
refused: nobody else could load it. Imports nothing heavy before it pushes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from aligner.errors import AlignerError, EndpointError, UsageError
from aligner.events import OnEvent, StageStarted, tell
from aligner.export.found import Found, find_model
from aligner.models.files import adapter_config
from aligner.models.folder_kinds import read_object
from aligner.models.saved_tokenizer import FILES as TOKENIZER_FILES

CARD = "README.md"
PUSHED = (
    *("config.json", "generation_config.json", "adapter_config.json", "reward_model.yaml", CARD),
    *("model.safetensors", "model-*-of-*.safetensors", "model.safetensors.index.json"),
    *("adapter_model.safetensors", "LICENSE", "LICENSE.*"),
    *TOKENIZER_FILES,
    *("vocab.json", "vocab.txt", "additional_chat_templates/*.jinja"),
)
"""What a model is loaded from, by the place in its folder."""

OF_CHECKPOINTS = ("trainer_state.json", "optimizer.pt", "optimizer.bin", "scheduler.pt", "complete")
"""What only a checkpoint holds."""


@dataclass(frozen=True)
class Plan:
    """What is pushed where: place in the folder -> size in bytes. `left`: files that stay."""

    folder: Path
    repo: str
    is_private: bool
    files: dict[str, int]
    left: tuple[str, ...]

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.files.values())

    def to_json(self) -> dict[str, Any]:
        """Return it for a program."""
        return {
            "folder": str(self.folder),
            "repo": self.repo,
            "private": self.is_private,
            "files": self.files,
            "bytes": self.total,
            "left": list(self.left),
        }


def plan_push(name: str, repo: str, *, public: bool = False) -> Plan:
    """Return what would be pushed, without asking anybody.

    Raises: UsageError for what is not a finished model with a card, and for a name that no
    repository has.
    """
    found = find_model(name)
    folder = Path(found.name)
    if not folder.is_dir():
        raise UsageError(f"{found.name} is not a folder", "name a run, or the folder of a model")
    _check_name(repo)
    _check_folder(found, folder)
    files, left = {}, []
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        place = path.relative_to(folder).as_posix()
        if _is_pushed(folder, place):
            files[place] = path.stat().st_size
        else:
            left.append(place)
    return Plan(folder, repo, not public, files, tuple(left))


def _check_name(repo: str) -> None:
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo)
        is_whole = repo.count("/") == 1
    except HFValidationError as error:
        raise UsageError(f"--to {repo}: {error}", "ORG/NAME, for example me/my-model") from error
    if not is_whole:
        raise UsageError(
            f"--to {repo} does not say whose the repository is", f"give it as ORG/{repo}"
        )


def _check_folder(found: Found, folder: Path) -> None:
    """Refuse checkpoints, folders without a card, and adapters that nobody else can load."""
    marks = [name for name in OF_CHECKPOINTS if (folder / name).exists()]
    if marks:
        raise UsageError(
            f"{folder} is a checkpoint ({marks[0]} is in it), which is not pushed",
            "name the run: its final/ is pushed",
        )
    if not (folder / CARD).is_file():
        raise UsageError(
            f"{folder} has no model card ({CARD})",
            "a run has one, and so has what `aligner merge` writes; write one for other folders",
        )
    adapter = adapter_config(found.name, "MODEL")
    base = None if adapter is None else adapter.get("base_model_name_or_path")
    if base and Path(base).expanduser().exists():
        raise UsageError(
            f"the base of the adapter in {folder} is a folder on this machine, {base}: nobody else "
            "could load it",
            "push the merged model (aligner merge), or write the base's name on the hub into "
            f"{folder / 'adapter_config.json'}",
        )


def _is_pushed(folder: Path, place: str) -> bool:
    if any(fnmatch(place, pattern) and ("/" in pattern or "/" not in place) for pattern in PUSHED):
        return True
    config = folder / "config.json"
    has_code = config.is_file() and "auto_map" in read_object(config, "MODEL")
    return has_code and "/" not in place and place.endswith(".py")


def push(plan: Plan, on_event: OnEvent | None = None) -> str:
    """Push what was planned, in one commit, and return the address of the repository.

    Raises: UsageError without a token, offline, and for a repository that is public while the plan
    is private; EndpointError when the hub refuses or does not answer.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    from aligner import __version__

    api = HfApi(library_name="aligner", library_version=__version__)
    with _in_our_words(plan.repo):
        tell(on_event, StageStarted(f"asking for {plan.repo}"))
        _refuse_public(api, plan)
        url = api.create_repo(plan.repo, private=plan.is_private, exist_ok=True)
        tell(on_event, StageStarted(f"pushing {len(plan.files)} files, {plan.total:,} bytes"))
        api.create_commit(
            plan.repo,
            [CommitOperationAdd(place, str(plan.folder / place)) for place in plan.files],
            commit_message=f"Model and card, pushed by aligner {__version__}",
        )
    return str(url)


def _refuse_public(api: Any, plan: Plan) -> None:
    """Refuse to push into a public repository what was to be private."""
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        found = api.repo_info(plan.repo)
    except RepositoryNotFoundError:
        return
    if plan.is_private and not found.private:
        raise UsageError(
            f"the repository {plan.repo} is there already, and it is public",
            "add --public if everybody may see the model, or choose another name",
        )


@contextmanager
def _in_our_words(repo: str) -> Iterator[None]:
    """Turn what the hub's client raises into errors of ours."""
    from huggingface_hub.errors import (
        HfHubHTTPError,
        HTTPError,
        LocalTokenNotFoundError,
        OfflineModeIsEnabled,
    )

    try:
        yield
    except AlignerError:
        raise
    except OfflineModeIsEnabled as error:
        raise UsageError(
            "HF_HUB_OFFLINE is set, so nothing can be pushed", "unset it, or add --dry-run"
        ) from error
    except LocalTokenNotFoundError as error:
        raise UsageError(
            "there is no token for the hub", "log in with `hf auth login`, or set HF_TOKEN"
        ) from error
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else 0
        hint = "try again later: a push is one commit, so nothing is there by half"
        if status in (401, 403):
            hint = f"does the token (`hf auth whoami`) have the right to write to {repo}?"
        reason = str(error.server_message or error).strip().split("\n")[0]
        message = f"the hub refused the push to {repo} ({status}): {reason}"
        raise EndpointError(message, hint) from error
    except (HTTPError, ConnectionError) as error:
        raise EndpointError(
            f"the hub does not answer: {error or type(error).__name__}",
            "check the network and HF_ENDPOINT; a push is one commit, so nothing is there by half",
        ) from error
