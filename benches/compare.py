#!/usr/bin/env python3
"""Measures proxies beside their floor: throughput and CPU of the proxy, round by round.

Client and server are the kernel's TCP in two network namespaces (made here, removed at the end),
iperf3 with a one-shot server. Contestants take turns within each round, so that a machine that
drifts drifts for all. CPU is user and system time of the proxy's processes from /proc. A write to a
TUN runs the receiver's TCP input in the writer's context, so every contestant is charged part of the
server's work: compare within one table only.

    cargo build --release --benches --examples
    sudo benches/compare.py --rounds 5 --seconds 5 --mtu 1500 65500

forward   packets copied from TUN to TUN, with virtio-net header: the floor
held      the same, 32 packets read before the first is written: out of the nearest caches, as the
          bytes of a TCP are by the time that they leave
plain     the same without the header
relay     smoltcp alone, bytes copied from ring to ring
adaptive  this crate, as it is by default: the receiving thread moves the bytes, or a worker if that lags
worker    this crate, a splice's worker moves the bytes: one for each processor
worker-1  the same with one worker
direct    this crate, the receiving thread does
queues-1, queues-2, queues-4
          this crate over devices with several queues (multi_queue), so many receiving threads, each for
          both devices; with --streams, for one stream has one queue
queues-2-worker
          the same with a receiving thread for each queue of each device, and a worker for each queue
flooded, flooded-direct, flooded-other
          adaptive, direct and other while 100,000 forged SYNs a second come from the client's namespace, on top of
          what the machine has to do otherwise
host-worker, host-direct, host-copy
          a TUN on the client's side only; the proxy is in the server's namespace, and a kernel socket of
          its own goes to the server: spliced by a worker, by the receiving thread, copied by tokio over
          the same stack
tun, tap, packet
          a proxy in one program (benches/ethernet.rs) over TUN devices, over TAP devices, and over packet sockets at
          veths, each with this crate's link for it
packet-host
          the same with stacks that are hosts of the network (Host) and not gateways (Edge)
tap-forward, packet-forward
          frames copied from TAP to TAP, or from packet socket to packet socket, with virtio-net header: the floor
          of those, by which their CPU is divided. With --ipv6 too
other     adaptive with the proxy of another build (--other), e.g. of an older commit
haproxy   HAProxy with splice(2), kernel sockets over veth (needs no TUN, so not quite the same race)

Busy is how much of a processor each kind of the proxy's threads takes: receiving threads and workers.
--loss drops packets on their way into both namespaces (nftables).
--routed moves the client behind a veth: the namespace of its TUN forwards. Packets are those that the
client's veth receives; what the kernel has to cut on the way there comes in many small ones.

With --talk, messages of --size bytes go there and back on each of --connections connections instead, one
at a time: what a message costs the proxy, and how long it takes. Added by a proxy is what it takes longer
than forward.
"""

import argparse
import contextlib
import ctypes
import ipaddress
import json
import multiprocessing
import os
import pathlib
import platform
import random
import resource
import shutil
import socket
import statistics
import struct
import subprocess
import sys
import tempfile
import time

PORT = 5201
PROXY_FRONT, PROXY_SERVER = "10.77.3.2", "10.77.4.1"
TICK = os.sysconf("SC_CLK_TCK")
FLOOD = 100_000
HAPROXY = f"""
global
    maxconn 7500
    nbthread 1
defaults
    mode tcp
    timeout connect 5s
    timeout client 60s
    timeout server 60s
    option splice-request
    option splice-response
listen proxy
    bind {PROXY_FRONT}:{PORT}
    server backend {PROXY_SERVER}:{PORT}
"""


def run(*command):
    subprocess.run(command, check=True, timeout=20, stdout=subprocess.DEVNULL)


