#!/usr/bin/env python3
"""Proxies over an emulated wide-area path: this crate's TCP beside the kernel's, which HAProxy has.

    client -- TUN == wan_path == TUN -- forwarding -- TUN or veth -- proxy -- TUN or veth -- server

Client and server are the kernel's TCP, in network namespaces that are made for each run and removed behind
it. Contestants take turns within each round, so that a machine that drifts drifts for all; those of one round
have the same seed of losses. What a path loses, delays and reorders are packets of 1,500 bytes.

    cargo build --release --bench wan_path --example proxy
    sudo benches/wan.py                                              # every cell: half an hour
    sudo benches/wan.py --cells jitter answer --rounds 6             # cells by a part of their name
    sudo benches/wan.py --contestants cubic kernel-cubic --rate 100

cubic, reno, bbr      examples/proxy with this congestion control
kernel-cubic, -reno, -bbr
                      HAProxy with splice(2), one thread, and this one of the kernel's, set by route

Rates are goodput since connect, so slow start is part of it; answers are the time from connect to the last
byte. The ratio is to the same congestion control of the kernel, of medians (and for answers of the 95th
percentiles): more is better for rates, less for times. After an outage: the time until the first byte. The
flows of a fair cell share one bottleneck, begin 2 s apart, each of them first in half of the runs, and
count from 5 s on; the factor is between their medians.

What it cannot tell: how fast a proxy is. On a machine that has other things to do, keep the rate low.
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import signal
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import threading
import time

import compare

OURS = ["cubic", "reno", "bbr"]
KERNEL = [f"kernel-{name}" for name in OURS]
PIECE = 1 << 18
# Of a flow that others join.
STAGGER, WARM = 2, 5


@dataclasses.dataclass(frozen=True)
class Cell:
    """What is measured, and the path: milliseconds, percent, and round trips' bytes for the queue."""

    name: str
    kind: str = "download"
    rtt: int = 50
    queue: float = 1
    loss: float = 0
    jitter: float = 0
    overtake: bool = False
    late: tuple = (0, 0)
    outage: tuple = (0, 0)
    size: int = 0
    drop: bool = False

    def path(self, rate, seed):
        """Arguments of wan_path."""
        trip = rate * 1e6 / 8 * self.rtt / 1e3
        narrow, wide = str(max(int(trip * self.queue), 4500)), str(int(trip) + 65536)
        queues = [narrow, wide] if self.kind == "upload" else [wide, narrow]
        options = {"rate": rate, "delay": self.rtt / 2, "loss": self.loss, "jitter": self.jitter, "seed": seed,
                   "drop-byte": self.size * self.drop}  # fmt: skip
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        for name in ("late", "outage"):
            words += [f"--{name}", *map(str, getattr(self, name))]
        return [*words, "--queue", *queues, *(["--overtake"] if self.overtake else [])]


CELLS = [
    Cell("clean, 10 ms", rtt=10),
    Cell("clean, 50 ms"),
    Cell("clean, 100 ms", rtt=100),
    Cell("queue of a tenth, 50 ms", queue=0.1),
    Cell("loss 0.1 %, 50 ms", loss=0.1),
    Cell("loss 1 %, 50 ms", loss=1),
    Cell("loss 3 %, 10 ms", rtt=10, loss=3),
    Cell("1 % late by 5 ms, 50 ms", late=(1, 5)),
    Cell("jitter 5 ms, 50 ms", jitter=5),
    Cell("jitter 5 ms that reorders, 50 ms", jitter=5, overtake=True),
    Cell("upload, clean, 50 ms", "upload"),
    Cell("upload, loss 1 %, 50 ms", "upload", loss=1),
    Cell("upload, 1 % late by 5 ms, 50 ms", "upload", late=(1, 5)),
    Cell("answer of 64 KiB, 50 ms", "answer", size=1 << 16),
    Cell("answer of 64 KiB, loss 1 %, 50 ms", "answer", size=1 << 16, loss=1),
    Cell("answer of 64 KiB, last packet lost, 100 ms", "answer", rtt=100, size=1 << 16, drop=True),
    Cell("answer of 1 MiB, 50 ms", "answer", size=1 << 20),
    Cell("answer of 1 MiB, loss 1 %, 50 ms", "answer", size=1 << 20, loss=1),
    Cell("outage of 3 s, 50 ms", "outage", outage=(3, 3)),
    Cell("fair: beside a flow of kernel-cubic, 50 ms", "fair"),
]


