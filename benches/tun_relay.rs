//! The twin of the proxy: the same with smoltcp alone. An interface and a `SocketSet` for each of two
//! TUNs, two sockets for each proxied connection, bytes copied from ring to ring. No offload, because
//! smoltcp has none for a TUN. One thread.
//!
//! `tun_relay --tun tc@client=10.0.1.2/24 --tun ts@server=10.0.2.2/24 --listen 10.0.1.2:8080
//! --backend 10.0.2.1:8080`; without arguments it explains itself.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
#[path = "support/plain_tun.rs"]
mod plain_tun;

#[cfg(target_os = "linux")]
mod relay {
    use super::plain_tun::{PlainTun, Spec};
    use anyhow::{Context, anyhow};
    use clap::{CommandFactory, Parser};
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    use rustix::io::Errno;
    use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
    use smoltcp::phy::{self, Device, DeviceCapabilities, Medium};
    use smoltcp::socket::tcp::{self, State};
    use smoltcp::time::Instant;
    use smoltcp::wire::{HardwareAddress, IpCidr};
    use std::net::SocketAddr;
    use std::str::FromStr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Sockets that listen at a time, and so the burst of connections that is answered.
    const BACKLOG: usize = 64;

    /// Proxies TCP between two TUN devices with smoltcp alone: the baseline.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// NAME[@NETNS]=ADDRESS/PREFIX: clients', then servers'.
        #[arg(long)]
        tun: Vec<Spec>,
        /// Where to listen on the first.
        #[arg(long)]
        listen: Option<SocketAddr>,
        /// Where to connect to over the second.
        #[arg(long)]
        backend: Option<SocketAddr>,
        /// Bytes of each ring.
        #[arg(long, default_value_t = 262_144)]
        ring: usize,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let ([a, b], Some(listen), Some(backend)) = (
            arguments.tun.as_slice(),
            arguments.listen,
            arguments.backend,
        ) else {
            Arguments::command().print_help()?;
            return Ok(());
        };
        let mut relay = Relay {
            client: Side::new(a)?,
            server: Side::new(b)?,
            listening: Vec::new(),
            pairs: Vec::new(),
            listen,
            backend,
            ring: arguments.ring,
            next_port: u16::try_from(std::process::id() % 10_000)? + 30_000,
        };
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
        println!("ready");
        while !stop.load(Ordering::Relaxed) {
            relay.turn()?;
        }
        println!("{} pairs open", relay.pairs.len());
        Ok(())
    }

    /// A TUN as a device of smoltcp: one packet in memory each way, used again and again.
    struct Wire {
        tun: PlainTun,
        rx: Vec<u8>,
        tx: Vec<u8>,
        /// Packets that may still be received in this turn.
        budget: usize,
    }

    struct Rx<'a>(&'a [u8]);

    struct Tx<'a> {
        tun: &'a PlainTun,
        packet: &'a mut Vec<u8>,
    }

    impl phy::RxToken for Rx<'_> {
        fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
            f(self.0)
        }
    }

    impl phy::TxToken for Tx<'_> {
        fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
            if self.packet.len() < len {
                self.packet.resize(len, 0);
            }
            let result = f(&mut self.packet[..len]);
            // A packet that the device does not take is lost; TCP retransmits it.
            rustix::io::write(&self.tun.fd, &self.packet[..len]).ok();
            result
        }
    }

    impl Device for Wire {
        type RxToken<'a> = Rx<'a>;
        type TxToken<'a> = Tx<'a>;

        fn receive(&mut self, _: Instant) -> Option<(Rx<'_>, Tx<'_>)> {
            self.budget = self.budget.checked_sub(1)?;
            let count = rustix::io::read(&self.tun.fd, &mut self.rx[..]).ok()?;
            let tx = Tx {
                tun: &self.tun,
                packet: &mut self.tx,
            };
            Some((Rx(&self.rx[..count]), tx))
        }

        fn transmit(&mut self, _: Instant) -> Option<Tx<'_>> {
            Some(Tx {
                tun: &self.tun,
                packet: &mut self.tx,
            })
        }

        fn capabilities(&self) -> DeviceCapabilities {
            let mut capabilities = DeviceCapabilities::default();
            capabilities.medium = Medium::Ip;
            capabilities.max_transmission_unit = self.tun.mtu;
            capabilities
        }
    }

    /// One TUN with its stack.
    struct Side {
        wire: Wire,
        interface: Interface,
        sockets: SocketSet<'static>,
    }

    impl Side {
        fn new(spec: &Spec) -> anyhow::Result<Side> {
            let tun = spec.open(false)?;
            let address = spec
                .address
                .as_deref()
                .context("--tun NAME=ADDRESS/PREFIX")?;
            let address = IpCidr::from_str(address).map_err(|()| anyhow!("bad {address}"))?;
            let mut wire = Wire {
                rx: vec![0; 65_600],
                tx: Vec::new(),
                budget: 0,
                tun,
            };
            let mut config = Config::new(HardwareAddress::Ip);
            config.random_seed = getrandom::u64()?;
            let mut interface = Interface::new(config, &mut wire, Instant::now());
            interface.update_ip_addrs(|addresses| addresses.extend([address]));
            Ok(Side {
                wire,
                interface,
                sockets: SocketSet::new(Vec::new()),
            })
        }

        fn poll(&mut self) -> bool {
            self.wire.budget = 64;
            let now = Instant::now();
            let result = self.interface.poll(now, &mut self.wire, &mut self.sockets);
            result == PollResult::SocketStateChanged || self.wire.budget < 64
        }

        fn add(&mut self, ring: usize) -> SocketHandle {
            let buffer = || tcp::SocketBuffer::new(vec![0; ring]);
            let mut socket = tcp::Socket::new(buffer(), buffer());
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            socket.set_congestion_control(tcp::CongestionControl::Cubic);
            self.sockets.add(socket)
        }

        fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
            self.sockets.get_mut(handle)
        }
    }

    struct Relay {
        client: Side,
        server: Side,
        listening: Vec<SocketHandle>,
        /// Handles on the client's and on the server's side.
        pairs: Vec<(SocketHandle, SocketHandle)>,
        listen: SocketAddr,
        backend: SocketAddr,
        ring: usize,
        next_port: u16,
    }

    impl Relay {
        fn turn(&mut self) -> anyhow::Result<()> {
            self.accept()?;
            let mut busy = self.client.poll();
            busy |= self.server.poll();
            self.accept()?;
            let (client, server) = (&mut self.client, &mut self.server);
            self.pairs.retain(|(a, b)| {
                let (a, b) = (client.socket(*a), server.socket(*b));
                busy |= step(a, b) | step(b, a);
                let over = |s: &tcp::Socket<'_>| {
                    s.state() == State::TimeWait
                        || (s.state() == State::Closed && s.remote_endpoint().is_none())
                };
                !(over(a) && over(b))
            });
            self.remove_unpaired();
            if busy { Ok(()) } else { self.sleep() }
        }

        /// Removes sockets whose pair has ended.
        fn remove_unpaired(&mut self) {
            let unpaired = |side: &Side, used: &dyn Fn(SocketHandle) -> bool| {
                let handles = side.sockets.iter().map(|(handle, _)| handle);
                handles.filter(|handle| !used(*handle)).collect::<Vec<_>>()
            };
            let (pairs, listening) = (&self.pairs, &self.listening);
            let used = |h| pairs.iter().any(|(a, _)| *a == h) || listening.contains(&h);
            if self.client.sockets.iter().count() > pairs.len() + listening.len() {
                for handle in unpaired(&self.client, &used) {
                    self.client.sockets.remove(handle);
                }
            }
            let used = |h| pairs.iter().any(|(_, b)| *b == h);
            if self.server.sockets.iter().count() > pairs.len() {
                for handle in unpaired(&self.server, &used) {
                    self.server.sockets.remove(handle);
                }
            }
        }

        /// Connects to the backend for every new connection, and keeps sockets listening.
        fn accept(&mut self) -> anyhow::Result<()> {
            let client = &mut self.client;
            let (idle, taken): (Vec<_>, Vec<_>) = self
                .listening
                .iter()
                .partition(|handle| client.socket(**handle).state() == State::Listen);
            self.listening = idle;
            for a in taken {
                let b = self.server.add(self.ring);
                self.next_port = self.next_port.checked_add(1).unwrap_or(30_000);
                let Side {
                    interface, sockets, ..
                } = &mut self.server;
                sockets
                    .get_mut::<tcp::Socket<'_>>(b)
                    .connect(interface.context(), self.backend, self.next_port)
                    .map_err(|error| anyhow!("connect: {error}"))?;
                self.pairs.push((a, b));
            }
            while self.listening.len() < BACKLOG {
                let handle = self.client.add(self.ring);
                let listening = self.client.socket(handle).listen(self.listen);
                listening.map_err(|error| anyhow!("listen: {error}"))?;
                self.listening.push(handle);
            }
            Ok(())
        }

        /// Until a packet arrives or a timer is due.
        fn sleep(&mut self) -> anyhow::Result<()> {
            let now = Instant::now();
            let sides = [&mut self.client, &mut self.server];
            let delay = sides
                .into_iter()
                .filter_map(|side| side.interface.poll_delay(now, &side.sockets))
                .min();
            let limit = delay
                .map(|delay| Timespec::try_from(std::time::Duration::from(delay)))
                .transpose()?;
            let mut fds = [&self.client, &self.server]
                .map(|side| PollFd::new(&side.wire.tun.fd, PollFlags::IN));
            match poll(&mut fds, limit.as_ref()) {
                Ok(_) | Err(Errno::INTR) => Ok(()),
                Err(error) => Err(error.into()),
            }
        }
    }

    /// Moves the available bytes from `source` to `sink`, and the end of the stream. `true` if it moved
    /// some.
    fn step(source: &mut tcp::Socket<'_>, sink: &mut tcp::Socket<'_>) -> bool {
        let mut moved = false;
        while source.can_recv() && sink.can_send() {
            let count = source.recv(|bytes| {
                let count = sink.send_slice(bytes).unwrap_or(0);
                (count, count)
            });
            if count.unwrap_or(0) == 0 {
                break;
            }
            moved = true;
        }
        let opening = matches!(
            source.state(),
            State::Listen | State::SynSent | State::SynReceived
        );
        if !opening && !source.may_recv() {
            match source.state() {
                State::Closed if sink.may_send() && sink.state() != State::SynSent => sink.abort(),
                State::Closed if sink.state() != State::Closed && sink.may_recv() => sink.abort(),
                State::Closed => {}
                _ if sink.state() == State::Established || sink.state() == State::CloseWait => {
                    sink.close();
                    moved = true;
                }
                _ => {}
            }
        }
        moved
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    relay::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TUN devices are for Linux only");
}
