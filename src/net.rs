//! What both ends of TLS need: certificates and keys as files have them, and whom to believe.

pub mod pem;
pub mod trust;
pub mod x509;
