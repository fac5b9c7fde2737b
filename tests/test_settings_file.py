"""From YAML and environment to settings: every problem at once, each where it stands."""

import hashlib
import json
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.config import DEMO_KEY_HASH, Settings
from app.settings_file import ConfigInvalid, documents, load, load_text

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "configs" / "local.yaml"

SMALL = """\
version: 1
regions:
  - id: eu-west
    country: IE
    latitude: 53.3
    longitude: -6.3
    operator: {name: acme}
    backends:
      - {url: "http://127.0.0.1:1", protocol: openai, models: [llama]}
tenants:
  - id: one
"""


def written(directory: Path, text: str) -> Path:
    file = directory / "tidegate.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def problems(directory: Path, text: str, **environ: str) -> list[str]:
    """The problems of a file, without its directory."""
    with pytest.raises(ConfigInvalid) as caught:
        load(written(directory, text), environ)
    return [str(problem).removeprefix(f"{directory}/") for problem in caught.value.problems]


def test_documented_example_is_sound_and_as_promised() -> None:
    found = load(LOCAL, {})
    assert [region.id for region in found.regions] == ["us-east", "eu-west", "ap-southeast"]
    assert [region.country for region in found.regions] == ["US", "IE", "SG"]
    assert found.regions[0].subdivision == "US-VA"
    for region in found.regions:
        assert [(b.managed, b.models) for b in region.backends] == [(True, ("minilm", "minilm-moe", "dynamic-moe"))]
    (tenant,) = found.tenants
    assert (tenant.id, tenant.keys, tenant.subject) == ("demo", (DEMO_KEY_HASH,), "US")
    assert tenant.scopes == ("infer", "audit:read", "audit:admin", "admin")
    assert "sha256:" + hashlib.sha256(b"tidegate-demo").hexdigest() == DEMO_KEY_HASH
    assert tenant.limits.requests is not None
    assert (tenant.limits.requests.amount, tenant.limits.requests.seconds, tenant.limits.requests.burst) == (
        60_000,
        60,
        60_000,
    )
    assert found.audit.path.resolve() == ROOT / "var" / "audit"


def test_documented_example_shows_every_setting() -> None:
    text = LOCAL.read_text()

    def names(model: Any) -> set[str]:
        schema = model.model_json_schema()
        return {name for part in [schema, *schema["$defs"].values()] for name in part.get("properties", {})}

    assert [name for name in sorted(names(Settings)) if f"{name}:" not in text] == []


def test_norway_is_a_country_and_not_false(tmp_path: Path) -> None:
    found = load(written(tmp_path, SMALL.replace("country: IE", "country: NO")), {})
    assert found.regions[0].country == "NO"


