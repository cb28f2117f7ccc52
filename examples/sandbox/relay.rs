//! The guest's traffic, to sockets of the operating system.

use crate::Listeners;
use anyhow::Context;
use sosplice::kernel::{KernelPing, KernelStream, KernelUdp};
use sosplice::splice::{self, Options};
use sosplice::{ConnectionRequest, Stack, TcpSocket};
use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

/// What the guest can reach.
#[derive(Clone)]
pub(crate) struct Network {
    /// The gateway's addresses.
    pub(crate) own: Vec<IpAddr>,
    pub(crate) resolver: Option<SocketAddr>,
    pub(crate) connect_timeout: Duration,
    pub(crate) idle: Duration,
}

pub(crate) fn report<T, E: Display>(to: impl Display, result: Result<T, E>) {
    result.map_or_else(|error| eprintln!("{to}: {error}"), drop);
}

impl Network {
    /// Where a destination of the guest is for the host: the gateway's name service is the host's.
    fn destination(&self, to: SocketAddr) -> io::Result<SocketAddr> {
        let refused = || Err(io::ErrorKind::ConnectionRefused.into());
        match self.resolver {
            _ if !self.own.contains(&to.ip()) => Ok(to),
            Some(resolver) if to.port() == 53 => Ok(resolver),
            _ => refused(),
        }
    }

    fn options(&self) -> Options {
        Options::default()
            .idle(self.idle)
            .forward_eof(true)
            .forward_reset(true)
    }

    pub(crate) fn run(&self, listener: Listeners) -> anyhow::Result<()> {
        // The stack ends flows that are idle.
        let flows = Options::default().forward_reset(true);
        match listener {
            Listeners::Connections(listener) => {
                for client in listener.incoming() {
                    let (client, network) = (client?, self.clone());
                    let to = client.local_addr();
                    thread::Builder::new().spawn(move || report(to, network.connect(client)))?;
                }
            }
            Listeners::Datagrams(listener) => {
                for flow in listener.incoming() {
                    let (client, _) = flow?;
                    let to = client.local_addr();
                    match self.destination(to).and_then(KernelUdp::connect) {
                        Ok(server) => report(to, splice::join(client, server, flows.clone())),
                        Err(error) => {
                            client.refuse();
                            report::<(), _>(to, Err(error));
                        }
                    }
                }
            }
            Listeners::Pings(listener) => {
                for client in listener.incoming() {
                    let client = client?;
                    let to = client.destination();
                    match KernelPing::connect(to) {
                        Ok(server) => report(to, splice::join(client, server, flows.clone())),
                        Err(error) => {
                            client.refuse();
                            report::<(), _>(to, Err(error));
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Connects to the destination, then answers the guest, and joins both.
    fn connect(&self, client: ConnectionRequest) -> anyhow::Result<()> {
        let to = self.destination(client.local_addr());
        let server = to.and_then(|to| KernelStream::connect_timeout(to, self.connect_timeout));
        match server {
            Ok(server) => {
                splice::join(client.accept()?, server, self.options())?;
                Ok(())
            }
            Err(error) => {
                client.refuse();
                Err(error.into())
            }
        }
    }

    /// Connects host programs to a port of the guest.
    pub(crate) fn forward(
        &self,
        listener: &TcpListener,
        stack: &Stack,
        to: SocketAddr,
    ) -> anyhow::Result<()> {
        for client in listener.incoming() {
            let client = client.context("the host's socket")?;
            let (stack, network) = (stack.clone(), self.clone());
            let join = move || -> anyhow::Result<()> {
                let guest = TcpSocket::new(&stack).connect_timeout(to, network.connect_timeout)?;
                splice::join(KernelStream::from_std(client)?, guest, network.options())?;
                Ok(())
            };
            thread::Builder::new().spawn(move || report(to, join()))?;
        }
        Ok(())
    }
}
