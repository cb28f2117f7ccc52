#!/bin/bash
# microsocks ends a connection when one direction of it ends.
#
# A client that sends a request, closes its direction, and reads the answer until the end, as `nc -N` does, gets no
# answer through microsocks: at the first end of a stream it closes both connections, and what the server sends later
# is lost. RFC 1928 says nothing of it; TCP lets both directions end apart from each other, and dante does so. A splice
# forwards an end of stream, so with such a proxy behind it clients may lose answers; the tests of examples/tun2socks
# ask microsocks for downloads only.
#
# Seen with microsocks 1.0.3 of Debian 12 (root, iproute2, python3):
#   answered while the client's direction is open: b'answer'
#   answered when the client has closed it: b''
set -euo pipefail
folder=$(mktemp -d)
netns=finding-$$
trap 'for pid in $(ip netns pids "$netns"); do kill "$pid" || true; done; ip netns del "$netns"; rm -rf "$folder"' EXIT
for tool in ip:iproute2 python3:python3 microsocks:microsocks; do
    command -v "${tool%%:*}" >/dev/null || { apt-get update -q && apt-get install -q -y "${tool##*:}"; }
done
ip netns add "$netns"
ip -n "$netns" link set lo up
cd "$folder"
ip netns exec "$netns" microsocks -i 127.0.0.1 -p 1080 2>/dev/null &
cat >look.py <<'PY'
import socket, struct, threading, time

listener = socket.create_server(("127.0.0.1", 7))


def serve(half_closed):
    stream = listener.accept()[0]
    stream.recv(100)
    if half_closed:
        # The end has arrived here.
        assert stream.recv(100) == b""
        # microsocks closes at once what it is going to close.
        time.sleep(0.5)
    try:
        stream.sendall(b"answer")
    except OSError:
        pass
    stream.close()


def proxied():
    for _ in range(500):
        try:
            stream = socket.create_connection(("127.0.0.1", 1080))
            break
        except ConnectionRefusedError:
            time.sleep(0.01)
    stream.sendall(b"\5\1\0")
    assert stream.recv(2) == b"\5\0"
    stream.sendall(b"\5\1\0\1" + socket.inet_aton("127.0.0.1") + struct.pack(">H", 7))
    assert stream.recv(10)[:2] == b"\5\0"
    return stream


for half_closed, when in (False, "while the client's direction is open"), (True, "when the client has closed it"):
    server = threading.Thread(target=serve, args=(half_closed,))
    server.start()
    stream = proxied()
    stream.sendall(b"question")
    if half_closed:
        stream.shutdown(socket.SHUT_WR)
    got = b""
    try:
        while piece := stream.recv(100):
            got += piece
    except ConnectionResetError:
        pass
    server.join()
    print(f"answered {when}: {got}")
PY
ip netns exec "$netns" python3 look.py | tee seen
cat >expected <<'TEXT'
answered while the client's direction is open: b'answer'
answered when the client has closed it: b''
TEXT
diff expected seen && echo "as described, with microsocks $(dpkg-query -W -f '${Version}' microsocks)"
