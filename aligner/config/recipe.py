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

    name_or_path: str
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
    chat_template: str | None = None
    """A Jinja file, or the name of a template that TRL ships (`qwen3`, `llama3`, ...). Absent: the
    tokenizer's own."""
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

    path: str
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
    function: str | None = None
    """A function of yours that turns a row into one that we know: `path/to/file.py:name`. Return
    None to drop the row."""
    weight: float = Field(1.0, ge=1e-6, le=1000.0)
    """How often each row is seen: 0.5 takes a random half, 2 takes every row twice."""
    max_rows: Whole | None = Field(None, ge=1)
    """Take at most this many rows, drawn at random with the recipe's seed."""


def _as_sources(value: Any) -> Any:
    """Allow `train: data.jsonl` and `train: [a.jsonl, b.jsonl]` for the everyday case."""
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[list[Source], BeforeValidator(_as_sources), Field(min_length=1)]


def _as_eval(value: Any) -> Any:
    return value if isinstance(value, int | float) else _as_sources(value)


class Strategies(Section):
    """Weights of the strategies of mosaics: what is asked for beside the instructions
    themselves."""

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

    max_members: Whole = Field(10, ge=1, le=100)
    """Most rows in a sample, the paper's K."""
    min_members: Whole = Field(1, ge=1)
    """Fewest rows that are drawn for a sample. What does not fit `max_tokens`, and the end of a
    pass, can be fewer."""
    k_distribution: Literal[
        "uniform", "exp", "pareto", "lognormal", "logistic2", "fix_max", "max_length"
    ] = "uniform"
    """How many rows a sample gets: uniform, mostly near `max_members`, always `max_members`, or as
    many as fit."""
    strategies: Strategies = Strategies()
    """How often each strategy is drawn."""
    permute_rules: list[PermuteRule] | None = None
    """Rules of order to draw from. Absent: all ten."""
    mask_rules: list[MaskRule] | None = None
    """Rules of leaving out to draw from. Absent: all five."""
    mask_ratio: Annotated[
        list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(min_length=2, max_length=2)
    ] = [0.1, 0.5]
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
    style_bank: str | None = None
    """YAML file of wordings that are added to ours, or stand in their place."""
    compat: Literal["robust", "released"] = "robust"
    """`released`: draw as the authors' code does, with its faults (samples that contradict their
    instructions, dropped rows)."""


class MosaicFiles(Mosaic):
    """`aligner mosaic`: the mosaics, and the files they are written to."""

    passes: int = Field(4, ge=1, le=10_000)
    """How often every row is used. Train one epoch on the result: the passes stand for its
    epochs."""
    tokenizer: str | None = None
    """Hub id or folder of the model to be trained: lengths are counted with its tokenizer and chat
    template. Absent: lengths are estimated as characters / 3.5, and the report says so."""
    chat_template: str | None = None
    """Another chat template than the tokenizer's own, as in `model.chat_template`."""
    form: Literal["prompt_completion", "messages", "alpaca"] = "prompt_completion"
    """Columns of the samples. The first trains on answers alone everywhere; `alpaca` puts a system
    prompt in `system`."""
    file_type: Literal["jsonl", "parquet", "dataset"] = "jsonl"
    """One JSONL file, one Parquet file, or a folder for `datasets.load_from_disk`."""
    workers: int = Field(1, ge=1, le=256)
    """Processes that build. The result does not depend on it."""
    batch_size: int = Field(128, ge=1, le=1_000_000)
    """Sequences of an optimizer step, for the report's table of costs."""


class Data(Section):
    """Where the rows come from and what happens to them before training."""

    train: Sources
    """Sources of training rows: a path, a list of paths, or a list of sources."""
    eval: Annotated[
        Annotated[float, Field(gt=0.0, lt=1.0)] | list[Source] | None, BeforeValidator(_as_eval)
    ] = None
    """Held-out rows: a share of the training rows, or a list of sources like `train`."""
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
    mosaic: Mosaic | None = None
    """Only `sft`: train on mosaics of the rows instead, new ones for each epoch, as `aligner
    mosaic` would write them."""


class Sft(Section):
    """Supervised fine-tuning."""

    loss_on: LossOn = "auto"
    """Which tokens are trained: every assistant turn, the last one, the completion, or everything.
    `auto`: assistant turns of conversations, completions of prompt/completion rows, everything of
    plain text."""
    packing: bool | Literal["auto"] = "auto"
    """Put several rows into one sequence without letting them see each other. `auto` decides
    from the length histogram, and from whether the model keeps rows apart."""


