//! The lower bound for a proxy between two TUNs: every packet read from one is written to the other, no
//! TCP, one thread, the same buffers again and again.
//!
//! `tun_forward --tun tc@client --tun ts@server [--plain] [--hold N]`; without arguments it explains
//! itself. With `--hold 1` a packet is sent while it is in the cache, which no TCP can match, since it
//! keeps bytes until they are acknowledged. It does not include the minimum cost of a TCP between the
//! two (its own acknowledgements).
#![allow(missing_docs, reason = "a program")]

#[cfg(target_os = "linux")]
#[path = "support/plain_tun.rs"]
mod plain_tun;

#[cfg(target_os = "linux")]
mod forward {
    use super::plain_tun::{PlainTun, Spec};
    use clap::{CommandFactory, Parser};
    use rustix::buffer::spare_capacity;
    use rustix::event::{PollFd, PollFlags, poll};
    use rustix::io::{Errno, read, write};
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Forwards packets between two TUN devices: the floor for a proxy.
    #[derive(Debug, Parser)]
    struct Arguments {
        /// NAME[@NETNS], twice.
        #[arg(long)]
        tun: Vec<Spec>,
        /// Without virtio-net header and offloads.
        #[arg(long)]
        plain: bool,
        /// Packets read before the first is written.
        #[arg(long, default_value_t = 1)]
        hold: usize,
        /// Given by `cargo bench`.
        #[arg(long, hide = true)]
        bench: bool,
    }

    pub(crate) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let [a, b] = arguments.tun.as_slice() else {
            Arguments::command().print_help()?;
            return Ok(());
        };
        let tuns = [a.open(!arguments.plain)?, b.open(!arguments.plain)?];
        let stop = Arc::new(AtomicBool::new(false));
        signal_hook::flag::register(signal_hook::consts::SIGTERM, Arc::clone(&stop))?;
        println!("ready");
        let mut packets: Vec<_> = (0..arguments.hold.max(1))
            .map(|_| Vec::with_capacity(65_600))
            .collect();
        let mut totals = Totals::default();
        while !stop.load(Ordering::Relaxed) {
            let mut fds = [0, 1].map(|n: usize| PollFd::new(&tuns[n].fd, PollFlags::IN));
            match poll(&mut fds, None) {
                Ok(_) | Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
            let ready = fds.map(|fd| fd.revents().contains(PollFlags::IN));
            for (from, to) in [(0, 1), (1, 0)] {
                if ready[from] {
                    totals.batch(&tuns[from], &tuns[to], &mut packets)?;
                }
            }
        }
        println!("{totals:?}");
        Ok(())
    }

    #[derive(Debug, Default)]
    struct Totals {
        packets: u64,
        bytes: usize,
        /// Packets that the other device did not take.
        refused: u64,
    }

    impl Totals {
        /// Forwards up to 64 packets, or as many as are held.
        fn batch(
            &mut self,
            from: &PlainTun,
            to: &PlainTun,
            packets: &mut [Vec<u8>],
        ) -> anyhow::Result<()> {
            for _ in 0..64usize.div_ceil(packets.len()) {
                let mut count = 0;
                for packet in packets.iter_mut() {
                    packet.clear();
                    match read(&from.fd, spare_capacity(packet)) {
                        Ok(_) => count += 1,
                        Err(Errno::AGAIN) => break,
                        Err(error) => return Err(error.into()),
                    }
                }
                for packet in &packets[..count] {
                    self.packets += 1;
                    self.bytes += packet.len();
                    self.refused += u64::from(write(&to.fd, packet).is_err());
                }
                if count < packets.len() {
                    break;
                }
            }
            Ok(())
        }
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    forward::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {
    println!("TUN devices are for Linux only");
}
