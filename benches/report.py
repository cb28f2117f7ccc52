#!/usr/bin/env python3
"""The whole comparison with real traffic, from nothing: what the performance page says of it.

Installs what it needs (Debian's packages, as root), builds, measures all contestants of compare.py in
turns, and prints the tables as markdown. With --plots it draws throughput, CPU and latency by number of
connections and streams, message size and loss into that directory. With --other the proxy of an earlier commit
takes part ("before").

    sudo benches/report.py --plots src/doc          # about 40 minutes
    sudo benches/report.py --rounds 1 --seconds 1   # a look at everything, 3 minutes
    sudo benches/report.py --only wan               # over an emulated wide-area path: half an hour more
"""

import argparse
import os
import pathlib
import shutil
import statistics
import subprocess
import sys
import time

import compare
import wan

PACKAGES = {"iperf3": "iperf3", "ip": "iproute2", "nft": "nftables", "haproxy": "haproxy", "ss": "iproute2"}
SYSTEM_PYTHON = "/usr/bin/python3"
STREAMS = ["forward", "held", "relay", "adaptive", "worker", "worker-1", "direct", "haproxy"]
FEW = ["forward", "adaptive", "worker", "direct"]
TALK = ["forward", "relay", "adaptive", "other", "haproxy"]
LOSSY = ["forward", "relay", "adaptive", "haproxy"]
SIZES = [64, 256, 1024, 4096, 16384]
CONNECTIONS = [1, 10, 100, 1000]
FRESH = [1, 10, 100]
FLOWS = [1, 2, 4, 8, 16, 32]
LOSSES = [0.01, 0.1, 1.0]
COLORS = {"forward": "#7f7f7f", "relay": "#9467bd", "adaptive": "#d62728", "worker": "#ff7f0e",
          "direct": "#2ca02c", "haproxy": "#1f77b4", "other": "#8c564b"}  # fmt: skip
TITLES = {"adaptive": "this crate", "other": "this crate, before", "haproxy": "HAProxy (over veth)"}
LATENCIES = ("us there and back, p50", "us there and back, p99")


def install(plots):
    missing = {package for command, package in PACKAGES.items() if not shutil.which(command)}
    if plots:
        try:
            import matplotlib  # noqa: F401
        except ImportError:
            missing.add("python3-matplotlib")
    if missing:
        quiet = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update"], check=True, env=quiet, stdout=sys.stderr)
        install = ["apt-get", "install", "-y", "--no-install-recommends", *sorted(missing)]
        subprocess.run(install, check=True, env=quiet, stdout=sys.stderr)
        if "python3-matplotlib" in missing and sys.executable != SYSTEM_PYTHON:
            # The package is for the system's interpreter.
            os.execv(SYSTEM_PYTHON, [SYSTEM_PYTHON, *sys.argv])


def build():
    command = ["cargo", "build", "--release", "--benches", "--example", "proxy"]
    subprocess.run(command, check=True, stdout=sys.stderr)


