#!/usr/bin/env python3
"""Measures relays of datagrams beside their floor and beside other stacks: CPU of the relay, and delays.

Client and server are the kernel's UDP in two network namespaces (made here, removed at the end). Contestants
take turns within each round. CPU is the time of all threads of the relay's process (/proc/PID/task/*/schedstat). What the
kernel does for a datagram that the relay writes, up to the server's socket, it does in the writer's context, so
every contestant is charged that: compare within one table only.

    cargo build --release -p sosplice-benches --benches
    (cd benches/peers && cargo build --release --bin sosplice-peers)
    sudo benches/datagrams.py small                 # 64 bytes each, one by one, as fast as the client can
    sudo benches/datagrams.py bulk --segment 50     # 1,200 bytes each, 50 in a super-frame, at 200,000/s
    sudo benches/datagrams.py ping                  # one datagram there and back

From a TUN to kernel sockets, in the server's namespace:
host-adaptive, host-worker, host-direct
          this crate: the receiving thread moves the datagrams unless it lags, or a worker does, or it always does
host-plain
          adaptive, without offloads: each datagram is a packet of its own
ipstack, ipstack-2
          ipstack with tokio's runtime in one thread, and with two workers
netstack, netstack-2
          netstack-smoltcp in the same way

From a TUN to a TUN:
forward   packets copied from one to the other, with virtio-net header and super-frames: the floor
relay-adaptive, relay-worker, relay-direct
          this crate: a flow of one stack spliced to a socket of another one, each with a receiving thread
relay-together
          adaptive, with one thread that receives from both devices, as forward does

Per message is how many datagrams the server's socket got at once, if it may (--gro): super-frames pass whole.
"""

import argparse
import json
import os
import pathlib
import signal
import statistics
import subprocess
import sys
import time

import compare

HOST = ["host-adaptive", "host-worker", "host-direct", "host-plain"]
RELAY = ["relay-together", "relay-adaptive", "relay-worker", "relay-direct"]
PEERS = ["ipstack", "ipstack-2", "netstack", "netstack-2"]
# What each load is: datagrams of --size, --flows, --burst, --segment, --rate.
LOADS = {
    "small": ({"size": 64}, [*HOST, *PEERS]),
    "bulk": ({"size": 1200, "segment": 50, "rate": 200_000, "gro": True}, ["forward", *RELAY]),
    "ping": ({"size": 64}, ["forward", *RELAY, "host-adaptive", "host-direct", "ipstack", "netstack"]),
}


def command(name, net, options):
    """The command line of a contestant."""
    release = pathlib.Path(options.target) / "release"
    tuns = ["--tun", f"tc@{net.client}"]
    kind, _, mode = name.partition("-")
    if name == "forward":
        return [compare.newest(release, "tun_forward"), *tuns, "--tun", f"ts@{net.server}"]
    if kind in ("ipstack", "netstack"):
        return compare.within(net.server, options.peers, "--stack", kind, *tuns, "--threads", mode or "0")
    program = [compare.newest(release, "tun_datagrams") if mode != "other" else options.other, *tuns]
    dispatch = [f"--{mode}"] if mode in ("plain", "together") else \
        ["--dispatch", "adaptive" if mode == "other" else mode]  # fmt: skip
    if kind == "host":
        return compare.within(net.server, *program, *dispatch)
    return [*program, "--to", f"ts@{net.server}={compare.SERVER_GATE}/{compare.PREFIX}", *dispatch]


def talk(options, *arguments):
    return [compare.newest(pathlib.Path(options.target) / "release", "udp_talk"), *map(str, arguments)]


def cpu(pid):
    """CPU seconds of a process and its children, to the nanosecond: of the threads that are there."""
    tasks = [task for each in compare.tree(pid) for task in pathlib.Path(f"/proc/{each}/task").iterdir()]
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def started(process, limit=5.0):
    """Waits until a program says that it listens."""
    os.set_blocking(process.stdout.fileno(), False)
    end = time.monotonic() + limit
    while not process.stdout.read():
        if process.poll() is not None or time.monotonic() > end:
            raise RuntimeError(f"{process.args}: {(process.stderr.read() or b'').decode()}")
        time.sleep(0.01)
    os.set_blocking(process.stdout.fileno(), True)


def run(net, options, *arguments):
    """Runs the client; what it says."""
    client = compare.within(net.client, *talk(options, *arguments))
    done = subprocess.run(client, capture_output=True, timeout=options.seconds + 20, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr.decode())
    return json.loads(done.stdout)


