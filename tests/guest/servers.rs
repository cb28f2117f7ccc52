//! What the guest reaches.

use crate::LIMIT;
use crate::namespace::Namespace;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;
use std::time::Duration;

pub(crate) const COMPARED: usize = 5_000_000;
/// Bytes of an endless transfer before it counts as begun.
const BEGUN: usize = 1_000_000;

const BETWEEN: Duration = Duration::from_millis(10);

/// Endless transfers.
#[derive(Debug, Default)]
pub(crate) struct Transfers {
    begun: AtomicUsize,
    ended: AtomicUsize,
}

impl Transfers {
    /// How many there were, and how many of them are over.
    pub(crate) fn counts(&self) -> (usize, usize) {
        let [begun, ended] = [&self.begun, &self.ended].map(|count| count.load(Ordering::SeqCst));
        (begun, ended)
    }

    /// Moves bytes until there is an error, or the end: slowly once it has begun, since other machines run beside it.
    #[allow(clippy::disallowed_methods, reason = "the rate of a transfer")]
    fn run(&self, mut step: impl FnMut() -> io::Result<usize>) -> io::Result<()> {
        let mut moved = 0;
        while let Ok(count @ 1..) = step() {
            if (moved..moved + count).contains(&BEGUN) {
                self.begun.fetch_add(1, Ordering::SeqCst);
            }
            moved += count;
            if moved > BEGUN {
                thread::sleep(BETWEEN);
            }
        }
        if moved > BEGUN {
            self.ended.fetch_add(1, Ordering::SeqCst);
        }
        Ok(())
    }
}

/// Bytes without a pattern that a lost, repeated or moved packet would leave unchanged.
fn bytes() -> Vec<u8> {
    let byte = |at: u32| u8::try_from(at.wrapping_mul(2_654_435_761) >> 24).unwrap();
    (0..u32::try_from(COMPARED).unwrap()).map(byte).collect()
}

/// Serves each connection in a thread.
fn serve(
    inside: &Namespace,
    port: u16,
    work: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static,
) {
    let listener = inside.enter(|| TcpListener::bind(("::", port)).unwrap());
    let work = Arc::new(work);
    let run = move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let work = Arc::clone(&work);
            // An error shows in what the guest reports.
            thread::Builder::new()
                .spawn(move || work(stream).ok())
                .unwrap();
        }
    };
    thread::Builder::new().spawn(run).unwrap();
}

fn download(stream: TcpStream) -> io::Result<()> {
    let mut lines = BufReader::new(&stream).lines();
    while !lines.next().unwrap_or(Ok(String::new()))?.is_empty() {}
    let head = format!("HTTP/1.0 200 OK\r\nContent-Length: {COMPARED}\r\n\r\n");
    (&stream).write_all(head.as_bytes())?;
    (&stream).write_all(&bytes())
}

/// Answers when the client has closed its direction.
fn upload(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    let verdict = if all == bytes() { "equal" } else { "different" };
    stream.write_all(verdict.as_bytes())
}

fn echo(mut stream: TcpStream) -> io::Result<()> {
    stream.set_read_timeout(Some(LIMIT))?;
    let mut all = Vec::new();
    stream.read_to_end(&mut all)?;
    stream.write_all(&all)?;
    stream.shutdown(Shutdown::Write)
}

/// A name server that gives each name the address 10.99.7.7, and no IPv6 address.
fn name_server(inside: &Namespace) {
    let socket = inside.enter(|| UdpSocket::bind("10.99.0.53:53").unwrap());
    let run = move || {
        let mut query = [0; 512];
        while let Ok((len, from)) = socket.recv_from(&mut query) {
            let mut answer = query[..len].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            if answer[len - 3] == 1 {
                answer[7] = 1;
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 99, 7, 7]);
            }
            socket.send_to(&answer, from).ok();
        }
    };
    thread::Builder::new().spawn(run).unwrap();
}

/// Starts all: on each address of a namespace, and the name server.
pub(crate) fn start(inside: &Namespace) -> Arc<Transfers> {
    let transfers = Arc::new(Transfers::default());
    serve(inside, 80, download);
    serve(inside, 81, upload);
    serve(inside, 82, echo);
    let down = Arc::clone(&transfers);
    serve(inside, 83, move |mut stream| {
        down.run(|| stream.write(&[7; 65_536]))
    });
    let up = Arc::clone(&transfers);
    serve(inside, 84, move |mut stream| {
        up.run(|| stream.read(&mut [0; 65_536]))
    });
    name_server(inside);
    transfers
}