class Network:
    """Namespaces for client, server and a kernel proxy, with unique names."""

    def __init__(self, mtu, loss=0.0, queues=False, routed=False, device="tun"):
        self.loss = loss
        self.routed = routed
        self.device = device
        self.kind = ["multi_queue"] if queues else []
        stem = f"sosplice-{os.getpid()}"
        self.all = [f"{stem}-{part}" for part in "csmhp"]
        self.client, self.server, self.middle, self.host, self.port = self.all
        self.mtu = mtu

    def __enter__(self):
        try:
            for name in self.all:
                run("ip", "netns", "add", name)
                run("ip", "-n", name, "link", "set", "lo", "up")
                # A port of a closed connection can be used again after a second.
                settings = ("net.ipv4.tcp_tw_reuse=1", "net.ipv4.ip_local_port_range=1024 65535")
                run(*within(name, "sysctl", "-qw", *settings))
            self.tun(self.client, "tc", CLIENT, f"{SERVER_GATE}/{PREFIX}")
            self.tun(self.server, "ts", SERVER, f"{CLIENT_GATE}/{PREFIX}")
            self.veth(self.client, "vc", "10.77.3.1", PROXY_FRONT)
            self.veth(self.server, "vs", PROXY_SERVER, "10.77.4.2")
            if self.routed:
                self.route()
            if self.loss:
                self.drop(self.client)
                self.drop(self.server)
        except BaseException:
            self.__exit__()
            raise
        return self

    def tun(self, netns, device, address, route):
        ip = ["ip", "-n", netns]
        if self.device == "packet":
            # The other end has no address: its kernel does not answer.
            run(*ip, "link", "add", device, "type", "veth", "peer", "name", device, "netns", self.port)
            run(*within(self.port, "sysctl", "-qw", f"net.ipv6.conf.{device}.disable_ipv6=1"))
            run("ip", "-n", self.port, "link", "set", device, "mtu", str(self.mtu), "up")
        else:
            run(*ip, "tuntap", "add", device, "mode", self.device, *self.kind)
        run(*ip, "addr", "add", f"{address}/{PREFIX}", "dev", device, *(["nodad"] if ":" in address else []))
        run(*ip, "link", "set", device, "mtu", str(self.mtu), "txqueuelen", "10000", "up")
        run(*ip, "route", "add", str(ipaddress.ip_interface(route).network), "dev", device)

    def veth(self, netns, device, address, middle_address):
        ip = ["ip", "-n", netns]
        run(*ip, "link", "add", device, "type", "veth", "peer", "name", device, "netns", self.middle)
        for where, own in ((netns, address), (self.middle, middle_address)):
            run("ip", "-n", where, "addr", "add", f"{own}/24", "dev", device)
            run("ip", "-n", where, "link", "set", device, "mtu", str(self.mtu), "up")

    def route(self):
        """Puts a host behind the client's namespace."""
        run("ip", "-n", self.client, "link", "add", "vh", "type", "veth", "peer", "name", "vh", "netns", self.host)
        for netns, address in ((self.client, HOST_GATE), (self.host, HOST)):
            nodad = ["nodad"] if ":" in address else []
            run("ip", "-n", netns, "addr", "add", f"{address}/{PREFIX}", "dev", "vh", *nodad)
            run("ip", "-n", netns, "link", "set", "vh", "mtu", str(self.mtu), "up")
        run("ip", "-n", self.host, "route", "add", "default", "via", HOST_GATE)
        run("ip", "-n", self.server, "route", "add", f"{HOST}/{8 * len(ipaddress.ip_address(HOST).packed)}", "dev", "ts")
        for name in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            run(*within(self.client, "sysctl", "-qw", f"{name}=1"))

    def packets(self):
        """That the host has received."""
        lines = subprocess.run(within(self.host, "cat", "/proc/net/dev"), capture_output=True, text=True, check=True)
        return next(int(line.split()[2]) for line in lines.stdout.splitlines() if line.strip().startswith("vh:"))

    def drop(self, netns):
        """Loses so many percent of what arrives."""
        chain = "type filter hook prerouting priority -500;"
        share = f"numgen random mod 100000 < {round(self.loss * 1000)} drop"
        rules = f"table inet loss {{ chain some {{ {chain} {share}; }}; }}"
        subprocess.run(within(netns, "nft", "-f", "-"), input=rules, text=True, check=True, timeout=20)

    def __exit__(self, *_):
        for name in self.all:
            subprocess.run(["ip", "netns", "del", name], stderr=subprocess.DEVNULL, check=False)


