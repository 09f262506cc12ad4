"""The recipe: what a user may write, with types, bounds and one line on each key. Imports no torch.

Every section is frozen and refuses unknown keys. The `trainer:` section is a plain mapping here;
its keys are checked in `trainer_keys.py` against the TRL or transformers class of the method, so
the names people know keep working and no list of ours has to follow theirs. Rules that join several
keys stand in `rules.py`. The docstring below a field is its documentation: `docs/recipe.md` is
generated from it.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field

from aligner.config.named import Names
from aligner.config.trackers import Trackers
from aligner.config.trainer_values import MOST

Format = Literal[
    "auto", "messages", "prompt_completion", "preference", "sharegpt", "alpaca", "text", "prompt"
]
PermuteRule = Literal[
    "explicit",
    "reverse",
    "alphabet_ascending",
    "alphabet_descending",
    "words_ascending",
    "words_descending",
    "characters_ascending",
    "characters_descending",
    "odd_first",
    "even_first",
]
MaskRule = Literal["explicit", "longest", "shortest", "odd", "even"]
LossOn = Literal["auto", "assistant", "last_assistant", "completion", "all"]
Whole = Annotated[int, Field(le=MOST)]
Weight = Annotated[float, Field(ge=0.0, le=1e6)]
Strength = Annotated[float, Field(ge=1e-6, le=1e6)]
"""A number that others are multiplied or divided by, so that none of them leaves what float32
holds."""


class Section(BaseModel):
    """A part of a recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, protected_namespaces=(), defer_build=True, allow_inf_nan=False
    )
    # pydantic could read the docstrings below the fields at every start; `docs.py` does it
    # when they are wanted.


class Lora(Section):
    """Low-rank adapters (LoRA, arXiv 2106.09685), with PEFT's own field names."""

    r: int = Field(16, ge=1, le=65_536)
    """Rank of the adapters."""
    lora_alpha: int = Field(32, ge=1, le=1_000_000)
    """Scale: the update is multiplied by `lora_alpha / r`."""
    lora_dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """Dropout on the adapter's input."""
    target_modules: str | list[str] = "all-linear"
    """`all-linear`, or names of the modules that get an adapter. `all-linear` is each linear layer
    but the head and routers."""
    exclude_modules: str | list[str] | None = None
    """Names of modules, or a pattern for whole names, that get none."""
    target_parameters: list[str] | None = None
    """Weights that get an adapter without being a layer, such as stacked experts:
    `[mlp.experts.down_proj]`."""
    modules_to_save: list[str] | None = None
    """Modules trained and saved whole beside the adapters, for example `[lm_head]` after adding
    tokens."""
    bias: Literal["none", "all", "lora_only"] = "none"
    """Which biases are trained."""
    use_rslora: bool = False
    """Scale by `lora_alpha / sqrt(r)` instead (rsLoRA, arXiv 2312.03732)."""
    use_dora: bool = False
    """Weight-decomposed adapters (DoRA, arXiv 2402.09353)."""
    init_lora_weights: bool | Literal["gaussian", "olora", "pissa", "orthogonal"] = True
    """How the adapters start; `true` starts them as a no-op."""


class Model(Section):
    """The model that is trained, and how it is loaded."""

    name_or_path: Annotated[str, Names("model")]
    """Hub id or folder. A folder may hold a LoRA adapter, the `final/` of an earlier run for
    example."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Data type of the weights. `auto`: bfloat16 for a frozen base under LoRA on a GPU that has it,
    else float32."""
    quantization: Literal["none", "nf4", "fp4", "int8"] = "none"
    """Load the frozen base with bitsandbytes in 4 or 8 bits; needs `lora` (QLoRA, arXiv
    2305.14314)."""
    double_quant: bool = True
    """Quantize the quantization constants too; only for `nf4` and `fp4`."""
    lora: Lora | None = None
    """Train adapters instead of the whole model. Absent: full fine-tuning."""
    attn_implementation: str | None = None
    """`sdpa`, `eager`, `flash_attention_2`, ... Absent: what transformers chooses."""
    trust_remote_code: bool = False
    """Run code that ships with the model. Off unless you ask for it."""
    chat_template: Annotated[str | None, Names("template")] = None
    """A Jinja file, or the name of a template that TRL ships (`qwen3`, `llama3`, ...), or `chatml`.
    Absent: the tokenizer's own."""
    new_tokens: list[str] = []
    """Tokens added to the tokenizer; the embeddings are resized."""
    eos_token: str | None = None
    """Stop token of the tokenizer, when its own is not the one that the chat template ends a turn
    with."""
    pad_token: str | None = None
    """Padding token; it may be the stop token. Absent: the tokenizer's, or one that it has; none is
    ever added."""


