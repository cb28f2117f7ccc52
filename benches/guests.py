#!/usr/bin/env python3
"""Measures networks for virtual machines: examples/sandbox beside passt and QEMU's own user network.

The guest is a kernel in a network namespace: the frames of its TAP device go to the network's Unix stream socket
in the framing of QEMU (benches/guest_port.rs). So it is faster than an emulated processor, and the same for all:
behind QEMU's user network it is connected by a hub in a QEMU that has no processor. Each network runs in a
namespace of its own, where the servers have an address of the loopback device. Contestants take turns within each
round. All namespaces and programs are removed at the end. CPU is user and system time of the network's process,
with its children; what the kernel does for a write to a server's socket is charged to the writer, whoever it is.

    sudo benches/guests.py                        # builds what it needs; less than five minutes
    sudo benches/guests.py --loads up down --rounds 9 --contestants sandbox other --other OLD/sandbox

Loads: up and down are streams from the guest and to it, up8 and down8 eight of them, at the MTU that sandbox and
passt announce; up-1500 and down-1500 are the same in a guest that keeps an MTU of 1500. fresh is connections (connect,
64 bytes, their echo, close), 32 at a time, ping is one byte there and back. real and real-1500 are a guest in QEMU
(tests/guest/image), whose processor is emulated and limits all: busybox downloads and then uploads some megabytes.
"""

import argparse
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time

import compare
from compare import run, within

SERVER = "10.98.0.1"
GUEST, GATEWAY = "10.0.2.15", "10.0.2.1"
# Streams, and whether they go to the guest; the guest's MTU.
STREAMS = {
    "up": (1, False, 65_520),
    "down": (1, True, 65_520),
    "up8": (8, False, 65_520),
    "down8": (8, True, 65_520),
    "up-1500": (1, False, 1500),
    "down-1500": (1, True, 1500),
}
LOADS = [*STREAMS, "fresh", "ping"]
REAL = {"real": 65_520, "real-1500": 1500}
REAL_BYTES = 100_000_000
CONTESTANTS = ["sandbox", "passt", "qemu-user"]
MORE = ["sandbox-large", "other", "other-large"]
ROOT = pathlib.Path(__file__).resolve().parent.parent


class Network:
    """Namespaces of the guest and of its network. The latter has a default route, which passt asks for."""

    def __init__(self, mtu):
        stem = f"sosplice-{os.getpid()}"
        self.guest, self.host, self.beyond = (f"{stem}-{part}" for part in "ghb")
        self.mtu = mtu

    def __enter__(self):
        try:
            for name in (self.guest, self.host, self.beyond):
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
                settings = ["net.ipv4.ip_local_port_range=1024 65535", "net.ipv4.tcp_congestion_control=reno"]
                run(*within(name, "sysctl", "-qw", *settings))
            ip = ["ip", "-n", self.guest]
            run(*ip, "tuntap", "add", "t0", "mode", "tap")
            run(*ip, "addr", "add", f"{GUEST}/24", "dev", "t0")
            run(*ip, "link", "set", "t0", "mtu", str(self.mtu), "txqueuelen", "10000", "up")
            run(*ip, "route", "add", "default", "via", GATEWAY)
            ip = ["ip", "-n", self.host]
            run(*ip, "addr", "add", f"{SERVER}/32", "dev", "lo")
            run(*ip, "link", "add", "v0", "type", "veth", "peer", "name", "v1", "netns", self.beyond)
            run("ip", "-n", self.beyond, "link", "set", "v1", "up")
            run(*ip, "addr", "add", "10.97.0.1/24", "dev", "v0")
            run(*ip, "link", "set", "v0", "up")
            run(*ip, "route", "add", "default", "via", "10.97.0.2")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for name in (self.guest, self.host, self.beyond):
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def command(name, place, options, mtu=65_520):
    """The network, listening at a socket."""
    if name == "passt":
        # It would become another user, who cannot make the socket.
        return ["passt", "-f", "-e", "-s", place, "--runas", "0", "-a", GUEST, "-n", "24", "-g", GATEWAY,
                "-m", str(mtu)]  # fmt: skip
    if name == "qemu-user":
        user = f"user,id=user,net=10.0.2.0/24,host={GATEWAY},dhcpstart={GUEST},ipv6=off"
        stream = f"stream,id=stream,server=on,addr.type=unix,addr.path={place}"
        return ["qemu-system-x86_64", "-machine", "none", "-nodefaults", "-no-user-config", "-display", "none",
                "-netdev", user, "-netdev", "hubport,id=a,hubid=0,netdev=user",
                "-netdev", stream, "-netdev", "hubport,id=b,hubid=0,netdev=stream"]  # fmt: skip
    program = options.other if name.startswith("other") else f"{options.target}/release/examples/sandbox"
    large = ["--large-frames"] if name.endswith("-large") else []
    return [program, "--listen", place, "--gateway", f"{GATEWAY}/24", "--guest", GUEST, "--no-v6",
            "--mtu", str(mtu), *large]  # fmt: skip