class Network(compare.Network):
    """Its client's namespace forwards; `host` is behind the path."""

    def __init__(self, congestion):
        super().__init__(1500, routed=True)
        self.congestion = congestion

    def route(self):
        for netns, address in ((self.client, compare.HOST_GATE), (self.host, compare.HOST)):
            ip = ["ip", "-n", netns]
            compare.run(*ip, "tuntap", "add", "wan", "mode", "tun")
            compare.run(*ip, "addr", "add", f"{address}/{compare.PREFIX}", "dev", "wan")
            compare.run(*ip, "link", "set", "wan", "txqueuelen", "10000", "up")
        # By route: a namespace's sysctl takes only what the whole machine allows.
        compare.run("ip", "-n", self.host, "route", "add", "10.77.0.0/16", "dev", "wan", "congctl", "lock", "cubic")
        compare.run("ip", "-n", self.middle, "route", "add", compare.HOST, "via", "10.77.3.1",
                    "congctl", "lock", self.congestion)  # fmt: skip
        compare.run(*compare.within(self.client, "sysctl", "-qw", "net.ipv4.ip_forward=1"))
        for netns in (self.host, self.middle):
            compare.run(*compare.within(netns, "sysctl", "-qw", "net.ipv4.tcp_no_metrics_save=1"))


# The server, and what a client does: run in processes of their own.


def serve(ready):
    listener = socket.create_server(("", compare.PORT), backlog=64)
    ready.send(True)
    while True:
        threading.Thread(target=serve_one, args=(listener.accept()[0],), daemon=True).start()


def serve_one(connection):
    """One request: `answer BYTES`, `endless` or `upload SECONDS`."""
    with contextlib.suppress(OSError), connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        request = b""
        while not request.endswith(b"\n"):
            request += connection.recv(1)
        kind, number = request.split()
        if kind == b"upload":
            connection.sendall(b"%d\n" % receive(connection, float(number))[0])
            connection.recv(1)
            return
        left, piece = int(number) if kind == b"answer" else 1 << 60, bytes(PIECE)
        while left:
            left -= connection.send(piece[:left])
        connection.recv(1)


def receive(connection, seconds, most=1 << 60):
    """Receives for so long, or so many bytes: how many, and how many came until when."""
    end, total, series, piece = time.monotonic() + seconds, 0, [], bytearray(PIECE)
    while total < most and (left := end - time.monotonic()) > 0:
        connection.settimeout(left)
        with contextlib.suppress(TimeoutError):
            count = connection.recv_into(piece)
            if not count:
                raise EOFError(f"the connection ended after {total} bytes")
            total += count
            series.append((time.monotonic(), total))
    return total, series


def ask(address, request):
    connection = socket.create_connection((address, compare.PORT), timeout=60)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    connection.sendall(request)
    return connection


def download(address, seconds):
    """When it began, and the bytes until when."""
    start = time.monotonic()
    with ask(address, b"endless 0\n") as connection:
        return start, receive(connection, seconds - (time.monotonic() - start))[1]


def upload(address, seconds):
    with ask(address, b"upload %f\n" % seconds) as connection:
        def write():
            with contextlib.suppress(OSError):
                while True:
                    connection.sendall(bytes(1 << 16))
        threading.Thread(target=write, daemon=True).start()
        return int(connection.makefile().readline())


def answers(address, size, count):
    times = []
    for _ in range(count):
        start = time.monotonic()
        with ask(address, b"answer %d\n" % size) as connection:
            receive(connection, 60, size)
        times.append(time.monotonic() - start)
    return times


class Job:
    """A function in a process of its own within a namespace."""

    def __init__(self, netns, function, *arguments):
        self.end, other = multiprocessing.Pipe()
        self.process = multiprocessing.Process(target=self.run, args=(netns, function, arguments, other), daemon=True)
        self.process.start()
        other.close()

    @staticmethod
    def run(netns, function, arguments, end):
        compare.enter(netns)
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            if function is serve:
                serve(end)
            end.send(function(*arguments))
        except (OSError, EOFError, ValueError) as error:
            end.send(RuntimeError(f"{function.__name__}: {error}"))

    def result(self, seconds):
        if not self.end.poll(seconds):
            raise TimeoutError("no result in time")
        result = self.end.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def stop(self):
        self.process.kill()
        self.process.join()