class Source(Section):
    """One place that rows come from."""

    path: Annotated[str, Names("data")]
    """A file (.jsonl, .json, .parquet, .csv, each also .gz), a folder, a glob, or a hub id."""
    split: str = "train"
    """Split of a hub dataset, or of a folder laid out by split."""
    subset: str | None = None
    """Configuration of a hub dataset."""
    revision: str | None = None
    """Revision of a hub dataset."""
    format: Format = "auto"
    """Form of the rows. `auto` detects it and prints what it found."""
    columns: dict[str, str] = {}
    """Which column holds what: `{prompt: question, completion: answer}`. Target name first."""
    function: Annotated[str | None, Names("function")] = None
    """A function of yours that turns a row into one that we know: `path/to/file.py:name`. Return
    None to drop the row."""
    weight: float = Field(1.0, ge=1e-6, le=1000.0)
    """How often each row is seen: 0.5 takes a random half, 2 takes every row twice."""
    max_rows: Whole | None = Field(None, ge=1)
    """Take at most this many rows, drawn at random with the recipe's seed."""

    def in_short(self) -> str:
        """Return the source in a line."""
        extra = [f"weight {self.weight:g}"] if self.weight != 1 else []
        extra += [f"at most {self.max_rows} rows"] if self.max_rows else []
        return f"{self.path} ({', '.join(extra)})" if extra else self.path


def _as_sources(value: Any) -> Any:
    """Allow `train: data.jsonl` and `train: [a.jsonl, b.jsonl]` for the everyday case."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


ShortSources = str | Source | list[str | Source]
"""Sources as a recipe may write them: a path alone, or one source, or several."""

Sources = Annotated[
    list[Source],
    BeforeValidator(_as_sources, json_schema_input_type=ShortSources),
    Field(min_length=1),
]


Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Count = Annotated[int, Field(ge=1, le=MOST, strict=True)]


def _as_eval(value: Any) -> Any:
    return value if isinstance(value, int | float) else _as_sources(value)


class Strategies(Section):
    """Weights of the strategies of mosaics: what is asked for beside the instructions."""

    format: Weight = 1.0
    """Answers with numbers, between tags, or both."""
    permute: Weight = 1.0
    """The same in another order, by a rule."""
    maskout: Weight = 1.0
    """The same with some answers left out, by a rule."""
    primary: Weight = 0.0
    """Nothing: instructions and answers are joined as they are."""


class Mosaic(Section):
    """How rows are glued into mosaics (Mosaic-IT, arXiv 2405.13326)."""

    max_examples: Whole = Field(10, ge=1, le=100)
    """Most rows in a sample, the paper's K."""
    min_examples: Whole = Field(1, ge=1)
    """Fewest rows that are drawn for a sample. What does not fit `max_tokens`, and the end of an
    epoch, can be fewer."""
    k_distribution: Literal[
        "uniform", "exp", "pareto", "lognormal", "logistic2", "fix_max", "max_length"
    ] = "uniform"
    """How many rows a sample gets: uniform, mostly near `max_examples`, always `max_examples`, or
    as many as fit."""
    strategies: Strategies = Strategies()
    """How often each strategy is drawn."""
    permute_rules: list[PermuteRule] | None = None
    """Rules of order to draw from. Absent: all ten."""
    mask_rules: list[MaskRule] | None = None
    """Rules of leaving out to draw from. Absent: all five."""
    mask_ratio: Annotated[list[Share], Field(min_length=2, max_length=2)] = [0.1, 0.5]
    """Share of the rows that is left out, drawn between these two, at least one row."""
    plain_fraction: float = Field(0.1, ge=0.0, le=1.0)
    """Share of samples that are one row alone, as it came. Without them a model may answer single
    prompts in mosaic style."""
    max_tokens: Whole | None = Field(None, ge=2)
    """Longest sample in tokens, chat template included. Absent: `data.max_length`."""
    on_overlong: Literal["alone", "drop", "error"] = "alone"
    """What happens to a row that is longer by itself: it stands alone, is dropped and counted, or
    is an error."""
    multiturn: Literal["skip", "first_turn"] = "skip"
    """Conversations of several rounds are left out and counted, or give their first round."""
    group_by: str | None = None
    """Column whose values are kept apart: only rows with the same one share a sample. System
    prompts are always kept apart."""
    phrasings: Annotated[str | None, Names("file")] = None
    """YAML file of phrasings that are added to the built-in ones, or replace them."""
    compat: Literal["robust", "released"] = "robust"
    """`released`: draw as the authors' code does, with its faults (samples that contradict their
    instructions, dropped rows)."""


