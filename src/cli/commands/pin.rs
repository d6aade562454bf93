//! `berth pin`, `unpin` and `pins`: images that eviction leaves alone.

use anyhow::{bail, ensure};

use crate::cli::folder::Folder;
use crate::cli::output::say;
use crate::http::admin::paths;
use crate::http::admin::types::{Pin, Pinned, UnpinCommand};
use crate::oci::{Image, Platform};

/// Pins an image, and prints what of it is stored.
pub(in crate::cli) async fn pin(
    folder: &Folder,
    image: Image,
    platforms: Vec<Platform>,
) -> anyhow::Result<bool> {
    let pin = Pin { image, platforms };
    let pinned: Pinned = match folder {
        Folder::Ours(store) => store.pin(pin).await?,
        Folder::Theirs(remote) => remote.post(paths::PINS, &pin).await?,
    };
    say(&line(&pinned))?;
    Ok(true)
}

/// Takes a pin back.
pub(in crate::cli) async fn unpin(folder: &Folder, image: Image) -> anyhow::Result<bool> {
    let is_removed: bool = match folder {
        Folder::Ours(store) => store.unpin(image.clone()).await?,
        Folder::Theirs(remote) => remote.post(paths::UNPIN, &UnpinCommand { image: image.clone() }).await?,
    };
    if !is_removed {
        let is_configured = pins(folder).await?.iter().any(|pinned| pinned.pin.image == image);
        ensure!(!is_configured, "{image} is pinned by a [[pin]] of the configuration");
        bail!("{image} is not pinned");
    }
    Ok(true)
}

/// Prints all pins.
pub(in crate::cli) async fn list(folder: &Folder) -> anyhow::Result<bool> {
    for pinned in pins(folder).await? {
        say(&line(&pinned))?;
    }
    Ok(true)
}

async fn pins(folder: &Folder) -> anyhow::Result<Vec<Pinned>> {
    match folder {
        Folder::Ours(store) => Ok(store.pins().await),
        Folder::Theirs(remote) => remote.get(paths::PINS).await,
    }
}

/// A pin as one line: its image, and what of it is stored.
fn line(pinned: &Pinned) -> String {
    let Pinned { pin: Pin { image, platforms }, configured, digest, here, bytes, missing } = pinned;
    let mut line = image.to_string();
    for platform in platforms {
        line += &format!(" {platform}");
    }
    if *configured {
        line += " (configured)";
    }
    line += &match (digest, here) {
        (None, _) | (_, 0) => ": nothing is here yet, it stays once it is pulled".to_owned(),
        (Some(digest), here) => format!(": {digest}, {here} manifests and blobs here, {bytes} bytes"),
    };
    if *here > 0 && *missing > 0 {
        line += &format!(", {missing} not here yet");
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn a_pin_says_what_of_it_is_here() {
        let pin = Pin { image: "alpine:3".parse().unwrap(), platforms: vec!["linux/amd64".parse().unwrap()] };
        let digest = Digest::of(Algorithm::Sha256, b"x");
        let mut pinned = Pinned { pin, configured: false, digest: None, here: 0, bytes: 0, missing: 1 };
        let of = "docker.io/library/alpine:3 linux/amd64";
        assert_eq!(line(&pinned), format!("{of}: nothing is here yet, it stays once it is pulled"));
        pinned = Pinned { configured: true, digest: Some(digest), here: 4, bytes: 9, missing: 1, ..pinned };
        let here = "4 manifests and blobs here, 9 bytes, 1 not here yet";
        assert_eq!(line(&pinned), format!("{of} (configured): {digest}, {here}"));
    }
}
