//! Socket options of the operating system's connections, and connecting with a timeout.
//!
//! A thin layer over `getsockopt` and `setsockopt`: the kernel has the values and the timers, and
//! reports their expiry as an error. Those of TCP fail for unix sockets and vsock. The only lock is the descriptor's slot (5), which is not held
//! during system calls.

use super::{Address, KernelSocket, KernelStream};
use crate::keep_alive::KeepAlive;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

/// Linux's maxima for keep-alive: seconds and probes (`MAX_TCP_KEEPIDLE`, `MAX_TCP_KEEPINTVL`,
/// `MAX_TCP_KEEPCNT`).
const KEEP_SECONDS: u64 = 32_767;
const KEEP_PROBES: u32 = 127;
/// Maximum user timeout in milliseconds: it is an `int`.
const USER_MILLIS: u32 = i32::MAX as u32;

fn invalid(why: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidInput, why.into())
}

/// Whole seconds, rounded up.
fn seconds(time: Duration) -> Duration {
    let whole = time
        .as_secs()
        .saturating_add(u64::from(time.subsec_nanos() > 0));
    Duration::from_secs(whole.min(KEEP_SECONDS))
}

impl KernelStream {
    /// As [`connect`](Self::connect), but waits no longer than `timeout`; then the attempt is cancelled
    /// and its descriptor closed. The kernel's own limit is about two minutes for TCP
    /// (`net.ipv4.tcp_syn_retries`), and two seconds for vsock.
    ///
    /// ```
    /// use sosplice::kernel::KernelStream;
    /// use std::net::TcpListener;
    /// use std::time::Duration;
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let address = listener.local_addr()?;
    /// let stream = KernelStream::connect_timeout(address, Duration::from_secs(5))?;
    /// assert_eq!(stream.peer_addr()?, address);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// As for [`connect`](Self::connect); [`TimedOut`](io::ErrorKind::TimedOut) after `timeout`;
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if it is zero: [`start`](Self::start) does not wait.
    pub fn connect_timeout(
        address: impl Into<Address>,
        timeout: Duration,
    ) -> io::Result<KernelStream> {
        let address = address.into();
        KernelSocket::new(&address)?.connect_timeout(address, timeout)
    }

    /// Whether small segments are sent at once (`TCP_NODELAY`).
    ///
    /// # Errors
    /// Errors of the operating system; `NotConnected` if the connection has failed.
    pub fn set_nodelay(&self, nodelay: bool) -> io::Result<()> {
        Ok(sockopt::set_tcp_nodelay(&*self.conn.live()?, nodelay)?)
    }

    /// Whether small segments are sent at once. By default they are not, unlike with a
    /// [`TcpStream`](crate::TcpStream) of this crate.
    ///
    /// # Errors
    /// As for [`set_nodelay`](Self::set_nodelay).
    pub fn nodelay(&self) -> io::Result<bool> {
        Ok(sockopt::tcp_nodelay(&*self.conn.live()?)?)
    }

