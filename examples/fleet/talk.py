#!/usr/bin/env python3
"""The two ends of the connections through the fleet.

talk.py serve ADDRESS PORT     tells each connection the address it came from (its proxy's), then echoes lines
talk.py load ADDRESS PORT      opens connections and sends a line on each now and then; takes orders as lines of JSON

Both end when their standard input ends, and after LIMIT seconds at the latest.
"""

import asyncio
import collections
import json
import random
import sys

LIMIT = 1800
OPEN_LIMIT = 30  # seconds until a connection must be open: several SYNs
OPEN_AT_ONCE = 50


async def serve(address, port):
    async def echo(reader, writer):
        try:
            writer.write(f"{writer.get_extra_info('peername')[0]}\n".encode())
            while line := await reader.readline():
                writer.write(line)
        except OSError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(echo, address, port, backlog=4096)
    print("listening", flush=True)
    async with server:
        async for _ in orders():
            pass


async def orders():
    """The lines of standard input, until it ends."""
    reader = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
    while line := await reader.readline():
        yield json.loads(line)


class Connection:
    def __init__(self, proxy, reader, writer):
        self.proxy, self.reader, self.writer = proxy, reader, writer
        self.silent, self.count = False, 0
        self.turn = asyncio.Lock()

    async def exchange(self, answer_limit, size=0):
        """A line there and back. Fails if the connection is lost."""
        async with self.turn:
            self.count += 1
            line = f"{self.count:0{size}}\n".encode()
            self.writer.write(line)
            if await asyncio.wait_for(self.reader.readline(), answer_limit) != line:
                raise ConnectionError("ended, or another line")


class Load:
    """Connections that are held open, and others that are opened and closed all the time."""

    def __init__(self, address, port):
        self.address, self.port = address, port
        self.held, self.tasks = set(), set()
        self.interval = self.answer_limit = self.size = 1
        self.forget()

    def forget(self):
        self.lost, self.fresh = collections.Counter(), collections.Counter()
        self.refused, self.slowest = 0, 0.0

    async def open(self):
        reader, writer = await asyncio.open_connection(self.address, self.port)
        return Connection((await reader.readline()).decode().strip(), reader, writer)

    async def hold(self, room, silent):
        async with room:
            connection = await asyncio.wait_for(self.open(), OPEN_LIMIT)
        if not connection.proxy:
            raise ConnectionError("refused")
        self.held.add(connection)
        connection.silent = silent
        if not silent:
            self.start(self.keep_talking(connection))

    def start(self, work):
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    async def keep_talking(self, connection):
        while connection in self.held:
            await asyncio.sleep(self.interval * random.uniform(0.5, 1))
            await self.check(connection)

    async def check(self, connection):
        if connection not in self.held:
            return
        try:
            await connection.exchange(self.answer_limit, self.size)
        except (OSError, EOFError, TimeoutError) as error:
            # Not if it was closed here meanwhile.
            if connection in self.held:
                here = connection.writer.get_extra_info("sockname")
                kind = "silent" if connection.silent else "talking"
                print(f"lost: {here} by {connection.proxy}, {kind}: {error!r}", file=sys.stderr, flush=True)
                self.lost[connection.proxy] += 1
                self.close(connection)

    def close(self, connection):
        self.held.discard(connection)
        connection.writer.close()

    async def visit(self):
        """A connection that is opened, used once and closed."""
        start = asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(OPEN_LIMIT):
                connection = await self.open()
                if not connection.proxy:
                    raise ConnectionError("refused")
                await connection.exchange(OPEN_LIMIT)
                connection.writer.close()
        except (OSError, EOFError, TimeoutError):
            self.refused += 1
            return
        self.fresh[connection.proxy] += 1
        self.slowest = max(self.slowest, asyncio.get_running_loop().time() - start)

    # Orders. Each is answered with one line.

    async def do_open(self, talking, silent, interval, answer_limit, size):
        self.interval, self.answer_limit, self.size = interval, answer_limit, size
        room = asyncio.Semaphore(OPEN_AT_ONCE)
        work = [self.hold(room, number >= talking) for number in range(talking + silent)]
        results = await asyncio.gather(*work, return_exceptions=True)
        self.forget()
        failed = [repr(result) for result in results if result is not None]
        return {"failed": len(failed), "why": failed[:1]}

    async def do_visit(self, seconds, rate):
        """Opens connections for so long, so many in a second."""
        visits = []
        for _ in range(int(seconds * rate)):
            visits.append(asyncio.create_task(self.visit()))
            await asyncio.sleep(1 / rate)
        await asyncio.gather(*visits)
        return {}

    async def do_check(self):
        """Uses all: silent ones, and the others after the answer that they wait for, if it comes."""
        await asyncio.gather(*[self.check(connection) for connection in self.held])
        return {}

    async def do_hang_up(self, proxy):
        for connection in [one for one in self.held if one.proxy == proxy]:
            self.close(connection)
        return {}

    async def do_report(self):
        held = collections.Counter(connection.proxy for connection in self.held)
        return {"held": held, "lost": self.lost, "fresh": self.fresh, "refused": self.refused, "slowest": self.slowest}


async def load(address, port):
    load = Load(address, port)
    print("ready", flush=True)
    async for order in orders():
        answer = await getattr(load, "do_" + order.pop("do"))(**order)
        print(json.dumps(answer), flush=True)


def main():
    work = {"serve": serve, "load": load}.get(sys.argv[1] if len(sys.argv) == 4 else None)
    if work is None:
        sys.exit(__doc__)
    asyncio.run(asyncio.wait_for(work(sys.argv[2], int(sys.argv[3])), LIMIT))


if __name__ == "__main__":
    main()
