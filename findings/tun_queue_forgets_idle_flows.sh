#!/bin/bash
# A second process cannot take over a TUN device by a queue of its own; by a duplicate of the descriptor it can.
#
# A process that restarts wants to leave its open connections to the former process, and to serve new ones itself. A
# device with a single queue cannot be attached twice. One with several queues can, and the kernel sends the packets of
# a flow to the queue that last sent a packet of it, which looks as if each process would get its own packets. But it
# forgets that after three seconds of silence and uses a hash then: half of the idle flows arrive at the new process,
# which does not know them and resets them. Duplicates of a descriptor are one queue: each packet is read by one process,
# which has to pass on what belongs to the other.
#
# Seen on Linux 6.18 (as root):
#   single queue, attached once more: EBUSY
#   two queues, 64 flows that the first one has answered, at once: 64 first, 0 second
#   the same flows after 4 s of silence: 30 first, 34 second
#   a duplicate: 64 of 64 packets read by it
set -euo pipefail
[[ $EUID == 0 && -e /dev/net/tun ]] || {
    echo "needs root and TUN devices" >&2
    exit 77
}
namespace=finding-$$
trap 'ip netns del "$namespace" 2>/dev/null || true' EXIT
ip netns add "$namespace"
ip -n "$namespace" tuntap add t1 mode tun
ip -n "$namespace" tuntap add t2 mode tun multi_queue
ip -n "$namespace" addr add 10.9.0.1/24 dev t2
ip -n "$namespace" link set t2 up
timeout 60 ip netns exec "$namespace" python3 - <<'PYTHON'
import errno, fcntl, os, select, socket, struct, time

TUN, NO_PI, MULTI = 0x0001, 0x1000, 0x0100
FLOWS = 64

def attach(name, flags):
    fd = os.open('/dev/net/tun', os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(fd, 0x400454ca, struct.pack('16sH22x', name, flags))
    return fd

first = attach(b't1', TUN | NO_PI)
try:
    attach(b't1', TUN | NO_PI)
    print('single queue, attached once more: works')
except OSError as error:
    print('single queue, attached once more:', errno.errorcode[error.errno])

queues = [attach(b't2', TUN | NO_PI | MULTI) for _ in range(2)]
sockets = [socket.socket(socket.AF_INET, socket.SOCK_DGRAM) for _ in range(FLOWS)]
for one in sockets:
    one.connect(('10.9.0.2', 7))

def received(fds):
    """Sends a datagram in each flow; the ports that each descriptor receives."""
    ports = [set() for _ in fds]
    for one in sockets:
        one.send(b'?')
    while True:
        ready = select.select(fds, [], [], 0.2)[0]
        if not ready:
            return ports
        for fd in ready:
            packet = os.read(fd, 2000)
            if packet[0] == 0x45 and packet[9] == 17:
                ports[fds.index(fd)].add(struct.unpack('!H', packet[20:22])[0])

def checksum(header):
    total = sum(struct.unpack('!10H', header))
    total = (total & 0xffff) + (total >> 16)
    return ~((total & 0xffff) + (total >> 16)) & 0xffff

def answer(fd):
    for one in sockets:
        port = one.getsockname()[1]
        ends = bytes([10, 9, 0, 2, 10, 9, 0, 1])
        header = struct.pack('!BBHHHBBH', 0x45, 0, 29, 0, 0, 64, 17, 0) + ends
        header = header[:10] + struct.pack('!H', checksum(header)) + header[12:]
        os.write(fd, header + struct.pack('!HHHH', 7, port, 9, 0) + b'!')

received(queues)
answer(queues[0])
a, b = received(queues)
print(f'two queues, {FLOWS} flows that the first one has answered, at once: {len(a)} first, {len(b)} second')
time.sleep(4)
a, b = received(queues)
print(f'the same flows after 4 s of silence: {len(a)} first, {len(b)} second')
os.close(queues.pop())
duplicate = os.dup(queues[0])
(a,) = received([duplicate])
print(f'a duplicate: {len(a)} of {FLOWS} packets read by it')
PYTHON
