//! A kernel as a guest: frames of a TAP device go to a Unix stream socket as those of QEMU's network card do
//! (`-netdev stream`), each after its length, and back.
//!
//! `guest_port --tap t0@guest --connect /tmp/net.sock`, or `--listen`. What runs in the namespace of the device is
//! the guest, at the speed of a kernel and not of an emulated processor. Without arguments it explains itself.
//! `benches/guests.py` runs it beside every network for guests that it measures, and leaves its processor time out.
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
#[path = "support/plain_tun.rs"]
mod plain_tun;

#[cfg(target_os = "linux")]
mod port {
    use super::plain_tun::Spec;
    use anyhow::ensure;
    use clap::{CommandFactory, Parser};
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::{Errno, read, retry_on_intr, write};
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixListener, UnixStream};
    use std::path::PathBuf;

    /// The length in front of each frame.
    const PREFIX: usize = 4;
    /// The longest frame.
    const FRAME: usize = 65_549;
    /// Bytes of one read or write of the socket, in addition to a frame.
    const BATCH: usize = 256 << 10;

    /// Connects a TAP device to a Unix stream socket, as QEMU connects its network card.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// NAME@NETNS of the device.
        #[arg(long)]
        tap: Option<Spec>,
        /// The socket of a network that listens.
        #[arg(long)]
        connect: Option<PathBuf>,
        /// A socket for a network that connects.
        #[arg(long, conflicts_with = "connect")]
        listen: Option<PathBuf>,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let Some(spec) = &arguments.tap else {
            Arguments::command().print_help()?;
            return Ok(());
        };
        let device = File::from(spec.open_tap()?.fd);
        let socket = match (&arguments.connect, &arguments.listen) {
            (Some(path), _) => UnixStream::connect(path)?,
            (_, Some(path)) => {
                let listener = UnixListener::bind(path)?;
                println!("listening");
                listener.accept()?.0
            }
            _ => anyhow::bail!("--connect or --listen is needed"),
        };
        println!("connected");
        let (from, to) = (socket.try_clone()?, device.try_clone()?);
        std::thread::Builder::new().spawn(move || send(&device, socket))?;
        receive(from, &to)
    }

    /// Frames of the guest, as many at a time as there are.
    fn send(device: &File, mut socket: UnixStream) -> anyhow::Result<()> {
        let mut bytes = vec![0; BATCH + PREFIX + FRAME];
        loop {
            retry_on_intr(|| poll(&mut [PollFd::new(device, PollFlags::IN)], None))?;
            let mut len = 0;
            while len < BATCH {
                let frame = &mut bytes[len + PREFIX..][..FRAME];
                match read(device, frame) {
                    Ok(count) => {
                        let prefix = u32::try_from(count)?.to_be_bytes();
                        bytes[len..len + PREFIX].copy_from_slice(&prefix);
                        len += PREFIX + count;
                    }
                    Err(Errno::AGAIN) => break,
                    Err(error) => return Err(error.into()),
                }
            }
            socket.write_all(&bytes[..len])?;
        }
    }

    /// Frames for the guest. Ends with the connection.
    fn receive(mut socket: UnixStream, device: &File) -> anyhow::Result<()> {
        let mut bytes = vec![0; BATCH + PREFIX + FRAME];
        let mut len = 0;
        loop {
            let count = socket.read(&mut bytes[len..])?;
            if count == 0 {
                return Ok(());
            }
            len += count;
            let mut at = 0;
            while let Some((prefix, rest)) = bytes[at..len].split_first_chunk::<PREFIX>() {
                let frame = usize::try_from(u32::from_be_bytes(*prefix))?;
                ensure!(frame <= FRAME, "a frame of {frame} bytes");
                let Some(frame) = rest.get(..frame) else {
                    break;
                };
                // A card drops what its driver has no buffers for.
                write(device, frame).ok();
                at += PREFIX + frame.len();
            }
            bytes.copy_within(at..len, 0);
            len -= at;
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    port::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TAP devices are for Linux only");
}
