//! `berth refresh`: checks now what a tag means upstream.

use anyhow::{Context as _, bail};

use crate::cli::folder::Folder;
use crate::cli::output::say;
use crate::http::admin::paths;
use crate::http::admin::types::{RefreshCommand, RefreshOutcome, Refreshed, RefreshedTags};
use crate::oci::{Image, Reference};

/// Has the daemon check a tag, or all known tags of its repository, and prints the results. Returns whether upstream has
/// confirmed every one.
pub(in crate::cli) async fn run(folder: &Folder, image: Image, all_tags: bool) -> anyhow::Result<bool> {
    let Folder::Theirs(remote) = folder else {
        bail!("no daemon runs on this data folder: tags are checked by the daemon that serves them");
    };
    let mut is_confirmed = true;
    let mut after = None;
    loop {
        let command = RefreshCommand { image: image.clone(), all_tags, after };
        let RefreshedTags { tags, more } = remote.post(paths::REFRESH, &command).await?;
        for refreshed in &tags {
            say(&line(refreshed))?;
            is_confirmed &= refreshed.outcome.is_confirmed();
        }
        if !more {
            return Ok(is_confirmed);
        }
        let last = tags.last().context("the daemon says that there is more, and gives nothing")?;
        after = match &last.image.reference {
            Reference::Tag(tag) => Some(tag.to_string()),
            Reference::Digest(_) => bail!("the daemon has checked something that is no tag"),
        };
    }
}

/// The result of one check, as a line.
fn line(Refreshed { image, outcome }: &Refreshed) -> String {
    match outcome {
        RefreshOutcome::Unchanged { digest } => format!("{image}: unchanged, {digest}"),
        RefreshOutcome::Moved { from, to } => format!("{image}: moved from {from} to {to}"),
        RefreshOutcome::New { digest } => format!("{image}: not known before, {digest}"),
        RefreshOutcome::Gone { error } => format!("{image}: gone: {error}"),
        RefreshOutcome::Failed { error } => format!("{image}: could not be checked: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::{Algorithm, Digest};

    #[test]
    fn every_outcome_has_its_line_and_travels() {
        let (a, b) = (Digest::of(Algorithm::Sha256, b"a"), Digest::of(Algorithm::Sha256, b"b"));
        let check = |outcome: RefreshOutcome, expected: &str, is_confirmed: bool| {
            let refreshed = Refreshed { image: "alpine:3".parse().unwrap(), outcome };
            assert_eq!(line(&refreshed), format!("docker.io/library/alpine:3: {expected}"));
            assert_eq!(refreshed.outcome.is_confirmed(), is_confirmed, "{expected}");
            let text = serde_json::to_string(&refreshed).unwrap();
            assert_eq!(serde_json::from_str::<Refreshed>(&text).unwrap(), refreshed, "{text}");
        };
        check(RefreshOutcome::Unchanged { digest: a }, &format!("unchanged, {a}"), true);
        check(RefreshOutcome::Moved { from: a, to: b }, &format!("moved from {a} to {b}"), true);
        check(RefreshOutcome::New { digest: a }, &format!("not known before, {a}"), true);
        check(RefreshOutcome::Gone { error: "no".to_owned() }, "gone: no", false);
        check(RefreshOutcome::Failed { error: "why".to_owned() }, "could not be checked: why", false);
    }
}
