//! Amazon: logins for ECR, issued for keys that come from one of many places.
//!
//! `chain` chooses where the keys come from, `platform` has those of the machine, `profile` reads the files of AWS's tools, `sts` turns keys and tokens into
//! keys of a role, `sigv4` signs requests with them, and `ecr` asks for the login. `keys` and `region` are what all of
//! these speak of.

mod chain;
mod ecr;
mod keys;
mod platform;
mod profile;
mod region;
mod sigv4;
mod sts;

pub use self::ecr::EcrConfig;
pub use self::region::Region;

pub(crate) use self::ecr::Ecr;