def test_paths_are_relative_to_the_file_also_by_default_and_from_the_environment(tmp_path: Path) -> None:
    assert load(written(tmp_path, SMALL), {}).audit.path == tmp_path / "var" / "audit"
    assert load(written(tmp_path, SMALL + "audit: {path: ../x}\n"), {}).audit.path == tmp_path / "../x"
    assert load(written(tmp_path, SMALL), {"TIDEGATE_AUDIT__PATH": "/elsewhere"}).audit.path == Path("/elsewhere")
    assert load(written(tmp_path, SMALL), {"TIDEGATE_AUDIT__PATH": "here"}).audit.path == tmp_path / "here"


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("version: 1", "version: 2", "1: version: 2 is not allowed; write 1"),
        ("version: 1\n", "", "1: version: is missing; it is required"),
        ("country: IE", "country: UK", "4: regions.0.country: 'UK' is not the ISO 3166 code; write GB"),
        ("country: IE", "cuntry: IE", "4: regions.0.cuntry: unknown key; did you mean country?"),
        ("latitude: 53.3", "latitude: 91", "5: regions.0.latitude: 91 is out of range; it must be at most 90"),
        ("latitude: 53.3", "latitude: .nan", "5: regions.0.latitude: nan is not a number"),
        ("latitude: 53.3", "latitude: north", "5: regions.0.latitude: 'north' is not a number"),
        ("- id: one", "- id: 1", "11: tenants.0.id: 1 is not text; put it in quotes"),
        (
            "- id: one",
            "- id: one\n    scopes: infer",
            "12: tenants.0.scopes: 'infer' is not a list; write such as [a, b]",
        ),
        ("models: [llama]", "models: []", "9: regions.0.backends.0.models: is empty; at least one entry is needed"),
        ("id: eu-west", "id: gateway", "3: regions.0.id: 'gateway' is the name of the gateway's own audit log"),
        ("id: eu-west", "id: witness", "3: regions.0.id: 'witness' is the name under which other gateways' audit logs"),
        (
            "country: IE",
            "country: IE\n    subdivision: US-VA",
            "5: regions.0.subdivision: US-VA does not lie in country IE",
        ),
        ("protocol: openai", "managed: true", "9: regions.0.backends.0: a backend is either"),
        ("protocol: openai", "api_key: 5", "9: regions.0.backends.0.api_key: the value is not text"),
        (
            "127.0.0.1:1",
            "127.0.0.1:1/api/v1/",
            "9: regions.0.backends.0.url: ends in /v1, which is added to each request; leave /v1 out",
        ),
        ('1", protocol: openai', '1/v2", protocol: kserve', "9: regions.0.backends.0.url: ends in /v2, which is added"),
        ('1", protocol: openai', '1/v1"', "9: regions.0.backends.0.url: ends in /v1, which is added"),
        (
            "protocol: openai",
            'api_key: "env:NO_SUCH"',
            "9: regions.0.backends.0.api_key: the environment variable NO_SUCH",
        ),
        (
            "- id: one",
            "- {id: one, instruments: [{id: i, type: scc, valid: [2027-01-01, 2026-01-01]}]}",
            "11: tenants.0.instruments.0.valid: begins on 2027-01-01, after it ends on 2026-01-01",
        ),
        (
            "- id: one",
            "- {id: one, instruments: [{id: i, type: scc, valid: [2027-01-01]}]}",
            "11: tenants.0.instruments.0.valid.1: is missing",
        ),
        ("- id: one", "- {id: one, limits: {requests: 5}}", "11: tenants.0.limits.requests: 5 is not a rate"),
        (
            "- id: one",
            "- {id: one, limits: {models: {llama: {tokens: many}}}}",
            "11: tenants.0.limits.models.llama.tokens: 'many' is not a rate",
        ),
        (
            "- id: one",
            "- {id: one, limits: {models: {lama: {concurrency: 1}}}}",
            "11: tenants.0.limits.models.lama: no backend serves a model 'lama'; did you mean llama?",
        ),
        (
            "- id: one",
            "- {id: one, limits: {per_key: {concurency: 1}}}",
            "11: tenants.0.limits.per_key.concurency: unknown key; did you mean concurrency?",
        ),
        ("- id: one", "- {id: one, allow_regions: [eu-wst]}", "did you mean eu-west?"),
        ("- id: one", "- {id: one, keys: [tg_secret]}", "11: tenants.0.keys.0: a key is stored as sha256:"),
        ("- id: one", "- id: one\n  - id: one", "12: tenants.1.id: the id stands already at tenants.0.id"),
        ("version: 1", "version: 1\ngateway: {region: us}", "2: gateway.region: there is no region 'us'"),
        (
            "version: 1",
            "version: 1\ngateway: {public_urls: {us: 'http://x'}}",
            "2: gateway.public_urls.us: there is no region",
        ),
        (
            "version: 1",
            "version: 1\naudit: {peers: {us: 'http://x'}}",
            "2: audit.peers.us: there is no region",
        ),
        (
            "version: 1",
            "version: 1\ngateway: {trusted_proxies: [10.0.0.1/8]}",
            "names one host of a network; write 10.0.0.0/8",
        ),
        ("version: 1", "version: 1\ngateway: 5", "2: gateway: 5 is not a mapping of names to values"),
        (
            "version: 1",
            "version: 1\nresidency: {unknown_subject: EL}",
            "2: residency.unknown_subject: 'EL' is not the ISO 3166",
        ),
        ("version: 1", "version: 1\ncache: {ttl: 5 minutes}", "2: cache.ttl: '5 minutes' is not a duration"),
    ],
)
def test_problem_names_line_key_and_cure(tmp_path: Path, old: str, new: str, expected: str) -> None:
    assert old in SMALL
    found = problems(tmp_path, SMALL.replace(old, new, 1))
    assert [line for line in found if line.startswith("tidegate.yaml:") and expected in line]