def within(netns, *command):
    return ["ip", "netns", "exec", netns, *command]


def enter(netns):
    """Moves this process into a namespace."""
    with open(f"/run/netns/{netns}") as file:
        if ctypes.CDLL(None, use_errno=True).setns(file.fileno(), 0x40000000) != 0:
            raise OSError(ctypes.get_errno(), f"setns {netns}")


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~(total + (total >> 16)) & 0xFFFF


def forged_syn(target):
    """With the options of a usual client, from an address, a port and a sequence number of chance."""
    source, to = random.randrange(0x64400000, 0x64800000).to_bytes(4, "big"), socket.inet_aton(target)
    options = bytes([2, 4, 5, 180, 1, 3, 3, 7, 1, 1, 4, 2])
    head = struct.pack("!HHIIBBH", random.randrange(1, 65536), PORT, random.getrandbits(32), 0, 8 << 4, 2, 65535)
    tcp = lambda value: head + struct.pack("!HH", value, 0) + options
    pseudo = source + to + struct.pack("!HH", socket.IPPROTO_TCP, len(tcp(0)))
    ip = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(tcp(0)), 0, 0x4000, 64, socket.IPPROTO_TCP, 0) + source + to
    return ip + tcp(checksum(pseudo + tcp(0)))


def flood(netns, target, sent):
    """Sends SYNs until it is killed, and counts them. They leave by the namespace's TUN."""
    enter(netns)
    raw = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
    syns = [forged_syn(target) for _ in range(1 << 14)]
    start = time.monotonic()
    while True:
        due = round((time.monotonic() - start) * FLOOD)
        for number in range(sent.value, due):
            raw.sendto(syns[number % len(syns)], (target, 0))
        sent.value = due
        time.sleep(0.002)


def newest(directory, name):
    """The bench program `name`, whose file name ends in a hash."""
    found = [p for p in directory.glob(f"deps/{name}-*") if p.suffix == "" and os.access(p, os.X_OK)]
    return str(max(found, key=lambda p: p.stat().st_mtime, default=f"{name} (not built)"))


def at_port(address):
    return f"[{address}]:{PORT}" if ":" in address else f"{address}:{PORT}"


def use(ipv6):
    """The addresses of one family from now on. With IPv6 there is nothing over veth."""
    global CLIENT, CLIENT_GATE, SERVER, SERVER_GATE, HOST, HOST_GATE, PREFIX
    if ipv6:
        CLIENT, CLIENT_GATE, SERVER, SERVER_GATE = "fd77:1::1", "fd77:1::2", "fd77:2::1", "fd77:2::2"
        HOST, HOST_GATE = "fd77:5::2", "fd77:5::1"
    else:
        CLIENT, CLIENT_GATE, SERVER, SERVER_GATE = "10.77.1.1", "10.77.1.2", "10.77.2.1", "10.77.2.2"
        HOST, HOST_GATE = "10.77.5.2", "10.77.5.1"
    PREFIX = 64 if ipv6 else 24


def proxy_arguments(net):
    return [
        "--tun", f"tc@{net.client}={CLIENT_GATE}/{PREFIX}",
        "--tun", f"ts@{net.server}={SERVER_GATE}/{PREFIX}",
        "--listen", at_port(CLIENT_GATE), "--backend", at_port(SERVER),
    ]  # fmt: skip


