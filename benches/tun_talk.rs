//! Small messages through a proxy: both ends, over the kernel's TCP.
//!
//! `tun_talk --serve 10.0.2.1:5201` echoes. `tun_talk --ask 10.0.1.2:5201 --connections 100 --size 64`
//! sends a message on each connection, waits for its echo, sends the next; then it prints in JSON the
//! number of echoes and their times. Without arguments it explains itself. `benches/compare.py --talk`
//! runs both.
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
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        match (arguments.serve, arguments.ask) {
            (Some(address), _) => serve(address),
            (_, Some(address)) => ask(address, &arguments),
            _ => Ok(Arguments::command().print_help()?),
        }
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
                    if stream.write_all(&bytes[..count]).is_err() {
                        return false;
                    }
                }
                Err(error) => return would_block(&error),
            }
        }
    }

    struct Conversation {
        stream: TcpStream,
        /// Bytes of the present message that were not echoed yet.
        left: usize,
        since: Instant,
    }

    impl Conversation {
        fn begin(&mut self, message: &[u8], now: Instant) -> std::io::Result<()> {
            (self.left, self.since) = (message.len(), now);
            self.stream.write_all(message)
        }
    }

    fn ask(address: SocketAddr, arguments: &Arguments) -> anyhow::Result<()> {
        let mut poll = Poll::new()?;
        let mut talks = Vec::new();
        for number in 0..arguments.connections {
            let stream = std::net::TcpStream::connect(address)?;
            stream.set_nodelay(true)?;
            stream.set_nonblocking(true)?;
            let mut stream = TcpStream::from_std(stream);
            let registry = poll.registry();
            registry.register(&mut stream, Token(number), Interest::READABLE)?;
            talks.push(Conversation {
                stream,
                left: 0,
                since: SystemClock.now(),
            });
        }
        let message = vec![7; arguments.size];
        let mut bytes = [0; 65_536];
        let mut times = Vec::new();
        let begin = SystemClock.now();
        for talk in &mut talks {
            talk.begin(&message, begin)?;
        }
        let end = begin + Duration::try_from_secs_f64(arguments.seconds)?;
        let mut events = Events::with_capacity(1024);
        let mut now = begin;
        while now < end {
            poll.poll(&mut events, Some(end - now))?;
            now = SystemClock.now();
            for event in &events {
                let talk = &mut talks[event.token().0];
                loop {
                    match talk.stream.read(&mut bytes) {
                        Ok(0) => anyhow::bail!("the other side has closed the connection"),
                        Ok(count) => talk.left -= count,
                        Err(error) if would_block(&error) => break,
                        Err(error) => return Err(error.into()),
                    }
                    if talk.left == 0 {
                        now = SystemClock.now();
                        times.push(now - talk.since);
                        talk.begin(&message, now)?;
                    }
                }
            }
        }
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
