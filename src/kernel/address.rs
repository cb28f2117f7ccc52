//! Addresses of the kernel's stream sockets: IP, unix and vsock.

use nix::sys::socket::VsockAddr;
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrAny, SocketAddrUnix};
use std::fmt;
use std::io;
use std::net::SocketAddr;
#[cfg(target_os = "android")]
use std::os::android::net::SocketAddrExt;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
#[cfg(target_os = "linux")]
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr as UnixAddress, UnixStream};
use std::path::Path;
use std::str::FromStr;

/// The address of a stream socket of the operating system. As a string, from which it is also made, it is
/// `ADDRESS:PORT`, `unix:PATH`, `unix:@NAME` (abstract) or `vsock:CID:PORT`.
///
/// ```
/// use sosplice::kernel::Address;
/// let addresses = [
///     Address::from("127.0.0.1:80".parse::<std::net::SocketAddr>()?),
///     Address::unix("/run/service.sock")?,
///     Address::unix_abstract("service")?,
///     Address::Vsock { cid: 2, port: 1024 },
/// ];
/// let shown = addresses.map(|address| address.to_string());
/// assert_eq!(shown, ["127.0.0.1:80", "unix:/run/service.sock", "unix:@service", "vsock:2:1024"]);
/// let same: Address = shown[2].parse()?;
/// assert_eq!(same.to_string(), shown[2]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Address {
    /// TCP's (`AF_INET`, `AF_INET6`).
    Ip(SocketAddr),
    /// A path, a name in Linux's abstract namespace, or that of a socket without a name (`AF_UNIX`).
    Unix(UnixAddress),
    /// Of a virtual machine and its host (`AF_VSOCK`).
    Vsock {
        /// The machine: its context identifier; 1 is this machine (`VMADDR_CID_LOCAL`), 2 the host
        /// (`VMADDR_CID_HOST`).
        cid: u32,
        /// The port.
        port: u32,
    },
}

impl Address {
    /// The address of a unix socket with a path.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a path that is longer than 107 bytes, or has a zero byte.
    pub fn unix(path: impl AsRef<Path>) -> io::Result<Address> {
        UnixAddress::from_pathname(path).map(Address::Unix)
    }

    /// The address of a unix socket with a name in the abstract namespace, without the leading zero byte.
    ///
    /// # Errors
    /// [`InvalidInput`](io::ErrorKind::InvalidInput) for a name that is longer than 107 bytes.
    pub fn unix_abstract(name: impl AsRef<[u8]>) -> io::Result<Address> {
        UnixAddress::from_abstract_name(name).map(Address::Unix)
    }

    pub(super) fn family(&self) -> AddressFamily {
        match self {
            Address::Ip(SocketAddr::V4(_)) => AddressFamily::INET,
            Address::Ip(SocketAddr::V6(_)) => AddressFamily::INET6,
            Address::Unix(_) => AddressFamily::UNIX,
            Address::Vsock { .. } => AddressFamily::VSOCK,
        }
    }

    /// One call of `connect(2)`.
    pub(super) fn connect(&self, socket: BorrowedFd<'_>) -> Result<(), Errno> {
        match self {
            Address::Ip(address) => rustix::net::connect(socket, address),
            Address::Unix(address) => rustix::net::connect(socket, &unix_argument(address)?),
            Address::Vsock { cid, port } => {
                let address = VsockAddr::new(*cid, *port);
                let connected = nix::sys::socket::connect(socket.as_raw_fd(), &address);
                connected.map_err(|errno| Errno::from_raw_os_error(errno as i32))
            }
        }
    }

    /// This side's.
    pub(super) fn local(socket: impl AsFd) -> io::Result<Address> {
        let socket = socket.as_fd();
        Address::of(
            rustix::net::getsockname(socket)?,
            || as_unix(socket)?.local_addr(),
            || nix::sys::socket::getsockname(socket.as_raw_fd()),
        )
    }

    /// The peer's.
    pub(super) fn peer(socket: impl AsFd) -> io::Result<Address> {
        let socket = socket.as_fd();
        Address::of(
            rustix::net::getpeername(socket)?.ok_or(Errno::NOTCONN)?,
            || as_unix(socket)?.peer_addr(),
            || nix::sys::socket::getpeername(socket.as_raw_fd()),
        )
    }

    fn of(
        any: SocketAddrAny,
        unix: impl FnOnce() -> io::Result<UnixAddress>,
        vsock: impl FnOnce() -> nix::Result<VsockAddr>,
    ) -> io::Result<Address> {
        match any.address_family() {
            AddressFamily::UNIX => unix().map(Address::Unix),
            AddressFamily::VSOCK => {
                let address = vsock()?;
                let (cid, port) = (address.cid(), address.port());
                Ok(Address::Vsock { cid, port })
            }
            _ => Ok(Address::Ip(any.try_into()?)),
        }
    }

    /// The IP address, if it is one.
    pub(super) fn ip(self) -> io::Result<SocketAddr> {
        match self {
            Address::Ip(address) => Ok(address),
            _ => {
                let why =
                    format!("{self} is no IP address: ask for local_address and peer_address");
                Err(io::Error::new(io::ErrorKind::Unsupported, why))
            }
        }
    }
}

fn unix_argument(address: &UnixAddress) -> Result<SocketAddrUnix, Errno> {
    match (address.as_pathname(), address.as_abstract_name()) {
        (Some(path), _) => SocketAddrUnix::new(path),
        (None, Some(name)) => SocketAddrUnix::new_abstract_name(name),
        (None, None) => Ok(SocketAddrUnix::new_unnamed()),
    }
}

/// Another descriptor of the socket, for std, which knows addresses without a name and those with the longest path.
/// (rustix 1.1.6 makes the former an abstract name, and panics for the latter.)
fn as_unix(socket: BorrowedFd<'_>) -> io::Result<UnixStream> {
    Ok(socket.try_clone_to_owned()?.into())
}

impl From<SocketAddr> for Address {
    fn from(address: SocketAddr) -> Address {
        Address::Ip(address)
    }
}

impl From<UnixAddress> for Address {
    fn from(address: UnixAddress) -> Address {
        Address::Unix(address)
    }
}

impl FromStr for Address {
    type Err = io::Error;

    fn from_str(string: &str) -> io::Result<Address> {
        let unclear = || {
            let why = format!(
                "{string:?} is no address: use ADDRESS:PORT, unix:PATH, unix:@NAME or vsock:CID:PORT"
            );
            io::Error::new(io::ErrorKind::InvalidInput, why)
        };
        if let Some(path) = string.strip_prefix("unix:") {
            return match path.strip_prefix('@') {
                Some(name) => Address::unix_abstract(name),
                None if path.is_empty() => Err(unclear()),
                None => Address::unix(path),
            };
        }
        if let Some(numbers) = string.strip_prefix("vsock:") {
            let numbers = numbers.split_once(':').ok_or_else(unclear)?;
            let number = |number: &str| number.parse().map_err(|_| unclear());
            return Ok(Address::Vsock {
                cid: number(numbers.0)?,
                port: number(numbers.1)?,
            });
        }
        string.parse().map(Address::Ip).map_err(|_| unclear())
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Address::Ip(address) => address.fmt(f),
            Address::Unix(address) => match (address.as_pathname(), address.as_abstract_name()) {
                (Some(path), _) => write!(f, "unix:{}", path.display()),
                (None, Some(name)) => write!(f, "unix:@{}", name.escape_ascii()),
                (None, None) => f.write_str("unix:"),
            },
            Address::Vsock { cid, port } => write!(f, "vsock:{cid}:{port}"),
        }
    }
}
