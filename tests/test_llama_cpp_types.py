"""What `python -m benchmarks.llama_cpp_types` compares with: llama.cpp's libraries where they are,
the widened demo, and how rows are judged.
"""

import os
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from converted_gguf import CONVERSIONS, convert, tiny_model

from benchmarks import padded_demo
from benchmarks.gguf_tensors import Unequal, bits_per_weight, check_equal, tensors_of
from benchmarks.llama_cpp_library import Choice, LlamaCpp, LlamaError
from benchmarks.llama_cpp_tables import BUDGET, EDGEQ, LLAMA, correlation, nearer, too_far
from benchmarks.llama_cpp_types import LIBRARIES
from edgeq.sources import open_source
from edgeq_backends.torch.activations import TorchLogits

WIDE = {"hidden_size": 256, "intermediate_size": 512}


def row(side, kind, bits, kl, *, quality="", predicted=None):
    return {
        **{"side": side, "kind": kind, "quality": quality, "bits_per_weight": bits, "kl": kl},
        **{"bytes": int(bits * 1000), "predicted_kl": predicted},
    }


def test_a_ratio_is_judged_by_the_limit_of_its_type():
    rows = [
        row(LLAMA, "Q3_K", 3.4, 0.2),
        row(EDGEQ, "Q3_K", 3.4, 0.08, quality="balanced"),
        row(EDGEQ, "Q3_K", 3.4, 0.1, quality="fast"),
        row(LLAMA, "Q6_K", 6.6, 0.001),
        row(EDGEQ, "Q6_K", 6.6, 0.002, quality="fast"),  # has no limit
    ]
    assert too_far(rows) == ["Q3_K (fast): ratio 0.500, limit 0.45"]


def test_only_what_no_budget_of_its_size_is_below_counts_as_nearer():
    budgets = [
        row(BUDGET, "3", 3.0, 0.3, quality="best"),
        row(BUDGET, "4", 4.0, 0.1, quality="best"),
    ]
    others = [
        row(LLAMA, "Q3_K_S", 3.0, 0.29),
        row(LLAMA, "Q3_K_M", 3.9, 0.31),
        row(LLAMA, "Q2_K_S", 2.6, 0.01),  # smaller than all budgets
        row(LLAMA, "Q5_K_S", 5.5, 0.01),  # beyond the curve
        row(EDGEQ, "Q4_K", 4.5, 0.1, quality="best"),
        row(EDGEQ, "Q4_K", 4.5, 0.05, quality="other"),
    ]
    assert [text.partition(":")[0] for text in nearer(budgets + others)] == [
        "llama.cpp Q3_K_S",
        "edgeq Q4_K",
    ]


def test_the_correlation_is_of_ranks():
    rising = [row(BUDGET, "", 3, kl, predicted=kl**3) for kl in (0.1, 0.2, 0.4, 0.8)]
    assert correlation(rising) == pytest.approx(1)
    # Spearman by its definition: 1 - 6 sum(d^2) / (n (n^2 - 1)), with differences 1, 1, 0, 0
    swapped = [row(BUDGET, "", 3, kl, predicted=p) for kl, p in ((1, 2), (2, 1), (3, 3), (4, 4))]
    assert correlation(swapped) == pytest.approx(1 - 6 * 2 / (4 * 15))
    assert correlation(rising[:2]) is None


def test_files_of_other_types_are_unequal(tmp_path):
    paths = tmp_path / "a.gguf", tmp_path / "b.gguf"
    for path, kind in zip(paths, (np.float16, np.float32), strict=True):
        writer = gguf.GGUFWriter(path, "llama")
        writer.add_tensor("same", np.zeros((2, 32), np.float32))
        writer.add_tensor("w", np.zeros((4, 32), kind))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
    check_equal(paths[0], paths[0])
    with pytest.raises(Unequal, match=r"w: \('F16', 256, 128\) in .* \('F32', 512, 128\)"):
        check_equal(*paths)
    assert bits_per_weight(paths[0]) == (64 * 32 + 128 * 16) / 192