class Dpo(Section):
    """Training on preference pairs."""

    loss: str | dict[str, float] = "sigmoid"
    """The objective: a name (`sigmoid` is DPO, arXiv 2305.18290), a `.py` file with a proposed one,
    or weights of several: `{sigmoid: 0.8, sft: 0.2}`."""
    beta: Strength = 0.1
    """Strength of the pull towards the reference; the inverse temperature of the implicit
    reward."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Assumed share of flipped labels, for the objectives that use it."""
    tau: Strength = 0.05
    """Temperature in the gates of the discovered objectives (arXiv 2406.08414)."""
    simpo_gamma: Weight = 0.5
    """Target margin of `simpo`, in units of its reward."""
    warmup_steps_dpo: Whole = Field(0, ge=0)
    """Optimizer steps with `sigmoid` before the objective takes over: for one that starts on a
    wrong slope."""
    alarm_steps: Whole = Field(50, ge=0)
    """Look, after so many steps, whether the share of pairs ranked rightly has stayed below a half.
    0: never."""
    on_alarm: Literal["warn", "stop"] = "warn"
    """What happens then."""
    nll_weight: Weight = 0.0
    """Weight of a next-token loss on the chosen answer, added to the objective (RPO, arXiv
    2404.19733)."""
    reward_models: list[str] = []
    """`reward_distill`: the scorers whose rewards are followed (arXiv 2405.19316), each a card or
    `kind:argument`."""
    reward_scale: Strength | Literal["std"] = 1.0
    """`reward_distill`: what rewards are multiplied by; `std` divides each model's differences by
    their standard deviation."""
    reward_combine: Literal["mean", "min"] = "mean"
    """`reward_distill`: follow the mean of several reward models, or, pessimistically, the one
    whose loss over the batch is smallest."""
    forward_kl: Weight | None = None
    """Weight of the forward KL to the reference, in nats per answer, estimated on one answer that
    the reference writes to each prompt before training. Absent: 0.1 with `reward_distill`, else 0.
    With `sigmoid` it makes DPO pessimistic."""
    forward_kl_tokens: Whole = Field(256, ge=1)
    """Longest such answer, in tokens; `data.max_length` bounds it too."""
    reference: Literal["auto", "adapter_off", "precomputed"] = "auto"
    """Where the reference log-probabilities come from: the base under the adapter, or computed once
    and cached. `auto`: the first for a fresh LoRA adapter, the second otherwise."""
    reference_model: str | None = None
    """Another model as the reference. Absent: the model that training starts from."""


