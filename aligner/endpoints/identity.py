"""What tells the models behind two sections of a recipe apart, for the record of what was made with
them."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path
from typing import Any

from aligner.config.recipe import Endpoint, Model


def identity_of(section: Endpoint) -> dict[str, Any]:
    """Return what decides the replies of a section, for the record of what was made with it."""
    found: dict[str, Any] = {
        "backend": section.backend,
        "model": section.model,
        "extra": section.extra,
    }
    if section.replay is not None:
        found["replay"] = section.replay
    elif section.backend == "scripted":
        found["script"] = sha256(Path(str(section.script)).read_bytes()).hexdigest()
    elif section.backend == "local":
        from aligner.models.fetched import fetched_fingerprint

        found["model"] = fetched_fingerprint(Model(name_or_path=section.model))
    return found
