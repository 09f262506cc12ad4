"""The options of every command, frozen: people type them in scripts. A change here is a change of
the interface."""

from __future__ import annotations

import typer

from aligner.cli.app import app

OPTIONS = {
    "": "--debug --version --install-completion --show-completion",
    "quickstart": "--dir --resume --overwrite",
    "toy": "DIR --seed --overwrite",
    "recipes list": "--json",
    "recipes show": "NAME",
    "recipes copy": "NAME DESTINATION",
    "recipes schema": "METHOD",
    "recipes migrate": "FILE --from --method --output -o --lossy",
    "plan": "--gpu --all --json",
    "launch": "--slurm --nodes --gpus-per-node --processes-per-node --cpus-per-node --time "
    "--partition --account --sbatch --setup",
    "doctor": "--numerics --json",
    "sft": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug",
    "dpo": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug "
    "--loss-table --loss-plot",
    "sapo": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug",
    "reward": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug",
    "rlhf": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug",
    "online": "--dry-run --resume --overwrite --num-processes --num_processes --json --debug",
    "flywheel": "--dry-run --resume --overwrite --json --debug",
    "evolve": "--dry-run --resume --overwrite --json --debug --estimate --preview",
    "mosaic": "--dry-run --resume --overwrite --json --debug",
    "data check": "DATA... --held-out --held-out-column --ngram --model --max-length --allow "
    "--column --split --trust-remote-code --json",
    "data show": "RECIPE|DATA --model --row --rows --random --held-out --packed --max-length "
    "--tokens --full --html --overwrite --column --split --trust-remote-code --json",
    "data convert": "DATA --output -o --to --drop --column --split --overwrite --json",
    "data rules": "--data --judge --output -o --pairs --rules --column --split --seed --preview "
    "--overwrite --json",
    "data select": "--labels --oracle --dry-run --resume --overwrite --json --debug",
    "discover": "--dry-run --resume --overwrite --json --debug",
    "generate": "MODEL PROMPTS --data --column --split --max-rows --max-new-tokens --temperature "
    "--top-p "
    "--top-k --min-p "
    "--repetition-penalty --num-samples -n --seed --batch-size --engine --base-url --served-model "
    "--dtype --quantization "
    "--trust-remote-code --output -o "
    "--resume --overwrite --json",
    "chat": "MODEL --compare --system --max-new-tokens --temperature --top-p --seed --dtype "
    "--quantization --trust-remote-code",
    "eval": "MODEL --data --tasks --task-dir --limit --num-fewshot --chat-template --reward-model "
    "--task --scorer --reference --category --plot --compare --resamples --column --split "
    "--max-rows --on-bad-row --max-new-tokens --temperature --num-samples -n --seed --batch-size "
    "--engine --base-url --served-model "
    "--dtype --quantization "
    "--trust-remote-code --output -o --resume --overwrite --json",
    "score": "--data --reward-model --output -o --column --split --max-rows --seed --prefix "
    "--keep-failed --trust-remote-code --resume "
    "--overwrite --json",
    "arena battle": "--contestant --judge --fail-below --confidence --dry-run --resume --overwrite "
    "--json --debug --estimate",
    "arena select": "RUN --for --target --output -o --k --min-winner-score "
    "--consistent-only --majority-only --max-length-ratio --verifier --scope "
    "--rule --bar --self-play --testset --difficulty --allow-partial --seed "
    "--overwrite --json",
    "arena rate": "FILES... --form --output -o --anchor --anchor-rating --merge --tie-margin "
    "--ties --control --length-rule --strong --baseline --category --model --resample --resamples "
    "--seed --png --overwrite --json",
    "arena diagnose": "FILES... --form --tie-margin --baseline --family --max-flip-rate "
    "--max-parse-failures --max-seat-share --max-length-lead --max-self-preference --resamples "
    "--seed --json",
    "arena vote": "FILES... --data --category --name --log --pairs --seed --port --no-open "
    "--export --import --overwrite --json",
    "arena consistency": "RATINGS --reference --json",
    "merge": "RUN --output -o --dtype --trust-remote-code --overwrite --json",
    "arena testset build": "POOL... --output -o --clusters --per-cluster --hard --hard-per-cluster "
    "--difficulty --rater --dev --embedding --near-duplicates --category --column --split --seed "
    "--trust-remote-code --resume --overwrite --json",
    "arena testset verify": "DIR --against --benchmark --benchmark-column --ngram "
    "--near-duplicates --nearest --cosine --embedding --drop-to --column --split --overwrite "
    "--json",
    "push": "RUN --to --public --dry-run --json",
    "export": "MODEL --output -o --gguf --pre-tokenizer --trust-remote-code --overwrite --json",
    "runs list": "DIR --json",
    "runs show": "RUN --json",
    "runs report": "RUN",
    "runs compare": "RUN... --html --png --all --json",
    "runs reproduce": "RUN -o --output-dir --output_dir --run --resume --overwrite --json",
    "runs tree": "RUN --json",
}


def options() -> dict[str, str]:
    """Every command with its arguments and options, as declared."""
    found = {}
    todo = [("", typer.main.get_command(app))]
    while todo:
        name, command = todo.pop()
        children = getattr(command, "commands", {})
        todo += [(f"{name} {child}".strip(), sub) for child, sub in children.items()]
        if not children or not name:
            declared = command.get_params(typer.Context(command))
            found[name] = " ".join(_shown(one) for one in declared if one.name != "help")
    return found


def _shown(parameter: object) -> str:
    if parameter.param_type_name == "argument":
        return parameter.metavar or parameter.name.upper()
    return " ".join([*parameter.opts, *parameter.secondary_opts])


def test_the_options_are_the_ones_that_people_know() -> None:
    assert options() == OPTIONS
