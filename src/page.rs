/// Selects a stretch of an ordered list: at most `limit` rows after skipping `offset`.
///
/// The default is the first 50. A limit of 0 and an offset past the end are empty pages, not errors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Page {
    /// The most rows that are returned.
    pub limit: u32,
    /// The rows that are skipped. The server passes them one by one: a deep page costs what it skips,
    /// which a [`KeyCursor`](crate::KeyCursor) does not.
    pub offset: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 50, offset: 0 }
    }
}
