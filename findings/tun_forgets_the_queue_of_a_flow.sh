#!/bin/bash
# A TUN device with several queues forgets which queue a flow belongs to, although the flow is busy.
#
# With IFF_MULTI_QUEUE a program attaches several queues to one device, and the kernel sends the packets of a flow to the
# queue that has written packets of that flow: so a thread, or a process, with a queue of its own keeps its connections.
# One would take that for a property of the flow as long as it lives. But the entry is removed when the queue has
# written nothing of the flow for 3 seconds, however many packets go the other way; then a hash chooses the queue. So a
# receiver of a one-way flow (a log, a camera, a peer that only listens) loses it to another queue in the middle, and a
# connection that pauses is answered elsewhere: one queue for each process does not divide connections between processes
# (a second process cannot take over new connections while the first one keeps the old ones).
#
# Here 64 UDP flows are written by queue 0 once. Then the kernel's sockets send, and what each queue gets is counted.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root (the hash is another one after each start of the machine, so
# the number of those that move differs: about half):
#   at once: all on queue 0
#   after 5 s in which the kernel sent all the time and queue 0 wrote nothing: some on queue 1
#   after queue 0 has written again: all on queue 0
set -euo pipefail
space=flows-$$
folder=$(mktemp -d)
trap 'ip netns del "$space" 2>/dev/null || true; rm -rf "$folder"' EXIT
ip netns add "$space"
ip -n "$space" tuntap add t0 mode tun multi_queue
ip -n "$space" addr add 10.9.0.1/24 dev t0
cat >"$folder/flows.py" <<'PYTHON'
import fcntl
import os
import select
import socket
import struct
import subprocess
import time

FLOWS = 64
TUNSETIFF, TUN, MULTI_QUEUE, NO_PI = 0x400454CA, 0x1, 0x100, 0x1000


def queue():
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(descriptor, TUNSETIFF, struct.pack("16sH22x", b"t0", TUN | NO_PI | MULTI_QUEUE))
    return descriptor


def packet(port):
    """One of a flow, towards the kernel."""
    udp = struct.pack("!HHHH", 9000, port, 9, 0) + b"x"
    header = bytearray(struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(udp), 0, 0, 64, 17, 0))
    header += socket.inet_aton("10.9.0.2") + socket.inet_aton("10.9.0.1")
    total = sum(struct.unpack("!10H", header))
    total = (total & 0xFFFF) + (total >> 16)
    header[10:12] = struct.pack("!H", ~(total + (total >> 16)) & 0xFFFF)
    return bytes(header) + udp


queues = [queue(), queue()]
subprocess.run(["ip", "link", "set", "t0", "up"], check=True)
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(FLOWS)]
for number, each in enumerate(sockets):
    each.bind(("10.9.0.1", 20000 + number))
    each.connect(("10.9.0.2", 9000))


def write():
    for number in range(FLOWS):
        os.write(queues[0], packet(20000 + number))


def received():
    """Number of flows whose datagram each queue gets."""
    for each in sockets:
        each.send(b"y")
    seen = [set(), set()]
    while sum(map(len, seen)) < FLOWS:
        ready, _, _ = select.select(queues, [], [], 5)
        assert ready, f"datagrams are missing: {seen}"
        for descriptor in ready:
            frame = os.read(descriptor, 2000)
            if frame[0] == 0x45 and frame[9] == 17:
                seen[queues.index(descriptor)].add(frame[20:22])
    return [len(flows) for flows in seen]


def told(flows):
    return "all on queue 0" if flows == [FLOWS, 0] else "some on queue 1" if 0 < flows[1] < FLOWS else str(flows)


write()
print("at once:", told(received()), flush=True)
until = time.monotonic() + 5
while time.monotonic() < until:
    last = received()
    time.sleep(0.1)
print("after 5 s in which the kernel sent all the time and queue 0 wrote nothing:", told(last), flush=True)
write()
print("after queue 0 has written again:", told(received()), flush=True)
PYTHON
ip netns exec "$space" python3 "$folder/flows.py" | tee "$folder/seen"
cat >"$folder/expected" <<'TEXT'
at once: all on queue 0
after 5 s in which the kernel sent all the time and queue 0 wrote nothing: some on queue 1
after queue 0 has written again: all on queue 0
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
