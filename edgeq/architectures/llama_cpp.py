"""Say what llama.cpp knows of tokens by itself, for GGUF files that are read and written."""

KNOWN_ENDS = frozenset(
    {
        "<|eot_id|>",
        "<|im_end|>",
        "<|end|>",
        "<|return|>",
        "<|call|>",
        "<|flush|>",
        "<|calls|>",
        "<end_of_turn>",
        "<|endoftext|>",
        "</s>",
        "<|eom_id|>",
        "<EOT>",
        "_<EOT>",
        "[EOT]",
        "[EOS]",
        "<|end_of_text|>",
        "<end_of_utterance>",
        "<eos>",
        "<turn|>",
        "<|tool_response>",
    }
)
"""Tokens that end a text for llama.cpp wherever its vocabulary has them (llama-vocab.cpp)."""
END_KEYS = ("eos", "eot", "eom")
"""Names of further ends in a file's keys, `tokenizer.ggml.NAME_token_id`; it has no more."""
SENTENCEPIECE_IDS = {"unknown": 0, "bos": 1, "eos": 2}
"""Ids of special tokens of a SentencePiece tokenizer whose file has no keys for them."""
