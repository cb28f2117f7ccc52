//! Two TCP connections spliced in one process, on links in memory. No privileges needed.
//!
//! ```text
//! client stack <--link--> proxy's stack [ splice ] proxy's stack <--link--> server stack
//! ```

use sosplice::link::memory;
use sosplice::splice::{self, Options};
use sosplice::{Stack, TcpListener, TcpStream};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::thread;

type Outcome = Result<(), Box<dyn std::error::Error + Send + Sync>>;

/// Two stacks with a link between them.
fn network(a: &str, b: &str) -> Result<(Stack, Stack), Box<dyn std::error::Error + Send + Sync>> {
    let (left, right) = memory::pair(memory::Config::default());
    let a = Stack::builder(left).address(a.parse()?).build()?;
    let b = Stack::builder(right).address(b.parse()?).build()?;
    Ok((a, b))
}

/// Sends the received bytes back in upper case.
fn serve(listener: &TcpListener) -> Outcome {
    let (mut stream, _) = listener.accept()?;
    let mut request = String::new();
    stream.read_to_string(&mut request)?;
    stream.write_all(request.to_uppercase().as_bytes())?;
    Ok(())
}

fn main() -> Outcome {
    let (client, front) = network("10.0.1.1/24", "10.0.1.2/24")?;
    let (back, server) = network("10.0.2.2/24", "10.0.2.1/24")?;
    let service = TcpListener::bind(&server, "10.0.2.1:80")?;
    let serving = thread::Builder::new().spawn(move || serve(&service))?;

    let proxy = TcpListener::bind(&front, "10.0.1.2:80")?;
    let mut user = TcpStream::connect(&client, "10.0.1.2:80")?;
    let (inside, _) = proxy.accept()?;
    let outside = TcpStream::connect(&back, "10.0.2.1:80")?;
    let options = Options::default().forward_eof(true);
    let join = splice::join(inside, outside, options)?;

    user.write_all(b"hello through two stacks")?;
    user.shutdown(Shutdown::Write)?;
    let ends = join.wait();
    println!("up:     {:?}", ends.a_to_b);
    println!("down:   {:?}", ends.b_to_a);

    let mut answer = String::new();
    user.read_to_string(&mut answer)?;
    println!("answer: {answer}");
    serving.join().map_err(|_| "the server panicked")?
}
