"""The fleet in network namespaces: clients, a router, machines with a proxy each, servers.

      clients c1, c2 --- router r === machines p1, p2, ... --- (router) --- servers s1, s2
      10.90.N.2          BIRD         10.91.N.2 BIRD, proxy                 10.92.N.2
                                      service 10.99.0.1, own 10.93.N.1

Each machine's proxy has two TUN devices: `front` with the service address, which all machines have, and `back` with
the machine's own address, from which it connects to a server. BIRD announces each of the two to the router while its
device has a carrier, which is while a proxy has it open.
"""

import json
import os
import pathlib
import signal
import subprocess
import time

HERE = pathlib.Path(__file__).resolve().parent
SERVICE, PORT = "10.99.0.1", 80
OWN = "10.93.0.0/16"
TABLE = 99
WAIT = 30

ROUTER = f"""
log stderr all;
router id 10.91.0.1;
ipv4 table master4;
protocol device {{}}
protocol bfd {{ interface "*" {{ interval BEAT ms; multiplier 5; }}; }}
protocol kernel {{
    kernel table {TABLE};
    merge paths on limit 255;
    ipv4 {{ import none; export all; }};
}}
protocol bgp fleet {{
    local as 65000;
    neighbor range 10.91.0.0/16 as 65001;
    dynamic name "proxy";
    hold time HOLD;
    bfd SWITCH;
    ipv4 {{
        import where net = {SERVICE}/32 || net ~ [ {OWN}{{32,32}} ];
        export none;
    }};
}}
"""

MACHINE = f"""
log stderr all;
router id ADDRESS;
protocol device {{}}
protocol bfd {{ interface "*" {{ interval BEAT ms; multiplier 5; }}; }}
protocol static service {{
    check link;
    ipv4;
    route {SERVICE}/32 via "front";
}}
protocol static own {{
    check link;
    ipv4;
    route OWN/32 via "back";
}}
protocol bgp uplink {{
    local ADDRESS as 65001;
    neighbor GATEWAY as 65000;
    hold time HOLD;
    bfd SWITCH;
    connect delay time 1;
    connect retry time 1;
    error wait time 1, 2;
    ipv4 {{ import none; export all; next hop self; }};
}}
"""


def run(*command):
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=WAIT)
    if done.returncode:
        raise RuntimeError(f"{' '.join(map(str, command))}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def wait_for(what, condition, limit=WAIT):
    """Seconds until the condition is true."""
    start = time.monotonic()
    while not condition():
        if time.monotonic() - start > limit:
            raise TimeoutError(f"after {limit} s: not {what}")
        time.sleep(0.02)
    return time.monotonic() - start


def own_address(number):
    return f"10.93.{number}.1"


def hop(number):
    return f"10.91.{number}.2"


class Host:
    """A namespace, and the programs in it."""

    def __init__(self, scene, name):
        self.name = f"fleet-{os.getpid()}-{name}"
        self.options, self.folder = scene.options, scene.folder
        self.programs = []
        run("ip", "netns", "add", self.name)
        scene.hosts.append(self)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments):
        return run("ip", "-n", self.name, *arguments)

    def ip_json(self, *arguments):
        return json.loads(run("ip", "-n", self.name, "-j", *arguments) or "[]")

    def sysctl(self, **values):
        for key, value in values.items():
            run("ip", "netns", "exec", self.name, "sh", "-c", f"echo {value} >/proc/sys/net/ipv4/{key}")

    def start(self, *command, talks=False):
        log = open(self.folder / f"{self.name}.log", "a")
        program = subprocess.Popen(
            # With this program they end, however it ends.
            ["ip", "netns", "exec", self.name, "setpriv", "--pdeathsig", "KILL", *map(str, command)],
            stdin=subprocess.PIPE if talks else subprocess.DEVNULL,
            stdout=subprocess.PIPE if talks else log,
            stderr=log,
            text=True,
        )
        log.close()
        self.programs.append(program)
        return program

    def bird(self, config):
        options = self.options
        config = config.replace("HOLD", str(options.hold)).replace("BEAT", str(options.bfd or 1000))
        config = config.replace("SWITCH", "on" if options.bfd else "off")
        path = self.folder / f"{self.name}.conf"
        path.write_text(config)
        self.control = self.folder / f"{self.name}.ctl"
        self.daemon = self.start("bird", "-f", "-c", path, "-s", self.control, "-P", self.folder / f"{self.name}.pid")
        wait_for("BIRD's socket", self.control.exists)

    def birdc(self, *command):
        return run("birdc", "-s", self.control, *command)

    def close(self):
        for program in self.programs:
            program.kill()
            program.wait()
        subprocess.run(["ip", "netns", "del", self.name], capture_output=True)


