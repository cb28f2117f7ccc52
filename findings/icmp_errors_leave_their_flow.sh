#!/bin/bash
# With multipath routes by layer 4, an ICMP error does not take the way of the connection that it is about.
#
# A router with several next hops for an address picks one by a hash of the packet. ICMP errors ("fragmentation
# needed", "time exceeded") are sent to the host whose packet caused them, and quote that packet; so they should go to the
# next hop that the quoted connection has. With fib_multipath_hash_policy=0 (layer 3) Linux sees to that: it hashes the
# addresses of the quoted packet. With policy 1 (layer 4), which a service with few client addresses needs, it hashes the
# addresses of the error itself, without ports. All errors of one reporting router then go to the same next hop, whatever
# connections they are about. A host behind an anycast address does not get the reports of its own path MTU, and must
# find black holes by itself (RFC 4821). It is the same with policy 3 (fields by choice), here addresses, protocol and
# ports. With policy 2 the addresses of the quoted packet count again.
#
# Here a UDP packet on each of 60 flows arrives at a router with three next hops, and an ICMP error that quotes the answer
# to it.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root (which errors take the way of their flow with policy 1 is chance):
#   policy 0: flows at 1 next hop, errors at 1; with their flow: all
#   policy 1: flows at 3 next hops, errors at 1; with their flow: some
#   policy 2: flows at 1 next hop, errors at 1; with their flow: all
#   policy 3: flows at 3 next hops, errors at 1; with their flow: some
set -euo pipefail
space=icmp-$$
folder=$(mktemp -d)
trap 'ip netns del "$space" 2>/dev/null || true; rm -rf "$folder"' EXIT
ip netns add "$space"
ip -n "$space" link set lo up
for name in in to1 to2 to3; do
    ip -n "$space" link add name "$name" type veth peer name "$name-far"
    ip -n "$space" link set "$name" up
    ip -n "$space" link set "$name-far" up
done
ip -n "$space" addr add 10.1.0.1/24 dev in
hops=()
for number in 1 2 3; do
    ip -n "$space" addr add "10.2.$number.1/24" dev "to$number"
    ip -n "$space" neigh add "10.2.$number.2" lladdr "02:00:00:00:00:0$number" dev "to$number"
    hops+=(nexthop via "10.2.$number.2" dev "to$number")
done
ip -n "$space" route add 198.51.100.1 "${hops[@]}"
cat >"$folder/look.py" <<'PYTHON'
import pathlib
import select
import socket
import struct
import sys

CLIENT, SERVICE = (socket.inet_aton(address) for address in ("10.1.0.2", "198.51.100.1"))
IPV4, ALL = 0x0800, 3


def checksum(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def packet(protocol, source, destination, payload):
    head = struct.pack(">BBHHHBBH4s4s", 0x45, 0, 20 + len(payload), 0, 0, 64, protocol, 0, source, destination)
    return head[:10] + struct.pack(">H", checksum(head)) + head[12:] + payload


def udp(source, port, destination, to):
    return packet(17, source, destination, struct.pack(">HHHH", port, to, 8, 0))


def too_long(quoted):
    error = struct.pack(">BBHHH", 3, 4, 0, 0, 1400) + quoted
    error = error[:2] + struct.pack(">H", checksum(error)) + error[4:]
    return packet(1, CLIENT, SERVICE, error)


def device(name, kind):
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(kind))
    opened.bind((name, kind))
    return opened


router, ways = device("in-far", IPV4), [device(f"to{number}", ALL) for number in (1, 2, 3)]
mac = bytes.fromhex(pathlib.Path("/sys/class/net/in/address").read_text().strip().replace(":", ""))


def way(sent):
    """The device by which it leaves."""
    router.send(mac + bytes.fromhex("020000000009") + IPV4.to_bytes(2, "big") + sent)
    while True:
        for ready in select.select(ways, [], [], 5)[0] or sys.exit("a packet was not forwarded"):
            # Forwarding changes the time to live and the checksum of the header.
            if ready.recv(2000)[14 + 12 :] == sent[12:]:
                return ready


def hops(taken):
    return f"{len(set(taken))} next hop{'s' if len(set(taken)) > 1 else ''}"


for policy in (0, 1, 2, 3):
    pathlib.Path("/proc/sys/net/ipv4/fib_multipath_hash_policy").write_text(str(policy))
    ports = range(40000, 40060)
    flows = [way(udp(CLIENT, port, SERVICE, 80)) for port in ports]
    errors = [way(too_long(udp(SERVICE, 80, CLIENT, port))) for port in ports]
    same = sum(flow is error for flow, error in zip(flows, errors))
    share = "all" if same == len(ports) else "some" if same else "none"
    print(f"policy {policy}: flows at {hops(flows)}, errors at {len(set(errors))}; with their flow: {share}")
    print(f"  ({same} of {len(ports)})", file=sys.stderr)
PYTHON
ip netns exec "$space" sh -c 'cd /proc/sys/net/ipv4; echo 1 >ip_forward; echo 0x37 >fib_multipath_hash_fields; exec python3 "$1"' sh "$folder/look.py" |
    tee "$folder/seen"
cat >"$folder/expected" <<'TEXT'
policy 0: flows at 1 next hop, errors at 1; with their flow: all
policy 1: flows at 3 next hops, errors at 1; with their flow: some
policy 2: flows at 1 next hop, errors at 1; with their flow: all
policy 3: flows at 3 next hops, errors at 1; with their flow: some
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