class Run:
    """Everything of one run: namespaces, path, server, proxies."""

    def __init__(self, options, cell, contestants, seed):
        self.options, self.cell, self.contestants, self.seed = options, cell, contestants, seed
        self.stack = contextlib.ExitStack()

    def __enter__(self):
        with contextlib.ExitStack() as stack:
            kernel = next((name.removeprefix("kernel-") for name in self.contestants if name in KERNEL), "cubic")
            self.net = stack.enter_context(Network(kernel))
            path = [self.options.path, "--tun", f"wan@{self.net.host}", "--tun", f"wan@{self.net.client}",
                    *self.cell.path(self.options.rate, self.seed)]  # fmt: skip
            self.spawn(stack, ["chrt", "-f", "10", *path])
            server = self.job(stack, self.net.server, serve)
            server.result(5)
            for name in self.contestants:
                self.spawn(stack, self.proxy(name))
            self.stack = stack.pop_all()
        return self

    def __exit__(self, *_):
        self.stack.close()

    def proxy(self, name):
        if name in KERNEL:
            return compare.within(self.net.middle, "haproxy", "-db", "-q", "-f", self.options.haproxy_config)
        chosen = ["--congestion", name] if self.options.chooses else []
        return [self.options.proxy, *compare.proxy_arguments(self.net), "--grace", "0", *chosen]

    def spawn(self, stack, command):
        """Starts a program and waits until it says something, or until it listens."""
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        stack.callback(compare.stop, process)
        if "haproxy" in command:
            compare.listening(self.net.middle)
        elif not process.stdout.readline():
            raise RuntimeError(f"{command[0]} ended: {process.stderr.read().strip()}")

    def job(self, stack, *arguments):
        job = Job(*arguments)
        stack.callback(job.stop)
        return job

    def ask(self, name, function, *arguments):
        address = compare.PROXY_FRONT if name in KERNEL else compare.CLIENT_GATE
        return self.job(self.stack, self.net.host, function, address, *arguments)

    def measure(self):
        """Figures of each contestant."""
        cell, seconds = self.cell, self.options.seconds
        name = self.contestants[0]
        if cell.kind == "fair":
            return self.fair()
        if cell.kind == "answer":
            times = self.ask(name, answers, cell.size, self.options.answers).result(60 * self.options.answers)
            return {name: [1e3 * time for time in times]}
        if cell.kind == "upload":
            return {name: [self.ask(name, upload, seconds).result(seconds + 60) * 8e-6 / seconds]}
        seconds += 2 * sum(cell.outage)
        start, series = self.ask(name, download, seconds).result(seconds + 60)
        if cell.kind == "outage":
            over = start + sum(cell.outage)
            first = next((at for at, _ in series if at > over + cell.rtt / 2e3), start + seconds)
            return {name: [1e3 * (first - over)]}
        return {name: [series[-1][1] * 8e-6 / seconds if series else 0]}

    def fair(self):
        seconds = 5 * self.options.seconds + WARM
        jobs = {}
        for name in self.contestants:
            jobs[name] = self.ask(name, download, seconds + STAGGER * (not jobs))
            time.sleep(STAGGER)
        results = {name: job.result(seconds + 60) for name, job in jobs.items()}
        begin = max(start for start, _ in results.values()) + WARM
        end = min(series[-1][0] for _, series in results.values())
        until = lambda series, when: max((total for at, total in series if at <= when), default=0)
        return {name: [(until(series, end) - until(series, begin)) * 8e-6 / (end - begin)]
                for name, (_, series) in results.items()}  # fmt: skip


# The table.


def quantile(values, share):
    values = sorted(values)
    return values[round((len(values) - 1) * share)]


def row(cell, name, values, kernel):
    """A line of the table, and the ratio of medians."""
    times = cell.kind in ("answer", "outage")
    median, far = statistics.median(values), quantile(values, 0.95 if times else 0.05)
    digits = 0 if times else 1
    ratio, words = None, ""
    if cell.kind == "fair":
        ratio = max(median, other := statistics.median(kernel)) / max(min(median, other), 1e-3) if kernel else None
        words = f"factor {ratio:.2f}" if ratio else ""
    elif kernel:
        ratio = median / max(statistics.median(kernel), 1e-3)
        words = f"{ratio:.2f}" + (f", {far / max(quantile(kernel, 0.95), 1e-3):.2f}" if cell.kind == "answer" else "")
    return (f"| {cell.name} | {name} | {median:.{digits}f} {'ms' if times else 'Mbit/s'} | {far:.{digits}f} | "
            f"{min(values):.{digits}f} to {max(values):.{digits}f} | {len(values)} | {words} |"), ratio  # fmt: skip


def table(results, options):
    print(f"\n{compare.machine()}; {options.rate:g} Mbit/s, {options.seconds} s, {options.rounds} rounds\n")
    print("| path | contestant | median | 95 % are no worse | range | figures | to kernel |")
    print("|---|---|---|---|---|---:|---|")
    ratios = {}
    for cell, figures in results.items():
        for name, values in figures.items():
            if not values:
                print(f"| {cell.name} | {name} | failed | | | | |")
                continue
            kernel = figures.get(f"kernel-{name}", []) if name in OURS else []
            line, ratio = row(cell, name, values, kernel)
            print(line)
            if ratio and cell.kind in ("download", "upload"):
                ratios.setdefault(name, []).append((ratio, cell.name))
    for name, all_ratios in ratios.items():
        least, where = min(all_ratios)
        median = statistics.median(ratio for ratio, _ in all_ratios)
        print(f"\n{name}, goodput to kernel-{name}: median over cells {median:.2f}, least {least:.2f} ({where})")
    sys.stdout.flush()


