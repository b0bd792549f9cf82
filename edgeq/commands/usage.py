"""Say in one line what is wrong with a command line, and what was probably meant."""

import re
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path

import click

from edgeq.errors import lower_first
from edgeq.registry import FORMATS
from edgeq.words import edgeq_command

MEANT: Mapping[str, Sequence[str]] = {
    "--file-size": ("--size", "--max-size", "--target-size", "--filesize"),
    "--bits-per-weight": ("--bpw", "--target-bpw", "--avg-bits"),
    "--type": ("--quant", "--qtype", "--outtype", "--quant-type", "--quantization", "--dtype"),
    "--bits": ("--wbits", "--w-bit", "--w-bits", "--nbits", "--bit", "--q-bits"),
    "--group-size": ("--groupsize", "--q-group-size", "--block-size"),
    "--export": ("--format", "--to", "--formats"),
    "--format": ("--export", "--to"),
    "--output": ("--out", "--outfile", "--output-dir", "--outdir", "--save", "--mlx-path"),
    "--backend": ("--device", "--gpu", "--cpu", "--cuda"),
    "--quality": ("--preset", "--profile"),
    "--samples": ("--nsamples", "--num-samples", "--n-samples"),
    "--sequence-length": ("--seqlen", "--seq-len", "--max-seq-length", "--seq-length"),
    "--calibration": ("--dataset", "--calib", "--calibration-data", "--data", "--calib-data"),
    "--text": ("--dataset", "--calibration", "--data", "--texts"),
    "--reference": ("--against", "--original", "--baseline", "--base"),
    "--against": ("--reference",),
    "--max-ram": ("--ram", "--memory", "--max-memory"),
    "--max-vram": ("--gpu-memory", "--max-gpu-memory", "--device-memory"),
    "--fits": ("--vram", "--fit"),
    "--context": ("--ctx", "--ctx-size", "--n-ctx", "--context-length"),
    "--damping": ("--percdamp", "--damp-percent"),
    "--activation-order": ("--act-order", "--desc-act"),
    "--asymmetric": ("--asym", "--zero-point"),
    "--symmetric": ("--sym",),
    "--keep-dense": ("--skip", "--exclude", "--ignore", "--modules-to-not-convert"),
    "--embedding-type": ("--token-embedding-type", "--output-tensor-type"),
    "--evaluate": ("--eval", "--ppl", "--perplexity"),
    "--force": ("--overwrite", "--yes", "--exist-ok"),
    "--resume": ("--continue",),
}
"""Options of edgeq, and what other tools call the same."""
NOT_NEEDED = {
    "--trust-remote-code": "edgeq never runs code of a model; leave it out",
    "--prompt": 'the prompt is the second argument, such as "Why is the sky blue?"',
    "--model": "the model is the first argument, without an option",
}
EXTRA = re.compile(r"unexpected extra arguments? \((.*)\)")
EXTRA_MEANT = {
    "chat": "; chat reads messages when it runs; for one answer use generate",
    "generate": '; put the prompt in quotes, such as "Why is the sky blue?"',
}
"""What words too many of a command were meant as."""
NUMBERS = {
    "a valid integer range": "a whole number",
    "a valid integer": "a whole number",
    "a valid float range": "a number",
    "a valid float": "a number",
}
"""What click calls numbers, and what people do."""
EXAMPLES = {"allocate": "recipe.toml", "imatrix": "model.imatrix.gguf"}
"""Files that the commands with a required --output write."""
COMMANDS_MEANT: Mapping[str, Sequence[str]] = {
    "quantize": ("quantise", "quant", "compress", "gptq", "make", "solve"),
    "export": ("convert", "save", "write", "to"),
    "generate": ("complete", "prompt", "infer", "inference"),
    "chat": ("run", "talk", "interactive", "repl"),
    "evaluate": ("eval", "benchmark", "bench", "perplexity", "ppl", "compare", "measure", "test"),
    "inspect": ("info", "show", "dump", "cat", "describe"),
    "formats": ("list", "types", "ls"),
    "verify": ("check", "validate"),
    "plan": ("estimate", "dry-run", "memory", "size"),
    "doctor": ("env", "diagnose", "status", "health", "backends", "runtimes"),
    "completion": ("completions", "autocomplete", "install-completion"),
}
"""Commands of edgeq, and what others call the same."""


