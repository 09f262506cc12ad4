"""The environment of a run: versions, platform, git state and command line, with secrets removed.

Versions come from package metadata, so nothing heavy is imported; devices are added by whoever has
torch loaded. The git state is that of the working directory, since that is where a user's recipes
and mapping functions live. Values of environment variables are never recorded; `redact` removes
what looks like a credential from every text that is. It knows the usual shapes only, so it is a
safety net and no permission to put a key into a recipe.
"""

from __future__ import annotations

import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path
from typing import Any

REDACTED = "[redacted]"

PACKAGES = {
    "aligner": "aligner-toolkit",
    "torch": "torch",
    "transformers": "transformers",
    "trl": "trl",
    "peft": "peft",
    "accelerate": "accelerate",
    "datasets": "datasets",
    "bitsandbytes": "bitsandbytes",
}
"""Name shown -> name of the distribution."""

MAX_DIFF_CHARS = 1_000_000

_SECRET_NAME = (
    r"(?:[\w-]*[_-])?"
    r"(?:api[_-]?key|apikey|token|secret|password|passwd|credentials?|private[_-]?key)"
)
_SECRET_SHAPES = re.compile(
    r"\b(?:hf_[A-Za-z0-9]{16,}|sk-[A-Za-z0-9_-]{16,}|gh[pousr]_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{16,}"
    r"|xox[abprs]-[\w-]{10,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]{5,})"
)
_SECRET_HEADER = re.compile(r"(?i)\b(bearer\s+)[A-Za-z0-9._~+/=-]{12,}")
_SECRET_URL = re.compile(r"(://[^\s/:@]+:)[^\s/@]+(@)")
_SECRET_ASSIGNMENT = re.compile(
    r"(?m)^([+\- ]?(?:export )?[A-Z0-9_]*(?:API_KEY|ACCESS_KEY|SECRET|PASSWORD|TOKEN)=)\S{8,}"
)
_SECRET_KEY = re.compile(rf"(?i)^(?:--)?(?:[\w.-]*\.)?{_SECRET_NAME}$")
_SECRET_VARIABLE = re.compile(r"(?i)(?:^|_)(?:token|key|secret|password|passwd|credentials?)$")
_ORDINARY_TOKEN = re.compile(r"(?i)(?:^|[._-])(?:eos|pad|bos|unk|sep|cls|mask|stop)[_-]token$")


def now() -> str:
    """This moment as ISO 8601, in UTC."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def _secret_values() -> list[str]:
    """Values of environment variables whose names say that they are secret, longest first."""
    found = {
        value
        for name, value in os.environ.items()
        if _SECRET_VARIABLE.search(name) and len(value) >= 8
    }
    return sorted(found, key=len, reverse=True)


def secrets_in(values: Any) -> list[str]:
    """Strings that stand under a name like `hub_token` or `api_key` in a nested mapping."""
    if isinstance(values, dict):
        named = [
            str(item)
            for key, item in values.items()
            if isinstance(item, str) and _names_a_secret(str(key))
        ]
        return named + [secret for item in values.values() for secret in secrets_in(item)]
    if isinstance(values, list | tuple):
        return [secret for item in values for secret in secrets_in(item)]
    return []


def _names_a_secret(name: str) -> bool:
    return bool(_SECRET_KEY.match(name)) and not _ORDINARY_TOKEN.search(name)


def redact(text: str, secrets: Sequence[str] = ()) -> str:
    """The text without these secrets, and without what looks like a key, a token or a password."""
    for value in [*secrets, *_secret_values()]:
        text = text.replace(value, REDACTED) if len(value) >= 4 else text
    text = _SECRET_SHAPES.sub(REDACTED, text)
    text = _SECRET_HEADER.sub(rf"\1{REDACTED}", text)
    text = _SECRET_ASSIGNMENT.sub(rf"\1{REDACTED}", text)
    return _SECRET_URL.sub(rf"\1{REDACTED}\2", text)


def redact_values(value: Any, secrets: Sequence[str] = ()) -> Any:
    """The same for every string in a JSON-able value."""
    if isinstance(value, str):
        return redact(value, secrets)
    if isinstance(value, dict):
        return {key: redact_values(item, secrets) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [redact_values(item, secrets) for item in value]
    return value


def command_line(arguments: Sequence[str]) -> str:
    """The command as it could be typed again, without its secrets (`--token x`, `hub_token=x`, keys
    by shape)."""
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append(REDACTED)
        elif equals and value and _names_a_secret(name):
            shown.append(f"{name}={REDACTED}")
        else:
            shown.append(redact(argument))
        hide_next = argument.startswith("--") and _names_a_secret(argument)
    return " ".join(part if REDACTED in part else shlex.quote(part) for part in shown)


def this_command() -> str:
    """The command line of this process, with `aligner` for the script's path and `python -m` for a
    module."""
    program = Path(sys.argv[0])
    head = (
        ["python", "-m", program.parent.name]
        if program.name == "__main__.py"
        else [program.name or "python"]
    )
    return command_line([*head, *sys.argv[1:]])


def versions() -> dict[str, str]:
    """Versions of what decides a result. A package that is not installed is left out."""
    found = {"python": platform.python_version()}
    for name, distribution in PACKAGES.items():
        try:
            found[name] = metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git(folder: Path, *arguments: str) -> str | None:
    """Output of a git command; None where git, or a repository, is missing or too slow to ask."""
    command = ["git", "-C", str(folder), "--no-optional-locks", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=20, check=False)
    except (FileNotFoundError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace") if done.returncode == 0 else None


def git_state(folder: Path) -> tuple[dict[str, Any] | None, str]:
    """Commit, branch and dirtiness of the folder's repository, and the diff against the commit
    (redacted)."""
    head = _git(folder, "rev-parse", "HEAD", "--abbrev-ref", "HEAD")
    if head is None:
        return None, ""
    commit, branch = head.split()
    status = _git(folder, "status", "--porcelain", "--untracked-files=normal")
    lines = [] if status is None else status.splitlines()
    diff = ""
    if status is None or any(not line.startswith("??") for line in lines):
        diff = _git(folder, "diff", "HEAD", "--no-ext-diff", "--no-textconv", "--no-color") or ""
    if len(diff) > MAX_DIFF_CHARS:
        diff = f"{diff[:MAX_DIFF_CHARS]}\n[cut here: the diff has {len(diff)} characters]\n"
    untracked = [line[3:] for line in lines if line.startswith("??")]
    state = {
        "commit": commit,
        "branch": branch,
        "dirty": bool(diff),
        "untracked": untracked[:50],
    }
    return state, redact(diff)


def describe_environment() -> tuple[dict[str, Any], str]:
    """The content of `environment.json` and of `code.diff`."""
    state, diff = git_state(Path.cwd())
    record = {
        "command": this_command(),
        "working_directory": str(Path.cwd()),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpu_count": os.cpu_count(),
        "versions": versions(),
        "devices": {},
        "git": state,
        "sessions": [{"started": now(), "command": this_command()}],
    }
    return record, diff
