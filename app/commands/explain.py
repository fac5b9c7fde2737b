"""`tidegate explain`: the residency decision and ranking for a request, from the configuration alone."""

import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import click
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from app.caller import Geo, locate
from app.commands.tables import show, table
from app.config import Settings, Tenant, environment
from app.dry_run import ExplainRequest, Malformed, NamedEvidence, all_up, explain
from app.errors import GatewayError, InvalidRequest
from app.fields import Fields
from app.i18n import LOCALES, Translator
from app.law import load_all
from app.policy.explain import Explanation
from app.policy.ground import Ground
from app.types import Head


class _Refused(click.ClickException):
    exit_code = 2


class _Named(click.ParamType[NamedEvidence]):
    """SOURCE=CODE."""

    name = "SOURCE=CODE"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> NamedEvidence:
        source, _, code = value.partition("=")
        if not source or not code:
            self.fail(f"{value!r} is not SOURCE=CODE, such as geoip=GB", param, ctx)
        return NamedEvidence(source=source, code=code)


class _Regions(click.ParamType[tuple[str, ...]]):
    """Ids with commas between them."""

    name = "A,B"

    def convert(self, value: str | tuple[str, ...], _param: click.Parameter | None, _ctx: object) -> tuple[str, ...]:
        return value if isinstance(value, tuple) else tuple(part.strip() for part in value.split(",") if part.strip())


@click.command("explain", short_help="Say where a request may be served, and why.")
@click.option("--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The configuration.")
@click.option("--subject", metavar="S", help="ISO 3166 code of the person whose data it is, as X-Data-Subject.")
@click.option("--tenant", metavar="T", help="The tenant that asks; else the only one.")
@click.option("--region", metavar="R", help="The region that is asked for, as X-Region.")
@click.option("--prefer", type=_Regions(), default=(), help="Regions to try in this order, as X-Region-Prefer.")
@click.option("--transfer-basis", metavar="ID", help="A registered instrument, as X-Transfer-Basis.")
@click.option("--gpc", multiple=True, metavar="V", help="Value of a Sec-GPC header; may be repeated.")
@click.option("--evidence", multiple=True, type=_Named(), help="A further sign of whose law applies; may be repeated.")
@click.option("--purpose", metavar="P", help="What the data is processed for.")
@click.option("--down", multiple=True, metavar="R", help="A region to count as down; may be repeated.")
@click.option("--disabled", multiple=True, metavar="K", help="A legal basis to switch off; may be repeated.")
@click.option(
    "--at", type=click.DateTime(["%Y-%m-%d"]), metavar="DATE", help="The day, such as 2026-12-31; else today."
)
@click.option("--json", "output_json", is_flag=True, help="Print the answer of POST /v1/route/explain.")
def command(config: Path, tenant: str | None, at: datetime | None, output_json: bool, **options: object) -> None:
    """Say which regions may serve such a request, by which rule, and which is tried first.

    Sends nothing: every region counts as up, except those named by --down. A refusal is an answer too: exit 0.
    """
    try:
        request = ExplainRequest.model_validate({**options, "tenant": tenant, "at": at.date() if at else None})
    except ValidationError as error:
        first = error.errors()[0]
        option = str(first["loc"][0]).replace("_", "-")
        raise click.UsageError(f"--{option}: {first['msg']}") from error
    try:
        answer = _explain(config, request, datetime.now(UTC).date())
    except GatewayError as error:
        raise _Refused(_told(error)) from error
    if output_json:
        click.echo(json.dumps(answer.as_json(), ensure_ascii=False))
    elif isinstance(answer, Malformed):
        raise _Refused(_told(answer.error))
    else:
        _print(answer)


def _told(error: GatewayError) -> str:
    return Translator(LOCALES).message(error.message_id, "en", {**error.values, "param": error.param})


def _explain(config: Path, request: ExplainRequest, today: date) -> Explanation | Malformed:
    settings, law = load_all(config, environment())
    nobody = Head("POST", "/v1/route/explain", Fields(), None)
    return explain(
        request,
        settings=settings,
        ground=Ground.lay(law, settings.regions),
        tenant=_tenant(settings, request.tenant),
        states=all_up(settings),
        origin=locate(nobody, settings, Geo()).place,
        today=today,
    )


def _tenant(settings: Settings, name: str | None) -> Tenant:
    if name is None and len(settings.tenants) == 1:
        return settings.tenants[0]
    names = [tenant.id for tenant in settings.tenants]
    if name is None:
        raise click.UsageError(f"--tenant is needed, one of: {', '.join(names)}")
    found = settings.tenant(name)
    if found is None:
        raise InvalidRequest("field_value", param="tenant", expected=names)
    return found


def _print(explanation: Explanation) -> None:
    answer = f"{explanation.status} {explanation.code or 'served'}: {explanation.reason} by {explanation.rule}"
    order: Sequence[str] = explanation.ranked
    lines = [f"{answer} ({explanation.law})", f"regions in order: {', '.join(order) or 'none'}"]
    for line in lines:
        Console(highlight=False).print(Text(line), soft_wrap=True)
    regions = table("region", "permitted", "reason", "rule", "law", "km", "rtt ms", "total")
    for verdict in explanation.verdicts:
        score = explanation.scores[verdict.region]
        distance = "" if score.distance_km is None else f"{score.distance_km:.0f}"
        figures = (distance, f"{score.rtt_ms:.1f}", f"{score.total:.1f}")
        permitted = Text("yes", "green") if verdict.permitted else Text("no", "red")
        texts = (verdict.reason.value, verdict.rule, verdict.law, *figures)
        regions.add_row(Text(verdict.region), permitted, *map(Text, texts))
    show(regions)
