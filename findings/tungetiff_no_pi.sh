#!/bin/bash
# TUNGETIFF does not say whether packets come with packet information in front.
#
# Who attaches a queue to a TUN device that another program has open gets that program's flags, and is not
# told. One would read them back with TUNGETIFF and compare: IFF_TUN, IFF_VNET_HDR, IFF_NO_PI. But of the
# flags that it reports, 0x1000 is IFF_NOFILTER ("this queue has no socket filter"), and IFF_NO_PI is the same
# number. So a queue reports 0x1000 whether or not four bytes stand in front of each packet. The truth is in
# netlink (RTM_GETLINK, IFLA_TUN_PI) and in /sys/class/net/NAME/tun_flags of the device's own namespace.
#
# Seen on Linux 6.18 (root, /dev/net/tun, iproute2, python3):
#   asked with IFF_NO_PI:    TUNGETIFF says 0x1000: yes, a packet begins with 45
#   asked without IFF_NO_PI: TUNGETIFF says 0x1000: yes, a packet begins with 00000800
set -euo pipefail
folder=$(mktemp -d)
netns=finding-$$
trap 'ip netns del "$netns" 2>/dev/null || true; rm -rf "$folder"' EXIT
for tool in ip:iproute2 python3:python3; do
    command -v "${tool%%:*}" >/dev/null || { apt-get update -q && apt-get install -q -y "${tool##*:}"; }
done
cd "$folder"
ip netns add "$netns"
cat >look.py <<'PY'
import fcntl, os, select, struct, subprocess

TUNSETIFF, TUNGETIFF = 0x400454CA, 0x800454D2
IFF_TUN, IFF_NO_PI = 0x0001, 0x1000


def look(flags):
    tun = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(tun, TUNSETIFF, struct.pack("16sH22x", b"look0", flags))
    reported = struct.unpack("16sH22x", fcntl.ioctl(tun, TUNGETIFF, bytes(40)))[1]
    for command in ("ip addr add 192.0.2.1/24 dev look0", "ip link set look0 up"):
        subprocess.run(command.split(), check=True)
    ping = subprocess.Popen("ping -c 50 -i 0.2 192.0.2.2".split(), stdout=subprocess.DEVNULL)
    try:
        while select.select([tun], [], [], 10)[0]:
            packet = os.read(tun, 2000)
            start = 0 if packet[0] == 0x45 else 4
            if packet[start] == 0x45 and packet[start + 9] == 1:
                return bool(reported & IFF_NO_PI), packet[: max(start, 1)].hex()
    finally:
        ping.kill()
        ping.wait()
        os.close(tun)


for name, flags in (("asked with IFF_NO_PI:   ", IFF_TUN | IFF_NO_PI), ("asked without IFF_NO_PI:", IFF_TUN)):
    bit, begins = look(flags)
    print(name, f"TUNGETIFF says 0x1000: {'yes' if bit else 'no'}, a packet begins with {begins}")
PY
command -v ping >/dev/null || { apt-get update -q && apt-get install -q -y iputils-ping; }
ip netns exec "$netns" python3 look.py | tee seen
cat >expected <<'TEXT'
asked with IFF_NO_PI:    TUNGETIFF says 0x1000: yes, a packet begins with 45
asked without IFF_NO_PI: TUNGETIFF says 0x1000: yes, a packet begins with 00000800
TEXT
diff expected seen && echo "as described, on Linux $(uname -r)"
