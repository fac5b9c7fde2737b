"""Hidden states of real text, as a layer in the middle of an encoder gets them."""

import pytest
import torch

from regions.models.encoder import Encoder, Packed
from regions.models.source import find_text_model
from regions.models.tokens import TextTokens

PROSE = [
    "The ferry to the island was cancelled because of the storm, so we stayed another night in the small hotel.",
    "Researchers have found a protein that helps plants to survive long periods without any rain.",
    "How can I change the delivery address of an order that has already been shipped?",
    "The jury found the former treasurer guilty of fraud and sentenced him to four years in prison.",
    "A hash table offers constant time lookups on average, but its worst case is linear.",
    "Add the chopped onions and fry them gently until they are soft, then pour in the stock.",
    "The striker limped off after twenty minutes, and the home side never recovered.",
    "Interest rates are expected to remain unchanged until the spring, according to most economists.",
    "He plays the cello badly but with conviction; his neighbours have learnt to go out on Thursdays.",
    "Error 404: the page that you are looking for has been moved, renamed or never existed.",
    "Glaciers in the Alps lost a tenth of their volume within only two years.",
    "Please find attached the minutes of last week's meeting and a draft of the contract.",
]


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
