"""Sends datagrams to port 7 in one call of the kernel's segmentation offload, and receives them back.

Arguments: the own address, the other one, bytes of a datagram (the last has one less), number of datagrams.
"""
import socket, sys
family = socket.AF_INET6 if ':' in sys.argv[1] else socket.AF_INET
s = socket.socket(family, socket.SOCK_DGRAM)
s.bind((sys.argv[1], 0))
s.settimeout(20)
s.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
to, size, count = (sys.argv[2], 7), int(sys.argv[3]), int(sys.argv[4])
whole = b''.join(bytes([i]) * size for i in range(count - 1)) + bytes([count - 1]) * (size - 1)
s.setsockopt(socket.IPPROTO_UDP, 103, size)
s.sendto(whole, to)
back = b''
while len(back) < len(whole):
    part = s.recv(65536)
    assert len(part) == min(size, len(whole) - len(back)), len(part)
    back += part
assert back == whole
