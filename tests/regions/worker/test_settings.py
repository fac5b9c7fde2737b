"""A worker's configuration: the file, the environment over it, and one line for whatever is wrong."""

from pathlib import Path

import pytest

from regions.settings import MODELS, WorkerSettings
from regions.worker.settings import ConfigError, WorkerConfig, read_config

FILE = """\
version: 1
regions:
  - id: eu-west
    backends:
      - {managed: true, models: [minilm, minilm-moe]}
      - {url: "http://other", models: [llama]}
      - {managed: true, models: [minilm-moe, dynamic-moe]}
  - id: us-east
    backends: []
worker:
  fallback: random
  batch: {max_size: 16, window: 2ms}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "local.yaml"
    path.write_text(FILE, encoding="utf-8")
    return path


def refused(region: str, file: Path | None, models: list[str] | None = None, **environ: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read_config(region, file, models, environ)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_without_a_file_everything_has_its_default() -> None:
    assert read_config("anywhere", None, None, {}) == WorkerConfig("anywhere", MODELS, WorkerSettings())


def test_the_file_gives_settings_and_the_regions_models(file: Path) -> None:
    worker = read_config("eu-west", file, None, {})
    assert worker.models == ("minilm", "minilm-moe", "dynamic-moe")
    assert (worker.settings.fallback, worker.settings.batch.max_size) == ("random", 16)
    assert worker.settings.batch.window == pytest.approx(0.002)
    assert worker.settings.compute_budget == 0.5


def test_named_models_take_the_place_of_the_listed(file: Path) -> None:
    assert read_config("us-east", file, ["minilm", "minilm"], {}).models == ("minilm",)


def test_the_environment_lies_over_the_file(file: Path) -> None:
    environ = {
        "TIDEGATE_WORKER__BATCH__WINDOW": "50ms",
        "TIDEGATE_WORKER__QUEUE__MAX_REQUESTS": "7",
        "TIDEGATE_WORKER__COMPUTE_BUDGET": "0.25",
        "TIDEGATE_WORKER__TEXT_MODEL": "null",
        "TIDEGATE_GATEWAY__LISTEN": "for someone else",
    }
    settings = read_config("eu-west", file, None, environ).settings
    assert settings.batch.window == pytest.approx(0.05)
    assert settings.batch.max_size == 16
    assert settings.queue.max_requests == 7
    assert settings.compute_budget == 0.25
    assert settings.text_model is None


def test_a_directory_beside_the_file_is_found_from_anywhere(file: Path) -> None:
    (file.parent / "encoder").mkdir()
    environ = {"TIDEGATE_WORKER__TEXT_MODEL": "encoder"}
    assert read_config("eu-west", file, None, environ).settings.text_model == str(file.parent / "encoder")
    environ = {"TIDEGATE_WORKER__TEXT_MODEL": "org/encoder"}
    assert read_config("eu-west", file, None, environ).settings.text_model == "org/encoder"


def test_an_unknown_region_is_told_with_those_there_are(file: Path) -> None:
    assert refused("eu-wets", file) == f"{file}: regions: there is no region 'eu-wets'; configured: eu-west, us-east"


def test_a_region_without_a_worker_is_told(file: Path) -> None:
    assert "regions.us-east.backends: no managed backend lists models" in refused("us-east", file)


def test_unknown_models_are_told(file: Path) -> None:
    assert refused("eu-west", file, ["mini"]).startswith("--models: there is no model 'mini'; choose of minilm,")
    assert refused("eu-west", file, []).startswith("--models: no model is named")
    file.write_text(FILE.replace("minilm,", "bert,"), encoding="utf-8")
    assert refused("eu-west", file).startswith(f"{file}: regions.eu-west.backends.models: there is no model 'bert'")


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("window: 2ms", "window: 2s", None),
        ("window: 2ms", "window: 2", ":12: worker.batch.window: 2 has no unit; write a number and a unit"),
        (
            "window: 2ms",
            "window: soon",
            ":12: worker.batch.window: 'soon' is not a duration; write a number",
        ),
        ("max_size: 16", "max_size: 0", ":12: worker.batch.max_size: Input should be greater than or equal to 1"),
        ("max_size: 16", "size: 16", ":12: worker.batch.size: there is no such setting; known here: max_size"),
        ("fallback: random", "fall_back: x", ":11: worker.fall_back: there is no such setting; known here: profile"),
        ("fallback: random", "fallback: coin", ":11: worker.fallback: Input should be 'dense'"),
        ("fallback: random", "fallback: ]", ":11: is not YAML"),
        ("fallback: random", "fallback: dense\n  fallback: random", ":12: is not YAML: found duplicate key"),
        ("worker:\n", "worker: fast\nother:\n", ": worker: is not a mapping"),
    ],
)
def test_a_bad_value_is_told_with_file_line_and_key(file: Path, old: str, new: str, told: str | None) -> None:
    file.write_text(FILE.replace(old, new), encoding="utf-8")
    if told is None:
        assert read_config("eu-west", file, None, {}).settings.batch.window == 2
    else:
        assert refused("eu-west", file).startswith(f"{file}{told}")


def test_a_bad_value_of_the_environment_is_told_with_its_variable(file: Path) -> None:
    name = "TIDEGATE_WORKER__COMPUTE_BUDGET"
    assert refused("eu-west", file, **{name: "2"}) == f"{name}: Input should be less than or equal to 1"
    assert refused("eu-west", file, **{name: "["}).startswith(f"{name}: is not a YAML value")
    assert refused("eu-west", file, TIDEGATE_WORKER__COLOUR="red").startswith("TIDEGATE_WORKER__COLOUR: there is no")


def test_a_section_without_a_key_is_told() -> None:
    said = refused("eu-west", None, TIDEGATE_WORKER="{threads: 2}")
    assert said == "TIDEGATE_WORKER: names a section, which is set key by key; write such as TIDEGATE_WORKER__THREADS"


def test_what_nests_too_deep_is_told(file: Path) -> None:
    deep = "[" * 20_000
    assert refused("eu-west", None, TIDEGATE_WORKER__THREADS=deep).startswith("TIDEGATE_WORKER__THREADS: nests too")
    file.write_text(FILE + f"other: {deep}\n", encoding="utf-8")
    assert refused("eu-west", file).startswith(f"{file}: nests too deep")


def test_a_file_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    assert "cannot be read (No such file" in refused("eu-west", tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("[1]", encoding="utf-8")
    assert "holds no settings" in refused("eu-west", tmp_path / "list.yaml")
    (tmp_path / "latin.yaml").write_bytes(b"worker: \xe4")
    assert "is not UTF-8" in refused("eu-west", tmp_path / "latin.yaml")
