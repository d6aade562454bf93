//! Which repositories are granted a digest: asks index and files, and grants durably. What follows from what
//! registries hold is decided in [`grants`].

use crate::oci::{Digest, Registry, Repo, Speaker};
use crate::store::blobs::open_files::Whose;
use crate::store::error::Error;
use crate::store::metadata::Metadata;
use crate::store::metadata::grants::{self, Holding, Holdings, merged};
use crate::store::metadata::records::{Grant, GrantFile, ManifestRecord, Proof};
use crate::store::metadata::refs::Ref;

impl Metadata {
    /// Whether `repo` may be served `digest`: by its own grant, or because it is public.
    pub(in crate::store) fn granted(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let stands = self.own_grant_stands(repo, digest)?;
        let whose = if self.index.is_public(digest) {
            Whose::Public
        } else if stands {
            Whose::Repo(repo)
        } else {
            return Ok(false);
        };
        self.open_files.grant(digest, whose);
        Ok(true)
    }

    fn own_grant_stands(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        let Some(grant) = self.known_grant(repo, digest)? else { return Ok(false) };
        if grant.proof.is_some() {
            return Ok(true);
        }
        if !grants::unproven_stand(&self.holdings(digest)?) {
            return Ok(false);
        }
        let kept = Grant { proof: Some(Proof::Kept), ..grant };
        if let Err(error) = self.grant(repo, digest, kept) {
            // It stands all the same, as long as nobody else comes to hold this.
            tracing::debug!(%repo, %digest, %error, "cannot write an earlier grant anew");
        }
        Ok(true)
    }

    fn known_grant(&self, repo: &Repo, digest: &Digest) -> Result<Option<Grant>, Error> {
        match self.index.grant(repo, digest) {
            Some(grant) => Ok(Some(grant)),
            None => self.own_grant(repo, digest),
        }
    }

    /// Whether `repo` has this with a credential, and no repository has it publicly.
    pub(in crate::store) fn is_private(&self, repo: &Repo, digest: &Digest) -> Result<bool, Error> {
        if self.index.is_public(digest) {
            return Ok(false);
        }
        Ok(self.known_grant(repo, digest)?.is_some_and(|grant| !grant.public))
    }

    /// Whether a claim of `speaker` for one of `registries` proves that a repository may be served the stored
    /// content. `registries` are the names of one registry.
    pub(in crate::store) fn is_vouched(
        &self,
        registries: &[Registry],
        digest: &Digest,
        speaker: Speaker,
    ) -> bool {
        let holdings = self.index.holdings(digest);
        holdings.is_some_and(|holdings| grants::is_vouched(&holdings, registries, speaker))
    }

    /// Grants a digest durably. A grant that the index or a file has already is durable. Returns whether the index
    /// did not have it.
    pub(in crate::store) fn grant(&self, repo: &Repo, digest: &Digest, grant: Grant) -> Result<bool, Error> {
        let grant = self.believed(digest, grant);
        if self.index.grant(repo, digest).is_some_and(|have| merged(have, grant) == have) {
            return Ok(false);
        }
        let _guard = self.lock(repo);
        let have = self.own_grant_unlocked(repo, digest)?;
        let all = have.map_or(grant, |have| merged(have, grant));
        if have != Some(all) {
            self.refs.write(repo, Ref::Blob(digest), &GrantFile::new(all, &repo.registry))?;
        }
        self.index.put_grant(repo, digest, all);
        Ok(true)
    }

    /// Returns a grant as far as it is believed: a parent cannot make public what came with a login of this berth's
    /// own.
    pub(in crate::store) fn believed(&self, digest: &Digest, grant: Grant) -> Grant {
        if !grant.public || grant.speaker != Speaker::Parent {
            return grant;
        }
        let holdings = self.index.holdings(digest).unwrap_or_default();
        let has_own_login = holdings.iter().any(|(_, holding)| holding.is_by_own_login());
        Grant { public: !has_own_login, ..grant }
    }

    /// Reads the grant of a repository from its files, and puts it into the index.
    fn own_grant(&self, repo: &Repo, digest: &Digest) -> Result<Option<Grant>, Error> {
        if !self.refs.exists(repo, Ref::Blob(digest)) && !self.refs.exists(repo, Ref::Manifest(digest)) {
            return Ok(None);
        }
        let _guard = self.lock(repo);
        let grant = self.own_grant_unlocked(repo, digest)?;
        if let Some(grant) = grant {
            self.index.put_grant(repo, digest, grant);
        }
        Ok(grant)
    }

    fn own_grant_unlocked(&self, repo: &Repo, digest: &Digest) -> Result<Option<Grant>, Error> {
        let as_blob = self.refs.read::<Grant>(repo, Ref::Blob(digest))?;
        let as_manifest = self.refs.read::<ManifestRecord>(repo, Ref::Manifest(digest))?;
        let as_manifest = as_manifest.map(|record| record.grant());
        Ok(match (as_blob, as_manifest) {
            (Some(blob), Some(manifest)) => Some(merged(blob, manifest)),
            (blob, manifest) => blob.or(manifest),
        })
    }

    /// Returns what each registry holds of a digest, from the files if the index is not complete.
    fn holdings(&self, digest: &Digest) -> Result<Holdings, Error> {
        if self.index.is_complete()
            && let Some(holdings) = self.index.holdings(digest)
        {
            return Ok(holdings);
        }
        let mut holdings = Holdings::new();
        for repo in self.refs.repositories()? {
            let Some(grant) = self.own_grant_unlocked(&repo, digest)? else { continue };
            let holding = Holding::of(grant);
            match holdings.iter_mut().find(|(registry, _)| *registry == repo.registry) {
                Some((_, held)) => *held = held.and(holding),
                None => holdings.push((repo.registry, holding)),
            }
        }
        Ok(holdings)
    }
}