def measure(net, name, options):
    """One run: its figures by name."""
    server = compare.at_port(compare.SERVER)
    far_end = relay = None
    piped = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    shape = ["--size", options.size]
    try:
        gro = ["--gro"] if options.gro else []
        there = talk(options, "--echo", server) if options.load == "ping" else talk(options, "--sink", server, *gro)
        far_end = subprocess.Popen(compare.within(net.server, *there), **piped)
        relay = subprocess.Popen(command(name, net, options), **piped)
        started(far_end)
        started(relay)
        if options.load == "ping":
            # Begins the flow.
            run(net, options, "--ask", server, *shape, "--seconds", 0.2)
        before = cpu(relay.pid)
        if options.load == "ping":
            said = run(net, options, "--ask", server, *shape, "--seconds", options.seconds)
            taken = cpu(relay.pid) - before
            return {"p50": said["p50"], "p99": said["p99"], "cpu": taken * 1e6 / said["datagrams"], "lost": said["lost"]}
        said = run(net, options, "--send", server, *shape, "--flows", options.flows, "--burst", options.burst,
                   "--segment", options.segment, "--rate", options.rate, "--seconds", options.seconds)  # fmt: skip
        time.sleep(0.3)  # until the last one has arrived
        taken = cpu(relay.pid) - before
        far_end.send_signal(signal.SIGTERM)
        arrived = json.loads(far_end.communicate(timeout=5)[0].splitlines()[-1])
        if not arrived["datagrams"] or not taken:
            raise RuntimeError(f"nothing arrived, or it took no time: {said} {arrived} {taken}")
        return {
            "per_cpu": arrived["datagrams"] / taken / 1e3,
            "cpu": taken * 1e6 / arrived["datagrams"],
            "per_gb": taken / (arrived["bytes"] / 1e9),
            "rate": arrived["datagrams"] / said["seconds"] / 1e3,
            "lost": 100 * (1 - arrived["datagrams"] / max(1, said["sent"])),
            "message": arrived["datagrams"] / arrived["messages"],
        }
    finally:
        for process in (far_end, relay):
            if process is not None:
                compare.stop(process)


COLUMNS = {
    "per_cpu": ("thousands per CPU second", 0),
    "cpu": ("CPU us/datagram", 2),
    "per_gb": ("CPU s/GB", 3),
    "rate": ("thousands/s", 0),
    "lost": ("lost %", 1),
    "message": ("per message", 1),
    "p50": ("p50 us", 1),
    "p99": ("p99 us", 1),
}
KEYS = {
    "small": ("per_cpu", "cpu", "rate", "lost"),
    "bulk": ("per_gb", "cpu", "rate", "lost", "message"),
    "ping": ("p50", "p99", "cpu"),
}


def table(results, options):
    """Medians and ranges as markdown; the first column also beside the first contestant's."""
    keys = KEYS[options.load]
    shape = f"{options.size} bytes" if options.load == "ping" else \
        f"{options.size} bytes, {options.flows} flows, {options.burst} in a row, {options.segment} in a message, " \
        f"{options.rate or 'all that go'}{'/s' * bool(options.rate)}"  # fmt: skip
    print(f"\n{compare.machine()}; {options.load}: {shape}{', IPv6' * options.ipv6}, "
          f"{options.seconds} s, {options.rounds} rounds; median (range)\n")  # fmt: skip
    print("| contestant | " + " | ".join(COLUMNS[key][0] for key in keys) + " | ratio |")
    print("|---|" + "---|" * len(keys) + "---:|")
    first = None
    for name, runs in results.items():
        if not runs:
            print(f"| {name} | failed |" + " |" * len(keys))
            continue
        middle = statistics.median(figures[keys[0]] for figures in runs)
        first = first or middle
        compared = f"{middle - first:+.1f}" if options.load == "ping" else f"{middle / first:.2f}"
        cells = [compare.spread([figures[key] for figures in runs], COLUMNS[key][1]) for key in keys]
        print(f"| {name} | " + " | ".join(cells) + f" | {compared} |")


def parser():
    target = os.environ.get("CARGO_TARGET_DIR", "target")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("load", choices=LOADS)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=3, help="of each run")
    parser.add_argument("--size", type=int, help="bytes of a datagram")
    parser.add_argument("--flows", type=int, default=1)
    parser.add_argument("--burst", type=int, default=1, help="datagrams of a flow in a row")
    parser.add_argument("--segment", type=int, help="datagrams that the client gives the kernel as one (UDP_SEGMENT)")
    parser.add_argument("--rate", type=int, help="datagrams a second; 0: as many as go")
    parser.add_argument("--gro", action="store_true", help="the server takes several datagrams at once")
    parser.add_argument("--mtu", type=int, default=1500)
    parser.add_argument("--ipv6", action="store_true")
    parser.add_argument("--contestants", nargs="+")
    parser.add_argument("--target", default=target, help="cargo's target directory")
    parser.add_argument("--peers", help="default: TARGET/release/sosplice-peers, or that of benches/peers")
    parser.add_argument("--other", help="tun_datagrams of another build, for host-other and relay-other")
    parser.add_argument("--json", help="file for every single figure")
    return parser


def main():
    options = parser().parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root")
    shape, contestants = LOADS[options.load]
    defaults = {"size": 64, "segment": 1, "rate": 0} | shape
    for key, value in defaults.items():
        if getattr(options, key) is None or getattr(options, key) is False:
            setattr(options, key, value)
    places = [pathlib.Path(options.target), pathlib.Path(__file__).parent / "peers" / "target"]
    programs = [place / "release" / "sosplice-peers" for place in places]
    options.peers = options.peers or str(next(filter(os.path.exists, programs), programs[-1]))
    compare.use(options.ipv6)
    results = {name: [] for name in options.contestants or contestants}
    for number in range(options.rounds):
        for name in results:
            with compare.Network(options.mtu) as net:
                try:
                    figures = measure(net, name, options)
                except (RuntimeError, subprocess.SubprocessError) as error:
                    print(f"{name}: {error}", file=sys.stderr)
                    continue
            results[name].append(figures)
            said = ", ".join(f"{key} {value:.3f}" for key, value in figures.items())
            print(f"round {number + 1} {name}: {said}", file=sys.stderr)
    table(results, options)
    if options.json:
        pathlib.Path(options.json).write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
