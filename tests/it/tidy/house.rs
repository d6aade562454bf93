//! The plan of the house: floors, rooms, homes. A new room gets its place here, and a sub-room that of its room.

use super::order::Room;

/// Lines of a file without its tests.
pub(super) const LINES_MAX: usize = 500;
/// Files in a folder.
pub(super) const FILES_MAX: usize = 15;
/// Files that use each other in a circle.
pub(super) const CIRCLE_MAX: usize = 5;
/// Files with inherent methods of one type.
pub(super) const SPREAD_MAX: usize = 2;

/// Top-level modules from the lowest floor up. A module uses those of lower floors only.
pub(super) const FLOORS: &[&[&str]] = &[
    &["fuzz"],
    &["bounded", "clock", "files", "oci", "sync", "units"],
    &["context", "ratelimit", "singleflight", "telemetry", "watch"],
    &["shares"],
    &["parsing"],
    &["net", "store"],
    &["access", "credentials"],
    &["remote"],
    &["upstream"],
    &["cache"],
    &["http"],
    &["config"],
    &["app"],
    &["cli"],
    &["main"],
];

/// The sub-rooms of each room from the lowest floor up, those of one floor in one text. They use those of lower floors of
/// their room only. `self` is the room's own file; not named, it is above them all. A room inside a room can be named, too:
/// `upstream::cloud`.
pub(super) const ROOMS: &[Room] = &[
    ("access", &["htpasswd networks peers", "password_checks", "logins"]),
    (
        "cache",
        &[
            "config error fairness mismatches",
            "download upstreams",
            "negative_cache oversized passthrough",
            "claims",
            "blobs",
            "manifests",
            "offline_report tags",
            "lists",
        ],
    ),
    (
        "cache::download",
        &[
            "coverage speed",
            "schedule",
            "cursors",
            "flight",
            "writer",
            "connection",
            "coordinator",
            "downloader",
        ],
    ),
    ("cache::tags", &["freshness", "recent_failures", "checks", "refresh resolver"]),
    ("cache::blobs", &["chunk", "blob", "self"]),
    ("cli", &["output admin_client", "exit folder", "commands"]),
    ("config", &["redact", "raw", "self", "diff settle shown"]),
    ("context", &["via"]),
    (
        "credentials",
        &[
            "command error jwt login oauth",
            "renewing service",
            "cloud helper",
            "docker_config",
            "file vault",
            "config issued",
            "source",
        ],
    ),
    (
        "remote",
        &[
            "error event message mirror retry_after",
            "client redirect rewrite",
            "auth",
            "endpoint",
            "limits",
            "transport",
            "handle",
            "exchange",
            "requests upkeep",
        ],
    ),
    ("telemetry", &["log_throttle log_writer metrics"]),
    (
        "net",
        &[
            "ip_class secret timeouts tls url",
            "error",
            "client_certificate headers lookups user_agent",
            "guard",
            "proxy",
            "pool",
            "client",
        ],
    ),
    ("net::tls", &["x509", "pem trust"]),
    ("http", &["server", "config", "registry", "admin"]),
    (
        "oci",
        &[
            "self",
            "digest error json link range speaker",
            "document manifest name ranges referrers tags",
            "graph image",
            "route",
        ],
    ),
    (
        "store",
        &[
            "blocking error malloc",
            "disk",
            "blobs",
            "metadata",
            "integrity",
            "contents",
            "eviction",
            "layout partial",
            "maintenance",
            "self",
            "requests",
        ],
    ),
    ("store::disk", &["files", "lock obstacle privacy", "health", "self", "probe"]),
    ("store::blobs", &["mmap range_set soundness", "blob_file piece_map", "open_files partials self"]),
    ("store::metadata", &["progress records", "grants refs", "index stale", "self", "granted rebuild"]),
    (
        "store::metadata::index",
        &["guard tag_cache trees", "counters key", "blob_use database", "inventory", "self", "records"],
    ),
    ("store::integrity", &["damaged", "self", "verify", "recheck scrub"]),
    ("store::eviction", &["pin plan sweep_lock", "budget owners pins", "picture refs", "sweep", "self"]),
    ("store::layout", &["index_json", "adopt render"]),
];

/// Crates that have few homes, so that they can be replaced by changing these files.
pub(super) const HOMES: &[(&str, &[&str])] = &[
    ("sled", &["src/store/metadata/index/database.rs"]),
    ("clap", &["src/cli.rs", "src/main.rs"]),
    ("governor", &["src/ratelimit.rs"]),
    (
        "prometheus",
        &[
            "src/telemetry/metrics.rs",
            "src/telemetry/metrics/clients.rs",
            "src/telemetry/metrics/configuration.rs",
            "src/telemetry/metrics/content.rs",
            "src/telemetry/metrics/families.rs",
            "src/telemetry/metrics/requests.rs",
            "src/telemetry/metrics/space.rs",
            "src/telemetry/metrics/storage.rs",
            "src/telemetry/metrics/upstreams.rs",
        ],
    ),
    ("toml", &["src/config/raw.rs", "src/config/redact.rs"]),
    ("listenfd", &["src/app/systemd.rs"]),
    ("sd_notify", &["src/app/systemd.rs"]),
];

/// Names that several types may have: each is always written with its module, as `store::Error`.
pub(super) const NAMES_OF_MANY: [&str; 2] = ["Config", "Error"];
