"""What is set before a heavy library is imported, so that the screen shows our messages and not
theirs.

Environment variables that a user has set win. Warnings of other libraries that say the same thing
on every run, and that nobody can act on, are silenced one by one, each with its reason; `--debug`
keeps them all.
"""

from __future__ import annotations

import logging
import os
import sys
import warnings

DEFAULTS = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # TRL and huggingface_hub report usage otherwise
    "TOKENIZERS_PARALLELISM": "false",  # its warning on every fork says the same
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",  # bars are drawn by us
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TQDM_DISABLE": "1",  # transformers draws one of its own while it reads a GGUF file
    "BITSANDBYTES_NOWELCOME": "1",
    "TRL_EXPERIMENTAL_SILENCE": "1",
    "ACCELERATE_LOG_LEVEL": "WARNING",
}

SILENCED = (
    (
        FutureWarning,
        r".*gradient_checkpointing.*deprecated.*",
    ),  # TRL's own default triggers it, twice in every run
    (FutureWarning, r".*torch\.cpu\.amp\.autocast.*"),  # used inside torch's own checkpointing
    (
        UserWarning,
        r".*'pin_memory' argument is set as true but no accelerator.*",
    ),  # true of every run on CPU
    (
        UserWarning,
        r".*No device id is provided via `init_process_group`.*",
    ),  # accelerate starts the group, not we
    (
        UserWarning,
        r"FSDP2-wrapped module .* returned a view tensor\..*",
    ),  # outputs are never changed in place here
)


SILENCED_LOGGERS = (
    # On CPUs with bf16 instructions it asks for a kernel from the hub, which 4-bit models here
    # never use.
    "bitsandbytes.backends.cpu.ops",
)


def set_environment() -> None:
    """Defaults for the libraries below us. Called once by the root command, before anything heavy
    is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def silence_warnings() -> None:
    """Drop the warnings that every run repeats; all others still show."""
    for category, pattern in SILENCED:
        warnings.filterwarnings("ignore", message=pattern, category=category)
    for name in SILENCED_LOGGERS:
        logging.getLogger(name).setLevel(logging.ERROR)


def make_streams_safe() -> None:
    """A pipe in cp1252 or ascii gets `?` for what it cannot hold, instead of a
    UnicodeEncodeError."""
    for stream in (sys.stdout, sys.stderr):
        encoding = (getattr(stream, "encoding", None) or "").lower().replace("-", "")
        if not encoding.startswith("utf") and hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
