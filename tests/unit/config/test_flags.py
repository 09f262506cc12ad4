"""The command line: the flag names that people have in their fingers, and what each one sets."""

from __future__ import annotations

from typing import Any

import pytest

from aligner.config import flags as command_line
from aligner.config.flag_table import TRAINER, all_flags, flag_groups
from aligner.config.flags import Arguments
from aligner.config.introspect import type_at
from aligner.config.load import load_recipe
from aligner.errors import RecipeError, UsageError
from aligner.methods.catalogue import METHODS, method_of, recipes

EVERYDAY = ["--model", "x/y", "--data", "rows.jsonl"]

KNOWN_NAMES = [
    # flag and value as typed, method, key, value
    ("--model_name_or_path a/b", "dpo", "model.name_or_path", "a/b"),
    ("--model_revision main", "dpo", "model.revision", "main"),
    ("--dataset_name d", "dpo", "data.train", "d"),
    ("--dataset_config c", "dpo", "data.train.subset", "c"),
    ("--dataset_train_split s", "dpo", "data.train.split", "s"),
    ("--dataset_test_split s", "dpo", "data.eval.split", "s"),
    ("--output_dir runs/x", "dpo", "output_dir", "runs/x"),
    ("-o runs/x", "dpo", "output_dir", "runs/x"),
    ("--learning_rate 5e-6", "dpo", "trainer.learning_rate", 5e-6),
    ("--num_train_epochs 2", "dpo", "trainer.num_train_epochs", 2),
    ("--max_steps -1", "dpo", "trainer.max_steps", -1),
    ("--per_device_train_batch_size 4", "dpo", "trainer.per_device_train_batch_size", 4),
    ("--per_device_eval_batch_size 4", "dpo", "trainer.per_device_eval_batch_size", 4),
    ("--gradient_accumulation_steps 4", "dpo", "trainer.gradient_accumulation_steps", 4),
    ("--gradient_checkpointing", "dpo", "trainer.gradient_checkpointing", True),
    ("--bf16", "dpo", "trainer.bf16", True),
    ("--max_length 512", "dpo", "data.max_length", 512),
    ("--packing", "sft", "sft.packing", True),
    ("--packing auto", "sft", "sft.packing", "auto"),
    ("--packing_strategy bfd", "sft", "trainer.packing_strategy", "bfd"),
    ("--eval_strategy steps", "dpo", "trainer.eval_strategy", "steps"),
    ("--eval_strategy no", "dpo", "trainer.eval_strategy", "no"),
    ("--eval_steps 10", "dpo", "trainer.eval_steps", 10),
    ("--logging_steps 10", "dpo", "trainer.logging_steps", 10),
    ("--save_steps 0.1", "dpo", "trainer.save_steps", 0.1),
    ("--save_total_limit 2", "dpo", "trainer.save_total_limit", 2),
    ("--lr_scheduler_type cosine", "dpo", "trainer.lr_scheduler_type", "cosine"),
    ("--warmup_ratio 0.1", "dpo", "trainer.warmup_steps", 0.1),
    ("--warmup_steps 10", "dpo", "trainer.warmup_steps", 10),
    ("--optim adamw_torch", "dpo", "trainer.optim", "adamw_torch"),
    ("--seed 1", "dpo", "seed", 1),
    ("--report_to none", "dpo", "trainer.report_to", "none"),
    ("--run_name 12", "dpo", "trainer.run_name", "12"),
    ("--push_to_hub", "dpo", "trainer.push_to_hub", True),
    ("--hub_model_id a/b", "dpo", "trainer.hub_model_id", "a/b"),
    ("--use_peft", "dpo", "model.lora", {}),
    ("--lora_r 8", "dpo", "model.lora.r", 8),
    ("--lora_alpha 8", "dpo", "model.lora.lora_alpha", 8),
    ("--lora_dropout 0.1", "dpo", "model.lora.lora_dropout", 0.1),
    ("--lora_target_modules all-linear", "dpo", "model.lora.target_modules", "all-linear"),
    (
        "--lora_target_modules q_proj v_proj",
        "dpo",
        "model.lora.target_modules",
        ["q_proj", "v_proj"],
    ),
    (
        "--lora_target_modules q_proj,v_proj",
        "dpo",
        "model.lora.target_modules",
        ["q_proj", "v_proj"],
    ),
    ("--load_in_4bit", "dpo", "model.quantization", "nf4"),
    ("--load_in_4bit false", "dpo", "model.quantization", "none"),
    ("--load_in_8bit", "dpo", "model.quantization", "int8"),
    ("--attn_implementation sdpa", "dpo", "model.attn_implementation", "sdpa"),
    ("--dtype bfloat16", "dpo", "model.dtype", "bfloat16"),
    ("--torch_dtype bfloat16", "dpo", "model.dtype", "bfloat16"),
    ("--trust_remote_code", "dpo", "model.trust_remote_code", True),
    ("--beta 0.2", "dpo", "dpo.beta", 0.2),
    ("--loss_type ipo", "dpo", "dpo.loss", "ipo"),
    ("--loss_type dft", "sft", "trainer.loss_type", "dft"),
    ("--precompute_ref_log_probs", "dpo", "dpo.reference", "precomputed"),
    ("--assistant_only_loss", "sft", "sft.loss_on", "assistant"),
    ("--completion_only_loss true", "sft", "sft.loss_on", "completion"),
    ("--completion_only_loss false", "sft", "sft.loss_on", "all"),
    ("--use_liger_kernel", "dpo", "trainer.use_liger_kernel", True),
    ("--eos_token <|im_end|>", "dpo", "model.eos_token", "<|im_end|>"),
    ("--chat_template_path t.jinja", "dpo", "model.chat_template", "t.jinja"),
    ("--num_processes 4", "dpo", "launch.num_processes", 4),
    ("--num_machines 2", "dpo", "launch.num_machines", 2),
    ("--machine_rank 1", "dpo", "launch.machine_rank", 1),
    ("--main_process_port 29500", "dpo", "launch.main_process_port", 29500),
    ("--mixed_precision no", "dpo", "launch.mixed_precision", "no"),
    ("--accelerate_config zero1", "dpo", "launch.strategy", "zero1"),
    ("--accelerate_config zero2", "dpo", "launch.strategy", "zero2"),
    ("--accelerate_config zero3", "dpo", "launch.strategy", "zero3"),
    ("--accelerate_config fsdp1", "dpo", "launch.strategy", "fsdp1"),
    ("--accelerate_config fsdp2", "dpo", "launch.strategy", "fsdp"),
    ("--accelerate_config multi_gpu", "dpo", "launch.strategy", "ddp"),
    ("--accelerate_config single_gpu", "dpo", "launch.num_processes", 1),
    ("--accelerate_config my/config.yaml", "dpo", "launch.strategy", "my/config.yaml"),
    # not in anybody's list, and flags all the same
    ("--adam_beta2 0.95", "dpo", "trainer.adam_beta2", 0.95),
    (
        "--lr_scheduler_kwargs {num_cycles: 2}",
        "dpo",
        "trainer.lr_scheduler_kwargs",
        {"num_cycles": 2},
    ),
    ("--model.lora.r 4", "dpo", "model.lora.r", 4),
    ("--data.on-too-long drop", "dpo", "data.on_too_long", "drop"),
]


