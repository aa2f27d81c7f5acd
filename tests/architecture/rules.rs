//! The rules of the architecture: each looks at one source and says what is wrong with it.

/// Looks at one source and returns its offences, each with the place.
pub(crate) type Rule = fn(&Source) -> Vec<String>;

/// One file, as the rules see it.
pub(crate) struct Source {
    /// Path below the root of the repository.
    path: String,
    /// The whole text.
    text: String,
    /// Line numbers and lines of what is compiled into the programs: without comments and without tests. Empty in files of tests.
    code: Vec<(usize, String)>,
}

/// What pure files must not name: anything that waits, talks, keeps time, rolls dice or logs.
const IMPURE: &str = "tokio tokio_util tokio_stream tonic hyper hyper_util futures_util etcd_client redb tracing async await rand \
    SystemTime Instant SystemClock SystemEntropy TcpStream UdpSocket std::fs std::env std::thread";

/// Who may name what: words, the paths that may (by how they begin or, with `*`, end), and why.
const NAMES: &[(&str, &str, &str)] = &[
    (
        "postrider_agent",
        "agent/src/main.rs standalone/ tests/",
        "the agent is named by nobody it works with",
    ),
    (
        "postrider_control_plane",
        "control-plane/src/main.rs standalone/ tests/",
        "the control plane is named by nobody it works with",
    ),
    (
        "postrider_standalone",
        "standalone/ tests/",
        "the wiring is named by nothing below it",
    ),
    (
        "etcd_client",
        "common/src/store/etcd tests/simulation/",
        "only the etcd store knows etcd, and the etcd of the simulation",
    ),
    ("redb", "common/src/store/file", "only the file store knows its engine"),
    (
        "tonic_types",
        "control-plane/src/api/ tests/",
        "details of statuses are made by the API",
    ),
    (
        "postrider_proto::v1 postrider_proto::API_DESCRIPTOR",
        "control-plane/src/api/ control-plane/src/publish/admission standalone/ tests/",
        "messages of the API stay in the API",
    ),
    (
        "postrider_proto::stored",
        "common/src/wire/ common/src/store/once.rs control-plane/src/catalog/ control-plane/src/cell.rs control-plane/src/leader \
         control-plane/src/placement/ control-plane/src/publish/ control-plane/src/testing/ agent/src/presence agent/src/assignment/ \
         agent/src/shard/ agent/src/history/",
        "stored messages stay with those that own them",
    ),
    (
        "\"queue/ \"parked/ \"dead/ \"failing/ \"history/ \"usage/ \"commands/ \"owners/ \"assignments/ \"progress/ \"writers/ \"dedupe/ \"event-types/ \
         \"tests/{ \"test-answers/",
        "common/src/key",
        "keys are built and parsed in one place",
    ),
    (
        "env::var env::vars env::var_os \"POSTRIDER_",
        "*/config.rs common/src/config/ tests/ proto/build.rs",
        "settings are read in one place",
    ),
];

/// Most lines of a file before its tests.
const MAX_LINES: usize = 500;

/// Names of files that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "helper", "helpers", "manager", "handler", "handlers", "misc", "common", "shared",
];

impl Source {
    /// Reads a source.
    pub(crate) fn new(path: &str, text: &str) -> Self {
        let name = path.rsplit('/').next().unwrap_or(path);
        let is_test = name == "tests.rs"
            || name.ends_with("_tests.rs")
            || path.contains("/src/tests/")
            || path.contains("/tests/");
        let mut code = Vec::new();
        let mut lines = text.lines().enumerate().peekable();
        while let Some((index, line)) = lines.next() {
            let next = lines.peek().map_or("", |(_, next)| next.trim());
            if is_test || (line.trim() == "#[cfg(test)]" && next.starts_with("mod ") && next.ends_with('{')) {
                break;
            }
            let line = line.split(" // ").next().unwrap_or(line);
            if !line.trim_start().starts_with("//") {
                code.push((index + 1, line.to_owned()));
            }
        }
        Self {
            path: path.to_owned(),
            text: text.to_owned(),
            code,
        }
    }

