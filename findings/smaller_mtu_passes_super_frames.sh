#!/bin/bash
# A veth device with a smaller MTU than its peer drops the peer's full packets and lets super-frames of such packets pass.
#
# One sets a smaller MTU on one end of a veth pair to stand for a path whose sender does not know its MTU. An end receives
# nothing longer than its MTU allows: a full packet of the other end is dropped, without an ICMP error. So one would take
# it for a path on which no full packet arrives. But a GSO super-frame is not compared at all (is_skb_forwardable()), and
# the kernel's TCP hands such frames to a veth; the next device, with an MTU of 1500, takes the full packets in them. So
# bulk data gets through, and a connection works until it sends, or repeats, one full segment alone: that never arrives.
# Which of the two a write is depends on its size and on load: a retransmission is one segment. It is the route that should
# have the MTU (ip route ... mtu 1400), or both ends of the pair.
#
# Here a client sends through a router, whose device towards the client has an MTU of 1400; all others have 1500.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root:
#   4000 bytes in one write: arrive
#   1448 bytes in one write: do not arrive in 5 seconds
#   1448 bytes in one write, the MTU at the route: arrive
set -euo pipefail
client=smaller-$$-c router=smaller-$$-r server=smaller-$$-s
folder=$(mktemp -d)
trap 'for space in "$client" "$router" "$server"; do ip netns del "$space" 2>/dev/null || true; done; rm -rf "$folder"' EXIT
for space in "$client" "$router" "$server"; do
    ip netns add "$space"
    ip -n "$space" link set lo up
done
ip -n "$router" link add client type veth peer name uplink netns "$client"
ip -n "$router" link add server type veth peer name uplink netns "$server"
ip -n "$router" addr add 10.1.0.1/24 dev client
ip -n "$router" addr add 10.2.0.1/24 dev server
ip -n "$client" addr add 10.1.0.2/24 dev uplink
ip -n "$server" addr add 10.2.0.2/24 dev uplink
ip -n "$router" link set client up
ip -n "$router" link set server up
for end in "$client 10.1.0.1" "$server 10.2.0.1"; do
    read -r space gateway <<<"$end"
    ip -n "$space" link set uplink up
    ip -n "$space" route add default via "$gateway"
done
ip netns exec "$router" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
cat >"$folder/serve.py" <<'PYTHON'
import socket
import threading


def count(one):
    # The line, then as many bytes; the answer is one byte.
    file = one.makefile("rb")
    file.read(int(file.readline()))
    one.sendall(b"!")


server = socket.create_server(("", 80))
print("listening", flush=True)
while True:
    threading.Thread(target=count, args=(server.accept()[0],), daemon=True).start()
PYTHON
cat >"$folder/send.py" <<'PYTHON'
import socket
import sys

size, limit = map(int, sys.argv[1:])
with socket.create_connection(("10.2.0.2", 80), 10) as one:
    one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    one.sendall(f"{size}\n".encode())
    one.settimeout(limit)
    one.sendall(bytes(size))
    try:
        one.recv(1)
        print("arrive")
    except TimeoutError:
        print(f"do not arrive in {limit} seconds")
PYTHON
coproc SERVER { exec ip netns exec "$server" setpriv --pdeathsig KILL python3 "$folder/serve.py"; }
read -r -u "${SERVER[0]}" # listening
send() { ip netns exec "$client" python3 "$folder/send.py" "$@"; }
{
    ip -n "$router" link set client mtu 1400
    echo "4000 bytes in one write: $(send 4000 30)"
    echo "1448 bytes in one write: $(send 1448 5)"
    ip -n "$router" link set client mtu 1500
    ip -n "$router" route replace 10.1.0.0/24 dev client mtu 1400
    echo "1448 bytes in one write, the MTU at the route: $(send 1448 30)"
} | tee "$folder/seen"
kill "$SERVER_PID"
cat >"$folder/expected" <<'TEXT'
4000 bytes in one write: arrive
1448 bytes in one write: do not arrive in 5 seconds
1448 bytes in one write, the MTU at the route: arrive
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