class Data(Section):
    """Where the rows come from and what happens to them before training."""

    train: Sources
    """Sources of training rows: a path, a list of paths, or a list of sources."""
    eval: Annotated[
        Share | Count | list[Source] | None,
        BeforeValidator(_as_eval, json_schema_input_type=Share | Count | ShortSources | None),
    ] = None
    """Held-out rows: a share of the training rows (0.05), a number (1000), sources like `train`."""
    max_length: int = Field(2048, ge=2, le=10_000_000)
    """Longest row in tokens, prompt and answer together."""
    on_too_long: Literal["error", "drop", "truncate"] = "error"
    """What happens to a longer row. Every row and token lost is counted in `data.json`."""
    on_bad_row: Literal["error", "drop"] = "error"
    """What happens to a row that is broken: stop, or drop it, count it and list it in
    `data.json`."""
    control_tokens: Literal["allow", "as_text", "error"] = "allow"
    """What a control token is that stands in the text of a row (a quoted `<|im_end|>`): the token
    itself, as everywhere where such a text is sent to a model, or the characters as text, or a
    broken row. Those of the chat template stay tokens. Counted."""
    deduplicate: bool = False
    """Remove exact duplicates, after mapping and before the split."""
    test_set: Annotated[str | None, Names("testset")] = None
    """Only trainings: refuse rows that `aligner arena testset verify` has not found to be free of
    this test set, a folder."""
    mosaic: Mosaic | None = None
    """Only `sft`: train on mosaics of the rows instead, new ones for each epoch, as `aligner
    mosaic` would write them."""

    def in_short(self) -> str:
        """Return the training sources in a line."""
        return ", ".join(source.in_short() for source in self.train)


class EarlyStopping(Section):
    """Stop when the held-out metric no longer improves; the best checkpoint becomes the result."""

    patience: Whole = Field(3, ge=1)
    """Evaluations without improvement before stopping."""
    threshold: Weight = 0.0
    """Smallest change that counts as an improvement."""


class EvalArena(Section):
    """Battles with the model that training starts from, on held-out prompts, at every evaluation:
    the share that the trained model wins, a tie counting half, with an interval. Only `sft`, `dpo`,
    `sapo`, `rlhf`."""

    judge: Annotated[str, Names("scorer")]
    """What says which of two answers is better: a card, a run of `aligner reward`, a judge or a
    verifier."""
    prompts: Whole = Field(64, ge=2, le=100_000)
    """Held-out prompts that are answered at the most; the first ones."""
    max_new_tokens: Whole = Field(256, ge=1)
    """Longest answer, in tokens."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Answers that are decoded together."""


class Eval(Section):
    """What evaluations measure beside the loss and the numbers of the method. Needs
    `data.eval`."""

    arena: EvalArena | None = None
    """The win rate against the start."""


class Launch(Section):
    """How many processes train, and how they share the model."""

    num_processes: int = Field(1, ge=1, le=65_536)
    """Processes, one for each GPU. One runs in this process; more go through accelerate's
    launcher."""
    strategy: str = "ddp"
    """`ddp`, `fsdp`, `fsdp1`, `zero1`, `zero2`, `zero3`, or a configuration file of
    accelerate's."""
    num_machines: int = Field(1, ge=1, le=65_536)
    """Machines that take part."""
    machine_rank: Whole = Field(0, ge=0)
    """This machine's number."""
    main_process_ip: str | None = None
    """Address of machine 0."""
    main_process_port: Whole | None = Field(None, ge=1, le=65535)
    """Port of machine 0. Absent: a free one."""
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    """Overrides the mixed precision of accelerate's configuration."""


class Budget(Section):
    """What requests to a language model may cost. What is left out is not limited."""

    calls: Whole | None = Field(None, ge=0)
    """Requests that are really sent; replies from the cache are free."""
    tokens: Whole | None = Field(None, ge=0)
    """Tokens of prompts and replies together."""
    usd: float | None = Field(None, ge=0.0, le=1e9)
    """Money, by the two prices of the endpoint."""
    minutes: float | None = Field(None, gt=0.0, le=1e7)
    """Wall-clock time since the client was opened."""


