//! A TUN device that one program opens and another one uses: the descriptor travels over a Unix socket (`SCM_RIGHTS`).
//!
//! `helper` has the privilege to make a device. `server` has none, takes the descriptor over with `Tun::from_fd`, and
//! joins every two clients of port 7 by splices. (Where an app gets the descriptor from `VpnService` of Android, only
//! the function `take` is needed, with `--header false --mtu 1500`, since an app may not ask the kernel.)
//!
//! ```sh
//! cargo run --release --example passed_tun -- server --socket /tmp/passed_tun --address 10.1.0.2/24
//! sudo target/release/examples/passed_tun helper --socket /tmp/passed_tun --tun tun0 &
//! sudo ip address add 10.1.0.1/24 dev tun0 && sudo ip link set tun0 up
//! nc 10.1.0.2 7    # and the same once more: each prints what is typed at the other one
//! ```

#[cfg(any(target_os = "linux", target_os = "android"))]
mod linux {
    use anyhow::{Context, bail};
    use clap::{Args, Parser};
    use ipnet::IpNet;
    use rustix::net::{
        RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
        SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
    };
    use sosplice::link::tun::Tun;
    use sosplice::splice::{self, Options};
    use sosplice::{Stack, TcpListener};
    use std::io::{IoSlice, IoSliceMut, Read};
    use std::mem::MaybeUninit;
    use std::net::SocketAddr;
    use std::os::fd::{AsFd, OwnedFd};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    /// Passes a TUN device from a program with privileges to one without.
    #[derive(Parser)]
    pub(super) enum Arguments {
        /// Opens a device and passes it on; needs `CAP_NET_ADMIN`
        Helper(Helper),
        /// Waits for the descriptor of a device, and joins every two clients of port 7
        Server(Server),
    }

    #[derive(Args)]
    pub(super) struct Helper {
        /// The Unix socket of the server
        #[arg(long)]
        socket: PathBuf,
        /// The device; it is made if it does not exist
        #[arg(long)]
        tun: String,
    }

    #[derive(Args)]
    pub(super) struct Server {
        /// The Unix socket to wait at; must not exist
        #[arg(long)]
        socket: PathBuf,
        /// An address of the stack behind the device, with its prefix length
        #[arg(long)]
        address: IpNet,
        /// Whether packets come with a virtio-net header; by default the kernel is asked
        #[arg(long)]
        header: Option<bool>,
        /// The MTU; by default that of the interface, if it is in this network namespace
        #[arg(long)]
        mtu: Option<usize>,
    }

    pub(super) fn run() -> anyhow::Result<()> {
        match Arguments::parse() {
            Arguments::Helper(helper) => help(&helper),
            Arguments::Server(server) => serve(&server),
        }
    }

    /// The device lives until both have closed it.
    fn help(helper: &Helper) -> anyhow::Result<()> {
        let tun = Tun::builder(&helper.tun).create(true).build()?;
        let mut socket = UnixStream::connect(&helper.socket).context("the server is not there")?;
        let fds = [tun.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        ancillary.push(SendAncillaryMessage::ScmRights(&fds));
        let note = IoSlice::new(b"!");
        sendmsg(&socket, &[note], &mut ancillary, SendFlags::empty())?;
        // Until the server is gone.
        drop(socket.read(&mut [0]));
        Ok(())
    }

    /// The descriptor that comes first.
    fn descriptor(socket: &UnixStream) -> anyhow::Result<OwnedFd> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut note = [0];
        let note = &mut [IoSliceMut::new(&mut note)];
        recvmsg(socket, note, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut fds) = message
                && let Some(fd) = fds.next()
            {
                return Ok(fd);
            }
        }
        bail!("no descriptor came")
    }

    fn take(server: &Server, fd: OwnedFd) -> anyhow::Result<Tun> {
        let mut builder = Tun::fd_builder();
        if let Some(header) = server.header {
            builder = builder.virtio_header(header);
        }
        if let Some(mtu) = server.mtu {
            builder = builder.mtu(mtu);
        }
        Ok(builder.build(fd)?)
    }

    fn serve(server: &Server) -> anyhow::Result<()> {
        let listener = UnixListener::bind(&server.socket).context("cannot wait at the socket")?;
        println!("waiting for a device");
        let (helper, _) = listener.accept()?;
        std::fs::remove_file(&server.socket)?;
        let tun = take(server, descriptor(&helper)?)?;
        let place = tun.place().clone();
        let stack = Stack::builder(tun).address(server.address).build()?;
        let clients = TcpListener::bind(&stack, SocketAddr::new(server.address.addr(), 7))?;
        println!("joining clients behind {place}");
        loop {
            let (one, _) = clients.accept()?;
            let (other, _) = clients.accept()?;
            let options = Options::default().forward_eof(true).forward_reset(true);
            // The connections live until both directions have ended.
            if let Err(error) = splice::join(one.clone(), other.clone(), options) {
                // One has left before the other one came.
                eprintln!("error: two clients: {error}");
                one.abort();
                other.abort();
            }
        }
    }
}

#[cfg(any(target_os = "linux", target_os = "android"))]
fn main() -> anyhow::Result<()> {
    linux::run()
}

#[cfg(not(any(target_os = "linux", target_os = "android")))]
fn main() -> std::process::ExitCode {
    eprintln!("error: other systems have no TUN devices that this crate opens: see link::tun_rs");
    std::process::ExitCode::FAILURE
}
