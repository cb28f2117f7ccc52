//! Datagrams through a relay: both ends, over the kernel's UDP.
//!
//! * `udp_talk --sink 10.0.2.1:5201 [--gro]` receives until it is terminated, and says how many there were.
//! * `udp_talk --send 10.0.2.1:5201 --size 64 --flows 16` sends for some seconds, as fast as it can or at a `--rate`;
//!   with `--segment 50` so many datagrams in one call, which the kernel cuts (`UDP_SEGMENT`).
//! * `udp_talk --echo 10.0.2.1:5201` sends each datagram back, and `--ask 10.0.2.1:5201` sends one at a time and waits
//!   for its echo.
//!
//! Each prints what it has counted in JSON. Without arguments it explains itself. `benches/datagrams.py` runs them.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
mod talk {
    use clap::{CommandFactory, Parser};
    use nix::errno::Errno;
    use nix::sys::socket::{MsgFlags, MultiHeaders, recvmmsg, sendmmsg, setsockopt, sockopt};
    use sosplice::clock::{Clock, SystemClock};
    use std::io::{ErrorKind, IoSlice, IoSliceMut};
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
    use std::os::fd::AsRawFd;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::time::{Duration, Instant};

    /// Messages of one system call.
    const CALL: usize = 64;
    /// Bytes of each of the kernel's buffers.
    const BUFFER: usize = 8 << 20;

