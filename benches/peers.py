#!/usr/bin/env python3
"""Measures one program with each of several userspace stacks: this crate's, netstack-smoltcp, ipstack, gVisor's, lwIP.

The program takes every TCP connection that enters a TUN to its original destination, by a socket of the kernel
(benches/peers: src/relay, gvisor). Client and server are the kernel's TCP in two network namespaces, which are made
here and removed at the end; the relay is in the server's, its TUN in the client's. Contestants take turns within each
round. CPU is user and system time of the relay's process. A write to the TUN, and one to the server's socket, run the
receiver's TCP in the writer's context, so every contestant is charged that: compare within one table only.

    sudo benches/peers.py                           # builds all; then about 12 minutes
    sudo benches/peers.py --rounds 1 --seconds 1    # a look at everything
    sudo benches/peers.py --parts endings --contestants sosplice ipstack

Parts: streams (one from the client, one to it, at MTU 1500 and 65500), fresh (a connection for each message of 64
bytes, 10 at a time), memory (idle connections after three generations of others, and what is left after all), endings
(what each side sees when the other one closes, resets, refuses, is unreachable).

A contestant whose build fails is left out with a message: lwip needs libclang (Debian: libclang-dev), gvisor Debian's
archive, from which it takes Go and gVisor without installing them.
"""

import argparse
import errno
import json
import math
import multiprocessing
import os
import pathlib
import re
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import threading
import time

import compare
import idle

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Program, source, name for the table, the package in Cargo.lock, and whether it takes a larger MTU than 1500.
CONTESTANTS = {
    "sosplice": ("relay-sosplice", "src/relay/sosplice.rs", "**this crate**", None, True),
    "netstack": ("relay-netstack", "src/relay/netstack.rs", "netstack-smoltcp", "netstack-smoltcp", True),
    "netstack-offload": ("relay-netstack-offload", "src/relay/netstack_offload.rs", "the same over tun-rs",
                         "netstack-smoltcp", True),
    "ipstack": ("relay-ipstack", "src/relay/ipstack.rs", "ipstack", "ipstack", True),
    "gvisor": ("relay-gvisor", "gvisor/main.go", "gVisor", None, True),
    "lwip": ("relay-lwip", "src/relay/lwip.rs", "lwIP by the crate lwip", "lwip", False),
}  # fmt: skip
PARTS = ["streams", "fresh", "memory", "endings"]
MTUS = [1500, 65500]
GENERATIONS = 3
# How long sockets may take to go after the last connection.
GONE = 12
# Ports of the endings.
FIRST = 6000
SILENCE = 4
REFUSED, UNREACHABLE, SILENT = "10.77.2.1", "10.77.2.99", "10.77.2.98"
MEGABYTE = bytes(range(250)) * 4000


def program(name, options):
    """Where the program of a contestant is."""
    if name == "gvisor":
        return pathlib.Path(options.target) / "gvisor" / "relay-gvisor"
    return pathlib.Path(options.target) / "release" / CONTESTANTS[name][0]


def build(options):
    """Builds every contestant, and the programs of both ends. What fails is said."""
    cargo = ["cargo", "build", "-q", "--release"]
    subprocess.run([*cargo, "-p", "sosplice-benches", "--bench", "tun_talk"], check=True)
    here = ["--manifest-path", "benches/peers/Cargo.toml", "--target-dir", options.target]
    bins = lambda names: [part for name in names for part in ("--bin", CONTESTANTS[name][0])]
    rust = [name for name in options.contestants if name not in ("gvisor", "lwip")]
    if rust:
        subprocess.run([*cargo, *here, *bins(rust)], check=True)
    if "lwip" in options.contestants:
        subprocess.run([*cargo, *here, *bins(["lwip"]), "--features", "lwip"], check=False)
    if "gvisor" in options.contestants:
        folder = pathlib.Path(options.target) / "gvisor"
        subprocess.run(["benches/peers/gvisor/build", folder], check=False, stdout=sys.stderr)


def version(name, options):
    """What was measured."""
    if name == "gvisor":
        found = (pathlib.Path(options.target) / "gvisor" / "debs").glob("golang-gvisor-gvisor-dev_*")
        return next((file.name.split("_")[1].partition("-")[0] for file in found), "")
    package = CONTESTANTS[name][3]
    lock = (ROOT / "benches/peers/Cargo.lock").read_text()
    return re.search(rf'name = "{package or "sosplice"}"\nversion = "(.*)"', lock)[1]