def contestants(options):
    """Name -> function of the network that gives command, address for the client, for the server."""
    release = pathlib.Path(options.target) / "release"
    forward = newest(release, "tun_forward")
    tuns = lambda net: ["--tun", f"tc@{net.client}", "--tun", f"ts@{net.server}"]
    ours = lambda mode, *more: lambda net: (
        [options.proxy, *proxy_arguments(net), "--dispatch", mode, *more], CLIENT_GATE, SERVER)  # fmt: skip
    host = lambda mode: lambda net: (
        within(net.server, newest(release, "tun_host"), "--tun", f"tc@{net.client}", "--mode", mode),
        SERVER, SERVER)  # fmt: skip
    def ethernet(kind, *more):
        """The program of benches/ethernet.rs; packet sockets are at the far ends of veths."""
        forward, at = "--forward", lambda net, own: net.port if kind == "packet" else own
        return lambda net: (
            [newest(release, "ethernet"), "--kind", kind, "--port", f"tc@{at(net, net.client)}={CLIENT_GATE}/{PREFIX}",
             "--port", f"ts@{at(net, net.server)}={SERVER_GATE}/{PREFIX}",
             *more, *([] if forward in more else ["--listen", at_port(CLIENT_GATE), "--backend", at_port(SERVER)])],
            SERVER if forward in more else CLIENT_GATE, SERVER)  # fmt: skip

    return {
        "tun": ethernet("tun"),
        "tap": ethernet("tap"),
        "packet": ethernet("packet"),
        "packet-host": ethernet("packet", "--host"),
        "tap-forward": ethernet("tap", "--forward"),
        "packet-forward": ethernet("packet", "--forward"),
        "host-worker": host("worker"),
        "host-direct": host("direct"),
        "host-copy": host("copy"),
        "forward": lambda net: ([forward, *tuns(net)], SERVER, SERVER),
        "held": lambda net: ([forward, "--hold", "32", *tuns(net)], SERVER, SERVER),
        "plain": lambda net: ([forward, "--plain", *tuns(net)], SERVER, SERVER),
        "relay": lambda net: (
            [newest(release, "tun_relay"), *proxy_arguments(net)], CLIENT_GATE, SERVER),
        "worker": ours("worker"),
        "worker-1": ours("worker", "--workers", "1"),
        "direct": ours("direct"),
        "adaptive": ours("adaptive"),
        # Each connection begins with a header of the PROXY protocol, and the backend is checked.
        "header": ours("adaptive", "--send-proxy", "v2", "--check", "1"),
        "other": lambda net: ([options.other, *ours("adaptive")(net)[0][1:]], CLIENT_GATE, SERVER),
        "flooded-other": lambda net: ([options.other, *ours("adaptive")(net)[0][1:]], CLIENT_GATE, SERVER),
        "queues-1": ours("adaptive", "--queues", "1"),
        "queues-2": ours("adaptive", "--queues", "2"),
        "queues-4": ours("adaptive", "--queues", "4"),
        "queues-2-worker": ours("worker", "--queues", "2", "--workers", "2"),
        "flooded": ours("adaptive"),
        "flooded-direct": ours("direct"),
        "haproxy": lambda net: (
            within(net.middle, "haproxy", "-db", "-q", "-f", options.haproxy_config),
            PROXY_FRONT, PROXY_SERVER),
        "haproxy-header": lambda net: (
            within(net.middle, "haproxy", "-db", "-q", "-f", options.haproxy_config + ".header"),
            PROXY_FRONT, PROXY_SERVER),
    }  # fmt: skip


def tree(pid):
    yield pid
    for task in pathlib.Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            yield from tree(int(child))


def seconds(directory):
    """Name of a process or thread, and its user and system seconds."""
    name, _, fields = (directory / "stat").read_text().partition("(")[2].rpartition(")")
    fields = fields.split()
    return name, (int(fields[11]) + int(fields[12])) / TICK


def cpu(pid):
    """User and system seconds of a process and its children, those of threads that are gone too."""
    return sum(seconds(pathlib.Path(f"/proc/{each}"))[1] for each in tree(pid))


def busy(pid):
    """CPU seconds so far of each kind of thread, by name without its number."""
    kinds = {}
    for each in tree(pid):
        for task in pathlib.Path(f"/proc/{each}/task").iterdir():
            name, taken = seconds(task)
            kind = name.split("-")[0].rstrip("0123456789:")
            kinds[kind] = kinds.get(kind, 0) + taken
    return kinds


