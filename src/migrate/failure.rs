//! Why a step of `migrate` failed.

use std::error::Error as StdError;
use std::fmt;

use crate::Error;
use crate::steps::Step;

/// The name of a step, and why it failed.
#[derive(Debug)]
pub(super) struct StepFailed {
    step: String,
    source: Box<dyn StdError + Send + Sync>,
}

impl StepFailed {
    pub(super) fn because(step: &str, reason: String) -> Error {
        Error::Migration(Box::new(Self { step: step.to_owned(), source: reason.into() }))
    }

    /// Names the step, unless the error is one that callers match on.
    pub(super) fn at(step: &Step, error: Error) -> Error {
        match error {
            Error::MigrationWaits { .. }
            | Error::Migration(_)
            | Error::ConnectionLost(_)
            | Error::ReadOnly(_) => error,
            other => Error::Migration(Box::new(Self { step: step.name.to_owned(), source: other.into() })),
        }
    }
}

impl fmt::Display for StepFailed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.step)
    }
}

impl StdError for StepFailed {
    fn source(&self) -> Option<&(dyn StdError + 'static)> {
        Some(&*self.source)
    }
}