def lines(name):
    """Lines of the program, without comments, imports and empty ones, and without what opens the device."""
    source = (ROOT / "benches/peers" / CONTESTANTS[name][1]).read_text()
    source = re.sub(r"\nimport \(.*?\n\)", "", source, flags=re.DOTALL)
    source = re.sub(r"^(use [^;]*;|#\[path.*|mod .*;|package .*)$", "", source, flags=re.MULTILINE)
    return sum(1 for line in source.splitlines() if line.strip() and not line.strip().startswith("//"))


def command(name, net, options):
    return compare.within(net.server, str(program(name, options)), f"tc@{net.client}")


class Relay:
    """A running relay."""

    def __init__(self, name, net, options):
        self.process = subprocess.Popen(command(name, net, options), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)

    def __enter__(self):
        if b"listening" not in self.process.stdout.readline():
            raise RuntimeError(f"{self.process.args} does not start")
        time.sleep(0.2)
        return self.process.pid

    def __exit__(self, *_):
        compare.stop(self.process)


def streams(name, options):
    """Gbit/s and CPU s/GB of each direction and MTU."""
    results = {}
    for mtu in MTUS if CONTESTANTS[name][4] else MTUS[:1]:
        for reverse in (False, True):
            options.reverse = reverse
            with compare.Network(mtu) as net:
                try:
                    (rate, cost), _ = compare.measure(
                        net, command(name, net, options), compare.SERVER, compare.SERVER, options)  # fmt: skip
                except (RuntimeError, TimeoutError, ValueError, subprocess.SubprocessError) as error:
                    print(f"{name} {mtu}: {error}", file=sys.stderr)
                    continue
            way = f"{'to' if reverse else 'from'} the client, MTU {mtu}"
            results[f"CPU s/GB {way}"] = cost
            results[f"Gbit/s {way}"] = rate
    return results


def fresh(name, options):
    """Connections in a row."""
    shape = argparse.Namespace(**vars(options) | {"talk": True, "fresh": True, "connections": 10, "size": 64})
    with compare.Network(MTUS[0]) as net:
        (rate, cost, _, p99), _ = compare.measure(
            net, command(name, net, options), compare.SERVER, compare.SERVER, shape)  # fmt: skip
    return {"connections/s": rate, "CPU us/connection": cost, "p99 of a connection, us": p99}


def sockets(pid):
    """Number of a process's sockets."""
    def place(file):
        try:
            return os.readlink(file)
        except OSError:
            return ""

    return sum(place(file).startswith("socket:") for file in pathlib.Path(f"/proc/{pid}/fd").iterdir())


def visit(net, pid, count, results):
    """Generations of connections, in the client's namespace: memory of the last one, and what is left after it."""
    compare.enter(net.client)
    before, own = idle.memory(pid), sockets(pid)
    try:
        for generation in range(GENERATIONS + 1):
            connections = [socket.create_connection((compare.SERVER, compare.PORT), 20) for _ in range(count)]
            for connection in connections:
                connection.settimeout(20)
            idle.talk(connections, 1024)
            time.sleep(1)
            still = idle.memory(pid) - before
            for connection in connections:
                connection.close()
            if generation < GENERATIONS:
                time.sleep(1)
        end = time.monotonic() + GONE
        while sockets(pid) > own and time.monotonic() < end:
            time.sleep(0.1)
        left = sockets(pid) - own
        results.put({"kB of an idle connection": still / count / 1e3,
                     f"sockets left {GONE} s after {(GENERATIONS + 1) * count:,} connections": max(0, left),
                     "MB left then": (idle.memory(pid) - before) / 1e6})  # fmt: skip
    except (OSError, EOFError, ValueError) as error:
        results.put(f"generation {generation}: {error!r}")


def memory(name, options):
    """Idle connections."""
    results = multiprocessing.Queue()
    with compare.Network(MTUS[0]) as net:
        server = subprocess.Popen(
            compare.within(net.server, options.talk_program, "--serve", compare.at_port(compare.SERVER)),
            stdout=subprocess.DEVNULL)  # fmt: skip
        try:
            compare.listening(net.server)
            with Relay(name, net, options) as pid:
                arguments = (net, pid, options.connections, results)
                client = multiprocessing.Process(target=visit, args=arguments, daemon=True)
                client.start()
                found = results.get(timeout=120)
                client.join()
        finally:
            compare.stop(server)
    if isinstance(found, str):
        raise RuntimeError(found)
    return found


