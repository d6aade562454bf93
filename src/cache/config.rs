//! `[cache]`: what is kept, and how much of it.

use serde::Deserialize;

/// What is kept: `[cache]`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {}
