"""Hit rates of the cache's policy, W-TinyLFU, against the plain LRU that it stands in for, and what an operation costs.

Traces, each of several seeds: `zipf` (popularity of texts as one over their rank), `scan` (the same with long runs of
texts that come once), `shift` (what is popular changes), `recent` (what came lately comes again: LRU's own case).

    python benchmarks/cache.py [--requests 200000] [--texts 100000] [--seeds 3]
"""

import argparse
import hashlib
import random
import statistics
import sys
import time
from bisect import bisect
from collections.abc import Callable, Iterator
from itertools import accumulate
from pathlib import Path

from cachetools import LRUCache

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from app.stores.tinylfu import WINDOW, TinyLfu

Trace = Callable[[random.Random, int, int], Iterator[int]]


def zipf(draw: random.Random, requests: int, texts: int, skew: float = 0.9) -> Iterator[int]:
    ends = list(accumulate(1 / rank**skew for rank in range(1, texts + 1)))
    for _ in range(requests):
        yield bisect(ends, draw.random() * ends[-1])


def scan(draw: random.Random, requests: int, texts: int) -> Iterator[int]:
    """Half of the requests are of runs of texts that nobody asks for again."""
    fresh = texts
    popular = zipf(draw, requests, texts)
    left = requests
    while left > 0:
        for _ in range(min(left, 2000)):
            yield next(popular)
        for _ in range(min(max(left - 2000, 0), 2000)):
            fresh += 1
            yield fresh
        left -= 4000


def shift(draw: random.Random, requests: int, texts: int) -> Iterator[int]:
    """The ranks are dealt anew ten times."""
    for number, text in enumerate(zipf(draw, requests, texts)):
        yield text + number // max(1, requests // 10) * texts


def recent(draw: random.Random, requests: int, texts: int) -> Iterator[int]:
    """Half of the requests repeat one of the last 1,000."""
    seen: list[int] = []
    for number in range(requests):
        again = seen and draw.random() < 0.5
        text = seen[-draw.randrange(1, min(len(seen), 1000) + 1)] if again else texts + number
        seen.append(text)
        yield text


TRACES: dict[str, Trace] = {"zipf": zipf, "scan": scan, "shift": shift, "recent": recent}


def lru(keys: list[bytes], size: int) -> float:
    cache: LRUCache[bytes, int] = LRUCache(size)
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache[key] = 1
        else:
            hits += 1
    return hits / len(keys)


def tinylfu(keys: list[bytes], size: int, window: float = WINDOW, *, climbing: bool = True) -> float:
    cache: TinyLfu[int] = TinyLfu(size, size, window, climbing=climbing)
    hits = 0
    for key in keys:
        if cache.get(key) is None:
            cache.put(key, 1, 1)
        else:
            hits += 1
    return hits / len(keys)


def cost(run: Callable[[list[bytes], int], float], keys: list[bytes]) -> float:
    """Microseconds of a request: a look-up, and what it keeps where it misses."""
    began = time.perf_counter()
    run(keys, 10_000)
    return (time.perf_counter() - began) / len(keys) * 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=200_000)
    parser.add_argument("--texts", type=int, default=100_000)
    parser.add_argument("--seeds", type=int, default=3)
    options = parser.parse_args()
    windows = (0.01, 0.2)
    print(f"{options.requests:,} requests, {options.texts:,} texts; medians of {options.seeds} seeds\n")
    print(
        "| trace | entries | LRU | W-TinyLFU | " + " | ".join(f"with a window of {one:.0%}" for one in windows) + " |"
    )
    print("| --- | --- | --- | --- |" + " --- |" * len(windows))
    for name, trace in TRACES.items():
        runs = []
        for seed in range(options.seeds):
            draw = random.Random(seed)
            digests: dict[int, bytes] = {}
            texts = trace(draw, options.requests, options.texts)
            runs.append([digests.setdefault(text, hashlib.blake2b(b"%d" % text).digest()) for text in texts])
        for size in (1000, 10_000):
            found = [statistics.median(lru(keys, size) for keys in runs)]
            found += [statistics.median(tinylfu(keys, size) for keys in runs)]
            found += [
                statistics.median(tinylfu(keys, size, share, climbing=False) for keys in runs) for share in windows
            ]
            print(f"| {name} | {size:,} | " + " | ".join(f"{rate:.1%}" for rate in found) + " |")
        if name == "zipf":
            costs = {"LRU": cost(lru, runs[0]), "W-TinyLFU": cost(tinylfu, runs[0])}
    print("\n" + ", ".join(f"{name} {each:.1f} us a request" for name, each in costs.items()))


if __name__ == "__main__":
    main()
