//! Properties of names, references and digests: what is accepted is safe as a path and reads back as written.

use std::path::{Component, Path};

use proptest::prelude::*;

use super::*;

/// Whether joining this below a folder stays below it, with exactly one component per word.
fn is_safe_path(text: &str) -> bool {
    let components: Vec<_> = Path::new(text).components().collect();
    components.iter().all(|component| matches!(component, Component::Normal(_)))
        && components.len() == text.split('/').count()
        && !text.split('/').any(|word| word.starts_with('_'))
}

proptest! {
    #[test]
    fn nothing_panics_and_what_is_accepted_reads_back(text in ".{0,80}|[a-z0-9.:/_\\-\\[\\]A-F]{0,80}") {
        if let Ok(registry) = Registry::parse(&text) {
            prop_assert_eq!(registry.as_str(), text.to_ascii_lowercase());
            let folder = registry.to_folder();
            prop_assert!(is_safe_path(&folder) && !folder.contains(['/', ':']), "{}", folder);
            prop_assert_eq!(Registry::from_folder(&folder), Some(registry));
        }
        if let Ok(name) = RepoName::parse(&text) {
            prop_assert!(is_safe_path(name.as_str()) && name.as_str() == text);
        }
        if let Ok(tag) = Tag::parse(&text) {
            prop_assert!(!tag.as_str().contains('/') && !tag.as_str().starts_with('.') && tag.as_str() == text);
        }
        if let Ok(reference) = Reference::parse(&text) {
            prop_assert_eq!(reference.to_string(), text.as_str());
        }
        let _ = (Registry::from_folder(&text), Digest::from_file_name(&text), printable(&text));
    }

    #[test]
    fn registries_with_ports_keep_them_in_their_folder(host in "[a-z0-9]{1,9}(\\.[a-z0-9]{1,9}){0,3}", port: u16) {
        let port = port.max(1);
        let registry = Registry::parse(&format!("{host}:{port}")).unwrap();
        let folder = registry.to_folder();
        prop_assert!(is_safe_path(&folder) && !folder.contains(':'), "{}", folder);
        prop_assert_eq!(Registry::from_folder(&folder), Some(registry));
    }

    #[test]
    fn digests_of_any_content_read_back_and_are_safe_file_names(content: Vec<u8>) {
        for algorithm in Algorithm::ALL {
            let digest = Digest::of(algorithm, &content);
            prop_assert_eq!(Digest::parse(&digest.to_string()), Ok(digest));
            prop_assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
            prop_assert_eq!(Reference::parse(&digest.to_string()), Ok(Reference::Digest(digest)));
            prop_assert!(is_safe_path(&digest.file_name()));
        }
    }

    #[test]
    fn a_digest_is_one_text_only(text in "(sha256|sha512|SHA256|md5):[0-9a-fA-F]{60,66}") {
        if let Ok(digest) = Digest::parse(&text) {
            prop_assert_eq!(digest.to_string(), text);
        }
    }
}

#[test]
fn fuzzed_names_read_back_and_are_safe_as_paths() {
    let target = crate::fuzz::Target {
        name: "name",
        words: &[
            "a",
            "0",
            "Z",
            "/",
            "..",
            ".",
            "-",
            "--",
            "_",
            "__",
            "___",
            ":",
            "@",
            "[",
            "]",
            "[::1]",
            ":5000",
            "_5000_",
            "docker.io",
            "localhost",
            "library/",
            "sha256:",
            "sha512:",
            "sha256-",
            "é",
            "\0",
            "\n",
            " ",
            "linux/arm64/v8",
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
        ],
    };
    target.holds(|input| {
        let text = String::from_utf8_lossy(input);
        if let Ok(registry) = Registry::parse(&text) {
            let folder = registry.to_folder();
            assert!(is_safe_path(&folder) && !folder.contains(['/', ':']), "{folder}");
            assert_eq!(Registry::from_folder(&folder), Some(registry));
        }
        if let Some(registry) = Registry::from_folder(&text) {
            assert_eq!(Registry::from_folder(&registry.to_folder()), Some(registry));
        }
        if let Ok(name) = RepoName::parse(&text) {
            assert!(is_safe_path(name.as_str()) && name.as_str().len() <= name::NAME_CHARACTERS_MAX);
        }
        if let Ok(tag) = Tag::parse(&text) {
            assert!(tag.as_str().len() <= name::TAG_CHARACTERS_MAX && is_safe_path(&format!("t{tag}")));
            let _ = (tag.is_of_referrers(), tag.is_about_digest());
        }
        if let Ok(digest) = Digest::parse(&text) {
            assert_eq!(digest.to_string(), text);
            assert_eq!(Digest::from_file_name(&digest.file_name()), Some(digest));
            assert!(Tag::of_referrers(&digest).is_of_referrers());
        }
        if let Ok(reference) = Reference::parse(&text) {
            assert_eq!(reference.to_string(), text);
        }
        if let Ok(image) = text.parse::<Image>() {
            assert_eq!(image.to_string().parse(), Ok(image));
        }
        if let Ok(platform) = text.parse::<Platform>() {
            assert_eq!(platform.to_string(), text);
        }
        assert!(printable(&text).bytes().all(|byte| byte.is_ascii_graphic()));
    });
}
