//! The tests of the whole: a fake registry, a running berth, a client. One binary; a module per feature.

#![allow(clippy::unwrap_used, reason = "a failed assumption of a test is a failed test")]

mod support;

mod access;
mod admin;
mod auth;
mod budget;
mod clients;
mod clients_itself;
mod clouds;
mod cold;
mod config;
mod crash;
mod crash_itself;
mod crowd;
mod disk;
mod drain;
mod evict;
mod fallback;
mod flight;
mod grants;
mod health;
mod hedge;
mod hostile;
mod hot;
mod index;
mod layout;
mod limits;
mod listing;
mod login_check;
mod lying;
mod never_asked;
mod offline;
mod outage;
mod pin;
mod pull;
mod ranges;
mod reach;
mod redirects;
mod referrers;
mod refresh;
mod reload;
mod rotation;
mod samples;
mod scale;
mod serve;
mod support_itself;
mod tags;
mod tidy;
mod tiers;
mod tls;
mod vault;
mod verify;
