//! The data folder: what is kept in it and what has to go, and disks, files and power that fail.

mod bit_rot;
mod budget;
mod crash;
mod disk;
mod evict;
mod health;
mod index;
mod layout;
mod obstacles;
mod pin;
mod scale;
mod verify;
