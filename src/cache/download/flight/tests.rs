//! Who joins, who leads, who is cut, and what readers see of a flight.

use std::time::Duration;

use tokio::time::Instant;

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

fn digest(text: &str) -> Digest {
    Digest::of(Algorithm::Sha256, text.as_bytes())
}

fn enter(flights: &Arc<Flights>, content: &str, name: &str, public: bool, granted: bool) -> FlightEntry {
    let (repo, context) = (repo(name), RequestContext::default());
    let request = FlightRequest { repo: &repo, granted, claim: None, asked: None, context: &context };
    flights.enter(&PartialKey::new(&repo.registry, &digest(content)), public, &request)
}

#[test]
fn only_who_is_granted_the_digest_may_join() {
    let check = |public: bool, origin: &str, asks: &str, granted: bool, joins: bool| {
        let flights = Flights::new();
        let lead = enter(&flights, "x", origin, public, false);
        assert!(matches!(lead, FlightEntry::Lead(..)));
        let joined = matches!(enter(&flights, "x", asks, false, granted), FlightEntry::Follow(_));
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
        let FlightEntry::Lead(flight, reader) = enter(&flights, &number.to_string(), "a/b", true, true)
        else {
            panic!("nobody else asked for it")
        };
        flight.mark_slot();
        drop(reader);
        under_way.push(flight);
    }
    let last = under_way.pop().unwrap();
    tokio::time::timeout(Duration::from_secs(5), last.abandoned()).await.expect("one too many is stopped");
    assert!(tokio::time::timeout(Duration::ZERO, under_way[0].abandoned()).await.is_err());
}

#[tokio::test]
async fn a_flight_that_is_left_before_it_has_a_slot_ends() {
    let flights = Flights::new();
    let lead = || match enter(&flights, "x", "a/b", true, true) {
        FlightEntry::Lead(flight, reader) => (flight, reader),
        _ => panic!("nobody else asked for it"),
    };
    let (flight, reader) = lead();
    drop(reader);
    tokio::time::timeout(Duration::from_secs(5), flight.abandoned()).await.expect("nobody wants it");
    flights.remove(&flight);
    let (flight, reader) = lead();
    flight.mark_slot();
    drop(reader);
    assert!(tokio::time::timeout(Duration::ZERO, flight.abandoned()).await.is_err(), "it goes on alone");
    flights.requeue(&flight);
    tokio::time::timeout(Duration::from_secs(5), flight.abandoned()).await.expect("nobody wants it");
}

#[tokio::test]
async fn who_joins_a_flight_that_is_stopping_waits_for_its_end() {
    let flights = Flights::new();
    let enter = || enter(&flights, "x", "a/b", true, true);
    let FlightEntry::Lead(flight, mut first) = enter() else { panic!("nobody else asked for it") };
    flight.announce(file(1 << 20), Some(1 << 20), RangeSet::prefix(10));
    assert!(first.wait_for_file().await.unwrap().is_some());
    flights.abandon_all();
    let FlightEntry::Follow(mut late) = enter() else { panic!("it is still there") };
    assert!(tokio::time::timeout(Duration::ZERO, late.wait_for_file()).await.is_err());
    flight.end(FlightEnd::Failed(Error::GivenUp));
    assert!(matches!(late.wait_for_file().await, Err(Error::GivenUp)));
}

#[tokio::test(start_paused = true)]
async fn a_reader_without_progress_is_cut() {
    let flights = Flights::new();
    let FlightEntry::Lead(flight, mut reader) = enter(&flights, "x", "a/b", true, true) else {
        panic!("nobody else asked for it")
    };
    flight.announce(file(1 << 20), Some(1 << 20), RangeSet::prefix(10));
    assert_eq!(reader.wait_beyond(0, true).await.unwrap(), 10);
    assert!(matches!(reader.wait_beyond(10, true).await, Err(Error::Stalled(_))));
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
        stalled = reader.wait_beyond(10, true) => assert!(matches!(stalled, Err(Error::Stalled(_)))),
        () = elsewhere => {}
    }
    assert_eq!(begun.elapsed(), STALL);
}
