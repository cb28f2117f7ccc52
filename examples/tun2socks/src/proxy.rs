//! Requests to the proxy: RFC 1928, by `fast-socks5`.

use anyhow::{Context, anyhow, bail};
use fast_socks5::client::{Config, Socks5Stream};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{AuthenticationMethod, Socks5Command};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;
use tokio::net::{TcpStream, UdpSocket};

/// A SOCKS5 server.
#[derive(Debug, Clone)]
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    /// User and password.
    pub(crate) login: Option<(String, String)>,
    /// For each request as a whole.
    pub(crate) timeout: Duration,
}

impl Proxy {
    /// A connection by way of the proxy. No byte behind the proxy's answer has been read from it.
    pub(crate) async fn connect(&self, to: TargetAddr) -> anyhow::Result<TcpStream> {
        let (stream, _) = self.ask(Socks5Command::TCPConnect, to).await?;
        Ok(stream)
    }

    /// An association for datagrams: a socket that is connected to the proxy's relay, and the connection for as long
    /// as which the association lasts.
    pub(crate) async fn associate(&self) -> anyhow::Result<(TcpStream, UdpSocket)> {
        // From which address it will send is not known: there may be a NAT in between.
        let any = unspecified(self.address);
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
        let socket = UdpSocket::bind(unspecified(relay)).await?;
        socket.connect(relay).await.context("the proxy's relay")?;
        Ok((stream, socket))
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
        let bound = stream.request(command, to).await.map_err(failed)?;
        Ok((stream.get_socket(), bound))
    }
}

/// Any address and port of a family.
fn unspecified(like: SocketAddr) -> SocketAddr {
    let any = match like {
        SocketAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
        SocketAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
    };
    SocketAddr::new(any, 0)
}
