#!/bin/bash
# A packet socket is not told that its interface is gone, if the interface was down.
#
# A packet socket (AF_PACKET) that is bound to an interface reports ENETDOWN when the interface goes down: poll() returns
# POLLERR, and the error is read once. The interface may come up again, and frames arrive again; so a program keeps the
# socket and waits. One would expect the deletion of the interface to be reported too, by another error, or by POLLHUP as
# for a TUN device. It is if the interface was up: as ENETDOWN, which a mere "down" reports as well. If it was down
# already, nothing happens: no event, no error, and recv() says EAGAIN for ever. The socket is bound to interface -1 then,
# which only getsockname() shows (the index, signed). So a program that waits in poll() or epoll hangs; it must look
# again and again, or listen to rtnetlink.
#
# Seen with Linux 6.18, iproute2 6.1, Python 3.11, as root:
#   down: POLLERR, ENETDOWN
#   deleted while down: no event, EAGAIN, bound to interface -1
#   deleted while up: POLLERR, ENETDOWN, bound to interface -1
set -euo pipefail
space=packet-$$
folder=$(mktemp -d)
trap 'ip netns del "$space" 2>/dev/null || true; rm -rf "$folder"' EXIT
ip netns add "$space"
cat >"$folder/look.py" <<'PYTHON'
import errno
import select
import socket
import struct
import subprocess
import ctypes


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True)


def opened(name):
    ip("link", "add", name, "type", "veth", "peer", "name", name + "p")
    ip("link", "set", name, "up")
    sock = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
    sock.bind((name, 3))
    sock.setblocking(False)
    return sock


def bound(sock):
    """The index in sockaddr_ll: Python's getsockname turns it into a name."""
    libc = ctypes.CDLL(None, use_errno=True)
    address, size = ctypes.create_string_buffer(64), ctypes.c_uint(64)
    assert libc.getsockname(sock.fileno(), address, ctypes.byref(size)) == 0
    return struct.unpack_from("i", address.raw, 4)[0]


def events(sock):
    """What poll and recv say, without frames."""
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    seen = []
    for _, mask in poll.poll(300):
        seen.append("POLLERR" if mask & select.POLLERR else f"mask {mask}")
    while True:
        try:
            sock.recv(2000)
        except OSError as error:
            return ", ".join([*(seen or ["no event"]), errno.errorcode[error.errno]])


def where(sock):
    index = bound(sock)
    return f"bound to interface {index}" if index < 0 else "still bound"


one = opened("one")
ip("link", "set", "one", "down")
print("down:", events(one), flush=True)
ip("link", "del", "one")
print("deleted while down:", f"{events(one)}, {where(one)}", flush=True)
two = opened("two")
ip("link", "del", "two")
print("deleted while up:", f"{events(two)}, {where(two)}", flush=True)
PYTHON
ip netns exec "$space" python3 "$folder/look.py" | tee "$folder/seen"
cat >"$folder/expected" <<'TEXT'
down: POLLERR, ENETDOWN
deleted while down: no event, EAGAIN, bound to interface -1
deleted while up: POLLERR, ENETDOWN, bound to interface -1
TEXT
diff "$folder/expected" "$folder/seen" && echo "as described, on Linux $(uname -r)"
