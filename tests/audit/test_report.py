"""Reports from real records: what each law asks for is counted right, and a report is the same text every time."""

import asyncio
import csv
import io
import itertools
import json
import re
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from datetime import UTC, date, datetime, timedelta
from functools import cache
from pathlib import Path

import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from app.audit import record
from app.audit.report import form as report_form
from app.audit.report.document import LAWS, compiled
from app.audit.report.tables import Facts, LogState
from app.audit.report.tally import MANY, OTHER, Period, tally
from app.audit.writer import Trail
from app.cli import tidegate
from app.law import load_law
from app.policy.ground import Ground
from app.policy.residency import decide
from app.settings_file import load_text
from app.types import Evidence, Question
from tests.running import KEY, running

GOLDEN = Path(__file__).parent / "reports"
YEAR = Period(date(2026, 1, 1), date(2026, 12, 31))
FILE = Path("configs/example.yaml")
CONFIG = """
version: 1
regions:
  - {id: eu-west, country: IE, latitude: 53.3, longitude: -6.3, operator: {name: acme-eu, group: acme}}
  - {id: us-east, country: US, subdivision: US-VA, latitude: 38.9, longitude: -77.4,
     operator: {name: "=acme|us", group: acme}}
  - {id: jp-east, country: JP, latitude: 35.7, longitude: 139.7, operator: {name: acme-jp, role: third_party}}
  - {id: ap-southeast, country: SG, latitude: 1.35, longitude: 103.8, operator: {name: acme-sg}}
residency: {posture: transfer}
tenants:
  - id: shop
    instruments:
      - {id: scc-us, type: scc, to: [US], valid: [2026-01-01, 2027-12-31], tia_valid: [2026-01-01, 2027-12-31]}
      - {id: sg-us, type: contract, law: sg_pdpa, to: [US], valid: [2026-01-01, 2027-12-31]}
  - {id: bank}
"""


@cache
def configured():
    settings = load_text(CONFIG, FILE, {})
    book = load_law(settings, FILE.parent)
    return settings, book, Ground.lay(book, settings.regions)


class World:
    """Makes the records that a gateway of the configuration above would."""

    def __init__(self):
        self.settings, self.book, self.ground = configured()
        self.records = []
        self._time = itertools.count()
        self._ids = itertools.count(1)

    def now(self):
        return datetime(2026, 3, 1, tzinfo=UTC) + timedelta(hours=next(self._time))

    def decision(self, *codes, tenant="shop", region=None, gpc=False, time=None, **given):
        """Decides on a request for a person of these codes as the gateway does, and records that."""
        time = time or self.now()
        question = Question(tenant, tuple(Evidence("header", code) for code in codes), time.date(), region, gpc=gpc)
        decided = decide(question, self.settings.tenant(tenant), self.settings.residency, self.ground)
        chosen = decided.permitted[0] if decided.permitted else None
        made = record.decision(
            id=f"d{next(self._ids)}",
            time=time,
            request_id="r",
            outcome="permitted" if chosen else "refused",
            tenant=tenant,
            key_id="00000000",
            question=question,
            decided=decided,
            verdict=next((one for one in decided.verdicts if one.region == chosen), None),
            region=chosen,
            **{"model": "minilm", "status": None if chosen else decided.status, "code": decided.code, **given},
        )
        return self._add(chosen or "gateway", made)

    def completion(self, decision, outcome="served", attempts=None, time=None, **given):
        if attempts is None:
            attempts = [(decision["region"], "answered")] if outcome == "served" else []
        tried = [record.Attempt(region, how, 200 if how == "answered" else None) for region, how in attempts]
        arrived = any(one.outcome != "refused" for one in tried)
        made = record.completion(
            id=f"c{next(self._ids)}",
            time=time or self.now(),
            decision=decision,
            outcome=outcome,
            status=200,
            attempts=tried,
            **{"body_may_have_arrived": arrived, **given},
        )
        return self._add(decision["region"] or "gateway", made)

    def request(self, *codes, outcome="served", attempts=None, cache=None, arrived=False, **given):
        decision = self.decision(*codes, **given)
        if decision["outcome"] == "refused":
            return self.completion(decision, "refused", code=decision["code"], body_may_have_arrived=arrived)
        return self.completion(decision, outcome, attempts, cache=cache)

    def event(self, kind, outcome, log="gateway", **detail):
        made = record.event(
            kind=kind, id=f"e{next(self._ids)}", time=self.now(), outcome=outcome, detail=detail, tenant="shop"
        )
        return self._add(log, made)

    def _add(self, log, made):
        seq = 1 + sum(each["log"] == log for each in self.records)
        # Through its canonical bytes, as it comes from a log.
        self.records.append(json.loads(record.canonical(record.numbered(made, log, seq))))
        return made

    def figures(self, law="gdpr", *, tenant=None, period=YEAR, settings=True):
        laws = [one for one in self.book.laws if one.id in LAWS[law]]
        regions = self.settings.regions if settings else ()
        return tally(self.records, laws=laws, period=period, tenant=tenant, regions=regions)

    def report(self, law="gdpr", *, tenant=None, period=YEAR, settings=True):
        figures = self.figures(law, tenant=tenant, period=period, settings=settings)
        facts = Facts.of(
            figures,
            laws=LAWS[law],
            tenant=tenant,
            settings=self.settings if settings else None,
            book=self.book,
            logs=self.logs(),
            whole=True,
        )
        return compiled(law, facts, period)

    def logs(self, floor=0):
        last = Counter(each["log"] for each in self.records)
        return [LogState(log, floor + 1, last[log], floor, last[log], "cm9vdA==") for log in sorted(last)]


