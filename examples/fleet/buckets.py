#!/usr/bin/env python3
"""What a resilient next-hop group takes, and how even it is. As root.

    buckets.py [MEMBERS ...]     3, 10, 100 and 250 if not given

In a namespace of its own: makes the group as keeper.py does, asks the kernel for the next hop of connections (which
counts as use of their buckets), drains a member, adds it again, and removes it.
"""

import collections
import ctypes
import os
import re
import subprocess
import sys
import time

sys.dont_write_bytecode = True
import keeper  # noqa: E402

SPACE = f"fleet-{os.getpid()}-buckets"
CLONE_NEWNET = 0x40000000
COLUMNS = "members buckets each made_ms memory connections fewest most drained_ms kept added_ms dead_ms".split()
IDLE = 60


def counts():
    lines = keeper.ip("nexthop", "bucket", "show").splitlines()
    return collections.Counter(int(re.search(r" nhid (\d+)", line)[1]) for line in lines)


def timed(work, *arguments):
    start = time.monotonic()
    work(*arguments)
    return round(1000 * (time.monotonic() - start), 1)


def memory():
    """Bytes that the kernel has for tables of groups, of all namespaces; 0 if it does not say."""
    lines = open("/proc/vmallocinfo").readlines()
    return sum(int(line.split()[1]) for line in lines if re.search(r"nexthop|nh_res|rtm_new_nexthop", line))


def hops(connections):
    """How many connections each next hop has, of clients with other addresses and ports."""
    asked = [
        f"route get 10.99.0.1 from 10.90.{one % 250}.2 iif clients ipproto tcp sport {20000 + one} dport 80\n"
        for one in range(connections)
    ]
    done = subprocess.run(["ip", "-batch", "-"], input="".join(asked), capture_output=True, text=True, check=True)
    return collections.Counter(re.findall(r" via (\S+) ", done.stdout))


def measure(members, buckets, connections):
    numbers = range(keeper.GROUP + 1, keeper.GROUP + 1 + members)
    for number in numbers:
        hop = number - keeper.GROUP + 1
        keeper.ip("nexthop", "add", "id", str(number), "via", f"10.91.{hop // 250}.{hop % 250 + 1}", "dev", "fleet")
    before = memory()
    full = dict.fromkeys(numbers, keeper.FULL)
    timers = (buckets, IDLE, 0)
    row = {"members": members, "buckets": buckets, "made_ms": timed(keeper.replace_group, full, *timers)}
    grown = memory() - before
    row["memory"] = f"{grown / 1e6:.2f} MB" if grown else "?"
    keeper.ip("route", "replace", "10.99.0.1", "nhid", str(keeper.GROUP))
    held = counts()
    assert max(held.values()) - min(held.values()) <= 1, held
    row["each"] = f"{min(held.values())} to {max(held.values())}"
    used = hops(connections)
    assert used.total() == connections, used
    row |= {"connections": connections, "fewest": min(used.values()), "most": max(used.values())}
    row["drained_ms"] = timed(keeper.replace_group, full | {numbers[0]: keeper.LEAST}, *timers)
    row["kept"] = counts()[numbers[0]]
    row["added_ms"] = timed(keeper.replace_group, full, *timers)
    row["dead_ms"] = timed(keeper.ip, "nexthop", "del", "id", str(numbers[0]))
    assert counts().total() == buckets and numbers[0] not in counts()
    for number in numbers[1:]:
        keeper.ip("nexthop", "del", "id", str(number))
    return row


def main():
    if not all(word.isdecimal() and 2 <= int(word) <= 999 for word in sys.argv[1:]):
        sys.exit(__doc__)
    subprocess.run(["ip", "netns", "add", SPACE], check=True)
    try:
        with open(f"/run/netns/{SPACE}") as space:
            if ctypes.CDLL(None, use_errno=True).setns(space.fileno(), CLONE_NEWNET):
                raise OSError(ctypes.get_errno(), "setns")
        keeper.ip("link", "add", "fleet", "type", "veth", "peer", "name", "clients")
        for name in ("fleet", "clients"):
            keeper.ip("link", "set", name, "up")
        keeper.ip("addr", "add", "10.91.0.1/16", "dev", "fleet")
        keeper.ip("route", "add", "10.90.0.0/16", "dev", "clients")
        for name, value in (("fib_multipath_hash_policy", 3), ("fib_multipath_hash_fields", 0x37), ("ip_forward", 1)):
            open(f"/proc/sys/net/ipv4/{name}", "w").write(str(value))
        sizes = ((16384, 1000), (16384, 10000), (65535, 40000))
        rows = [measure(members, *size) for members in map(int, sys.argv[1:] or (3, 10, 100, 250)) for size in sizes]
    finally:
        subprocess.run(["ip", "netns", "del", SPACE], check=True)
    lines = [COLUMNS, *[[str(row[column]) for column in COLUMNS] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*lines)]
    for line in lines:
        print("  ".join(word.ljust(width) for word, width in zip(line, widths)).rstrip())


if __name__ == "__main__":
    main()