class Machine(Host):
    """One with a proxy."""

    def __init__(self, scene, number):
        super().__init__(scene, f"p{number}")
        self.own = own_address(number)
        self.hop = hop(number)
        scene.wire(self, f"p{number}", f"10.91.{number}")
        for device, address in (("front", SERVICE), ("back", self.own)):
            self.ip("tuntap", "add", device, "mode", "tun")
            self.ip("link", "set", device, "txqueuelen", 10000, "up")
            self.ip("route", "add", address, "dev", device)
        self.proxy = self.start(
            *(scene.options.proxy, "--tun", f"front={SERVICE}/32", "--tun", f"back={self.own}/32"),
            *("--listen", f"{SERVICE}:{PORT}", "--buffer", "64K"),
            *("--backend", f"10.92.1.2:{PORT}", "--backend", f"10.92.2.2:{PORT}"),
            *("--keep-alive", scene.options.keep_alive, "--grace", 1),
        )
        config = MACHINE.replace("ADDRESS", self.hop).replace("GATEWAY", f"10.91.{number}.1")
        self.bird(config.replace("OWN", self.own))

    def drain(self):
        """Takes no new connections; the proxy goes on."""
        self.birdc("disable", "service")

    def leave(self):
        self.proxy.send_signal(signal.SIGTERM)

    def kill(self):
        self.proxy.kill()

    def stall(self):
        self.proxy.send_signal(signal.SIGSTOP)
        time.sleep(2)
        self.proxy.send_signal(signal.SIGCONT)

    def hang(self):
        """Without a carrier that is lost: only BGP's hold time shows it."""
        self.daemon.send_signal(signal.SIGSTOP)
        self.proxy.send_signal(signal.SIGSTOP)


class Scene:
    def __init__(self, options, folder, resilient):
        self.options, self.folder = options, folder
        self.hosts, self.machines, self.loads = [], [], []
        self.resilient = resilient
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def build(self):
        self.router = Host(self, "r")
        # By addresses, protocol and ports. Policy 1 would take a hash that the packet carries from a socket of this
        # machine, which is another one after each retransmission.
        self.router.sysctl(ip_forward=1, fib_multipath_hash_policy=self.options.hash, fib_multipath_hash_fields=0x37)
        self.router.ip("route", "add", "unreachable", "default", "table", TABLE)
        self.router.ip("rule", "add", "pref", 33000, "lookup", TABLE)
        self.router.bird(ROUTER)
        for number in (1, 2):
            server = Host(self, f"s{number}")
            self.wire(server, f"s{number}", f"10.92.{number}")
            listening = server.start(HERE / "talk.py", "serve", f"10.92.{number}.2", PORT, talks=True)
            listening.stdout.readline()
            client = Host(self, f"c{number}")
            self.wire(client, f"c{number}", f"10.90.{number}")
            self.router.ip("link", "set", f"c{number}", "mtu", self.options.mtu)
            self.loads.append(client.start(HERE / "talk.py", "load", SERVICE, PORT, talks=True))
            self.loads[-1].stdout.readline()
        for number in range(1, self.options.proxies + 1):
            self.join(number)
        wait_for("all announced", lambda: len(self.announced()) == self.options.proxies)
        if self.resilient:
            self.start_keeper()
            wait_for("in the group", lambda: len(self.buckets()) == self.options.proxies)

    def start_keeper(self):
        options = self.options
        timers = ("--idle", options.idle, "--unbalanced", options.unbalanced, "--buckets", options.buckets)
        what = ("--table", TABLE, "--service", SERVICE, "--own", OWN)
        self.keeper = self.router.start(HERE / "keeper.py", *what, *timers)

    def restart_keeper(self):
        self.keeper.kill()
        self.keeper.wait()
        self.start_keeper()

    def wire(self, host, name, network):
        """A cable to the router."""
        self.router.ip("link", "add", name, "type", "veth", "peer", "name", "uplink", "netns", host.name)
        self.router.ip("addr", "add", f"{network}.1/24", "dev", name)
        self.router.ip("link", "set", name, "up")
        host.sysctl(ip_forward=1)
        host.ip("addr", "add", f"{network}.2/24", "dev", "uplink")
        host.ip("link", "set", "uplink", "up")
        host.ip("route", "add", "default", "via", f"{network}.1")

    def join(self, number):
        machine = Machine(self, number)
        self.machines.append(machine)
        return machine

    def announced(self):
        """The next hops of the service that BIRD has written."""
        for route in self.router.ip_json("route", "show", "table", TABLE):
            if route["dst"] == SERVICE:
                return {hop["gateway"] for hop in route.get("nexthops", [route])}
        return set()

    def buckets(self):
        """How many buckets each next hop has."""
        hops = {hop["id"]: hop["gateway"] for hop in self.router.ip_json("nexthop") if "gateway" in hop}
        counts = {}
        for line in self.router.ip("nexthop", "bucket", "show").splitlines():
            words = line.split()
            hop = hops.get(int(words[words.index("nhid") + 1]))
            counts[hop] = counts.get(hop, 0) + 1
        return counts

    def shares(self):
        """The buckets of each proxy, by its number."""
        if not self.resilient:
            return "-"
        counts = {hop.split(".")[2]: count for hop, count in self.buckets().items() if hop}
        if len(counts) > 4:
            return f"{len(counts)} have {min(counts.values())} to {max(counts.values())}"
        return " ".join(f"{number}:{counts[number]}" for number in sorted(counts))

    def tell(self, load, **order):
        """Gives a client an order; it answers when that is carried out."""
        load.stdin.write(json.dumps(order) + "\n")
        load.stdin.flush()

    def answers(self):
        lines = [load.stdout.readline() for load in self.loads]
        if not all(lines):
            raise RuntimeError("a client has ended")
        return [json.loads(line) for line in lines]

    def order(self, **order):
        for load in self.loads:
            self.tell(load, **order)
        return self.answers()

    def close(self):
        for load in self.loads:  # before those that they would miss
            load.kill()
        for host in self.hosts:
            host.close()
