"""The same tokens and labels as TRL's trainers make of rows that set variables of the template."""

from __future__ import annotations

import json
from typing import Any

from fakes import CHAT_TEMPLATE, byte_tokenizer

from aligner.data.mapping import map_row
from aligner.data.rows import VARIABLES
from aligner.tokenization.encode import encode_pair, encode_sft

QUIET = CHAT_TEMPLATE.replace(
    "{{- '<start>assistant\\n' -}}",
    "{{- '<start>assistant\\n' -}}{%- if not think -%}{{- 'quiet: ' -}}{%- endif -%}",
).replace(
    "{{- message['content'] + eos_token -}}{%- endgeneration -%}",
    "{{- ('' if think else 'quiet: ') + message['content'] + eos_token -}}{%- endgeneration -%}",
)


def test_rows_with_variables_of_the_template_have_the_tokens_of_trl(small_world, tmp_path):
    from datasets import Dataset
    from transformers import AutoModelForCausalLM
    from trl import DPOConfig, DPOTrainer, SFTConfig, SFTTrainer

    tokenizer = byte_tokenizer(QUIET)
    rows = [json.loads(line) for line in (small_world / "pairs.jsonl").read_text().splitlines()][:8]
    pairs = [{**row, VARIABLES: {"think": bool(n % 2)}} for n, row in enumerate(rows)]
    talks = [
        {"prompt": row["prompt"], "completion": row["chosen"], VARIABLES: row[VARIABLES]}
        for row in pairs
    ]

    def prepared(trainer_class: Any, config_class: Any, rows: list[dict]) -> list[dict]:
        arguments = config_class(
            output_dir=str(tmp_path), max_length=None, bf16=False, use_cpu=True, report_to="none"
        )
        trainer = trainer_class(
            model=AutoModelForCausalLM.from_pretrained(small_world / "model"),
            args=arguments,
            train_dataset=Dataset.from_list(rows),
            processing_class=tokenizer,
        )
        return list(trainer.train_dataset)

    theirs = prepared(SFTTrainer, SFTConfig, talks)
    for number, (row, expected) in enumerate(zip(talks, theirs, strict=True)):
        found = encode_sft(tokenizer, map_row(row, "prompt_completion", "sft", "rows:1"))
        assert found.input_ids == expected["input_ids"]
        assert found.labels == expected["labels"]
        assert ("quiet: " in tokenizer.decode(found.input_ids)) == (number % 2 == 0)
    for row, expected in zip(pairs, prepared(DPOTrainer, DPOConfig, pairs), strict=True):
        pair = encode_pair(tokenizer, map_row(row, "preference", "preference", "rows:1"))
        assert pair.prompt_ids == expected["prompt_ids"]
        assert pair.chosen_ids == expected["chosen_ids"]
        assert pair.rejected_ids == expected["rejected_ids"]
