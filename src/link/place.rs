//! Names of devices, and the network namespaces that they are in.

use rustix::fd::AsFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fmt;
use std::io;
use std::thread;

/// Longest name of an interface, in bytes.
pub(super) const NAME_MAX: usize = 15;

/// The name of a device and its network namespace.
///
/// ```
/// use sosplice::link::tun::Place;
/// let place = Place { name: "tun0".into(), netns: Some("client".into()) };
/// assert_eq!(place.to_string(), "tun0 in network namespace client");
/// ```
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    clippy::exhaustive_structs,
    reason = "a name, and the namespace that it is a name in"
)]
pub struct Place {
    /// Name of the interface.
    pub name: String,
    /// Name of the network namespace, as `ip netns` lists it; `None` for the one of the thread that
    /// opens.
    pub netns: Option<String>,
}

impl Place {
    /// An `ip` command for this device.
    pub(super) fn ip(&self, command: &str) -> String {
        match &self.netns {
            Some(netns) => format!("ip -n {netns} {command}"),
            None => format!("ip {command}"),
        }
    }

    /// Whether the name can be one of an interface. '%' would make the kernel pick a number, and with it another device.
    pub(super) fn is_valid(&self) -> bool {
        let wrong = |c: char| matches!(c, '/' | ':' | '%' | '\0') || c.is_whitespace();
        let name = &self.name;
        !(name.is_empty()
            || name.len() > NAME_MAX
            || matches!(name.as_str(), "." | "..")
            || name.contains(wrong))
    }

    /// Calls `work` in the namespace: in a thread of its own, because entering a namespace cannot be undone reliably.
    pub(super) fn within<R: Send>(
        &self,
        work: impl FnOnce() -> R + Send,
    ) -> Result<R, NamespaceError> {
        let Some(netns) = &self.netns else {
            return Ok(work());
        };
        thread::scope(|scope| {
            thread::Builder::new()
                .name("sosplice-netns".into())
                .spawn_scoped(scope, || enter(netns).map(|()| work()))
                .map_err(|error| NamespaceError::System("starting a thread", error))?
                .join()
                .expect("invariant: opening a device does not panic")
        })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match &self.netns {
            Some(netns) => write!(f, " in network namespace {netns}"),
            None => Ok(()),
        }
    }
}

/// Why a network namespace was not entered.
#[derive(Debug)]
pub(super) enum NamespaceError {
    NotFound,
    Prohibited,
    /// The call that failed.
    System(&'static str, io::Error),
}

/// Moves the calling thread into a namespace.
fn enter(name: &str) -> Result<(), NamespaceError> {
    if name.is_empty() || name.contains('/') || name.starts_with('.') {
        return Err(NamespaceError::NotFound);
    }
    let path = format!("/run/netns/{name}");
    let namespace = rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|error| match error {
            Errno::NOENT => NamespaceError::NotFound,
            Errno::ACCESS => NamespaceError::Prohibited,
            error => NamespaceError::System("opening the network namespace", error.into()),
        })?;
    move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network)).map_err(
        |error| match error {
            Errno::PERM => NamespaceError::Prohibited,
            // A leftover file on which no namespace is mounted.
            Errno::INVAL => NamespaceError::NotFound,
            error => NamespaceError::System("setns", error.into()),
        },
    )
}
