//! Profiles of AWS's tools: `~/.aws/credentials`, with sections `[NAME]`, and `~/.aws/config`, with `[profile NAME]`.
//!
//! A profile has keys, or a program that prints keys, or a role that is assumed with the keys of another profile or of the
//! platform. Both files are read anew each time, because tools rewrite them. Single sign-on is for people, and left out.
//!
//! They are read as AWS's own tools read them, which is as Python's `configparser` does: a key in any case, a line that is
//! indented further than the key before it as a part of its value, no comments but whole lines. What those refuse is
//! refused: a section or a key twice, a line that is none of all this. Keys are taken from one section as they stand
//! there, never an identifier from one and its secret from another; so a line that begins with `[` ends a section however
//! it is indented, or else the keys below it would be those of the section above.

use std::collections::HashMap;
use std::path::PathBuf;

use serde_json::Value;

use super::keys::Keys;
use super::platform::Platform;
use super::sts::{AssumedRole, Sts, WebIdentity};
use crate::credentials::command;
use crate::credentials::error::NoLogin;
use crate::credentials::service::{field, read_file};
use crate::net::HttpClient;
use crate::net::secret::Secret;

const EXPECTED: &str = "a file of AWS keys with this profile";
const READABLE: &str = "a file of AWS profiles that AWS's own tools read: each section and each key in it once, and nothing but \
    [sections], key = value, and comments in lines of their own";
/// Roles that lead to one another; more is a circle.
const CHAIN_MAX: usize = 5;
/// How sessions of berth are named in CloudTrail.
pub(super) const SESSION_NAME: &str = "berth";

/// A profile, and what it may refer to.
pub(super) struct Profile {
    /// What stands in an earlier one counts.
    pub(crate) files: Vec<PathBuf>,
    pub(crate) name: String,
    pub(crate) sts: Sts,
    pub(crate) platform: Platform,
}

/// The sections of a file, each with its keys in lower case.
type Sections = Vec<(String, HashMap<String, String>)>;

/// What files say of one profile, the one that counts first.
struct Section<'a>(Vec<&'a HashMap<String, String>>);

/// How a profile comes to keys.
#[derive(Debug, PartialEq, Eq)]
struct Chain {
    first: First,
    /// The first one is assumed with the keys of `first`, each other with those of the one before.
    roles: Vec<AssumedRole>,
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
    pub(super) async fn keys(&self, client: &HttpClient) -> Result<Keys, NoLogin> {
        let wrong = |expected| {
            let path = self.files.first().cloned().unwrap_or_default();
            NoLogin::File { path, expected }
        };
        let mut files = Vec::new();
        for path in &self.files {
            // Either of the two may be missing.
            let Ok(text) = read_file(path, EXPECTED).await else { continue };
            let sections = parse(text.expose());
            files.push(sections.ok_or_else(|| NoLogin::File { path: path.clone(), expected: READABLE })?);
        }
        let Chain { first, roles } = resolve(&files, &self.name).ok_or_else(|| wrong(EXPECTED))?;
        let mut keys = match first {
            First::Keys(keys) => keys,
            First::Process(line) => run(&line).await?,
            First::WebIdentity(identity) => self.sts.assume_with_token(client, &identity).await?,
            First::Platform(source) => {
                let expected = "a profile whose credential_source is there";
                self.platform.keys_of(client, &source).await.unwrap_or_else(|| Err(wrong(expected)))?
            }
        };
        for role in &roles {
            keys = self.sts.assume(client, &keys, role).await?;
        }
        Ok(keys)
    }
}

/// Whether these files have a profile that leads to keys.
pub(super) fn is_usable(files: &[PathBuf], name: &str) -> bool {
    let read = |path: &PathBuf| crate::files::read_text(path).ok();
    let files: Option<Vec<_>> = files.iter().filter_map(read).map(|text| parse(&text)).collect();
    files.is_some_and(|files| resolve(&files, name).is_some())
}