def until(done, process, limit=10.0):
    """Waits for something that another program does."""
    end = time.monotonic() + limit
    while not done():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args}: {(process.stderr.read() or b'').decode()}")
        time.sleep(0.01)


class Scene:
    """A network, and the guest's port to it."""

    def __init__(self, net, name, folder, options):
        self.net, self.options, self.processes = net, options, []
        self.release = pathlib.Path(options.target) / "release"
        place = f"{folder}/{name}.sock"
        pathlib.Path(place).unlink(missing_ok=True)
        try:
            self.backend = self.start(within(net.host, *command(name, place, options)))
            until(lambda: os.path.exists(place), self.backend)
            time.sleep(0.1)  # passt makes the file before it listens
            port = [compare.newest(self.release, "guest_port"), "--tap", f"t0@{net.guest}", "--connect", place]
            self.start(port)
        except BaseException:
            self.end()
            raise

    def start(self, arguments, **more):
        process = subprocess.Popen(arguments, stdout=more.pop("stdout", subprocess.DEVNULL), stderr=subprocess.PIPE)
        self.processes.append(process)
        return process

    def end(self):
        for process in reversed(self.processes):
            compare.stop(process)

    def within_guest(self, *arguments):
        done = subprocess.run(within(self.net.guest, *arguments), capture_output=True,
                              timeout=self.options.seconds + 20, check=False)  # fmt: skip
        if done.returncode:
            raise RuntimeError(f"{arguments}: {done.stderr.decode()}{done.stdout.decode()[-500:]}")
        return json.loads(done.stdout)

    def streams(self, count, reverse):
        self.start(within(self.net.host, "iperf3", "-s", "-B", SERVER, "-p", str(compare.PORT)))
        compare.listening(self.net.host)
        client = ["iperf3", "-c", SERVER, "-p", str(compare.PORT), "-J", "-P", str(count)]
        self.within_guest(*client, "-n", "100K")  # ARP, and the pages that a process touches first
        before = compare.cpu(self.backend.pid)
        report = self.within_guest(*client, "-t", str(self.options.seconds), *(["-R"] if reverse else []))
        taken = compare.cpu(self.backend.pid) - before
        received = report["end"]["sum_received"]
        return {"gbit": received["bits_per_second"] / 1e9, "per_gb": taken / (received["bytes"] / 1e9)}

    def messages(self, *shape):
        talk = compare.newest(self.release, "tun_talk")
        self.start(within(self.net.host, talk, "--serve", compare.at_port(SERVER)))
        compare.listening(self.net.host)
        ask = [talk, "--ask", compare.at_port(SERVER)]
        self.within_guest(*ask, "--seconds", "0.1")
        before = compare.cpu(self.backend.pid)
        report = self.within_guest(*ask, "--seconds", str(self.options.seconds), *shape)
        taken = compare.cpu(self.backend.pid) - before
        count = report["messages"]
        return {"rate": count / report["seconds"], "each": taken * 1e6 / count, "p50": report["p50"], "p99": report["p99"]}


