"""The command line: what it prints, where, and its exit codes; through real processes where the process matters."""

import hashlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from click.testing import CliRunner

from app.cli import tidegate
from app.config import DEMO_KEY_HASH
from app.ports import free_ports
from app.settings_file import load

ROOT = Path(__file__).resolve().parents[1]
LOCAL = ROOT / "configs" / "local.yaml"
DATA = ROOT / "tests" / "data" / "residency"
WORLD = DATA / "world.yaml"

# One region without a backend that listens: enough for a gateway to start.
SMALL = """\
# the head of the file
version: 1
regions:
  - {id: eu-west, country: IE, latitude: 53.3, longitude: -6.3, operator: {name: acme}, backends: []}   # Dublin
tenants:
  - id: one          # the first
    scopes: [infer]
    subject: null
  - {id: two, keys: ["sha256:HASH"]}
audit: {path: audit}
""".replace("HASH", "b" * 64)


def run(*arguments: object, environ: Mapping[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "app.cli", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "COLUMNS": "200", **(environ or {})},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def one_line(text: str) -> bool:
    return text.endswith("\n") and text.count("\n") == 1


# --- the command itself


def test_version_and_help() -> None:
    assert run("--version").stdout.startswith("tidegate, version ")
    shown = run("--help")
    assert shown.returncode == 0
    for name in ("up", "gateway", "worker", "check", "explain", "prove", "audit", "keys"):
        assert name in shown.stdout
        assert CliRunner().invoke(tidegate, [name, "--help"]).exit_code == 0
    for absent in ("demo",):
        assert f"  {absent} " not in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["frob"], 2, "tidegate: No such command 'frob'; see `tidegate --help`"),
        (["check"], 2, "tidegate: Missing argument 'FILE'; see `tidegate check --help`"),
        (["check", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read: No such file or directory"),
        (["explain", "--config", WORLD], 2, "tidegate: --tenant is needed, one of: stay, move, prefer"),
        (["gateway", "--config", LOCAL], 2, "`tidegate up` starts them"),
        (["up", "--config", "nowhere.yaml"], 2, "nowhere.yaml: cannot be read"),
        (["worker", "--region", "x", "--port", "70000"], 2, "tidegate: Invalid value for '--port'"),
    ],
)
def test_wrong_usage_is_one_line_on_standard_error(arguments: list[object], code: int, said: str) -> None:
    done = run(*arguments)
    assert (done.returncode, done.stdout) == (code, "")
    assert said in done.stderr
    assert one_line(done.stderr)


