//! The choice between keeping and setting a value. The structs that use it are next to their methods in `keys_driver`.

/// Whether a method keeps a stored value or sets a new one.
///
/// For an optional value, `Set(None)` removes the stored value, and `Keep` keeps it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Change<T> {
    /// Keeps the stored value.
    #[default]
    Keep,
    /// Sets this value.
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
