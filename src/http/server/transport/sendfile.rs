//! The plain end of a connection, through which the kernel sends stored files by itself.
//!
//! hyper keeps the protocol. A body gives it mapped bytes of a stored file ([`Mapped`]) and says so here; when
//! hyper then writes a slice that lies in that mapping, `sendfile` does it: the kernel passes pages on, and no byte
//! is copied. Whatever does not fit (another slice, a short one, a file system that cannot) is written as usual,
//! and the same bytes go out.
//!
//! # Why sendfile, and not only the mapping
//! Both were measured on the daemon, with `benches/run hot` and clients that copy. Writing out of the mapping cost
//! 1.4 to 2 times the CPU time per byte that nginx's sendfile takes, and this takes as much as nginx (0.13 to 0.20
//! CPU-seconds per GB); the throughput is the same or better, since the clients are then what limits. On a node that
//! time belongs to the pods. Below [`SENDFILE_MIN`] a write is cheaper.
//!
//! There is one exception. A client on the same machine that takes whatever it gets at once goes to sleep after each
//! 64 KiB that sendfile hands over, and to wake it costs this side more than a copy. Written to in large pieces it stays
//! awake: on a virtual machine 3.2 instead of 1.8 GB/s, for 0.25 instead of 0.41 CPU-seconds per GB. Among eight such
//! clients one is always awake, and sendfile costs 0.15.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use rustix::fs::sendfile;
use rustix::io::Errno;
use rustix::net::{SendFlags, send};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};
use tokio::net::TcpStream;

use crate::store::{Mapped, MappedWeak};

/// A shorter slice is written: a copy of it costs less than a further call to the kernel.
const SENDFILE_MIN: usize = 64 * 1024;

/// What the connection's current body is made of, if that is a mapped file. Clones share it.
///
/// A connection that rests, or has the last bytes of a body still to write, must not keep the file from being
/// evicted. If it is, those bytes are written from the mapping that they themselves keep.
#[derive(Clone, Default)]
pub(crate) struct Outlet(Arc<Mutex<Option<MappedWeak>>>);

impl Outlet {
    /// From here on slices of `mapped` are sent by the kernel, for a body that keeps what this returns.
    pub(crate) fn set(&self, mapped: Option<&Mapped>) -> Option<Sending> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = mapped.map(Mapped::downgrade);
        mapped.map(|_| {
            BODIES.fetch_add(1, Ordering::Relaxed);
            Sending(())
        })
    }

    fn mapped(&self) -> Option<Mapped> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref()?.upgrade()
    }

    /// What is being sent could not be: perhaps its file is not what it was.
    fn suspect(&self) {
        if let Some(mapped) = self.mapped() {
            mapped.suspect();
        }
    }

    /// The file that a slice lies in, and where.
    fn find(&self, slice: &[u8]) -> Option<(Mapped, u64)> {
        if slice.len() < SENDFILE_MIN {
            return None;
        }
        let mapped = self.mapped()?;
        let offset = mapped.offset_of(slice)?;
        Some((mapped, offset))
    }
}

/// A TCP connection without TLS.
pub(crate) struct Plain {
    stream: TcpStream,
    outlet: Outlet,
    /// Whether the socket took all of the last slice at once.
    keeps_up: bool,
}

/// Bodies that are being sent out of mapped files.
static BODIES: AtomicUsize = AtomicUsize::new(0);
/// With more of them at once no client is waited for.
const FEW_BODIES_MAX: usize = 2;

/// A body that is being sent out of a mapped file, as long as this lives.
pub(crate) struct Sending(());

impl Drop for Sending {
    fn drop(&mut self) {
        BODIES.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Plain {
    pub(crate) fn new(stream: TcpStream, outlet: Outlet) -> Self {
        Self { stream, outlet, keeps_up: false }
    }

    /// Writes some of what hyper has, by the way that fits.
    fn poll_write_parts(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        for (at, part) in parts.iter().enumerate() {
            let Some((mapped, offset)) = self.outlet.find(part) else { continue };
            if at > 0 {
                // What stands before it, and with a word that more follows at once: the head of an answer does not
                // travel alone.
                let head = parts[..at].iter().find(|part| !part.is_empty());
                let Some(head) = head else { continue };
                return self.poll_write_io(context, || Ok(send(&self.stream, head, SendFlags::MORE)?));
            }
            let is_copied = self.keeps_up && BODIES.load(Ordering::Relaxed) <= FEW_BODIES_MAX;
            let sent =
                if is_copied { None } else { self.poll_sendfile(context, (&mapped, offset), part.len()) };
            let sent = sent.unwrap_or_else(|| Pin::new(&mut self.stream).poll_write(context, part));
            self.keeps_up = matches!(sent, Poll::Ready(Ok(count)) if count == part.len());
            return sent;
        }
        Pin::new(&mut self.stream).poll_write_vectored(context, parts)
    }

    /// Does what the kernel may tell to try again, once it can be done.
    fn poll_write_io(
        &self,
        context: &mut Context<'_>,
        mut write: impl FnMut() -> io::Result<usize>,
    ) -> Poll<io::Result<usize>> {
        loop {
            ready!(self.stream.poll_write_ready(context))?;
            match self.stream.try_io(Interest::WRITABLE, &mut write) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                result => return Poll::Ready(result),
            }
        }
    }

    /// Sends a slice of a file; `None` if this file cannot be sent so.
    fn poll_sendfile(
        &self,
        context: &mut Context<'_>,
        (mapped, start): (&Mapped, u64),
        len: usize,
    ) -> Option<Poll<io::Result<usize>>> {
        let mut is_possible = true;
        let sent = self.poll_write_io(context, || {
            let mut offset = start;
            match sendfile(&self.stream, mapped.file(), Some(&mut offset), len) {
                // There was more when it was mapped: somebody has cut it.
                Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => Ok(count),
                Err(Errno::INVAL | Errno::NOSYS) => {
                    is_possible = false;
                    Ok(0)
                }
                Err(error) => Err(error.into()),
            }
        });
        is_possible.then_some(sent)
    }
}

/// Whether a write has failed for what was to be written: a page that is gone, or that the disk does not give.
fn is_of_file(error: &io::Error) -> bool {
    let codes = [Errno::FAULT, Errno::IO].map(Errno::raw_os_error);
    error.kind() == io::ErrorKind::UnexpectedEof
        || error.raw_os_error().is_some_and(|code| codes.contains(&code))
}

impl AsyncRead for Plain {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Plain {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_write_vectored(context, &[IoSlice::new(bytes)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let outlet = self.outlet.clone();
        let written = self.poll_write_parts(context, parts);
        if let Poll::Ready(Err(error)) = &written
            && is_of_file(error)
        {
            outlet.suspect();
        }
        written
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