    /// Places in the code where one of `words` stands as a whole word, not as a part of another.
    fn places(&self, words: &str) -> Vec<String> {
        let mut places = Vec::new();
        for (number, line) in &self.code {
            for word in words.split_whitespace().filter(|word| has_word(line, word)) {
                places.push(format!("{}:{number}: names {word}", self.path));
            }
        }
        places
    }
}

fn has_word(line: &str, word: &str) -> bool {
    let part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word).any(|(start, _)| {
        let before = line[..start].chars().next_back();
        let after = line[start + word.len()..].chars().next();
        let open = word.starts_with('"');
        open || (!before.is_some_and(part) && !after.is_some_and(part))
    })
}

/// The first line of every file says what it is.
pub(crate) fn first_line(source: &Source) -> Vec<String> {
    let first = source.text.lines().next().unwrap_or_default();
    let says = first
        .strip_prefix("//! ")
        .is_some_and(|says| says.len() > 10 && !says.starts_with("Placeholder"));
    if says {
        Vec::new()
    } else {
        vec![format!("{}:1: does not say what the file is", source.path)]
    }
}

/// A file whose first line, or first paragraph, ends with "Pure." names nothing impure.
pub(crate) fn purity(source: &Source) -> Vec<String> {
    let first: Vec<&str> = source
        .text
        .lines()
        .take_while(|line| line.starts_with("//! "))
        .collect();
    if first.last().is_some_and(|line| line.ends_with(" Pure.")) {
        source.places(IMPURE)
    } else {
        Vec::new()
    }
}

/// Only those who may name a thing name it. (This folder names everything.)
pub(crate) fn names(source: &Source) -> Vec<String> {
    if source.path.starts_with("tests/architecture/") {
        return Vec::new();
    }
    let mut offences = Vec::new();
    for (words, allowed, why) in NAMES {
        let may = allowed
            .split_whitespace()
            .any(|allowed| match allowed.strip_prefix('*') {
                Some(end) => source.path.ends_with(end),
                None => source.path.starts_with(allowed),
            });
        if !may {
            offences.extend(source.places(words).into_iter().map(|place| format!("{place}: {why}")));
        }
    }
    let statuses = [
        "control-plane/src/api/",
        "proto/src/",
        "agent/src/api/",
        "tests/",
        "standalone/",
    ];
    if !statuses.iter().any(|allowed| source.path.starts_with(allowed)) && !source.places("tonic").is_empty() {
        let places = source.places("Status").into_iter();
        offences.extend(places.map(|place| format!("{place}: statuses are made by the API")));
    }
    offences
}

/// Tasks are started on a `task::Group` or a JoinSet, in tests too.
pub(crate) fn spawn(source: &Source) -> Vec<String> {
    let spawn = concat!("tokio::", "spawn(");
    let lines = source
        .text
        .lines()
        .enumerate()
        .filter(|(_, line)| line.contains(spawn) && !line.trim_start().starts_with("//"));
    lines
        .map(|(index, _)| format!("{}:{}: a task without an owner", source.path, index + 1))
        .collect()
}

/// Files are short.
pub(crate) fn length(source: &Source) -> Vec<String> {
    let lines = source.code.last().map_or(0, |(number, _)| *number);
    if lines > MAX_LINES {
        vec![format!("{}: {lines} lines before its tests", source.path)]
    } else {
        Vec::new()
    }
}

/// Names of files say something.
pub(crate) fn file_name(source: &Source) -> Vec<String> {
    let stem = source
        .path
        .rsplit('/')
        .next()
        .and_then(|name| name.split('.').next())
        .unwrap_or_default();
    let folder = source
        .path
        .rsplit('/')
        .nth(1)
        .filter(|folder| *folder != "common")
        .unwrap_or_default();
    let empty = EMPTY_NAMES.contains(&stem) || EMPTY_NAMES.contains(&folder);
    if empty {
        vec![format!("{}: a name that says nothing", source.path)]
    } else {
        Vec::new()
    }
}

