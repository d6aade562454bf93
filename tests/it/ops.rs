//! Berth as an operator has it: configuration, commands, signals, metrics, and the recipes that README prints.

mod admin;
mod commands;
mod config;
mod drain;
mod held;
mod local_users;
mod recipes;
mod reload;
mod run_script;
mod samples;
mod serve;
mod units;