def test_all_problems_at_once_in_the_order_of_the_file(tmp_path: Path) -> None:
    text = SMALL.replace("IE", "XX").replace("53.3", "x").replace("id: one", "id: one\n    allow_regions: [nowhere]")
    found = problems(tmp_path, text + "version: 1\ncash: {}\n", TIDEGATE_CACHE__TTL="x")
    assert [line.split(": ")[:2] for line in found] == [
        ["tidegate.yaml:4", "regions.0.country"],
        ["tidegate.yaml:5", "regions.0.latitude"],
        ["tidegate.yaml:12", "tenants.0.allow_regions.0"],
        ["tidegate.yaml:13", "version"],
        ["tidegate.yaml:14", "cash"],
        ["environment", "TIDEGATE_CACHE__TTL"],
    ]


def test_key_hash_belongs_to_one_tenant(tmp_path: Path) -> None:
    key = "sha256:" + "a" * 64
    text = SMALL + f"    keys: [{key}]\n  - {{id: two, keys: [{key}]}}\n"
    (found,) = problems(tmp_path, text)
    assert found.startswith("tidegate.yaml:13: tenants.1.keys.0: the key hash stands already at tenants.0.keys.0")


def test_beyond_loopback_a_region_is_needed_and_the_demo_key_refused(tmp_path: Path) -> None:
    text = SMALL + f'    keys: ["{DEMO_KEY_HASH}"]\n'
    for listen in ("127.0.0.1:1", "[::1]:1", "localhost:1", "127.9.9.9:1"):
        load(written(tmp_path, f"gateway: {{listen: '{listen}'}}\n{text}"), {})
    for listen in ("0.0.0.0:1", "[::]:1", "10.0.0.1:1", "gateway.internal:1"):
        region, key = problems(tmp_path, f"gateway: {{listen: '{listen}'}}\n{text}")
        assert region.startswith("tidegate.yaml:1: gateway.region: a gateway that listens on")
        assert key.startswith("tidegate.yaml:13: tenants.0.keys.0: the key 'tidegate-demo' is public")
    (key,) = problems(tmp_path, f"gateway: {{listen: '0.0.0.0:1', region: eu-west}}\n{text}")
    assert "tenants.0.keys.0" in key


def test_secret_comes_from_the_environment_and_is_never_shown(tmp_path: Path) -> None:
    text = SMALL.replace("protocol: openai", 'protocol: openai, api_key: "env:EU_KEY"')
    found = load(written(tmp_path, text), {"EU_KEY": "hush"})
    key = found.regions[0].backends[0].api_key
    assert key is not None
    assert key.get_secret_value() == "hush"
    assert "hush" not in repr(found)
    literal = SMALL.replace("protocol: openai", "protocol: nope, api_key: hush")
    assert "hush" not in "\n".join(problems(tmp_path, literal + "    keys: [hush]\n"))
    assert problems(tmp_path, text, EU_KEY="")[0].startswith("tidegate.yaml:9: regions.0.backends.0.api_key")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version: [1,\nb: }", "2: is not YAML"),
        ("version: 1\nversion: 1\n", "2: version: stands twice, first in line 1"),
        ("", "1: a mapping is expected"),
        ("- 1\n", "1: a mapping is expected"),
        ("a: 2026-02-30", "1: is not YAML"),
        ("a: 1\n---\nb: 2\n", "is not YAML: expected a single document"),
        ("a: !!python/object:os.system x", "is not YAML: could not determine a constructor"),
        ("a: \x07", "is not YAML: character 0x07 is not allowed"),
        ("a: &a [*a]", "1: a: unknown key"),
        ("? [1, 2]\n: 3", "holds a name that is not text"),
    ],
)
def test_broken_yaml_is_a_problem_and_no_traceback(tmp_path: Path, text: str, expected: str) -> None:
    assert any(expected in found for found in problems(tmp_path, text))


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="cannot be read: No such file or directory"):
        load(tmp_path / "absent.yaml", {})
    with pytest.raises(ConfigInvalid, match="cannot be read: Is a directory"):
        load(tmp_path, {})
    (tmp_path / "latin.yaml").write_bytes(b"version: 1\n# caf\xe9\n")
    with pytest.raises(ConfigInvalid, match="2: is not UTF-8 text"):
        load(tmp_path / "latin.yaml", {})


