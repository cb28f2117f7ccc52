#!/usr/bin/env python3
"""Keeps a resilient next-hop group in step with the routes that a routing daemon writes.

    keeper.py --table 99 --service 10.99.0.1 --own 10.93.0.0/16

Runs on the router. The daemon (BIRD here, but any will do) writes what the proxies announce into a table of its own:
the service address with all its next hops, and for each proxy an address of its own. A next hop of the service takes
its share of the buckets. One that has withdrawn the service but still announces its own address is draining: it stays
in the group and wants no buckets, so the kernel takes from it those that were idle for the idle time, and leaves it
the others. One that announces neither is dead: it is removed, and others get its buckets at once.

The route through the group is in the main table. Without it (before this program runs) the daemon's table is used,
with plain multipath.
"""

import argparse
import errno
import ipaddress
import json
import select
import socket
import struct
import subprocess
import sys
import time

GROUP = 99000
MEMBERS = range(GROUP + 1, GROUP + 1000)  # other next hops are left alone
FULL, LEAST = 65535, 1  # weights: those that serve, and those that drain
OLD_FULL = 255  # before Linux 6.12
RTM_NEWNEXTHOP, NLMSG_ERROR = 104, 2
NLM_F_REQUEST, NLM_F_ACK, NLM_F_REPLACE, NLM_F_CREATE = 0x1, 0x4, 0x100, 0x400
NHA_ID, NHA_GROUP, NHA_GROUP_TYPE, NHA_RES_GROUP = 1, 2, 3, 12
NHA_RES_GROUP_BUCKETS, NHA_RES_GROUP_IDLE_TIMER, NHA_RES_GROUP_UNBALANCED_TIMER = 1, 2, 3
RESILIENT, NESTED = 1, 0x8000
SETTLE, LATEST = 0.02, 0.5  # seconds: changes that belong together arrive together


def ip(*arguments):
    return subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True).stdout


def ip_json(*arguments):
    return json.loads(ip("-j", *arguments) or "[]")


def attribute(kind, value):
    return struct.pack("HH", 4 + len(value), kind) + value + bytes(-len(value) % 4)


def replace_group(members, buckets, idle, unbalanced):
    """Makes or changes the group. `ip nexthop` of iproute2 6.1 can do the same, but with weights up to 256 only: one of
    256 to 1 leaves some buckets to those that drain."""

    def entry(number, weight):
        return struct.pack("=IBBH", number, (weight - 1) & 0xFF, (weight - 1) >> 8, 0)

    table = attribute(NHA_RES_GROUP_BUCKETS, struct.pack("H", buckets))
    table += attribute(NHA_RES_GROUP_IDLE_TIMER, struct.pack("I", int(idle * 100)))
    table += attribute(NHA_RES_GROUP_UNBALANCED_TIMER, struct.pack("I", int(unbalanced * 100)))
    body = struct.pack("BBBBI", socket.AF_UNSPEC, 0, 4, 0, 0)
    body += attribute(NHA_ID, struct.pack("I", GROUP))
    body += attribute(NHA_GROUP, b"".join(entry(number, weight) for number, weight in sorted(members.items())))
    body += attribute(NHA_GROUP_TYPE, struct.pack("H", RESILIENT))
    body += attribute(NHA_RES_GROUP | NESTED, table)
    flags = NLM_F_REQUEST | NLM_F_ACK | NLM_F_CREATE | NLM_F_REPLACE
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(struct.pack("IHHII", 16 + len(body), RTM_NEWNEXTHOP, flags, 1, 0) + body)
        _, kind, _, _, _, error = struct.unpack_from("IHHIIi", kernel.recv(65536))
    if kind != NLMSG_ERROR or error:
        raise OSError(-error, f"the kernel refuses the group {members}")