def listening(netns, limit=5.0):
    """Waits until somebody in the namespace listens on the port."""
    end = time.monotonic() + limit
    while time.monotonic() < end:
        command = within(netns, "ss", "-ltnH", f"sport = :{PORT}")
        if subprocess.run(command, capture_output=True, check=True).stdout.strip():
            return
        time.sleep(0.02)
    raise TimeoutError(f"nobody listens in {netns}")


def stop(process, verbose=False):
    process.terminate()
    try:
        process.wait(timeout=5)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if verbose and process.stdout:
        print((process.stdout.read() or b"").decode(), file=sys.stderr)


def streams(net, target, options):
    """Runs iperf3's client: bits per second, and gigabytes for the CPU to be divided by."""
    client = within(net.host if net.routed else net.client, "iperf3", "-c", target, "-p", str(PORT), "-J",
                    "-t", str(options.seconds), "-P", str(options.streams),
                    *(["-R"] if options.reverse else []))  # fmt: skip
    before = net.packets() if net.routed else 0
    done = subprocess.run(client, capture_output=True, timeout=options.seconds + 20, check=False)
    report = json.loads(done.stdout)
    if "error" in report:
        raise RuntimeError(report["error"])
    received = report["end"]["sum_received"]
    gigabytes = received["bytes"] / 1e9
    packets = [(net.packets() - before) / gigabytes] if net.routed else []
    return received["bits_per_second"] / 1e9, gigabytes, *packets


