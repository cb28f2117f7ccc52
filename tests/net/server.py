#!/usr/bin/env python3
"""A web server with contents that are known beforehand.

server.py serve ADDRESS PORT   GET /bytes/N: N bytes; GET /die/N: N of twice as many, then the server is
                               killed; PUT: answers with the SHA-256 of the body
server.py digest N             prints the SHA-256 of the N bytes
server.py generate N           writes the N bytes to standard output
"""

import hashlib
import http.server
import os
import random
import signal
import struct
import sys

BLOCK = random.Random(1).randbytes(1 << 20)


def blocks(count):
    """`count` bytes, no two blocks alike."""
    number = 0
    while count > 0:
        block = struct.pack(">Q", number) + BLOCK[8:]
        yield block[: min(count, len(block))]
        count -= len(block)
        number += 1


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self):
        _, what, count = self.path.split("/")
        dies = what == "die"
        self.send_response(200)
        self.send_header("Content-Length", str(int(count) * (2 if dies else 1)))
        self.end_headers()
        for block in blocks(int(count)):
            self.wfile.write(block)
        if dies:
            os.kill(os.getpid(), signal.SIGKILL)

    def do_PUT(self):
        # curl waits for this before it sends a large body.
        digest = hashlib.sha256()
        for piece in self.body():
            digest.update(piece)
        answer = digest.hexdigest().encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def body(self):
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            left = int(self.headers["Content-Length"])
            while left > 0:
                piece = self.rfile.read(min(left, 1 << 20))
                if not piece:
                    raise EOFError(f"{left} bytes missing")
                left -= len(piece)
                yield piece
            return
        while True:
            size = int(self.rfile.readline(), 16)
            yield self.rfile.read(size)
            self.rfile.readline()
            if size == 0:
                return

    def log_message(self, *_):
        pass


class Server(http.server.ThreadingHTTPServer):
    request_queue_size = 128


def main():
    match sys.argv[1:]:
        case ["serve", address, port]:
            server = Server((address, int(port)), Handler)
            print("listening", flush=True)
            server.serve_forever()
        case ["digest", count]:
            digest = hashlib.sha256()
            for block in blocks(int(count)):
                digest.update(block)
            print(digest.hexdigest())
        case ["generate", count]:
            for block in blocks(int(count)):
                sys.stdout.buffer.write(block)
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