def reset(stream):
    """Ends a connection by a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.close()


def end_of(stream, got=b""):
    """Reads until something ends: the bytes, and how it ended."""
    try:
        while piece := stream.recv(1 << 20):
            got += piece
        return got, "end"
    except TimeoutError:
        return got, "silence"
    except OSError as error:
        return got, "reset" if error.errno == errno.ECONNRESET else errno.errorcode.get(error.errno, str(error))


def amount(got, end):
    """In words, whether all of a megabyte has arrived."""
    if got == MEGABYTE:
        return "whole" if end == "end" else f"whole, then {end}"
    return f"{'a part' if got else 'nothing'}, then {end}"


def answered(delay):
    """The server reads until the client's end of stream, and answers later."""
    def server(stream):
        end_of(stream)
        time.sleep(delay)
        stream.sendall(MEGABYTE)
        stream.close()

    def client(stream):
        stream.sendall(b"question")
        stream.shutdown(socket.SHUT_WR)
        return amount(*end_of(stream))

    return client, server


def server_first():
    """The server closes its direction first, and reads on."""
    def server(stream):
        stream.recv(100)
        stream.shutdown(socket.SHUT_WR)
        return amount(*end_of(stream))

    def client(stream):
        stream.sendall(b"question")
        end_of(stream)
        time.sleep(0.5)
        stream.sendall(MEGABYTE)
        stream.close()

    return client, server


def both_ways():
    """A megabyte each way at once."""
    def send(stream):
        try:
            stream.sendall(MEGABYTE)
            stream.shutdown(socket.SHUT_WR)
        except OSError as error:
            print(f"not sent: {error}", file=sys.stderr)

    def server(stream):
        threading.Thread(target=send, args=(stream,), daemon=True).start()
        return amount(*end_of(stream))

    def client(stream):
        threading.Thread(target=send, args=(stream,), daemon=True).start()
        got = amount(*end_of(stream))
        return None if got == "whole" else got

    return client, server


def reset_by_server():
    def server(stream):
        stream.recv(100)
        reset(stream)

    def client(stream):
        stream.sendall(b"question")
        return end_of(stream)[1]

    return client, server


def reset_by_client():
    def server(stream):
        return end_of(stream)[1]

    def client(stream):
        stream.sendall(b"question")
        time.sleep(0.3)
        reset(stream)

    return client, server


# Title, and client and server, or the address of a server that is not there.
ENDINGS = {
    "a megabyte each way at once, to the end": both_ways(),
    "the client closes its direction: it gets of the answer": answered(0.5),
    "the same, the answer comes 7 s later": answered(7),
    "the server closes its direction: it gets of the rest": server_first(),
    "the server resets: the client sees": reset_by_server(),
    "the client resets: the server sees": reset_by_client(),
    "the destination refuses: the client sees": REFUSED,
    "it is unreachable: the client sees": UNREACHABLE,
    f"it does not answer: the client sees within {SILENCE} s": SILENT,
}


def refusal(address, port):
    """What a client sees that connects to where there is no server."""
    stream = socket.socket()
    stream.settimeout(SILENCE)
    try:
        stream.connect((address, port))
    except TimeoutError:
        return "no connection"
    except OSError as error:
        seen = {errno.ECONNREFUSED: "refused", errno.EHOSTUNREACH: "unreachable",
                errno.ECONNRESET: "established, then reset"}  # fmt: skip
        return seen.get(error.errno, str(error))
    return f"established, then {end_of(stream)[1]}"


def conversation(net, port, ends):
    """Runs both ends of one connection, each in a thread that is in its namespace."""
    client, server = ends
    seen, ready = [], threading.Event()

    def serve():
        compare.enter(net.server)
        listener = socket.create_server((compare.SERVER, port))
        listener.settimeout(10)
        ready.set()
        try:
            stream, _ = listener.accept()
            stream.settimeout(10)
            seen.append(server(stream))
        except OSError as error:
            seen.append(None)
            print(f"server: {error}", file=sys.stderr)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    ready.wait(10)
    try:
        stream = socket.create_connection((compare.SERVER, port), 10)
        seen.append(client(stream))
    except OSError as error:
        seen.append(f"{errno.errorcode.get(error.errno, error)}")
    thread.join(20)
    return next((what for what in seen if what is not None), "nothing")