/// Everything that a protobuf file declares has a comment directly above.
pub(crate) fn proto_comments(source: &Source) -> Vec<String> {
    let mut offences = Vec::new();
    let mut above = "";
    for (index, line) in source.text.lines().enumerate() {
        let line = line.trim();
        let keyword = line.split_whitespace().next().unwrap_or_default();
        let declares = matches!(keyword, "service" | "rpc" | "message" | "enum" | "oneof");
        let number = line
            .strip_suffix(';')
            .and_then(|line| line.rsplit_once(" = "))
            .map(|(_, number)| number);
        let number = number.and_then(|number| number.split_whitespace().next());
        let numbered = number.is_some_and(|number| number.trim_start_matches('-').parse::<u32>().is_ok());
        if (declares || numbered) && keyword != "option" && !above.starts_with("//") {
            offences.push(format!("{}:{}: no comment above: {line}", source.path, index + 1));
        }
        above = line;
    }
    offences
}

/// Every limit in the table of `operating` has a reason, says what tells of it, and names tests that `sources` have.
pub(crate) fn limits(operating: &str, sources: &[Source]) -> Vec<String> {
    let has = |text: &str| sources.iter().any(|source| source.text.contains(text));
    let is_told = |name: &str| {
        let name = name.split('{').next().unwrap_or(name);
        let stem = name.strip_suffix("_total").unwrap_or(name);
        has(&format!("\"{stem}\"")) || has(&format!("rpc {name}(")) || has(&format!(" {name} = "))
    };
    let is_shown = |name: &str| has(&format!("fn {name}"));
    let rows = operating.lines().skip_while(|line| !line.starts_with("| limit |"));
    let mut offences = Vec::new();
    for row in rows.skip(2).take_while(|line| line.starts_with('|')) {
        let cells: Vec<&str> = row.trim_matches('|').split('|').map(str::trim).collect();
        let [_, _, _, _, told, shown] = cells[..] else {
            offences.push(format!("not six cells: {row}"));
            continue;
        };
        let empty = cells.iter().any(|cell| cell.is_empty()) || names_in(shown).next().is_none();
        let told = names_in(told).filter(|name| !is_told(name));
        let shown = names_in(shown).filter(|name| !is_shown(name));
        offences.extend(empty.then(|| format!("an empty cell: {row}")));
        offences.extend(told.chain(shown).map(|name| format!("there is no {name}: {row}")));
    }
    offences
}

