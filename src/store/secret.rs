//! Small secrets in the data folder, for its own user's eyes alone.

use crate::store::disk::Look;
use crate::store::{Error, Store};

/// Neither a group that may read the rest, nor anybody else.
const SECRET: Look = Look { mode: 0o600, modified: None };

impl Store {
    /// Puts `content` into the file `name` of the data folder, in the place of any file or link that is there.
    ///
    /// # Errors
    /// [`Error::Full`] or [`Error::Io`].
    pub async fn put_secret(&self, name: &'static str, content: String) -> Result<(), Error> {
        self.ask(move |ledger| {
            ledger.disk.replace(&ledger.disk.root().join(name), content.as_bytes(), SECRET)
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};
    use std::sync::Arc;

    use super::*;

    #[tokio::test]
    async fn a_secret_is_readable_by_its_user_alone_and_follows_no_link() {
        let folder = tempfile::tempdir().unwrap();
        let store = Store::open(folder.path(), Arc::default()).await.unwrap();
        let (path, elsewhere) = (folder.path().join("secret"), folder.path().join("elsewhere"));
        File::create(&elsewhere).unwrap().write_all(b"mine").unwrap();
        symlink(&elsewhere, &path).unwrap();
        store.put_secret("secret", "one".to_owned()).await.unwrap();
        let found = fs::symlink_metadata(&path).unwrap();
        assert!(found.is_file() && found.permissions().mode() & 0o777 == 0o600);
        assert_eq!(
            (fs::read(&path).unwrap(), fs::read(&elsewhere).unwrap()),
            (b"one".into(), b"mine".into())
        );
        fs::remove_file(&path).unwrap();
        fs::create_dir(&path).unwrap();
        store.put_secret("secret", "two".to_owned()).await.unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"two", "a folder in its place gives way");
    }
}
