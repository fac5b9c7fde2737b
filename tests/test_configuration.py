"""What a reload reads, compares and refuses, from real files; what is in force while requests are answered."""

import os
from pathlib import Path
from typing import Any

import pytest

from app.configuration import Configuration, ConfigurationFiles
from app.serving import Current, Serving
from app.settings_file import ConfigInvalid
from app.settings_fixed import differences, needs_restart

ROOT = Path(__file__).resolve().parents[1]
CONFIG = """\
version: 1
gateway: {listen: "127.0.0.1:8080", region: null}
regions:
  - {id: us-east, country: US, latitude: 38.9, longitude: -77.4, operator: {name: a}, backends: []}
  - id: eu-west
    country: IE
    latitude: 53.3
    longitude: -6.3
    operator: {name: a}
    backends: [{managed: true, models: [minilm]}]
residency: {rules: "law/*.yaml"}
tenants: [{id: demo, keys: [], scopes: [infer], subject: US}]
audit: {path: audit}
worker: {threads: 8}
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "law").mkdir()
    for name in ("gdpr.yaml", "us.yaml"):
        (tmp_path / "law" / name).write_text((ROOT / "configs" / "residency" / name).read_text())
    file = tmp_path / "tidegate.yaml"
    file.write_text(CONFIG)
    return file


def changed(file: Path, old: str, new: str) -> tuple[Configuration, Configuration]:
    before = ConfigurationFiles(file, {}).load()
    assert CONFIG.count(old) == 1
    file.write_text(CONFIG.replace(old, new))
    return before, ConfigurationFiles(file, {}).load()


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("127.0.0.1:8080", "127.0.0.1:8081", "gateway.listen"),
        ("region: null", "region: eu-west", "gateway.region"),
        ("{path: audit}", "{path: elsewhere}", "audit.path"),
        ("{path: audit}", "{path: audit, keys: pseudonyms}", "audit.keys"),
        ("{path: audit}", "{path: audit, retention: 1d}", "audit.retention"),
        ("{path: audit}", "{path: audit, commit_deadline: 2s}", "audit.commit_deadline"),
        ("{threads: 8}", "{threads: 9}", "worker.threads"),
        ("{threads: 8}", "{batch: {window: 1ms}}", "worker.batch.window"),
        ("id: us-east", "id: us-west", "regions.0"),
        ("minilm]", "minilm, minilm-moe]", "regions.1.backends"),
        ("{managed: true, ", '{url: "http://127.0.0.1:1", ', "regions.1.backends"),
        ("backends: []}", "backends: [{managed: true, models: [minilm]}]}", "regions.0.backends"),
    ],
)
def test_what_a_running_gateway_cannot_change(file: Path, old: str, new: str, key: str) -> None:
    before, after = changed(file, old, new)
    found = [after.source.problem(*each) for each in needs_restart(before.settings, after.settings)]
    assert key in {problem.key for problem in found}
    assert all("needs a restart" in problem.message and problem.line for problem in found)


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("region: null", "region: null, body_limit: 1MiB", "gateway.body_limit"),
        ("region: null", "region: null, security: strict", "gateway.security"),
        ("region: null", "region: null, public_urls: {eu-west: 'http://a'}", "gateway.public_urls"),
        ('rules: "law/*.yaml"', 'rules: "law/*.yaml", disabled: [eu-us-dpf]', "residency.disabled"),
        ("scopes: [infer]", "scopes: [admin]", "tenants"),
        ("country: IE", "country: DE", "regions"),
        ("models: [minilm]", "models: [minilm], weight: 2", "regions"),
        ("models: [minilm]}", "models: [minilm]}, {url: 'http://127.0.0.1:1', models: [x]}", "regions"),
        ("{path: audit}", "{path: audit, witness: 1m}", "audit.witness"),
        ("{path: audit}", "{path: audit, witness: null}", "audit.witness"),
        ("{path: audit}", "{path: audit, peers: {eu-west: 'http://a'}}", "audit.peers"),
        ("version: 1", "version: 1\ncache: {ttl: 1s}", "cache.ttl"),
        ("version: 1", "version: 1\nresilience: {retry: {attempts: 1}}", "resilience.retry.attempts"),
    ],
)
def test_what_it_can(file: Path, old: str, new: str, key: str) -> None:
    before, after = changed(file, old, new)
    assert list(needs_restart(before.settings, after.settings)) == []
    assert [".".join(map(str, each)) for each in differences(before.settings, after.settings)] == [key]
    assert not after.says_the_same(before)
    assert after.digest != before.digest


def test_regions_in_another_order_need_no_restart(file: Path) -> None:
    before = ConfigurationFiles(file, {}).load().settings
    turned = before.model_copy(update={"regions": before.regions[::-1]})
    assert list(needs_restart(before, turned)) == []


def test_what_is_written_otherwise_says_the_same(file: Path) -> None:
    before, after = changed(file, "version: 1\n", "# a comment\nversion: 1\ncache: {ttl: 300s}\n")
    assert after.says_the_same(before)
    assert after.digest == before.digest


def test_a_secret_that_changes_is_a_change_and_shows_nowhere(file: Path) -> None:
    text = CONFIG.replace("backends: []", 'backends: [{url: "http://127.0.0.1:1", models: [x], api_key: "env:EU_KEY"}]')
    file.write_text(text)
    one, other = (ConfigurationFiles(file, {"EU_KEY": key}).load() for key in ("one", "other"))
    assert not one.says_the_same(other)
    assert one.digest == other.digest


def test_the_environment_wins_again_and_is_named(file: Path) -> None:
    files = ConfigurationFiles(file, {"TIDEGATE_GATEWAY__LISTEN": "127.0.0.1:1"})
    before = files.load()
    file.write_text(CONFIG.replace("127.0.0.1:8080", "127.0.0.1:8081"))
    after = files.load()
    assert after.says_the_same(before)
    assert str(after.source.problem(("gateway", "listen"), "x")) == "environment: TIDEGATE_GATEWAY__LISTEN: x"


def test_every_file_that_is_read_is_watched(file: Path) -> None:
    files = ConfigurationFiles(file, {})
    files.load()
    law = file.parent / "law"
    assert files.stamp() == files.read
    assert set(files.read) == {file, law / "gdpr.yaml", law / "us.yaml"}
    (law / "uk.yaml").write_text((ROOT / "configs" / "residency" / "uk_gdpr.yaml").read_text())
    assert files.stamp() != files.read
    files.load()
    os.utime(law / "us.yaml", (0, 0))
    assert files.stamp() != files.read
    (law / "us.yaml").unlink()
    assert law / "us.yaml" not in files.stamp()


def test_the_law_that_a_refused_file_names_is_watched(file: Path) -> None:
    """So that whoever repairs it there need not touch the configuration again."""
    files = ConfigurationFiles(file, {})
    files.load()
    draft = file.parent / "draft.yaml"
    draft.write_text("id: [")
    file.write_text(CONFIG.replace("law/*.yaml", "draft.yaml"))
    with pytest.raises(ConfigInvalid, match="is not YAML"):
        files.load()
    assert files.stamp() == files.read
    assert draft in files.read


def serving() -> Serving:
    unused: Any = None
    return Serving(unused, unused, unused)


def test_a_request_keeps_what_it_began_with() -> None:
    first, second, third, ended = serving(), serving(), serving(), []
    current = Current(first, lambda: ended.append(current.all))
    early = current.begin()
    current.replace(second)
    late = current.begin()
    assert (early.serving, late.serving, current.serving) == (first, second, second)
    current.replace(third)
    assert current.all == [first, second, third]
    current.end(late)
    assert ended == [[first, third]]
    current.end(early)
    assert ended == [[first, third], [third]]


def test_what_nobody_uses_ends_at_once() -> None:
    first, second, ended = serving(), serving(), []
    current = Current(first, lambda: ended.append(True))
    current.end(current.begin())
    assert ended == []
    current.replace(second)
    assert (ended, current.all) == ([True], [second])