class Endpoint(Section):
    """A language model that answers requests: a server that speaks OpenAI's protocol, a local
    model, or a script."""

    backend: Literal["openai", "local", "scripted"] = "openai"
    """`openai`: any OpenAI-compatible server. `local`: a model loaded here. `scripted`: replies
    from a file."""
    model: Annotated[str, Names("model")] = ""
    """Name of the model on the server; for `local` a hub id or folder."""
    base_url: str | None = None
    """Address of the server, `http://127.0.0.1:8000/v1` for example. Absent: OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. A server on this machine needs none."""
    script: Annotated[str | None, Names("script")] = None
    """JSONL file of replies for `scripted`: `{"reply": "..."}` in the order of the requests, or
    rules."""
    temperature: float = Field(1.0, ge=0.0, le=100.0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Nucleus sampling."""
    max_tokens: Whole = Field(2048, ge=1)
    """Longest reply."""
    extra: dict[str, Any] = {}
    """Further fields of the request body, as the server knows them."""
    max_in_flight: int = Field(8, ge=1, le=10_000)
    """Requests under way at the same time; the batch size of a `local` model."""
    requests_per_minute: float | None = Field(None, ge=1e-3, le=1e9)
    """Limit of the server. Halved after a 429, and slowly raised again."""
    tokens_per_minute: float | None = Field(None, ge=1e-3, le=1e12)
    """Limit of the server, prompts and replies together."""
    timeout_s: float = Field(600.0, ge=1e-3, le=1e6)
    """Longest wait for one reply."""
    max_retries: int = Field(6, ge=0, le=1000)
    """Further attempts after a connection error, a 408, 409, 429 or a 5xx."""
    record: str | None = None
    """Folder that every request and its reply is written to."""
    replay: Annotated[str | None, Names("file")] = None
    """Folder recorded earlier, to answer from and nowhere else."""
    usd_per_million_prompt_tokens: float = Field(0.0, ge=0.0, le=1e9)
    """Price, for `budget.usd`."""
    usd_per_million_completion_tokens: float = Field(0.0, ge=0.0, le=1e9)
    """Price, for `budget.usd`."""
    budget: Budget = Budget()
    """Where to stop."""


class Generation(Section):
    """What writes texts: the report's answers, rewrites, answers of a reference, responses to be
    labelled."""

    engine: Literal["auto", "hf", "hf_cb", "vllm", "endpoint"] = "auto"
    """`hf`: transformers, with the model in this process; `hf_cb`: the same with continuous
    batching. `vllm`: vLLM in this process, which loads saved weights; `endpoint`: a server. Both
    only where the weights that write do not change. `auto` is `hf`."""
    vllm: dict[str, Any] = {}
    """Only for `vllm`: arguments of `vllm.LLM`, `{gpu_memory_utilization: 0.5}` for example."""
    endpoint: Endpoint | None = None
    """Only for `endpoint`: the server of the same model, with the keys of `endpoint`. Sampling is
    said elsewhere."""


class Preference(Section):
    """How answers to one prompt are computed, in training on pairs."""

    prefix: Literal["auto", "shared", "separate"] = "auto"
    """`shared`: in one row, their prompt computed once; `separate`: each in a row of its own, the
    prompt again for each. `auto`: shared where the model allows it, a batch saves a tenth of its
    tokens, and rows are no longer than about 16,000 tokens (8,000 for four in a batch), since the
    mask is quadratic in their length. Losses and gradients are the same."""


class Report(Section):
    """What the report of the run shows beside the curves."""

    num_prompts: int = Field(5, ge=0, le=10_000)
    """Prompts answered before and after training, of held-out rows where there are. Left out: fewer
    where they would take long beside the training."""
    max_new_tokens: Whole = Field(128, ge=1)
    """Longest such answer, in tokens. Left out: shorter where they would take long."""


class Recipe(Section):
    """What every recipe has."""

    method: str
    """What to do: `sft`, `dpo`, ..."""
    output_dir: str
    """The run directory. Left out: `runs/`, named after the recipe or the model."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of sampling, shuffling and initialization."""


class BuilderRecipe(Recipe):
    """What every recipe has that has no `trainer:` of its own."""

    report_to: Trackers = []
    """Trackers that get what the run logs, its recipe and where it came from: `tensorboard`,
    `trackio`, `wandb`, `mlflow`, or `all` that are installed."""


class TrainRecipe(Recipe):
    """What every training recipe has."""

    model: Model
    """The model that is trained, and how it is loaded."""
    data: Data
    """Where the rows come from."""
    trainer: dict[str, Any] = {}
    """Passed to the TRL or transformers configuration class of the method, under its own names."""
    launch: Launch = Launch()
    """Processes, machines, and how they share the model."""
    early_stopping: EarlyStopping | None = None
    """Needs `data.eval`."""
    eval: Eval = Eval()
    """What evaluations measure beside the loss."""
    generation: Generation = Generation()
    """What writes texts."""
    report: Report = Report()
    """What the report shows."""
