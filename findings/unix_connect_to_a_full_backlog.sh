#!/bin/bash
# A non-blocking connect to a Unix socket whose backlog is full fails, and nothing tells when there is room.
#
# With TCP a non-blocking connect() is in progress (EINPROGRESS), and poll() reports POLLOUT when it has succeeded or
# failed. One would guess the same for Unix stream sockets, at least when the server is only slow to accept. But connect()
# answers EAGAIN, the attempt is over, and poll() on the socket reports POLLOUT and POLLHUP at once, as on each
# socket that is not connected: before there is room and after. An event loop that waits for "writable" and calls
# connect() again spins; it has to try by a timer, or let a thread block. (getsockopt(SO_ERROR) is 0.)
#
# Seen on Linux 6.18:
#   the backlog is full: connect() gives EAGAIN, SO_ERROR is 0, poll() says POLLOUT POLLHUP
#   a connection was accepted: poll() says POLLOUT POLLHUP
#   connect() again: connected, poll() says POLLOUT
#   TCP for comparison: connect() gives EINPROGRESS, poll() says nothing
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
seen=$(timeout 30 python3 - "$folder/socket" <<'PYTHON'
import errno, select, socket, sys


def ready(one):
    poll = select.poll()
    poll.register(one, select.POLLIN | select.POLLOUT)
    events = dict(poll.poll(100)).get(one.fileno(), 0)
    names = [name for name in ("POLLIN", "POLLOUT", "POLLERR", "POLLHUP") if events & getattr(select, name)]
    return " ".join(names) or "nothing"


def connect(family, to):
    one = socket.socket(family)
    one.setblocking(False)
    return one, errno.errorcode.get(one.connect_ex(to), "connected")


listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1])
listener.listen(0)
held = []
while True:
    one, result = connect(socket.AF_UNIX, sys.argv[1])
    if result != "connected":
        break
    held.append(one)
error = one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
print(f"the backlog is full: connect() gives {result}, SO_ERROR is {error}, poll() says {ready(one)}")
listener.accept()
print(f"a connection was accepted: poll() says {ready(one)}")
print(f"connect() again: {errno.errorcode.get(one.connect_ex(sys.argv[1]), 'connected')}, poll() says {ready(one)}")
slow = socket.socket()
slow.bind(("127.0.0.1", 0))
slow.listen(0)
while True:
    one, result = connect(socket.AF_INET, slow.getsockname())
    held.append(one)
    if ready(one) == "nothing":
        break
print(f"TCP for comparison: connect() gives {result}, poll() says {ready(one)}")
PYTHON
)
echo "$seen"
diff <(echo "$seen") <(sed -n '/^# Seen/,/^set/p' "$0" | sed -n 's/^#   //p')