@pytest.fixture
def world():
    return World()


def table(report, section):
    """A section's rows, each as an object by column."""
    found = next(each for each in report.sections if each.id == section)
    return [dict(zip(found.columns, row, strict=True)) for row in found.rows]


def lived(world):
    """A little of everything that can happen."""
    for codes, asked in [
        (["DE"], {}),
        (["DE"], {"region": "us-east"}),
        (["FR"], {"region": "jp-east"}),
        (["FR"], {"region": "ap-southeast"}),
        (["FR"], {"region": "eu-west", "cache": "HIT", "attempts": []}),
        (["DE", "SG"], {"region": "us-east"}),
        (["SG"], {"region": "us-east"}),
        (["SG"], {"region": "ap-southeast"}),
        (["SG"], {"region": "eu-west"}),
        (["TH"], {"region": "ap-southeast"}),
        (["US-CA"], {"region": "us-east"}),
        (["US-CA"], {"region": "jp-east", "gpc": True}),
        (["US-CA"], {"gpc": True}),
        (["US-NY"], {}),
    ]:
        world.request(*codes, **asked)
    world.request("DE", tenant="bank", region="us-east", arrived=True)
    world.request("DE", attempts=[("eu-west", "timeout"), ("us-east", "answered")], region=None)
    world.completion(world.decision("DE"), "lost", body_may_have_arrived=True)
    world.completion(world.decision("DE"), "failed", [("eu-west", "refused")], code="no_healthy_region")
    world.decision("DE")
    world.event("erasure", "erased", "eu-west", records=7)
    world.event("read", "access", filters=["subject"], records=7)
    world.event("read", "answered", filters=["from"], records=100)
    world.event("hold", "placed", "eu-west", tenant=None)
    world.event("retention", "deleted", "eu-west", records=256, floor=256)
    return world


@pytest.mark.parametrize(
    ("law", "form", "ending"),
    [
        ("gdpr", report_form.markdown, "md"),
        ("ccpa", report_form.as_json, "json"),
        ("pdpa", report_form.as_csv, "csv"),
    ],
)
def test_a_report_is_written_as_it_was_reviewed(world, law, form, ending):
    text = form(lived(world).report(law))
    golden = GOLDEN / f"{law}.{ending}"
    assert text == golden.read_bytes().decode()
    assert form(world.report(law)) == text


# --- which requests count


def test_a_law_counts_the_requests_of_those_whom_it_protects_and_only_them(world):
    for codes in (["DE"], ["DE-BY"], ["NO"], ["GB"], ["SG"], ["US-CA"], ["US"], ["DE", "US-CA"]):
        world.request(*codes)
    counted = {law: sum(world.figures(law).requests.values()) for law in LAWS}
    assert counted == {"gdpr": 4, "ccpa": 2, "pdpa": 1}
    assert world.figures("gdpr").elsewhere == 4


def test_a_tenants_report_has_nothing_of_others(world):
    world.request("DE")
    world.request("DE", tenant="bank")
    world.request("DE", tenant="bank")
    assert sum(world.figures(tenant="bank").requests.values()) == 2
    assert set(world.figures(tenant="bank").models) == {("bank", "minilm")}
    controllers = table(world.report(tenant="bank"), "controllers")
    assert [row["tenant"] for row in controllers if row["function"] == "controller"] == ["bank"]
    assert {row["tenant"] for row in table(world.report(tenant="bank"), "instruments")} == set()


