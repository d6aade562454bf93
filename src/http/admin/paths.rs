//! The paths of the admin API. The daemon answers them, and commands ask for them.

/// What every path of the API begins with.
pub const PREFIX: &str = "/api/";
/// Begins a verification of every stored file, or tells of one.
pub const VERIFY: &str = "/api/v1/verify";
/// Pins an image, or lists pins.
pub const PINS: &str = "/api/v1/pins";
/// Takes a pin back.
pub const UNPIN: &str = "/api/v1/unpin";
/// Checks tags upstream.
pub const REFRESH: &str = "/api/v1/refresh";
/// Reads the configuration again.
pub const RELOAD: &str = "/api/v1/reload";
