//! What a statement does with one value: leave it, or set it. Which values those are is said where the statement is.

/// What becomes of a value: it stays as it is, or is set to another.
///
/// Of a value that may be missing, `Set(None)` removes it, which is not the same as `Keep`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// The value stays.
    #[default]
    Keep,
    /// The value is set to this one.
    Set(T),
}

impl<T> Change<T> {
    pub(crate) fn is_set(&self) -> bool {
        matches!(self, Self::Set(_))
    }

    pub(crate) fn value(self) -> Option<T> {
        match self {
            Self::Keep => None,
            Self::Set(value) => Some(value),
        }
    }
}
