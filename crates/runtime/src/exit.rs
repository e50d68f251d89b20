//! How a process ends: what it says, and with which code.
//!
//! 0 is success, [`FAILED`] a failure, [`USAGE`] a mistake in the arguments, the environment or the configuration file.

use std::process::ExitCode;

/// The process failed.
pub const FAILED: u8 = 1;

/// The arguments, the environment or the configuration file are wrong (`EX_USAGE` of sysexits.h).
pub const USAGE: u8 = 64;

/// What the user has to change before it can work: one plain sentence that names the place and the reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct UsageError(String);

impl UsageError {
    /// An error with this sentence.
    pub fn new(sentence: impl Into<String>) -> Self {
        Self(sentence.into())
    }
}

/// The exit code for a failure: [`USAGE`] when a [`UsageError`] is anywhere in its chain.
pub fn code(error: &anyhow::Error) -> u8 {
    if error.chain().any(|cause| cause.is::<UsageError>()) { USAGE } else { FAILED }
}

/// Ends `main`: says what went wrong on stderr, in one line, and chooses the exit code.
pub fn finish(result: Result<(), anyhow::Error>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::from(code(&error))
        }
    }
}

/// Parses the process' arguments. `Err` is the code to exit with: help and version were asked for (0), or the
/// arguments are wrong and that was said ([`USAGE`]).
pub fn arguments<P: clap::Parser>() -> Result<P, ExitCode> {
    P::try_parse().map_err(|error| {
        // Nothing can be done when neither stdout nor stderr takes the text; the code still says it.
        let _ = error.print();
        if error.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::Context;

    #[test]
    fn a_usage_error_is_found_under_any_context() {
        let usage = Err::<(), _>(UsageError::new("a.yaml: proxy: wrong")).context("starting").unwrap_err();
        assert_eq!(code(&usage), USAGE);
        assert_eq!(format!("{usage:#}"), "starting: a.yaml: proxy: wrong");
        assert_eq!(code(&anyhow::anyhow!("disk on fire")), FAILED);
    }
}
