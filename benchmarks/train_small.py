"""Train a small model of a family, for minutes, on the texts that edgeq ships.

    uv run python -m benchmarks.train_small qwen3 OUT     norms of q and k, grouped heads, tied
    uv run python -m benchmarks.train_small gemma3 OUT    windows, four norms, capped logits, tied
    uv run python -m benchmarks.train_small gemma2 OUT    the same with capped attention
    uv run python -m benchmarks.train_small mixture OUT   8 experts, 2 per token, one of them cold
    uv run python -m benchmarks.train_small llama OUT     widths 256 and 512, which K-quants divide

OUT becomes an ordinary directory of safetensors with a tokenizer that is trained on the same text.
Each takes about 6 minutes on one core, the Llama 12. Prints the perplexity on held-out text beside
that of token frequencies alone, and exits 1 when it is not below half of that.

The last expert of every block of the mixture is cold: once the others are balanced, its row of the
router is turned away from the mean input, and training goes on without it.
"""

import argparse
import math
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from edgeq.calibration.reading import read_text
from edgeq.measuring.texts import EVALUATION_TEXT

VOCABULARY = 2048
SEQUENCE = 256  # tokens per row of a batch
BATCH = 8  # rows
PEAK_RATE = 5e-3
WARM_UP = 0.05  # of all steps
BALANCED_PART = 0.7  # of all steps: until then the mixture's experts are kept equally busy
LARGEST_SHARE = 2e-3  # of tokens that may still reach the cold expert
COOLING_STEP = 0.25  # of a logit
MOST_COOLING = 200  # steps
COOLING_ROWS = 128  # from all over the text
GEMMA_WINDOW = 64
SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")
PAD, END, BEGIN = 0, 1, 2
UNKNOWN = SPECIAL[3]
SPACE = "\u2581"  # what stands for a space in SentencePiece
WIDTHS: Mapping[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 256,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "max_position_embeddings": SEQUENCE,
    "tie_word_embeddings": True,
}
CONFIGS: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "qwen3": ("qwen3", {"num_hidden_layers": 4, "intermediate_size": 512}),
    "gemma3": (
        "gemma3_text",
        {
            "num_hidden_layers": 6,
            "intermediate_size": 512,
            "query_pre_attn_scalar": 64,
            "sliding_window": GEMMA_WINDOW,
            "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2,
            "final_logit_softcapping": 30.0,  # of attention, Gemma 3 computes none
        },
    ),
    "gemma2": (
        "gemma2",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 512,
            "query_pre_attn_scalar": 64,
            "sliding_window": GEMMA_WINDOW,
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 30.0,
        },
    ),
    "mixture": (
        "qwen3_moe",
        {
            "num_hidden_layers": 4,
            "intermediate_size": 512,
            "moe_intermediate_size": 128,
            "num_experts": 8,
            "num_experts_per_tok": 2,
            "norm_topk_prob": True,
            "router_aux_loss_coef": 0.01,
        },
    ),
    "llama": ("llama", {"num_hidden_layers": 6, "intermediate_size": 512}),
}
"""By name: the model type, and what its config has besides WIDTHS."""
STEPS: Mapping[str, int] = {
    "qwen3": 400,
    "gemma3": 320,
    "gemma2": 300,
    "mixture": 400,
    "llama": 800,
}
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("kind", choices=tuple(CONFIGS))
    parser.add_argument("output", type=Path)
    parser.add_argument(
        "--text", nargs="+", help="train on these files, not on the text that ships with edgeq"
    )
    parser.add_argument("--held-out", help="measure on this file, not on edgeq's evaluation text")
    parser.add_argument("--steps", type=int, help=f"batches of {BATCH} x {SEQUENCE} tokens")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.output.exists():
        parser.error(f"{arguments.output} exists; choose another directory, or remove it")
    text = "\n\n".join(map(read_text, arguments.text or [None]))
    held_out = read_text(arguments.held_out, default=EVALUATION_TEXT)
    steps = arguments.steps or STEPS[arguments.kind]
    disable_progress_bar()
    learned = make(
        arguments.kind, arguments.output, text, held_out, steps=steps, seed=arguments.seed
    )
    sys.exit(0 if learned else 1)


