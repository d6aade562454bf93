//! Profiles of AWS's tools: `~/.aws/credentials`, with sections `[NAME]`, and `~/.aws/config`, with `[profile NAME]`.
//!
//! A profile has keys, or a program that prints keys, or a role that is assumed with the keys of another profile or of the
//! platform. Both files are read anew each time, because tools rewrite them. Single sign-on is for people, and left out.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

use super::aws::{Keys, Platform};
use super::sts::{Role, Sts, WebIdentity};
use super::{NoLogin, field, read_file};
use crate::upstream::client::Client;
use crate::upstream::program;
use crate::upstream::secret::Secret;

const EXPECTED: &str = "a file of AWS keys with this profile";
/// Roles that lead to one another; more is a circle.
const CHAIN_MAX: usize = 5;
/// How sessions of berth are named in CloudTrail.
pub(super) const SESSION_NAME: &str = "berth";

/// A profile, and what it may refer to.
pub(super) struct Profile {
    /// What stands in an earlier one counts.
    pub(super) files: Vec<PathBuf>,
    pub(super) name: String,
    pub(super) sts: Sts,
    pub(super) platform: Platform,
}

/// What is in a section.
type Section = HashMap<String, String>;

/// How a profile comes to keys.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    first: First,
    /// The first one is assumed with the keys of `first`, each other with those of the one before.
    roles: Vec<Role>,
}

#[derive(Debug, PartialEq, Eq)]
enum First {
    Keys(Keys),
    Process(String),
    WebIdentity(WebIdentity),
    /// `credential_source`.
    Platform(String),
}

impl Profile {
    /// Keys that are good now.
    pub(super) async fn keys(&self, client: &Client) -> Result<Keys, NoLogin> {
        let wrong = |expected| {
            let path = self.files.first().cloned().unwrap_or_default();
            NoLogin::File { path, expected }
        };
        let mut texts = Vec::new();
        for file in &self.files {
            // Either of the two may be missing.
            texts.extend(read_file(file, EXPECTED).await.ok());
        }
        let texts: Vec<_> = texts.iter().map(Secret::expose).collect();
        let Chain { first, roles } = resolve(&texts, &self.name).ok_or_else(|| wrong(EXPECTED))?;
        let mut keys = match first {
            First::Keys(keys) => keys,
            First::Process(line) => run(&line).await?,
            First::WebIdentity(identity) => self.sts.assume_with_token(client, &identity).await?,
            First::Platform(source) => {
                let expected = "a profile whose credential_source is there";
                self.platform.keys(client, &source).await.unwrap_or_else(|| Err(wrong(expected)))?
            }
        };
        for role in &roles {
            keys = self.sts.assume(client, &keys, role).await?;
        }
        Ok(keys)
    }
}

/// Whether any of these files has a profile that leads to keys.
pub(super) fn is_usable(files: &[PathBuf], name: &str) -> bool {
    let read = |path: &PathBuf| crate::watch::read_text(path).ok();
    let texts: Vec<_> = files.iter().filter_map(read).collect();
    let texts: Vec<_> = texts.iter().map(String::as_str).collect();
    resolve(&texts, name).is_some()
}

fn resolve(texts: &[&str], name: &str) -> Option<Chain> {
    let mut roles = Vec::new();
    let mut name = name.to_owned();
    for _ in 0..CHAIN_MAX {
        let section = section(texts, &name);
        let get = |key: &str| section.get(key).cloned();
        let Some(arn) = get("role_arn") else {
            let first = keys_of(&section)
                .map(First::Keys)
                .or_else(|| get("credential_process").map(First::Process))?;
            roles.reverse();
            return Some(Chain { first, roles });
        };
        let session = get("role_session_name").unwrap_or_else(|| SESSION_NAME.to_owned());
        let first = match (get("web_identity_token_file"), get("source_profile"), get("credential_source")) {
            (Some(file), None, None) => {
                First::WebIdentity(WebIdentity { role: arn, token_file: file.into(), session })
            }
            (None, source, platform) => {
                roles.push(Role { arn, session, external_id: get("external_id") });
                match (source, platform) {
                    (Some(source), None) if source == name => First::Keys(keys_of(&section)?),
                    (Some(source), None) => {
                        name = source;
                        continue;
                    }
                    (None, Some(platform)) => First::Platform(platform),
                    _ => return None,
                }
            }
            _ => return None,
        };
        roles.reverse();
        return Some(Chain { first, roles });
    }
    None
}

/// All that the files say of a profile.
fn section(texts: &[&str], name: &str) -> Section {
    let mut found = Section::new();
    for text in texts {
        let mut within = false;
        // What is indented belongs to the line above, which is about something else.
        for line in text.lines().filter(|line| !line.starts_with([' ', '\t'])) {
            if let Some(header) = line.trim().strip_prefix('[').and_then(|line| line.strip_suffix(']')) {
                let header = header.trim();
                within = header.strip_prefix("profile ").map_or(header, str::trim) == name;
            } else if within
                && let Some((key, value)) = line.split_once('=')
                && !value.trim().is_empty()
            {
                found.entry(key.trim().to_owned()).or_insert_with(|| value.trim().to_owned());
            }
        }
    }
    found
}

fn keys_of(section: &Section) -> Option<Keys> {
    let id = section.get("aws_access_key_id")?.clone();
    let secret = Secret::new(section.get("aws_secret_access_key")?.clone());
    Some(Keys { id, secret, token: section.get("aws_session_token").cloned().map(Secret::new) })
}

