//! No owner takes all of a limit from others (F8, F16): what one registry or client holds, however slowly it moves,
//! leaves room for every other at once, and its fair part soon. Waiting is proved by order: what holds is held shut.

use tokio::task::JoinHandle;

use crate::support::{
    Berth, Blob, Fault, Gate, Image, Open, Reply, Setup, Upstream, eventually, file_of, together,
    within_deadline,
};

/// Transfers at once (`FLIGHTS`).
const FLIGHTS: usize = 256;
/// What one client at one registry may have of them.
const FLIGHTS_OF_ONE: usize = 224;
/// Transfers without a reader (`UNATTENDED_MAX`).
const UNATTENDED: usize = 32;
/// What one client at one registry may have of transfers that pass through (`DIRECT`).
const DIRECT_OF_ONE: usize = 56;
/// Bytes that are fetched for a range in them.
const BLOCK: u64 = 1 << 20;
/// Where the log says that a transfer had to give way.
const GAVE_WAY: &str = "too slow to go on";

const EVIL: &str = "evil.test/x/y";
const GOOD: &str = "good.test/x/y";

/// A registry whose blobs stop short of their end until the gate opens.
async fn held(seed: u64, layers: usize) -> (Upstream, Image, Gate) {
    held_after(90_000, Image::of(seed, &vec![100_000; layers])).await
}

/// The same of an image: no body has more bytes before.
async fn held_after(bytes: u64, image: Image) -> (Upstream, Image, Gate) {
    let (upstream, gate) = (Upstream::start().await, Gate::new());
    upstream.image("x/y", "1", &image);
    upstream.on("GET", "/blobs/").fault(Fault::HoldAfter(bytes, gate.clone()));
    (upstream, image, gate)
}

fn both(evil: &Upstream, good: &Upstream) -> Setup {
    Berth::with("evil.test", evil).and("good.test", good)
}

/// Asks for all of these at once, and waits for none.
fn ask_all(berth: &Berth, repository: &str, blobs: &[Blob]) -> Vec<JoinHandle<Reply>> {
    let ask = |blob: &Blob| tokio::spawn(berth.get(&blob.path(repository)).into_future());
    blobs.iter().map(ask).collect()
}

/// The same, for answers that may break off or never come.
fn ask_in_vain(berth: &Berth, repository: &str, blobs: &[Blob]) -> Vec<JoinHandle<std::io::Result<Reply>>> {
    let ask = |blob: &Blob| tokio::spawn(berth.get(&blob.path(repository)).try_send());
    blobs.iter().map(ask).collect()
}