class Sapo(Section):
    """Self-Augmented Preference Optimization (arXiv 2405.20830): preferences out of single good
    answers."""

    loss: str = "sigmoid"
    """The objective: a name of the catalogue. `sigmoid` is SAPO-DPO, `orpo` SAPO-ORPO."""
    beta: Strength = 0.1
    """Strength of the pull towards the reference; the lambda of `orpo` (0.05 in the paper)."""
    nll_weight: Weight = 0.0
    """Weight of a next-token loss on the good answer, added to the objective. Not in the paper."""
    window: Whole | Literal["all"] = 256
    """Tokens of a good answer that are rewritten, at a random place; `all` rewrites the whole
    answer."""
    window_from: Whole | None = Field(None, ge=1)
    """Let the window grow from so many tokens to `window` over the training. Not in the paper."""
    suffix: Literal["keep", "drop"] = "keep"
    """What follows the window in the rewritten answer: the original text, as in the paper, or
    nothing."""
    responses_per_prompt: int = Field(1, ge=1, le=1000)
    """Rewrites of each row."""
    generate_every: Whole = Field(1, ge=1)
    """Optimizer steps between rewrites; in between, pairs come from the buffer alone."""
    generation_batch_size: int | None = Field(None, ge=1, le=65_536)
    """Rewrites decoded together. Absent: all of an optimizer step on this process."""
    temperature: float = Field(0.7, ge=0.0, le=100.0)
    """Sampling temperature of the rewrites."""
    top_k: Whole = Field(50, ge=0)
    """Sample from the k likeliest tokens; 0: from all."""
    top_p: float = Field(0.95, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that hold this share."""
    buffer_size: int = Field(2000, ge=0, le=100_000_000)
    """Pairs in the replay buffer, over all processes together. 0: no replay, the pairs of a step
    are trained in that step."""
    ema_decay: float = Field(0.5, ge=0.0, le=1.0)
    """Weight of the old in the moving average that writes. 1: it stays what training started
    from."""
    ema_every: Whole = Field(1, ge=1)
    """Optimizer steps between two updates of the average."""
    reference: Literal["ema", "policy", "fixed"] = "ema"
    """What the reference is refreshed from: the average, the policy, or nothing."""
    reference_every: Whole | None = Field(None, ge=1)
    """Optimizer steps between two refreshments. Absent: the steps of an epoch."""
    dead_pairs: Literal["keep", "drop"] = "keep"
    """Pairs whose rewrite is the answer again have no gradient; `drop` keeps them out of the
    buffer. Not in the paper."""
    retries: int = Field(0, ge=0, le=1000)
    """Further attempts at a rewrite that is the answer again, or as good. Not in the paper."""
    verifier: str | None = None
    """A scorer (`verifier:number`, `toy`): a rewrite that it scores as high as the answer is not
    used. Not in the paper."""
    export: Literal["policy", "ema"] = "policy"
    """Which weights become the result: those that were trained, or their moving average."""
    offload: bool = False
    """Keep average and reference on the CPU, for full fine-tuning where GPU memory is short."""


class RewardSegments(Section):
    """How answers are cut into segments for `kind: segment` (arXiv 2501.02790)."""

    rule: Literal["entropy", "token", "sentence", "whole"] = "entropy"
    """`entropy`: before each token that the reference could hardly foresee; `token`: after every
    token; `sentence`: after `.`, `!`, `?` and line ends; `whole`: not at all."""
    cutoff: Weight = 1.75
    """Entropy in nats above which a token opens a segment; 1.75 and 2.0 in the paper."""
    reference: str | None = None
    """Model whose entropies are taken; it must have the same tokenizer. Absent: the model that
    training starts from."""


class Reward(Section):
    """Training a reward model."""

    kind: Literal["bradley_terry", "regression", "pairwise", "segment", "odin"] = "bradley_terry"
    """`bradley_terry`: one score, from pairs; `regression`: ratings by attribute; `pairwise`: a
    language model that is asked A or B; `segment`: a value at every token, averaged over segments;
    `odin`: Bradley-Terry without the length (arXiv 2402.07319)."""
    loss: Literal["plain", "margin", "scaled"] = "plain"
    """How pairs with a strength count: all the same, as a margin (arXiv 2307.09288), or as a weight
    (arXiv 2410.01257)."""
    strength: str = "strength"
    """Column with the strength of each preference, above 0; a pair with 0 is a tie, which is left
    out and counted."""
    label_smoothing: float = Field(0.0, ge=0.0, lt=0.5)
    """Assumed share of flipped labels."""
    center_rewards_coefficient: Weight = 0.0
    """Weight of a term that keeps the rewards of a pair around 0; 0.01 is common. TRL's name."""
    attributes: list[str] = []
    """For `regression`: columns with the ratings. A missing rating (null, NaN) counts for
    nothing."""
    attribute_weights: dict[str, Annotated[float, Field(ge=-1e6, le=1e6)]] = {}
    """Weight of each attribute in the score. Absent: all the same."""
    length_weight: Weight = 1.0
    """For `odin`: weight of the terms that keep length out of the one head and in the other."""
    orthogonality_weight: Weight = 1.0
    """For `odin`: weight of the term that keeps the two heads apart."""
    segments: RewardSegments | None = None
    """For `segment`: how answers are cut. Absent: by entropy."""


class EarlyStopping(Section):
    """Stop when the held-out metric no longer improves; the best checkpoint becomes the result."""

    patience: Whole = Field(3, ge=1)
    """Evaluations without improvement before stopping."""
    threshold: Weight = 0.0
    """Smallest change that counts as an improvement."""


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
    model: str = ""
    """Name of the model on the server; for `local` a hub id or folder."""
    base_url: str | None = None
    """Address of the server, `http://127.0.0.1:8000/v1` for example. Absent: OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """Environment variable that holds the key. A server on this machine needs none."""
    script: str | None = None
    """JSONL file of replies for `scripted`: `{"reply": "..."}` in the order of the requests."""
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
    replay: str | None = None
    """Folder recorded earlier, to answer from and nowhere else."""
    usd_per_million_prompt_tokens: float = Field(0.0, ge=0.0, le=1e9)
    """Price, for `budget.usd`."""
    usd_per_million_completion_tokens: float = Field(0.0, ge=0.0, le=1e9)
    """Price, for `budget.usd`."""
    budget: Budget = Budget()
    """Where to stop."""


class Report(Section):
    """What the report of the run shows beside the curves."""

    num_prompts: int = Field(5, ge=0, le=10_000)
    """Held-out prompts answered before and after training."""
    max_new_tokens: Whole = Field(128, ge=1)
    """Longest such answer, in tokens."""


class Discover(Section):
    """The search for preference objectives by a language model (arXiv 2406.08414)."""

    task: Literal["bandit", "toy", "recipe"] = "bandit"
    """What an objective is judged by: `bandit` (a contextual bandit with a known reward, seconds),
    `toy` (DPO in the toy world, minutes), or `recipe` (a DPO recipe of yours and an evaluation)."""
    proposals: Whole = Field(20, ge=0)
    """How many objectives the language model proposes; those that fail count too."""
    minutes: float | None = Field(None, gt=0.0, le=1e7)
    """Stop after so much time, between two proposals. `--resume` starts the clock again."""
    seeds: int = Field(3, ge=1, le=1000)
    """Trainings for each objective; the fitness is their mean."""
    beta: Strength = 0.05
    """Beta of every training run; the language model is given it too."""
    start: list[str] = ["sigmoid", "hinge", "ipo_sum", "kto_pair"]
    """Objectives that are measured first and shown to the language model. The default are the
    paper's four."""
    history: Whole = Field(20, ge=1)
    """How many of the latest proposals, with what came of them, stay in the conversation; the best
    ones always do."""
    timeout_minutes: float = Field(60.0, gt=0.0, le=1e6)
    """Longest time for all trainings of one objective; then it counts as failed."""
    recipe: str | None = None
    """For `recipe`: the DPO recipe that is run with each objective, a file or a shipped name."""
    overrides: list[str] = []
    """For `toy` and `recipe`: further settings of the inner recipe, as `key=value`."""
    prompts: str | None = None
    """For `recipe`: prompts to answer with the trained model. One half gives the fitness, the other
    is held out."""
    reward_model: str | None = None
    """For `recipe`: what scores the answers: `toy`, `verifier:number`, or a function of yours,
    `verifier:path/to/file.py:name`."""
    max_new_tokens: Whole = Field(32, ge=1)
    """For `toy` and `recipe`: longest answer, in tokens."""


def _as_model(value: Any) -> Any:
    """Allow `policy: runs/sft/final` for the everyday case."""
    return {"name_or_path": value} if isinstance(value, str) else value


def _as_list(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


class Select(Section):
    """Active labelling (arXiv 2407.02119): which pairs of answers are worth an expert's label."""

    policy: Annotated[Model, BeforeValidator(_as_model)] | None = None
    """The model whose answers are labelled: a hub id or folder, or a section with the keys of
    `model`. It answers the prompts of `data.train`."""
    candidates: str | None = None
    """In place of a policy: file, folder, glob or hub id of prompts with their answers
    (`responses`, or preference pairs)."""
    reward_models: Annotated[list[str], BeforeValidator(_as_list)] = []
    """Reward models whose doubts decide: cards, or `kind:argument`. The members of an ensemble's
    card count one by one."""
    labelled: Annotated[list[str], BeforeValidator(_as_list)] = []
    """What is labelled already: files of preference rows, or run directories of earlier selections.
    Never picked again; picks are spread away from it."""
    budget: Whole = Field(200, ge=1)
    """Pairs to be labelled."""
    strategy: Literal["random", "uncertainty", "diversity", "both"] = "both"
    """`uncertainty`: the pairs that the reward models are least sure of; `diversity`: pairs spread
    over all there are; `both`: spread over the most uncertain ones; `random`: any, to compare
    with."""
    pool_factor: float = Field(4.0, ge=1.0, le=1e6)
    """For `both`: picks are spread over so many times `budget` of the most uncertain pairs."""
    uncertainty: Literal["auto", "entropy", "variance", "bald"] = "auto"
    """Entropy of the preference, variance of it between models, or the mutual information of label
    and model (BALD, arXiv 1112.5745). `auto`: `bald` with several reward models, `entropy` with
    one."""
    pair: Literal["auto", "max_min", "most_uncertain", "random"] = "auto"
    """Which pair of a prompt's answers: the best and the worst by the reward models, the most
    uncertain, or any. `auto`: `max_min` with a reward model, `random` without."""
    spread: Literal["k_center", "k_means"] = "k_center"
    """For `diversity` and `both`: greedy k-centre (arXiv 1708.00489), or the seeding of k-means++
    (as in arXiv 1906.03671)."""
    embedding: Literal["ngrams", "policy"] = "ngrams"
    """For `diversity` and `both`: what tells pairs apart, n-grams of their texts (TF-IDF) or mean
    hidden states of `policy`."""
    num_samples: int = Field(4, ge=2, le=10_000)
    """Answers of the policy to each prompt."""
    max_new_tokens: Whole = Field(256, ge=1)
    """Longest such answer, in tokens."""
    temperature: float = Field(1.0, ge=1e-3, le=100.0)
    """Sampling temperature."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """Sample from the likeliest tokens that hold this share."""
    top_k: Whole = Field(0, ge=0)
    """Sample from the k likeliest tokens; 0: from all."""
    keep_unfinished: bool = False
    """Also ask about answers that were cut off at the longest length. Trained on, they would teach
    to stop there."""
    batch_size: int = Field(16, ge=1, le=65_536)
    """Answers decoded together."""


class Recipe(Section):
    """What every recipe has."""

    method: str
    """What to do: `sft`, `dpo`, ..."""
    output_dir: str
    """The run directory. Left out: `runs/`, named after the recipe or the model."""
    seed: int = Field(42, ge=0, le=2**32 - 1)
    """Seed of sampling, shuffling and initialization."""


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
    report: Report = Report()
    """What the report shows."""


class SftRecipe(TrainRecipe):
    """`aligner sft`: supervised fine-tuning."""

    method: Literal["sft"] = "sft"
    """What to do."""
    sft: Sft = Sft()
    """What belongs to this method alone."""


class DpoRecipe(TrainRecipe):
    """`aligner dpo`: training on preference pairs."""

    method: Literal["dpo"] = "dpo"
    """What to do."""
    dpo: Dpo = Dpo()
    """What belongs to this method alone."""


class SapoRecipe(TrainRecipe):
    """`aligner sapo`: Self-Augmented Preference Optimization."""

    method: Literal["sapo"] = "sapo"
    """What to do."""
    sapo: Sapo = Sapo()
    """What belongs to this method alone."""


class RewardRecipe(TrainRecipe):
    """`aligner reward`: training a reward model."""

    method: Literal["reward"] = "reward"
    """What to do."""
    reward: Reward = Reward()
    """What belongs to this method alone."""


class DiscoverRecipe(Recipe):
    """`aligner discover`: search for preference objectives."""

    method: Literal["discover"] = "discover"
    """What to do."""
    endpoint: Endpoint
    """The language model that proposes."""
    discover: Discover = Discover()
    """What belongs to this method alone."""


class MosaicRecipe(Recipe):
    """`aligner mosaic`: glue rows into mosaics."""

    method: Literal["mosaic"] = "mosaic"
    """What to do."""
    data: Data
    """Where the rows come from; held-out rows are written as they are."""
    mosaic: MosaicFiles = MosaicFiles()
    """What belongs to this method alone."""


class SelectRecipe(Recipe):
    """`aligner data select`: choose the pairs that are worth a label."""

    method: Literal["select"] = "select"
    """What to do."""
    data: Data | None = None
    """Where the prompts come from. Absent with `select.candidates`."""
    select: Select = Select()
    """What belongs to this method alone."""


RECIPES: dict[str, type[Recipe]] = {
    "sft": SftRecipe,
    "dpo": DpoRecipe,
    "sapo": SapoRecipe,
    "reward": RewardRecipe,
    "discover": DiscoverRecipe,
    "mosaic": MosaicRecipe,
    "select": SelectRecipe,
}
"""Method name -> schema. A new training method adds one line here and one in
`aligner.methods.catalogue.METHODS`."""

METHOD_SECTIONS: dict[str, str] = {
    "sft": "sft",
    "dpo": "dpo",
    "sapo": "sapo",
    "reward": "reward",
    "discover": "discover",
    "mosaic": "mosaic",
    "select": "select",
}
"""Method name -> the key of its own section."""

COMMANDS: dict[str, str] = {"select": "data select"}
"""Method name -> its command, where that has another name."""


def command_of(method: str) -> str:
    """Return what follows `aligner` for a method."""
    return COMMANDS.get(method, method)
