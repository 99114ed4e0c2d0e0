#!/usr/bin/env python3
"""Records what libCacheSim answers on synthetic traces, for `guest/modules/tests/reference.rs` to compare with.

For developers, and only when a trace or a policy is added; the tests read the recording:

    pip install libcachesim==0.3.5
    python3 tests/reference/record.py > tests/reference/hits.json

The traces come from integer arithmetic alone, so that the same few lines in `reference.rs` make the same requests; their
hashes are recorded too. Every object has size 1. Below some 100 entries libCacheSim's S3FIFO and WTinyLFU misbehave
(their parts round to nothing), so no capacity is smaller.
"""

import json
import sys

import libcachesim as lcs

MASK = (1 << 64) - 1
REQUESTS = 100_000
CAPACITIES = [128, 512, 2048]
POLICIES = {
    "fifo": lcs.FIFO,
    "lru": lcs.LRU,
    "sieve": lcs.Sieve,
    "s3-fifo": lcs.S3FIFO,
    "2q": lcs.TwoQ,
    "arc": lcs.ARC,
    "lirs": lcs.LIRS,
    "w-tinylfu": lcs.WTinyLFU,
}


def splitmix64(n):
    z = (n + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def skewed(n):
    """About Zipf with exponent 1: each doubling of the keys is asked for equally often. 16,383 keys."""
    random = splitmix64(n)
    level = random % 14
    return (1 << level) + ((random >> 32) & ((1 << level) - 1))


def key(trace, n):
    if trace == "skew":
        return skewed(n)
    if trace == "scans":  # A quarter of the time, keys that come once.
        return 1_000_000 + n if n % 20_000 >= 15_000 else skewed(n)
    if trace == "loop":  # Every other request is the next of a loop.
        return 1_000_000 + n // 2 % 3000 if n % 2 == 0 else skewed(n)
    if trace == "drift":  # What is asked for often moves on.
        return skewed(n) + n // 1000 * 50
    raise ValueError(trace)


def fnv(values):
    """FNV-1a over 64-bit words."""
    h = 0xCBF29CE484222325
    for value in values:
        h = ((h ^ value) * 0x100000001B3) & MASK
    return f"{h:016x}"


def outcomes(policy, capacity, keys):
    cache = policy(capacity)
    request = lcs.Request()
    request.obj_size = 1
    for k in keys:
        request.obj_id = k
        yield int(cache.get(request))


def main():
    recording = []
    for trace in ["skew", "scans", "loop", "drift"]:
        keys = [key(trace, n) for n in range(REQUESTS)]
        runs = []
        for capacity in CAPACITIES:
            for name, policy in POLICIES.items():
                answers = list(outcomes(policy, capacity, keys))
                runs.append({"policy": name, "capacity": capacity, "hits": sum(answers), "outcomes": fnv(answers)})
                print(trace, capacity, name, sum(answers), file=sys.stderr)
        recording.append({"trace": trace, "requests": REQUESTS, "keys": fnv(keys), "runs": runs})
    json.dump(recording, sys.stdout, indent=1)
    print()


if __name__ == "__main__":
    main()