def serve(netns, port, work, done):
    """Serves one connection in a namespace; what it took is put to `done`."""
    listener = []

    def run():
        compare.enter(netns)  # this thread alone
        listener.append(socket.create_server((SERVER, port)))
        connection, _ = listener[0].accept()
        connection.settimeout(120)
        done.append(work(connection))

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    while not listener and thread.is_alive():
        time.sleep(0.01)
    return thread


def real(name, folder, options, mtu):
    """A guest in QEMU: bits per second of both directions, and CPU unless the network is a part of QEMU itself."""
    inside = name == "qemu-user"
    place = f"{folder}/{name}.sock"
    pathlib.Path(place).unlink(missing_ok=True)
    processes, done = [], []
    with Network(mtu) as net:
        start = lambda *command: processes.append(
            subprocess.Popen(within(net.host, *command), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE))  # fmt: skip

        def transfer(connection, send):
            before, begin, count = compare.cpu(processes[0].pid), time.monotonic(), 0
            if send:
                connection.sendall(bytes(REAL_BYTES))
                connection.shutdown(socket.SHUT_WR)
                connection.recv(1)  # until the guest has all
                count = REAL_BYTES
            else:
                while some := connection.recv(1 << 20):
                    count += len(some)
            seconds = time.monotonic() - begin
            return count * 8 / seconds / 1e9, (compare.cpu(processes[0].pid) - before) / (count / 1e9)

        user = f"user,id=n,net=10.0.2.0/24,host={GATEWAY},dhcpstart={GUEST},ipv6=off"
        netdev = user if inside else f"stream,id=n,server=off,addr.type=unix,addr.path={place}"
        guest = ["qemu-system-x86_64", "-accel", "tcg", "-M", "q35", "-cpu", "max", "-m", "256", "-nodefaults", "-no-reboot",
                 "-no-user-config", "-display", "none", "-kernel", f"{folder}/kernel", "-initrd", f"{folder}/initramfs",
                 "-append", f"panic=-1 tsc=unstable act=speed bytes={REAL_BYTES}",
                 "-device", "virtio-net-pci,netdev=n,romfile=", "-netdev", netdev]  # fmt: skip
        try:
            down = serve(net.host, 83, lambda connection: transfer(connection, True), done)
            up = serve(net.host, 84, lambda connection: transfer(connection, False), done)
            if not inside:
                start(*command(name, place, options, mtu))
                until(lambda: os.path.exists(place), processes[0])
                time.sleep(0.1)
            start(*guest)
            down.join(120)
            up.join(120)
        finally:
            for process in reversed(processes):
                compare.stop(process)
    if len(done) < 2:
        raise RuntimeError("the guest has not transferred all")
    figures = {"down": done[0][0], "up": done[1][0]}
    return figures if inside else figures | {"down_cpu": done[0][1], "up_cpu": done[1][1]}


def resident(pid):
    """The most memory that the process has had, in MB."""
    lines = pathlib.Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1000


def measure(load, name, folder, options):
    """One run: its figures by name."""
    if load in REAL:
        return real(name, folder, options, REAL[load])
    count, reverse, mtu = STREAMS.get(load, (1, False, 65_520))
    with Network(mtu) as net:
        scene = Scene(net, name, folder, options)
        try:
            if load in STREAMS:
                figures = scene.streams(count, reverse)
            elif load == "fresh":
                figures = scene.messages("--fresh", "--size", "64", "--connections", "32")
            else:
                figures = scene.messages()
            return figures | {"memory": resident(scene.backend.pid)}
        finally:
            scene.end()


