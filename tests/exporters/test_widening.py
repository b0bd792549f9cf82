"""What is advised where codes take more room than they need can be asked for beside the rest."""

import numpy as np
import pytest
from solved_models import solved, tiny, with_grid

from edgeq.errors import BadInput
from edgeq.grids.types import SPECIAL
from edgeq.recipe.recipe import make_recipe
from edgeq.types import Grid
from edgeq_exporters.common.widening import widening_notes
from edgeq_exporters.gguf.blocks import bits_in_file

EMBEDDING = "model.embed_tokens.weight"


@pytest.mark.parametrize("typed", [False, True])
def test_the_advice_is_taken_beside_what_was_asked_for(typed):
    rng = np.random.default_rng(0)
    model = with_grid(solved(tiny(), rng, [Grid(4, 32)]), rng, EMBEDDING, Grid(6, 32))
    grids = {
        name: (layer.codes.shape, SPECIAL["Q4_K"] if typed and name != EMBEDDING else layer.grid)
        for name, layer in model.layers.items()
    }
    (note,) = widening_notes("GGUF", model.record.decoder, grids, bits_in_file, {})
    assert "stores one matrix of embedding and head of 6 bits as 8 bits" in note
    advised = "--embedding-type Q8_0" if typed else "--embedding-bits 8"
    assert note.endswith(f"use {advised}")
    asked = {"type": "Q4_K"} if typed else {"bits": 4}
    assert make_recipe(
        asked | {"embedding_type": "Q8_0"} if typed else asked | {"embedding_bits": 8}
    )
    if typed:
        with pytest.raises(BadInput, match="leave out bits"):
            make_recipe(asked | {"bits": 8})
