//! The users of an htpasswd file, and the check of a password.
//!
//! Passwords are bcrypt only, which reads 72 bytes and repeats a shorter password, with a zero byte after it. So a longer
//! password would be right whenever its beginning is, and one with a zero byte could be: neither is ever right here.
//!
//! A wrong password takes the same time for every name, in the file or not: that of the highest cost in the file.

use std::collections::HashMap;
use std::path::Path;

use anyhow::{Context as _, ensure};
use bcrypt::HashParts;

use crate::files;

/// Number of bytes of a password that bcrypt reads.
const PASSWORD_BYTES_MAX: usize = 72;
/// The bcrypt costs that a hash may have, as `htpasswd -C` accepts them. Each is twice the one before, and the highest takes
/// some ten seconds, also for every name that is not in the file.
const COSTS: std::ops::RangeInclusive<u32> = 4..=17;
/// The bcrypt cost of a check against a file without users.
const COST_DEFAULT: u32 = 10;

/// The users of a file.
#[derive(Debug, Default)]
pub(super) struct Users {
    hashes: HashMap<String, Hash>,
    /// The highest cost of all hashes.
    cost: Option<u32>,
}

/// The bcrypt hash that a password is checked against.
#[derive(Clone, Debug)]
pub(super) struct Hash {
    text: String,
    cost: u32,
    /// The cost of a wrong password.
    cost_if_wrong: u32,
    /// Whether the user is in the file. If not, every password is wrong.
    is_of_user: bool,
}

impl Users {
    /// Reads a file.
    ///
    /// # Errors
    /// Names file and line, and what was expected.
    pub(super) fn load(path: &Path) -> anyhow::Result<Self> {
        let here = || format!("htpasswd {}", path.display());
        let text = files::read_text(path).with_context(here)?;
        let mut users = Self::default();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            users.add(line).with_context(|| format!("{}: line {}", here(), number + 1))?;
        }
        let cost_if_wrong = users.cost();
        for hash in users.hashes.values_mut() {
            hash.cost_if_wrong = cost_if_wrong;
        }
        Ok(users)
    }

    fn add(&mut self, line: &str) -> anyhow::Result<()> {
        let (user, text) = line.split_once(':').context("expected user:hash")?;
        let parts: HashParts = text.parse().ok().context("expected a bcrypt hash, as `htpasswd -B` makes")?;
        let cost = parts.get_cost();
        ensure!(COSTS.contains(&cost), "expected a bcrypt cost of 4 to 17, as `htpasswd -B -C` takes");
        self.cost = self.cost.max(Some(cost));
        let hash = Hash { text: text.to_owned(), cost, cost_if_wrong: cost, is_of_user: true };
        self.hashes.insert(user.to_owned(), hash);
        Ok(())
    }

    pub(super) fn count(&self) -> usize {
        self.hashes.len()
    }

    /// The hash that a password of `user` is checked against.
    pub(super) fn hash(&self, user: &str) -> Hash {
        /// Salt and hash of nothing that anybody can type.
        const NOBODY: &str = "abcdefghijklmnopqrstuuQ6sVhzcAs1BPvGZvRDEbDKy0v6kBJCi";
        self.hashes.get(user).cloned().unwrap_or_else(|| {
            let cost = self.cost();
            Hash { text: format!("$2b${cost:02}${NOBODY}"), cost, cost_if_wrong: cost, is_of_user: false }
        })
    }

    fn cost(&self) -> u32 {
        self.cost.unwrap_or(COST_DEFAULT)
    }
}

impl Hash {
    /// Whether the user is in the file.
    pub(super) fn is_of_user(&self) -> bool {
        self.is_of_user
    }

    /// The hash as the file has it.
    pub(super) fn text(&self) -> &str {
        &self.text
    }

    /// Whether this is the password. The check takes long by design.
    pub(super) fn is_of(&self, password: &str) -> bool {
        if bcrypt::verify(password, &self.text).unwrap_or(false) {
            return self.is_of_user;
        }
        for cost in self.rest() {
            // The result does not matter, and the time must not show that.
            std::hint::black_box(bcrypt::bcrypt(cost, [0; 16], b"nobody\0"));
        }
        false
    }

    /// The costs of the further work after a wrong password: each cost is twice the one before, so that all together with
    /// the check itself are as much as the highest.
    fn rest(&self) -> impl Iterator<Item = u32> + use<> {
        self.cost..self.cost_if_wrong
    }
}

/// Whether bcrypt would take a part of this password for the whole.
pub(super) fn is_cut_by_bcrypt(password: &str) -> bool {
    password.len() > PASSWORD_BYTES_MAX || password.contains('\0')
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn users(lines: &str) -> anyhow::Result<Users> {
        let mut file = tempfile::NamedTempFile::new().unwrap();
        file.write_all(lines.as_bytes()).unwrap();
        Users::load(file.path())
    }

    fn hash(password: &str, cost: u32) -> String {
        bcrypt::hash(password, cost).unwrap()
    }

    #[test]
    fn only_bcrypt_that_can_be_checked_is_taken() {
        let fine = hash("a", 4);
        for bad in [
            "anna",
            "anna:$apr1$abc$def",
            "anna:plain",
            "anna:$2y$10$short",
            &format!("anna:{fine}x"),
            &format!("anna:{}", fine.replace("$04$", "$03$")),
            &format!("anna:{}", fine.replace("$04$", "$18$")),
            &format!("anna:{}", fine.replace("$04$", "$31$")),
        ] {
            let error = format!("{:#}", users(&format!("# people\n{bad}\n")).unwrap_err());
            assert!(error.contains("line 2: expected"), "{bad}: {error}");
            assert!(!error.contains(bad.split_once(':').map_or("$", |(_, hash)| hash)), "{error}");
        }
        assert_eq!(users(&format!("\n# people\n anna:{fine} \n")).unwrap().count(), 1);
    }

    #[test]
    fn a_wrong_password_costs_the_same_for_every_name() {
        let users = users(&format!("svc:{}\nadmin:{}\n", hash("a", 4), hash("b", 7))).unwrap();
        for user in ["svc", "admin", "nobody", ""] {
            let hash = users.hash(user);
            let work = hash.rest().chain([hash.cost]).map(|cost| 1_u64 << cost).sum::<u64>();
            assert_eq!(work, 1 << 7, "{user}");
            assert!(!hash.is_of("wrong"), "{user}");
        }
        assert!(users.hash("svc").is_of("a") && users.hash("admin").is_of("b"));
        assert_eq!(Users::default().hash("nobody").cost, COST_DEFAULT);
        assert!(!Users::default().hash("nobody").is_of("a"));
    }

    #[test]
    fn what_bcrypt_would_not_see_whole_is_known() {
        // Each of them is right for the hash of "b": that is why.
        let (b, long) = ("b", "b".repeat(72));
        for other in ["b\0b", "b\0b\0b"] {
            assert!(bcrypt::verify(other, &hash(b, 4)).unwrap() && is_cut_by_bcrypt(other));
        }
        for other in [format!("{long}x"), format!("{long}\0")] {
            assert!(bcrypt::verify(&other, &hash(&long, 4)).unwrap() && is_cut_by_bcrypt(&other));
        }
        assert!(!is_cut_by_bcrypt(&long) && !is_cut_by_bcrypt("") && !is_cut_by_bcrypt(b));
        assert!(is_cut_by_bcrypt(&"ü".repeat(37)), "bytes, not letters");
    }
}