def parse(words: list[str], method: str = "dpo") -> Arguments:
    return command_line.parse_arguments(words, method)


@pytest.mark.parametrize(("typed", "method", "key", "value"), KNOWN_NAMES)
def test_a_known_flag_sets_its_key_with_underscores_or_dashes(
    typed: str, method: str, key: str, value: Any
) -> None:
    flag, _, rest = typed.partition(" ")
    words = [rest] if "{" in rest else rest.split()
    dashed = flag if flag.startswith("-o") else "--" + flag[2:].replace("_", "-")
    for form in (flag, dashed):
        found = parse([form, *words], method).flags[key]
        assert found.value == value
        assert type(found.value) is type(value)
        assert found.name == form.partition("=")[0]


@pytest.mark.parametrize(("typed", "method", "key", "value"), KNOWN_NAMES)
def test_a_value_may_be_joined_with_an_equals_sign(
    typed: str, method: str, key: str, value: Any
) -> None:
    flag, _, rest = typed.partition(" ")
    if not rest or (" " in rest and "{" not in rest):
        return
    assert parse([f"{flag}={rest}"], method).flags[key].value == value


def test_every_flag_sets_a_key_that_exists() -> None:
    for name, flag in all_flags().items():
        owners = [method for method in METHODS if flag in method_of(method).flags] or list(METHODS)
        path = tuple(flag.key.split("."))
        if flag.key and path[0] != "trainer":
            assert type_at(recipes()[owners[0]], path), f"--{name} sets {flag.key}, which is no key"


