#!/usr/bin/env python3
"""Mixed traffic through the proxy over networks that lose and delay, for a long time.

    client -- bad network -- router, TUN -- proxy -- TUN, router -- bad network -- server

Everything is in network namespaces, made here and removed at the end. A bad network is a process of
this program between two TUNs: it delays each packet by a time of its own, so that some overtake others,
and drops some. Connections of many kinds come
and go: downloads, uploads and echoes of random sizes whose every byte is checked, ends of one direction
before the other, readers that pause, clients that reset in the middle, ones that do nothing for a while.
Every few seconds the proxy's resident memory, its CPU time and what was done are noted. In the end
nothing may have failed, no byte may differ, and the memory must not have grown since the first third.

    cargo build --release --example proxy
    sudo benches/soak.py --minutes 30 --svg soak.svg
"""

import argparse
import asyncio
import csv
import ctypes
import fcntl
import hashlib
import heapq
import os
import pathlib
import random
import select
import signal
import statistics
import struct
import subprocess
import sys
import time

PORT = 8080
FRONT, BACKEND = "10.70.1.2", "10.70.4.1"
PIECE = 64 * 1024
TICK = os.sysconf("SC_CLK_TCK")
PAGE = os.sysconf("SC_PAGE_SIZE")
LIMIT = 120


def run(*command):
    subprocess.run(command, check=True, timeout=20, stdout=subprocess.DEVNULL)


