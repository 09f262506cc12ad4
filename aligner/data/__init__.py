"""Sources and formats -> typed rows: reading, mapping, mixing, splitting, and the books of all of it.

Start at `load_rows`, which takes the `data:` section of a recipe. Imports no torch; `datasets` and `pyarrow` are loaded
only where a hub data set or a Parquet file is read.
"""

from aligner.data.ledger import Ledger, SourceLedger, SplitLedger
from aligner.data.loading import Loaded, fingerprint, load_rows, read_source
from aligner.data.rows import (
    CompletionRow,
    ConversationRow,
    Messages,
    PreferenceRow,
    PromptRow,
    Row,
    Task,
    TextRow,
    prompt_text,
)

__all__ = [
    "CompletionRow",
    "ConversationRow",
    "Ledger",
    "Loaded",
    "Messages",
    "PreferenceRow",
    "PromptRow",
    "Row",
    "SourceLedger",
    "SplitLedger",
    "Task",
    "TextRow",
    "fingerprint",
    "load_rows",
    "prompt_text",
    "read_source",
]
