//! Small messages through a proxy: both ends, over the kernel's TCP.
//!
//! `tun_talk --serve 10.0.2.1:5201` echoes. `tun_talk --ask 10.0.1.2:5201 --connections 100 --size 64`
//! sends a message on each connection, waits for its echo, sends the next; then it prints in JSON the
//! number of echoes and their times. With `--fresh` each message has a connection of its own, and its time is that
//! from the call to connect. Without arguments it explains itself. `benches/compare.py --talk` and
//! `benches/guests.py` run both.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
mod talk {
    use anyhow::ensure;
    use clap::{CommandFactory, Parser};
    use mio::net::{TcpListener, TcpStream};
    use mio::{Events, Interest, Poll, Token};
    use sosplice::clock::{Clock, SystemClock};
    use std::collections::HashMap;
    use std::io::{ErrorKind, Read, Write};
    use std::net::SocketAddr;
    use std::time::{Duration, Instant};

    /// Sends small messages there and back.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// Echoes for connections to this address, until it is killed.
        #[arg(long)]
        serve: Option<SocketAddr>,
        /// Sends messages to this address.
        #[arg(long, conflicts_with = "serve")]
        ask: Option<SocketAddr>,
        #[arg(long, default_value_t = 1)]
        connections: usize,
        /// Bytes of a message.
        #[arg(long, default_value_t = 1)]
        size: usize,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// A new connection for each message.
        #[arg(long)]
        fresh: bool,
        /// Opens so many connections, says so, and keeps them until its input ends.
        #[arg(long, requires = "ask")]
        hold: Option<usize>,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        match (arguments.serve, arguments.ask) {
            (Some(address), _) => serve(address),
            (_, Some(address)) if arguments.hold.is_some() => {
                hold(address, arguments.hold.unwrap_or(0))
            }
            (_, Some(address)) => ask(address, &arguments),
            _ => Ok(Arguments::command().print_help()?),
        }
    }

    /// Each connection has carried a message, so that none is only half established.
    fn hold(address: SocketAddr, count: usize) -> anyhow::Result<()> {
        let mut held = Vec::new();
        for _ in 0..count {
            let mut stream = std::net::TcpStream::connect(address)?;
            stream.write_all(&[7])?;
            stream.read_exact(&mut [0])?;
            held.push(stream);
        }
        println!("{} held", held.len());
        std::io::stdin().read_to_end(&mut Vec::new())?;
        Ok(())
    }

    fn would_block(error: &std::io::Error) -> bool {
        [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind())
    }

    fn serve(address: SocketAddr) -> anyhow::Result<()> {
        let mut poll = Poll::new()?;
        let mut listener = TcpListener::bind(address)?;
        let door = Token(usize::MAX);
        let registry = poll.registry().try_clone()?;
        registry.register(&mut listener, door, Interest::READABLE)?;
        println!("listening");
        let mut streams = HashMap::new();
        let mut events = Events::with_capacity(1024);
        let mut next = 0;
        loop {
            poll.poll(&mut events, None)?;
            for event in &events {
                if event.token() == door {
                    while let Ok((mut stream, _)) = listener.accept() {
                        stream.set_nodelay(true)?;
                        registry.register(&mut stream, Token(next), Interest::READABLE)?;
                        streams.insert(Token(next), stream);
                        next += 1;
                    }
                } else if let Some(stream) = streams.get_mut(&event.token())
                    && !echo(stream)
                {
                    streams.remove(&event.token());
                }
            }
        }
    }

    /// `false` if the connection has ended.
    fn echo(stream: &mut TcpStream) -> bool {
        let mut bytes = [0; 65_536];
        loop {
            match stream.read(&mut bytes) {
                Ok(0) => return false,
                // Messages are small and one at a time, so there is room.
                Ok(count) => {
                    let message = without_header(&bytes[..count]);
                    if stream.write_all(message).is_err() {
                        return false;
                    }
                }
                Err(error) => return would_block(&error),
            }
        }
    }

    /// The bytes behind a header of the PROXY protocol, version 2, whose length is in its last two fixed bytes.
    fn without_header(bytes: &[u8]) -> &[u8] {
        match bytes.split_first_chunk::<16>() {
            Some((fixed, rest)) if fixed.starts_with(b"\r\n\r\n\0\r\nQUIT\n") => {
                let len = u16::from_be_bytes([fixed[14], fixed[15]]);
                rest.get(len.into()..).unwrap_or(&[])
            }
            _ => bytes,
        }
    }

    struct Conversation {
        stream: TcpStream,
        /// The message is to be sent as soon as the connection is established.
        connecting: bool,
        /// Bytes of the present message that were not echoed yet.
        left: usize,
        since: Instant,
    }

    /// What all conversations share.
    struct Talk<'a> {
        arguments: &'a Arguments,
        address: SocketAddr,
        message: Vec<u8>,
        poll: Poll,
        times: Vec<Duration>,
    }

    impl Talk<'_> {
        fn begin(&self, number: usize) -> anyhow::Result<Conversation> {
            let since = SystemClock.now();
            let fresh = self.arguments.fresh;
            let mut stream = match fresh {
                true => TcpStream::connect(self.address)?,
                false => {
                    let stream = std::net::TcpStream::connect(self.address)?;
                    stream.set_nonblocking(true)?;
                    TcpStream::from_std(stream)
                }
            };
            stream.set_nodelay(true)?;
            let interest = match fresh {
                true => Interest::READABLE | Interest::WRITABLE,
                false => Interest::READABLE,
            };
            let registry = self.poll.registry();
            registry.register(&mut stream, Token(number), interest)?;
            Ok(Conversation {
                stream,
                connecting: fresh,
                left: self.message.len(),
                since,
            })
        }

        /// Sends a message, or the first one.
        fn send(&self, talk: &mut Conversation) -> anyhow::Result<()> {
            if let Some(error) = talk.stream.take_error()? {
                return Err(error.into());
            }
            talk.connecting = false;
            Ok(talk.stream.write_all(&self.message)?)
        }

        /// Something has happened to a connection.
        fn go_on(&mut self, talk: &mut Conversation, number: usize) -> anyhow::Result<()> {
            if talk.connecting {
                return self.send(talk);
            }
            let mut bytes = [0; 65_536];
            loop {
                match talk.stream.read(&mut bytes) {
                    Ok(0) => anyhow::bail!("the other side has closed the connection"),
                    Ok(count) => talk.left -= count,
                    Err(error) if would_block(&error) => return Ok(()),
                    Err(error) => return Err(error.into()),
                }
                if talk.left > 0 {
                    continue;
                }
                let now = SystemClock.now();
                self.times.push(now - talk.since);
                if self.arguments.fresh {
                    *talk = self.begin(number)?;
                    return Ok(());
                }
                (talk.left, talk.since) = (self.message.len(), now);
                self.send(talk)?;
            }
        }
    }

    fn ask(address: SocketAddr, arguments: &Arguments) -> anyhow::Result<()> {
        let mut all = Talk {
            arguments,
            address,
            message: vec![7; arguments.size],
            poll: Poll::new()?,
            times: Vec::new(),
        };
        let mut talks = Vec::new();
        for number in 0..arguments.connections {
            talks.push(all.begin(number)?);
        }
        let begin = SystemClock.now();
        if !arguments.fresh {
            for talk in &mut talks {
                talk.since = begin;
                all.send(talk)?;
            }
        }
        let end = begin + Duration::try_from_secs_f64(arguments.seconds)?;
        let mut events = Events::with_capacity(1024);
        let mut now = begin;
        while now < end {
            all.poll.poll(&mut events, Some(end - now))?;
            for event in &events {
                let number = event.token().0;
                all.go_on(&mut talks[number], number)?;
            }
            now = SystemClock.now();
        }
        let mut times = all.times;
        ensure!(!times.is_empty(), "no message came back");
        times.sort_unstable();
        let micros = |percent: usize| {
            let at = (times.len() * percent / 100).min(times.len() - 1);
            times[at].as_secs_f64() * 1e6
        };
        println!(
            r#"{{"messages": {}, "seconds": {:.3}, "p50": {:.1}, "p99": {:.1}}}"#,
            times.len(),
            (now - begin).as_secs_f64(),
            micros(50),
            micros(99)
        );
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    talk::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TUN devices are for Linux only");
}
