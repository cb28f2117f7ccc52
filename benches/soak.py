#!/usr/bin/env python3
"""Mixed traffic through the proxy over networks that lose and delay, for a long time.

    client -- bad network -- router, TUN -- proxy -- TUN, router -- bad network -- server

Everything is in network namespaces, made here and removed at the end. A bad network is a process of
this program between two TUNs: it delays each packet by a time of its own, so that some overtake others,
and drops some. Connections of many kinds come
and go: downloads, uploads and echoes of random sizes whose every byte is checked, ends of one direction
before the other, readers that pause, clients that reset in the middle, ones that do nothing for a while.
Every few seconds the proxy's memory, its CPU time and what was done are noted. In the end nothing may
have failed, no byte may differ, and the memory must not have grown since the first third.

Two figures of memory: *resident* is what the kernel counts (RSS). It counts the 256 KiB that all rings
lie on once for each ring that maps them. *Own* is the rest, which nobody else has and which is counted
once.

    cargo build --release --example proxy
    sudo benches/soak.py --minutes 30 --svg soak.svg
"""

import argparse
import asyncio
import bisect
import csv
import ctypes
import fcntl
import hashlib
import heapq
import math
import os
import pathlib
import random
import select
import signal
import socket
import statistics
import struct
import subprocess
import sys
import time

PORT = 8080
FRONT, BACKEND = "10.70.1.2", "10.70.4.1"
PIECE = 64 * 1024
TICK = os.sysconf("SC_CLK_TCK")
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


KINDS = {"down": 6, "up": 6, "both": 4, "slow": 1, "reset": 2, "idle": 1}


class Clients:
    def __init__(self, seed, kinds):
        self.dice = random.Random(seed)
        self.kinds = kinds
        self.done = {}
        self.bytes = 0
        self.failures = []

    async def forever(self, end):
        while time.monotonic() < end:
            seed = self.dice.getrandbits(48)
            kind = self.dice.choices(self.kinds, [KINDS[kind] for kind in self.kinds])[0]
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
            # Without this the kernel would send an ordinary end.
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
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
    clients = Clients(options.seed, [kind for kind in KINDS if kind not in options.without])
    end = time.monotonic() + 60 * options.minutes
    tasks = [asyncio.create_task(clients.forever(end)) for _ in range(options.clients)]
    while time.monotonic() < end:
        await asyncio.sleep(options.every)
        sample(clients)
    await asyncio.gather(*tasks)
    sample(clients)
    return clients


def usage(pid):
    """Resident bytes, own bytes among them, and CPU seconds."""
    status = dict(line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines())
    kib = lambda name: int(status[name].split()[0]) * 1024
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    cpu = (int(fields[11]) + int(fields[12])) / TICK
    return kib("VmRSS"), kib("VmRSS") - kib("RssShmem"), cpu


class Panel:
    """A curve or two over time."""

    def __init__(self, top, title, unit, curves):
        self.top, self.title, self.unit, self.curves = top, title, unit, curves
        self.most = max(max(values) for _, _, values in curves) * 1.1 or 1

    WIDTH, HEIGHT, LEFT, RIGHT = 720, 150, 84, 16

    def x(self, share):
        return self.LEFT + share * (self.WIDTH - self.LEFT - self.RIGHT)

    def y(self, value):
        return self.top + 24 + self.HEIGHT * (1 - value / self.most)

    def step(self):
        """A round number, so that there are three to six lines."""
        size = 10 ** math.floor(math.log10(self.most))
        return next(part * size for part in (0.2, 0.5, 1, 2, 5) if self.most / (part * size) < 6)

    def parts(self, minutes):
        yield text(self.LEFT, self.top + 12, self.title, "start")
        offset = self.WIDTH - self.RIGHT
        for name, style, _ in reversed(self.curves):
            yield text(offset, self.top + 12, name, "end")
            offset -= 7 * len(name) + 8
            yield f'<line x1="{offset - 24:.0f}" x2="{offset:.0f}" y1="{self.top + 8}" y2="{self.top + 8}" {style}/>'
            offset -= 40
        value = 0.0
        while value <= self.most:
            yield grid(self.LEFT, self.WIDTH - self.RIGHT, self.y(value), self.y(value))
            yield text(self.LEFT - 6, self.y(value) + 4, f"{value:g} {self.unit}", "end")
            value += self.step()
        every = next(every for every in (0.5, 1, 5, 10, 60) if minutes / every <= 8)
        for tick in range(int(minutes / every + 0.01) + 1):
            x = self.x(tick * every / minutes)
            yield grid(x, x, self.y(0), self.y(self.most))
            yield text(x, self.y(0) + 18, f"{tick * every:g} min", "middle")
        for _, style, values in self.curves:
            count = len(values) - 1 or 1
            points = " ".join(f"{self.x(n / count):.1f},{self.y(value):.1f}" for n, value in enumerate(values))
            yield f'<polyline points="{points}" fill="none" {style}/>'


