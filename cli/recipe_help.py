"""Help of the commands that take a recipe: usage, then examples; one table of them for all."""

from __future__ import annotations

from typing import Any

from .quick import QuickCommand

EXAMPLES = {
    "sft": (
        "aligner sft tiny/sft",
        "aligner sft recipe.yaml trainer.learning_rate=1e-5 data.max_length=4096",
        "aligner sft --model Qwen/Qwen3-0.6B --data talks.jsonl --output runs/sft --use_peft",
        "aligner sft recipe.yaml 'data.mosaic={}'",
        "aligner sft recipe.yaml --num-processes 8 --resume",
    ),
    "dpo": (
        "aligner dpo tiny/dpo",
        "aligner dpo recipe.yaml dpo.beta=0.05 model.lora.r=32",
        "aligner dpo --model runs/sft/final --data pairs.jsonl --output runs/dpo --beta 0.1",
        "aligner dpo recipe.yaml --dry-run",
        "aligner dpo --loss-table dpo.tau=0.2",
    ),
    "sapo": (
        "aligner sapo tiny/sapo",
        "aligner sapo recipe.yaml sapo.window=128 sapo.suffix=drop",
        "aligner sapo --model runs/sft/final --data talks.jsonl --output runs/sapo --use_peft",
        "aligner sapo recipe.yaml sapo.loss=orpo sapo.beta=0.05",
    ),
    "mosaic": (
        "aligner mosaic tiny/mosaic",
        "aligner mosaic --data rows.jsonl --output data/mosaic --tokenizer Qwen/Qwen3-0.6B",
        "aligner mosaic recipe.yaml mosaic.max_members=6 mosaic.passes=3 mosaic.workers=8",
        "aligner mosaic recipe.yaml --resume",
    ),
    "discover": (
        "aligner discover tiny/discover",
        "aligner discover discover/bandit endpoint.base_url=http://127.0.0.1:8000/v1 endpoint.model=NAME",
        "aligner discover recipe.yaml discover.proposals=50 endpoint.budget.usd=5",
        "aligner discover recipe.yaml --resume",
    ),
}

ANY_KEY = {"allow_extra_args": True, "ignore_unknown_options": True}
"""Settings of a command whose other arguments are keys of a recipe."""


class RecipeCommand(QuickCommand):
    """Help with examples first."""

    def format_usage(self, ctx: Any, formatter: Any) -> None:
        """Usage and examples."""
        formatter.write_usage(ctx.command_path, "[RECIPE] [KEY=VALUE ...] [OPTIONS]")
        with formatter.section("Examples"):
            for example in EXAMPLES[self.name or ""]:
                formatter.write(f"{'':>{formatter.current_indent}}{example}\n")
