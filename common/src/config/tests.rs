//! Settings are read from three sources, with all their mistakes.

use super::*;

const SETTINGS: &[Setting] = &[
    Setting::optional(CONFIG, "FILE", "file"),
    Setting::new("lease-ttl", "DURATION", "5s", "ttl"),
    Setting::new("listen", "ADDR", "127.0.0.1:0", "listen"),
    Setting::repeated("egress-allow", "CIDR", "allow"),
    Setting::switch("insecure", "insecure"),
    Setting::secret("secret-key", "key"),
];

fn read(arguments: &[&str], environment: &[(&str, &str)]) -> Result<Settings, Exit> {
    let find = |name: &str| {
        environment
            .iter()
            .find(|(key, _)| *key == name)
            .map(|(_, value)| OsString::from(value))
    };
    Settings::read_from(
        "program",
        "about",
        &[SETTINGS],
        arguments.iter().map(OsString::from),
        &find,
    )
}

#[test]
fn a_flag_goes_before_the_environment_and_that_before_the_file_and_that_before_the_default() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(
        &file,
        "lease-ttl = \"3s\"\negress-allow = [\"a\", \"b\"]\ninsecure = true\n",
    )
    .unwrap();
    let config = ["--config", file.to_str().unwrap()];
    let ttl = |arguments: &[&str], environment: &[(&str, &str)]| {
        read(arguments, environment)
            .unwrap()
            .maybe("lease-ttl", duration)
            .unwrap()
            .as_secs()
    };
    assert_eq!(ttl(&[], &[]), 5);
    assert_eq!(ttl(&config, &[]), 3);
    assert_eq!(ttl(&config, &[("POSTRIDER_LEASE_TTL", "2s")]), 2);
    assert_eq!(
        ttl(
            &[config[0], config[1], "--lease-ttl", "1s"],
            &[("POSTRIDER_LEASE_TTL", "2s")]
        ),
        1
    );
    let mut settings = read(&config, &[]).unwrap();
    assert_eq!(
        settings.all("egress-allow", |text| Ok::<_, String>(text.to_owned())),
        ["a", "b"]
    );
    assert!(settings.is_on("insecure"));
}

#[test]
fn all_mistakes_are_reported_at_once_with_their_place() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("settings.toml");
    std::fs::write(&file, "lease-tll = \"3s\"\n").unwrap();
    let environment = [
        ("POSTRIDER_LEASE_TTL", "soon"),
        ("POSTRIDER_CONFIG", file.to_str().unwrap()),
    ];
    let mut settings = read(&["--listen", "0.0.0.0:1"], &environment).unwrap();
    settings.maybe("lease-ttl", duration);
    settings.listen("listen");
    let Err(Exit::Mistakes(mistakes)) = settings.finish() else {
        panic!("there are mistakes")
    };
    let text = mistakes.to_string();
    assert_eq!(mistakes.0.len(), 3, "{text}");
    assert!(text.contains("lease-tll: there is no such setting"), "{text}");
    assert!(
        text.contains("lease-ttl (POSTRIDER_LEASE_TTL): must be a duration"),
        "{text}"
    );
    assert!(
        text.contains("listen (--listen): there is neither TLS nor authentication"),
        "{text}"
    );
}

#[test]
fn a_secret_has_no_flag() {
    assert!(matches!(read(&["--secret-key", "x"], &[]), Err(Exit::Mistakes(_))));
    let mut settings = read(&[], &[("POSTRIDER_SECRET_KEY", "x")]).unwrap();
    assert_eq!(
        settings
            .maybe("secret-key", |text| Ok::<_, String>(text.to_owned()))
            .unwrap(),
        "x"
    );
}

#[test]
fn durations_are_read_with_their_unit() {
    assert_eq!(duration("1500ms"), Ok(Duration::from_millis(1500)));
    assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
    for bad in [
        "",
        "5",
        "s",
        "-1s",
        "5 s",
        "99999999999999999999s",
        "18446744073709551615h",
    ] {
        assert!(duration(bad).is_err(), "{bad}");
    }
}

#[test]
fn every_mistake_in_the_credentials_for_etcd_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(at("password"), "hush\n").unwrap();
    std::fs::write(at("empty"), "\n").unwrap();
    let (right, empty, missing) = (at("password"), at("empty"), at("missing"));
    let etcd = "etcd://127.0.0.1:2379";
    let read = |url: &str, arguments: &[&str], environment: &[(&str, &str)]| {
        let find = |name: &str| {
            let found = environment.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| OsString::from(value))
        };
        let arguments = arguments.iter().map(OsString::from);
        let mut settings = Settings::read_from("program", "about", &[STORE], arguments, &find).unwrap();
        let credentials = etcd_credentials(&mut settings, url);
        match settings.finish() {
            Ok(()) => Ok(credentials.map(|credentials| credentials.user)),
            Err(Exit::Mistakes(mistakes)) => Err(mistakes.0),
            Err(Exit::Asked(_)) => unreachable!(),
        }
    };
    let (user, file) = (["--etcd-user", "u"], ["--etcd-password-file", &right]);
    let both = [user, file].concat();
    assert_eq!(read(etcd, &[], &[]), Ok(None));
    assert_eq!(read("file:data", &[], &[]), Ok(None));
    assert_eq!(read(etcd, &both, &[]), Ok(Some("u".to_owned())));
    let variables = [("POSTRIDER_ETCD_USER", "v"), ("POSTRIDER_ETCD_PASSWORD_FILE", &right)];
    assert_eq!(read(etcd, &[], &variables), Ok(Some("v".to_owned())));
    let wrong: [(&str, &[&str], &[&str]); 6] = [
        (etcd, &user, &["etcd-password-file: must be set, because etcd-user is"]),
        (etcd, &file, &["etcd-user: must be set, because etcd-password-file is"]),
        (
            "file:data",
            &both,
            &["etcd-user: this is for etcd, not for a store file"],
        ),
        (
            etcd,
            &["--etcd-user", "", "--etcd-password-file", &empty],
            &["etcd-user (--etcd-user): must be a name", "there is no password in it"],
        ),
        (
            "file:data",
            &["--etcd-password-file", &missing],
            &["because etcd-password-file is", "not for a store file", "No such file"],
        ),
        (
            etcd,
            &["--etcd-user", "u", "--etcd-password-file", ""],
            &["must be a path"],
        ),
    ];
    for (url, arguments, named) in wrong {
        let mistakes = read(url, arguments, &[]).unwrap_err();
        assert_eq!(mistakes.len(), named.len(), "{mistakes:?}");
        for (mistake, named) in mistakes.iter().zip(named) {
            assert!(mistake.contains(named), "{mistake} for {named}");
        }
    }
}
