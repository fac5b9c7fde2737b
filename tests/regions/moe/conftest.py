"""Hidden states of real text, as a layer in the middle of an encoder gets them."""

import pytest
import torch

from regions.models.encoder import Encoder, Packed
from regions.models.source import find_text_model
from regions.models.tokens import TextTokens
from tests.regions.prose import PROSE


@pytest.fixture(scope="session")
@torch.inference_mode()
def hidden_states():
    """x_TD before the third feed-forward layer."""
    directory = find_text_model(None)
    encoder, tokens = Encoder(directory), TextTokens(directory)
    encoded = [tokens.encode(text, param="input", truncate=False)[0] for text in PROSE]
    seen = []

    def watch(layer, x_TD):
        seen.append(x_TD)
        return encoder.dense(layer, x_TD)

    encoder(Packed.of(sorted(encoded, key=len)), watch)
    return seen[2].clone()
