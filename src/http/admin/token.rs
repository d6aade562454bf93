//! The tokens that open the admin plane, and the files that they are in.
//!
//! berth makes a token when it starts, in `admin-token` of its data folder, which only its own user may read: whoever could
//! read it could read everything else there, too. Commands find it by the data folder that they are given.
//! `[admin] token_file` names a second one, which is the operator's own, such as a mounted secret; both count.
//!
//! They are read for every request, which are few, so that a token that is replaced counts at once and the one before no
//! longer. A file that could give a token away, or holds none, opens nothing: berth's own must be a regular file (no link)
//! that neither its group nor others can read, and is made anew at the next start; the operator's must not be readable by
//! others. Both hold at least 32 characters.

use std::fmt;
use std::io::{self, Read as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use ring::rand::{SecureRandom as _, SystemRandom};
use rustix::fs::OFlags;
use rustix::io::Errno;
use subtle::ConstantTimeEq as _;

use crate::files;

/// Name of the file with berth's own token in the data folder.
pub(super) const TOKEN_FILE: &str = "admin-token";
/// Random bytes of a token that berth makes.
const RANDOM_BYTES: usize = 32;
/// Characters of the shortest token that is accepted: 128 bits as hexadecimal digits.
const CHARS_MIN: usize = 32;
/// Bytes of the longest file that is read.
const FILE_BYTES_MAX: u64 = 4096;

/// A file with a token, and the rules for who may read it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenFile {
    path: PathBuf,
    /// Whether berth makes it.
    is_own: bool,
}

/// The token that a request must show.
pub struct AdminToken(String);

/// Why a file opens nothing.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// It is not there.
    #[error("there is no such file")]
    Missing,
    /// It cannot be read.
    #[error("it cannot be read: {0}")]
    Unreadable(io::Error),
    /// It is a folder, a pipe, or a link in the place of berth's own.
    #[error("expected a regular file")]
    NotAFile,
    /// Others may know it.
    #[error("others can read it (mode {mode:o}): expected {expected}")]
    Open {
        /// Its permissions.
        mode: u32,
        /// What they should be.
        expected: &'static str,
    },
    /// Its content is too short to be a secret, too long, or more than one word.
    #[error("expected one word of {CHARS_MIN} characters or more, as `openssl rand -hex 32` makes")]
    NotAToken,
}

impl TokenFile {
    /// berth's own, in its data folder.
    pub fn of_data_dir(folder: &Path) -> Self {
        Self { path: folder.join(TOKEN_FILE), is_own: true }
    }

    /// The operator's, at `path`.
    pub fn configured(path: &Path) -> Self {
        Self { path: path.to_owned(), is_own: false }
    }

    /// The path of the file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads the token, if it opens anything.
    ///
    /// # Errors
    /// [`Unusable`].
    pub fn read(&self) -> Result<AdminToken, Unusable> {
        // A mounted secret of Kubernetes is a link.
        let follow = if self.is_own { OFlags::NOFOLLOW } else { OFlags::empty() };
        let file = files::open(&self.path, follow).map_err(unusable)?;
        let found = file.metadata().map_err(Unusable::Unreadable)?;
        let (forbidden, expected) =
            if self.is_own { (0o077, "600") } else { (0o007, "600, or 640 for a group") };
        let mode = found.mode() & 0o777;
        if mode & forbidden != 0 {
            return Err(Unusable::Open { mode, expected });
        }
        let text = files::content(file.take(FILE_BYTES_MAX + 1)).and_then(files::text);
        let text = text.map_err(|error| match error.kind() {
            io::ErrorKind::InvalidData => Unusable::NotAToken,
            _ => Unusable::Unreadable(error),
        })?;
        AdminToken::parse(&text).ok_or(Unusable::NotAToken)
    }
}

impl fmt::Display for TokenFile {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())
    }
}