def test_a_request_counts_on_the_day_of_its_decision_and_its_end_up_to_a_day_later(world):
    midnight = datetime(2027, 1, 1, tzinfo=UTC)
    before = world.decision("DE", time=midnight - timedelta(microseconds=1))
    world.completion(before, time=midnight + timedelta(hours=23))
    late = world.decision("DE", time=midnight - timedelta(hours=1))
    world.completion(late, time=midnight + timedelta(days=1))
    next_year = world.decision("DE", time=midnight)
    world.completion(next_year, time=midnight)
    figures = world.figures()
    assert sum(figures.requests.values()) == 2
    assert figures.ends == {("gdpr", "served", ""): 1}
    assert figures.open == {("gdpr",): 1}
    assert sum(world.figures(period=Period(date(2027, 1, 1), date(2027, 1, 1))).ends.values()) == 1


# --- where data went


def test_data_that_leaves_the_eea_is_a_transfer_with_its_basis_and_data_that_stays_is_none(world):
    for region in ("eu-west", "us-east", "us-east", "jp-east"):
        world.request("DE", region=region)
    report = world.report()
    assert [(row["country"], row["recipient"], row["requests"]) for row in table(report, "inside:gdpr")] == [
        ("IE", "acme-eu", 1)
    ]
    abroad = {(row["country"], row["basis"], row["article"], row["requests"]) for row in table(report, "outside:gdpr")}
    assert abroad == {
        ("US-VA", "standard contractual clauses, Art. 46(2)(c)", "GDPR 46(2)(c)", 2),
        ("JP", "adequacy decision, Art. 45", "GDPR 45", 1),
    }


def test_every_region_that_a_body_may_have_reached_counts_once_and_one_that_refused_the_connection_does_not(world):
    decision = world.decision("DE")
    tries = [("us-east", "timeout"), ("us-east", "status"), ("jp-east", "refused"), ("eu-west", "answered")]
    world.completion(decision, attempts=tries)
    flows = {(row["region"], row["requests"]) for row in table(world.report(), "outside:gdpr")}
    assert flows == {("us-east", 1)}
    assert [row["region"] for row in table(world.report(), "inside:gdpr")] == ["eu-west"]


def test_a_kept_answer_sends_nothing_anywhere(world):
    world.request("DE", region="us-east", attempts=[], cache="HIT")
    assert table(world.report(), "outside:gdpr") == []
    assert world.figures().unsent == {("gdpr", "us-east"): 1}


def test_where_another_laws_rule_decided_the_basis_is_left_to_the_controller(world):
    world.request("DE", "SG", region="us-east")
    (transfer,) = table(world.report("gdpr"), "outside:gdpr")
    assert (transfer["basis"], transfer["rule and instrument"]) == (None, "sg-contract:sg-us")
    (transfer,) = table(world.report("pdpa"), "outside:sg_pdpa")
    assert transfer["basis"] == "contract, reg 11(1)(b)"


def test_without_a_configuration_no_country_and_no_operator_is_invented(world):
    lived(world)
    report = world.report(settings=False)
    rows = table(report, "inside:gdpr") + table(report, "outside:gdpr")
    assert sum(row["requests"] for row in rows) == sum(world.figures().flows.values())
    assert {(row["country"], row["recipient"], row["role"]) for row in rows} == {(None, None, None)}
    assert {row["name"] for row in table(report, "recipients")} == {None}
    assert table(report, "limits")[0]["kept"] is None


# --- what else an officer is asked for


def test_refusals_by_reason_say_whether_a_body_may_have_arrived(world):
    for arrived in (True, False, False):
        world.request("FR", region="ap-southeast", arrived=arrived)
    (row,) = table(world.report(), "refusals")
    assert (row["error"], row["reason"], row["article"]) == ("residency_denied", "DENY_NO_BASIS", "GDPR 44")
    assert (row["requests"], row["body may have arrived"]) == (3, 1)


def test_lost_and_unended_requests_are_told(world):
    world.completion(world.decision("DE"), "lost", body_may_have_arrived=True)
    world.completion(world.decision("DE"), "lost", body_may_have_arrived=False)
    world.decision("DE")
    ends = {row["end"]: row["requests"] for row in table(world.report(), "ends")}
    assert ends["not known: the gateway was stopped, or could not write"] == 2
    assert ends["of these, body may have arrived"] == 1
    assert ends["no end within a day of the period"] == 1
    assert ends["answered"] == 0


