"""The conversion as a user runs it, on a small encoder: killed and resumed, judged, served; and its refusals."""

import json
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from regions.models.convert import corpus
from regions.models.load import load
from regions.models.source import ModelFilesError, find_text_model
from regions.settings import WorkerSettings

ROOT = Path(__file__).parents[4]
WIDTH, HIDDEN, LAYERS = 48, 192, 2


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A BERT of two narrow layers with weights by chance, over the real tokenizer."""
    directory = tmp_path_factory.mktemp("bert")
    shutil.copy(find_text_model(None) / "tokenizer.json", directory)
    sizes = {"hidden_size": WIDTH, "intermediate_size": HIDDEN, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    kind = {"model_type": "bert", "hidden_act": "gelu", "max_position_embeddings": 512, "layer_norm_eps": 1e-12}
    (directory / "config.json").write_text(json.dumps(sizes | kind))
    generator = torch.Generator().manual_seed(0)
    tensors = {}

    def linear(name, outputs, inputs):
        tensors[f"{name}.weight"] = torch.randn(outputs, inputs, generator=generator) / inputs**0.5
        tensors[f"{name}.bias"] = torch.zeros(outputs)

    def norm(name):
        tensors[f"{name}.weight"], tensors[f"{name}.bias"] = torch.ones(WIDTH), torch.zeros(WIDTH)

    for name, rows in (("word", 30522), ("position", 512), ("token_type", 2)):
        tensors[f"embeddings.{name}_embeddings.weight"] = torch.randn(rows, WIDTH, generator=generator)
    norm("embeddings.LayerNorm")
    for layer in range(LAYERS):
        prefix = f"encoder.layer.{layer}"
        for part in ("query", "key", "value"):
            linear(f"{prefix}.attention.self.{part}", WIDTH, WIDTH)
        linear(f"{prefix}.attention.output.dense", WIDTH, WIDTH)
        linear(f"{prefix}.intermediate.dense", HIDDEN, WIDTH)
        linear(f"{prefix}.output.dense", WIDTH, HIDDEN)
        norm(f"{prefix}.attention.output.LayerNorm")
        norm(f"{prefix}.output.LayerNorm")
    save_file(tensors, directory / "model.safetensors")
    return directory


def command(*arguments, **options):
    line = [sys.executable, "-m", "regions.models.convert", *map(str, arguments)]
    return subprocess.Popen(line, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def run(*arguments):
    child = command(*arguments)
    out, err = child.communicate(timeout=100)
    return child.returncode, out, err


@pytest.fixture(scope="module")
def converted(small, tmp_path_factory):
    """A conversion that was killed once its state was on disk, and then went on: (directory, standard output)."""
    out = tmp_path_factory.mktemp("converted")
    asked = ("--model", small, "--experts", 8, "--out", out, "--no-static", "--minutes")
    first = command(*asked, 10)
    until = time.monotonic() + 90
    while not (out / "dynamic.training").exists():
        assert first.poll() is None, first.communicate()
        assert time.monotonic() < until
        time.sleep(0.1)
    first.kill()
    first.communicate()
    steps = torch.load(out / "dynamic.training", weights_only=True)["progress"]["steps"]
    code, told, errors = run(*asked, 0.2)
    assert code == 0, errors
    assert int(re.search(r"([\d,]+) steps", (out / "README.md").read_text())[1].replace(",", "")) >= steps > 50
    return out, told


def test_the_card_holds_the_table_and_nothing_is_left_behind(converted):
    out, told = converted
    assert sorted(path.name for path in out.iterdir()) == ["README.md", "model.safetensors"]
    rows = [line.strip("| ").split(" | ") for line in told.splitlines() if re.match(r"\| \d", line)]
    assert [row[0] for row in rows] == ["0.25", "0.50", "0.75", "1.00"]
    for budget, share, mean, p5, *people in rows:
        assert float(share) == pytest.approx(float(budget), abs=0.03)
        assert -1 <= float(p5) <= float(mean) <= 1
        assert len(people) == 2
    assert float(rows[3][2]) == pytest.approx(1.0, abs=0.001)
    assert float(rows[0][2]) <= float(rows[1][2]) <= float(rows[2][2])


def test_what_was_written_is_served(small, converted):
    model = load("minilm-moe", WorkerSettings(text_model=str(small), moe_model=str(converted[0]), precision="fp32"))
    item = model.prepare_text("The tide turns twice a day.", param="input", truncate=False, budget=0.5)
    outcome = model.forward([item]).outcomes[0]
    assert outcome.arrays["embedding"].shape == (WIDTH,)
    assert outcome.details["flops_share"] == pytest.approx(0.5, abs=0.03)


def test_a_conversion_of_other_weights_is_refused(converted):
    with pytest.raises(ModelFilesError, match=r"was converted from other weights than worker\.text_model"):
        load("minilm-moe", WorkerSettings(moe_model=str(converted[0])))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "cannot be read"),
        (lambda path: path.unlink(), "cannot be read"),
        (lambda path: save_file(load_file(path), path), "is no conversion of this version"),
        (lambda path: _without(path, "layers.1.up.bias"), "lacks layers.1.up.bias"),
        (lambda path: _spoilt(path, "layers.0.qkv.weight"), r"layers\.0\.qkv\.weight holds NaN"),
    ],
)
def test_a_damaged_conversion_is_refused_by_name(small, converted, tmp_path, damage, says):
    shutil.copy(converted[0] / "model.safetensors", tmp_path)
    damage(tmp_path / "model.safetensors")
    with pytest.raises(ModelFilesError, match=says):
        load("minilm-moe", WorkerSettings(text_model=str(small), moe_model=str(tmp_path)))


def _rewritten(path, change):
    from safetensors import safe_open  # noqa: PLC0415 - only here

    with safe_open(path, framework="pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    change(tensors)
    save_file(tensors, path, metadata)


def _without(path, name):
    _rewritten(path, lambda tensors: tensors.pop(name))


def _spoilt(path, name):
    _rewritten(path, lambda tensors: tensors[name].fill_(float("nan")))


def test_other_settings_do_not_go_on_from_a_state(small, tmp_path):
    torch.save({"plan": {"experts": 4}}, tmp_path / "dynamic.training")
    code, _, errors = run("--model", small, "--experts", 8, "--out", tmp_path, "--minutes", 0.01)
    assert code == 2
    assert "is of a conversion with other settings or text" in errors.splitlines()[-1]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--experts", 7), "--experts 7 does not divide the 192 hidden features"),
        (("--text", "no-such-file"), "no-such-file: cannot be read"),
        (("--model", "nowhere/at-all"), "neither a directory nor a model in the local hub cache"),
    ],
)
def test_what_is_wrong_is_said_in_a_line(small, tmp_path, arguments, says):
    code, _, errors = run("--model", small, "--out", tmp_path, *arguments)
    assert code == 2
    assert says in errors.splitlines()[-1]


def test_the_command_is_tidegates_too():
    tidegate = Path(sys.executable).with_name("tidegate")
    done = subprocess.run([tidegate, "convert", "--help"], capture_output=True, text=True, timeout=60, check=True)
    assert "--minutes" in done.stdout


def test_held_out_text_is_not_trained_on():
    trained = set(corpus.training_texts([]))
    held = corpus.held_out_texts()
    assert len(held) == len(set(held)) == 500
    assert not trained & set(held)
    assert np.median([len(text.split()) for text in held]) > 8
    assert {name: len(rated) for name, rated in corpus.rated_pairs().items()} == {"WordSim-353": 353, "SimLex-999": 999}
