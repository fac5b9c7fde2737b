"""The dense encoder against the reference library, its independence of the batch, and the texts that it refuses."""

import logging
import math
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from regions.models.source import ModelFilesError, find_text_model
from regions.models.tokens import CHARACTERS, LIMIT
from regions.wire import InvalidInput


def embeddings(model, texts, budget=None):
    items = [model.prepare_text(text, param="input", truncate=False, budget=budget) for text in texts]
    return np.stack([outcome.arrays["embedding"] for outcome in model.forward(items).outcomes])


@pytest.fixture(scope="module")
def reference(texts):
    """Embeddings by sentence-transformers, from the same directory and without a network."""
    with pytest.MonkeyPatch.context() as patch, warnings.catch_warnings():
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("TQDM_DISABLE", "1")
        warnings.filterwarnings("ignore", category=DeprecationWarning)  # of its own dependencies, at import
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415 - imported where its warnings are silenced

        logging.getLogger("sentence_transformers").setLevel(logging.ERROR)
        library = SentenceTransformer(str(find_text_model(None)), device="cpu", local_files_only=True)
        return library.encode(texts, show_progress_bar=False)


def test_equals_the_reference_library_on_a_hundred_texts(minilm, texts, reference):
    assert len(set(texts)) == 100
    lengths = [minilm.prepare_text(text, param="input", truncate=False, budget=None).cost for text in texts]
    assert (min(lengths), max(lengths)) == (3, 256)
    ours = embeddings(minilm, texts)
    assert ours.dtype == np.float32
    assert ours.shape == (100, 384)
    cosine = (ours.astype(np.float64) * reference).sum(axis=1) / np.linalg.norm(reference, axis=1)
    assert (1 - cosine).max() < 1e-5
    np.testing.assert_allclose(np.linalg.norm(ours, axis=1), 1.0, atol=1e-6)


def test_an_embedding_does_not_depend_on_its_neighbours(minilm, texts):
    together = embeddings(minilm, texts)
    backwards = embeddings(minilm, texts[::-1])[::-1]
    alone = np.stack([embeddings(minilm, [text])[0] for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, backwards, atol=1e-6)


@pytest.mark.parametrize("text", ["", " ", "\n\t  ", "\u00a0"])
def test_empty_text_is_refused(minilm, text):
    with pytest.raises(InvalidInput) as caught:
        minilm.prepare_text(text, param="input[3]", truncate=True, budget=None)
    assert (caught.value.detail, caught.value.param) == ("empty_text", "input[3]")


def test_long_text_is_refused_or_cut_to_the_limit(minilm):
    text = "word " * 255
    with pytest.raises(InvalidInput) as caught:
        minilm.prepare_text(text, param="input", truncate=False, budget=None)
    assert caught.value.detail == "text_too_long"
    assert caught.value.values == {"n": 257, "limit": 256}
    cut = minilm.prepare_text(text, param="input", truncate=True, budget=None)
    whole = minilm.prepare_text("word " * 254, param="input", truncate=True, budget=None)
    assert (cut.cost, cut.truncated, whole.truncated) == (256, True, False)
    assert cut.payload == whole.payload


def test_characters_are_counted_before_tokens(minilm):
    def refused(text):
        with pytest.raises(InvalidInput) as caught:
            minilm.prepare_text(text, param="input", truncate=False, budget=None)
        return caught.value.detail, caught.value.values

    assert CHARACTERS == 32_768
    assert refused("a " * CHARACTERS) == ("text_characters", {"n": 2 * CHARACTERS, "limit": CHARACTERS})
    assert refused("a" * (CHARACTERS + 1))[0] == "text_characters"
    assert refused("a " * (CHARACTERS // 2)) == ("text_too_long", {"n": CHARACTERS // 2 + 2, "limit": LIMIT})


def test_runs_of_white_space_do_not_count(minilm):
    spaced = minilm.prepare_text("one \n" + " \t" * CHARACTERS + "two", param="input", truncate=False, budget=None)
    plain = minilm.prepare_text("one two", param="input", truncate=True, budget=None)
    assert spaced == plain
    with pytest.raises(InvalidInput) as caught:
        minilm.prepare_text(" " * (CHARACTERS + 1), param="input", truncate=True, budget=None)
    assert caught.value.detail == "empty_text"


def test_what_is_cut_by_characters_counts_as_truncated(minilm):
    unknown = minilm.prepare_text("x" * (1 << 20), param="input", truncate=True, budget=None)
    assert (unknown.cost, unknown.truncated) == (3, True)


PARTS = ["tide", "東京", "e\u0301", "...", "x" * 99, "zq" * 50, "y" * 140, "  ", "\x01", "🌊", "##s"]


@settings(deadline=None, max_examples=40)
@given(st.lists(st.sampled_from(PARTS), min_size=1, max_size=12), st.sampled_from(["", " ", "\t"]))
def test_a_long_text_is_cut_where_the_whole_would_be(minilm, parts, joint):
    phrase = "so " + joint.join(parts) + joint
    text = phrase * (CHARACTERS // len(phrase))
    ids, truncated = minilm.tokens.encode(text, param="input", truncate=True)
    whole = minilm.tokens._tokenizer.encode(text).ids
    assert truncated == (len(whole) > LIMIT)
    assert ids == ([*whole[: LIMIT - 1], whole[-1]] if truncated else whole)


def test_tensors_are_refused(minilm):
    with pytest.raises(InvalidInput) as caught:
        minilm.prepare_tensor(np.zeros((1, 384), np.float32), name="text", budget=None)
    assert caught.value.detail == "tensor_datatype"


def test_figures_of_a_batch(minilm):
    items = [minilm.prepare_text(text, param="input", truncate=False, budget=0.3) for text in ("a", "b c")]
    batch = minilm.forward(items)
    tokens = sum(item.cost for item in items)
    assert batch.flops == batch.dense_flops == tokens * 6 * 4 * 384 * 1536
    assert batch.utilisation == ()
    assert [outcome.details for outcome in batch.outcomes] == [{}, {}]
    assert len({item.group for item in items}) == 1


def test_metadata_names_the_width(minilm):
    output = minilm.metadata()["outputs"][0]
    assert (output["datatype"], output["shape"]) == ("FP32", [-1, 384])


def test_the_files_are_found_or_the_error_says_where_they_are_not(tmp_path):
    assert (find_text_model(None) / "model.safetensors").is_file()
    assert find_text_model(str(find_text_model(None))) == find_text_model(None)
    with pytest.raises(ModelFilesError, match=r"lacks config\.json, model\.safetensors, tokenizer\.json$"):
        find_text_model(str(tmp_path))
    for name in ("nobody/no-such-model", "a b/../c"):
        with pytest.raises(ModelFilesError, match="neither a directory nor a model in the local hub cache"):
            find_text_model(name)


def test_an_embedding_is_finite_for_any_single_character(minilm):
    characters = [chr(code) for code in range(33, 0x3100, 211)]
    rows = embeddings(minilm, characters)
    assert all(math.isfinite(value) for value in rows.sum(axis=1))