def test_flags_have_one_line_of_help_each_and_names_are_unique() -> None:
    for method in METHODS:
        flags = [flag for group in flag_groups(method).values() for flag in group]
        assert len({flag.name for flag in flags}) == len(flags)
        assert all(flag.help and "\n" not in flag.help for flag in flags)
        assert {flag.name for flag in flags} <= {*all_flags(), *TRAINER}


def test_switches_can_be_bare_given_a_word_or_negated() -> None:
    for words, value in (
        (["--bf16"], True),
        (["--bf16", "true"], True),
        (["--bf16", "False"], False),
        (["--bf16=0"], False),
        (["--no-bf16"], False),
        (["--no_bf16"], False),
    ):
        assert parse(words).flags["trainer.bf16"].value is value
    assert parse(["--no-use-peft"]).flags["model.lora"].value is None
    assert parse(["--no-packing"], "sft").flags["sft.packing"].value is False


def test_a_bare_switch_leaves_the_recipe_behind_it_alone() -> None:
    assert parse(["--bf16", "recipe.yaml"]).ref == "recipe.yaml"
    assert parse(["--lora_target_modules", "q_proj", "v_proj", "tiny/dpo"]).ref == "tiny/dpo"
    assert parse(["--resume_from_checkpoint", "tiny/dpo"]) == Arguments(
        "tiny/dpo", options={"resume": True}
    )


def test_recipe_overrides_and_flags_are_told_apart_in_any_order() -> None:
    parsed = parse(
        ["dpo.beta=0.1", "--seed", "3", "recipe.yaml", "--dry-run", "model.name_or_path=a=b"]
    )
    assert parsed.ref == "recipe.yaml"
    assert parsed.overrides == ["dpo.beta=0.1", "model.name_or_path=a=b"]
    assert parsed.flags["seed"].value == 3
    assert parsed.options == {"dry_run": True}


@pytest.mark.parametrize(
    "words", [["--config", "r.yaml"], ["-c", "r.yaml"], ["--config=r.yaml"], ["r.yaml"]]
)
def test_the_recipe_has_a_flag_too(words: list[str]) -> None:
    assert parse(words).ref == "r.yaml"


def test_the_everyday_case_needs_no_recipe() -> None:
    words = [
        *EVERYDAY,
        "--output",
        "runs/x",
        "--use_peft",
        "--load_in_4bit",
        "--dataset_test_split",
        "test",
    ]
    parsed = parse(words, "dpo")
    recipe = load_recipe("dpo", parsed.ref, parsed.overrides, parsed.flags).recipe
    assert recipe.model.lora is not None
    assert recipe.model.lora.r == 16
    assert recipe.model.quantization == "nf4"
    assert recipe.data.train[0].path == "rows.jsonl"
    assert recipe.data.eval[0].split == "test"


def test_data_may_be_given_several_times() -> None:
    parsed = parse(["--data", "a.jsonl", "--data", "b.jsonl"])
    assert parsed.flags["data.train"].value == ["a.jsonl", "b.jsonl"]


def test_the_same_flag_twice_counts_the_last_time() -> None:
    assert parse(["--seed", "1", "--seed", "2"]).flags["seed"].value == 2


def test_a_flag_without_effect_is_noted() -> None:
    parsed = parse(["--dataset_num_proc", "8"])
    assert parsed.flags == {}
    assert "no effect" in parsed.notes[0]


