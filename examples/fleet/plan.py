"""What the networks of the fleet are called, in each family of addresses, and what the routing daemons are told.

Networks are of four kinds: of clients, of servers, between a router and a machine, and between a router and the edge.
The `number` is the client's, the server's, the machine's or the router's; the upstream end has the host number 1.
"""

import ipaddress

CLIENTS, MACHINES, SERVERS, OWN, SERVICE, EDGE = 90, 91, 92, 93, 99, 95
PORT = 80
TABLE = 99
BACKBONE = """
log stderr all;
router id 10.0.ID;
protocol device {}
protocol bfd { interface "*" { interval BEAT ms; multiplier 5; }; }
function of_fleet() { return net = SERVICE || net ~ [ OWNNET{BITS,BITS} ]; }
"""
TIMERS = "hold time HOLD; bfd SWITCH; connect delay time 1; connect retry time 1; error wait time 1, 2;"


class Plan:
    def __init__(self, options):
        self.options = options
        self.bits = 32 if options.family == 4 else 128
        self.service = self.address(SERVICE, 0, 1)
        self.default = "0.0.0.0/0" if options.family == 4 else "::/0"
        self.own_networks = self.all_of(OWN)

    def address(self, kind, number, host):
        text = f"10.{kind}.{number}.{host}" if self.options.family == 4 else f"fd{kind}:{number}::{host}"
        return str(ipaddress.ip_address(text))

    def network(self, kind, number, host):
        """The address of one end, with the length of the prefix of a network."""
        return f"{self.address(kind, number, host)}/{24 if self.options.family == 4 else 64}"

    def all_of(self, kind):
        return f"10.{kind}.0.0/16" if self.options.family == 4 else f"fd{kind}::/16"

    def own(self, number):
        """From which a machine's proxy connects to servers."""
        return self.address(OWN, number, 1)

    @staticmethod
    def links(router):
        """The kind of the networks between this router and the machines."""
        return MACHINES + 5 * (router - 1)

    def endpoint(self, address):
        return f"{address}:{PORT}" if self.options.family == 4 else f"[{address}]:{PORT}"

    # BIRD's configurations.

    def config(self, identity, *parts):
        options = self.options
        values = {
            "OWNNET": self.own_networks,
            "SERVICE": f"{self.service}/{self.bits}",
            "DEFAULT": self.default,
            "BITS": self.bits,
            "BEAT": options.bfd or 1000,
            "SWITCH": "on" if options.bfd else "off",
            "HOLD": options.hold,
            "FAMILY": f"ipv{options.family}",
            "VERSION": "v2" if options.family == 4 else "v3",
            "ID": identity,
        }
        text = "".join((BACKBONE, *parts))
        for key, value in values.items():
            text = text.replace(key, str(value))
        return text

    def ospf(self, *devices):
        names = ", ".join(f'"{device}"' for device in devices)
        return f"""
        protocol ospf VERSION area0 {{
            ecmp yes limit 255;
            merge external yes;
            FAMILY {{ import all; export where source = RTS_STATIC; }};
            area 0 {{ interface {names} {{ type ptp; hello 1; dead HOLD; bfd SWITCH; }}; }};
        }}
        """

    @staticmethod
    def kernel(wanted, table=254):
        return f"""
        protocol kernel {{
            kernel table {table};
            merge paths on limit 255;
            FAMILY {{ import none; export where {wanted}; }};
        }}
        """

    @staticmethod
    def bgp(name, head, imported, exported):
        channel = f"FAMILY {{ import {imported}; export {exported}; next hop self; }};"
        return f"protocol bgp {name} {{ {head} {TIMERS} {channel} }}\n"

    def router(self, number):
        """It takes what the machines announce, and announces a default route to them."""
        parts = [self.kernel("of_fleet()", TABLE), "protocol static upstream { FAMILY; route DEFAULT unreachable; }\n"]
        if self.options.routing == "ospf":
            parts.append(self.ospf("p*", "edge"))
        else:
            head = f'local as 65000; neighbor range {self.all_of(self.links(number))} as 65001; dynamic name "proxy";'
            parts.append(self.bgp("fleet", head, "where of_fleet()", "where source = RTS_STATIC"))
            if self.options.routers > 1:
                head = f"local as 65000; neighbor {self.address(EDGE, number, 1)} as 64999;"
                parts.append(self.bgp("edge", head, "none", "where of_fleet()"))
        return self.config(f"1.{number}", *parts)

    def edge(self):
        """It spreads what is for the fleet over the routers."""
        if self.options.routing == "ospf":
            return self.config("0.1", self.kernel("of_fleet()"), self.ospf("r*"))
        heads = {
            number: f"local as 64999; neighbor {self.address(EDGE, number, 2)} as 65000;"
            for number in range(1, self.options.routers + 1)
        }
        sessions = [self.bgp(f"router{number}", head, "all", "none") for number, head in heads.items()]
        return self.config("0.1", self.kernel("of_fleet()"), *sessions)

    def machine(self, number):
        """It announces a route by each TUN device that has a carrier."""
        parts = [
            self.kernel("net = DEFAULT"),
            'protocol static service { check link; FAMILY; route SERVICE via "front"; }\n',
            f'protocol static own {{ check link; FAMILY; route {self.own(number)}/BITS via "back"; }}\n',
        ]
        if self.options.routing == "ospf":
            parts.append(self.ospf("uplink*"))
        else:
            for router in range(1, self.options.routers + 1):
                near, far = (self.address(self.links(router), number, host) for host in (2, 1))
                head = f"local {near} as 65001; neighbor {far} as 65000;"
                parts.append(self.bgp(f"uplink{router}", head, "where net = DEFAULT", "where source = RTS_STATIC"))
        return self.config(f"2.{number}", *parts)
