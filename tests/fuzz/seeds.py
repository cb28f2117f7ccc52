#!/usr/bin/env python3
"""Writes hand-made inputs of the target `frames` into a folder: see fuzz_targets/frames.rs for their form.

`.ci/fuzz merge` puts what they cover into the corpus.
"""
import pathlib
import struct
import sys

FOLDER = pathlib.Path(sys.argv[1])

VOUCHED, AIM, SPLIT, SEND, READ, SHUT, BATCH, TIME = (1 << bit for bit in range(8))
FIN, SYN, RST, ACK = 1, 2, 4, 16
OPTIONS = bytes([2, 4, 5, 0xB4, 1, 3, 3, 7])


def ones(data):
    total = sum(struct.unpack(f">{len(data) // 2}H", data))
    while total >> 16:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF


def ipv4(protocol, body):
    fields = [0x45, 0, 20 + len(body), 0, 0, 64, protocol, 0, bytes([10, 0, 0, 2]), bytes([10, 0, 0, 1])]
    fields[7] = ones(struct.pack(">BBHHHBBH4s4s", *fields))
    return struct.pack(">BBHHHBBH4s4s", *fields) + body


def ipv6(protocol, body):
    source, destination = (bytes([0xFD] + [0] * 14 + [last]) for last in (2, 1))
    return struct.pack(">IHBB", 6 << 28, len(body), protocol, 64) + source + destination + body


def tcp(flags, payload=b"", options=b"", seq=0, ack=0, port=40000):
    offset = (20 + len(options)) << 2
    return struct.pack(">HHIIBBHHH", port, 80, seq, ack, offset, flags, 8192, 0, 0) + options + payload


def echo():
    body = struct.pack(">BBHHH", 8, 0, 0, 1, 1) + b"echo"
    return body[:2] + struct.pack(">H", ones(body)) + body[4:]


def record(act, frame):
    return struct.pack(">BH", act, len(frame)) + frame


def seed(name, *records, v6=False):
    FOLDER.mkdir(parents=True, exist_ok=True)
    (FOLDER / name).write_bytes(bytes([v6]) + b"".join(records))


OURS = VOUCHED | AIM
seed("syn", record(VOUCHED, ipv4(6, tcp(SYN, options=OPTIONS))))
seed("syn-v6", record(VOUCHED, ipv6(6, tcp(SYN, options=OPTIONS))))
seed("data", record(OURS | SPLIT | READ, ipv4(6, tcp(ACK, b"x" * 1000))))
seed("data-v6", record(OURS | SEND, ipv6(6, tcp(ACK, b"x" * 300))), v6=True)
seed("fin", record(OURS | SEND | SHUT, ipv4(6, tcp(ACK | FIN))), record(OURS | TIME, ipv4(6, tcp(ACK))))
seed("reset", record(OURS, ipv4(6, tcp(RST | ACK))))
seed("echo", record(0, ipv4(1, echo())))
seed(
    "holes",
    record(OURS | BATCH, ipv4(6, tcp(ACK, b"b" * 100, seq=100))),
    record(OURS | BATCH, ipv4(6, tcp(ACK | FIN, b"c" * 100, seq=200))),
    record(OURS | READ, ipv4(6, tcp(ACK, b"a" * 100))),
)
seed("large", *[record(OURS | BATCH, ipv4(6, tcp(ACK, b"l" * 6000, seq=6000 * i))) for i in range(2)])