class Network:
    """Four namespaces with unique names, and two bad networks."""

    def __init__(self, options):
        stem = f"sosplice-{os.getpid()}"
        self.names = [f"{stem}-{part}" for part in ("client", "front", "back", "server")]
        self.client, self.front, self.back, self.server = self.names
        self.options, self.bad = options, []

    def __enter__(self):
        try:
            for name in self.names:
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
            self.tun(self.front, "tc", "10.70.1.1")
            self.tun(self.back, "ts", "10.70.2.1")
            self.join(self.client, "10.70.3.1", self.front, "10.70.3.2")
            self.join(self.server, "10.70.4.1", self.back, "10.70.4.2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def tun(self, netns, device, address):
        ip = ["ip", "-n", netns]
        run(*ip, "tuntap", "add", device, "mode", "tun")
        run(*ip, "addr", "add", f"{address}/24", "dev", device)
        run(*ip, "link", "set", device, "mtu", "1500", "txqueuelen", "10000", "up")

    def join(self, host, address, router, gate):
        self.tun(host, "wan", address)
        self.tun(router, "wan", gate)
        run("ip", "-n", host, "route", "add", "default", "via", gate)
        run("ip", "netns", "exec", router, "sysctl", "-qw", "net.ipv4.ip_forward=1")
        chances = [str(self.options.delay), str(self.options.jitter), str(self.options.loss)]
        command = [sys.executable, __file__, "--bad-network", host, router, *chances]
        self.bad.append(subprocess.Popen(command))

    def __exit__(self, *_):
        for process in self.bad:
            process.kill()
            process.wait()
        for name in self.names:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def enter(netns):
    """Moves this thread, and so this single-threaded process, into a namespace."""
    with open(f"/run/netns/{netns}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"setns {netns}")


def open_tun(netns):
    """The device `wan` of a namespace."""
    enter(netns)
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, 0x400454CA, struct.pack("16sH22x", b"wan", 0x1001))
    return device


def bad_network(left, right, delay, jitter, loss):
    """Carries packets between two devices, each late by its own time in milliseconds, or (percent) not."""
    ends = [open_tun(left), open_tun(right)]
    dice, queue, count = random.Random(left), [], 0
    while True:
        wait = max(0.0, queue[0][0] - time.monotonic()) if queue else None
        ready, _, _ = select.select(ends, [], [], wait)
        now = time.monotonic()
        for source in ready:
            try:
                packet = os.read(source, 65536)
            except BlockingIOError:
                continue
            if dice.uniform(0, 100) >= loss:
                count += 1
                at = now + (delay + dice.uniform(-jitter, jitter)) / 1000
                heapq.heappush(queue, (at, count, ends[source == ends[0]], packet))
        while queue and queue[0][0] <= now:
            _, _, sink, packet = heapq.heappop(queue)
            try:
                os.write(sink, packet)
            except OSError:
                pass


def stream(seed, size):
    """The bytes that belong to a seed, in pieces."""
    block = hashlib.shake_128(seed.to_bytes(8, "big")).digest(PIECE + 251)
    for at in range(0, size, PIECE):
        shift = (at // PIECE) % 251
        yield block[shift:shift + min(PIECE, size - at)]


async def check(reader, seed, size, pause=0.0):
    """Reads exactly the bytes of a seed."""
    for number, piece in enumerate(stream(seed, size)):
        if pause and number % 8 == 0:
            await asyncio.sleep(pause)
        if await reader.readexactly(len(piece)) != piece:
            raise ValueError(f"bytes of seed {seed} differ in piece {number}")


async def send(writer, seed, size):
    for piece in stream(seed, size):
        writer.write(piece)
        await writer.drain()


HEADER = struct.Struct(">cQQQ")


async def serve_one(reader, writer):
    """A request names what is to be received and what is to be sent."""
    try:
        kind, seed, up, down = HEADER.unpack(await reader.readexactly(HEADER.size))
        if kind == b"B":
            await asyncio.gather(check(reader, seed, up), send(writer, seed + 1, down))
        else:
            await check(reader, seed, up)
            if await reader.read(1) != b"":
                raise ValueError("more than was announced")
            await send(writer, seed + 1, down)
        writer.close()
        await writer.wait_closed()
    except (ConnectionError, asyncio.IncompleteReadError):
        writer.transport.abort()


async def serve(address):
    server = await asyncio.start_server(serve_one, address, PORT, backlog=1024, limit=PIECE)
    print("listening", flush=True)
    async with server:
        await server.serve_forever()


def size(dice):
    """Many small ones, some large ones."""
    return int(2 ** dice.uniform(0, dice.choice((8, 14, 18, 22))))


class Clients:
    def __init__(self, seed):
        self.dice = random.Random(seed)
        self.done = {}
        self.bytes = 0
        self.failures = []

    async def forever(self, end):
        while time.monotonic() < end:
            seed = self.dice.getrandbits(48)
            kind = self.dice.choices(("down", "up", "both", "slow", "reset", "idle"), (6, 6, 4, 1, 2, 1))[0]
            try:
                await asyncio.wait_for(self.one(kind, seed), LIMIT)
                self.done[kind] = self.done.get(kind, 0) + 1
            except Exception as error:
                self.failures.append(f"{kind} {seed}: {error!r}")

    async def one(self, kind, seed):
        dice = random.Random(seed)
        up, down = size(dice), size(dice)
        if kind == "down":
            up = 0
        elif kind == "up":
            down = 0
        reader, writer = await asyncio.open_connection(FRONT, PORT, limit=PIECE)
        if kind == "idle":
            await asyncio.sleep(dice.uniform(0, 20))
        both = kind == "both"
        writer.write(HEADER.pack(b"B" if both else b"A", seed, up, down))
        if kind == "reset":
            await send(writer, seed, up // 2)
            writer.transport.abort()
            return
        if both:
            await asyncio.gather(send(writer, seed, up), check(reader, seed + 1, down))
            writer.write_eof()
        else:
            await send(writer, seed, up)
            writer.write_eof()
            await check(reader, seed + 1, down, 0.05 if kind == "slow" else 0.0)
        if await reader.read(1) != b"":
            raise ValueError("bytes behind the last one")
        self.bytes += up + down
        writer.close()
        await writer.wait_closed()


async def work(options, sample):
    clients = Clients(options.seed)
    end = time.monotonic() + 60 * options.minutes
    tasks = [asyncio.create_task(clients.forever(end)) for _ in range(options.clients)]
    while time.monotonic() < end:
        await asyncio.sleep(options.every)
        sample(clients)
    await asyncio.gather(*tasks)
    sample(clients)
    return clients


def usage(pid):
    """Resident bytes and CPU seconds."""
    resident = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return resident, (int(fields[11]) + int(fields[12])) / TICK


def svg(rows, title):
    """Resident memory over time, as a picture to be put into a page."""
    width, height, left, bottom = 640, 200, 56, 30
    last = rows[-1][0] or 1
    top = max(row[1] for row in rows) * 1.15
    x = lambda seconds: left + seconds / last * (width - left - 10)
    y = lambda value: height - bottom - value / top * (height - bottom - 24)
    line = " ".join(f"{x(row[0]):.1f},{y(row[1]):.1f}" for row in rows)
    text = lambda tx, ty, what, anchor: (
        f'<text x="{tx:.0f}" y="{ty:.0f}" font-size="11" text-anchor="{anchor}" fill="currentColor">{what}</text>')
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" role="img">',
             text(left, 14, title, "start")]
    for part in range(5):
        value, seconds = top * part / 4, last * part / 4
        parts.append(f'<line x1="{left}" x2="{width - 10}" y1="{y(value):.1f}" y2="{y(value):.1f}" '
                     'stroke="currentColor" stroke-opacity="0.2"/>')
        parts.append(text(left - 6, y(value) + 4, f"{value / 2**20:.0f} MiB", "end"))
        parts.append(text(x(seconds), height - 10, f"{seconds / 60:.0f} min", "middle"))
    parts.append(f'<polyline points="{line}" fill="none" stroke="#0a7bbb" stroke-width="1.5"/></svg>')
    return "\n".join(parts) + "\n"


def main():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--clients", type=int, default=32, help="connections at a time")
    parser.add_argument("--delay", type=float, default=5, help="milliseconds, of each direction of each network")
    parser.add_argument("--jitter", type=float, default=1, help="milliseconds that a packet's delay varies")
    parser.add_argument("--loss", type=float, default=0.3, help="percent of packets that are dropped")
    parser.add_argument("--every", type=float, default=5, help="seconds between samples")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--dispatch", default="worker", choices=["worker", "direct"])
    parser.add_argument("--proxy", default=f"{target}/release/examples/proxy")
    parser.add_argument("--csv", help="file for all samples")
    parser.add_argument("--svg", help="file for the plot")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--bad-network", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return asyncio.run(serve(options.serve))
    if options.bad_network:
        left, right, *chances = options.bad_network
        return bad_network(left, right, *map(float, chances))
    if os.geteuid() != 0:
        sys.exit("needs root")
    with Network(options) as net:
        inside = ["ip", "netns", "exec"]
        server = subprocess.Popen([*inside, net.server, sys.executable, __file__, "--serve", BACKEND],
                                  stdout=subprocess.PIPE)
        proxy = subprocess.Popen(
            [options.proxy, "--tun", f"tc@{net.front}={FRONT}/24", "--tun", f"ts@{net.back}=10.70.2.2/24",
             "--listen", f"{FRONT}:{PORT}", "--backend", f"{BACKEND}:{PORT}",
             "--dispatch", options.dispatch, "--buffer", "1M"],
            stdout=subprocess.PIPE, text=True)
        try:
            server.stdout.readline()
            proxy.stdout.readline()
            enter(net.client)
            rows, start = [], time.monotonic()

            def sample(clients):
                if proxy.poll() is not None:
                    sys.exit(f"the proxy has ended: {proxy.returncode}")
                resident, cpu = usage(proxy.pid)
                row = (time.monotonic() - start, resident, cpu, sum(clients.done.values()), clients.bytes,
                       len(clients.failures))
                rows.append(row)
                print(f"{row[0]:7.0f} s  {resident / 2**20:7.1f} MiB  {cpu:7.1f} s CPU  {row[3]:8} done  "
                      f"{row[4] / 1e9:7.2f} GB  {row[5]} failed", flush=True)

            clients = asyncio.run(work(options, sample))
            proxy.send_signal(signal.SIGTERM)
            print(proxy.communicate(timeout=30)[0])
        finally:
            for process in (server, proxy):
                process.kill()
                process.wait()
    for failure in clients.failures[:20]:
        print(failure)
    if options.csv:
        with open(options.csv, "w", newline="") as file:
            csv.writer(file).writerows([("seconds", "resident", "cpu", "done", "bytes", "failures"), *rows])
    third = len(rows) // 3 or 1
    early, late = (statistics.median(row[1] for row in part) for part in (rows[third // 2:third * 3 // 2], rows[-third:]))
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(clients.done.items()))
    print(f"{kinds}; {clients.bytes / 1e9:.2f} GB; {len(clients.failures)} failed; proxy exit {proxy.returncode}; "
          f"resident memory {early / 2**20:.1f} MiB early, {late / 2**20:.1f} MiB late (medians)")
    if options.svg:
        title = f"Resident memory of the proxy, {options.clients} connections at a time, delay {options.delay:g} ms, "\
            f"loss {options.loss:g} %"
        pathlib.Path(options.svg).write_text(svg(rows, title))
    flat = late <= early * 1.1 + 4 * 2**20
    if clients.failures or proxy.returncode or not flat:
        sys.exit("FAILED" if flat else "FAILED: the memory has grown")


if __name__ == "__main__":
    main()