def messages(net, target, options):
    """Runs the client of small messages: how many a second, millions of them, p50 and p99 in us."""
    client = within(net.client, options.talk_program, "--ask", at_port(target), "--size", str(options.size),
                    "--connections", str(options.connections), "--seconds", str(options.seconds),
                    *(["--fresh"] if options.fresh else []))  # fmt: skip
    done = subprocess.run(client, capture_output=True, timeout=options.seconds + 20, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    report = json.loads(done.stdout)
    count = report["messages"]
    return count / report["seconds"], count / 1e6, report["p50"], report["p99"]


def measure(net, command, target, server, options, flooded=False):
    """One run: what the client says, with its second figure as the proxy's CPU seconds for each; and the
    share of a processor that each kind of its threads took."""
    far_end = proxy = flooding = held = None
    try:
        command_there = ["iperf3", "-s", "-1", "-B", server, "-p", str(PORT)] if not options.talk else \
            [options.talk_program, "--serve", at_port(server)]  # fmt: skip
        far_end = subprocess.Popen(
            within(net.server, *command_there), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        proxy = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        listening(net.server)
        if server == PROXY_SERVER:
            listening(net.middle)
        else:
            os.set_blocking(proxy.stdout.fileno(), False)
            end = time.monotonic() + 1
            while not proxy.stdout.read() and time.monotonic() < end:
                time.sleep(0.01)
        if proxy.poll() is not None:
            raise RuntimeError(f"{command}: {proxy.stderr.read().decode()}")
        if flooded:
            sent = multiprocessing.Value("q", 0)
            flooding = multiprocessing.Process(target=flood, args=(net.client, target, sent), daemon=True)
            flooding.start()
            time.sleep(0.5)  # until it has made its SYNs, and the backlog is full
        if options.beside:
            hold = within(net.client, options.talk_program, "--ask", at_port(target), "--hold", str(options.beside))
            held = subprocess.Popen(hold, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            if b"held" not in held.stdout.readline():
                raise RuntimeError(f"no {options.beside} connections")
        before, threads, start = cpu(proxy.pid), busy(proxy.pid), time.monotonic()
        syns = sent.value if flooded else 0
        first, much, *rest = (messages if options.talk else streams)(net, target, options)
        taken, after = time.monotonic() - start, busy(proxy.pid)
        if flooded:
            print(f"{(sent.value - syns) / taken:.0f} SYNs a second", file=sys.stderr)
        shares = {kind: (cpu - threads.get(kind, 0)) / taken for kind, cpu in after.items()}
        return (first, (cpu(proxy.pid) - before) / much, *rest), shares
    finally:
        if flooding is not None:
            flooding.kill()
            flooding.join()
        for process in (held, far_end, proxy):
            if process is not None:
                stop(process, options.verbose)


def shares(runs):
    """Each kind of thread that does anything, with the median of what it takes of a processor."""
    kinds = {kind for _, shares in runs for kind in shares}
    taken = {kind: statistics.median(shares.get(kind, 0) for _, shares in runs) for kind in kinds}
    wanted = sorted((kind for kind in kinds if taken[kind] >= 0.01), key=lambda kind: -taken[kind])
    return ", ".join(f"{kind} {100 * taken[kind]:.0f} %" for kind in wanted)


def talk_table(results, options):
    """Medians and ranges of messages as markdown."""
    print(f"\n{machine()}; {options.connections} connections, {options.size} bytes, {options.seconds} s"
          f"{', one message each' * options.fresh}{f', beside {options.beside} idle ones' if options.beside else ''}, "
          f"{options.rounds} rounds; median (range)\n")  # fmt: skip
    print("| contestant | messages/s | proxy CPU us/message | p50 us | p99 us | added p50 | added p99 | busy |")
    print("|---|---|---|---|---|---:|---:|---|")
    floor = results.get("forward")
    for name, runs in results.items():
        if not runs:
            print(f"| {name} | failed | | | | | | |")
            continue
        columns = list(zip(*(figures for figures, _ in runs)))
        added = ["", ""] if not floor else [
            f"{statistics.median(c) - statistics.median(f):.0f}"
            for c, f in zip(columns[2:], list(zip(*(figures for figures, _ in floor)))[2:])]  # fmt: skip
        cells = [spread(column, digits) for column, digits in zip(columns, (0, 2, 0, 0))]
        print(f"| {name} | " + " | ".join(cells + added + [shares(runs)]) + " |")


def spread(values, digits):
    return f"{statistics.median(values):.{digits}f} ({min(values):.{digits}f} to {max(values):.{digits}f})"


def machine():
    return f"Linux {platform.release()}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.2f}"


def table(results, mtu, options):
    """Medians and ranges as markdown."""
    print(f"\n{machine()}; MTU {mtu}, {options.streams} streams{', IPv6' * options.ipv6}, {options.loss:g} % loss, "
          f"{'routed, ' * options.routed}{'server to client, ' * options.reverse}"
          f"{options.seconds} s, {options.rounds} rounds; median (range)\n")  # fmt: skip
    more = " packets/GB |" if options.routed else ""
    print(f"| contestant | Gbit/s | proxy CPU s/GB |{more} CPU / forward | busy |")
    print(f"|---|---|---|{'---|' if more else ''}---:|---|")
    for name, runs in results.items():
        if not runs:
            print(f"| {name} | failed | | | |")
            continue
        floor = results.get(FLOOR.get(name, "forward"))
        rates, costs, *packets = zip(*(figures for figures, _ in runs))
        packets = "".join(f" {spread(column, 0)} |" for column in packets)
        ratio = "" if not floor else \
            f"{statistics.median(costs) / statistics.median(figures[1] for figures, _ in floor):.2f}"  # fmt: skip
        print(f"| {name} | {spread(rates, 1)} | {spread(costs, 3)} |{packets} {ratio} | {shares(runs)} |")


QUEUES = ("queues-1", "queues-2", "queues-4", "queues-2-worker")
FLOODED = ("flooded", "flooded-direct", "flooded-other")
OURS = ("adaptive", "other", "header", "worker", "direct", "worker-1", *QUEUES, *FLOODED)
DEFAULT = ["forward", "held", "plain", "relay", "adaptive", "worker", "direct", "haproxy"]
ETHERNET = {"tap": "tap", "tap-forward": "tap", "packet": "packet", "packet-host": "packet", "packet-forward": "packet"}
# The floor of each, if it is not "forward".
FLOOR = {name: f"{kind}-forward" for name, kind in ETHERNET.items()}
MORE = ["worker-1", "other", "header", "haproxy-header", "tun", *ETHERNET, *QUEUES, *FLOODED, "host-worker", "host-direct", "host-copy"]


def parser():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=5, help="of each run")
    parser.add_argument("--mtu", type=int, nargs="+", default=[1500, 65500])
    parser.add_argument("--streams", type=int, default=1)
    parser.add_argument("--reverse", action="store_true", help="the server sends")
    parser.add_argument("--ipv6", action="store_true", help="of the others only forward has it too")
    parser.add_argument("--loss", type=float, default=0.0, help="percent of the packets into each namespace")
    parser.add_argument("--routed", action="store_true", help="the client is behind a router")
    parser.add_argument("--talk", action="store_true", help="small messages instead of streams")
    parser.add_argument("--connections", type=int, default=1, help="with --talk")
    parser.add_argument("--fresh", action="store_true", help="a connection for each message")
    parser.add_argument("--beside", type=int, default=0, help="with --talk: so many other connections, which are idle")
    parser.add_argument("--size", type=int, default=1, help="bytes of a message, with --talk")
    parser.add_argument("--contestants", nargs="+", default=DEFAULT, choices=DEFAULT + MORE)
    parser.add_argument("--target", default=target, help="cargo's target directory")
    parser.add_argument("--proxy", help="default: TARGET/release/examples/proxy")
    parser.add_argument("--other", help="a proxy of another build, for the contestant of that name")
    parser.add_argument("--verbose", action="store_true", help="what the proxies say at the end")
    parser.add_argument("--json", help="file for every single figure")
    return parser


def compare(options):
    """Every run of every contestant, by MTU and name. Prints a table for each MTU."""
    if os.geteuid() != 0 or not shutil.which("iperf3"):
        sys.exit("needs root and iperf3")
    use(options.ipv6)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    options.talk |= options.fresh
    options.proxy = options.proxy or f"{options.target}/release/examples/proxy"
    options.talk_program = newest(pathlib.Path(options.target) / "release", "tun_talk")
    chosen = [name for name in options.contestants
              if not (name in OURS and not os.path.exists(options.proxy))
              and not (name in ("other", "flooded-other") and not options.other)
              and not (name.startswith("haproxy") and not shutil.which("haproxy"))]  # fmt: skip
    for name in set(options.contestants) - set(chosen):
        print(f"{name}: not there, left out", file=sys.stderr)
    everything = {}
    with contextlib.ExitStack() as stack:
        config = stack.enter_context(tempfile.NamedTemporaryFile("w", suffix=".cfg"))
        config.write(HAPROXY)
        config.flush()
        options.haproxy_config = config.name
        header = pathlib.Path(config.name + ".header")
        header.write_text(HAPROXY.rstrip() + " send-proxy-v2 check inter 1s\n")
        stack.callback(header.unlink)
        programs = contestants(options)
        for mtu in options.mtu:
            results = everything[mtu] = {name: [] for name in chosen}
            for number in range(options.rounds):
                for name in chosen:
                    with Network(mtu, options.loss, name in QUEUES, options.routed, ETHERNET.get(name, "tun")) as net:
                        try:
                            result = measure(net, *programs[name](net), options, name in FLOODED)
                        except (RuntimeError, TimeoutError, subprocess.SubprocessError) as error:
                            print(f"{name}: {error}", file=sys.stderr)
                            continue
                    results[name].append(result)
                    figures = ", ".join(f"{figure:.3f}" for figure in result[0])
                    print(f"mtu {mtu} round {number + 1} {name}: {figures}", file=sys.stderr)
            if options.talk:
                talk_table(results, options)
            else:
                table(results, mtu, options)
    return everything


def main():
    options = parser().parse_args()
    everything = compare(options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(everything, indent=1))


if __name__ == "__main__":
    main()