COLUMNS = {
    "gbit": ("Gbit/s", 2),
    "per_gb": ("CPU s/GB", 3),
    "rate": ("per second", 0),
    "each": ("CPU us each", 1),
    "p50": ("p50 us", 0),
    "p99": ("p99 us", 0),
    "memory": ("memory MB", 0),
    "down": ("Gbit/s to the guest", 2),
    "down_cpu": ("CPU s/GB", 2),
    "up": ("Gbit/s from it", 2),
    "up_cpu": ("CPU s/GB", 2),
}


def keys(load):
    if load in REAL:
        return "down", "down_cpu", "up", "up_cpu"
    return ("gbit", "per_gb", "memory") if load in STREAMS else ("rate", "each", "p50", "p99", "memory")


def cell(runs, key):
    values = [figures[key] for figures in runs if key in figures]
    return compare.spread(values, COLUMNS[key][1]) if values else ""


def ratio(first, other, key):
    """What the first contestant has for one of another."""
    values = [[figures[key] for figures in runs if key in figures] for runs in (first, other)]
    return f"{statistics.median(values[0]) / statistics.median(values[1]):.2f}" if all(values) else ""


def table(results, options):
    """Medians and ranges as markdown, and the ratios of the first contestant to each other."""
    print(f"\n{compare.machine()}; {options.seconds} s, {options.rounds} rounds; median (range)")
    before = None
    for load, by_name in results.items():
        columns = keys(load)
        if columns != before:
            ratios = [f"{COLUMNS[key][0]}: ratio" for key in columns[:2]]
            print(f"\n| load | network | {' | '.join([*(COLUMNS[key][0] for key in columns), *ratios])} |")
            print(f"|---|---|{'---|' * len(columns)}---:|---:|")
        before = columns
        first = next(iter(by_name.values()))
        for name, runs in by_name.items():
            cells = [cell(runs, key) for key in columns] + [
                "" if runs is first or not runs else ratio(first, runs, key) for key in columns[:2]]  # fmt: skip
            print(f"| {load} | {name}{'' if runs else ' (failed)'} | {' | '.join(cells)} |")


def parser():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", default=LOADS, choices=[*LOADS, *REAL])
    parser.add_argument("--contestants", nargs="+", default=CONTESTANTS, choices=[*CONTESTANTS, *MORE])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=2, help="of each run")
    parser.add_argument("--target", default=target, help="cargo's target directory")
    parser.add_argument("--other", help="a sandbox of another build, for the contestant of that name")
    parser.add_argument("--built", action="store_true", help="build nothing")
    parser.add_argument("--json", help="file for every single figure")
    return parser


def main():
    options = parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    os.chdir(ROOT)
    if not options.built:
        cargo = ["cargo", "build", "-q", "--release"]
        subprocess.run([*cargo, "--example", "sandbox"], check=True)
        subprocess.run([*cargo, "-p", "sosplice-benches", "--bench", "guest_port", "--bench", "tun_talk"], check=True)
    programs = {"passt": "passt", "qemu-user": "qemu-system-x86_64"}
    for name in [name for name in options.contestants if name in programs and not shutil.which(programs[name])]:
        print(f"{name}: {programs[name]} is not installed, left out", file=sys.stderr)
        options.contestants.remove(name)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    results = {load: {name: [] for name in options.contestants} for load in options.loads}
    with tempfile.TemporaryDirectory(prefix="sosplice-guests-") as folder:
        if REAL.keys() & set(options.loads):
            subprocess.run(["tests/guest/image", folder], check=True, stdout=subprocess.DEVNULL)
        for number in range(options.rounds):
            for load in options.loads:
                for name in options.contestants:
                    try:
                        figures = measure(load, name, folder, options)
                    except (RuntimeError, TimeoutError, subprocess.SubprocessError, ValueError) as error:
                        print(f"{load} {name}: {error}", file=sys.stderr)
                        continue
                    results[load][name].append(figures)
                    said = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
                    print(f"round {number + 1} {load} {name}: {said}", file=sys.stderr)
    table(results, options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
