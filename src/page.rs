//! A page by offset. A page by cursor is in `cursor.rs`.

/// Selects a stretch of an ordered list: at most `limit` rows after skipping `offset`.
///
/// The default is the first 50. A limit of 0 and an offset past the end are empty pages, not errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Page {
    /// The most rows that are returned.
    pub limit: u32,
    /// The rows that are skipped. The server passes over them one by one, so a deep page costs what it skips. A
    /// row that is inserted or deleted between two pages moves the others: a key is then shown twice, or not at
    /// all. A [`KeyCursor`](crate::KeyCursor) has neither fault.
    pub offset: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 50, offset: 0 }
    }
}