/// What stands in backticks.
fn names_in(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn offends(rule: Rule, path: &str, text: &str, offences: usize) {
        let found = rule(&Source::new(path, text));
        assert_eq!(found.len(), offences, "{path}: {text}\n{found:#?}");
    }

    #[test]
    fn a_first_line_that_says_nothing_is_found() {
        offends(first_line, "a.rs", "//! Reads the frobnicator.\n", 0);
        for bad in [
            "",
            "use a;\n//! Reads the frobnicator.",
            "//! Placeholder.",
            "//!\n//! Reads.",
        ] {
            offends(first_line, "a.rs", bad, 1);
        }
    }

    #[test]
    fn a_pure_file_that_does_something_is_found() {
        for bad in [
            "use tokio::time;",
            "async fn f() {}",
            "use std::time::{Duration, Instant};",
            "tracing::info!(1)",
            "let x = rand::rng();",
        ] {
            offends(purity, "a.rs", &format!("//! Decides. Pure.\n{bad}\n"), 1);
            offends(
                purity,
                "a.rs",
                &format!("//! Decides at\n//! length. Pure.\n\n{bad}\n"),
                1,
            );
            offends(purity, "a.rs", &format!("//! Does.\n{bad}\n"), 0);
            offends(
                purity,
                "a.rs",
                &format!("//! Decides. Pure.\n// {bad}\nlet x = 1; // {bad}\n"),
                0,
            );
            offends(
                purity,
                "a.rs",
                &format!("//! Decides. Pure.\n#[cfg(test)]\nmod tests {{\n{bad}\n}}\n"),
                0,
            );
            offends(
                purity,
                "a.rs",
                &format!("//! Decides. Pure.\n#[cfg(test)]\nmod tests;\n{bad}\n"),
                1,
            );
            offends(purity, "a/tests.rs", &format!("//! Decides. Pure.\n{bad}\n"), 0);
        }
        offends(
            purity,
            "a.rs",
            "//! Decides. Pure.\nlet monotonic = operand + asynchronous;\n",
            0,
        );
    }

    #[test]
    fn names_in_the_wrong_place_are_found() {
        let cases = [
            (
                "agent/src/a.rs",
                "use postrider_control_plane::x;",
                "standalone/src/main.rs",
            ),
            (
                "control-plane/src/a.rs",
                "use postrider_agent::x;",
                "tests/load/main.rs",
            ),
            (
                "common/src/store/mirror.rs",
                "etcd_client::Client",
                "common/src/store/etcd/watch.rs",
            ),
            (
                "agent/src/a.rs",
                "use tonic::{Code, Status};",
                "control-plane/src/api/a.rs",
            ),
            (
                "agent/src/a.rs",
                "use postrider_proto::v1;",
                "control-plane/src/api/a.rs",
            ),
            (
                "control-plane/src/api/a.rs",
                "use postrider_proto::stored as pb;",
                "common/src/wire/stored.rs",
            ),
            ("agent/src/a.rs", "format!(\"queue/{shard}\")", "common/src/key.rs"),
            ("agent/src/lib.rs", "std::env::var(\"HOME\")", "agent/src/config.rs"),
            (
                "agent/src/lib.rs",
                "#[arg(env = \"POSTRIDER_STORE\")]",
                "common/src/config.rs",
            ),
        ];
        for (wrong, line, right) in cases {
            offends(names, wrong, line, 1);
            offends(names, right, line, 0);
        }
        offends(names, "agent/src/a.rs", "use hyper::Status; let monotonic = 1;", 0);
    }

    #[test]
    fn a_task_without_an_owner_is_found() {
        let bad = concat!("    tokio::", "spawn(async {});");
        offends(spawn, "a.rs", bad, 1);
        offends(spawn, "a/tests.rs", bad, 1);
        offends(spawn, "a.rs", "    group.spawn(\"name\", async {});", 0);
    }

    #[test]
    fn a_long_file_and_an_empty_name_are_found() {
        offends(length, "a.rs", &"x\n".repeat(501), 1);
        offends(
            length,
            "a.rs",
            &format!("{}#[cfg(test)]\nmod tests {{\n{}", "x\n".repeat(500), "x\n".repeat(500)),
            0,
        );
        offends(file_name, "agent/src/util.rs", "", 1);
        offends(file_name, "agent/src/helpers/mod.rs", "", 1);
        offends(file_name, "common/src/lib.rs", "", 0);
    }

    #[test]
    fn a_limit_without_a_reason_a_metric_or_a_test_is_found() {
        let sources = [Source::new("a.rs", "(\"a_metric\", 1)\nfn a_test_of_it() {}")];
        let table = |row: &str| format!("text\n| limit | default |\n|---|---|\n{row}\n\ntext");
        for (row, offences) in [
            ("| `A` | 1 | why | waits | `a_metric_total{x}` | `a_test` |", 0),
            ("| `A` | 1 | why | waits | none: it waits | `a_test` |", 0),
            ("| `A` | 1 | | waits | `a_metric` | `a_test` |", 1),
            ("| `A` | 1 | why | waits | `a_metric` | |", 1),
            ("| `A` | 1 | why | waits | `metric` | `test` |", 2),
            ("| `A` | 1 | why | waits | `a_metric` |", 1),
        ] {
            assert_eq!(limits(&table(row), &sources).len(), offences, "{row}");
        }
    }

    #[test]
    fn what_has_no_comment_is_found() {
        let good = "syntax = \"proto3\";\n// A.\nmessage A {\n  // B.\n  int32 b = 1;\n  // C.\n  repeated A c = 2 [packed = true];\n}\n";
        offends(proto_comments, "a.proto", good, 0);
        for bad in [
            "message A {}",
            "enum A {",
            "  rpc A(B) returns (C);",
            "  int32 b = 1;",
            "  A_B = 0;",
            "  map<a, b> c = 3;",
            "oneof a {",
        ] {
            offends(proto_comments, "a.proto", bad, 1);
            offends(proto_comments, "a.proto", &format!("// Says it.\n{bad}"), 0);
            offends(
                proto_comments,
                "a.proto",
                &format!("// Says something else.\n\n{bad}"),
                1,
            );
        }
    }
}