@pytest.mark.parametrize(
    ("words", "method", "expected"),
    [
        (["--lerning_rate", "1"], "dpo", "did you mean `--learning_rate`?"),
        (["--learning_rate"], "dpo", "--learning_rate: needs a value"),
        (["--learning_rate", "--bf16"], "dpo", "--learning_rate: needs a value"),
        (["--load_in_4bit", "--load_in_8bit"], "dpo", "contradicts `--load_in_4bit`"),
        (["--model", "a", "--model_name_or_path", "b"], "dpo", "contradicts `--model`"),
        (["--no-use_peft", "--lora_r", "8"], "dpo", "contradicts `--no-use_peft`"),
        (["--assistant_only_loss", "--completion_only_loss"], "sft", "contradicts"),
        (["--warmup_ratio", "1.0"], "dpo", "must be at least 0 and below 1"),
        (["--warmup_ratio", "much"], "dpo", "expected a number"),
        (["--warmup_ratio", "0.1", "--warmup_steps", "5"], "dpo", "contradicts `--warmup_ratio`"),
        (["--resume_from_checkpoint", "runs/x/checkpoint-3"], "dpo", "write `--resume`"),
        (["--max_seq_length", "5"], "sft", "it is called `data.max_length` now"),
        (["--max_prompt_length", "5"], "dpo", "`dpo.max_prompt_length` cuts prompts"),
        (["--beta", "5"], "sft", "a setting of `aligner dpo`"),
        (["--packing"], "dpo", "a setting of `aligner sft`"),
        (["--fsdp", "full_shard"], "dpo", "set `launch.strategy: fsdp`"),
        (["--group_by_length"], "dpo", "train_sampling_strategy"),
        (["--evaluation_strategy", "steps"], "dpo", "trainer.eval_strategy"),
        (["--use_peft=maybe"], "dpo", "expected true or false, found `maybe`"),
        (["--lr_scheduler_kwargs", "[1"], "dpo", "cannot be read"),
        (["a.yaml", "b.yaml"], "dpo", "a recipe is named already: `a.yaml`"),
        (["a.yaml", "--config", "b.yaml"], "dpo", "a recipe is named already"),
        (["--", "x=1"], "dpo", "leave it out"),
        (["-x", "1"], "dpo", "unknown flag"),
        (["--on_too_long", "drop"], "dpo", "data.on_too_long"),
    ],
)
def test_a_mistake_is_one_problem_with_its_cure(
    words: list[str], method: str, expected: str
) -> None:
    with pytest.raises(UsageError) as caught:
        parse(words, method)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    assert expected in str(problem)


def test_all_mistakes_come_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse(
            [
                "--lerning_rate",
                "1",
                "--warmup_ratio",
                "3",
                "--beta",
                "0.1",
                "--max_seq_length",
                "4",
            ],
            "sft",
        )
    assert [problem.where for problem in caught.value.problems] == [
        "--lerning_rate",
        "--warmup_ratio",
        "--beta",
        "--max_seq_length",
    ]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (
            ["--learning_rate", "fast"],
            "--learning_rate: trainer.learning_rate: expected a number, found `fast`",
        ),
        (["--optim", "adamw_8bitt"], "did you mean `adamw_8bit`?"),
        (["--lora-r", "0"], "--lora-r: model.lora.r: must be at least 1"),
        (["--loss_type", "sigmod"], "--loss_type: dpo.loss"),
        (["--load_in_4bit"], "add `model.lora: {}` (`--use_peft`)"),
        (
            ["--eval_strategy", "steps"],
            "--eval_strategy: trainer.eval_strategy: needs held-out rows",
        ),
    ],
)
def test_a_wrong_value_is_told_under_the_flag_as_typed(words: list[str], expected: str) -> None:
    parsed = parse([*EVERYDAY, *words], "dpo")
    with pytest.raises(RecipeError) as caught:
        load_recipe("dpo", parsed.ref, parsed.overrides, parsed.flags)
    (problem,) = caught.value.problems
    assert expected in str(problem)
