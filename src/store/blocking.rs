//! Blocking work, on threads outside the runtime.

/// Runs blocking work on a thread outside the runtime. A panic in it is resumed in the caller.
pub(in crate::store) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        // Never "cancelled": that is only for work that a stopping runtime has not begun, and then nobody
        // is here to see it.
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}
