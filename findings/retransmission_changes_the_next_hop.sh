#!/bin/bash
# With multipath routes by layer 4, a connection takes another next hop after a retransmission.
#
# With fib_multipath_hash_policy=1 a router picks one of several next hops by "layer 4", which one takes for a hash of
# addresses, protocol and ports: the same for all packets of a connection. But Linux takes the hash that the packet has
# already, if that counts as one of layer 4. A packet of a socket on the same machine (a container, another namespace)
# brings the socket's own hash along through a veth device, and that is a random number which the socket changes after
# each time-out, to get away from a path that fails (net.core.txrehash). So a connection that was late once goes to
# another host behind an anycast address, which resets it: of 62 connections through one of three proxies, which stood
# still for two seconds, 48 were lost. With policy 3 and the fields 0x37 (addresses, protocol, ports) the hash is computed
# from the packet; and with txrehash=0 in the sender's namespace it stays the same.
#
# Here 30 sockets connect through a router with three next hops, which do not answer: for each, the way of its first SYN
# and of the SYNs that follow after 1 and 3 seconds.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root (the number of those that change is chance, 29 of 30):
#   policy 1: some connections change their next hop
#   policy 1, txrehash 0: none changes it
#   policy 3: none changes it
set -euo pipefail
client=rehash-$$-c router=rehash-$$-r
folder=$(mktemp -d)
trap 'for space in "$client" "$router"; do ip netns del "$space" 2>/dev/null || true; done; rm -rf "$folder"' EXIT
ip netns add "$client"
ip netns add "$router"
ip -n "$router" link add name in type veth peer name out netns "$client"
ip -n "$router" addr add 10.1.0.1/24 dev in
ip -n "$client" addr add 10.1.0.2/24 dev out
ip -n "$router" link set in up
ip -n "$client" link set out up
ip -n "$client" route add default via 10.1.0.1
hops=()
for number in 1 2 3; do
    ip -n "$router" link add name "to$number" type veth peer name "far$number"
    ip -n "$router" link set "to$number" up
    ip -n "$router" link set "far$number" up
    ip -n "$router" addr add "10.2.$number.1/24" dev "to$number"
    ip -n "$router" neigh add "10.2.$number.2" lladdr "02:00:00:00:00:0$number" dev "to$number"
    hops+=(nexthop via "10.2.$number.2" dev "to$number")
done
ip -n "$router" route add 198.51.100.1 "${hops[@]}"
cat >"$folder/connect.py" <<'PYTHON'
import socket
import sys
import time

open("/proc/sys/net/core/txrehash", "w").write(sys.argv[1])
sockets = [socket.socket() for _ in range(30)]
for one in sockets:
    one.setblocking(False)
    one.connect_ex(("198.51.100.1", 80))
time.sleep(4)
PYTHON
cat >"$folder/watch.py" <<'PYTHON'
import collections
import select
import socket
import subprocess
import sys

ALL, OUTGOING = 3, 4
client, connect = sys.argv[1:]


def watch(policy, rehash):
    open("/proc/sys/net/ipv4/fib_multipath_hash_policy", "w").write(str(policy))
    ways = []
    for number in (1, 2, 3):
        ways.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)))
        ways[-1].bind((f"to{number}", ALL))
    sender = subprocess.Popen(["ip", "netns", "exec", client, "python3", connect, str(rehash)])
    taken = collections.defaultdict(list)
    while sender.poll() is None:
        for way in select.select(ways, [], [], 0.5)[0]:
            frame, (*_, kind, _, _) = way.recvfrom(2000)
            if kind == OUTGOING and frame[12:14] == b"\x08\x00" and frame[14 + 9] == socket.IPPROTO_TCP:
                taken[frame[34:36]].append(way)
    assert len(taken) == 30 and all(len(ways) > 1 for ways in taken.values()), "SYNs are missing"
    return sum(len(set(ways)) > 1 for ways in taken.values())


for name, policy, rehash in (("policy 1", 1, 1), ("policy 1, txrehash 0", 1, 0), ("policy 3", 3, 1)):
    changed = watch(policy, rehash)
    print(f"{name}: {'some connections change their next hop' if changed else 'none changes it'}", flush=True)
    print(f"  ({changed} of 30)", file=sys.stderr)
PYTHON
ip netns exec "$router" sh -c 'cd /proc/sys/net/ipv4; echo 1 >ip_forward; echo 0x37 >fib_multipath_hash_fields
    exec python3 "$@"' sh "$folder/watch.py" "$client" "$folder/connect.py" | tee "$folder/seen"
cat >"$folder/expected" <<'TEXT'
policy 1: some connections change their next hop
policy 1, txrehash 0: none changes it
policy 3: none changes it
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