def make(kind: str, output: Path, text: str, held_out: str, *, steps: int, seed: int) -> bool:
    """Train a model and save it; say whether its held-out perplexity is below half of unigrams'."""
    is_gemma = kind.startswith("gemma")
    tokenizer = sentence_pieces(text) if is_gemma else byte_pieces(text)
    begin = [BEGIN] if is_gemma else []
    rows, judged = (rows_of(tokenizer, each, begin) for each in (text, held_out))
    model = new_model(kind, seed)
    train(model, rows, steps=steps, seed=seed)
    if kind == "mixture":
        cool(model, rows)
    save(model, tokenizer, output, begins=is_gemma)
    saved = AutoModelForCausalLM.from_pretrained(output, dtype=torch.float32).eval()
    found = perplexity(saved, judged)
    limit = unigram_perplexity(rows, judged)
    print(f"{kind}: held-out perplexity {found:.1f}, of token frequencies alone {limit:.1f}")
    if kind == "mixture":
        for name, share in cold_shares(saved, judged).items():
            print(f"{name}: {share:.2%} of held-out tokens reach the cold expert")
    return found < limit / 2


def new_model(kind: str, seed: int) -> Any:
    """Make the untrained model."""
    torch.manual_seed(seed)
    model_type, own = CONFIGS[kind]
    config = AutoConfig.for_model(
        model_type, **WIDTHS, **own, pad_token_id=PAD, bos_token_id=BEGIN, eos_token_id=END
    )
    return AutoModelForCausalLM.from_config(config)