async fn expect_all(replies: Vec<JoinHandle<Reply>>, blobs: &[Blob]) {
    for (reply, blob) in replies.into_iter().zip(blobs) {
        assert_eq!(within_deadline("its turn", reply).await.unwrap().expect(200), &blob.content);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_registry_that_stands_still_keeps_no_other_from_its_seats() {
    let (evil, flood, _shut) = held(61, FLIGHTS + 4).await;
    let (good, image, gate) = held(62, 40).await;
    let single = Image::of(63, &[100_000]);
    good.image("x/y", "2", &single);
    let berth = both(&evil, &good).start().await;
    let evil_ones = ask_in_vain(&berth, EVIL, flood.layers());
    eventually("it has all it may have", async || evil.count("GET", "/blobs/") == FLIGHTS_OF_ONE).await;

    // The reserve: another registry's transfer begins at once, and ends.
    gate.open();
    let reply = within_deadline("another registry's blob", berth.get(&single.layer().path(GOOD))).await;
    assert_eq!(reply.expect(200), &single.layer().content);
    assert_eq!(evil.count("GET", "/blobs/"), FLIGHTS_OF_ONE);
    assert!(!berth.logs_contain(GAVE_WAY));

    // More than the reserve: what stands still gives way.
    let shut = Gate::new();
    good.behave();
    good.on("GET", "/blobs/").fault(Fault::HoldAfter(90_000, shut.clone()));
    good.forget();
    let good_ones = ask_all(&berth, GOOD, image.layers());
    eventually("all of them have begun", async || good.count("GET", "/blobs/") == image.layers().len()).await;
    shut.open();
    expect_all(good_ones, image.layers()).await;
    berth.until_logged(GAVE_WAY).await;
    evil_ones.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_had_to_give_way_goes_on_from_where_it_was() {
    let (evil, flood, gate) = held(64, FLIGHTS_OF_ONE).await;
    let (good, image, shut) = held(65, 40).await;
    let berth = both(&evil, &good).start().await;
    let evil_ones = ask_in_vain(&berth, EVIL, flood.layers());
    eventually("it has all it may have", async || evil.count("GET", "/blobs/") == FLIGHTS_OF_ONE).await;
    let good_ones = ask_all(&berth, GOOD, image.layers());
    eventually("the other has what it needs", async || good.count("GET", "/blobs/") == 40).await;
    shut.open();
    expect_all(good_ones, image.layers()).await;
    gate.open();
    evil.behave();
    for (reply, blob) in evil_ones.into_iter().zip(flood.layers()) {
        let reply = within_deadline("its end", reply).await.unwrap();
        if !reply.is_ok_and(|reply| reply.status == 200 && reply.complete) {
            assert_eq!(berth.get(&blob.path(EVIL)).await.expect(200), &blob.content);
            let again = evil.seen("GET", &blob.digest.to_string());
            let last = again.last().unwrap();
            assert!(last.header("range").is_some(), "it goes on from its partial file");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn logins_are_told_apart_behind_one_address() {
    let (upstream, flood, _shut) = held(66, FLIGHTS_OF_ONE + 8).await;
    let user = |name: &str| format!("{name}:{}\n", bcrypt::hash("secret", 4).unwrap());
    let users = file_of(&format!("{}{}", user("anna"), user("bert")));
    let setup = Berth::with("evil.test", &upstream).http(&format!("htpasswd = {users:?}"));
    let berth = setup.start().await;
    let ask = |blob: &Blob, name: &str| berth.get(&blob.path(EVIL)).basic(name, "secret");
    let (last, first) = flood.layers().split_last().unwrap();
    let annas: Vec<_> = first.iter().map(|blob| tokio::spawn(ask(blob, "anna").try_send())).collect();
    eventually("one has all it may have", async || upstream.count("GET", "/blobs/") == FLIGHTS_OF_ONE).await;
    let bert = ask(last, "bert").open().await;
    assert_eq!(bert.status, 200);
    assert_eq!(upstream.count("GET", "/blobs/"), FLIGHTS_OF_ONE + 1);
    annas.iter().for_each(JoinHandle::abort);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_clients_behind_one_address_start_a_cold_image_together() {
    let upstream = Upstream::start().await;
    let image = Image::of(67, &[300_000; 8]);
    upstream.image("x/y", "1", &image);
    let berth = Berth::with("good.test", &upstream).start().await;
    let asks: Vec<_> = image.blobs.iter().map(|blob| berth.get(&blob.path(GOOD))).collect();
    let manifest = berth.get(&format!("/v2/{GOOD}/manifests/1"));
    let replies = together(200, move |_| {
        let (manifest, asks) = (manifest.clone(), asks.clone());
        async move {
            let manifest = manifest.await;
            let blobs = together(asks.len(), move |at| asks[at].clone().into_future()).await;
            (manifest, blobs)
        }
    })
    .await;
    for (manifest, blobs) in replies {
        assert_eq!(manifest.expect(200), &image.manifest);
        for (reply, blob) in blobs.iter().zip(&image.blobs) {
            assert_eq!(reply.expect(200), &blob.content);
        }
    }
    for blob in &image.blobs {
        assert_eq!(upstream.count("GET", &blob.digest.to_string()), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn transfers_that_one_registrys_readers_left_do_not_end_anothers() {
    let (evil, flood, _shut) = held(68, UNATTENDED + 8).await;
    let (good, image, gate) = held(69, 1).await;
    let berth = both(&evil, &good).start().await;
    let mut left = Vec::new();
    for blob in flood.layers() {
        left.push(berth.get(&blob.path(EVIL)).open().await);
    }
    drop(left);
    eventually("its transfers go on alone", async || {
        berth.metric("berth_flights").await == UNATTENDED as f64
    })
    .await;
    drop(berth.get(&image.layer().path(GOOD)).open().await);
    eventually("one of them had to end", async || berth.metric("berth_flights").await == UNATTENDED as f64)
        .await;
    gate.open();
    berth.until_stored(&image.layer().path(GOOD)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_registrys_lazy_blobs_do_not_keep_anothers_from_being_completed() {
    // The block that a range is in comes, and the rest does not.
    let lazy = |seed, layers| held_after(BLOCK + 1, Image::of(seed, &vec![3 * BLOCK as usize; layers]));
    let (evil, flood, _shut) = lazy(70, 8).await;
    let (good, image, gate) = lazy(71, 1).await;
    gate.open();
    let berth = both(&evil, &good).sections("[cache]\ncomplete = \"always\"").start().await;
    for blob in flood.layers() {
        berth.get(&blob.path(EVIL)).range("0-99").await.expect(206);
    }
    eventually("it completes all it may", async || evil.count("GET", "/blobs/") == 8 + 4).await;
    berth.get(&image.layer().path(GOOD)).range("0-99").await.expect(206);
    berth.until_stored(&image.layer().path(GOOD)).await;
}

// === What passes through

/// A blob that is larger than what sockets buffer, and than what may be kept.
async fn passing() -> (Upstream, Berth, Blob) {
    let upstream = Upstream::start().await;
    let image = Image::of(72, &[48 << 20]);
    upstream.image("x/y", "1", &image);
    let setup = Berth::with("good.test", &upstream).sections("[cache]\nmax_bytes = \"3MiB\"");
    let berth = setup.start().await;
    let blob = image.layer().clone();
    (upstream, berth, blob)
}

/// One that takes the head of an answer, and nothing more.
async fn stalled(berth: &Berth, blob: &Blob, address: &str) -> Open {
    let answer = berth.get(&blob.path(GOOD)).coming_from(address).open().await;
    assert_eq!(answer.status, 200);
    answer
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_keeps_no_other_from_what_passes_through() {
    let (_upstream, berth, blob) = passing().await;
    let mut readers = Vec::new();
    for _ in 0..DIRECT_OF_ONE {
        readers.push(stalled(&berth, &blob, "127.0.0.1").await);
    }
    // At once.
    let reply = berth.get(&blob.path(GOOD)).coming_from("127.0.0.2").await;
    assert_eq!(reply.digest(), blob.digest);
    // And soon more than what is always left.
    let mut others = Vec::new();
    for _ in 0..16 {
        others.push(stalled(&berth, &blob, "127.0.0.2").await);
    }
    let mut cut = 0;
    for reader in readers {
        cut += usize::from(!reader.read().await.complete);
    }
    assert!((8..DIRECT_OF_ONE).contains(&cut), "{cut} had to give way");
    for other in others {
        assert_eq!(other.read().await.digest(), blob.digest, "they had less");
    }
}