def endings(name, options):
    """Each ending by its title, all at the same time."""
    found = {}
    with compare.Network(MTUS[0]) as net:
        compare.run("ip", "-n", net.server, "route", "add", "unreachable", f"{UNREACHABLE}/32")
        # No connection of a relay's takes a port on which a server is to listen.
        reserved = f"net.ipv4.ip_local_reserved_ports={FIRST}-{FIRST + len(ENDINGS) - 1}"
        compare.run(*compare.within(net.server, "sysctl", "-qw", reserved))

        def one(port, title, work):
            compare.enter(net.client)
            found[title] = refusal(work, port) if isinstance(work, str) else conversation(net, port, work)

        with Relay(name, net, options):
            each = [threading.Thread(target=one, args=(FIRST + number, *item), daemon=True)
                    for number, item in enumerate(ENDINGS.items())]  # fmt: skip
            for thread in each:
                thread.start()
            for thread in each:
                thread.join(40)
    return {title: found.get(title, "hangs") for title in ENDINGS}


def cell(values):
    """A median with its range, or what was seen, in how many rounds if not in all."""
    if not values:
        return "-"
    if isinstance(values[0], str):
        kinds = dict.fromkeys(values)
        return " / ".join(f"{kind} ({values.count(kind)})" if len(kinds) > 1 else kind for kind in kinds)
    middle = statistics.median(values)
    digits = max(0, 2 - math.floor(math.log10(abs(middle)))) if middle else 0
    one = lambda value: f"{value:,.{digits}f}"
    return f"{one(middle)} ({one(min(values))} to {one(max(values))})" if min(values) < max(values) else one(middle)


def table(results, options):
    """Every figure as markdown, a column for each contestant."""
    print(f"\n{compare.machine()}; {options.seconds} s, {options.rounds} rounds, "
          f"{options.connections} idle connections; median (range)\n")  # fmt: skip
    print(f"| | {' | '.join(CONTESTANTS[name][2] for name in results)} |\n|---|{'---|' * len(results)}")
    print(f"| version | {' | '.join(version(name, options) for name in results)} |")
    print(f"| lines of the program | {' | '.join(str(lines(name)) for name in results)} |")
    for key in dict.fromkeys(key for runs in results.values() for run in runs for key in run):
        print(f"| {key} | {' | '.join(cell([run[key] for run in runs if key in run]) for runs in results.values())} |")


def parser():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=int, default=1, help="of each run with streams and short connections")
    parser.add_argument("--connections", type=int, default=500, help="idle ones; the crate lwip has no more than 1024")
    parser.add_argument("--parts", nargs="+", default=PARTS, choices=PARTS)
    parser.add_argument("--contestants", nargs="+", default=list(CONTESTANTS), choices=CONTESTANTS)
    parser.add_argument("--target", default=target, help="cargo's target directory")
    parser.add_argument("--built", action="store_true", help="build nothing")
    parser.add_argument("--json", help="file for every single figure")
    return parser


def main():
    options = parser().parse_args()
    if os.geteuid() != 0 or not shutil.which("iperf3"):
        sys.exit("needs root and iperf3")
    os.chdir(ROOT)
    options.target = str(pathlib.Path(options.target).resolve())
    if not options.built:
        build(options)
    options.talk_program = compare.newest(pathlib.Path(options.target) / "release", "tun_talk")
    options.talk, options.streams, options.beside, options.verbose = False, 1, 0, False
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    compare.use(False)
    results = {name: [] for name in options.contestants if program(name, options).exists()}
    for name in set(options.contestants) - set(results):
        print(f"{name}: not built, left out", file=sys.stderr)
    for number in range(options.rounds):
        runs = {name: {} for name in results}
        for part in options.parts:
            for name in results:
                try:
                    figures = globals()[part](name, options)
                except (RuntimeError, TimeoutError, ValueError, subprocess.SubprocessError) as error:
                    print(f"{part} {name}: {error}", file=sys.stderr)
                    continue
                runs[name].update(figures)
                said = ", ".join(f"{key} {value if isinstance(value, str) else round(value, 3)}"
                                 for key, value in figures.items())  # fmt: skip
                print(f"round {number + 1} {name}: {said}", file=sys.stderr)
        for name in results:
            results[name].append(runs[name])
    table(results, options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