def test_a_closed_pipe_is_no_traceback() -> None:
    command = f"{sys.executable} -m app.cli explain --config {WORLD} --tenant stay --json | true"
    done = subprocess.run(["bash", "-c", command], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr


# --- check


def test_check_reports_a_file_that_nests_too_deep(tmp_path: Path) -> None:
    file = tmp_path / "deep.yaml"
    file.write_text("version: 1\nregions: " + "[" * 20_000)
    done = run("check", file)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == f"{file}:2: nests deeper than 64 levels; no setting needs ten\n"


def test_check_says_that_a_file_is_sound() -> None:
    done = run("check", LOCAL)
    assert done.returncode == 0
    assert [line for line in done.stderr.splitlines() if not line.startswith("warning: ")] == []  # of a law's review
    assert done.stdout.startswith(f"{LOCAL}: sound (3 regions, 1 tenant, ")
    found = json.loads(run("check", WORLD, "--json").stdout)
    assert (found["sound"], found["regions"], found["tenants"], found["problems"]) == (True, 12, 9, [])


def test_check_lists_every_problem_at_its_line(small: Path) -> None:
    small.write_text(SMALL.replace("IE", "UK").replace("two", "one"))
    done = run("check", small)
    assert (done.returncode, done.stdout) == (2, "")
    country, tenant = done.stderr.splitlines()
    assert country == f"{small}:4: regions.0.country: 'UK' is not the ISO 3166 code; write GB"
    assert tenant.startswith(f"{small}:9: tenants.1.id: ")
    done = run("check", small, "--json")
    assert done.returncode == 2
    assert [(found["line"], found["key"]) for found in json.loads(done.stdout)["problems"]] == [
        (4, "regions.0.country"),
        (9, "tenants.1.id"),
    ]


def test_check_reads_the_law_and_what_refers_to_it(small: Path) -> None:
    small.write_text(SMALL + "residency: {disabled: [no-such-basis]}\n")
    done = run("check", small)
    assert done.returncode == 2
    assert done.stderr.startswith(f"{small}:11: residency.disabled.0: ")
    small.write_text(SMALL + "residency: {rules: 'laws/*.yaml'}\n")
    assert f"{small}:11: residency.rules: no file matches" in run("check", small).stderr
    (small.parent / "laws").mkdir()
    law = small.parent / "laws" / "own.yaml"
    law.write_text("id: own\nnonsense: true\n")
    done = run("check", small)
    assert done.returncode == 2
    assert str(law) in done.stderr


def test_check_sees_the_environment(small: Path) -> None:
    done = run("check", small, environ={"TIDEGATE_CACHE__TTL": "soon"})
    assert done.returncode == 2
    assert done.stderr.startswith("environment: TIDEGATE_CACHE__TTL: 'soon' is not a duration")


# --- explain


def explain(*options: object, config: Path = WORLD) -> tuple[int, str, str]:
    found = CliRunner().invoke(tidegate, ["explain", "--config", str(config), *map(str, options)])
    return found.exit_code, found.stdout, found.stderr


def test_explain_prints_a_table_and_the_order() -> None:
    done = run("explain", "--config", LOCAL, "--subject", "US", "--prefer", "ap-southeast, eu-west")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("200 served: ALLOW_UNRESTRICTED")
    assert "regions in order: ap-southeast, eu-west, us-east\n" in done.stdout
    assert "\x1b" not in done.stdout
    refused = run("explain", "--config", LOCAL, "--subject", "DE", "--region", "us-east")
    assert (refused.returncode, refused.stderr) == (0, "")
    assert refused.stdout.startswith("451 residency_denied: DENY_REQUESTED_REGION")


def test_explain_ranks_from_where_the_gateway_stands() -> None:
    _, out, _ = explain("--tenant", "stay", "--subject", "US", "--json")
    assert json.loads(out)["chosen"] == "de"
    done = run(
        *("explain", "--config", WORLD, "--tenant", "stay", "--subject", "US", "--json"),
        environ={"TIDEGATE_GATEWAY__REGION": "sg"},
    )
    assert json.loads(done.stdout)["chosen"] == "sg"


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--subject", "Germany"], "subject: Germany is not an ISO 3166 code"),
        (["--subject", "UK"], "subject: UK is not the ISO 3166 code; send GB."),
        (["--region", "nowhere"], "There is no region nowhere. Configured: us-east, eu-west, and ap-southeast."),
        (["--down", "nowhere"], "There is no region nowhere."),
        (["--tenant", "nobody"], "tenant has a value that is not allowed"),
        (["--transfer-basis", "none"], "none is not an instrument that is registered"),
        (["--disabled", "none"], "disabled has a value that is not allowed"),
        (["--evidence", "geoip"], "'geoip' is not SOURCE=CODE"),
        (["--evidence", "geoip=EL"], "EL is not the ISO 3166 code; send GR."),
        (["--at", "tomorrow"], "'tomorrow' does not match"),
        (["--purpose", "x" * 65], "--purpose: String should have at most 64 characters"),
    ],
)
def test_explain_refuses_bad_input_in_one_line(options: list[str], said: str) -> None:
    done = run("explain", "--config", LOCAL, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert one_line(done.stderr)


# --- make


@pytest.mark.parametrize(("given", "command"), [([], "up"), (["PORT=8090"], "up --port 8090")])
def test_make_run_takes_the_port(given: list[str], command: str) -> None:
    # Under `make test` the flags of the make above would be taken over.
    environ = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "MAKELEVEL", "PORT")}
    command_line = ["make", "-n", "run", *given]
    done = subprocess.run(command_line, cwd=ROOT, env=environ, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].strip() == f"exec .venv/bin/tidegate {command}"


# --- keys


