"""The fleet in network namespaces: clients, one router or two, machines with a proxy each, servers.

      clients c1, c2 --- router r1 === machines p1, p2, ... --- (router) --- servers s1, s2
                         BIRD          BIRD, proxy

      clients c1, c2 --- edge e === routers r1, r2 === machines p1, p2, ... --- (routers, edge) --- servers s1, s2
                         BIRD       BIRD               BIRD, proxy

plan.py has the addresses. Each machine's proxy has two TUN devices: `front` with the service address, which all
machines have, and `back` with the machine's own address, from which it connects to a server. BIRD announces each of the two to
the routers while its device has a carrier, which is while a proxy has it open. The routers announce a default route.
"""

import json
import os
import pathlib
import signal
import subprocess
import time

from plan import CLIENTS, EDGE, PORT, SERVERS, TABLE, Plan

HERE = pathlib.Path(__file__).resolve().parent
WAIT = 60


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


def device(number):
    """The routers' device to a machine."""
    return f"p{number}"


class Host:
    """A namespace, and the programs in it."""

    def __init__(self, scene, name):
        self.name = f"fleet-{os.getpid()}-{name}"
        self.options, self.folder, self.plan = scene.options, scene.folder, scene.plan
        self.programs = []
        run("ip", "netns", "add", self.name)
        scene.hosts.append(self)
        # Addresses are there at once, not after a search for duplicates.
        self.sysctl("ipv6/conf/all/accept_dad", 0)
        self.sysctl("ipv6/conf/default/accept_dad", 0)
        self.sysctl("ipv6/conf/all/forwarding", 1)
        self.sysctl("ipv4/ip_forward", 1)
        self.ip("link", "set", "lo", "up")

    def ip(self, *arguments):
        return run("ip", f"-{self.options.family}", "-n", self.name, *arguments)

    def ip_json(self, *arguments):
        return json.loads(self.ip("-j", *arguments) or "[]")

    def sysctl(self, key, value):
        run("ip", "netns", "exec", self.name, "sh", "-c", f"echo {value} >/proc/sys/net/{key}")

    def hash_by_ports(self, router=1):
        """Of several next hops one is chosen by addresses, protocol and ports. Policy 1 would take a hash that the
        packet carries from a socket of this machine, which is another one after each retransmission."""
        for family in ("ipv4", "ipv6"):
            self.sysctl(f"{family}/fib_multipath_hash_policy", self.options.hash)
            self.sysctl(f"{family}/fib_multipath_hash_fields", 0x37)
        if self.options.routers > 1:
            # Without one, all namespaces of a machine have the same, but other machines do not.
            self.sysctl("ipv4/fib_multipath_hash_seed", 1 if self.options.seeds == "same" else router)

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
        path = self.folder / f"{self.name}.conf"
        path.write_text(config)
        self.control = self.folder / f"{self.name}.ctl"
        self.daemon = self.start("bird", "-f", "-c", path, "-s", self.control, "-P", self.folder / f"{self.name}.pid")
        wait_for(
            f"BIRD's socket of {self.name}, or BIRD has ended",
            lambda: self.control.exists() or self.daemon.poll() is not None,
        )

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
        plan = self.plan
        for router in scene.routers:
            scene.wire(router, device(number), self, f"uplink{router.number}", plan.links(router.number), number)
        for name, address in (("front", plan.service), ("back", plan.own(number))):
            self.ip("tuntap", "add", name, "mode", "tun")
            self.ip("link", "set", name, "txqueuelen", 10000, "up")
            self.ip("route", "add", address, "dev", name)
        self.proxy = self.start(
            *(scene.options.proxy, "--tun", f"front={plan.service}/{plan.bits}"),
            *("--tun", f"back={plan.own(number)}/{plan.bits}"),
            *("--listen", plan.endpoint(plan.service), "--buffer", "64K"),
            *(word for server in (1, 2) for word in ("--backend", plan.endpoint(plan.address(SERVERS, server, 2)))),
            *("--keep-alive", scene.options.keep_alive, "--grace", 1),
        )
        self.bird(plan.machine(number))

    def can_answer(self):
        return any(route["dst"] == "default" for route in self.ip_json("route"))

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
        """Without a carrier that is lost: only the daemons' timers show it, or BFD."""
        self.daemon.send_signal(signal.SIGSTOP)
        self.proxy.send_signal(signal.SIGSTOP)