    /// Switches the kernel's keep-alive on or (`None`) off (`SO_KEEPALIVE`, `TCP_KEEPIDLE`,
    /// `TCP_KEEPINTVL`, `TCP_KEEPCNT`); off by default. A peer that answers no probe ends the
    /// connection with [`TimedOut`](io::ErrorKind::TimedOut). The kernel counts in whole seconds, so
    /// times are rounded up; it allows at most 32,767 seconds and 127 probes.
    ///
    /// ```
    /// use sosplice::kernel::{KeepAlive, KernelStream};
    /// use std::net::TcpListener;
    /// use std::time::Duration;
    /// let listener = TcpListener::bind("127.0.0.1:0")?;
    /// let stream = KernelStream::connect(listener.local_addr()?)?;
    /// let minute = KeepAlive { idle: Duration::from_secs(60), ..KeepAlive::default() };
    /// stream.set_keep_alive(Some(minute))?;
    /// assert_eq!(stream.keep_alive()?, Some(minute));
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) if a value is zero; otherwise as for
    /// [`set_nodelay`](Self::set_nodelay).
    pub fn set_keep_alive(&self, keep_alive: Option<KeepAlive>) -> io::Result<()> {
        let stream = self.conn.live()?;
        if let Some(wanted) = keep_alive {
            if !wanted.is_valid() {
                let why =
                    "a keep-alive with a zero in it: give times above zero and one probe at least";
                return Err(invalid(why));
            }
            sockopt::set_tcp_keepidle(&*stream, seconds(wanted.idle))?;
            sockopt::set_tcp_keepintvl(&*stream, seconds(wanted.interval))?;
            sockopt::set_tcp_keepcnt(&*stream, wanted.probes.min(KEEP_PROBES))?;
        }
        Ok(sockopt::set_socket_keepalive(
            &*stream,
            keep_alive.is_some(),
        )?)
    }

    /// The keep-alive, if it is on.
    ///
    /// # Errors
    /// As for [`set_nodelay`](Self::set_nodelay).
    pub fn keep_alive(&self) -> io::Result<Option<KeepAlive>> {
        let stream = self.conn.live()?;
        if !sockopt::socket_keepalive(&*stream)? {
            return Ok(None);
        }
        Ok(Some(KeepAlive {
            idle: sockopt::tcp_keepidle(&*stream)?,
            interval: sockopt::tcp_keepintvl(&*stream)?,
            probes: sockopt::tcp_keepcnt(&*stream)?,
        }))
    }

    /// How long data may stay unacknowledged before the connection ends with
    /// [`TimedOut`](io::ErrorKind::TimedOut) (`TCP_USER_TIMEOUT`). `None`, the default, is the kernel's
    /// own limit: about 15 minutes (`net.ipv4.tcp_retries2`). In milliseconds, rounded up, at most 24
    /// days. With keep-alive it replaces the number of probes.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for zero; otherwise as for
    /// [`set_nodelay`](Self::set_nodelay).
    pub fn set_user_timeout(&self, timeout: Option<Duration>) -> io::Result<()> {
        if timeout.is_some_and(|time| time.is_zero()) {
            let why =
                "a user timeout of zero: give a time above zero, or none for the kernel's own";
            return Err(invalid(why));
        }
        let millis = timeout.map_or(0, |time| {
            let millis = time.as_nanos().div_ceil(1_000_000);
            u32::try_from(millis).map_or(USER_MILLIS, |millis| millis.min(USER_MILLIS))
        });
        let stream = self.conn.live()?;
        Ok(sockopt::set_tcp_user_timeout(&*stream, millis)?)
    }

    /// The setting of [`set_user_timeout`](Self::set_user_timeout).
    ///
    /// # Errors
    /// As for [`set_nodelay`](Self::set_nodelay).
    pub fn user_timeout(&self) -> io::Result<Option<Duration>> {
        let millis = sockopt::tcp_user_timeout(&*self.conn.live()?)?;
        Ok((millis > 0).then(|| Duration::from_millis(millis.into())))
    }

    /// Sets the treatment of undelivered data when the last handle is closed (`SO_LINGER`): `None`, the
    /// default, delivers it in the background; `Some(0)` resets the connection and drops it.
    ///
    /// # Errors
    /// [`Unsupported`](io::ErrorKind::Unsupported) for a time above zero: Linux's `close` would block
    /// for that time, in the thread that serves all of these sockets; to learn that all data has
    /// arrived, shut down for writing and read until the peer's end of file. Otherwise as for
    /// [`set_nodelay`](Self::set_nodelay).
    pub fn set_linger(&self, linger: Option<Duration>) -> io::Result<()> {
        if linger.is_some_and(|time| !time.is_zero()) {
            let why = "a kernel's close would block: give none, or zero for a reset";
            return Err(io::Error::new(io::ErrorKind::Unsupported, why));
        }
        Ok(sockopt::set_socket_linger(&*self.conn.live()?, linger)?)
    }

    /// The setting of [`set_linger`](Self::set_linger).
    ///
    /// # Errors
    /// As for [`set_nodelay`](Self::set_nodelay).
    pub fn linger(&self) -> io::Result<Option<Duration>> {
        Ok(sockopt::socket_linger(&*self.conn.live()?)?)
    }

    /// Sets the hop limit of packets (`IP_TTL`, `IPV6_UNICAST_HOPS`); 64 by default
    /// (`net.ipv4.ip_default_ttl`).
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) outside 1 to 255; otherwise as for
    /// [`set_nodelay`](Self::set_nodelay).
    pub fn set_ttl(&self, ttl: u32) -> io::Result<()> {
        let hops = u8::try_from(ttl).ok().filter(|hops| *hops > 0);
        let Some(hops) = hops else {
            let why = format!("a time to live of {ttl} is out of range: use 1 to 255");
            return Err(invalid(why));
        };
        let stream = self.conn.live()?;
        let set = match is_ipv4(self.local_addr()?) {
            true => sockopt::set_ip_ttl(&*stream, ttl),
            false => sockopt::set_ipv6_unicast_hops(&*stream, Some(hops)),
        };
        Ok(set?)
    }

    /// The hop limit of packets.
    ///
    /// # Errors
    /// As for [`set_nodelay`](Self::set_nodelay).
    pub fn ttl(&self) -> io::Result<u32> {
        let stream = self.conn.live()?;
        let ttl = match is_ipv4(self.local_addr()?) {
            true => sockopt::ip_ttl(&*stream),
            false => sockopt::ipv6_unicast_hops(&*stream).map(u32::from),
        };
        Ok(ttl?)
    }
}

/// Whether it is IPv4, also over an IPv6 socket.
fn is_ipv4(address: SocketAddr) -> bool {
    address.ip().to_canonical().is_ipv4()
}
