//! The gateway's name service: the guest's queries go to the host's resolver, over UDP and over TCP, in one thread.

use crate::dns::{Asked, Verdict, judge};
use crate::message::{read_message, write_message};
use crate::policy::Policy;
use crate::relay::report;
use sosplice::buf::Buf;
use sosplice::clock::{Clock, SystemClock};
use sosplice::kernel::KernelUdp;
use sosplice::sockbuf::Datagram;
use sosplice::{ConnectionRequest, Socket, TcpStream, UdpSocket};
use std::collections::VecDeque;
use std::future::{pending, poll_fn};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::runtime::{Builder, Handle};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Datagrams that are received at once.
const BATCH: usize = 64;
/// Queries of a flow that wait for an answer; the oldest is dropped for the next one. So those of all flows are less
/// than 100 MB: 4,096 times 16 of 1,232 bytes.
const WAITING: usize = 16;
/// Connections for queries, and how long one is kept without a query or an answer.
const STREAMS: usize = 64;
const IDLE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Resolver {
    address: SocketAddr,
    policy: Arc<Policy>,
    streams: Arc<Semaphore>,
    runtime: Handle,
}

impl Resolver {
    /// Starts the thread.
    pub(crate) fn new(address: SocketAddr, policy: Arc<Policy>) -> io::Result<Resolver> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let resolver = Resolver {
            address,
            policy,
            streams: Arc::new(Semaphore::new(STREAMS)),
            runtime: runtime.handle().clone(),
        };
        thread::Builder::new().spawn(move || runtime.block_on(pending::<()>()))?;
        Ok(resolver)
    }

    /// Answers the queries of a flow.
    pub(crate) fn serve(&self, client: UdpSocket) {
        let policy = Arc::clone(&self.policy);
        match KernelUdp::connect(self.address) {
            Ok(server) => {
                let asked = VecDeque::new();
                let waiting = Waiting {
                    policy,
                    client,
                    server,
                    asked,
                };
                self.runtime.spawn(datagrams(waiting));
            }
            Err(error) => client.refuse_with(&error),
        }
    }

    /// Answers the queries of a connection, once there is one to the resolver.
    pub(crate) fn accept(&self, client: ConnectionRequest, limit: Duration) -> io::Result<()> {
        let Ok(place) = Arc::clone(&self.streams).try_acquire_owned() else {
            client.refuse();
            return Err(ErrorKind::QuotaExceeded.into());
        };
        let (address, policy) = (self.address, Arc::clone(&self.policy));
        self.runtime.spawn(async move {
            let _place = place;
            let to = client.local_addr();
            match timeout(limit, tokio::net::TcpStream::connect(address)).await {
                Ok(Ok(server)) => {
                    // Either side may end it at any time: the guest asks again.
                    let served = client
                        .accept()
                        .map(|client| stream(&policy, client, server));
                    if let Ok(served) = served {
                        served.await.ok();
                    }
                }
                Ok(Err(error)) => {
                    client.refuse();
                    report(to, Err::<(), _>(error));
                }
                Err(late) => {
                    client.refuse();
                    report(to, Err::<(), _>(late));
                }
            }
        });
        Ok(())
    }
}

/// A number that is not to be guessed.
fn number() -> io::Result<u16> {
    let random = getrandom::u32().map_err(io::Error::other)?;
    Ok((random >> 16) as u16)
}

async fn stream(
    policy: &Policy,
    mut client: TcpStream,
    mut server: tokio::net::TcpStream,
) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, read_message(&mut client)).await??;
        let reply = match judge(policy, query, number()?) {
            Verdict::Ask(asked, message) => {
                timeout(IDLE, write_message(&mut server, &message)).await??;
                timeout(IDLE, answer(policy, &asked, &mut server)).await??
            }
            Verdict::Reply(reply) => reply,
            Verdict::Drop => continue,
        };
        timeout(IDLE, write_message(&mut client, &reply)).await??;
    }
}

async fn answer(
    policy: &Policy,
    asked: &Asked,
    server: &mut tokio::net::TcpStream,
) -> io::Result<Vec<u8>> {
    loop {
        let message = read_message(server).await?;
        match asked.is_answered_by(&message) {
            true => return Ok(asked.answer(policy, message, SystemClock.now())),
            false => policy.counters.answers_ignored.add(),
        }
    }
}

/// Queries of a flow that wait for an answer.
struct Waiting {
    policy: Arc<Policy>,
    client: UdpSocket,
    server: KernelUdp,
    asked: VecDeque<Asked>,
}

impl Waiting {
    fn query(&mut self, query: Vec<u8>) -> io::Result<()> {
        match judge(&self.policy, query, number()?) {
            Verdict::Ask(asked, message) => {
                send(&self.server, message);
                self.asked.truncate(WAITING - 1);
                self.asked.push_front(asked);
            }
            Verdict::Reply(reply) => send(&self.client, reply),
            Verdict::Drop => {}
        }
        Ok(())
    }

    fn answer(&mut self, message: Vec<u8>) {
        let mut asked = self.asked.iter();
        let found = asked.position(|asked| asked.is_answered_by(&message));
        match found.and_then(|at| self.asked.remove(at)) {
            Some(asked) => {
                let answer = asked.answer(&self.policy, message, SystemClock.now());
                send(&self.client, answer);
            }
            None => self.policy.counters.answers_ignored.add(),
        }
    }

    /// The resolver cannot be reached.
    fn fail(&mut self) {
        let replies = self.asked.drain(..).filter_map(|asked| asked.failure());
        replies.for_each(|reply| send(&self.client, reply));
    }
}

/// Runs until the flow ends: the stack ends it when it is idle.
async fn datagrams(mut waiting: Waiting) -> io::Result<()> {
    let (client, server) = (waiting.client.clone(), waiting.server.clone());
    loop {
        tokio::select! {
            // An error is about an answer that the guest does not want.
            queries = received(&client) => match queries {
                Ok(queries) if queries.is_empty() => return Ok(()),
                queries => for query in queries.unwrap_or_default() {
                    waiting.query(query.to_vec())?;
                },
            },
            answers = received(&server) => match answers {
                Ok(answers) if answers.is_empty() => return Ok(()),
                Ok(answers) => answers.iter().for_each(|answer| waiting.answer(answer.to_vec())),
                Err(_) => waiting.fail(),
            },
        }
    }
}

/// Waits for datagrams. None if the socket has ended; an error is one of a datagram that was sent.
async fn received(socket: &Socket) -> io::Result<Vec<Datagram>> {
    let mut datagrams = Vec::new();
    poll_fn(|cx| socket.poll_recv_datagrams(cx, &mut datagrams, BATCH)).await?;
    Ok(datagrams)
}

/// Sends a datagram; without room it is lost.
fn send(socket: &Socket, bytes: Vec<u8>) {
    let mut datagram = vec![Datagram::new([Buf::from(bytes)], Default::default())];
    socket.send_datagrams(&mut datagram).ok();
}
