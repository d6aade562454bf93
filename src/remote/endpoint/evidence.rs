//! What the answer of `/v2/` last said about who answers at an endpoint: a registry, or something in its place.

use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::Instant;

/// How long the answer of `/v2/` counts for refusals. A registry that refuses with pages is asked for it once in this
/// time, and one whose place an ingress has just taken is believed for no longer.
const EVIDENCE_MEMORY: Duration = Duration::from_secs(2);

/// Whether a registry answered at `/v2/` of one endpoint, and when that was found out.
#[derive(Debug, Default)]
pub(crate) struct Evidence(Mutex<Option<(Instant, bool)>>);

impl Evidence {
    /// Whether a registry answers there: by what was found out a moment ago, or else by this look. One looks for all who
    /// ask meanwhile.
    pub(crate) async fn get(&self, look: impl Future<Output = bool>) -> bool {
        let mut known = self.0.lock().await;
        if let Some((at, is_registry)) = *known
            && at.elapsed() < EVIDENCE_MEMORY
        {
            return is_registry;
        }
        let is_registry = look.await;
        *known = Some((Instant::now(), is_registry));
        is_registry
    }
}
