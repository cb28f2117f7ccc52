#!/bin/bash
# Over IPv6, the default hash of multipath routes moves a connection to another next hop after a retransmission.
#
# With fib_multipath_hash_policy=0, the default, a router picks one of several next hops by "layer 3". Over IPv4 that is a
# hash of the two addresses: all connections of two hosts go one way, and stay there. For IPv6 the documentation adds the
# flow label, which one takes for a name of the connection, as RFC 6437 has it: other connections may go other ways, but
# each keeps its own. Yet Linux's TCP gives a connection another label after each time-out (net.ipv6.auto_flowlabels makes
# it of the socket's hash, which net.core.txrehash changes). So a connection that was late once takes another next hop, on
# any router with the default policy between the two hosts. Behind an anycast address, that is another host.
#
# The label is in the packet. So this is not about the hash that a packet carries along within one machine, and a router
# elsewhere does the same to clients of any network; over IPv4 with this policy nothing changes. It stays the same with
# policy 3 and fields without the flow label (0x37), or with txrehash=0 or auto_flowlabels=0 at the sender, which a router
# cannot ask for. Without labels all connections of two hosts go one way, as over IPv4.
#
# Here 30 sockets connect through a router with three next hops, which do not answer: for each, the way of its first SYN
# and of the SYNs that follow after 1 and 3 seconds.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root (the number of those that change is chance, 29 of 30):
#   IPv4, policy 0: one way for all, none changes it
#   IPv6, policy 0: several ways, some change theirs
#   IPv6, policy 0, txrehash 0: several ways, none changes its own
#   IPv6, policy 0, auto_flowlabels 0: one way for all, none changes it
#   IPv6, policy 3: several ways, none changes its own
set -euo pipefail
client=label-$$-c router=label-$$-r
folder=$(mktemp -d)
trap 'for space in "$client" "$router"; do ip netns del "$space" 2>/dev/null || true; done; rm -rf "$folder"' EXIT
ip netns add "$client"
ip netns add "$router"
for space in "$client" "$router"; do
    ip netns exec "$space" sh -c 'echo 0 | tee /proc/sys/net/ipv6/conf/*/accept_dad' >/dev/null
done
ip -n "$router" link add name in type veth peer name out netns "$client"
ip -n "$router" link set in up
ip -n "$client" link set out up
for pair in 10.1.0.1/24,10.1.0.2/24 fd01::1/64,fd01::2/64; do
    ip -n "$router" addr add "${pair%,*}" dev in
    ip -n "$client" addr add "${pair#*,}" dev out
done
ip -n "$client" route add default via 10.1.0.1
ip -n "$client" route add default via fd01::1
four=() six=()
for number in 1 2 3; do
    ip -n "$router" link add name "to$number" type veth peer name "far$number"
    ip -n "$router" link set "to$number" up
    ip -n "$router" link set "far$number" up
    ip -n "$router" addr add "10.2.$number.1/24" dev "to$number"
    ip -n "$router" addr add "fd02:$number::1/64" dev "to$number"
    ip -n "$router" neigh add "10.2.$number.2" lladdr "02:00:00:00:00:0$number" dev "to$number"
    ip -n "$router" neigh add "fd02:$number::2" lladdr "02:00:00:00:00:0$number" dev "to$number"
    four+=(nexthop via "10.2.$number.2" dev "to$number")
    six+=(nexthop via "fd02:$number::2" dev "to$number")
done
ip -n "$router" route add 198.51.100.1 "${four[@]}"
ip -n "$router" route add 2001:db8::1 "${six[@]}"
cat >"$folder/connect.py" <<'PYTHON'
import socket
import sys
import time

address, rehash, labels = sys.argv[1:]
open("/proc/sys/net/core/txrehash", "w").write(rehash)
open("/proc/sys/net/ipv6/auto_flowlabels", "w").write(labels)
sockets = [socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) for _ in range(30)]
for one in sockets:
    one.setblocking(False)
    one.connect_ex((address, 80))
time.sleep(4)
PYTHON
cat >"$folder/watch.py" <<'PYTHON'
import collections
import select
import socket
import subprocess
import sys

ALL, OUTGOING = 3, 4
KINDS = {4: (b"\x08\x00", 9, 20), 6: (b"\x86\xdd", 6, 40)}  # ether type, where the protocol is, length of the header
client, connect = sys.argv[1:]


def watch(family, policy, rehash, labels):
    for name in ("ipv4", "ipv6"):
        open(f"/proc/sys/net/{name}/fib_multipath_hash_policy", "w").write(str(policy))
    ways = []
    for number in (1, 2, 3):
        ways.append(socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(ALL)))
        ways[-1].bind((f"to{number}", ALL))
    address = {4: "198.51.100.1", 6: "2001:db8::1"}[family]
    command = ["ip", "netns", "exec", client, "python3", connect, address, str(rehash), str(labels)]
    sender = subprocess.Popen(command)
    taken = collections.defaultdict(list)
    kind, protocol, length = KINDS[family]
    while sender.poll() is None:
        for way in select.select(ways, [], [], 0.5)[0]:
            frame, (*_, direction, _, _) = way.recvfrom(2000)
            if direction == OUTGOING and frame[12:14] == kind and frame[14 + protocol] == socket.IPPROTO_TCP:
                taken[frame[14 + length : 16 + length]].append(way)
    assert sender.returncode == 0, "the sockets have failed"
    assert len(taken) == 30 and all(len(ways) > 1 for ways in taken.values()), "SYNs are missing"
    first = {ways[0] for ways in taken.values()}
    return len(first), sum(len(set(ways)) > 1 for ways in taken.values())


for name, *values in (
    ("IPv4, policy 0", 4, 0, 1, 1),
    ("IPv6, policy 0", 6, 0, 1, 1),
    ("IPv6, policy 0, txrehash 0", 6, 0, 0, 1),
    ("IPv6, policy 0, auto_flowlabels 0", 6, 0, 1, 0),
    ("IPv6, policy 3", 6, 3, 1, 1),
):
    ways, changed = watch(*values)
    if ways == 1:
        text = "one way for all, " + ("some change it" if changed else "none changes it")
    else:
        text = "several ways, " + ("some change theirs" if changed else "none changes its own")
    print(f"{name}: {text}", flush=True)
    print(f"  ({changed} of 30)", file=sys.stderr)
PYTHON
ip netns exec "$router" sh -c 'cd /proc/sys/net; echo 1 >ipv4/ip_forward; echo 1 >ipv6/conf/all/forwarding
    echo 0x37 >ipv4/fib_multipath_hash_fields; echo 0x37 >ipv6/fib_multipath_hash_fields
    exec python3 "$@"' sh "$folder/watch.py" "$client" "$folder/connect.py" | tee "$folder/seen"
cat >"$folder/expected" <<'TEXT'
IPv4, policy 0: one way for all, none changes it
IPv6, policy 0: several ways, some change theirs
IPv6, policy 0, txrehash 0: several ways, none changes its own
IPv6, policy 0, auto_flowlabels 0: one way for all, none changes it
IPv6, policy 3: several ways, none changes its own
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