@settings(deadline=None, max_examples=50)
@given(st.text(max_size=60))
def test_any_text_loads_or_is_explained(text: str) -> None:
    with suppress(ConfigInvalid):
        load_text(text, Path("x.yaml"), {})


def test_environment_overrides_at_any_depth(tmp_path: Path) -> None:
    found = load(
        written(tmp_path, SMALL),
        {
            "TIDEGATE_CACHE__TTL": "1m",
            "TIDEGATE_RESILIENCE__BREAKER": "{failures: 9, recovery: 5s}",
            "TIDEGATE_RESILIENCE__BREAKER__FAILURES": "7",
            "TIDEGATE_TENANTS__0__SUBJECT": "NO",
            "TIDEGATE_TENANTS__1__ID": "two",
            "TIDEGATE_REGIONS__0__BACKENDS__0__MODELS": "[a, Org/B-1]",
            "TIDEGATE_TENANTS__0__LIMITS__MODELS__ORG_B_1__REQUESTS": "5/second",
            "TIDEGATE_GATEWAY__PUBLIC_URLS__EU_WEST": "https://eu.example",
            "TIDEGATE_GATEWAY__TRUSTED_PROXIES__0": "10.0.0.0/8",
            "TIDEGATE_MOE_EXPERTS": "not ours",
            "OTHER__THING": "not ours",
        },
    )
    assert found.cache.ttl == 60
    assert (found.resilience.breaker.failures, found.resilience.breaker.recovery) == (7, 5)
    assert [(tenant.id, tenant.subject) for tenant in found.tenants] == [("one", "NO"), ("two", None)]
    assert found.regions[0].backends[0].models == ("a", "Org/B-1")
    assert list(found.tenants[0].limits.models) == ["Org/B-1"]
    assert found.gateway.public_urls == {"eu-west": "https://eu.example"}
    assert str(found.gateway.trusted_proxies[0]) == "10.0.0.0/8"


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("TIDEGATE_GATEWY__LISTEN", "x", "there is no setting GATEWY here; did you mean GATEWAY?"),
        ("TIDEGATE_CACHE__MAX_ENTRYS", "1", "there is no setting MAX_ENTRYS here; did you mean MAX_ENTRIES?"),
        ("TIDEGATE_CACHE__TTL__DEEPER", "1", "there is no setting DEEPER here; nothing may stand here"),
        ("TIDEGATE_TENANTS__FIRST__ID", "1", "there is no setting FIRST here"),
        ("TIDEGATE_TENANTS__7__ID", "x", "the list has 1 entries, so the next index is 1"),
        ("TIDEGATE_CACHE__TTL", "[", "its value is not YAML"),
        ("TIDEGATE_CACHE__TTL", "5 parsecs", "'5 parsecs' is not a duration"),
        (
            "TIDEGATE_CACHE",
            "{ttl: x}",
            "names a section, which is set key by key; write such as TIDEGATE_CACHE__MAX_EN",
        ),
        ("TIDEGATE_TENANTS", "x", "names a section, which is set key by key; write such as TIDEGATE_TENANTS__0__ID"),
        ("TIDEGATE_RESILIENCE", "", "names a section, which is set key by key; write such as TIDEGATE_RESILIENCE__BRE"),
        ("TIDEGATE_KEY", "tg_x", None),
        ("TIDEGATE_KEY_HASH", "x", None),
        ("TIDEGATE_VERSION", "1.2.3", None),
        ("TIDEGATE_GATEWAY_PORT", "tcp://10.0.0.1:80", None),  # as Kubernetes announces a service of that name
        ("TIDEGATE_RESILIENCE__BREAKER", "{failures: 0}", "failures: 0 is out of range"),
        ("TIDEGATE_TENANTS__0__KEYS__0", "hush", "a key is stored as"),
    ],
)
def test_environment_problem_names_the_variable(tmp_path: Path, name: str, value: str, expected: str | None) -> None:
    if expected is None:  # without a double underscore, and no section's name, it is not ours
        load(written(tmp_path, SMALL), {name: value})
        return
    (found,) = problems(tmp_path, SMALL, **{name: value})
    assert found.startswith(f"environment: {name}: {expected}")
    assert "hush" not in found


