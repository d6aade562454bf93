//! The pump carries a blob from upstream to one client. It is a task of its own, so that the transfer ends when it
//! must, even while the client takes nothing and so asks for nothing.
//!
//! It is one chunk ahead of its client, so a slow client slows upstream down. A pump that is too slow while others wait
//! for its place (see [`crate::cache::fairness`]) ends at once, whichever of the two sides is slow, and the connection
//! of its client is cut.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cache::error::Error;
use crate::cache::fairness::HeldPermit;
use crate::upstream::BlobStream;

/// A transfer under way. It ends when it is dropped.
pub(in crate::cache) struct Pump {
    chunks: mpsc::Receiver<Bytes>,
    /// `None` once its result is taken.
    task: Option<JoinHandle<Result<HeldPermit, Error>>>,
}

impl Pump {
    /// Begins to carry what `stream` brings, under the permit `hold`.
    pub(in crate::cache) fn start(stream: BlobStream, hold: HeldPermit) -> Self {
        let (sender, chunks) = mpsc::channel(1);
        Self { chunks, task: Some(tokio::spawn(carry(stream, hold, sender))) }
    }

    /// The next bytes; `None` when upstream has ended the body.
    pub(in crate::cache) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(chunk) = self.chunks.recv().await {
            return Ok(Some(chunk));
        }
        self.end().await?;
        Ok(None)
    }

    /// Ends the transfer, and returns its permit for another.
    pub(in crate::cache) async fn stop(mut self) -> Result<HeldPermit, Error> {
        self.chunks.close();
        while self.chunks.recv().await.is_some() {}
        self.end().await
    }

    async fn end(&mut self) -> Result<HeldPermit, Error> {
        let Some(task) = self.task.take() else { return Err(Error::GivenUp) };
        task.await.map_err(|_| Error::GivenUp)?
    }
}

async fn carry(
    mut stream: BlobStream,
    mut hold: HeldPermit,
    chunks: mpsc::Sender<Bytes>,
) -> Result<HeldPermit, Error> {
    let moved = AtomicU64::new(0);
    let pass = async {
        while let Some(chunk) = stream.chunk().await? {
            let len = chunk.len() as u64;
            if chunks.send(chunk).await.is_err() {
                break;
            }
            moved.fetch_add(len, Ordering::Relaxed);
        }
        Ok(())
    };
    tokio::select! {
        passed = pass => passed.map(|()| hold),
        () = chunks.closed() => Ok(hold),
        () = hold.is_lost(|| moved.load(Ordering::Relaxed)) => Err(Error::Displaced),
    }
}
