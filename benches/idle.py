#!/usr/bin/env python3
"""Many spliced connections over real TUNs that stand idle: memory, CPU, and what using them costs.

The kernel's TCP at both ends, in network namespaces of our own. For each number of connections the proxy
is started anew; all connections are opened, carry a message there and back, stand still, and carry one
again, compared byte by byte. A proxied connection is two of the proxy's.

    cargo build --release --example proxy
    sudo benches/idle.py                       # about 2 minutes
"""

import argparse
import multiprocessing
import os
import pathlib
import resource
import selectors
import socket
import statistics
import subprocess
import time

import compare

REST = 7


def serve(netns, ready):
    """Echoes everything."""
    compare.enter(netns)
    selector = selectors.DefaultSelector()
    listener = socket.create_server(("", compare.PORT), backlog=4096)
    selector.register(listener, selectors.EVENT_READ)
    ready.set()
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                selector.register(listener.accept()[0], selectors.EVENT_READ)
            elif data := key.fileobj.recv(65536):
                key.fileobj.sendall(data)
            else:
                selector.unregister(key.fileobj)
                key.fileobj.close()


def memory(pid):
    """Bytes that nobody else has, and the page tables."""
    fields = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    return sum(int(fields[name].split()[0]) * 1024 for name in ("RssAnon", "VmPTE"))


def talk(connections, size):
    for number, connection in enumerate(connections):
        connection.sendall(number.to_bytes(4, "big") * (size // 4))
    for number, connection in enumerate(connections):
        answer = b""
        while len(answer) < size:
            piece = connection.recv(65536)
            if not piece:
                raise EOFError(f"connection {number} ended")
            answer += piece
        if answer != number.to_bytes(4, "big") * (size // 4):
            raise ValueError(f"connection {number}: other bytes")


def visit(netns, pid, pairs, options, results):
    """The clients, in their namespace: no packet leaves it."""
    compare.enter(netns)
    before, start = memory(pid), time.monotonic()
    connections = [socket.create_connection((compare.CLIENT_GATE, compare.PORT), 30) for _ in range(pairs)]
    opened = time.monotonic() - start
    talk(connections, options.bytes)
    awake = memory(pid)
    time.sleep(REST)
    still, start, cpu = memory(pid), time.monotonic(), compare.cpu(pid)
    time.sleep(options.seconds)
    share = (compare.cpu(pid) - cpu) / (time.monotonic() - start)
    cpu = compare.cpu(pid)
    talk(connections, options.bytes)
    used = (compare.cpu(pid) - cpu) / pairs
    each = lambda total: (total - before) / (2 * pairs)
    results.put((opened, each(awake), each(still), 100 * share, 1e6 * used))


def measure(net, pairs, options):
    command = [options.proxy, *compare.proxy_arguments(net), "--dispatch", options.dispatch]
    proxy = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    ready, results = multiprocessing.Event(), multiprocessing.Queue()
    server = multiprocessing.Process(target=serve, args=(net.server, ready), daemon=True)
    server.start()
    arguments = (net.client, proxy.pid, pairs, options, results)
    client = multiprocessing.Process(target=visit, args=arguments, daemon=True)
    try:
        if not ready.wait(10):
            raise TimeoutError("the server does not listen")
        time.sleep(0.5)  # until the devices carry
        client.start()
        return results.get(timeout=120)
    finally:
        for process in (client, server):
            if process.pid:
                process.kill()
        compare.stop(proxy)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--proxy", default="target/release/examples/proxy", help="the program")
    parser.add_argument("--dispatch", default="adaptive")
    parser.add_argument("--connections", type=int, nargs="+", default=[2, 20, 200, 2000, 10_000])
    parser.add_argument("--bytes", type=int, default=1024, help="of each message")
    parser.add_argument("--seconds", type=float, default=10, help="how long to look on")
    parser.add_argument("--rounds", type=int, default=1, help="the median of so many")
    options = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    compare.use(False)
    print(compare.machine())
    print("opened: seconds; memory: bytes for each of the proxy's connections, with messages under way and")
    print(f"{REST} s later; idle: percent of a core; a message: us of the proxy's CPU, there and back, to wake up\n")
    print(f"| connections | opened | awake | at rest | idle | a message of {options.bytes} |\n|---|---|---|---|---|---|")
    for count in options.connections:
        with compare.Network(1500) as net:
            rounds = [measure(net, max(1, count // 2), options) for _ in range(options.rounds)]
        opened, awake, still, idle, used = (statistics.median(column) for column in zip(*rounds))
        print(f"| {count} | {opened:.2f} | {awake:.0f} | {still:.0f} | {idle:.2f} | {used:.0f} |", flush=True)


if __name__ == "__main__":
    main()
