#!/bin/bash
# Who holds a TUN descriptor may change the device's offloads without a privilege, but not ask for its namespace.
#
# A helper with privileges attaches a TUN device and passes the descriptor to a program without (a VPN in a sandbox). One
# would guess that the program may read more than it may write. It is the other way round: without CAP_NET_ADMIN it
# sets offloads and the length of the virtio-net header, which belong to the device and outlive the program; the
# device's namespace (TUNGETDEVNETNS, SIOCGSKNS), where it could look up MTU and offloads to restore them, is
# refused with EPERM. So the program has to be told what it cannot ask, and cannot always put back what it has changed.
#
# Seen on Linux 6.18 (as root):
#   TUNGETIFF: ok
#   TUNGETVNETHDRSZ: ok
#   TUNSETVNETHDRSZ: ok
#   TUNSETOFFLOAD: ok
#   TUNGETDEVNETNS: EPERM
#   SIOCGSKNS: EPERM
set -euo pipefail
[[ $EUID == 0 && -e /dev/net/tun ]] || {
    echo "needs root and TUN devices" >&2
    exit 77
}
folder=$(mktemp -d)
namespace=finding-$$
trap 'ip netns del "$namespace" 2>/dev/null || true; rm -rf "$folder"' EXIT
script=$(realpath "$0")
cd "$folder"
ip netns add "$namespace"
seen=$(ip netns exec "$namespace" timeout 20 python3 - <<'PYTHON'
import errno, fcntl, os, struct

IFF_TUN, IFF_NO_PI, IFF_VNET_HDR = 1, 0x1000, 0x4000
TUNSETIFF, CSUM = 0x400454CA, 1
device = os.open("/dev/net/tun", os.O_RDWR)
fcntl.ioctl(device, TUNSETIFF, struct.pack("16sH22x", b"tun0", IFF_TUN | IFF_NO_PI | IFF_VNET_HDR))
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
number = lambda value: bytearray(struct.pack("i", value))
for name, request, argument in (
    ("TUNGETIFF", 0x800454D2, bytearray(40)),
    ("TUNGETVNETHDRSZ", 0x800454D7, number(0)),
    ("TUNSETVNETHDRSZ", 0x400454D8, number(12)),
    ("TUNSETOFFLOAD", 0x400454D0, CSUM),
    ("TUNGETDEVNETNS", 0x54E3, 0),
    ("SIOCGSKNS", 0x894C, 0),
):
    try:
        fcntl.ioctl(device, request, argument)
        print(f"{name}: ok")
    except OSError as error:
        print(f"{name}: {errno.errorcode[error.errno]}")
PYTHON
)
echo "$seen"
diff <(echo "$seen") <(sed -n '/^# Seen/,/^set/p' "$script" | sed -n 's/^#   //p')
