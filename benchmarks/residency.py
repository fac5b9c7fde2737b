"""How long a residency decision takes: 12 regions, the 11 laws that ship, one core, each kind of ordinary question.

Every decision is made anew; no answer is kept. The kinds take turns, round by round, so that a drift of the machine's
speed meets all of them. Prints the median and the 99th percentile of all decisions of a kind in microseconds; with
`--limit` exits 1 where a median is above it. What other processes take on the same core is in the figures.

    python benchmarks/residency.py [--rounds 20] [--decisions 500] [--limit 50]

What was tried, as medians in microseconds on one machine (2 shared cores, Python 3.11), for some of the kinds:

                                   DE    DE     FR+GB   DE+SG   DE     DE        SG    DE+SG   US-CA
                                   stay  move   move    move    SCC    consent   BCR   BCR     GPC
    rules compared with the day    24.5  36.0   55.7    74.0    44.9   67.6      79.2  116.3   29.0
    ... results as named tuples    20.4  33.5   55.4    73.9    41.8   64.8      76.8  116.4   25.1
    ... rules in force by bisect   16.6  29.6   47.5    65.5    37.8   61.3      72.2  108.6   23.1
    verdicts by region and era     11.2  11.8   14.4    13.9    25.1   29.1      32.8   52.4   23.7
    ... and what may be added      11.0  11.8   14.4    13.9    17.9   20.3      19.3   29.3   14.7

The last is in use (`policy.ground`): between two turns of the law a row holds what each law says of each region, and an
instrument is judged once and laid over the regions, where the least of what is said counts. Each line adds to the one
above, but for the fourth, which replaces the third's tables.
"""

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, Final

from app.config import Settings, Tenant
from app.policy.ground import Ground
from app.policy.residency import decide
from app.policy.rules import LawBook
from app.settings_file import documents, load
from app.types import Evidence, Question

ROOT: Final = Path(__file__).resolve().parents[1]
WORLD: Final = ROOT / "tests" / "data" / "residency" / "world.yaml"
DAY: Final = date(2026, 11, 22)


@dataclass
class Kind:
    """One kind of question, as `words` describe it, and the nanoseconds that each decision took."""

    words: str
    question: Question
    tenant: Tenant
    taken: list[int] = field(default_factory=list)

    def run(self, settings: Settings, ground: Ground, decisions: int) -> None:
        question, tenant, residency = self.question, self.tenant, settings.residency
        for _ in range(decisions):
            start = time.perf_counter_ns()
            decide(question, tenant, residency, ground)
            self.taken.append(time.perf_counter_ns() - start)

    def percentile(self, percent: int) -> float:
        """Microseconds."""
        return statistics.quantiles(self.taken, n=100, method="inclusive")[percent - 1] / 1000


def kinds(settings: Settings) -> list[Kind]:
    """One and two jurisdictions, both postures, every sort of instrument, wishes, prohibitions and refusals."""

    def kind(words: str, tenant: str, *codes: str, **options: Any) -> Kind:
        found = settings.tenant(tenant)
        assert found is not None
        signs = tuple(Evidence("header", code) for code in codes)
        return Kind(words, Question(tenant=tenant, evidence=signs, day=DAY, **options), found)

    return [
        kind("DE, data stay", "stay", "DE"),
        kind("US, data stay", "stay", "US"),
        kind("FR and GB, data stay", "stay", "FR", "GB"),
        kind("DE, data may move", "move", "DE"),
        kind("SG, data may move", "move", "SG"),
        kind("JP, data may move", "move", "JP"),
        kind("FR and GB, data may move", "move", "FR", "GB"),
        kind("DE and SG, data may move", "move", "DE", "SG"),
        kind("SG and US-CA, data may move", "move", "SG", "US-CA"),
        kind("DE, standard clauses", "scc", "DE"),
        kind("DE and US-CA, standard clauses", "scc", "DE", "US-CA"),
        kind("SG, contract", "sg-contract", "SG"),
        kind("SG, binding corporate rules", "bcr", "SG"),
        kind("DE and SG, binding corporate rules", "bcr", "DE", "SG"),
        kind("DE, one consent of four", "asks", "DE", basis="yes-us"),
        kind("DE and GB, one consent of four", "asks", "DE", "GB", basis="yes-us"),
        kind("DE, a region asked for", "move", "DE", requested="us-dpf"),
        kind("DE, a region refused", "stay", "DE", requested="us"),
        kind("DE, a basis switched off", "move", "DE", disabled=frozenset({"eu-us-dpf"})),
        kind("US-CA, opted out by GPC", "stay", "US-CA", gpc=True),
        kind("US, bulk sensitive data", "stay", "US", purpose="bulk_sensitive"),
        kind("the tenant's own rule", "only-de", "DE"),
        kind("nothing known", "stay"),
    ]


def report(found: Sequence[Kind]) -> None:
    width = max(len(kind.words) for kind in found)
    print(f"{'question':<{width}}  median us  p99 us")
    for kind in found:
        print(f"{kind.words:<{width}}  {kind.percentile(50):9.1f}  {kind.percentile(99):6.1f}")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--decisions", type=int, default=500, help="of each kind in a round")
    parser.add_argument("--limit", type=float, help="microseconds that no median may exceed")
    options = parser.parse_args()
    settings = load(WORLD, {})
    start = time.perf_counter()
    book = LawBook.build(documents(settings.residency.rules, WORLD.parent))
    built = time.perf_counter()
    ground = Ground.lay(book, settings.regions)
    laid = time.perf_counter()
    print(f"{len(settings.regions)} regions, {len(book.laws)} laws")
    print(f"once a configuration: {(built - start) * 1e3:.0f} ms to read the law, {(laid - built) * 1e3:.0f} to lay it")
    found = kinds(settings)
    for _ in range(options.rounds):
        for kind in found:
            kind.run(settings, ground, options.decisions)
    report(found)
    slowest = max(kind.percentile(50) for kind in found)
    return 1 if options.limit is not None and slowest > options.limit else 0


if __name__ == "__main__":
    sys.exit(main())