def text(x, y, what, anchor):
    return f'<text x="{x:.0f}" y="{y:.0f}" font-size="12" text-anchor="{anchor}" fill="currentColor">{what}</text>'


def grid(x1, x2, y1, y2):
    return (f'<line x1="{x1:.1f}" x2="{x2:.1f}" y1="{y1:.1f}" y2="{y2:.1f}" '
            'stroke="currentColor" stroke-opacity="0.2"/>')


def svg(rows, title, points=180):
    """Throughput and memory over time: a picture to be put into a page, whose colour of text it takes.
    By itself it is black on white."""
    first, last = (0.0, rows[0][1], rows[0][2], 0.0, 0, 0, 0), rows[-1][0]
    rows = [first, *rows]
    before = lambda at: rows[max(0, bisect.bisect_right(rows, at, key=lambda row: row[0]) - 1)]
    times = [last * n / points for n in range(points + 1)]

    def rate(at):
        """Over the half minute on both sides: or the ends of single connections are all that is seen."""
        one, other = before(max(0, at - 30)), before(at + 30)
        return 8 * (other[5] - one[5]) / 1e6 / (other[0] - one[0])

    solid = 'stroke="#2a8fd0" stroke-width="1.5"'
    dashed = 'stroke="#d9822b" stroke-width="1.5" stroke-dasharray="5 3"'
    mib = lambda column: [before(at)[column] / 2**20 for at in times]
    throughput = [("mean of a minute", solid, [rate(at) for at in times])]
    memory = [("resident (RSS)", dashed, mib(1)), ("own", solid, mib(2))]
    panels = [Panel(24, "Payload carried, both directions", "Mbit/s", throughput),
              Panel(236, "Memory of the proxy", "MiB", memory)]
    lines = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {Panel.WIDTH} 448" width="100%" role="img" '
             f'aria-label="{title}">',
             "<style>svg:root { color: #222; background: #fff; }</style>",
             text(Panel.WIDTH / 2, 14, title, "middle")]
    for panel in panels:
        lines += panel.parts(last / 60)
    return "\n".join([*lines, "</svg>"]) + "\n"


def title(options):
    return (f"examples/proxy, {options.clients} connections at a time; each network delays by {options.delay:g} "
            f"± {options.jitter:g} ms and loses {options.loss:g} %")


