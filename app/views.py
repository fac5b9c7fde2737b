"""What may be looked at without sending anything: models, regions, readiness, and explanations of decisions."""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from app.access import Principal
from app.activity import Activity
from app.audit.writer import Trail
from app.config import Settings
from app.configuration import Configuration
from app.dry_run import ExplainRequest, Malformed, explain
from app.errors import InvalidRequest, ModelNotFound, NoHealthyRegion
from app.exchange import Exchange
from app.fleet.prober import Prober
from app.fleet.registry import Registry
from app.policy.explain import Explanation


@dataclass(frozen=True, slots=True)
class Views:
    """Read-only answers about the gateway's own state."""

    configuration: Configuration
    since: datetime
    registry: Registry
    prober: Prober
    trail: Trail
    activity: Activity

    @property
    def _settings(self) -> Settings:
        return self.configuration.settings

    def models(self) -> dict[str, tuple[str, ...]]:
        return self.registry.models()

    def regions(self) -> list[dict[str, Any]]:
        return self.registry.describe()

    def readiness(self) -> dict[str, Any]:
        """Ready once every managed backend has been heard of, while any region is up and the audit can be written."""
        down = {region.id for region in self._settings.regions if not region.backends}
        up = [state.id for state in self.registry.states().values() if state.up and state.id not in down]
        ready = self.registry.ready() and self.trail.trusted and (bool(up) or len(down) == len(self._settings.regions))
        status = "draining" if self.activity.draining else "ready" if ready else "not ready"
        return {"status": status, "regions_up": up}

    def in_force(self) -> dict[str, str]:
        """The configuration by its digests, and since when (UTC) it is in force."""
        digests = {"digest": self.configuration.digest, "policy_digest": self.configuration.ground.book.digest}
        return {**digests, "since": self.since.isoformat(timespec="seconds")}

    def serving_now(self, model: str) -> bool:
        """Whether any region that serves a model is up; raises `ModelNotFound` where none is configured to."""
        regions = self.models().get(model)
        if regions is None:
            raise ModelNotFound(param="model", model=model)
        states = self.registry.states()
        return any(states[region].up for region in regions)

    async def describe_model(self, model: str, version: str | None) -> dict[str, Any]:
        """KServe metadata as a worker tells it; raises `ModelNotFound` or `NoHealthyRegion`."""
        up = self.serving_now(model)
        found = await self.prober.describe_model(self.registry, model)
        if found is not None and (version is None or version in found.get("versions", ())):
            return found
        if up:
            raise ModelNotFound(param="model", model=f"{model}/versions/{version}" if version else model)
        raise NoHealthyRegion.among(self.models()[model])

    def explain(self, exchange: Exchange, principal: Principal, options: ExplainRequest) -> Explanation | Malformed:
        """A dry run at the caller's place; another tenant's needs the scope `admin`."""
        tenant = principal.tenant
        if options.tenant not in (None, tenant.id):
            principal.require("admin")
            found = self._settings.tenant(options.tenant or "")
            if found is None:
                raise InvalidRequest(
                    "field_value", param="tenant", expected=[each.id for each in self._settings.tenants]
                )
            tenant = found
        return explain(
            options,
            settings=self._settings,
            ground=self.configuration.ground,
            tenant=tenant,
            states=list(self.registry.states().values()),
            origin=exchange.caller.place if exchange.caller else None,
            today=datetime.now(UTC).date(),
            homes=self.registry.homes,
        )
