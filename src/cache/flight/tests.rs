//! Who joins, who leads, who is cut, and what readers see of a flight.

use std::time::Duration;

use tokio::time::Instant;

use super::progress::{toward, visible};
use super::reader::STALL;
use super::*;
use crate::cache::error::Error;
use crate::context::RequestContext;
use crate::oci::Algorithm;

fn repo(name: &str) -> Repo {
    Repo::new("harbor.example.com".parse().unwrap(), name.parse().unwrap())
}

fn file(total: u64) -> BlobFile {
    BlobFile::new(tempfile::tempfile().unwrap(), total)
}

fn progress(total: u64, there: &[(u64, u64)]) -> Progress {
    let mut have = Pieces::default();
    there.iter().for_each(|(start, end)| have.insert(Span { start: *start, end: *end }));
    Progress { file: Some(file(total)), total: Some(total), have, ..Progress::default() }
}

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn enter(flights: &Arc<Flights>, content: &str, name: &str, public: bool, granted: bool) -> Entry {
    let (repo, context) = (repo(name), RequestContext::default());
    let asker = Asker { repo: &repo, granted, claim: None, asked: None, context: &context };
    flights.enter(&PartialKey::new(&repo.registry, &digest(content)), public, &asker)
}

#[test]
fn the_end_is_held_back_until_it_is_proven() {
    let check = |have: u64, end: Option<End>, held: bool, expected: u64| {
        let progress = Progress { end, ..progress(100_000, &[(0, have)]) };
        assert_eq!(visible(&progress, 0, held), expected);
    };
    check(10_000, None, true, 10_000);
    check(100_000, None, true, 100_000 - HOLD_BACK);
    check(100_000, None, false, 100_000);
    check(100_000, Some(End::Proven), true, 100_000);
    check(100_000, Some(End::Failed(Error::Mismatch)), true, 100_000 - HOLD_BACK);
    assert_eq!(visible(&Progress::default(), 0, true), 0);
}

#[test]
fn of_a_content_of_unknown_size_the_last_that_has_come_is_held_back() {
    let check = |have: u64, total: Option<u64>, end: Option<End>, expected: u64| {
        let progress = Progress { end, total, ..progress(0, &[(0, have)]) };
        assert_eq!(visible(&progress, 0, true), expected, "{have} {total:?}");
    };
    check(10_000, None, None, 0);
    check(100_000, None, None, 100_000 - HOLD_BACK);
    check(100_000, Some(200_000), None, 100_000);
    check(100_000, Some(100_000), None, 100_000 - HOLD_BACK);
    check(100_000, Some(100_000), Some(End::Proven), 100_000);
}

#[test]
fn of_a_page_nothing_is_seen_before_it_is_proven() {
    let page = Progress { is_page: true, ..progress(1 << 20, &[(0, 500_000)]) };
    for held in [true, false] {
        assert_eq!(visible(&page, 5, held), 0);
        assert_eq!(toward(&page, 5, held).0, 500_000, "but it comes nearer");
        let proven = Progress { end: Some(End::Proven), ..page.clone() };
        assert_eq!(visible(&proven, 5, held), 500_000);
    }
}

#[test]
fn a_reader_sees_the_piece_that_it_stands_in() {
    let progress = progress(1 << 20, &[(0, 10), (20, 30), (1_000_000, 1 << 20)]);
    let check = |position: u64, held: bool, seen: u64, near: u64| {
        assert_eq!(visible(&progress, position, held), seen, "from {position}");
        assert_eq!(toward(&progress, position, held).0, near, "toward {position}");
    };
    check(5, true, 10, 10);
    check(10, false, 10, 10);
    check(15, false, 15, 10);
    check(25, false, 30, 30);
    check(1_000_000, false, 1 << 20, 1 << 20);
    check(1_000_000, true, (1 << 20) - HOLD_BACK, 20 + (1 << 20) - 1_000_000);
}

