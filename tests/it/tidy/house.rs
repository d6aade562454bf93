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
pub(super) const FLOORS: [&[&str]; 12] = [
    &["fuzz"],
    &["bounded", "clock", "files", "net", "oci", "sync", "units"],
    &["context", "pace", "singleflight", "telemetry", "watch"],
    &["shares"],
    &["parsing"],
    &["store", "upstream"],
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
    ("cli", &["output remote", "folder login_check", "pin refresh verify"]),
    ("config", &["self", "changes shown"]),
    ("context", &["via"]),
    ("net", &["x509", "pem trust"]),
    (
        "oci",
        &[
            "self",
            "digest error json link range speaker",
            "document manifest name ranges referrers tags",
            "image",
            "route",
        ],
    ),
    ("telemetry", &["lines metrics"]),
];

/// Crates that have few homes, so that they can be replaced by changing these files.
pub(super) const HOMES: [(&str, &[&str]); 6] = [
    ("sled", &["src/store/index.rs"]),
    ("clap", &["src/cli.rs", "src/main.rs"]),
    (
        "prometheus",
        &[
            "src/telemetry/metrics.rs",
            "src/telemetry/metrics/configuration.rs",
            "src/telemetry/metrics/requests.rs",
            "src/telemetry/metrics/space.rs",
        ],
    ),
    ("toml", &["src/config.rs"]),
    ("listenfd", &["src/app/held.rs"]),
    ("sd_notify", &["src/app.rs"]),
];

/// Names that several types may have: each is always written with its module, as `store::Error`.
pub(super) const NAMES_OF_MANY: [&str; 2] = ["Config", "Error"];