fn unusable(error: io::Error) -> Unusable {
    match error.kind() {
        io::ErrorKind::NotFound => Unusable::Missing,
        io::ErrorKind::InvalidInput => Unusable::NotAFile,
        // What `NOFOLLOW` says to a link.
        _ if error.raw_os_error() == Some(Errno::LOOP.raw_os_error()) => Unusable::NotAFile,
        _ => Unusable::Unreadable(error),
    }
}

impl AdminToken {
    /// Makes a new token.
    ///
    /// # Errors
    /// When the system has no random bytes.
    pub(super) fn generate() -> io::Result<Self> {
        let mut bytes = [0; RANDOM_BYTES];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| io::Error::other("the system has no random bytes"))?;
        Ok(Self(bytes.iter().map(|byte| format!("{byte:02x}")).collect()))
    }

    fn parse(text: &str) -> Option<Self> {
        let token = text.trim();
        let is_word = token.bytes().all(|byte| byte.is_ascii_graphic());
        let fits = (CHARS_MIN..).contains(&token.len()) && text.len() as u64 <= FILE_BYTES_MAX;
        (is_word && fits).then(|| Self(token.to_owned()))
    }

    /// Whether `shown` is this token. The time that this takes does not show how much of it is right.
    pub(super) fn is(&self, shown: &str) -> bool {
        self.0.as_bytes().ct_eq(shown.as_bytes()).into()
    }

    /// The secret, to be sent or written to its file.
    pub fn secret(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File, Permissions};
    use std::io::Write as _;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    fn write(path: &Path, mode: u32, content: impl AsRef<[u8]>) {
        File::create(path).unwrap().write_all(content.as_ref()).unwrap();
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
    }

    #[test]
    fn a_token_is_a_long_word_that_is_compared_whole() {
        let token = AdminToken::generate().unwrap();
        assert_eq!(token.secret().len(), 2 * RANDOM_BYTES);
        assert!(!AdminToken::generate().unwrap().is(token.secret()));
        let read = AdminToken::parse(&format!(" {}\r\n", token.secret())).unwrap();
        assert!(read.is(token.secret()));
        for other in ["", &token.secret()[1..], &format!("{}0", token.secret()), &"0".repeat(64)] {
            assert!(!token.is(other), "{other}");
        }
        let long = "x".repeat(5000);
        for none in [
            "",
            "\n",
            "secret",
            "two words of more than thirty-two characters",
            &long,
            "\u{e4}".repeat(40).as_str(),
        ] {
            assert!(AdminToken::parse(none).is_none(), "{none}");
        }
    }

    #[test]
    fn a_file_that_could_give_its_token_away_opens_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let own = TokenFile::of_data_dir(folder.path());
        let named = TokenFile::configured(own.path());
        let check = |own_is: &str, named_is: &str| {
            let said =
                |file: &TokenFile| file.read().map_or_else(|it| it.to_string(), |_| "right".to_owned());
            let said = [&own, &named].map(said);
            assert!(said[0].contains(own_is) && said[1].contains(named_is), "{said:?}");
        };
        let token = "0123456789abcdef".repeat(4);
        check("no such file", "no such file");
        write(own.path(), 0o600, &token);
        check("right", "right");
        write(own.path(), 0o640, &token);
        check("mode 640", "right");
        write(own.path(), 0o644, &token);
        check("mode 644", "mode 644");
        for content in [&b""[..], b"short", b"\xff\xfe"] {
            write(own.path(), 0o600, content);
            check("32 characters", "32 characters");
        }
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(own.path(), &elsewhere).unwrap();
        write(&elsewhere, 0o600, &token);
        symlink(&elsewhere, own.path()).unwrap();
        check("regular file", "right");
        fs::remove_file(&elsewhere).unwrap();
        check("regular file", "no such file");
        fs::remove_file(own.path()).unwrap();
        fs::create_dir(own.path()).unwrap();
        check("regular file", "regular file");
    }
}
