//! The file of a Unix socket.

use std::io;
use std::path::Path;

/// Makes a socket at a path. A socket file there that no process has open any more is replaced: connecting to it is
/// refused.
pub(super) fn bind<S>(
    path: &Path,
    bind: impl Fn(&Path) -> io::Result<S>,
    connect: impl FnOnce(&Path) -> io::Result<()>,
) -> io::Result<S> {
    let in_use = match bind(path) {
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => error,
        result => return result,
    };
    match connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            std::fs::remove_file(path)?;
            bind(path)
        }
        _ => Err(in_use),
    }
}

/// A path for a socket file, which is removed at the end of a test.
#[cfg(test)]
pub(super) struct Place(pub(super) std::path::PathBuf);

#[cfg(test)]
impl Place {
    pub(super) fn new(name: &str) -> Place {
        let name = format!("sosplice-{}-{name}.socket", std::process::id());
        Place(std::env::temp_dir().join(name))
    }
}

#[cfg(test)]
impl Drop for Place {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).ok();
    }
}