def test_opt_out_signals_count_where_they_kept_data_from_a_third_party(world):
    world.request("US-CA", gpc=True, region="jp-east")
    world.request("US-CA", gpc=True)
    world.request("US-CA", region="jp-east")
    world.request("US-CA", gpc=True, region="jp-east", time=datetime(2025, 12, 31, tzinfo=UTC))
    report = world.report("ccpa")
    assert [row["requests"] for row in table(report, "signals")] == [1, 1]
    metric = next(row for row in table(report, "metrics") if row["point"] == "(D)")
    assert metric["recorded here"] == 2
    assert [row["role"] for row in table(report, "disclosures") if row["region"] == "jp-east"] == ["third_party"]


def test_what_the_trail_cannot_know_of_consumer_requests_is_left_to_the_controller(world):
    world.event("erasure", "erased", "eu-west", records=3)
    rows = table(world.report("ccpa"), "metrics")
    assert rows[0]["recorded here"] == 1
    owed = ("received", "complied with", "denied", "median days")
    assert {row[column] for row in rows for column in owed} == {None}


def test_erasures_accesses_and_holds_are_told_by_article(world):
    lived(world)
    told = {(row["event"], row["outcome"]): row["article"] for row in table(world.report(), "rights")}
    assert told == {
        ("erasure", "erased"): "Art. 17",
        ("hold", "placed"): "Art. 17(3)(e)",
        ("read", "access"): "Art. 15",
        ("read", "answered"): "Art. 32(1)(b)",
        ("retention", "deleted"): "Art. 5(1)(e)",
    }
    assert table(world.report(), "erasures") == [{"day": "2026-03-02", "records": 1}]


def test_a_tenants_report_has_its_own_events_and_those_that_concern_all(world):
    world.event("erasure", "erased", "eu-west", tenant="bank", records=1)
    world.event("hold", "placed", tenant=None)
    world.event("hold", "placed", tenant="shop")
    world.event("read", "access", filters=["subject"])
    told = {row["event"]: row["records"] for row in table(world.report(tenant="bank"), "rights")}
    assert told == {"erasure": 1, "hold": 1}
    told = {row["event"]: row["records"] for row in table(world.report(tenant="shop"), "rights")}
    assert told == {"hold": 2, "read": 1}


@pytest.mark.parametrize(("country", "law"), [("TH", "th_pdpa"), ("MY", "my_pdpa")])
def test_thailand_and_malaysia_are_told_of_where_the_records_show_them(world, country, law):
    world.request("SG")
    assert law not in str(world.report("pdpa"))
    world.request(country)
    assert {f"inside:{law}", f"outside:{law}"} <= {section.id for section in world.report("pdpa").sections}


def test_retention_that_reaches_into_the_period_is_told(world):
    lived(world)

    def told(floor, whole=True):
        facts = Facts.of(
            world.figures(),
            laws=LAWS["gdpr"],
            tenant=None,
            settings=None,
            book=world.book,
            logs=[LogState("us-east", floor + 1, 7, floor, None, None)],
            whole=whole,
        )
        section = next(each for each in compiled("gdpr", facts, YEAR).sections if each.id == "logs")
        return [note for note in section.notes if "retention may have deleted" in note]

    assert told(0) == []
    assert len(told(256)) == 1
    world.records = [each for each in world.records if each["log"] != "us-east" or each["seq"] > 3]
    assert told(3) == told(256) != []
    assert told(1) == []
    assert told(1, whole=False) != []


# --- as text


def test_text_that_callers_chose_breaks_no_table_and_is_no_formula(world):
    hostile = '=HYPERLINK("http://x")|<b>*x*\n| a'
    world.request("DE", model=hostile)
    report = world.report()
    assert table(report, "processing")[0]["model"] == hostile
    (line,) = [each for each in report_form.markdown(report).splitlines() if "HYPERLINK" in each]
    assert len(re.findall(r"(?<!\\)\|", line)) == 6
    assert "<" not in re.sub(r"\\<", "", line)
    cells = [row["value"] for row in csv.DictReader(io.StringIO(report_form.as_csv(report)))]
    assert [cell for cell in cells if "HYPERLINK" in cell] == ['\'=HYPERLINK("http://x")|<b>*x* | a']
    assert json.loads(report_form.as_json(report))["sections"][2]["rows"][0]["model"] == hostile


