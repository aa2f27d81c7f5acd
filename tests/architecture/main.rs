//! The architecture, asserted over the source tree: what pure files may do, who may name whom, how long files are, what is documented.
#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a check that cannot go on must fail"
)]

mod rules;

use std::path::{Path, PathBuf};

use rules::{Rule, Source};

/// The folders that hold our sources.
const FOLDERS: [&str; 6] = ["proto", "common", "control-plane", "agent", "standalone", "tests"];

/// All sources of the repository with one of these endings.
fn sources(ending: &str) -> Vec<Source> {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    let root = tests.parent().unwrap();
    let mut found = Vec::new();
    for folder in FOLDERS {
        collect(root, &root.join(folder), ending, &mut found);
    }
    assert!(
        found.len() >= 5,
        "only {} {ending} files below {}",
        found.len(),
        root.display()
    );
    found
}

fn collect(root: &Path, folder: &Path, ending: &str, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() && !path.ends_with("target") {
            collect(root, &path, ending, found);
        } else if path.extension().is_some_and(|extension| extension == ending) {
            let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
            found.push(Source::new(&name, &std::fs::read_to_string(&path).unwrap()));
        }
    }
}

/// Asserts that no source offends against `rule`.
fn holds(ending: &str, rule: Rule) {
    let offences: Vec<String> = sources(ending).iter().flat_map(rule).collect();
    assert!(
        offences.is_empty(),
        "{} offences:\n{}",
        offences.len(),
        offences.join("\n")
    );
}

#[test]
fn every_file_says_in_its_first_line_what_it_is() {
    holds("rs", rules::first_line);
}

#[test]
fn pure_files_decide_and_do_nothing() {
    holds("rs", rules::purity);
}

#[test]
fn only_those_who_may_name_a_thing_name_it() {
    holds("rs", rules::names);
}

#[test]
fn no_task_is_without_an_owner() {
    holds("rs", rules::spawn);
}

#[test]
fn no_file_is_longer_than_500_lines_before_its_tests() {
    holds("rs", rules::length);
}

#[test]
fn no_file_has_a_name_that_says_nothing() {
    holds("rs", rules::file_name);
}

#[test]
fn everything_in_the_protobuf_files_has_a_comment_directly_above() {
    holds("proto", rules::proto_comments);
}

#[test]
fn every_limit_has_a_reason_is_told_of_and_has_a_test() {
    let operating = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../docs/operating.md");
    let operating = std::fs::read_to_string(operating).unwrap();
    assert!(operating.contains("\n| limit | default |"));
    let all: Vec<Source> = sources("rs").into_iter().chain(sources("proto")).collect();
    let offences = rules::limits(&operating, &all);
    assert!(offences.is_empty(), "{}", offences.join("\n"));
}
