"""What the trail's records say about one person, summed up as an answer to them must be (GDPR Art. 15(1)). Pure."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from app.config import Region


class _Flow(NamedTuple):
    """Where data went, and why that was permitted."""

    region: str
    reason: str | None
    rule: str | None
    law: str | None
    basis: str | None


class Disclosure:
    """Counts one person's records, each decision before its completion.

    `regions` as configured, to say who runs them and where; empty where no configuration is known.
    """

    def __init__(self, regions: Sequence[Region]) -> None:
        self._regions = {region.id: region for region in regions}
        self._decided: dict[str, Mapping[str, Mapping[str, Any]]] = {}
        self._models: Counter[str | None] = Counter()
        self._recipients: Counter[_Flow] = Counter()
        self._jurisdictions: set[str] = set()
        self._evidence: set[tuple[str, str]] = set()
        self._records = 0

    def take(self, record: Mapping[str, Any]) -> None:
        self._records += 1
        match record["kind"]:
            case "decision":
                self._decision(record)
            case "completion":
                self._completion(record)

    def as_json(self) -> dict[str, Any]:
        """Purposes; recipients with the basis on which each was permitted; whose laws applied, and why those."""
        return {
            "records": self._records,
            "purposes": [
                *[
                    {"purpose": "inference", "model": model, "requests": requests}
                    for model, requests in sorted(self._models.items(), key=lambda each: each[0] or "")
                ],
                {"purpose": "accountability", "records": self._records},
            ],
            "recipients": [
                self._recipient(flow, requests)
                for flow, requests in sorted(self._recipients.items(), key=lambda each: tuple(map(str, each[0])))
            ],
            "jurisdictions": sorted(self._jurisdictions),
            "evidence": [{"source": source, "code": code} for source, code in sorted(self._evidence)],
        }

    def _decision(self, record: Mapping[str, Any]) -> None:
        self._models[record["model"]] += 1
        self._jurisdictions.update(record["jurisdictions"])
        self._evidence.update((each["source"], each["code"]) for each in record["evidence"])
        self._decided[record["id"]] = {each["region"]: each for each in record["candidates"]}

    def _completion(self, record: Mapping[str, Any]) -> None:
        said = self._decided.pop(record["decision_id"], {})
        reached = {each["region"] for each in record["attempts"] if each["outcome"] != "refused"}
        if not record["attempts"] and record["body_may_have_arrived"] and record["region"]:
            reached = {record["region"]}  # nobody saw how it ended
        for region in reached:
            why = said.get(region, record)
            self._recipients[_Flow(region, why["reason"], why["rule"], why["law"], record["basis"])] += 1

    def _recipient(self, flow: _Flow, requests: int) -> dict[str, Any]:
        region = self._regions.get(flow.region)
        return {
            **flow._asdict(),
            "country": region.country if region else None,
            "operator": region.operator.name if region else None,
            "role": region.operator.role if region else None,
            "requests": requests,
        }
