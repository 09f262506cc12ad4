"""Recipes that are wrong: each mistake has its place, its key, its message and its cure; and all of
them come at once."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from aligner.config.load import load_recipe
from aligner.errors import RecipeError

BASE = """\
model: {name_or_path: base}
data: {train: rows.jsonl}
output_dir: runs/x
"""

MALFORMED = [
    # method, text from line 4 on (or the whole file after "="), expected fragments of the one
    # problem
    (
        "dpo",
        "trainer: {learnig_rate: 1e-5}",
        "r.yaml:4: trainer.learnig_rate",
        "did you mean `learning_rate`?",
    ),
    (
        "dpo",
        "trainer: {learning_rate: fast}",
        "r.yaml:4: trainer.learning_rate",
        "expected a number, found `fast`",
    ),
    (
        "dpo",
        "trainer:\n  max_steps: 1.5",
        "r.yaml:5: trainer.max_steps",
        "expected a whole number, found `1.5`",
    ),
    (
        "dpo",
        "trainer: {max_steps: true}",
        "trainer.max_steps",
        "expected a whole number, found `true`",
    ),
    ("dpo", "trainer: {bf16: yes}", "trainer.bf16", "write `true`"),
    ("dpo", "trainer: {learning_rate: null}", "trainer.learning_rate", "expected a number"),
    ("dpo", "trainer: {learning_rate: .nan}", "trainer.learning_rate", "expected a number"),
    (
        "dpo",
        "dpo: {loss: {sigmoid: lots}}",
        "r.yaml:4: dpo.loss.sigmoid",
        "expected a number, found `lots`",
    ),
    ("dpo", "dpo: {loss: {sigmoid: null}}", "dpo.loss.sigmoid", "expected a number, found `null`"),
    ("dpo", "dpo: {loss: {sigmoid: {sft: 1}}}", "dpo.loss.sigmoid", "expected a number"),
    ("dpo", "1: x", "r.yaml:4: 1", "is not a key of a recipe"),
    ("dpo", "null: x", "r.yaml:4: null", "is not a key of a recipe"),
    ("dpo", "trainer: {1: x}", "r.yaml:4: trainer.1", "is not a field of"),
    ("dpo", "trainer: {null: x}", "trainer.null", "is not a field of"),
    (
        "dpo",
        'launch: {main_process_ip: "a\\0b"}',
        "r.yaml:4: launch.main_process_ip",
        "holds a NUL character",
    ),
    (
        "dpo",
        "dpo: {reference_model: ~no-such-user/m}",
        "dpo.reference_model",
        "there is no user called `no-such-user`",
    ),
    ("dpo", "method: [dpo]", "r.yaml:4: method", "no method is called"),
    ("dpo", "trainer: {learning_rate: -1.0}", "trainer.learning_rate", "must not be negative"),
    (
        "dpo",
        "trainer: {per_device_train_batch_size: 0}",
        "trainer.per_device_train_batch_size",
        "at least 1",
    ),
    (
        "dpo",
        "trainer: {report_to: 'trackio,tensorboard'}",
        "trainer.report_to",
        "several are written as a list, where a key takes one: [trackio, tensorboard]",
    ),
    ("dpo", "trainer: {optim: adamw_8bitt}", "trainer.optim", "did you mean `adamw_8bit`?"),
    (
        "dpo",
        "trainer: {lr_scheduler_type: cosin}",
        "trainer.lr_scheduler_type",
        "did you mean `cosine`?",
    ),
    ("dpo", "trainer: {save_strategy: epochs}", "trainer.save_strategy", "did you mean `epoch`?"),
    (
        "dpo",
        "trainer: {warmup_ratio: 0.1}",
        "trainer.warmup_ratio",
        "write `trainer.warmup_steps: 0.1`",
    ),
    ("dpo", "trainer: {warmup_steps: 1.5}", "trainer.warmup_steps", "below 1 a share of all steps"),
    ("dpo", "trainer: {beta: 0.1}", "trainer.beta", "set `dpo.beta`"),
    ("dpo", "trainer: {loss_type: ipo}", "trainer.loss_type", "set `dpo.loss`"),
    ("dpo", "trainer: {max_length: 512}", "trainer.max_length", "set `data.max_length`"),
    ("sft", "trainer: {max_length: 512}", "trainer.max_length", "set `data.max_length`"),
    (
        "sft",
        "trainer: {max_seq_length: 512}",
        "trainer.max_seq_length",
        "it is called `data.max_length` now",
    ),
    (
        "dpo",
        "trainer: {max_prompt_length: 512}",
        "trainer.max_prompt_length",
        "`dpo.max_prompt_length` cuts prompts",
    ),
    (
        "dpo",
        "dpo: {max_prompt_length: 512}",
        "dpo.max_prompt_length",
        "cuts nothing with `data.on_too_long: error`",
    ),
    ("sft", "trainer: {packing: true}", "trainer.packing", "set `sft.packing`"),
    ("sft", "trainer: {packing_strategy: bdf}", "trainer.packing_strategy", "did you mean `bfd`?"),
    ("sft", "trainer: {packing_strategy: wrapped}", "trainer.packing_strategy", "cuts rows"),
    (
        "dpo",
        "trainer: {packing_strategy: bfd}",
        "trainer.packing_strategy",
        "is a key of the `sft` trainer",
    ),
    (
        "sft",
        "trainer: {train_sampling_strategy: sequential}",
        "trainer.train_sampling_strategy",
        "random order",
    ),
    ("dpo", "trainer: {output_dir: x}", "trainer.output_dir", "set `output_dir` at the top"),
    ("dpo", "trainer: {seed: 1}", "trainer.seed", "set `seed` at the top"),
    ("dpo", "trainer: {torch_dtype: bfloat16}", "trainer.torch_dtype", "set `model.dtype`"),
    ("dpo", "trainer: {logging_dir: x}", "trainer.logging_dir", "metrics.jsonl"),
    (
        "dpo",
        "trainer: {group_by_length: true}",
        "trainer.group_by_length",
        "train_sampling_strategy",
    ),
    (
        "dpo",
        "trainer: {overwrite_output_dir: true}",
        "trainer.overwrite_output_dir",
        "`--overwrite`",
    ),
    (
        "dpo",
        "trainer: {evaluation_strategy: steps}",
        "trainer.evaluation_strategy",
        "`trainer.eval_strategy`",
    ),
    ("dpo", "trainer: {hub_token: abc}", "trainer.hub_token", "HF_TOKEN"),
    ("dpo", "trainer: {fsdp: full_shard}", "trainer.fsdp", "set `launch.strategy: fsdp`"),
    ("dpo", "trainer: [1]", "r.yaml:4: trainer", "expected a section"),
    ("dpo", "trainer: {eval_strategy: steps}", "trainer.eval_strategy", "needs held-out rows"),
    ("dpo", "trainer: {bf16: true, fp16: true}", "trainer.fp16", "together with `trainer.bf16`"),
    ("dpo", "dpo: {loss: sigmod}", "r.yaml:4: dpo.loss", "did you mean `sigmoid`?"),
    ("dpo", "dpo: {beta: 0}", "dpo.beta", "must be at least 1e-06"),
    ("dpo", 'dpo: {beta: "0.1"}', "dpo.beta", "write it without quotes"),
    ("dpo", "dpo: {beta: [0.1, 0.2]}", "dpo.beta", "expected a number"),
    ("dpo", "dpo: {loss: 3}", "dpo.loss", "put it in quotes"),
    (
        "dpo",
        "dpo: {loss: ipo, label_smoothing: 0.1}",
        "dpo.label_smoothing",
        "has no effect on `ipo`",
    ),
    ("dpo", "dpo: {loss: exo_pair}", "dpo.label_smoothing", "must be above 0 for `exo_pair`"),
    ("dpo", "dpo: {loss: kto}", "r.yaml:4: dpo.loss", "KTO learns from single answers"),
    ("dpo", "dpo: {loss: kto}", "dpo.loss", "`kto_pair` is made of it for pairs"),
    ("sapo", "sapo: {loss: BCO}", "sapo.loss", "`bco_pair` is made of it for pairs"),
    (
        "dpo",
        "trainer: {label_smoothing_factor: 0.1}",
        "trainer.label_smoothing_factor",
        "set `dpo.label_smoothing`",
    ),
    (
        "sapo",
        "trainer: {label_smoothing_factor: 0.1}",
        "trainer.label_smoothing_factor",
        "no effect on `sapo`",
    ),
    (
        "reward",
        "trainer: {label_smoothing_factor: 0.1}",
        "trainer.label_smoothing_factor",
        "set `reward.label_smoothing`",
    ),
    (
        "dpo",
        "trainer: {neftune_noise_alpha: 5}",
        "trainer.neftune_noise_alpha",
        "rewards would measure the noise",
    ),
    (
        "dpo",
        "trainer: {neftune_noise_alpha: 5}\ndpo: {loss: {simpo: 1, ipo: 1}}",
        "trainer.neftune_noise_alpha",
        "drop it",
    ),
    (
        "sapo",
        "trainer: {neftune_noise_alpha: 5}",
        "trainer.neftune_noise_alpha",
        "rewards would measure the noise",
    ),
    ("sft", "trainer: {max_steps: 0}", "trainer.max_steps", "0 steps train nothing"),
    ("reward", "trainer: {max_steps: 0}", "trainer.max_steps", "`aligner eval`"),
    ("dpo", "dpo: {tau: 0.1}", "dpo.tau", "has no effect on `sigmoid`"),
    ("dpo", "dpo: {label_smoothing: 0.5}", "dpo.label_smoothing", "must be less than 0.5"),
    ("dpo", "dpo: {reference: adapter_of}", "dpo.reference", "did you mean `adapter_off`?"),
    ("dpo", "dpo: {reference: adapter_off}", "dpo.reference", "needs an adapter"),
    ("dpo", "sft: {packing: true}", "r.yaml:4: sft", "that section belongs to `aligner sft`"),
    ("sft", "dpo: {beta: 1}", "r.yaml:4: dpo", "that section belongs to `aligner dpo`"),
    ("sft", "sft: {loss_on: assistants}", "sft.loss_on", "did you mean `assistant`?"),
    ("sft", "sft: {packing: sometimes}", "sft.packing", "expected true or false or one of auto"),
    (
        "sft",
        "sft:\n  packing: true\n  packing: false",
        "r.yaml:6: sft.packing",
        "given twice, here and in line 5",
    ),
    ("dpo", "sed: 1", "r.yaml:4: sed", "did you mean `seed`?"),
    ("dpo", "seed: -1", "r.yaml:4: seed", "must be at least 0"),
    ("dpo", "learning_rate: 1e-5", "r.yaml:4: learning_rate", "set `trainer.learning_rate`"),
    ("dpo", "model_name_or_path: x", "r.yaml:4: model_name_or_path", "set `model.name_or_path`"),
    ("dpo", "load_in_4bit: true", "r.yaml:4: load_in_4bit", "set `model.quantization: nf4`"),
    ("dpo", "base_model: x", "r.yaml:4: base_model", "set `model.name_or_path`"),
    ("dpo", "cutoff_len: 512", "r.yaml:4: cutoff_len", "set `data.max_length`"),
    ("dpo", "dataset_mixture: {}", "r.yaml:4: dataset_mixture", "`data.train`"),
    ("dpo", "method: dop", "r.yaml:4: method", "did you mean `dpo`?"),
    ("dpo", "method: sft", "r.yaml:4: method", "run `aligner sft` with it"),
    ("dpo", "launch: {strategy: zer3}", "launch.strategy", "did you mean `zero3`?"),
    ("dpo", "launch: {strategy: nowhere.yaml}", "launch.strategy", "no file `nowhere.yaml`"),
    ("dpo", "launch: {num_processes: 0}", "launch.num_processes", "must be at least 1"),
    ("dpo", "launch: {machine_rank: 1}", "launch.machine_rank", "must be below"),
    ("dpo", "launch: {mixed_precision: bf61}", "launch.mixed_precision", "did you mean `bf16`?"),
    ("dpo", "early_stopping: {}", "r.yaml:4: early_stopping", "needs held-out rows"),
    ("dpo", "early_stopping: true", "r.yaml:4: early_stopping", "expected a section"),
    ("dpo", "output_dir: runs/y", "r.yaml:4: output_dir", "given twice, here and in line 3"),
    ("dpo", "=model: {}\ndata: {train: a}", "r.yaml:1: model.name_or_path", "is missing"),
    ("dpo", "=model: base\ndata: {train: a}", "r.yaml:1: model", "expected a section"),
    ("dpo", "=model: {name_or_path: x}", "data", "is missing"),
    ("dpo", "=model: {name_or_path: x}\ndata: {train: []}", "r.yaml:2: data.train", "is empty"),
    (
        "dpo",
        "=model: {name_or_path: x}\ndata: {train: 3}",
        "r.yaml:2: data.train",
        "expected a list",
    ),
    (
        "dpo",
        "=model: {name_or_path: x}\ndata: {tran: a}",
        "r.yaml:2: data.tran",
        "did you mean `data.train`?",
    ),
    (
        "dpo",
        "=model: {name_or_path: 3}\ndata: {train: a}",
        "model.name_or_path",
        "expected a text, found `3`",
    ),
    ("sft", "generation: {engine: hf_bc}", "r.yaml:4: generation.engine", "did you mean `hf_cb`?"),
    ("sft", "generation: {engin: hf}", "generation.engin", "did you mean `generation.engine`?"),
    ("sft", "generation: {engine: vllm}", "generation.engine", "has weights of its own"),
    (
        "sapo",
        "generation: {engine: endpoint, endpoint: {}}",
        "r.yaml:4: generation.engine",
        "a moving average of what is trained writes",
    ),
    (
        "dpo",
        "generation: {engine: vllm}",
        "generation.engine",
        "answer as the reference for `dpo.forward_kl`",
    ),
    (
        "dpo",
        "generation: {engine: vllm}\ndpo: {forward_kl: 0.1}\nlaunch: {num_processes: 2}",
        "generation.engine",
        "one process loads",
    ),
    ("reward", "generation: {engine: hf}", "r.yaml:4: generation", "writes nothing"),
    ("sft", "generation: {vllm: {seed: 1}}", "generation.vllm", "no effect with `engine: auto`"),
    (
        "sft",
        "generation: {endpoint: {base_url: a}}",
        "generation.endpoint",
        "set generation.engine=endpoint",
    ),
    (
        "dpo",
        "generation: {engine: endpoint}\ndpo: {forward_kl: 0.1}",
        "generation.endpoint",
        "is missing",
    ),
    (
        "dpo",
        "generation: {engine: endpoint, endpoint: {temperature: 0.5}}\ndpo: {forward_kl: 0.1}",
        "generation.endpoint.temperature",
        "whoever asks says how texts are sampled",
    ),
    (
        "dpo",
        "generation: {engine: endpoint, endpoint: {backend: local}}\ndpo: {forward_kl: 0.1}",
        "generation.endpoint.backend",
        "only a server continues token ids",
    ),
    (
        "dpo",
        "generation: {engine: endpoint, endpoint: {budget: {usd: 1}}}\ndpo: {forward_kl: 0.1}",
        "generation.endpoint.budget.usd",
        "needs prices",
    ),
]

WELL_FORMED = [
    ("sft", "trainer: {label_smoothing_factor: 0.1, neftune_noise_alpha: 5}"),
    ("dpo", "trainer: {neftune_noise_alpha: 5}\ndpo: {loss: orpo}"),
    ("sapo", "trainer: {neftune_noise_alpha: 5}\nsapo: {loss: orpo}"),
    ("reward", "trainer: {neftune_noise_alpha: 5}"),
    ("sapo", "generation: {engine: hf_cb}"),
    ("dpo", "generation: {engine: vllm, vllm: {seed: 1}}\ndpo: {forward_kl: 0.1}"),
    ("dpo", "generation: {engine: endpoint, endpoint: {model: m}}\ndpo: {forward_kl: 0.1}"),
    ("dpo", "trainer: {max_steps: -1, label_smoothing_factor: 0.0}"),
]


@pytest.mark.parametrize(("method", "text"), WELL_FORMED)
def test_what_a_method_reads_is_not_refused(tmp_path: Path, method: str, text: str) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE + text, "utf-8")
    load_recipe(method, path, ())


MORE_DATA = [
    (
        "train: [{path: a, wieght: 2}]",
        "data.train[0].wieght",
        "did you mean `data.train[0].weight`?",
    ),
    ("train: [a, {path: b, weight: 0}]", "data.train[1].weight", "must be at least 1e-06"),
    (
        "train: [{path: a, weight: 2.0, max_rows: 10}]",
        "data.train[0]",
        "both `weight` and `max_rows`",
    ),
    ("train: {paht: a}", "data.train.paht", "did you mean"),
    ("train: [{path: a, format: mesages}]", "data.train[0].format", "did you mean `messages`?"),
    (
        "train: [{path: a, format: messages}]",
        "data.train[0].format",
        "`dpo` cannot train on `messages` rows",
    ),
    (
        "train: a, eval: [{path: b, format: text}]",
        "data.eval[0].format",
        "`dpo` cannot train on `text` rows",
    ),
    ("train: a, eval: 1.5", "data.eval", "must be less than 1"),
    ("train: a, eval: 1000.0", "data.eval", "is whole and has no point (1000)"),
    ("train: a, eval: 0", "data.eval", "must be greater than 0"),
    ("train: a, eval: true", "data.eval", "expected a number or a whole number or a list"),
    ("train: a, eval: {path: b, splt: test}", "data.eval.splt", "did you mean"),
    ("train: a, max_length: 1", "data.max_length", "must be at least 2"),
    (
        "train: a, control_tokens: text",
        "data.control_tokens",
        "expected one of allow, as_text, error, found `text`",
    ),
    (
        "train: a, on_too_long: cut",
        "data.on_too_long",
        "expected one of error, drop, truncate, found `cut`",
    ),
]

MORE_MODEL = [
    ("quantization: nf5", "model.quantization", "did you mean `nf4`?"),
    ("quantization: nf4", "model.quantization", "add `model.lora: {}`"),
    ("quantization: int8", "model.quantization", "nothing is left to train"),
    ("quantization: int8, double_quant: true, lora: {}", "model.double_quant", "has no effect"),
    (
        "quantization: nf4, lora: {init_lora_weights: olora}",
        "model.lora.init_lora_weights",
        "use true or gaussian",
    ),
    (
        "quantization: int8, lora: {init_lora_weights: pissa}",
        "model.lora.init_lora_weights",
        "this base is in `int8`",
    ),
    (
        "quantization: fp4, lora: {init_lora_weights: orthogonal}",
        "model.lora.init_lora_weights",
        "`orthogonal` reads",
    ),
    ("dtype: bf16", "model.dtype", "expected one of auto, float32, bfloat16, float16"),
    ("lora: {r: 0}", "model.lora.r", "must be at least 1"),
    ("lora: {lora_rank: 8}", "model.lora.lora_rank", "set `model.lora.r`"),
    ("lora: true", "model.lora", "expected a section"),
    ("lora: {target_modules: 3}", "model.lora.target_modules", "expected a text or a list"),
    ("attn_implementation: flash_attn_2", "model.attn_implementation", "flash_attention_2"),
]


def problem_of(folder: Path, method: str, text: str, overrides: tuple[str, ...] = ()) -> str:
    """The only problem of a recipe, as it is printed."""
    path = folder / "r.yaml"
    path.write_text(text, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe(method, path, overrides)
    assert caught.value.exit_code == 2
    (problem,) = caught.value.problems
    return str(problem)


@pytest.mark.parametrize(("method", "text", "place", "words"), MALFORMED)
def test_a_mistake_names_its_line_its_key_and_its_cure(
    tmp_path: Path, method: str, text: str, place: str, words: str
) -> None:
    whole = text[1:] if text.startswith("=") else BASE + text
    message = problem_of(tmp_path, method, whole)
    assert place in message
    assert words in message


@pytest.mark.parametrize(("text", "place", "words"), MORE_DATA)
def test_a_mistake_in_the_data_section_is_found(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    message = problem_of(tmp_path, "dpo", f"model: {{name_or_path: x}}\ndata: {{{text}}}\n")
    assert f"r.yaml:2: {place}: " in message
    assert words in message


@pytest.mark.parametrize(("text", "place", "words"), MORE_MODEL)
def test_a_mistake_in_the_model_section_is_found(
    tmp_path: Path, text: str, place: str, words: str
) -> None:
    message = problem_of(
        tmp_path, "dpo", f"model: {{name_or_path: x, {text}}}\ndata: {{train: a}}\n"
    )
    assert f"r.yaml:1: {place}: " in message
    assert words in message


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("dpo.betta=1", "dpo.betta=1: dpo.betta: unknown key (did you mean `dpo.beta`?)"),
        ("data.train.0.path=x", "lists are replaced whole"),
        ("data.train[0].path=x", "not a dotted key"),
        ("beta", "is not an override"),
        ("trainer.learning_rate=[1", "not valid YAML"),
        ("modle.lora.r=8", "did you mean `model`?"),
        (
            "model.lora.r=many",
            "model.lora.r=many: model.lora.r: expected a whole number, found `many`",
        ),
        ("output_dir.x=1", "output_dir: expected a text"),
        ("data.train.wieght=2", "did you mean"),
        ("model.lora.r.x=2", "model.lora.r"),
    ],
)
def test_a_mistake_in_an_override_is_told_with_the_override(
    tmp_path: Path, override: str, words: str
) -> None:
    assert words in problem_of(tmp_path, "dpo", BASE, (override,))


@pytest.mark.parametrize(
    ("extra", "key"),
    [
        ("launch: {num_machines: 2, num_processes: 3, main_process_ip: a}", "launch.num_processes"),
        ("launch: {num_machines: 2, num_processes: 4}", "launch.main_process_ip"),
        ("trainer: {bf16: true}\nlaunch: {mixed_precision: fp16}", "launch.mixed_precision"),
        (
            "sft: {packing: true}\ntrainer: {train_sampling_strategy: group_by_length}",
            "trainer.train_sampling_strategy",
        ),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, extra: str, key: str
) -> None:
    assert f"{key}: " in problem_of(tmp_path, "sft", BASE + extra)


@pytest.mark.parametrize(
    ("trainer", "key"),
    [
        ("{eval_strategy: no}", "trainer.eval_strategy"),
        ("{save_strategy: no}", "trainer.save_strategy"),
        ("{eval_strategy: epoch, save_strategy: steps}", "trainer.save_strategy"),
    ],
)
def test_early_stopping_needs_evaluations_and_their_checkpoints(
    tmp_path: Path, trainer: str, key: str
) -> None:
    text = (
        f"model: {{name_or_path: x}}\ndata: {{train: a, eval: 0.1}}\nearly_stopping: "
        f"{{}}\ntrainer: {trainer}\n"
    )
    assert f"r.yaml:4: {key}: " in problem_of(tmp_path, "dpo", text)


def test_adapter_off_and_another_reference_model_contradict(tmp_path: Path) -> None:
    text = (
        "model: {name_or_path: x, lora: {}}\ndata: {train: a}\ndpo: {reference: adapter_off, "
        "reference_model: y}\n"
    )
    assert "r.yaml:3: dpo.reference_model: contradicts" in problem_of(tmp_path, "dpo", text)


def test_preference_rows_cannot_be_given_to_sft(tmp_path: Path) -> None:
    text = "model: {name_or_path: x}\ndata: {train: {path: a, format: preference}}\n"
    message = problem_of(tmp_path, "sft", text)
    assert "r.yaml:2: data.train.format: `sft` cannot train on `preference` rows" in message
    assert "aligner dpo" in message


@pytest.mark.parametrize("quantization", ["nf4", "fp4", "int8"])
def test_a_quantized_base_is_not_split_by_fsdp(tmp_path: Path, quantization: str) -> None:
    text = (
        f"model: {{name_or_path: x, quantization: {quantization}, lora: {{}}}}\n"
        "data: {train: a}\nlaunch: {strategy: fsdp}\n"
    )
    assert "r.yaml:3: launch.strategy" in problem_of(tmp_path, "sft", text)


@pytest.mark.parametrize("method", ["sapo", "rlhf"])
@pytest.mark.parametrize("strategy", ["fsdp", "fsdp1", "zero3"])
def test_a_policy_that_writes_is_not_split(tmp_path: Path, method: str, strategy: str) -> None:
    reward = "rlhf: {reward_models: ['verifier:regex=a']}\n" if method == "rlhf" else ""
    text = (
        f"model: {{name_or_path: x}}\ndata: {{train: a}}\n{reward}"
        f"launch: {{strategy: {strategy}, num_processes: 2}}\n"
    )
    line = 4 if reward else 3
    message = problem_of(tmp_path, method, text)
    assert f"r.yaml:{line}: launch.strategy: `{strategy}` splits the policy" in message
    path = tmp_path / "one.yaml"
    path.write_text(text.replace("num_processes: 2", "num_processes: 1"), encoding="utf-8")
    load_recipe(method, path)


def test_all_problems_come_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(
        "methd: dpo\nmodel:\n  name_or_path: x\n  quantization: nf5\n  quantization: nf4\ndata:\n "
        " train: [{pth: a}]\n"
        "  max_length: long\ntrainer:\n  learning_rate: fast\n  warmup_ratio: 0.1\ndpo:\n  loss: "
        "sigmod\n",
        "utf-8",
    )
    with pytest.raises(RecipeError) as caught:
        load_recipe("dpo", path, ["launch.strategy=zer3", "seed"])
    keys = [problem.key for problem in caught.value.problems]
    assert keys == [
        "methd",
        "model.quantization",
        "model.quantization",
        "data.train[0].pth",
        "data.max_length",
        "trainer.learning_rate",
        "trainer.warmup_ratio",
        "dpo.loss",
        "",
        "launch.strategy",
    ]
    assert "10 problems in" in caught.value.message
    assert len(str(caught.value).splitlines()) == 11


@pytest.mark.parametrize(
    ("ref", "words"),
    [
        ("recipe.yml", "did you mean"),
        ("tiny/dop", "did you mean `tiny/dpo`?"),
        ("quite/something/else", "aligner recipes list"),
        (".", "is a folder"),
    ],
)
def test_a_recipe_that_is_not_there_is_answered_with_the_nearest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ref: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(BASE, "utf-8")
    with pytest.raises(RecipeError) as caught:
        load_recipe("dpo", ref)
    assert words in str(caught.value)


def test_a_recipe_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\x80\x81\x00")
    with pytest.raises(RecipeError, match="not UTF-8"):
        load_recipe("dpo", tmp_path / "r.yaml")


def test_nothing_at_all_is_answered_with_the_two_things_that_are_needed() -> None:
    with pytest.raises(RecipeError) as caught:
        load_recipe("sft", None)
    assert [problem.key for problem in caught.value.problems] == ["model", "data"]
    assert "--model" in caught.value.hint


def test_a_wrong_recipe_is_answered_at_once(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text(BASE + "trainer: {learnig_rate: 1}\ndpo: {loss: sigmod}\n", "utf-8")
    for _ in range(2):  # what is imported comes with the first
        started = time.process_time()
        with pytest.raises(RecipeError):
            load_recipe("dpo", path)
    assert time.process_time() - started < 0.5