def describe_usage(error: click.UsageError) -> str:
    """Write what was received, what is wrong with it and what to change, and where help is."""
    line = _describe(error).rstrip(".")
    words = error.ctx.command_path.split(" ")[1:] if error.ctx is not None else []
    path = error.ctx.command_path if error.ctx is not None and words else edgeq_command()
    return f"{line} ({path} --help)"


def _describe(error: click.UsageError) -> str:
    if isinstance(error, click.NoSuchOption) and isinstance(
        getattr(error.ctx, "command", None), click.Group
    ):
        return f"there is no option {error.option_name} before the command{early_hint(error)}"
    if isinstance(error, click.NoSuchOption):
        return f"there is no option {error.option_name}{option_hint(error)}"
    if isinstance(error, click.MissingParameter) and error.param is not None:
        return missing_words(error.param, error.ctx)
    if isinstance(error, click.BadParameter) and error.param is not None:
        message = lower_first(error.message)
        for theirs, ours in NUMBERS.items():
            message = message.replace(theirs, ours)
        return f"{error.param.opts[0]}: {message}"
    stated = lower_first(error.format_message())
    return f"{stated}{extra_hint(stated, error.ctx)}"


def missing_words(param: click.Parameter, ctx: click.Context | None) -> str:
    """Name a parameter that was left out, with an example where it is an option."""
    if isinstance(param, click.Option):
        example = EXAMPLES.get(ctx.info_name or "", "") if ctx is not None else ""
        return f"{param.opts[-1]} FILE is missing" + (f", such as -o {example}" if example else "")
    return f"{param.make_metavar(ctx) if ctx is not None else param.name} is missing"


def option_hint(error: click.NoSuchOption) -> str:
    """Name the option that was probably meant, among those of the command; empty without one."""
    if error.option_name in NOT_NEEDED:
        return f"; {NOT_NEEDED[error.option_name]}"
    known = options_of_command(error.ctx) if error.ctx is not None else []
    meant = [ours for ours in known if error.option_name in MEANT.get(ours, ())]
    meant = meant or get_close_matches(error.option_name, known, n=2)
    return f"; did you mean {' or '.join(meant)}?" if meant else ""


def early_hint(error: click.NoSuchOption) -> str:
    """Say what was meant by an option that stands before the command."""
    name = error.option_name
    if name in ("-v", "-V"):
        return "; did you mean --version?"
    group = error.ctx.command if error.ctx is not None else None
    commands = group.commands.values() if isinstance(group, click.Group) else ()
    taking = [each.name for each in commands if any(name in param.opts for param in each.params)]
    if not taking:
        return option_hint(error)
    return f"; options go behind it, such as {edgeq_command(str(taking[0]))} ... {name}"


def extra_hint(stated: str, ctx: click.Context | None) -> str:
    """Say where words belong that a command has no argument for; empty where nothing is known."""
    found = EXTRA.search(stated)
    if found is None or ctx is None:
        return ""
    words, command = found[1].split(), ctx.info_name or ""
    options = options_of_command(ctx)
    if set(words) <= {*FORMATS} and "--export" in options:
        return f"; repeat the option: {' '.join(f'--export {word}' for word in words)}"
    if words[0] in FORMATS and "--format" in options:
        return f"; did you mean --format {words[0]}?"
    if command in ("quantize", "allocate") and len(words) == 1 and not words[0].startswith("-"):
        return f"; to write there: -o {words[0]}"
    return EXTRA_MEANT.get(command, "")


def options_of_command(ctx: click.Context) -> list[str]:
    """List the names of the options of a command."""
    params = [p for p in ctx.command.get_params(ctx) if isinstance(p, click.Option)]
    return [name for param in params for name in (*param.opts, *param.secondary_opts)]


def command_hint(name: str, known: Sequence[str]) -> str:
    """Say what was probably meant by the name of a command that is not known."""
    if name.lower() in ("version", "help"):
        return f"; use {edgeq_command(f'--{name.lower()}')}"
    meant = [ours for ours in known if name.lower() in (ours, *COMMANDS_MEANT.get(ours, ()))]
    meant = meant or get_close_matches(name.lower(), known, n=2)
    if meant:
        return f"; did you mean {' or '.join(meant)}?"
    if name == "demo" or "/" in name or Path(name).exists():
        return f"; to quantize it: {edgeq_command('quantize', name)}"
    return f"; commands are {', '.join(known)}"
