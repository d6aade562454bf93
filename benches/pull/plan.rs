//! How large and how often: the full measurement, and one that only shows that everything works.

use std::time::Duration;

const MIB: usize = 1 << 20;

/// How large and how often.
pub(crate) struct Plan {
    /// Bytes of the hot blobs.
    pub(crate) hot_bytes: [usize; 3],
    /// Turns of each server with each hot blob, for clients that copy, in the clear.
    pub(crate) hot_rounds: usize,
    /// The same for clients that discard, and over TLS.
    pub(crate) other_rounds: usize,
    /// From the first request of a turn until counting begins.
    pub(crate) warm_up: Duration,
    /// How long a turn with a hot blob is counted.
    pub(crate) hot_window: Duration,
    pub(crate) manifest_rounds: usize,
    /// How long a turn with the manifest is counted.
    pub(crate) manifest_window: Duration,
    /// Turns of each server with each cold fan-out.
    pub(crate) cold_rounds: usize,
    /// Bytes of the blob of the cold fan-out.
    pub(crate) cold_bytes: usize,
    /// Turns of berth with each range; the others take one.
    pub(crate) range_rounds: usize,
    /// Bytes of the blob whose end is asked for.
    pub(crate) range_bytes: usize,
    /// Turns with several upstream connections for one blob, and with one.
    pub(crate) connections_rounds: usize,
    /// Bytes of the blob that comes over them.
    pub(crate) connections_bytes: usize,
    /// Images that are pulled before a rest.
    pub(crate) pulls: usize,
    /// Bytes of the layer of each.
    pub(crate) pull_bytes: usize,
    /// How often memory is looked at, each time of new servers.
    pub(crate) memory_rounds: usize,
    /// How long a server rests before its memory is looked at.
    pub(crate) rest: Duration,
    /// Blobs of a large store.
    pub(crate) many_blobs: usize,
    /// Starts with a large store, if an earlier berth is compared.
    pub(crate) many_rounds: usize,
    /// How long the streams run under which its memory is looked at.
    pub(crate) streams_window: Duration,
}

impl Plan {
    /// The one to show figures of: about 20 minutes.
    pub(crate) fn full() -> Self {
        Self {
            hot_bytes: [MIB, 16 * MIB, 256 * MIB],
            hot_rounds: 5,
            other_rounds: 3,
            warm_up: Duration::from_millis(100),
            hot_window: Duration::from_millis(600),
            manifest_rounds: 5,
            manifest_window: Duration::from_secs(1),
            cold_rounds: 2,
            cold_bytes: 256 * MIB,
            range_rounds: 3,
            range_bytes: 1024 * MIB,
            connections_rounds: 2,
            connections_bytes: 256 * MIB,
            pulls: 100,
            pull_bytes: 4 * MIB,
            memory_rounds: 1,
            many_blobs: 1_000_000,
            many_rounds: 1,
            rest: Duration::from_secs(60),
            streams_window: Duration::from_secs(3),
        }
    }

    /// For figures of a berth before and after a change: about as long, with more turns of smaller things.
    pub(crate) fn against_before() -> Self {
        Self {
            hot_bytes: [MIB, 4 * MIB, 16 * MIB],
            hot_window: Duration::from_millis(400),
            hot_rounds: 7,
            other_rounds: 7,
            manifest_rounds: 9,
            cold_rounds: 7,
            cold_bytes: 64 * MIB,
            range_rounds: 7,
            range_bytes: 256 * MIB,
            connections_rounds: 7,
            connections_bytes: 64 * MIB,
            rest: Duration::from_secs(5),
            memory_rounds: 7,
            many_blobs: 20_000,
            many_rounds: 7,
            ..Self::full()
        }
    }

    /// About a minute, for figures that mean nothing.
    pub(crate) fn quick() -> Self {
        Self {
            hot_bytes: [MIB / 4, MIB, 8 * MIB],
            hot_rounds: 1,
            other_rounds: 1,
            warm_up: Duration::from_millis(20),
            hot_window: Duration::from_millis(80),
            manifest_rounds: 1,
            manifest_window: Duration::from_millis(100),
            cold_rounds: 1,
            cold_bytes: 8 * MIB,
            range_rounds: 1,
            range_bytes: 32 * MIB,
            connections_rounds: 1,
            connections_bytes: 8 * MIB,
            pulls: 10,
            pull_bytes: MIB / 4,
            memory_rounds: 1,
            many_blobs: 20_000,
            many_rounds: 1,
            rest: Duration::from_secs(2),
            streams_window: Duration::from_millis(200),
        }
    }
}