    /// Sends and receives datagrams.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// Receives at this address until SIGTERM.
        #[arg(long)]
        sink: Option<SocketAddr>,
        /// Echoes at this address until SIGTERM.
        #[arg(long)]
        echo: Option<SocketAddr>,
        /// Sends to this address.
        #[arg(long)]
        send: Option<SocketAddr>,
        /// Sends to this address and waits for the echo, one datagram at a time.
        #[arg(long)]
        ask: Option<SocketAddr>,
        /// Bytes of a datagram.
        #[arg(long, default_value_t = 64)]
        size: usize,
        /// Sockets to send from.
        #[arg(long, default_value_t = 1)]
        flows: usize,
        /// Datagrams of a flow in a row.
        #[arg(long, default_value_t = 1)]
        burst: usize,
        /// Datagrams in one message.
        #[arg(long, default_value_t = 1)]
        segment: usize,
        /// Datagrams a second; 0: as fast as it can.
        #[arg(long, default_value_t = 0)]
        rate: u64,
        #[arg(long, default_value_t = 3.0)]
        seconds: f64,
        /// The sink takes several datagrams as one message (`UDP_GRO`).
        #[arg(long)]
        gro: bool,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        if let Some(address) = arguments.sink {
            sink(address, arguments.gro)
        } else if let Some(address) = arguments.echo {
            echo(address)
        } else if let Some(address) = arguments.send {
            send(address, &arguments)
        } else if let Some(address) = arguments.ask {
            ask(address, &arguments)
        } else {
            Ok(Arguments::command().print_help()?)
        }
    }

    /// A socket with large buffers that reads for so long.
    fn socket(bound: SocketAddr, patience: Duration) -> anyhow::Result<UdpSocket> {
        let socket = UdpSocket::bind(bound)?;
        setsockopt(&socket, sockopt::RcvBufForce, &BUFFER)?;
        setsockopt(&socket, sockopt::SndBufForce, &BUFFER)?;
        socket.set_read_timeout(Some(patience))?;
        Ok(socket)
    }

    fn connected(to: SocketAddr) -> anyhow::Result<UdpSocket> {
        let any = match to {
            SocketAddr::V4(_) => SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            SocketAddr::V6(_) => SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)),
        };
        let socket = socket(any, Duration::from_secs(1))?;
        socket.connect(to)?;
        Ok(socket)
    }

    fn stopped() -> anyhow::Result<Arc<AtomicBool>> {
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
        Ok(stop)
    }

    fn sink(address: SocketAddr, gro: bool) -> anyhow::Result<()> {
        let stop = stopped()?;
        let socket = socket(address, Duration::from_millis(100))?;
        setsockopt(&socket, sockopt::UdpGroSegment, &gro)?;
        println!("listening");
        let room = if gro { 65_536 } else { 2048 };
        let mut memory = vec![vec![0; room]; CALL];
        let (mut messages, mut datagrams, mut bytes) = (0, 0, 0);
        // The sender says how long its datagrams are.
        while !stop.load(Ordering::Relaxed) {
            let mut headers = MultiHeaders::<()>::preallocate(CALL, None);
            let mut slices: Vec<_> = memory.iter_mut().map(|m| [IoSliceMut::new(m)]).collect();
            let read = recvmmsg(
                socket.as_raw_fd(),
                &mut headers,
                slices.iter_mut(),
                MsgFlags::MSG_WAITFORONE,
                None,
            );
            match read {
                Ok(read) => {
                    for message in read {
                        messages += 1;
                        bytes += message.bytes;
                        let first = message.iovs().next().unwrap_or_default();
                        let told = first.first_chunk::<4>().copied().unwrap_or_default();
                        let size = usize::try_from(u32::from_be_bytes(told))?.max(1);
                        datagrams += message.bytes.div_ceil(size);
                    }
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        println!(r#"{{"datagrams": {datagrams}, "bytes": {bytes}, "messages": {messages}}}"#);
        Ok(())
    }

    fn echo(address: SocketAddr) -> anyhow::Result<()> {
        let stop = stopped()?;
        let socket = socket(address, Duration::from_millis(100))?;
        println!("listening");
        let mut memory = [0; 2048];
        while !stop.load(Ordering::Relaxed) {
            match socket.recv_from(&mut memory) {
                Ok((count, from)) => drop(socket.send_to(&memory[..count], from)),
                Err(error) if is_timeout(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    fn is_timeout(error: &std::io::Error) -> bool {
        [ErrorKind::WouldBlock, ErrorKind::Interrupted].contains(&error.kind())
    }

    /// A message: datagrams that begin with their length.
    fn message(size: usize, count: usize) -> anyhow::Result<Vec<u8>> {
        let mut one = vec![7; size];
        one[..4].copy_from_slice(&u32::try_from(size)?.to_be_bytes());
        Ok(one.repeat(count))
    }

    fn send(to: SocketAddr, arguments: &Arguments) -> anyhow::Result<()> {
        let message = message(arguments.size, arguments.segment)?;
        let sockets = (0..arguments.flows.max(1)).map(|_| connected(to));
        let sockets = sockets.collect::<anyhow::Result<Vec<_>>>()?;
        if arguments.segment > 1 {
            let size = i32::try_from(arguments.size)?;
            let mut each = sockets.iter();
            each.try_for_each(|socket| setsockopt(socket, sockopt::UdpGsoSegment, &size))?;
        }
        let burst = arguments.burst.clamp(1, CALL);
        let slices = vec![[IoSlice::new(&message)]; burst];
        let begin = SystemClock.now();
        let end = begin + Duration::try_from_secs_f64(arguments.seconds)?;
        let (mut sent, mut refused) = (0u64, 0u64);
        let each = u64::try_from(burst * arguments.segment)?;
        let mut headers = MultiHeaders::<()>::preallocate(burst, None);
        'all: loop {
            for socket in &sockets {
                let done = sendmmsg(
                    socket.as_raw_fd(),
                    &mut headers,
                    slices.iter(),
                    vec![None; burst],
                    [],
                    MsgFlags::empty(),
                );
                match done {
                    Ok(_) => sent += each,
                    Err(Errno::ENOBUFS | Errno::ECONNREFUSED) => refused += each,
                    Err(errno) => return Err(errno.into()),
                }
                if (sent + refused) / each % 32 == 0 || arguments.rate > 0 {
                    let now = SystemClock.now();
                    if now >= end {
                        break 'all;
                    }
                    wait_for_rate(begin, now, sent + refused, arguments.rate);
                }
            }
        }
        let seconds = (SystemClock.now() - begin).as_secs_f64();
        println!(r#"{{"sent": {sent}, "refused": {refused}, "seconds": {seconds:.3}}}"#);
        Ok(())
    }

    fn wait_for_rate(begin: Instant, now: Instant, sent: u64, rate: u64) {
        if rate == 0 {
            return;
        }
        let due = begin + Duration::from_nanos(sent * 1_000_000_000 / rate);
        // Shorter sleeps are not worth a system call: then it catches up.
        let early = due.saturating_duration_since(now);
        if early > Duration::from_micros(200) {
            let _ = rustix::thread::nanosleep(&rustix::thread::Timespec {
                tv_sec: 0,
                tv_nsec: early.subsec_nanos().into(),
            });
        }
    }

    fn ask(to: SocketAddr, arguments: &Arguments) -> anyhow::Result<()> {
        let socket = connected(to)?;
        let message = message(arguments.size, 1)?;
        let mut memory = [0; 65_536];
        let begin = SystemClock.now();
        let end = begin + Duration::try_from_secs_f64(arguments.seconds)?;
        let (mut times, mut lost) = (Vec::new(), 0u64);
        let mut now = begin;
        while now < end {
            socket.send(&message)?;
            match socket.recv(&mut memory) {
                Ok(_) => {
                    let back = SystemClock.now();
                    times.push(back - now);
                    now = back;
                }
                Err(error) if is_timeout(&error) => {
                    lost += 1;
                    now = SystemClock.now();
                }
                Err(error) => return Err(error.into()),
            }
        }
        anyhow::ensure!(!times.is_empty(), "no datagram came back");
        times.sort_unstable();
        let micros = |percent: usize| {
            let at = (times.len() * percent / 100).min(times.len() - 1);
            times[at].as_secs_f64() * 1e6
        };
        println!(
            r#"{{"datagrams": {}, "lost": {lost}, "seconds": {:.3}, "p50": {:.2}, "p99": {:.2}}}"#,
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