/// `credential_process`: a program that prints keys in JSON.
async fn run(line: &str) -> Result<Keys, NoLogin> {
    let words = words(line);
    let [name, args @ ..] = words.as_slice() else {
        return Err(NoLogin::Helper { program: "credential_process".into(), what: "names no program" });
    };
    let failed = |what| NoLogin::Helper { program: name.as_str().into(), what };
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let ran = program::run(name, &args, "").await.map_err(failed)?;
    if !ran.is_success {
        return Err(failed("failed"));
    }
    let keys = || {
        let reply: Value = serde_json::from_slice(&ran.output).ok()?;
        let text = |key| field(&reply, key, "", "").ok();
        let token = text("SessionToken").map(Secret::new);
        Some(Keys { id: text("AccessKeyId")?, secret: Secret::new(text("SecretAccessKey")?), token })
    };
    keys().ok_or_else(|| failed("wrote something else than keys"))
}

/// The words of a command; quotes hold what has spaces. There is no shell that would read more into it.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut is_quoted) = (Vec::new(), None::<String>, false);
    for c in line.chars() {
        match c {
            '"' => {
                is_quoted = !is_quoted;
                word.get_or_insert_default();
            }
            c if c.is_whitespace() && !is_quoted => words.extend(word.take()),
            c => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    const CREDENTIALS: &str = "# keys\n[default]\naws_access_key_id=A\naws_secret_access_key = a=b\n\n[ robot ]\n\
                    aws_access_key_id = R\r\naws_secret_access_key = r\naws_session_token = t\nregion = x\n[half]\n\
                    aws_access_key_id = H\naws_secret_access_key =\n";
    const CONFIG: &str = "[default]\nregion = eu-west-1\naws_access_key_id = other\n[profile deploy]\nrole_arn = arn:d\n\
        source_profile = middle\nexternal_id = e\ns3 =\n  role_arn = arn:nested\n[profile middle]\nrole_arn = arn:m\n\
        source_profile = robot\nrole_session_name = s\n[profile own]\nrole_arn = arn:o\nsource_profile = own\n\
        aws_access_key_id = O\naws_secret_access_key = o\n[profile node]\nrole_arn = arn:n\n\
        credential_source = Ec2InstanceMetadata\n[profile pod]\nrole_arn = arn:p\nweb_identity_token_file = /t\n\
        [profile tool]\ncredential_process = /bin/tool --x \"a b\"\n[profile circle]\nrole_arn = arn:c\n\
        source_profile = circled\n[profile circled]\nrole_arn = arn:c\nsource_profile = circle\n\
        [profile both]\nrole_arn = arn:b\nsource_profile = robot\ncredential_source = Environment\n";

    fn keys(id: &str, secret: &str, token: Option<&str>) -> First {
        let token = token.map(|token| Secret::new(token.to_owned()));
        First::Keys(Keys { id: id.to_owned(), secret: Secret::new(secret.to_owned()), token })
    }

    fn role(arn: &str, session: &str, external_id: Option<&str>) -> Role {
        Role { arn: arn.into(), session: session.into(), external_id: external_id.map(str::to_owned) }
    }

    #[test]
    fn a_profile_leads_to_keys() {
        let check = |name: &str, expected: Option<(First, Vec<Role>)>| {
            let found = resolve(&[CREDENTIALS, CONFIG], name);
            assert_eq!(found, expected.map(|(first, roles)| Chain { first, roles }), "{name}");
        };
        check("default", Some((keys("A", "a=b", None), vec![])));
        check("robot", Some((keys("R", "r", Some("t")), vec![])));
        check("half", None);
        check("other", None);
        let deploy = vec![role("arn:m", "s", None), role("arn:d", "berth", Some("e"))];
        check("deploy", Some((keys("R", "r", Some("t")), deploy)));
        check("own", Some((keys("O", "o", None), vec![role("arn:o", "berth", None)])));
        let node = First::Platform("Ec2InstanceMetadata".into());
        check("node", Some((node, vec![role("arn:n", "berth", None)])));
        let pod = WebIdentity { role: "arn:p".into(), token_file: "/t".into(), session: "berth".into() };
        check("pod", Some((First::WebIdentity(pod), vec![])));
        check("tool", Some((First::Process("/bin/tool --x \"a b\"".into()), vec![])));
        check("circle", None);
        check("both", None);
    }

    #[test]
    fn a_command_is_words() {
        let check = |line: &str, expected: &[&str]| assert_eq!(words(line), expected, "{line}");
        check("", &[]);
        check("/bin/tool", &["/bin/tool"]);
        check("  a\tb  c ", &["a", "b", "c"]);
        check(r#""/opt/my tool" --x="a b" """#, &["/opt/my tool", "--x=a b", ""]);
        check("a;b $(c)", &["a;b", "$(c)"]);
    }

    #[test]
    fn fuzzed_files_lead_to_keys_in_few_steps() {
        let target = crate::fuzz::Target {
            name: "aws-profile",
            words: &[
                "[",
                "]",
                "=",
                "\n",
                "\r\n",
                " ",
                "\t",
                "#",
                "\"",
                "default",
                "profile ",
                "robot",
                "aws_access_key_id",
                "aws_secret_access_key",
                "aws_session_token",
                "role_arn",
                "source_profile",
                "credential_source",
                "web_identity_token_file",
                "credential_process",
                "role_session_name",
                "external_id",
                "é",
                "\u{a0}",
            ],
        };
        target.holds(|input| {
            let text = String::from_utf8_lossy(input);
            let (one, other) = text.split_once("\n\n").unwrap_or((&text, ""));
            for name in ["default", "robot", "a", ""] {
                let Some(Chain { first, roles }) = resolve(&[one, other], name) else { continue };
                assert!(roles.len() <= CHAIN_MAX);
                if let First::Keys(keys) = first {
                    assert!(!keys.id.is_empty() && !keys.secret.expose().is_empty());
                }
            }
            assert!(words(&text).iter().map(String::len).sum::<usize>() <= text.len());
        });
    }
}