fn resolve(files: &[Sections], name: &str) -> Option<Chain> {
    let mut roles = Vec::new();
    let mut name = name.to_owned();
    for _ in 0..CHAIN_MAX {
        let section = Section::of(files, &name);
        let get = |key: &str| section.get(key).map(str::to_owned);
        let Some(arn) = get("role_arn") else {
            let first = match get("credential_process") {
                Some(process) if get("aws_access_key_id").is_none() => First::Process(process),
                _ => First::Keys(section.keys()?),
            };
            roles.reverse();
            return Some(Chain { first, roles });
        };
        let session = get("role_session_name").unwrap_or_else(|| SESSION_NAME.to_owned());
        let first = match (get("web_identity_token_file"), get("source_profile"), get("credential_source")) {
            (Some(file), None, None) => {
                First::WebIdentity(WebIdentity { role: arn, token_file: file.into(), session })
            }
            (None, source, platform) => {
                roles.push(AssumedRole { arn, session, external_id: get("external_id") });
                match (source, platform) {
                    (Some(source), None) if source == name => First::Keys(section.keys()?),
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

impl<'a> Section<'a> {
    /// All that the files say of a profile.
    fn of(files: &'a [Sections], name: &str) -> Self {
        let find = |file: &'a Sections| {
            let is_profile = |header: &str| matches!(words(header).as_deref(), Some([kind, it]) if kind == "profile" && it == name);
            let found = file.iter().rfind(|(header, _)| is_profile(header));
            found
                .or_else(|| file.iter().find(|(header, _)| header.trim() == name))
                .map(|(_, section)| section)
        };
        Self(files.iter().filter_map(find).collect())
    }

    /// What stands in an earlier file counts. What is empty, or has further keys below it, is none.
    fn get(&self, key: &str) -> Option<&str> {
        let is_one = |value: &&str| !value.is_empty() && !value.starts_with('\n');
        self.0.iter().find_map(|section| section.get(key).map(String::as_str).filter(is_one))
    }

    /// The keys of the first file that has any.
    fn keys(&self) -> Option<Keys> {
        let own = self.0.iter().find(|section| section.contains_key("aws_access_key_id"))?;
        let get = |key: &str| own.get(key).filter(|value| !value.is_empty()).cloned();
        let secret = Secret::new(get("aws_secret_access_key")?);
        let token = get("aws_session_token").map(Secret::new);
        // One with a line break holds the lines behind it, which were meant to be something else.
        Some(Keys { id: get("aws_access_key_id").filter(|id| !id.contains('\n'))?, secret, token })
    }
}

/// Reads a file; `None` if AWS's tools would not.
fn parse(text: &str) -> Option<Sections> {
    let mut sections = Sections::new();
    // The key that a further line may belong to, and how far that is indented.
    let (mut open, mut indent) = (None::<String>, 0);
    for line in text.lines() {
        let content = line.trim();
        if content.starts_with(['#', ';']) {
            continue;
        }
        let own_indent = line.len() - line.trim_start().len();
        let within = sections.last_mut();
        if let (Some(key), Some((_, section))) = (&open, within)
            && (content.is_empty() || own_indent > indent && !content.starts_with('['))
        {
            let value = section.get_mut(key)?;
            value.push('\n');
            value.push_str(content);
            continue;
        }
        if content.is_empty() {
            continue;
        }
        indent = own_indent;
        if let Some(rest) = content.strip_prefix('[') {
            let header = rest[..rest.rfind(']')?].to_owned();
            let is_there = sections.iter().any(|(known, _)| *known == header);
            if header.is_empty() || is_there {
                return None;
            }
            sections.push((header, HashMap::new()));
            open = None;
            continue;
        }
        let (_, section) = sections.last_mut()?;
        let at = content.find(['=', ':'])?;
        let (key, value) = (content[..at].trim().to_lowercase(), content[at + 1..].trim());
        if key.is_empty() || section.insert(key.clone(), value.to_owned()).is_some() {
            return None;
        }
        open = Some(key);
    }
    for value in sections.iter_mut().flat_map(|(_, section)| section.values_mut()) {
        value.truncate(value.trim_end().len());
    }
    Some(sections)
}

/// `credential_process`: a program that prints keys in JSON.
async fn run(line: &str) -> Result<Keys, NoLogin> {
    let words = words(line).unwrap_or_default();
    let [name, args @ ..] = words.as_slice() else {
        return Err(NoLogin::Helper { program: "credential_process".into(), what: "names no program" });
    };
    let failed = |what| NoLogin::Helper { program: name.as_str().into(), what };
    let args: Vec<_> = args.iter().map(String::as_str).collect();
    let ran = command::run(name, &args, "").await.map_err(failed)?;
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

/// The words of a command, as a POSIX shell takes them apart: quotes hold what has spaces, a backslash what is one. There
/// is no shell that would read more into it. `None` if a quote does not end.
fn words(line: &str) -> Option<Vec<String>> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    let mut characters = line.chars();
    while let Some(c) = characters.next() {
        match (c, quote) {
            ('"' | '\'', None) => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (c, Some(open)) if c == open => quote = None,
            ('\\', None) => word.get_or_insert_default().push(characters.next()?),
            ('\\', Some('"')) => {
                let next = characters.next()?;
                let word = word.get_or_insert_default();
                if !matches!(next, '"' | '\\') {
                    word.push('\\');
                }
                word.push(next);
            }
            (c, None) if c.is_whitespace() => words.extend(word.take()),
            (c, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    quote.is_none().then_some(words)
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

    fn role(arn: &str, session: &str, external_id: Option<&str>) -> AssumedRole {
        AssumedRole { arn: arn.into(), session: session.into(), external_id: external_id.map(str::to_owned) }
    }

    #[test]
    fn a_profile_leads_to_keys() {
        let check = |name: &str, expected: Option<(First, Vec<AssumedRole>)>| {
            let found = resolve(&[CREDENTIALS, CONFIG].map(|text| parse(text).unwrap()), name);
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

    /// B4: each of these was compared with botocore's reading of it. `None` is what that refuses, or finds no keys in.
    #[test]
    fn files_are_read_as_botocore_reads_them() {
        let check = |text: &str, name: &str, expected: Option<(&str, &str)>| {
            let found = parse(text).and_then(|sections| Section::of(&[sections], name).keys());
            let found = found.as_ref().map(|keys| (&*keys.id, keys.secret.expose()));
            assert_eq!(found, expected, "{name} in {text:?}");
        };
        const ID: &str = "aws_access_key_id";
        const SECRET: &str = "aws_secret_access_key";
        let main = format!("{ID}=A\n{SECRET}=a\n");
        let other = "[other]\nregion=x\n";
        let found = Some(("A", "a"));
        check(&format!("{other}[default] # main\n{main}"), "other", None);
        check(&format!("{other}[default] # main\n{main}"), "default", found);
        check(&format!("{other}[default];main\n{main}"), "default", found);
        check(&format!("{other}[default] ] x\n{main}"), "default", None);
        check(&format!("{other}[default\n{main}"), "other", None);
        check(&format!("{other}[default = x\n{main}"), "other", None);
        check(&format!("{other}[]\n{main}"), "other", None);
        // Here botocore takes the keys for those of `other`.
        check(&format!("{other}  [default]\n{main}"), "other", None);
        check(&format!("{other}  [default]\n{main}"), "default", found);
        check(&format!("  [default]\n{main}"), "default", found);
        check(&format!("[default]\n  {ID}=A\n  {SECRET}=a\n"), "default", found);
        check(&format!("[default]\n\t{ID} = A\n\t{SECRET} = a\n"), "default", found);
        check(&format!("[default]\n{ID}=A\n  {SECRET}=a\n"), "default", None);
        check(&format!("[default]\n    {ID}=A\n  {SECRET}=a\n"), "default", found);
        check(&format!("[default]\n{}", main.to_uppercase()), "default", Some(("A", "A")));
        check(&format!("[default]\nAws_Access_Key_Id : A\n{SECRET}: a\n"), "default", found);
        check(&format!("[default]\n{ID} = A # mine\n{SECRET}=a\n"), "default", Some(("A # mine", "a")));
        check(&format!("[default]\n# x = y\n; z\n   # w\n{main}"), "default", found);
        check(&format!("[default]\n{ID}=A\n\n\n{SECRET}=a\n\n"), "default", found);
        check(&format!("[default]\n{ID}=A\n# x\n{SECRET}=a\n"), "default", found);
        check(&format!("[default]\ns3 =\n  {ID}=B\n  {SECRET}=b\n{main}"), "default", found);
        check(&format!("[default]\n{main}[default]\n{main}"), "default", None);
        check(&format!("[default]\n{main}{main}"), "default", None);
        check(&format!("[default]\n{main}nonsense\n"), "default", None);
        check(&format!("[default]\n{main}=x\n"), "default", None);
        check(&format!("{main}[default]\n{main}"), "default", None);
        check(&format!("# x\n\n[default]\n{main}"), "default", found);
        check(&format!("[default]\n{ID}=A\n{SECRET}=a=b==\n"), "default", Some(("A", "a=b==")));
        check(&format!("[default]\n{ID}=\n{SECRET}=a\n"), "default", None);
        check(&format!("[Default]\n{main}"), "default", None);
        check(&format!("[DEFAULT]\nregion=x\n[robot]\n{main}"), "robot", found);
        check(&format!("[profile robot]\n{main}"), "robot", found);
        check(&format!("[profile \"my robot\"]\n{main}"), "my robot", found);
        check(&format!("[profile 'my robot']\n{main}"), "my robot", found);
        check(&format!("[profile  robot]\n{main}"), "robot", found);
        check(&format!("[profile\trobot]\n{main}"), "robot", found);
        check(&format!("[profile my robot]\n{main}"), "my robot", None);
        check(&format!("[sso-session robot]\n{main}"), "robot", None);
        check(&format!("[default]\r\n{}", main.replace('\n', "\r\n")), "default", found);
        check("", "default", None);
    }

    #[test]
    fn keys_are_those_of_one_file() {
        let keys = |credentials: &str, config: &str| {
            let files = [credentials, config].map(|text| parse(text).unwrap());
            Section::of(&files, "p").keys().map(|keys| (keys.id, keys.token.is_some()))
        };
        let whole = "[profile p]\naws_access_key_id=B\naws_secret_access_key=b\naws_session_token=t\n";
        let own = "[p]\naws_access_key_id=A\naws_secret_access_key=a\n";
        assert_eq!(keys(own, whole), Some(("A".to_owned(), false)));
        assert_eq!(keys("[p]\nregion=x\n", whole), Some(("B".to_owned(), true)));
        assert_eq!(keys("[p]\naws_access_key_id=A\n", whole), None);
    }

    #[test]
    fn a_command_is_words() {
        let check = |line: &str, expected: &[&str]| assert_eq!(words(line).unwrap(), expected, "{line}");
        check("", &[]);
        check("/bin/tool", &["/bin/tool"]);
        check("  a\tb  c ", &["a", "b", "c"]);
        check(r#""/opt/my tool" --x="a b" """#, &["/opt/my tool", "--x=a b", ""]);
        check("a;b $(c)", &["a;b", "$(c)"]);
        check(r#"a 'b \"c' d\ e"#, &["a", r#"b \"c"#, "d e"]);
        check(r#""a\"b" "\c""#, &["a\"b", r"\c"]);
        check("a\n  b", &["a", "b"]);
        for line in ["'a", "\"a", "a\\"] {
            assert_eq!(words(line), None, "{line}");
        }
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
                let files: Option<Vec<_>> = [one, other].into_iter().map(parse).collect();
                let Some(Chain { first, roles }) = files.and_then(|files| resolve(&files, name)) else {
                    continue;
                };
                assert!(roles.len() <= CHAIN_MAX);
                if let First::Keys(keys) = first {
                    assert!(!keys.id.is_empty() && !keys.secret.expose().is_empty());
                }
            }
            let words = words(&text).unwrap_or_default();
            assert!(words.iter().map(String::len).sum::<usize>() <= text.len());
        });
    }
}
