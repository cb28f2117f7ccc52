//! A TUN for tokio's traits.

use rustix::fd::OwnedFd;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// The device, for tokio.
#[derive(Clone)]
pub(crate) struct Device(Arc<AsyncFd<OwnedFd>>);

impl Device {
    /// Registers the device with the runtime.
    pub(crate) fn new(tun: OwnedFd) -> io::Result<Device> {
        // SAFETY: an `OwnedFd` is the same open descriptor until it is dropped.
        let device = unsafe { AsyncFd::register(tun)? };
        Ok(Device(Arc::new(device)))
    }

    #[allow(dead_code, reason = "ipstack uses the traits")]
    pub(crate) async fn write(&self, packet: &[u8]) -> io::Result<()> {
        loop {
            let mut writable = self.0.writable().await?;
            match writable.try_io(|fd| Ok(rustix::io::write(fd, packet)?)) {
                Ok(written) => return written.map(drop),
                Err(_) => continue,
            }
        }
    }

    #[allow(dead_code, reason = "ipstack uses the traits")]
    pub(crate) async fn read(&self, packet: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut readable = self.0.readable().await?;
            if let Ok(read) = readable.try_io(|fd| Ok(rustix::io::read(fd, &mut *packet)?)) {
                return read;
            }
        }
    }
}

impl AsyncRead for Device {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        loop {
            let mut readable = ready!(self.0.poll_read_ready(cx))?;
            let space = buf.initialize_unfilled();
            if let Ok(read) = readable.try_io(|fd| Ok(rustix::io::read(fd, &mut *space)?)) {
                buf.advance(read?);
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl AsyncWrite for Device {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        packet: &[u8],
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut writable = ready!(self.0.poll_write_ready(cx))?;
            if let Ok(written) = writable.try_io(|fd| Ok(rustix::io::write(fd, packet)?)) {
                return Poll::Ready(written);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
