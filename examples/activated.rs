//! A relay that systemd starts: it splices the connections of sockets that systemd passes on, of TCP, unix sockets or
//! vsock, to a destination of any of these kinds.
//!
//! A listening socket (`Accept=no`) is served until a signal comes; with `Accept=yes` systemd accepts, each connection
//! has a process, and that ends with it.
//!
//! ```ini
//! # relay.socket
//! [Socket]
//! ListenStream=/run/relay.sock
//!
//! # relay.service
//! [Service]
//! ExecStart=/usr/local/bin/activated 192.0.2.1:80 --device eth1
//! ```
//!
//! Without systemd: `systemd-socket-activate -l 8080 target/release/examples/activated 192.0.2.1:80`.

use anyhow::{Context, ensure};
use clap::Parser;
use nix::sys::socket::{setsockopt, sockopt};
use rustix::io::Errno;
use rustix::net::sockopt::socket_acceptconn;
use rustix::net::{SocketFlags, accept_with};
use sosplice::Socket;
use sosplice::kernel::{Address, KernelSocket, KernelStream};
use sosplice::socket::poller::{Events, Interest, Mode, Poller, Token};
use sosplice::splice::{self, Join, Options};
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::thread;
use std::time::Duration;

/// Time until connections are accepted again, when there are no descriptors for more.
const PAUSE: Duration = Duration::from_millis(100);

/// Splices connections of the sockets that systemd has passed on.
#[derive(Parser)]
struct Arguments {
    /// The destination: ADDRESS:PORT, unix:PATH, unix:@NAME or vsock:CID:PORT
    to: Address,
    /// Connect through this device (SO_BINDTODEVICE)
    #[arg(long)]
    device: Option<OsString>,
    /// Connect with this mark, for rules of the routing (SO_MARK)
    #[arg(long)]
    mark: Option<u32>,
}

impl Arguments {
    /// Begins to connect to the destination.
    fn start(&self) -> io::Result<KernelStream> {
        let socket = KernelSocket::new(&self.to)?;
        if let Some(device) = &self.device {
            setsockopt(&socket, sockopt::BindToDevice, device)?;
        }
        if let Some(mark) = &self.mark {
            setsockopt(&socket, sockopt::Mark, mark)?;
        }
        socket.start(self.to.clone())
    }

    /// Splices a client's connection to the destination, which may still be connecting.
    fn relay(&self, client: OwnedFd) -> anyhow::Result<Join> {
        let client = KernelStream::from_fd(client)?;
        let joined = self.start().map_err(anyhow::Error::from);
        let joined = joined.and_then(|server| {
            let options = Options::default().forward_eof(true).forward_reset(true);
            Ok(splice::join(client.clone(), server, options)?)
        });
        if joined.is_err() {
            // Without it the client would get an end of file, as if all was well.
            client.abort();
        }
        joined.with_context(|| self.to.to_string())
    }

    /// Serves a socket that systemd has passed on: a connection until it ends, a listener for ever.
    fn serve(&self, passed: OwnedFd) -> anyhow::Result<()> {
        if !socket_acceptconn(&passed)? {
            let join = self.relay(passed)?;
            join.wait();
            let (client, server) = join.sockets();
            return Ok([client, server].into_iter().try_for_each(sent)?);
        }
        loop {
            match accept_with(&passed, SocketFlags::CLOEXEC) {
                // The connection continues without its handle.
                Ok(client) => report(self.relay(client).map(drop)),
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(errno) => {
                    report(Err(errno.into()));
                    thread::park_timeout(PAUSE);
                }
            }
        }
    }
}

/// Waits until the kernel has all that was moved to a socket: the rest would end with the process.
fn sent(socket: &Socket) -> io::Result<()> {
    let poller = Poller::new();
    // An edge comes with each write, also when no more bytes follow.
    poller.add(socket, Token(0), Interest::WRITABLE, Mode::Edge)?;
    while socket.end().with_snd(|so_snd| !so_snd.is_empty()) {
        poller.wait(&mut Events::default(), None)?;
    }
    Ok(())
}

fn report(result: anyhow::Result<()>) {
    if let Err(error) = result {
        eprintln!("error: {error:#}");
    }
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let passed = sd_listen_fds::get()?;
    ensure!(
        !passed.is_empty(),
        "systemd has passed no socket: start it with systemd-socket-activate"
    );
    thread::scope(|scope| {
        for (_, socket) in passed {
            let arguments = &arguments;
            scope.spawn(move || report(arguments.serve(socket.into_std())));
        }
    });
    Ok(())
}
