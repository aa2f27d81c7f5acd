//! Settings: each is a flag, an environment variable `POSTRIDER_…` and a key of a TOML file, in that order of precedence. All mistakes are reported
//! at once.
//!
//! A program lists its [`Setting`]s, reads them with [`Settings::read`], takes each value with a parser, and ends with [`Settings::finish`]. This is the
//! only file that reads the environment.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Arg, ArgAction, Command};

mod program;

pub use self::program::{
    COMMON, ETCD_PASSWORD_FILE, ETCD_USER, STORE, Shared, egress, etcd_credentials, lease_ttl, read_program,
    start_logging,
};

/// Exit code for mistakes in the settings: `EX_USAGE` of sysexits.h.
pub const EXIT_USAGE: u8 = 64;

/// The setting that names the TOML file.
const CONFIG: &str = "config";

/// One setting.
#[derive(Debug, Clone, Copy)]
pub struct Setting {
    /// Its name as a flag, such as `lease-ttl`. The environment variable is `POSTRIDER_LEASE_TTL`, the TOML key `lease-ttl`.
    pub name: &'static str,
    /// What a value looks like, such as `ADDR`. Empty for a switch, which is on or off.
    pub value: &'static str,
    /// For people: one sentence.
    pub help: &'static str,
    /// The value if none is given.
    pub default: Option<&'static str>,
    /// May be given several times (in the environment: separated by commas).
    pub repeatable: bool,
    /// A secret: it has no flag, because flags are seen by everybody on the machine.
    pub secret: bool,
}

impl Setting {
    /// A setting with a default.
    pub const fn new(name: &'static str, value: &'static str, default: &'static str, help: &'static str) -> Self {
        Self {
            name,
            value,
            help,
            default: Some(default),
            repeatable: false,
            secret: false,
        }
    }

    /// A setting that may be left out.
    pub const fn optional(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self {
            name,
            value,
            help,
            default: None,
            repeatable: false,
            secret: false,
        }
    }

    /// A setting that may be given several times.
    pub const fn repeated(name: &'static str, value: &'static str, help: &'static str) -> Self {
        Self {
            repeatable: true,
            ..Self::optional(name, value, help)
        }
    }

    /// A switch.
    pub const fn switch(name: &'static str, help: &'static str) -> Self {
        Self::optional(name, "", help)
    }

    /// A secret, only from the environment or the TOML file.
    pub const fn secret(name: &'static str, help: &'static str) -> Self {
        Self {
            secret: true,
            ..Self::optional(name, "SECRET", help)
        }
    }

    const fn is_switch(&self) -> bool {
        self.value.is_empty()
    }

    fn variable(&self) -> String {
        format!("POSTRIDER_{}", self.name.to_uppercase().replace('-', "_"))
    }
}

/// Why a program does not start.
#[derive(Debug)]
pub enum Exit {
    /// `--help` or `--version`: print this and end with 0.
    Asked(String),
    /// The settings have mistakes.
    Mistakes(Mistakes),
}

impl Exit {
    /// Prints what there is to say and gives the exit code: 0 for help, [`EXIT_USAGE`] for mistakes.
    pub fn report(self) -> ExitCode {
        match self {
            Self::Asked(text) => {
                print!("{text}");
                ExitCode::SUCCESS
            }
            Self::Mistakes(mistakes) => {
                eprint!("{mistakes}");
                ExitCode::from(EXIT_USAGE)
            }
        }
    }
}

/// Every mistake in the settings, each with where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mistakes(pub Vec<String>);

impl fmt::Display for Mistakes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for mistake in &self.0 {
            writeln!(formatter, "error: {mistake}")?;
        }
        Ok(())
    }
}

/// A value, and where it came from.
#[derive(Debug, Clone)]
struct Value {
    text: String,
    origin: String,
}

/// The settings as they were read, and the mistakes found so far.
#[derive(Debug)]
pub struct Settings {
    values: BTreeMap<&'static str, Vec<Value>>,
    mistakes: Vec<String>,
}

impl Settings {
    /// Reads all sources. `command` is the program (and subcommand), `arguments` what follows it.
    ///
    /// # Errors
    /// [`Exit`] if help was asked for, or a flag is unknown.
    pub fn read(
        command: &'static str,
        about: &'static str,
        settings: &[&[Setting]],
        arguments: impl IntoIterator<Item = OsString>,
    ) -> Result<Self, Exit> {
        Self::read_from(command, about, settings, arguments, &|name| std::env::var_os(name))
    }

