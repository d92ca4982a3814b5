//! A page of a list by offset. Cursors are in `cursor.rs`.

/// A page of an ordered list: at most `limit` rows after the first `offset` rows.
///
/// The default is the first 50 rows. A limit of 0 and an offset past the end return an empty page, not an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
pub struct Page {
    /// The largest number of rows to return.
    pub limit: u32,
    /// The number of rows to skip. The server reads the skipped rows, so a large offset is slow. If a key is
    /// inserted or deleted between two pages, the next page may repeat or miss a key. A
    /// [`KeyCursor`](crate::KeyCursor) avoids both problems.
    pub offset: u32,
}

impl Default for Page {
    fn default() -> Self {
        Self { limit: 50, offset: 0 }
    }
}