class Router(Host):
    """One with BIRD, which writes what the machines announce into a table of its own, and a next-hop group."""

    def __init__(self, scene, number):
        super().__init__(scene, f"r{number}")
        self.number = number
        self.hash_by_ports(number)
        self.ip("route", "add", "unreachable", "default", "table", TABLE)
        self.ip("rule", "add", "pref", 33000, "lookup", TABLE)
        if scene.edge:
            scene.wire(scene.edge, f"r{number}", self, "edge", EDGE, number)
            for kind in (CLIENTS, SERVERS):
                self.ip("route", "add", self.plan.all_of(kind), "via", self.plan.address(EDGE, number, 1))
        self.bird(self.plan.router(number))

    def announced(self):
        """The devices to the next hops of the service that BIRD has written."""
        for route in self.ip_json("route", "show", "table", TABLE):
            if route["dst"] == self.plan.service:
                return {hop["dev"] for hop in route.get("nexthops", [route])}
        return set()

    def start_keeper(self):
        options = self.options
        timers = ("--idle", options.idle, "--unbalanced", options.unbalanced, "--buckets", options.buckets)
        what = ("--table", TABLE, "--service", self.plan.service, "--own", self.plan.own_networks)
        self.keeper = self.start(HERE / "keeper.py", *what, *timers)

    def restart_keeper(self):
        self.keeper.kill()
        self.keeper.wait()
        self.start_keeper()

    def layout(self):
        """The device of each bucket."""
        hops = {hop["id"]: hop["dev"] for hop in self.ip_json("nexthop") if "gateway" in hop}
        lines = [line.split() for line in self.ip("nexthop", "bucket", "show").splitlines()]
        return {words[words.index("index") + 1]: hops.get(int(words[words.index("nhid") + 1])) for words in lines}

    def buckets(self):
        """How many buckets each next hop has."""
        held = list(self.layout().values())
        return {name: held.count(name) for name in set(held) if name}

    def lose_packets(self):
        """All that it would forward, for a second."""
        self.ip("rule", "add", "pref", 1, "blackhole")
        time.sleep(1)
        self.ip("rule", "del", "pref", 1)

    def die(self):
        """Its links go down with it."""
        for program in self.programs:
            program.kill()
            program.wait()
        for link in self.ip_json("link"):
            self.ip("link", "set", link["ifname"], "down")


class Scene:
    def __init__(self, options, folder, resilient):
        self.options, self.folder, self.plan = options, folder, Plan(options)
        self.hosts, self.routers, self.machines, self.loads = [], [], [], []
        self.resilient, self.edge = resilient, None
        try:
            self.build()
        except BaseException:
            self.close()
            raise

    def build(self):
        options, plan = self.options, self.plan
        if options.routers > 1:
            self.edge = Host(self, "e")
            self.edge.hash_by_ports()
        for number in range(1, options.routers + 1):
            self.routers.append(Router(self, number))
        if self.edge:
            self.edge.bird(plan.edge())
        upstream = self.edge or self.routers[0]
        for number in (1, 2):
            server, client = Host(self, f"s{number}"), Host(self, f"c{number}")
            for host, kind, name in ((server, SERVERS, f"s{number}"), (client, CLIENTS, f"c{number}")):
                self.wire(upstream, name, host, "uplink", kind, number)
                host.ip("route", "add", "default", "via", plan.address(kind, number, 1))
            # The route's, not the device's: that would drop full packets of the client too, without a report, but
            # not super-frames. So a client that repeats one segment would lose its connection.
            network = plan.network(CLIENTS, number, 0)
            metric = ("metric", 256 if options.family == 6 else 0)  # the kernel's
            upstream.ip("route", "replace", network, "dev", f"c{number}", "mtu", options.mtu, *metric)
            listening = server.start(HERE / "talk.py", "serve", plan.address(SERVERS, number, 2), PORT, talks=True)
            listening.stdout.readline()
            self.loads.append(client.start(HERE / "talk.py", "load", plan.service, PORT, talks=True))
            self.loads[-1].stdout.readline()
        for number in range(1, options.proxies + 1):
            self.join(number)
        for machine in self.machines:
            wait_for("a default route", machine.can_answer)
        everyone = {device(machine) for machine in range(1, options.proxies + 1)}
        for router in self.routers:
            wait_for("all announced", lambda: router.announced() == everyone)
            if self.resilient:
                router.start_keeper()
        for router in self.routers:
            if self.resilient:
                wait_for("in the group", lambda: set(router.buckets()) == everyone)
        if self.edge:
            gateways = {f"r{number}" for number in range(1, options.routers + 1)}
            wait_for("all routers at the edge", lambda: self.to_routers() == gateways)

    def to_routers(self):
        """The devices by which the edge reaches the service and all machines."""
        plan, machines = self.plan, range(1, len(self.machines) + 1)
        routes = {route["dst"]: route for route in self.edge.ip_json("route")}
        wanted = [plan.service, *map(plan.own, machines)]
        if not all(address in routes for address in wanted):
            return set()
        found = [{hop["dev"] for hop in routes[one].get("nexthops", [routes[one]])} for one in wanted]
        return set.intersection(*found)

    def wire(self, above, name, host, uplink, kind, number):
        """A cable, and an address at each end."""
        above.ip("link", "add", name, "type", "veth", "peer", "name", uplink, "netns", host.name)
        for one, end, place in ((above, name, 1), (host, uplink, 2)):
            one.ip("addr", "add", self.plan.network(kind, number, place), "dev", end)
            one.ip("link", "set", end, "up")

    def join(self, number):
        machine = Machine(self, number)
        self.machines.append(machine)
        return machine

    def lose_router(self):
        self.routers.pop().die()

    def announced(self):
        """What the routers know."""
        return [router.announced() for router in self.routers]

    def shares(self):
        """The buckets of each proxy at the first router, by its number; how many the second one gives to another."""
        if not self.resilient:
            return "-"
        counts = {int(name[1:]): count for name, count in self.routers[0].buckets().items()}
        if len(counts) > 4:
            text = f"{len(counts)} have {min(counts.values())} to {max(counts.values())}"
        else:
            text = " ".join(f"{number}:{counts[number]}" for number in sorted(counts))
        for other in self.routers[1:]:
            if there := other.layout():
                here = self.routers[0].layout()
                differ = sum(here[index] != there.get(index) for index in here)
                text += f", {differ} differ"
        return text

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
