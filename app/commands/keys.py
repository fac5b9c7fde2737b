"""`tidegate keys`: API keys of tenants, made, listed and revoked in the configuration file."""

import hashlib
import json
import secrets
from pathlib import Path

import click

from app.commands.tables import show, table
from app.config import Settings, Tenant, environment
from app.settings_edit import add_key, edit, lay, remove_key
from app.settings_file import load

_SHA = "sha256:"
_SHOWN = 8
_config = click.option(
    "--config", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The configuration."
)


@click.group("keys")
def command() -> None:
    """Make, list and revoke API keys. Only their hashes are stored."""


@command.command("new")
@_config
@click.option("--tenant", required=True, metavar="ID", help="Whose key it is.")
@click.option(
    "--template",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="First write the configuration from this file, keeping its keys; make a key only where the tenant has none.",
)
def new(config: Path, tenant: str, template: Path | None) -> None:
    """Make a key for a tenant and print it, once."""
    if template:
        _lay(template, config)
    found = _require(_load(config), tenant)
    if template and found.keys:
        click.echo(f"Tenant {tenant} keeps its keys in {config}; the rest is as in {template}.", err=True)
        return
    key = "tg_" + secrets.token_urlsafe(32)
    digest = hashlib.sha256(key.encode()).hexdigest()
    edit(config, environment(), lambda data: add_key(data, tenant, _SHA + digest))
    click.echo(key)
    click.echo(
        f"Key {digest[:_SHOWN]} of tenant {tenant}: keep it now, it is not stored and will not be shown again. "
        "A running gateway takes it within seconds.",
        err=True,
    )


@command.command("list")
@_config
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def list_(config: Path, as_json: bool) -> None:
    """List the keys: tenant, first hex digits of the hash (the audit's key_id), scopes."""
    settings = _load(config)
    rows = [
        {"tenant": tenant.id, "key_id": key.removeprefix(_SHA)[:_SHOWN], "scopes": list(tenant.scopes)}
        for tenant in settings.tenants
        for key in tenant.keys
    ]
    if as_json:
        click.echo(json.dumps(rows))
        return
    found = table("tenant", "key_id", "scopes")
    for row in rows:
        found.add_row(str(row["tenant"]), str(row["key_id"]), ", ".join(row["scopes"]))
    show(found)


@command.command("revoke")
@_config
@click.argument("key_id")
def revoke(config: Path, key_id: str) -> None:
    """Revoke the key whose hash begins with KEY_ID."""
    settings = _load(config)
    prefix = key_id.removeprefix(_SHA).lower()
    found = [(tenant.id, key) for tenant in settings.tenants for key in tenant.keys if key.startswith(_SHA + prefix)]
    if len(prefix) < _SHOWN or len(found) != 1:
        what = f"{len(found)} keys begin with it" if len(prefix) >= _SHOWN else f"give at least {_SHOWN} hex digits"
        raise click.UsageError(f"{key_id!r} names no one key: {what}; `tidegate keys list` shows them")
    tenant, key = found[0]
    edit(config, environment(), lambda data: remove_key(data, tenant, key))
    click.echo(f"Key {prefix[:_SHOWN]} of tenant {tenant} is revoked. A running gateway refuses it within seconds.")


def _load(config: Path) -> Settings:
    # A leaked key is revoked from wherever one stands, also where the backends' secrets are not known.
    return load(config, environment(), secrets=False)


def _lay(template: Path, config: Path) -> None:
    if not config.parent.is_dir():
        raise click.UsageError(f"there is no directory {config.parent} to write {config.name} in; make it first")
    lay(template, config, environment())


def _require(settings: Settings, tenant: str) -> Tenant:
    found = settings.tenant(tenant)
    if found is None:
        known = ", ".join(one.id for one in settings.tenants)
        raise click.UsageError(f"there is no tenant {tenant!r}; configured: {known}")
    return found