@given(st.text(st.characters(exclude_categories=["Cs"]), max_size=30))
@examples(deadline=None)
def test_no_cell_of_a_csv_begins_as_a_formula_does(text):
    world = World()
    world.request("DE", model=text)
    for row in csv.reader(io.StringIO(report_form.as_csv(world.report()), newline="")):
        assert not [cell for cell in row if cell.strip()[:1] in set("=+-@\uff1d\uff0b\uff0d\uff20")]


def test_every_form_holds_every_figure(world):
    report = lived(world).report()
    cells = sum(len(section.rows) * len(section.columns) for section in report.sections)
    assert len(list(csv.DictReader(io.StringIO(report_form.as_csv(report))))) == cells
    sections = json.loads(report_form.as_json(report))["sections"]
    assert sum(len(row) for section in sections for row in section["rows"]) == cells
    text = report_form.markdown(report)
    assert [section.title for section in report.sections] == re.findall(r"^## \d+\. (.*)$", text, re.MULTILINE)


# --- bounds


def test_memory_stays_bounded_whatever_the_records_say(world):
    sample = world.decision("DE")
    world.completion(sample)
    decided, ended = world.records
    many = (
        each
        for number in range(MANY + 50)
        for each in (
            {**decided, "id": f"x{number}", "subject_country": f"{number}"},
            {**ended, "decision_id": f"x{number}", "model": f"{number}"},
        )
    )
    laws = [one for one in world.book.laws if one.id == "gdpr"]
    figures = tally(many, laws=laws, period=YEAR, tenant=None, regions=())
    assert len(figures.models) == len(figures.requests) == MANY + 1
    assert figures.models["shop", OTHER] == 50
    unended = ({**decided, "id": f"x{number}"} for number in range(MANY + 50))
    assert tally(unended, laws=laws, period=YEAR, tenant=None, regions=()).open == {("gdpr",): MANY + 50}


# --- the command


async def written(world, directory):
    """The world's records in a real trail below a directory, and the configuration beside it."""
    file = directory / "gateway.yaml"
    file.write_text(f"{CONFIG}audit: {{path: audit, retention: 36500d}}\n")
    settings = load_text(file.read_text(), file, {})
    trail = Trail(settings.audit, [*(region.id for region in settings.regions), "gateway"])
    await trail.start()
    try:
        for each in world.records:
            plain = {name: value for name, value in each.items() if name not in ("log", "seq")}
            if plain["kind"] == "decision":
                plain["subject"] = "ab" * 32 if each["log"] != "gateway" else None
            await trail.append(each["log"], [plain], 10)
    finally:
        await trail.close()
    return file


def ran(*arguments):
    result = CliRunner().invoke(tidegate, ["audit", "report", *map(str, arguments)])
    return result.exit_code, result.output if result.exception is None else f"{result.output}{result.exception!r}"


YEARLY = ("--from", "2026-01-01", "--to", "2026-12-31")


async def test_the_command_writes_what_the_records_of_a_trail_say(world, tmp_path):
    file = await written(lived(world), tmp_path)
    code, text = ran("--config", file, "--law", "gdpr", "--format", "json", *YEARLY)
    assert code == 0, text
    sections = {each["id"]: each for each in json.loads(text)["sections"]}
    told = {
        each.id: [dict(zip(each.columns, row, strict=True)) for row in each.rows] for each in world.report().sections
    }
    for section in told.keys() - {"logs", "limits"}:
        assert sections[section]["rows"] == told[section], section
    assert {row["log"] for row in sections["logs"]["rows"]} >= {"eu-west", "us-east", "gateway"}
    signed = {row["log"]: row["signed size"] for row in sections["logs"]["rows"]}
    assert signed["eu-west"] == next(row["last number"] for row in sections["logs"]["rows"] if row["log"] == "eu-west")


async def test_the_command_needs_no_configuration_and_no_private_key(world, tmp_path):
    await written(lived(world), tmp_path)
    shutil.rmtree(tmp_path / "keys")
    target = tmp_path / "report.csv"
    code, text = ran("--path", tmp_path / "audit", "--law", "pdpa", "--format", "csv", "-o", target, *YEARLY)
    assert (code, text) == (0, "")
    values = {row["value"] for row in csv.DictReader(io.StringIO(target.read_text(encoding="utf-8")))}
    assert "sg-contract:sg-us" in values
    assert "acme-sg" not in values