#[test]
fn only_who_is_granted_the_digest_may_join() {
    let check = |public: bool, origin: &str, asks: &str, granted: bool, joins: bool| {
        let flights = Flights::new();
        let lead = enter(&flights, "x", origin, public, false);
        assert!(matches!(lead, Entry::Lead(..)));
        let joined = matches!(enter(&flights, "x", asks, false, granted), Entry::Join(_));
        assert_eq!(joined, joins, "{public} {origin} {asks} {granted}");
    };
    check(false, "a/private", "a/private", false, true);
    check(false, "a/private", "b/other", false, false);
    check(false, "a/private", "b/other", true, true);
    check(true, "a/public", "b/other", false, true);
}

#[tokio::test]
async fn flights_without_readers_are_bounded() {
    let flights = Flights::new();
    let mut under_way = Vec::new();
    for number in 0..=UNATTENDED_MAX {
        let Entry::Lead(flight, reader) = enter(&flights, &number.to_string(), "a/b", true, true) else {
            panic!("nobody else asked for it")
        };
        flight.be_seated();
        drop(reader);
        under_way.push(flight);
    }
    let last = under_way.pop().unwrap();
    tokio::time::timeout(Duration::from_secs(5), last.abandoned()).await.expect("one too many is stopped");
    assert!(tokio::time::timeout(Duration::ZERO, under_way[0].abandoned()).await.is_err());
}

#[tokio::test]
async fn a_flight_that_is_left_before_it_has_a_seat_ends() {
    let flights = Flights::new();
    let lead = || match enter(&flights, "x", "a/b", true, true) {
        Entry::Lead(flight, reader) => (flight, reader),
        _ => panic!("nobody else asked for it"),
    };
    let (flight, reader) = lead();
    drop(reader);
    tokio::time::timeout(Duration::from_secs(5), flight.abandoned()).await.expect("nobody wants it");
    flights.leave(&flight);
    let (flight, reader) = lead();
    flight.be_seated();
    drop(reader);
    assert!(tokio::time::timeout(Duration::ZERO, flight.abandoned()).await.is_err(), "it goes on alone");
    flights.unseat(&flight);
    tokio::time::timeout(Duration::from_secs(5), flight.abandoned()).await.expect("nobody wants it");
}

#[tokio::test]
async fn who_joins_a_flight_that_is_stopping_waits_for_its_end() {
    let flights = Flights::new();
    let enter = || enter(&flights, "x", "a/b", true, true);
    let Entry::Lead(flight, mut first) = enter() else { panic!("nobody else asked for it") };
    flight.announce(file(1 << 20), Some(1 << 20), Pieces::prefix(10));
    assert!(first.file().await.unwrap().is_some());
    flights.abandon_all();
    let Entry::Join(mut late) = enter() else { panic!("it is still there") };
    assert!(tokio::time::timeout(Duration::ZERO, late.file()).await.is_err());
    flight.end(End::Failed(Error::GivenUp));
    assert!(matches!(late.file().await, Err(Error::GivenUp)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_progress_is_cut() {
    let flights = Flights::new();
    let Entry::Lead(flight, mut reader) = enter(&flights, "x", "a/b", true, true) else {
        panic!("nobody else asked for it")
    };
    flight.announce(file(1 << 20), Some(1 << 20), Pieces::prefix(10));
    assert_eq!(reader.beyond(0, true).await.unwrap(), 10);
    assert!(matches!(reader.beyond(10, true).await, Err(Error::Stalled(_))));
    // What comes elsewhere does not help it.
    let begun = Instant::now();
    let elsewhere = async {
        loop {
            tokio::time::sleep(STALL / 3).await;
            let at = 500_000 + begun.elapsed().as_millis() as u64;
            flight.advance(Span { start: at, end: at + 1 });
        }
    };
    tokio::select! {
        stalled = reader.beyond(10, true) => assert!(matches!(stalled, Err(Error::Stalled(_)))),
        () = elsewhere => {}
    }
    assert_eq!(begun.elapsed(), STALL);
}
