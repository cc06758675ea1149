//! A flag for each setting of a run, made of what the library declares of it: name, help, kind of value, default.

use std::ffi::{OsStr, OsString};

use clap::builder::{PathBufValueParser, PossibleValuesParser, StringValueParser, TypedValueParser};
use clap::{Arg, ArgAction, ArgMatches, Args, Command, FromArgMatches};
use vpt::Message;
use vpt::config::RunConfig;
use vpt::methods::help;
use vpt::methods::settings::{Heading, Setting, Settings, ValueKind};

use super::flags::{flag, words};

/// What was said of the settings of a run, in the order of their declarations.
#[derive(Debug, Default)]
pub(crate) struct SettingFlags {
    given: Vec<(&'static str, OsString)>,
    /// Neither look for features in the cache nor keep any.
    pub(crate) no_cache: bool,
}

impl SettingFlags {
    /// Whether nothing was said.
    pub(crate) fn is_empty(&self) -> bool {
        self.given.is_empty() && !self.no_cache
    }

    /// What was said of `name`.
    pub(crate) fn get(&self, name: &str) -> Option<&OsStr> {
        self.given.iter().find(|(given, _)| *given == name).map(|(_, value)| value.as_os_str())
    }

    /// Sets in `config` what was said.
    pub(crate) fn apply(self, config: &mut RunConfig) -> vpt::Result<()> {
        self.given.into_iter().try_for_each(|(name, value)| config.set(name, &value).map(drop))
    }
}

/// The settings that `train` has flags for.
fn settings() -> impl Iterator<Item = Setting> {
    RunConfig::all().into_iter().filter(|setting| setting.heading != Heading::Global)
}

impl Args for SettingFlags {
    fn augment_args(command: Command) -> Command {
        settings().fold(command, |command, setting| match setting.name {
            "flip" => {
                let no =
                    Arg::new("no_flip").long("no-flip").help("Mirror no training image").action(ArgAction::SetTrue);
                command.arg(arg(setting).overrides_with("no_flip")).arg(no.help_heading(setting.heading.title()))
            }
            "cache_dir" => {
                let no = Arg::new("no_cache").long("no-cache").action(ArgAction::SetTrue).conflicts_with("cache_dir");
                let no = no.help("Neither look for features in the cache nor keep any");
                command.arg(arg(setting)).arg(no.help_heading(setting.heading.title()))
            }
            "draw" => command.arg(arg(setting).conflicts_with("shots")),
            _ => command.arg(arg(setting)),
        })
    }

    fn augment_args_for_update(command: Command) -> Command {
        Self::augment_args(command)
    }
}

impl FromArgMatches for SettingFlags {
    fn from_arg_matches(matches: &ArgMatches) -> Result<Self, clap::Error> {
        let mut flags = Self::default();
        flags.update_from_arg_matches(matches)?;
        Ok(flags)
    }

    fn update_from_arg_matches(&mut self, matches: &ArgMatches) -> Result<(), clap::Error> {
        for setting in settings() {
            let given = match setting.kind {
                ValueKind::Switch if !setting.value.is_empty() => {
                    matches.get_raw(setting.name).and_then(|mut words| words.next()).map(OsStr::to_owned)
                }
                ValueKind::Switch if matches.get_flag(setting.name) => Some("true".into()),
                ValueKind::Switch if setting.name == "flip" && matches.get_flag("no_flip") => Some("false".into()),
                ValueKind::Switch => None,
                kind => {
                    // Several words are one value.
                    let between = if matches!(kind, ValueKind::Choices(_)) { "," } else { " " };
                    let words = matches.get_raw(setting.name);
                    words.map(|words| words.collect::<Vec<_>>().join(OsStr::new(between)))
                }
            };
            self.given.extend(given.map(|value| (setting.name, value)));
        }
        self.no_cache = matches.get_flag("no_cache");
        Ok(())
    }
}

/// The flag of `setting`.
fn arg(setting: Setting) -> Arg {
    let arg = Arg::new(setting.name).long(setting.name.replace('_', "-")).help_heading(setting.heading.title());
    let (short, long) = help_of(&setting);
    let arg = if long.is_empty() { arg.help(short) } else { arg.long_help(format!("{short}\n\n{long}")).help(short) };
    let arg = match setting.kind {
        // One whose values have names takes one of them.
        ValueKind::Switch if !setting.value.is_empty() => {
            arg.value_parser(PossibleValuesParser::new(setting.value.split('|')))
        }
        ValueKind::Switch => return arg.action(ArgAction::SetTrue),
        ValueKind::Choice(names) => arg.value_parser(PossibleValuesParser::new(names)),
        ValueKind::Choices(names) => arg.value_parser(PossibleValuesParser::new(names)).value_delimiter(','),
        ValueKind::Path => arg.value_parser(PathBufValueParser::new()),
        ValueKind::Pair => arg.num_args(2).value_parser(clap::value_parser!(f32)),
        ValueKind::Number | ValueKind::Parsed | ValueKind::Text => arg.value_parser(word(setting)),
    };
    let arg = arg.value_names(setting.value.split(' ').collect::<Vec<_>>());
    if matches!(setting.kind, ValueKind::Number | ValueKind::Parsed) { arg.allow_negative_numbers(true) } else { arg }
}

/// Short help, with the methods that have the setting and its default, and what a long one says beside.
fn help_of(setting: &Setting) -> (String, String) {
    let paragraphs: Vec<String> = setting
        .help
        .split(|line| line.trim().is_empty())
        .map(|lines| lines.iter().map(|line| line.trim()).collect::<Vec<_>>().join(" "))
        .collect();
    let mut short = paragraphs.first().map(|text| named(text)).unwrap_or_default();
    let methods = help::methods_with(setting.name);
    if !methods.is_empty() {
        short = format!("{short} ({})", methods.join(", "));
    }
    if let Some(default) = setting.default_text() {
        short = format!("{short} [default: {}]", named(&default));
    }
    let more = if setting.name == "method" { help::methods() } else { Vec::new() };
    let long: Vec<String> = paragraphs.iter().skip(1).chain(&more).map(|text| named(text)).collect();
    (short, long.join("\n\n"))
}

/// `text` with settings, which it has in backticks, as flags.
fn named(text: &str) -> String {
    RunConfig::all()
        .iter()
        .fold(text.to_owned(), |text, setting| text.replace(&format!("`{}`", setting.name), &flag(setting.name)))
}

/// A parser for one word that the setting can have as its value.
fn word(setting: Setting) -> impl TypedValueParser<Value = String> {
    StringValueParser::new().try_map(move |text| match (setting.look)(text.as_ref()) {
        Ok(()) => Ok(text),
        Err(message) if setting.kind == ValueKind::Parsed => {
            Err(words(&Message::new().field(setting.name).text(": ").text(message)))
        }
        Err(message) => Err(words(&message)),
    })
}