def byte_pieces(text: str) -> Tokenizer:
    """Train a tokenizer like Qwen's: byte-level BPE within words."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=list(SPECIAL),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return tokenizer


def sentence_pieces(text: str) -> Tokenizer:
    """Train a tokenizer like Gemma's: BPE over characters, bytes for those that it has not.

    As there, every way in which two tokens make up a third is a merge, and a text is one word.
    """
    spaces = normalizers.Replace(" ", SPACE)
    learning = Tokenizer(models.BPE(unk_token=UNKNOWN))
    learning.normalizer = spaces
    words = Regex(f"{SPACE}*[^{SPACE}\n]+|{SPACE}+|\n+")
    learning.pre_tokenizer = pre_tokenizers.Split(words, "isolated")
    in_bytes = [f"<0x{byte:02X}>" for byte in range(256)]
    first = [*SPECIAL, *in_bytes]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY, special_tokens=first, limit_alphabet=128, show_progress=False
    )
    learning.train_from_iterator(text.splitlines(keepends=True), trainer)
    vocabulary = learning.get_vocab()
    merges = [
        (piece[:cut], piece[cut:])
        for piece in sorted(set(vocabulary).difference(first), key=vocabulary.__getitem__)
        for cut in range(1, len(piece))
        if piece[:cut] in vocabulary and piece[cut:] in vocabulary
    ]
    model = models.BPE(vocabulary, merges, unk_token=UNKNOWN, fuse_unk=True, byte_fallback=True)
    tokenizer = Tokenizer(model)
    tokenizer.add_special_tokens(list(SPECIAL))
    tokenizer.normalizer = spaces
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    begin = SPECIAL[BEGIN]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{begin} $A", pair=f"{begin} $A {begin} $B", special_tokens=[(begin, BEGIN)]
    )
    return tokenizer


def rows_of(tokenizer: Tokenizer, text: str, begin: list[int]) -> torch.Tensor:
    """Cut a text into rows of tokens that each start with `begin`.

    Shapes: (rows, SEQUENCE).
    """
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    each = SEQUENCE - len(begin)
    starts = range(0, len(ids) - each + 1, each)
    return torch.tensor([begin + ids[start : start + each] for start in starts])


def train(model: Any, rows: torch.Tensor, *, steps: int, seed: int) -> None:
    """Train on rows in random order, the rate warmed up and let down by a cosine."""
    rng = torch.Generator().manual_seed(seed)
    is_mixture = hasattr(model.config, "num_experts_per_tok")
    optimizers = optimizers_of(model)
    order = torch.empty(0, dtype=torch.long)
    model.train()
    since = time.monotonic()
    for step in range(steps):
        if len(order) < BATCH:
            order = torch.randperm(len(rows), generator=rng)
        batch, order = rows[order[:BATCH]], order[BATCH:]
        for group in (group for each in optimizers for group in each.param_groups):
            group["lr"] = PEAK_RATE * rate_at(step / steps)
        balances = {"output_router_logits": step < BALANCED_PART * steps} if is_mixture else {}
        if is_mixture and step == math.ceil(BALANCED_PART * steps):
            cool(model, rows)
        loss = model(input_ids=batch, labels=batch, use_cache=False, **balances).loss
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for each in optimizers:
            each.step()
        if step % 20 == 0:
            seconds = time.monotonic() - since
            print(f"step {step} of {steps}: loss {loss.item():.3f}, {seconds:.0f} s", flush=True)
    model.eval()


def optimizers_of(model: Any) -> list[torch.optim.Optimizer]:
    """Choose Muon for matrices: on so little text it learns about three times as fast as AdamW.

    It is in torch 2.9 and newer. It takes no stacked experts.
    """
    named = dict(model.named_parameters())
    matrices = {name: p for name, p in named.items() if p.ndim == 2 and "embed" not in name}
    others = [p for name, p in named.items() if name not in matrices]
    return [
        torch.optim.Muon(matrices.values(), lr=PEAK_RATE, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.0),
    ]


def rate_at(done: float) -> float:
    """Give the share of the peak rate when this share of the steps is done."""
    if done < WARM_UP:
        return done / WARM_UP
    return 0.05 + 0.95 * (1 + math.cos(math.pi * (done - WARM_UP) / (1 - WARM_UP))) / 2


def routers(model: Any) -> dict[str, Any]:
    return {name: part for name, part in model.named_modules() if name.endswith(".mlp.gate")}


@torch.no_grad()
def inputs_of(model: Any, router: Any, rows: torch.Tensor) -> torch.Tensor:
    """Collect what a router reads.

    Shapes: (tokens, hidden).
    """
    seen: list[torch.Tensor] = []
    hook = router.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].reshape(-1, inputs[0].shape[-1]))
    )
    for batch in torch.split(rows, BATCH):
        model(input_ids=batch, use_cache=False)
    hook.remove()
    return torch.cat(seen)


@torch.no_grad()
def cool(model: Any, rows: torch.Tensor) -> None:
    """Turn the routers away from their last expert, until hardly a token reaches it.

    A router has no bias; what comes nearest is the direction in which all inputs are about 1 long.
    """
    spread = rows[:: math.ceil(len(rows) / COOLING_ROWS)]
    for router in routers(model).values():
        X = inputs_of(model, router, spread)
        ones = torch.ones(len(X), 1)
        direction = torch.linalg.lstsq(X, ones).solution[:, 0]
        for _ in range(MOST_COOLING):
            if cold_share(router, X) <= LARGEST_SHARE:
                break
            router.weight[-1] -= COOLING_STEP * direction


def cold_share(router: Any, X: torch.Tensor) -> float:
    """Measure the share of tokens that reach the last expert.

    Shapes: X (tokens, hidden).
    """
    chosen = router(X)[2]
    return float((chosen == router.weight.shape[0] - 1).any(-1).float().mean())


@torch.no_grad()
def cold_shares(model: Any, rows: torch.Tensor) -> dict[str, float]:
    """Measure, router by router, the share of tokens that reach the cold expert."""
    return {
        name: cold_share(router, inputs_of(model, router, rows))
        for name, router in routers(model).items()
    }


def save(model: Any, tokenizer: Tokenizer, output: Path, *, begins: bool) -> None:
    """Save the model in bfloat16 with its tokenizer, as a directory of the hub."""
    model.to(torch.bfloat16).save_pretrained(output)
    named = {"eos_token": SPECIAL[END], "pad_token": SPECIAL[PAD]}
    if begins:
        named |= {"bos_token": SPECIAL[BEGIN], "unk_token": UNKNOWN}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=SEQUENCE, **named
    ).save_pretrained(output)


@torch.no_grad()
def perplexity(model: Any, rows: torch.Tensor) -> float:
    """Measure the perplexity of all tokens of the rows but each one's first."""
    lost = 0.0
    for batch in torch.split(rows, BATCH):
        logits = model(input_ids=batch, use_cache=False).logits[:, :-1]
        lost += float(
            torch.nn.functional.cross_entropy(
                logits.flatten(0, 1), batch[:, 1:].flatten(), reduction="sum"
            )
        )
    return math.exp(lost / rows[:, 1:].numel())


def unigram_perplexity(rows: torch.Tensor, judged: torch.Tensor) -> float:
    """Measure the same for the frequencies of tokens in the training text, one added to each."""
    counts = torch.bincount(rows[:, 1:].flatten(), minlength=VOCABULARY) + 1
    log_shares = (counts / counts.sum()).log()
    return math.exp(-float(log_shares[judged[:, 1:]].mean()))


if __name__ == "__main__":
    main()