def test_a_template_lays_the_file_with_one_key_and_later_keeps_it(small: Path, tmp_path: Path) -> None:
    file = tmp_path / "laid" / "gateway.yaml"
    command = ("keys", "new", "--config", file, "--tenant", "one", "--template", small)
    done = run(*command)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"there is no directory {file.parent} to write gateway.yaml in" in done.stderr
    file.parent.mkdir()
    digest = "sha256:" + hashlib.sha256(run(*command).stdout.strip().encode()).hexdigest()
    assert load(file, {}).tenants[0].keys == (digest,)
    assert file.stat().st_mode & 0o777 == 0o600
    before = file.stat()
    done = run(*command)
    assert (done.returncode, done.stdout) == (0, "")
    assert "keeps its keys" in done.stderr
    assert file.stat().st_mtime_ns == before.st_mtime_ns
    small.write_text(SMALL.replace("    subject: null\n", "    subject: DE\n"))
    assert run(*command).stdout == ""
    assert (load(file, {}).tenants[0].subject, load(file, {}).tenants[0].keys) == ("DE", (digest,))
    assert load(file, {}).tenants[1].keys == load(small, {}).tenants[1].keys


def test_an_unsound_template_is_named_and_the_file_stays(small: Path, tmp_path: Path) -> None:
    template = tmp_path / "template.yaml"
    template.write_text(SMALL + "nonsense: 1\n")
    done = run("keys", "new", "--config", small, "--tenant", "one", "--template", template)
    assert (done.returncode, done.stdout) == (2, "")
    assert f"{template}:{len(SMALL.splitlines()) + 1}: nonsense: unknown key" in done.stderr
    assert small.read_text() == SMALL


def test_new_key_is_shown_once_and_only_its_hash_is_stored(small: Path) -> None:
    small.chmod(0o640)
    done = run("keys", "new", "--config", small, "--tenant", "one")
    assert done.returncode == 0, done.stderr
    key = done.stdout.strip()
    assert key.startswith("tg_")
    assert len(key) == 3 + 43
    text = small.read_text()
    digest = hashlib.sha256(key.encode()).hexdigest()
    assert key not in text
    assert text == SMALL.replace("    subject: null\n", f"    subject: null\n    keys:\n      - sha256:{digest}\n")
    assert small.stat().st_mode & 0o777 == 0o640
    assert [entry.name for entry in small.parent.iterdir()] == ["small.yaml"]
    listed = json.loads(run("keys", "list", "--config", small, "--json").stdout)
    assert {"tenant": "one", "key_id": digest[:8], "scopes": ["infer"]} in listed
    table = run("keys", "list", "--config", small).stdout
    assert table.splitlines()[0].split() == ["tenant", "key_id", "scopes"]
    assert ["one", digest[:8], "infer"] in [line.split() for line in table.splitlines()]


def test_revoked_key_is_gone(small: Path) -> None:
    done = run("keys", "revoke", "--config", small, "b" * 8)
    assert done.returncode == 0, done.stderr
    assert load(small, {}).tenants[1].keys == ()
    assert small.read_text().startswith("# the head of the file\n")


@pytest.mark.parametrize("style", ["indented", "flush", "flow"])
def test_edit_changes_nothing_else(tmp_path: Path, style: str) -> None:
    file = tmp_path / "x.yaml"
    original = {"indented": LOCAL.read_text(), "flush": SMALL.replace("\n  ", "\n"), "flow": SMALL}[style]
    file.write_text(original)
    tenant = "demo" if style == "indented" else "two"
    key = run("keys", "new", "--config", file, "--tenant", tenant).stdout.strip()
    assert file.read_text() != original
    assert run("keys", "revoke", "--config", file, hashlib.sha256(key.encode()).hexdigest()[:10]).returncode == 0
    assert file.read_text() == original


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["new", "--tenant", "nobody"], "there is no tenant 'nobody'; configured: one, two"),
        (["revoke", "bb"], "give at least 8 hex digits"),
        (["revoke", "c" * 8], "0 keys begin with it"),
    ],
)
def test_keys_refuses_what_it_cannot_do_and_changes_nothing(small: Path, arguments: list[str], said: str) -> None:
    done = run("keys", *arguments, "--config", small)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert one_line(done.stderr)
    assert small.read_text() == SMALL


def test_keys_need_no_secret_of_a_backend(small: Path) -> None:
    backend = '[{url: "https://eu.internal", protocol: openai, models: [llama], api_key: "env:EU_KEY"}]'
    small.write_text(SMALL.replace("backends: []", f"backends: {backend}"))
    assert run("keys", "list", "--config", small, environ={"EU_KEY": ""}).returncode == 0
    assert run("keys", "new", "--config", small, "--tenant", "one").returncode == 0
    done = run("keys", "revoke", "--config", small, "b" * 8)
    assert done.returncode == 0, done.stderr
    assert 'api_key: "env:EU_KEY"' in small.read_text()
    for command in (("check", small), ("gateway", "--config", small)):
        done = run(*command)
        assert done.returncode == 2
        assert "the environment variable EU_KEY is not set" in done.stderr


