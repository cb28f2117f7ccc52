//! A bridge for a program with plain smoltcp: what its `Interface` accepts is spliced to a server of the operating
//! system's network. `cargo run --example smoltcp_bridge`
//!
//! The program's own part is a device (here a loopback, any other would do), an interface, a set of sockets, and a loop.
//! Ten lines, which end with `// bridge`, make splices of its connections. For a demonstration clients are in the same
//! set, and the server is an echo server in another thread.

use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::phy::{Loopback, Medium};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr};
use sosplice::{kernel::KernelStream, smoltcp::Adapter, splice}; // bridge
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::thread;
use std::time::Duration;

const ADDRESS: IpAddress = IpAddress::v4(10, 0, 0, 1);
const PORT: u16 = 80;
const CLIENTS: usize = 8;
/// Bytes that each client sends, and gets back.
const BYTES: usize = 1_000_000;

/// What the program has.
struct Net {
    device: Loopback,
    iface: Interface,
    sockets: SocketSet<'static>,
}

impl Net {
    fn new() -> anyhow::Result<Net> {
        let mut device = Loopback::new(Medium::Ip);
        let config = Config::new(HardwareAddress::Ip);
        let mut iface = Interface::new(config, &mut device, Instant::now());
        iface.update_ip_addrs(|addresses| addresses.extend([IpCidr::new(ADDRESS, 24)]));
        let sockets = SocketSet::new(vec![]);
        Ok(Net {
            device,
            iface,
            sockets,
        })
    }

    fn add(&mut self) -> SocketHandle {
        let buffer = || tcp::SocketBuffer::new(vec![0; 65_536]);
        self.sockets.add(tcp::Socket::new(buffer(), buffer()))
    }

    fn socket(&mut self, handle: SocketHandle) -> &mut tcp::Socket<'static> {
        self.sockets.get_mut(handle)
    }

    fn listen(&mut self) -> anyhow::Result<SocketHandle> {
        let handle = self.add();
        self.socket(handle).listen(PORT)?;
        Ok(handle)
    }

    /// Whether anything was received or sent: on a loopback, that is to be received.
    fn poll(&mut self, now: Instant) -> bool {
        let result = self.iface.poll(now, &mut self.device, &mut self.sockets);
        result == PollResult::SocketStateChanged
    }
}

/// The program's loop, until the clients have all their bytes.
fn run(net: &mut Net, clients: &mut [Client], server: SocketAddr) -> anyhow::Result<()> {
    // smoltcp has no backlog: each socket that listens accepts one connection.
    let mut listening = Vec::new();
    for _ in 0..CLIENTS {
        listening.push(net.listen()?);
    }
    let this = thread::current(); // bridge
    let mut adapter = Adapter::new(move || this.unpark()); // bridge
    let options = splice::Options::default(); // bridge
    let options = options.forward_eof(true).forward_reset(true); // bridge
    loop {
        let now = Instant::now();
        let mut worked = net.poll(now);
        for handle in &mut listening {
            if net.socket(*handle).may_send() {
                let inside = adapter.adopt(&net.sockets, *handle)?; // bridge
                splice::join(inside, KernelStream::start(server)?, options.clone())?; // bridge
                *handle = net.listen()?;
            }
        }
        worked |= adapter.polled(&mut net.sockets, now); // bridge
        adapter.remove_finished(&mut net.sockets); // bridge
        for client in &mut *clients {
            worked |= client.turn(net);
        }
        if clients.iter().all(|client| client.done) {
            return Ok(());
        }
        if !worked {
            let delay = net.iface.poll_delay(now, &net.sockets);
            let delay = delay.into_iter().chain(adapter.poll_delay(now)).min(); // bridge
            thread::park_timeout(delay.map_or(Duration::from_secs(1), Duration::from));
        }
    }
}

/// Sends bytes, ends its stream, and expects them back, and the end.
struct Client {
    handle: SocketHandle,
    sent: usize,
    got: usize,
    done: bool,
}

impl Client {
    fn new(net: &mut Net, port: u16) -> anyhow::Result<Client> {
        let handle = net.add();
        let socket = net.sockets.get_mut::<tcp::Socket<'_>>(handle);
        socket.connect(net.iface.context(), (ADDRESS, PORT), port)?;
        Ok(Client {
            handle,
            sent: 0,
            got: 0,
            done: false,
        })
    }

    fn turn(&mut self, net: &mut Net) -> bool {
        let socket = net.socket(self.handle);
        let before = (self.sent, self.got);
        if socket.can_send() {
            let chunk = [b'.'; 10_000];
            let left = chunk.len().min(BYTES - self.sent);
            self.sent += socket.send_slice(&chunk[..left]).unwrap_or(0);
            if self.sent == BYTES {
                socket.close();
            }
        }
        while socket.can_recv() {
            self.got += socket.recv(|bytes| (bytes.len(), bytes.len())).unwrap_or(0);
        }
        let ended = socket.recv(|_| (0, ())) == Err(tcp::RecvError::Finished);
        self.done |= ended && self.got == BYTES;
        before != (self.sent, self.got)
    }
}

/// An echo server of the operating system's network.
fn serve() -> anyhow::Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    let echo = move || {
        for stream in listener.incoming().flatten() {
            let echo = move || -> std::io::Result<()> {
                let (mut stream, mut buffer) = (&stream, [0; 65_536]);
                loop {
                    let count = stream.read(&mut buffer)?;
                    if count == 0 {
                        return Ok(());
                    }
                    stream.write_all(&buffer[..count])?;
                }
            };
            thread::Builder::new().spawn(echo).ok();
        }
    };
    thread::Builder::new().spawn(echo)?;
    Ok(address)
}

fn main() -> anyhow::Result<()> {
    let server = serve()?;
    let mut net = Net::new()?;
    let mut clients = Vec::new();
    for port in (1024..).take(CLIENTS) {
        clients.push(Client::new(&mut net, port)?);
    }
    run(&mut net, &mut clients, server)?;
    println!("{CLIENTS} clients have sent {BYTES} bytes each, and got them back");
    Ok(())
}