class Report:
    def __init__(self, options):
        self.options = options

    def run(self, heading, contestants, **settings):
        """One call of compare.py: the results of each MTU."""
        print(f"\n## {heading}", flush=True)
        options = compare.parser().parse_args([])
        options.rounds, options.seconds = self.options.rounds, self.options.seconds
        options.contestants = contestants
        options.other = self.options.other
        for name, value in settings.items():
            setattr(options, name, value)
        return compare.compare(options)

    def streams(self):
        self.run("One stream", STREAMS)
        self.run("One stream, from the server to the client", FEW, reverse=True)
        self.run("Eight streams, every dispatch", FEW, streams=8)
        self.run("One stream over IPv6", ["forward", "adaptive"], ipv6=True, mtu=[1500])

    def flows(self):
        """Throughput by number of streams."""
        results = {}
        for number in FLOWS:
            contestants = ["forward", "relay", "adaptive", "other", "haproxy"]
            results[number] = self.run(f"{number} streams", contestants, streams=number, mtu=[1500])[1500]
        self.plot("streams", results, "streams", ("Gbit/s", "CPU s/GB"))

    def talk(self, connections, size):
        heading = f"Messages of {size} bytes on {connections} connections"
        return self.run(heading, TALK, talk=True, mtu=[1500], connections=connections, size=size)[1500]

    def connections(self):
        """A connection for each message."""
        results = {}
        for number in FRESH:
            heading = f"Connections for 64 bytes each, {number} at a time"
            settings = {"talk": True, "fresh": True, "connections": number, "size": 64, "mtu": [1500]}
            results[number] = self.run(heading, TALK, **settings)[1500]
        self.plot("fresh", results, "connections at a time, 64 bytes each",
                  ("connections/s", "CPU us/connection", *LATENCIES))  # fmt: skip

    def messages(self):
        self.talk(1, 1)
        by_size = {size: self.talk(100, size) for size in SIZES}
        by_number = {n: by_size[64] if n == 100 else self.talk(n, 64) for n in CONNECTIONS}
        units = ("messages/s", "CPU us/message", *LATENCIES)
        self.plot("messages", by_size, "bytes of a message, on 100 connections", units)
        self.plot("connections", by_number, "connections, messages of 64 bytes", units)

    def losses(self):
        results = {}
        for loss in LOSSES:
            heading = f"One stream, {loss:g} % loss into each namespace"
            results[loss] = self.run(heading, LOSSY, mtu=[1500], loss=loss)[1500]
        self.plot("loss", results, "percent of packets lost, one stream", ("Gbit/s", "CPU s/GB"))

    def wan(self):
        print("\n## Wide area", flush=True)
        options = wan.parser().parse_args([])
        options.rounds, options.seconds = min(self.options.rounds, 3), 3 * self.options.seconds
        wan.compare_all(options)

    def scale(self):
        for bench in ("scale", "churn", "queues", "syn_flood"):
            command = ["cargo", "bench", "--bench", bench]
            text = subprocess.run(command, check=True, text=True, stdout=subprocess.PIPE).stdout
            print(f"\n## {bench}\n\n{text}", flush=True)
            if bench == "scale":
                self.plot_scale(text)
        rounds = ["--rounds", str(min(self.options.rounds, 3))]
        subprocess.run([sys.executable, "benches/idle.py", *rounds], check=True)

    def plot_scale(self, text):
        """The rows that the bench has printed, as curves."""
        results, contestant = {}, ""
        for line in text.splitlines():
            parts = line.split("|")
            if len(parts) == 4 and "connections" not in line:
                awake, rest, _ = map(float, parts[1].split())
                _, others, resting = map(float, parts[2].split())
                row = results.setdefault(int(parts[0].split()[0]), {})
                row[contestant] = [((others, awake), None)]
                if "SocketSet" not in contestant:
                    row[f"{contestant}, from rest"] = [((resting, rest), None)]
            elif line and not line.startswith(" "):
                contestant = line.split(",")[0] + (" with timers" if "timers" in line else "")
        names = dict.fromkeys(name for row in results.values() for name in row)
        results = {n: {name: row.get(name, []) for name in names} for n, row in sorted(results.items())}
        units = ("us for a segment, flow after flow", "bytes of a connection")
        self.plot("scale", results, "spliced connections", units)

    def plot(self, name, results, axis, units):
        """Medians and ranges, each unit in a panel of its own."""
        if not self.options.plots:
            return
        import matplotlib

        matplotlib.use("svg")
        matplotlib.rcParams.update({"svg.hashsalt": name, "svg.fonttype": "none", "font.size": 9})
        from matplotlib import pyplot

        rows = len(units) // 2
        figure, panels = pyplot.subplots(rows, 2, figsize=(9, 3.4 * rows), layout="constrained", squeeze=False)
        names = next(iter(results.values()))
        for column, (panel, unit) in enumerate(zip(panels.flat, units)):
            for contestant in names:
                points = [(x, [figures[column] for figures, _ in runs[contestant]])
                          for x, runs in results.items() if runs[contestant]]  # fmt: skip
                xs = [x for x, _ in points]
                color = COLORS.get(contestant)
                panel.plot(xs, [statistics.median(ys) for _, ys in points], marker="o", markersize=3,
                           label=TITLES.get(contestant, contestant), color=color)  # fmt: skip
                panel.fill_between(xs, [min(ys) for _, ys in points], [max(ys) for _, ys in points],
                                   alpha=0.15, color=color)  # fmt: skip
            panel.set(xscale="log", yscale="log", xlabel=axis, ylabel=unit, xticks=list(results))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.xaxis.set_minor_locator(matplotlib.ticker.NullLocator())
            panel.yaxis.set_major_formatter("{x:g}")
            panel.grid(alpha=0.3, which="both")
        panels.flat[1].legend(fontsize=8)
        path = pathlib.Path(self.options.plots) / f"{name}.svg"
        figure.savefig(path, metadata={"Date": None})
        pyplot.close(figure)
        # As a part of a page, within markdown: without a prologue and empty lines.
        image = path.read_text()
        lines = (line.strip() for line in image[image.index("<svg"):].splitlines())
        path.write_text("\n".join(line for line in lines if line) + "\n")
        print(f"\n{path} is drawn", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=int, default=2, help="of each run")
    parser.add_argument("--plots", help="directory for the plots; without it there are none")
    parser.add_argument("--other", help="a proxy of another build, e.g. of an earlier commit, beside this one")
    parts = ["streams", "flows", "connections", "messages", "losses", "scale"]
    parser.add_argument("--only", choices=[*parts, "wan"], nargs="+", default=parts)
    options = parser.parse_args()
    if os.geteuid() != 0:
        sys.exit("needs root: it makes network namespaces and installs packages")
    os.chdir(pathlib.Path(__file__).resolve().parent.parent)
    install(options.plots)
    build()
    start = time.monotonic()
    report = Report(options)
    for part in options.only:
        getattr(report, part)()
    print(f"\n{(time.monotonic() - start) / 60:.0f} minutes", file=sys.stderr)


if __name__ == "__main__":
    main()
