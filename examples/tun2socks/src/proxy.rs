//! Requests to the proxy: RFC 1928, by `fast-socks5`.

use anyhow::{Context, anyhow, bail};
use fast_socks5::client::{Config, Socks5Stream};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{AuthenticationMethod, Socks5Command};
use rustix::net::sockopt::{set_socket_keepalive, set_tcp_keepidle};
use sosplice::kernel::KernelUdp;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

/// Most connections that the proxy has not greeted yet: else its queue would be full, and SYNs would be lost.
const GREETINGS: usize = 64;

/// How long the connection of an association is silent before it is probed.
const KEEP_ALIVE: Duration = Duration::from_secs(60);

/// A SOCKS5 server.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    address: SocketAddr,
    login: Option<(String, String)>,
    timeout: Duration,
    greetings: Arc<Semaphore>,
}

impl Proxy {
    /// One that wants a user's name and password, or neither. Each request as a whole has a time limit.
    pub(crate) fn new(
        address: SocketAddr,
        login: Option<(String, String)>,
        timeout: Duration,
    ) -> Proxy {
        Proxy {
            address,
            login,
            timeout,
            greetings: Arc::new(Semaphore::new(GREETINGS)),
        }
    }

    /// A connection by way of the proxy. No byte behind the proxy's answer has been read from it.
    pub(crate) async fn connect(&self, to: TargetAddr) -> anyhow::Result<TcpStream> {
        let (stream, _) = self.ask(Socks5Command::TCPConnect, to).await?;
        Ok(stream)
    }

    /// An association for datagrams: a socket that is connected to the proxy's relay, and the connection for as long
    /// as which the association lasts.
    pub(crate) async fn associate(&self) -> anyhow::Result<(TcpStream, KernelUdp)> {
        // From which address it will send is not known: there may be a NAT in between.
        let any = match self.address {
            SocketAddr::V4(_) => SocketAddr::from(([0; 4], 0)),
            SocketAddr::V6(_) => SocketAddr::from(([0; 16], 0)),
        };
        let (stream, relay) = self
            .ask(Socks5Command::UDPAssociate, TargetAddr::Ip(any))
            .await?;
        let relay = match relay {
            TargetAddr::Ip(relay) if relay.ip().is_unspecified() => {
                SocketAddr::new(self.address.ip(), relay.port())
            }
            TargetAddr::Ip(relay) => relay,
            TargetAddr::Domain(..) => bail!("the proxy's relay has a name in place of an address"),
        };
        let relay = KernelUdp::connect(relay).context("the proxy's relay")?;
        // No NAT in between forgets the connection, and the loss of the proxy is noticed.
        set_socket_keepalive(&stream, true)?;
        set_tcp_keepidle(&stream, KEEP_ALIVE)?;
        Ok((stream, relay))
    }

    async fn ask(
        &self,
        command: Socks5Command,
        to: TargetAddr,
    ) -> anyhow::Result<(TcpStream, TargetAddr)> {
        let proxy = self.clone();
        let asked =
            async move { tokio::time::timeout(proxy.timeout, proxy.request(command, to)).await };
        // In a task of its own: a panic of the client library is then an error like others.
        let answer = tokio::spawn(asked).await?;
        answer.context("the proxy does not answer")?
    }

    async fn request(
        &self,
        command: Socks5Command,
        to: TargetAddr,
    ) -> anyhow::Result<(TcpStream, TargetAddr)> {
        let greeting = self.greetings.acquire().await?;
        let stream = TcpStream::connect(self.address)
            .await
            .context("the proxy")?;
        stream.set_nodelay(true)?;
        let login = self.login.clone();
        let login =
            login.map(|(username, password)| AuthenticationMethod::Password { username, password });
        // As one message: some of these errors repeat their source in it.
        let failed = |error| anyhow!("the proxy: {error}");
        let stream = Socks5Stream::use_stream(stream, login, Config::default()).await;
        let mut stream = stream.map_err(failed)?;
        drop(greeting);
        let bound = stream.request(command, to).await.map_err(failed)?;
        Ok((stream.get_socket(), bound))
    }
}
