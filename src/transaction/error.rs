//! How a transaction looks into the error of its work, whatever type an engine uses.

use std::error::Error;
use std::ops::Deref;

/// An error that the work of a [`Transaction`](crate::Transaction) may fail with.
///
/// It is implemented for every type that implements [`std::error::Error`] and for every type that
/// dereferences to a `dyn std::error::Error`, such as `anyhow::Error`, `eyre::Report` and
/// `Box<dyn std::error::Error + Send + Sync>`. There is nothing to implement; `Kind` only keeps these
/// apart, and is inferred.
///
/// A transaction follows [`source`](std::error::Error::source) from the error on, and is run again when
/// it finds an error of this crate or of Diesel that advises so. A context around it, as `anyhow` adds,
/// does not hide it; turning it into a text does.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that a transaction can look into",
    note = "implement `std::error::Error` for it, and `From<api_keys_driver::Error>`"
)]
pub trait TransactionError<Kind> {
    /// Lends the error as what it dereferences to, or as it is.
    fn as_error(&self) -> &(dyn Error + 'static);
}

/// A type that is an error itself.
#[derive(Debug)]
pub struct ItIsOne;

/// A type that dereferences to an error which may be sent to another thread.
#[derive(Debug)]
pub struct ItHoldsOne;

/// A type that dereferences to an error which stays on its thread.
#[derive(Debug)]
pub struct ItHoldsALocalOne;

impl<E: Error + 'static> TransactionError<ItIsOne> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        self
    }
}

impl<E: Deref<Target = dyn Error + Send + Sync>> TransactionError<ItHoldsOne> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        &**self
    }
}

impl<E: Deref<Target = dyn Error>> TransactionError<ItHoldsALocalOne> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        &**self
    }
}