def rounds(options, cells, contestants):
    """Runs in the order in which they take place: a cell, who takes part, a seed."""
    for number in range(options.rounds):
        for cell in cells:
            if cell.kind == "fair":
                pair = ["cubic", "kernel-cubic"]
                if set(pair) <= set(contestants):
                    yield cell, pair, number + 1
                    yield cell, pair[::-1], number + 1
                continue
            names = contestants if cell.kind != "upload" else [n for n in contestants if n.endswith("cubic")]
            for name in names:
                yield cell, [name], number + 1


def available(options):
    """The contestants that can run here; what is missing is told."""
    told = subprocess.run([options.proxy, "--help"], capture_output=True, text=True, check=True).stdout
    options.chooses = "--congestion" in told
    if shutil.which("modprobe"):
        subprocess.run(["modprobe", "-q", "tcp_bbr"], check=False)
    kernel = pathlib.Path("/proc/sys/net/ipv4/tcp_available_congestion_control").read_text().split()
    found = []
    for name in options.contestants:
        if name in KERNEL and not shutil.which("haproxy"):
            why = "haproxy is not installed (apt-get install haproxy), so nothing is compared with the kernel"
        elif name in KERNEL and name.removeprefix("kernel-") not in kernel:
            why = "this kernel does not have it"
        elif name in OURS and name != "cubic" and not options.chooses:
            why = f"{options.proxy} has no --congestion"
        else:
            found.append(name)
            continue
        print(f"{name} is left out: {why}", file=sys.stderr)
    return found


def parser():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=6, help="of each download and upload")
    parser.add_argument("--answers", type=int, default=8, help="in each run")
    parser.add_argument("--rate", type=float, default=50, help="of the path, Mbit/s")
    parser.add_argument("--limit", type=float, default=60, help="minutes; what is left then is left out")
    parser.add_argument("--cells", nargs="+", metavar="WORDS", help="only those with one of these in their names")
    parser.add_argument("--contestants", nargs="+", choices=OURS + KERNEL,
                        default=["cubic", "kernel-cubic", "bbr", "kernel-bbr"])  # fmt: skip
    parser.add_argument("--target", default=target, help="cargo's target directory")
    parser.add_argument("--proxy", help="default: TARGET/release/examples/proxy")
    return parser


def compare_all(options):
    """Every run of every cell. Prints the table."""
    options.proxy = options.proxy or f"{options.target}/release/examples/proxy"
    options.path = compare.newest(pathlib.Path(options.target) / "release", "wan_path")
    if os.geteuid() != 0:
        sys.exit("needs root: it makes network namespaces")
    for program in ("ip", "ss", "chrt", options.proxy, options.path):
        if not shutil.which(program):
            sys.exit(f"{program} is missing; "
                     "cargo build --release --bench wan_path --example proxy; apt-get install iproute2")  # fmt: skip
    compare.use(False)
    contestants = available(options)
    wanted = options.cells or [""]
    cells = [cell for cell in CELLS if any(word in cell.name for word in wanted)]
    all_runs = list(rounds(options, cells, contestants))
    results = {cell: {} for cell in cells}
    end = time.monotonic() + 60 * options.limit
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(compare.HAPROXY)
        config.flush()
        options.haproxy_config = config.name
        for number, (cell, names, seed) in enumerate(all_runs):
            if time.monotonic() > end:
                print(f"time is up after {number} of {len(all_runs)} runs", file=sys.stderr)
                break
            for name in names:
                results[cell].setdefault(name, [])
            try:
                with Run(options, cell, names, seed) as run:
                    figures = run.measure()
            except (OSError, EOFError, RuntimeError, subprocess.SubprocessError) as error:
                print(f"{cell.name}, {names}: {error}", file=sys.stderr)
                continue
            for name, values in figures.items():
                results[cell][name] += values
                shown = ", ".join(f"{value:.1f}" for value in values)
                print(f"{number + 1}/{len(all_runs)} {cell.name}, {name}: {shown}", file=sys.stderr)
    table(results, options)
    return results


def main():
    # Namespaces and processes are removed then too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    os.chdir(pathlib.Path(__file__).resolve().parent.parent)
    compare_all(parser().parse_args())


if __name__ == "__main__":
    main()
