//! A TUN on one side, the kernel's own sockets on the other: every connection into the device goes to
//! its original destination. Two ways to carry the bytes over the same stack, for
//! `benches/compare.py`: a splice, and tokio's copy loop.
//!
//! With no arguments (`cargo bench`) it prints a description and ends.

#[cfg(target_os = "linux")]
mod program {
    use anyhow::Context;
    use clap::{Parser, ValueEnum};
    use sosplice::kernel::KernelStream;
    use sosplice::link::tun::Tun;
    use sosplice::splice::{self, Dispatch, Options};
    use sosplice::{Stack, TcpListener, TcpStream};

    #[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
    enum Mode {
        /// A splice on a worker
        Worker,
        /// A splice on the thread that receives
        Direct,
        /// `tokio::io::copy_bidirectional` with 64 KiB buffers
        Copy,
    }

    #[derive(Parser)]
    struct Arguments {
        /// NAME@NAMESPACE of the device
        #[arg(long)]
        tun: Option<String>,
        #[arg(long, value_enum, default_value = "worker")]
        mode: Mode,
        /// Bytes of each socket buffer
        #[arg(long, default_value_t = 4 << 20)]
        buffer: usize,
        /// Given by `cargo bench`
        #[arg(long, hide = true)]
        bench: bool,
    }

    fn join(client: TcpStream, dispatch: Dispatch, buffer: usize) -> anyhow::Result<()> {
        let server = KernelStream::start(client.local_addr())?;
        server.set_rcv_hiwat(buffer);
        server.set_snd_hiwat(buffer);
        let options = Options::default()
            .forward_eof(true)
            .forward_reset(true)
            .dispatch(dispatch);
        splice::join(client, server, options)?;
        Ok(())
    }

    async fn copy(mut client: TcpStream) -> std::io::Result<()> {
        let mut server = tokio::net::TcpStream::connect(client.local_addr()).await?;
        let size = 64 * 1024;
        tokio::io::copy_bidirectional_with_sizes(&mut client, &mut server, size, size).await?;
        Ok(())
    }

    pub(super) fn main() -> anyhow::Result<()> {
        let arguments = Arguments::parse();
        let Some(tun) = &arguments.tun else {
            println!("tun_host: a TUN to the kernel's sockets; started by benches/compare.py");
            return Ok(());
        };
        let (name, namespace) = tun.split_once('@').context("NAME@NAMESPACE")?;
        let stack = Stack::builder(Tun::builder(name).netns(namespace).build()?)
            .address("198.18.0.1/15".parse()?)
            .receive_buffer(arguments.buffer)
            .send_buffer(arguments.buffer)
            .build()?;
        let listener = TcpListener::intercept(&stack, sosplice::Intercept::all(), 128)?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_io()
            .build()?;
        println!("listening");
        for client in listener.incoming() {
            match arguments.mode {
                Mode::Worker => join(client?, Dispatch::Worker, arguments.buffer)?,
                Mode::Direct => join(client?, Dispatch::Direct, arguments.buffer)?,
                Mode::Copy => drop(runtime.spawn(copy(client?))),
            }
        }
        Ok(())
    }
}

#[cfg(target_os = "linux")]
fn main() -> anyhow::Result<()> {
    program::main()
}

#[cfg(not(target_os = "linux"))]
fn main() {}
