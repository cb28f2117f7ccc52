#!/bin/bash
# A TUN takes super-frames of up to 65,535 bytes, but forwards only those of up to 65,521 as they are.
#
# A program writes a TCP super-frame with a virtio-net header to a TUN, for the kernel to route on to a veth
# (to a container, say). IPv4's length field allows 65,535 bytes, the device accepts them, and a receiver on
# the same host gets them whole, so one would fill them. On the way to an Ethernet device 14 bytes of header
# come in front, and above 65,535 bytes with it the kernel cuts the super-frame in software, into packets of
# the MTU: one byte more makes 45 packets of one. (The kernel's own TCP leaves room for such headers.) A VLAN
# or a tunnel behind it takes more of the room.
#
# Seen on Linux 6.18 (root, /dev/net/tun, iproute2, python3); bytes of IP packet, packets at the far end:
#   65521 bytes: 1
#   65522 bytes: 45
#   65535 bytes: 45
set -euo pipefail
folder=$(mktemp -d)
router=finding-$$-r host=finding-$$-h
trap 'ip netns del "$router" 2>/dev/null || true; ip netns del "$host" 2>/dev/null || true; rm -rf "$folder"' EXIT
for tool in ip:iproute2 python3:python3; do
    command -v "${tool%%:*}" >/dev/null || { apt-get update -q && apt-get install -q -y "${tool##*:}"; }
done
cd "$folder"
ip netns add "$router"
ip netns add "$host"
# Nothing but what is counted crosses the veth.
for netns in "$router" "$host"; do
    ip netns exec "$netns" sh -c 'echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6; echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6'
done
ip -n "$router" link add v0 type veth peer name v0 netns "$host"
ip -n "$router" addr add 198.51.100.1/24 dev v0
ip -n "$host" addr add 198.51.100.2/24 dev v0
ip -n "$router" link set v0 up
ip -n "$host" link set v0 up
ip -n "$host" route add default via 198.51.100.1
ip netns exec "$router" sh -c 'echo 1 >/proc/sys/net/ipv4/ip_forward'
cat >send.py <<'PY'
import fcntl, os, socket, struct, subprocess, sys, time

IFF_TUN, IFF_NO_PI, IFF_VNET_HDR, TUNSETIFF = 0x0001, 0x1000, 0x4000, 0x400454CA
NEEDS_CSUM, GSO_TCPV4, MSS = 1, 1, 1460


def checksum(data):
    total = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return (total + (total >> 16)) & 0xFFFF


def received():
    lines = subprocess.run(["ip", "netns", "exec", sys.argv[1], "cat", "/proc/net/dev"], capture_output=True, text=True)
    return next(int(line.split()[2]) for line in lines.stdout.splitlines() if line.strip().startswith("v0:"))


tun = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"t0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
for command in ("ip addr add 192.0.2.1/24 dev t0", "ip link set t0 up", "ping -c 1 198.51.100.2"):
    subprocess.run(command.split(), check=True, stdout=subprocess.DEVNULL)
ends = socket.inet_aton("192.0.2.2") + socket.inet_aton("198.51.100.2")
for length in (65521, 65522, 65535):
    ip = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, 6, 0) + ends
    ip = ip[:10] + struct.pack("!H", ~checksum(ip) & 0xFFFF) + ip[12:]
    pseudo = checksum(ends + struct.pack("!HH", 6, length - 20))
    tcp = struct.pack("!HHIIBBHHH", 5000, 9, 1, 1, 0x50, 0x10, 65535, pseudo, 0)
    header = struct.pack("=BBHHHH", NEEDS_CSUM, GSO_TCPV4, 40, MSS, 20, 16)
    time.sleep(0.3)
    before = received()
    os.write(tun, header + ip + tcp + bytes(length - 40))
    time.sleep(0.3)
    print(f"{length} bytes: {received() - before}", flush=True)
PY
command -v ping >/dev/null || { apt-get update -q && apt-get install -q -y iputils-ping; }
ip netns exec "$router" python3 send.py "$host" | tee seen
cat >expected <<'TEXT'
65521 bytes: 1
65522 bytes: 45
65535 bytes: 45
TEXT
diff expected seen && echo "as described, on Linux $(uname -r)"
