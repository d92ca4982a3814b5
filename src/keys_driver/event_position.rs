//! The place in the order of events that a follower keeps, and its text.

use std::fmt;
use std::str::FromStr;

use diesel::pg::Pg;
use diesel::prelude::*;

use crate::schema::api_key_events;

/// A place in the order in which events are followed. The default is the place before the first one.
///
/// To keep it, store its text: it reads back as the same place. The text means nothing else, and
/// nothing on another server, because it holds a transaction id of the server that wrote the event.
///
/// ```
/// # use api_keys_driver::EventPosition;
/// let position = EventPosition::default();
/// assert_eq!(position.to_string().parse(), Ok(position));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Queryable, Selectable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
#[diesel(table_name = api_key_events, check_for_backend(Pg))]
pub struct EventPosition {
    pub(super) transaction_id: i64,
    pub(super) id: i64,
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.transaction_id, self.id)
    }
}

/// A text is not one that an [`EventPosition`] was written as.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a position of an event: start from the beginning, or restore what was stored")]
pub struct ParseEventPositionError;

impl FromStr for EventPosition {
    type Err = ParseEventPositionError;

    fn from_str(text: &str) -> Result<Self, ParseEventPositionError> {
        let number = |digits: &str| digits.parse().map_err(|_| ParseEventPositionError);
        let (transaction_id, id) = text.split_once('.').ok_or(ParseEventPositionError)?;
        Ok(Self { transaction_id: number(transaction_id)?, id: number(id)? })
    }
}

#[cfg(feature = "serde")]
impl From<EventPosition> for String {
    fn from(position: EventPosition) -> Self {
        position.to_string()
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for EventPosition {
    type Error = ParseEventPositionError;

    fn try_from(text: String) -> Result<Self, ParseEventPositionError> {
        text.parse()
    }
}