async def test_the_command_leaves_out_what_lies_outside_of_the_days_named(world, tmp_path):
    world.request("DE")
    world.request("DE", time=datetime(2026, 3, 5, 23, 59, 59, 999999, tzinfo=UTC))
    world.request("DE", time=datetime(2026, 3, 6, tzinfo=UTC))
    file = await written(world, tmp_path)
    code, text = ran(
        "--config", file, "--law", "gdpr", "--format", "json", "--from", "2026-03-05", "--to", "2026-03-05"
    )
    assert code == 0, text
    subjects = next(each for each in json.loads(text)["sections"] if each["id"] == "subjects")
    assert [(row["permitted"], row["refused"]) for row in subjects["rows"]] == [(1, 0)]


async def test_a_tenant_who_is_not_known_is_an_error_and_no_empty_report(world, tmp_path):
    world.request("DE")
    file = await written(world, tmp_path)
    code, text = ran("--config", file, "--law", "gdpr", "--tenant", "bank", *YEARLY)
    assert code == 0, text
    code, text = ran("--config", file, "--law", "gdpr", "--tenant", "bnak", *YEARLY)
    assert code == 2
    assert "there is no tenant 'bnak'" in text


async def test_a_record_that_cannot_be_read_is_told_in_one_line(world, tmp_path):
    world.request("DE")
    file = await written(world, tmp_path)
    with closing(sqlite3.connect(tmp_path / "audit" / "eu-west.db")) as log, log:
        log.execute("UPDATE records SET record = 'x' WHERE seq = 1")
    code, text = ran("--config", file, "--law", "gdpr", *YEARLY)
    assert code == 1
    assert "`tidegate audit verify` says which" in text


async def test_a_running_gateway_gives_the_same_report_as_its_files(tmp_path):
    wanted = ("--law", "gdpr", "--format", "json", "--from", "2020-01-01", "--to", "9999-12-31")
    config = ("--config", tmp_path / "tidegate.yaml")
    async with running(tmp_path, residency={"posture": "transfer"}) as gateway:
        await gateway.embed(X_Data_Subject="DE", X_Region="eu-west")
        await gateway.embed(X_Data_Subject="DE", X_Region="us-east")
        url = f"http://127.0.0.1:{gateway.port}"
        code, asked = await asyncio.to_thread(ran, *config, "--url", url, "--key", KEY, *wanted)
        assert code == 0, asked
        code, refused = await asyncio.to_thread(ran, "--url", url, "--key", "wrong", *wanted)
        assert (code, refused.count("\n")) == (1, 1), refused
    code, read = ran(*config, *wanted)
    assert code == 0, read
    one, other = ({each["id"]: each for each in json.loads(text)["sections"]} for text in (asked, read))
    # That the gateway was asked is an event, which its files hold as well by now.
    assert [name for name in one if one[name] != other[name]] == ["rights", "logs"]
    assert one["inside:gdpr"]["rows"] == [
        {
            "country": "IE",
            "region": "eu-west",
            "recipient": "acme-eu-west",
            "role": "processor",
            "basis": "within the EEA",
            "article": "GDPR 44",
            "rule and instrument": "gdpr-eu",
            "requests": 1,
        }
    ]
    assert [(row["error"], row["reason"], row["requests"]) for row in one["refusals"]["rows"]] == [
        ("residency_denied", "DENY_CERT_MISSING", 1)
    ]


def test_every_field_of_a_record_stands_in_the_table_of_other_schemas(world):
    lived(world)
    page = Path("docs/audit.md").read_text(encoding="utf-8").partition("## In other schemas")[2]
    rows = re.findall(r"^\| `(\w+)` \|(.*)\|$", page, re.MULTILINE)
    assert {name for name, _ in rows} == {field for each in world.records for field in each}
    assert len(rows) == len({name for name, _ in rows})
    assert all(row.count("|") == 2 for _, row in rows)


def test_wrong_usage_of_the_command_is_one_line(tmp_path):
    (tmp_path / "audit").mkdir()
    for arguments, told in [
        (("--law", "gdpr", "--from", "2026-02-01", "--to", "2026-01-01"), "is before --from"),
        (("--law", "hipaa", *YEARLY), "'hipaa' is not one of"),
        (("--law", "gdpr", "--from", "yesterday", "--to", "2026-01-01"), "does not match the format"),
        (("--law", "gdpr", *YEARLY), "there is no audit log in"),
    ]:
        code, text = ran("--path", tmp_path / "audit", *arguments)
        assert code == 2, text
        assert told in text