class Keeper:
    def __init__(self, options):
        self.options = options
        self.own = ipaddress.ip_network(options.own)
        self.family = f"-{self.own.version}"
        self.full = FULL
        self.last = None

    def announced(self):
        """The next hops of the service, and those of the proxies' own addresses."""
        serving, alive = set(), set()
        for route in ip_json(self.family, "route", "show", "table", str(self.options.table)):
            hops = route.get("nexthops", [route])
            hops = {(hop["gateway"], hop["dev"]) for hop in hops if "gateway" in hop}
            if route["dst"] == self.options.service:
                serving = hops
            elif route["dst"] != "default" and ipaddress.ip_network(route["dst"]).subnet_of(self.own):
                alive |= hops
        return serving, alive

    def hops(self):
        """The kernel's next hops by address and device; what an earlier keeper left counts too."""
        return {(hop["gateway"], hop["dev"]): hop["id"] for hop in ip_json("nexthop") if hop["id"] in MEMBERS}

    def follow(self):
        start = time.monotonic()
        serving, alive = self.announced()
        old = self.hops()
        draining = {hop for hop in alive if hop in old and hop not in serving}
        wanted = serving | draining
        # In the order of their devices, since the kernel fills buckets in the order of numbers: so routers whose
        # devices have the same names give a bucket to the same proxy.
        for address, device in sorted(wanted - set(old), key=lambda hop: (len(hop[1]), hop[1], hop[0])):
            self.last = None
            number = min(set(MEMBERS) - set(old.values()))
            ip("nexthop", "add", "id", str(number), "via", address, "dev", device)
            old[address, device] = number
        # If none serves, those that drain share the buckets.
        members = {old[hop]: self.full if hop in serving else LEAST for hop in wanted}
        if members and members != self.last:
            self.replace(members)
        for hop in [hop for hop in old if hop not in wanted]:
            # The last one takes the group and its route with it.
            ip("nexthop", "del", "id", str(old[hop]))
        if members != self.last:
            self.last = members
            took = 1000 * (time.monotonic() - start)
            serving, draining = (" ".join(map("%".join, sorted(hops))) for hops in (serving, draining))
            print(f"serving [{serving}], draining [{draining}]: in {took:.0f} ms", flush=True)

    def replace(self, members):
        options = self.options
        timers = (options.buckets, options.idle, options.unbalanced)
        try:
            replace_group(members, *timers)
        except OSError as error:
            if error.errno != errno.EINVAL or self.full == OLD_FULL:
                raise
            self.full = OLD_FULL
            members = {number: min(weight, OLD_FULL) for number, weight in members.items()}
            replace_group(members, *timers)
        ip(self.family, "route", "replace", options.service, "nhid", str(GROUP))

    def run(self):
        """Follows the kernel's notifications of routes."""
        with subprocess.Popen(["ip", self.family, "monitor", "route"], stdout=subprocess.PIPE, bufsize=0) as monitor:
            while True:
                try:
                    self.follow()
                except (OSError, subprocess.CalledProcessError) as error:
                    # The table has changed meanwhile, so there is another notification.
                    print(f"error: {error} {getattr(error, 'stderr', '')}", file=sys.stderr, flush=True)
                    self.last = None
                if not self.wait(monitor.stdout):
                    return

    def wait(self, notifications):
        """Until something has changed. False if that is no longer told."""
        select.select([notifications], [], [], 10)
        latest = time.monotonic() + LATEST
        while time.monotonic() < latest and select.select([notifications], [], [], SETTLE)[0]:
            if not notifications.read(65536):
                return False
        return True


def main():
    parser = argparse.ArgumentParser(description="Keeps a resilient next-hop group in step with routes.")
    parser.add_argument("--table", type=int, default=99, help="the table that the routing daemon writes")
    parser.add_argument("--service", required=True, help="the service address")
    parser.add_argument("--own", required=True, help="the network of the proxies' own addresses")
    parser.add_argument("--buckets", type=int, default=16384)
    parser.add_argument("--idle", type=float, default=150, help="seconds without packets until a bucket may move")
    parser.add_argument("--unbalanced", type=float, default=0, help="seconds until buckets move in use; 0: never")
    Keeper(parser.parse_args()).run()


if __name__ == "__main__":
    main()