def test_keys_leaves_an_unsound_file_alone(small: Path) -> None:
    small.write_text(SMALL + "nonsense: 1\n")
    done = run("keys", "new", "--config", small, "--tenant", "one")
    assert (done.returncode, done.stdout) == (2, "")
    assert "nonsense: unknown key" in done.stderr
    assert small.read_text() == SMALL + "nonsense: 1\n"


def test_keys_made_at_once_are_all_kept(small: Path) -> None:
    command = [sys.executable, "-m", "app.cli", "keys", "new", "--config", str(small), "--tenant", "one"]
    makers = [subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)]
    keys = {maker.communicate(timeout=60)[0].strip() for maker in makers}
    hashes = {"sha256:" + hashlib.sha256(key).hexdigest() for key in keys}
    assert set(load(small, {}).tenants[0].keys) == hashes
    assert len(hashes) == 4


# --- gateway


@pytest.fixture
def gateway(small: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    port = free_ports(1)
    command = [sys.executable, "-m", "app.cli", "gateway", "--config", str(small), "--port", str(port)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        url = f"http://127.0.0.1:{port}"
        end = time.monotonic() + 60
        while process.poll() is None and not answers(url + "/livez"):
            assert time.monotonic() < end, "the gateway did not start"
            time.sleep(0.05)
        yield process, url
    finally:
        process.kill()
        process.wait(10)
        for pipe in (process.stdout, process.stderr):
            if pipe:
                pipe.close()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return reply.status == 200
    except urllib.error.HTTPError as error:
        error.close()
        return False
    except OSError:
        return False


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_gateway_serves_logs_json_and_ends_cleanly(
    gateway: tuple[subprocess.Popen[str], str], number: signal.Signals
) -> None:
    process, url = gateway
    with urllib.request.urlopen(url + "/livez", timeout=10) as reply:
        assert "server" not in {name.lower() for name in reply.headers}
    process.send_signal(signal.SIGUSR1)
    assert answers(url + "/livez")
    process.send_signal(number)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 0, err
    assert out == ""
    for line in err.splitlines():
        json.loads(line)


@pytest.mark.parametrize("command", ["gateway", "up"])
def test_port_taken_is_one_line_that_names_the_option(small: Path, command: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(command, "--config", small, "--port", port)
    assert done.returncode == 1
    assert (
        done.stderr == f"tidegate: port {port} on 127.0.0.1 is in use; choose another with --port N (make run PORT=N)\n"
    )


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--region", "nowhere"], "--region: there is no region 'nowhere'"),
        (["--backend", "eu-west=http://127.0.0.1:1"], "region 'eu-west' has no managed backend"),
        (["--backend", "x"], "region 'x' has no managed backend"),
    ],
)
def test_gateway_refuses_options_that_do_not_fit_the_file(small: Path, options: list[str], said: str) -> None:
    done = run("gateway", "--config", small, *options)
    assert (done.returncode, done.stdout) == (2, "")
    assert said in done.stderr
    assert one_line(done.stderr)


def test_demo_key_does_not_start_beyond_loopback() -> None:
    done = run("gateway", "--config", LOCAL, environ={"TIDEGATE_GATEWAY__LISTEN": "0.0.0.0:0"})
    assert done.returncode == 2
    assert DEMO_KEY_HASH not in done.stderr
    assert "tenants.0.keys.0: the key 'tidegate-demo' is public" in done.stderr


# --- worker


def test_worker_becomes_the_workers_own_program(tmp_path: Path) -> None:
    (tmp_path / "regions" / "worker").mkdir(parents=True)
    (tmp_path / "regions" / "__init__.py").touch()
    (tmp_path / "regions" / "worker" / "__init__.py").touch()
    (tmp_path / "regions" / "worker" / "__main__.py").write_text("import os, sys; print(os.getpid(), sys.argv[1:])")
    script = shutil.which("tidegate") or Path(sys.executable).with_name("tidegate")
    command = [sys.executable, script, "worker", "--region", "eu-west", "--port", "1", "--config", "x.yaml"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as process:
        out, _ = process.communicate(timeout=60)
    assert out.startswith(f"{process.pid} ['--region', 'eu-west', '--config', 'x.yaml', '--port', '1']")
