//! Logs: one line an event on stderr, as text or as JSON.
//!
//! What may be in them is the business of who writes them: no header values, no credentials, no query strings.

use std::io::IsTerminal;
use std::str::FromStr;
use std::sync::OnceLock;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use crate::exit::UsageError;

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// For people: time, level, spans, message, fields.
    #[default]
    Text,
    /// For machines: one JSON object a line.
    Json,
}

impl Format {
    /// The name that [`FromStr`] reads.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::Json => "json",
        }
    }
}

impl FromStr for Format {
    type Err = UsageError;

    fn from_str(text: &str) -> Result<Self, UsageError> {
        match text {
            "text" => Ok(Self::Text),
            "json" => Ok(Self::Json),
            other => Err(UsageError::new(format!("log format {other:?} is neither text nor json"))),
        }
    }
}

/// Checks a filter: a level (`error`, `warn`, `info`, `debug`, `trace`, `off`) or `tracing` directives such as
/// `info,damselfly::p2p=debug`.
///
/// A word alone must be a level: `tracing` would take any other for a target, and the log would be silent.
pub fn check_filter(filter: &str) -> Result<(), UsageError> {
    let lone = |word: &&str| !word.contains(['=', '[']) && word.parse::<LevelFilter>().is_err();
    if let Some(word) = filter.split(',').map(str::trim).find(lone) {
        let levels = "error, warn, info, debug, trace or off";
        return Err(UsageError::new(format!("log level {word:?} is none of {levels}, nor TARGET=LEVEL")));
    }
    EnvFilter::try_new(filter)
        .map(drop)
        .map_err(|error| UsageError::new(format!("log level {filter:?} is not understood: {error}")))
}

/// Starts logging for the whole process. Call it once, first.
pub fn init(filter: &str, format: Format) -> Result<(), UsageError> {
    check_filter(filter)?;
    let builder = tracing_subscriber::fmt().with_env_filter(EnvFilter::new(filter)).with_writer(std::io::stderr);
    // Each format's subscriber, and what changes its filter, is another type.
    macro_rules! start {
        ($builder:expr) => {{
            let builder = $builder.with_filter_reloading();
            let handle = builder.reload_handle();
            let change = move |filter| handle.reload(filter).map_err(|error| error.to_string());
            builder.try_init().map(|()| CHANGE.set(Box::new(change)).is_ok())
        }};
    }
    let started = match format {
        Format::Text => start!(builder.with_ansi(std::io::stderr().is_terminal())),
        Format::Json => start!(builder.json().flatten_event(true)),
    };
    started.map(drop).map_err(|error| UsageError::new(format!("logging cannot start: {error}")))
}

type Change = Box<dyn Fn(EnvFilter) -> Result<(), String> + Send + Sync>;

/// Changes the filter of the log that was started.
static CHANGE: OnceLock<Change> = OnceLock::new();

/// Logs by another filter from now on.
pub fn set_filter(filter: &str) -> Result<(), UsageError> {
    check_filter(filter)?;
    let Some(change) = CHANGE.get() else { return Err(UsageError::new("there is no log".to_owned())) };
    change(EnvFilter::new(filter)).map_err(UsageError::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_have_names() {
        for format in [Format::Text, Format::Json] {
            assert_eq!(format.as_str().parse(), Ok(format));
        }
        assert!("xml".parse::<Format>().is_err());
    }

    #[test]
    fn filters_are_checked() {
        for good in ["info", "off", "warn,damselfly::p2p=trace"] {
            assert_eq!(check_filter(good), Ok(()), "{good}");
        }
        for bad in ["damselfly=loud", "a=b=c", "loud", "verbose,damselfly=info"] {
            assert!(check_filter(bad).is_err(), "{bad}");
        }
    }
}