    fn read_from(
        command: &'static str,
        about: &'static str,
        settings: &[&[Setting]],
        arguments: impl IntoIterator<Item = OsString>,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Result<Self, Exit> {
        let settings: Vec<Setting> = settings.concat();
        let flags = parser(command, about, &settings)
            .try_get_matches_from(std::iter::once(OsString::from(command)).chain(arguments))
            .map_err(|error| match error.kind() {
                clap::error::ErrorKind::DisplayHelp | clap::error::ErrorKind::DisplayVersion => {
                    Exit::Asked(error.to_string())
                }
                _ => Exit::Mistakes(Mistakes(vec![
                    error.to_string().trim_start_matches("error: ").trim_end().to_owned(),
                ])),
            })?;
        let mut read = Self {
            values: BTreeMap::new(),
            mistakes: Vec::new(),
        };
        for setting in &settings {
            if let Some(values) = from_flag(&flags, setting).or_else(|| read.read_variable(setting, environment)) {
                read.values.insert(setting.name, values);
            }
        }
        read.add_file(&settings);
        for setting in &settings {
            if let Some(default) = setting.default {
                let value = Value {
                    text: default.to_owned(),
                    origin: "default".to_owned(),
                };
                read.values.entry(setting.name).or_insert_with(|| vec![value]);
            }
        }
        Ok(read)
    }

    fn read_variable(
        &mut self,
        setting: &Setting,
        environment: &dyn Fn(&str) -> Option<OsString>,
    ) -> Option<Vec<Value>> {
        let variable = setting.variable();
        let Ok(text) = environment(&variable)?.into_string() else {
            self.mistakes.push(format!("{variable}: not UTF-8"));
            return None;
        };
        let value = |text: &str| Value {
            text: text.trim().to_owned(),
            origin: variable.clone(),
        };
        Some(if setting.repeatable {
            text.split(',').map(value).collect()
        } else {
            vec![value(&text)]
        })
    }

    fn add_file(&mut self, settings: &[Setting]) {
        let Some(path) = self
            .values
            .get(CONFIG)
            .and_then(|values| values.first())
            .map(|value| value.text.clone())
        else {
            return;
        };
        let table = match std::fs::read_to_string(&path) {
            Ok(text) => text.parse::<toml::Table>().map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        let table = match table {
            Ok(table) => table,
            Err(error) => return self.mistakes.push(format!("{path}: {}", error.trim_end())),
        };
        for (key, value) in table {
            let Some(setting) = settings
                .iter()
                .find(|setting| setting.name == key && setting.name != CONFIG)
            else {
                self.mistakes.push(format!("{path}: {key}: there is no such setting"));
                continue;
            };
            let texts = match value {
                toml::Value::Array(items) if setting.repeatable => items.iter().map(text_of).collect(),
                other => text_of(&other).map(|text| vec![text]),
            };
            match texts {
                Some(texts) => {
                    let value = |text| Value {
                        text,
                        origin: format!("{path}: {key}"),
                    };
                    self.values
                        .entry(setting.name)
                        .or_insert_with(|| texts.into_iter().map(value).collect());
                }
                None => self
                    .mistakes
                    .push(format!("{path}: {key}: not a value of this setting")),
            }
        }
    }

    /// All values of a setting, each read by `parse`, whose error says what a value should be.
    pub fn all<T, E: fmt::Display>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, E>) -> Vec<T> {
        let mut parsed = Vec::new();
        for value in self.values.get(name).into_iter().flatten() {
            match parse(&value.text) {
                Ok(value) => parsed.push(value),
                Err(error) => self.mistakes.push(format!("{} ({}): {error}", name, value.origin)),
            }
        }
        parsed
    }

    /// The value of a setting that may be left out; `None` also if it has a mistake.
    pub fn maybe<T, E: fmt::Display>(&mut self, name: &'static str, parse: impl Fn(&str) -> Result<T, E>) -> Option<T> {
        self.all(name, parse).pop()
    }

    /// The value of a setting that must be there; `fallback` stands in for it until [`Settings::finish`] reports the mistake.
    pub fn required<T, E: fmt::Display>(
        &mut self,
        name: &'static str,
        fallback: T,
        parse: impl Fn(&str) -> Result<T, E>,
    ) -> T {
        let given = self.values.contains_key(name);
        let value = self.maybe(name, parse);
        if !given {
            self.mistakes.push(format!("{name}: must be set"));
        }
        value.unwrap_or(fallback)
    }

    /// Whether a switch is on.
    pub fn is_on(&mut self, name: &'static str) -> bool {
        let parse = |text: &str| match text {
            "true" | "1" => Ok(true),
            "false" | "0" => Ok(false),
            _ => Err("must be true or false"),
        };
        self.maybe(name, parse).unwrap_or(false)
    }

    /// An address to listen on: beyond loopback only if `insecure` is on, as long as there is neither TLS nor authentication.
    pub fn listen(&mut self, name: &'static str) -> SocketAddr {
        let insecure = self.is_on("insecure");
        self.required(name, SocketAddr::from(([127, 0, 0, 1], 0)), |text| {
            let address: SocketAddr = text.parse().map_err(|_| "must be an address and port such as 127.0.0.1:50051".to_owned())?;
            if insecure || address.ip().is_loopback() {
                return Ok(address);
            }
            Err("there is neither TLS nor authentication, so only loopback may be listened on; --insecure overrides this".to_owned())
        })
    }

    /// Notes a mistake that the program found itself.
    pub fn mistake(&mut self, name: &str, what: impl fmt::Display) {
        self.mistakes.push(format!("{name}: {what}"));
    }

    /// Ends the reading.
    ///
    /// # Errors
    /// All mistakes, if there are any.
    pub fn finish(self) -> Result<(), Exit> {
        if self.mistakes.is_empty() {
            Ok(())
        } else {
            Err(Exit::Mistakes(Mistakes(self.mistakes)))
        }
    }
}

fn parser(command: &'static str, about: &'static str, settings: &[Setting]) -> Command {
    let mut parser = Command::new(command).about(about).version(env!("CARGO_PKG_VERSION"));
    for setting in settings.iter().filter(|setting| !setting.secret) {
        let default = setting
            .default
            .map(|default| format!(" [default: {default}]"))
            .unwrap_or_default();
        let argument = Arg::new(setting.name)
            .long(setting.name)
            .help(format!("{}{default}", setting.help));
        parser = parser.arg(if setting.is_switch() {
            argument.action(ArgAction::SetTrue)
        } else {
            argument.value_name(setting.value).action(if setting.repeatable {
                ArgAction::Append
            } else {
                ArgAction::Set
            })
        });
    }
    // A command that takes no file should not speak of one.
    parser.after_help(if settings.iter().any(|setting| setting.name == CONFIG) {
        "Every setting is also an environment variable (--lease-ttl is POSTRIDER_LEASE_TTL) and a key of the TOML file that \
         --config names (lease-ttl = \"5s\"); a flag goes before the variable, the variable before the file."
    } else {
        "Every setting is also an environment variable (--dry-run is POSTRIDER_DRY_RUN); a flag goes before the variable."
    })
}

fn from_flag(flags: &clap::ArgMatches, setting: &Setting) -> Option<Vec<Value>> {
    if setting.secret {
        return None;
    }
    let origin = format!("--{}", setting.name);
    if setting.is_switch() {
        return flags.get_flag(setting.name).then(|| {
            vec![Value {
                text: "true".to_owned(),
                origin,
            }]
        });
    }
    let values = flags.get_many::<String>(setting.name)?;
    Some(
        values
            .map(|text| Value {
                text: text.clone(),
                origin: origin.clone(),
            })
            .collect(),
    )
}

fn text_of(value: &toml::Value) -> Option<String> {
    match value {
        toml::Value::String(text) => Some(text.clone()),
        toml::Value::Integer(number) => Some(number.to_string()),
        toml::Value::Boolean(on) => Some(on.to_string()),
        toml::Value::Float(_) | toml::Value::Datetime(_) | toml::Value::Array(_) | toml::Value::Table(_) => None,
    }
}

/// A duration such as `500ms`, `5s`, `2m` or `1h`.
///
/// # Errors
/// What a duration looks like.
pub fn duration(text: &str) -> Result<Duration, &'static str> {
    let rule = "must be a duration such as 500ms, 5s, 2m or 1h";
    let digits = text.trim_end_matches(|character: char| character.is_ascii_alphabetic());
    let number: u64 = digits.parse().map_err(|_| rule)?;
    let millis = match text.get(digits.len()..).unwrap_or_default() {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return Err(rule),
    };
    number.checked_mul(millis).map(Duration::from_millis).ok_or(rule)
}

/// A path.
///
/// # Errors
/// If it is empty.
pub fn path(text: &str) -> Result<PathBuf, &'static str> {
    if text.is_empty() {
        Err("must be a path")
    } else {
        Ok(PathBuf::from(text))
    }
}

#[cfg(test)]
mod tests;
