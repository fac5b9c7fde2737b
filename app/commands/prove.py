"""`tidegate prove`: whether a statement holds over a whole configuration, or the smallest counterexample."""

import json
import shlex
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from app.config import environment
from app.law import load_reviewed
from app.policy.prove import Counterexample, Coverage, Proof, prove
from app.policy.statement import StatementInvalid, parse


class _Unclear(click.ClickException):
    exit_code = 2


@click.command("prove", short_help="Check a statement about the whole configuration.")
@click.argument("words", nargs=-1, required=True, metavar="STATEMENT")
@click.option("--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--json", "as_json", is_flag=True, help="Print the answer as JSON.")
@click.pass_context
def command(ctx: click.Context, words: tuple[str, ...], config: Path, as_json: bool) -> None:
    """Check a STATEMENT such as "DE only reaches EEA" over every tenant, instrument and day; sends nothing.

    \b
    SUBJECT never|only reaches REGIONS-OR-COUNTRIES [for TENANT] [until DATE]

    SUBJECT is an ISO 3166 code in capitals (DE, US-CA) or an area of the law files (EEA, EU, UK); the places are ids of
    regions, countries or areas with commas or `or` between them. Without `until`, the next two years are checked.

    Exit 0 where it holds; 1 where it does not, with the request that departs least from a plain one; 2 where the
    statement or the configuration cannot be read.
    """  # noqa: D301 - \b is click's mark for a paragraph that it must not wrap
    today = datetime.now(UTC).date()
    try:
        statement = parse(" ".join(words))
        settings, law, _ = load_reviewed(config, environment(), today)  # the answer itself says how far reviews go
        proof = prove(statement, settings, law, today)
    except StatementInvalid as error:
        raise _Unclear(str(error)) from error
    if as_json:
        click.echo(json.dumps(_as_json(proof, config), ensure_ascii=False))
    else:
        click.echo("\n".join(_as_text(proof, config)))
    ctx.exit(0 if proof.holds else 1)


def _as_text(proof: Proof, config: Path) -> list[str]:
    found, statement = proof.counterexample, proof.statement
    if found is not None:
        return [
            f"does not hold: {statement}",
            f"smallest counterexample: {_request(found)} may be served in {_place(found)}",
            f"see it: {_explain(found, config)}",
        ]
    places = ", ".join(statement.places)
    return [
        f"holds: {statement}",
        *_searched(proof.covered),
        f"{statement.subject} may be served in: {_list(proof.reached)}; {places} means: {_list(proof.inside)}",
    ]


def _searched(covered: Coverage) -> Iterator[str]:
    counts = {
        "tenant": len(covered.tenants),
        "instrument": covered.instruments,
        "subject code": len(covered.subjects),
        "region": covered.regions,
        "law": covered.laws,
    }
    things = ", ".join(f"{n} {name}{'' if n == 1 else 's'}" for name, n in counts.items())
    days = f"every day until {covered.last} (checked: {len(covered.days)}, as nothing changes in between)"
    yield f"covered: {things}, {days}, {covered.decisions} decisions; more evidence, X-Region and switches only narrow"
    if covered.reviewed_until < covered.last:
        yield f"the law is reviewed until {covered.reviewed_until} only; later days take it as it stands"


def _list(names: tuple[str, ...]) -> str:
    return ", ".join(names) or "no region"


def _request(found: Counterexample) -> str:
    headers = ", ".join(f"{name}: {value}" for name, value in found.headers.items()) or "no header"
    purpose = f" for the purpose {found.ask.purpose}" if found.ask.purpose else ""
    return f"tenant {found.tenant} on {found.ask.day} with {headers}{purpose}"


def _place(found: Counterexample) -> str:
    region, verdict = found.region, found.verdict
    scope = ", of global scope" if region.upstream_scope == "global" else ""
    return f"{region.id} ({region.country}{scope}): {verdict.reason} by {verdict.rule} ({verdict.law})"


def _explain(found: Counterexample, config: Path) -> str:
    """The command that shows the decision about the counterexample."""
    ask = found.ask
    options = {
        "--config": str(config),
        "--tenant": found.tenant,
        "--subject": ask.subject,
        "--transfer-basis": ask.basis,
        "--gpc": "1" if ask.gpc else None,
        "--purpose": ask.purpose,
        "--region": found.region.id,
        "--at": str(ask.day),
    }
    words = [word for name, value in options.items() if value for word in (name, value)]
    return shlex.join(["tidegate", "explain", *words])


def _as_json(proof: Proof, config: Path) -> dict[str, Any]:
    covered, found = proof.covered, proof.counterexample
    return {
        "statement": str(proof.statement),
        "holds": proof.holds,
        "counterexample": found
        and {
            "tenant": found.tenant,
            "day": str(found.ask.day),
            "headers": found.headers,
            "purpose": found.ask.purpose,
            "region": found.region.id,
            "reason": found.verdict.reason.value,
            "rule": found.verdict.rule,
            "law": found.verdict.law,
            "explain": _explain(found, config),
        },
        "reached": list(proof.reached),
        "named": list(proof.inside),
        "covered": {
            "tenants": list(covered.tenants),
            "instruments": covered.instruments,
            "subjects": list(covered.subjects),
            "regions": covered.regions,
            "laws": covered.laws,
            "reviewed_until": str(covered.reviewed_until),
            "from": str(covered.first),
            "to": str(covered.last),
            "days": [str(day) for day in covered.days],
            "decisions": covered.decisions,
        },
    }