def flat(rows, column):
    """Medians of an early and the last third in MiB, and whether it did not grow."""
    third = len(rows) // 3 or 1
    parts = (rows[third // 2:third * 3 // 2], rows[-third:])
    early, late = (statistics.median(row[column] for row in part) / 2**20 for part in parts)
    return early, late, late <= early * 1.1 + 4


def table(rows):
    """What it was after some times."""
    for minutes in (5, 10, 20, 30):
        behind = [row for row in rows if row[0] >= 60 * minutes - 3]
        if behind:
            at, resident, own, cpu, done, count, failures = behind[0]
            print(f"| {at / 60:.1f} min | {done} | {count / 1e9:.2f} | {failures} | {resident / 2**20:.1f} "
                  f"| {own / 2**20:.1f} | {cpu:.0f} |")


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
    parser.add_argument("--idle", type=float, help="the proxy ends connections that are idle for so many seconds")
    parser.add_argument("--keep-alive", type=float, default=60, help="seconds, as the proxy's option")
    parser.add_argument("--without", nargs="*", default=[], choices=KINDS, help="kinds of clients that do not come")
    parser.add_argument("--csv", help="file for all samples")
    parser.add_argument("--svg", help="file for the plot")
    parser.add_argument("--draw", help="draws --svg from a file of samples, and does nothing else")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--bad-network", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.serve:
        return asyncio.run(serve(options.serve))
    if options.bad_network:
        left, right, *chances = options.bad_network
        return bad_network(left, right, *map(float, chances))
    if options.draw:
        with open(options.draw, newline="") as file:
            rows = [tuple(map(float, row)) for row in list(csv.reader(file))[1:]]
        table(rows)
        return pathlib.Path(options.svg).write_text(svg(rows, title(options)))
    if os.geteuid() != 0:
        sys.exit("needs root")
    with Network(options) as net:
        inside = ["ip", "netns", "exec"]
        server = subprocess.Popen([*inside, net.server, sys.executable, __file__, "--serve", BACKEND],
                                  stdout=subprocess.PIPE)
        proxy = subprocess.Popen(
            [options.proxy, "--tun", f"tc@{net.front}={FRONT}/24", "--tun", f"ts@{net.back}=10.70.2.2/24",
             "--listen", f"{FRONT}:{PORT}", "--backend", f"{BACKEND}:{PORT}",
             "--dispatch", options.dispatch, "--buffer", "1M", "--keep-alive", str(options.keep_alive),
             *(["--idle", str(options.idle)] if options.idle else [])],
            stdout=subprocess.PIPE, text=True)
        try:
            server.stdout.readline()
            proxy.stdout.readline()
            enter(net.client)
            rows, start = [], time.monotonic()
            file = open(options.csv, "w", newline="") if options.csv else None
            writer = csv.writer(file) if file else None
            if writer:
                writer.writerow(("seconds", "resident", "own", "cpu", "done", "bytes", "failures"))

            def sample(clients):
                if proxy.poll() is not None:
                    sys.exit(f"the proxy has ended: {proxy.returncode}")
                resident, own, cpu = usage(proxy.pid)
                row = (time.monotonic() - start, resident, own, cpu, sum(clients.done.values()), clients.bytes,
                       len(clients.failures))
                rows.append(row)
                if writer:
                    writer.writerow(row)
                    file.flush()
                print(f"{row[0]:7.0f} s  {resident / 2**20:7.1f} MiB  {own / 2**20:7.1f} MiB own  {cpu:7.1f} s CPU  "
                      f"{row[4]:8} done  {row[5] / 1e9:7.2f} GB  {row[6]} failed", flush=True)

            clients = asyncio.run(work(options, sample))
            proxy.send_signal(signal.SIGTERM)
            print(proxy.communicate(timeout=30)[0])
        finally:
            for process in (server, proxy):
                process.kill()
                process.wait()
    for failure in clients.failures[:20]:
        print(failure)
    kinds = ", ".join(f"{count} {kind}" for kind, count in sorted(clients.done.items()))
    verdicts = [flat(rows, column) for column in (1, 2)]
    (early, late, _), (early_own, late_own, _) = verdicts
    print(f"{kinds}; {clients.bytes / 1e9:.2f} GB; {len(clients.failures)} failed; proxy exit {proxy.returncode}; "
          f"memory in MiB, medians: {early:.1f} early, {late:.1f} late; own {early_own:.1f} early, {late_own:.1f} late")
    table(rows)
    if options.svg:
        pathlib.Path(options.svg).write_text(svg(rows, title(options)))
    is_flat = all(verdict for _, _, verdict in verdicts)
    if clients.failures or proxy.returncode or not is_flat:
        sys.exit("FAILED" if is_flat else "FAILED: the memory has grown")


if __name__ == "__main__":
    main()
