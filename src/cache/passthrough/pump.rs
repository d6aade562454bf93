//! What carries a blob from upstream to one client: a task of its own, so that the transfer ends when it must, also while
//! its client takes nothing and so asks for nothing.
//!
//! It is one chunk ahead of its client, which so slows upstream down. One that is too slow while others wait for its place
//! (see [`crate::cache::fairness`]) ends at once, whoever of the two is slow, and its client's connection is cut.

use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::cache::error::Error;
use crate::cache::fairness::Hold;
use crate::upstream::BlobStream;

/// A transfer under way. Dropped, it ends.
pub(in crate::cache) struct Pump {
    chunks: mpsc::Receiver<Bytes>,
    /// None once its result is taken.
    task: Option<JoinHandle<Result<Hold, Error>>>,
}

impl Pump {
    /// Begins to carry what `stream` brings, in the place that `hold` is.
    pub(in crate::cache) fn start(stream: BlobStream, hold: Hold) -> Self {
        let (sender, chunks) = mpsc::channel(1);
        Self { chunks, task: Some(tokio::spawn(carry(stream, hold, sender))) }
    }

    /// The next bytes; none when upstream has ended the body.
    pub(in crate::cache) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if let Some(chunk) = self.chunks.recv().await {
            return Ok(Some(chunk));
        }
        self.end().await?;
        Ok(None)
    }

    /// Ends the transfer, and gives its place back for another.
    pub(in crate::cache) async fn stop(mut self) -> Result<Hold, Error> {
        self.chunks.close();
        while self.chunks.recv().await.is_some() {}
        self.end().await
    }

    async fn end(&mut self) -> Result<Hold, Error> {
        let Some(task) = self.task.take() else { return Err(Error::GivenUp) };
        task.await.map_err(|_| Error::GivenUp)?
    }
}

async fn carry(mut stream: BlobStream, mut hold: Hold, chunks: mpsc::Sender<Bytes>) -> Result<Hold, Error> {
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
