"""A transfer over QUIC with aioquic: `serve ADDRESS PORT CERTIFICATE KEY`, `fetch ADDRESS PORT BYTES`.

The server answers a number on a stream with as many bytes; the client prints their digest and the one expected.
"""

import asyncio
import hashlib
import ssl
import sys

from aioquic.asyncio import connect, serve
from aioquic.quic.configuration import QuicConfiguration


def content(count):
    block = bytes(i * 7 % 251 for i in range(251))
    return (block * (count // len(block) + 1))[:count]


async def answer(reader, writer):
    count = int(await reader.read())
    writer.write(content(count))
    writer.write_eof()


async def main():
    role, address, port, *rest = sys.argv[1:]
    if role == "serve":
        configuration = QuicConfiguration(is_client=False)
        configuration.load_cert_chain(*rest)

        def handler(reader, writer):
            asyncio.ensure_future(answer(reader, writer))

        await serve(address, int(port), configuration=configuration, stream_handler=handler)
        print("serving", flush=True)
        await asyncio.Future()
    count = int(rest[0])
    configuration = QuicConfiguration(is_client=True, verify_mode=ssl.CERT_NONE)
    async with connect(address, int(port), configuration=configuration) as client:
        reader, writer = await client.create_stream()
        writer.write(str(count).encode())
        writer.write_eof()
        got = await reader.read()
    wanted = hashlib.sha256(content(count)).hexdigest()
    print("same" if hashlib.sha256(got).hexdigest() == wanted else f"different: {len(got)}", flush=True)


asyncio.run(main())
