//! The trait by which a transaction reads the error of its work, for every error type of an engine.

use std::error::Error;
use std::ops::Deref;

/// An error type that the work of a [`Transaction`](crate::Transaction) may return.
///
/// It is implemented for every type that implements [`std::error::Error`]. It is also implemented for every type that
/// dereferences to a `dyn std::error::Error`, such as `anyhow::Error`, `eyre::Report` and
/// `Box<dyn std::error::Error + Send + Sync>`. Engines do not implement it. The compiler infers `Kind`, which only
/// separates these implementations.
///
/// The transaction searches the error and its [`source`](std::error::Error::source)s for an error of this crate or of
/// Diesel, and runs the work again if the advice of that error says so. It finds the error inside a context, such as
/// that of `anyhow`. It does not find an error that was converted to a text.
#[diagnostic::on_unimplemented(
    message = "`{Self}` is not an error that a transaction can look into",
    note = "implement `std::error::Error` for it, and `From<api_keys_driver::Error>`"
)]
pub trait TransactionError<Kind> {
    /// Returns the error itself, or the error to which the type dereferences.
    fn as_error(&self) -> &(dyn Error + 'static);
}

/// The kind of a type that is an error itself.
#[derive(Debug)]
pub struct IsError;

/// The kind of a type that dereferences to an error which is `Send` and `Sync`.
#[derive(Debug)]
pub struct DerefsToError;

/// The kind of a type that dereferences to an error which is neither `Send` nor `Sync`.
#[derive(Debug)]
pub struct DerefsToLocalError;

impl<E: Error + 'static> TransactionError<IsError> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        self
    }
}

impl<E: Deref<Target = dyn Error + Send + Sync>> TransactionError<DerefsToError> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        &**self
    }
}

impl<E: Deref<Target = dyn Error>> TransactionError<DerefsToLocalError> for E {
    fn as_error(&self) -> &(dyn Error + 'static) {
        &**self
    }
}