@pytest.fixture(scope="module")
def library():
    folder = os.environ.get(LIBRARIES)
    if folder is None:
        pytest.skip(f"{LIBRARIES} does not name llama.cpp's libraries")
    return LlamaCpp(Path(folder))


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    """A random Llama that K-quants divide, and its file in float16."""
    model = tiny_model(CONVERSIONS["llama"], **WIDE)
    path = tmp_path_factory.mktemp("wide") / "wide.gguf"
    names = [f"blk.{block}.{part}.weight" for block in range(2) for part in MATRICES]
    types = dict.fromkeys([*names, "token_embd.weight"], gguf.GGMLQuantizationType.F16)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.half())
    return model, convert(CONVERSIONS["llama"], model, path, types=types)


@pytest.mark.slow
def test_the_importance_matrix_is_the_mean_square_of_inputs(library, wide, rng):
    model, path = wide
    windows = rng.integers(0, 96, (3, 16))
    seen = []
    hook = model.model.layers[1].mlp.down_proj.register_forward_hook(
        lambda _, inputs, __: seen.append(inputs[0].square().mean((0, 1)))
    )
    with torch.no_grad():
        model(torch.from_numpy(windows))
    hook.remove()
    found = library.importance(path, windows)
    assert sorted(found) == sorted(name for name in tensors_of(path) if is_linear(name))
    # float16 products of llama.cpp
    np.testing.assert_allclose(found["blk.1.ffn_down.weight"], seen[0], rtol=0.02)


@pytest.mark.slow
def test_pure_files_have_one_type_and_run_near_the_original(library, wide, rng, tmp_path):
    _, path = wide
    windows = rng.integers(0, 96, (2, 16))
    importance = library.importance(path, windows)
    choice = Choice("Q3_K_S", pure=True, embedding="Q6_K")
    library.quantize(path, tmp_path / "q3.gguf", choice, importance)
    library.quantize(path, tmp_path / "plain.gguf", choice)
    found = tensors_of(tmp_path / "q3.gguf")
    assert found["token_embd.weight"][0] == "Q6_K"
    assert {found[name][0] for name in found if is_linear(name)} == {"Q3_K"}
    check_equal(tmp_path / "q3.gguf", tmp_path / "plain.gguf")
    assert (tmp_path / "q3.gguf").read_bytes() != (tmp_path / "plain.gguf").read_bytes()
    by_name = Choice("Q3_K_S", pure=True, tensors=[("ffn_down", "Q5_K")])
    library.quantize(path, tmp_path / "q5.gguf", by_name, importance)
    assert tensors_of(tmp_path / "q5.gguf")["blk.0.ffn_down.weight"][0] == "Q5_K"


@pytest.mark.slow
def test_what_llama_cpp_cannot_load_is_an_error_with_its_message(library, tmp_path):
    (tmp_path / "a.gguf").write_bytes(b"GGUF")
    with pytest.raises(LlamaError, match="cannot load"), library.opened(tmp_path / "a.gguf", 8):
        pass
    with pytest.raises(LlamaError, match=r"no libggml-base.* npm pack"):
        LlamaCpp(tmp_path)


@pytest.mark.parametrize("seed", [None, 0])
def test_a_widened_model_predicts_what_it_did(tmp_path, seed):
    narrow = convert(CONVERSIONS["llama"], tiny_model(CONVERSIONS["llama"]), tmp_path / "a.gguf")
    padded_demo.widen(narrow, tmp_path / "b.gguf", seed)
    wide = open_source(str(tmp_path / "b.gguf"))
    assert wide.shape("model.layers.0.self_attn.k_proj.weight") == (128, 256)
    ids = np.arange(32)[None]
    found, wanted = (
        next(iter(TorchLogits(source).logits(ids))) for source in (wide, open_source(str(narrow)))
    )
    np.testing.assert_allclose(found, wanted, atol=2e-3)  # weights are rounded to float16
    assert wanted.std() > 0.1  # far from all that there is


MATRICES = (
    *("attn_q", "attn_k", "attn_v", "attn_output"),
    *("ffn_gate", "ffn_up", "ffn_down"),
)


def is_linear(name):
    return name.startswith("blk.") and "norm" not in name