@settings(deadline=None, max_examples=50)
@given(st.integers(1, 10**9), st.floats(0.001, 1e6), st.sampled_from(["residency", "transfer"]))
def test_environment_values_arrive_as_they_were_written(entries: int, seconds: float, posture: str) -> None:
    environ = {
        "TIDEGATE_CACHE__MAX_ENTRIES": json.dumps(entries),
        "TIDEGATE_CACHE__TTL": f"{seconds:.3f}s",
        "TIDEGATE_RESIDENCY__POSTURE": posture,
    }
    found = load_text(SMALL, Path("x.yaml"), environ)
    assert (found.cache.max_entries, found.cache.ttl, found.residency.posture) == (
        entries,
        float(f"{seconds:.3f}"),
        posture,
    )


def test_what_nests_too_deep_is_one_problem_at_its_line(tmp_path: Path) -> None:
    deep, said = "[" * 20_000, "nests deeper than 64 levels; no setting needs ten"
    assert problems(tmp_path, SMALL.replace("id: one", "id: " + deep)) == [f"tidegate.yaml:11: {said}"]
    assert problems(tmp_path, SMALL, TIDEGATE_CACHE__TTL=deep) == [f"environment: TIDEGATE_CACHE__TTL: {said}"]
    (found,) = problems(tmp_path, SMALL.replace("id: one", "id: " + "[" * 60 + "]" * 60))
    assert "is not text" in found


def test_one_managed_worker_a_region(tmp_path: Path) -> None:
    text = SMALL.replace(
        '{url: "http://127.0.0.1:1", protocol: openai, models: [llama]}', "{managed: true, models: [minilm]}"
    )
    load(written(tmp_path, text), {})
    twice = text.replace("tenants:", "      - {managed: true, models: [minilm]}\ntenants:")
    (found,) = problems(tmp_path, twice)
    assert found.startswith("tidegate.yaml:8: regions.0.backends: a region has at most one managed backend")


def test_law_files_by_default_by_glob_and_absent(tmp_path: Path) -> None:
    assert {Path(name).parent for name, _ in documents("default", tmp_path)} == {ROOT / "configs" / "residency"}
    (tmp_path / "laws").mkdir()
    (tmp_path / "laws" / "b.yaml").write_text("id: b\n")
    (tmp_path / "laws" / "a.yaml").write_text("id: a\n")
    relative = documents("laws/*.yaml", tmp_path)
    assert [content for _, content in relative] == [{"id": "a"}, {"id": "b"}]
    assert documents(str(tmp_path / "laws" / "*.yaml"), Path("/elsewhere")) == relative
    assert documents("laws/*.yml", tmp_path) == []
    (tmp_path / "laws" / "c.yaml").write_text("a: [")
    (tmp_path / "laws" / "d.yaml").write_text("- a\n")
    with pytest.raises(ConfigInvalid) as caught:
        documents("laws/*.yaml", tmp_path)
    assert [Path(problem.file).name for problem in caught.value.problems] == ["c.yaml", "d.yaml"]


def test_managed_worker_serves_models_that_exist(tmp_path: Path) -> None:
    text = SMALL.replace(
        '{url: "http://127.0.0.1:1", protocol: openai, models: [llama]}', "{managed: true, models: [minilm-mo]}"
    )
    (found,) = problems(tmp_path, text)
    assert found.startswith("tidegate.yaml:9: regions.0.backends.0.models.0: a managed worker has no model 'minilm-mo'")
    assert "did you mean minilm-moe?" in found
