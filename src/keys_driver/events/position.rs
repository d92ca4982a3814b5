//! A follower's position in the order of events, its text, and the server that it belongs to.

use std::fmt;
use std::str::FromStr;

use diesel::helper_types::AsExprOf;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::sql_types::BigInt;

use crate::schema::api_key_events;
use crate::{Error, Result};

/// A position in the order in which events are followed: directly after one event.
///
/// A position belongs to one server: it holds a transaction id, and after a failover the new primary may give the same
/// id to another transaction. So a position also identifies the server, its timeline, and the installation of this
/// crate's triggers. [`fetch_key_events_after`](crate::KeysDriver::fetch_key_events_after) refuses a position of
/// another one.
///
/// To keep it, store its `Display` text, which is opaque. `FromStr` parses it.
///
/// ```
/// # use api_keys_driver::{EventPosition, KeysDriver};
/// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
/// # let mut conn = database.connect().unwrap();
/// let position = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
/// assert_eq!(position.to_string().parse::<EventPosition>().unwrap(), position);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Queryable, Selectable)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(into = "String", try_from = "String"))]
#[diesel(table_name = api_key_events, check_for_backend(Pg))]
pub struct EventPosition {
    /// 0 means any server.
    #[diesel(select_expression = 0_i64.into_sql::<BigInt>(), select_expression_type = AsExprOf<i64, BigInt>)]
    pub(crate) epoch: i64,
    pub(crate) transaction_id: i64,
    pub(crate) id: i64,
}

impl EventPosition {
    /// Before the first event, on any server.
    pub(crate) const START: Self = Self { epoch: 0, transaction_id: 0, id: 0 };

    /// Returns the same position without its server and timeline, so that it is accepted on any server.
    ///
    /// Use it only if the events up to the position are known to be the same there, for example after a failover to a
    /// synchronous standby.
    #[must_use]
    pub fn anywhere(self) -> Self {
        Self { epoch: 0, ..self }
    }

    pub(crate) fn is_from(self, epoch: i64) -> bool {
        self.epoch == 0 || self.epoch == epoch
    }
}

impl fmt::Display for EventPosition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}.{}.{}", self.epoch, self.transaction_id, self.id)
    }
}

impl FromStr for EventPosition {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        parse(text).filter(|position| position.to_string() == text).ok_or(Error::EventPosition)
    }
}

/// It also accepts texts that `Display` does not write, for example with capital letters.
fn parse(text: &str) -> Option<EventPosition> {
    let mut parts = text.split('.');
    let epoch = i64::from_str_radix(parts.next()?, 16).ok()?;
    let (transaction_id, id) = (parts.next()?.parse().ok()?, parts.next()?.parse().ok()?);
    Some(EventPosition { epoch, transaction_id, id })
}

#[cfg(feature = "serde")]
impl From<EventPosition> for String {
    fn from(position: EventPosition) -> Self {
        position.to_string()
    }
}

#[cfg(feature = "serde")]
impl TryFrom<String> for EventPosition {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// A number that all positions of this server, timeline and installation of the triggers have in common. It is 0 if one
/// of the triggers that record events is missing or disabled, if other tables inherit from `api_keys` (its triggers do
/// not fire for their rows), or if Citus distributes the table and plans the statement.
///
/// A trigger that was disabled and is enabled again has the same id, but its row in the catalog has another `xmin`.
/// Changes in between were not recorded, so older positions are refused.
///
/// A view over a shard has no triggers. Its own id is used instead, because the view is created again when the shard
/// has moved.
///
/// The timeline of a primary is in the name of its WAL file. On a standby, only the control file has the timeline of
/// the last checkpoint and the one that the standby recovers to.
///
/// `SELECT 1`, because Citus cannot take an `EXISTS` whose select list is empty.
pub(crate) const EPOCH: &str = r#"coalesce(pg_catalog.hashtextextended(pg_catalog.concat_ws('.',
     (SELECT "system_identifier" FROM pg_catalog.pg_control_system()),
     CASE WHEN pg_catalog.pg_is_in_recovery()
       THEN pg_catalog.lpad(pg_catalog.upper(pg_catalog.to_hex(greatest(
         (SELECT "timeline_id" FROM pg_catalog.pg_control_checkpoint()),
         (SELECT "min_recovery_end_timeline" FROM pg_catalog.pg_control_recovery())))), 8, '0')
       ELSE pg_catalog.left(pg_catalog.pg_walfile_name(pg_catalog.pg_current_wal_insert_lsn()), 8)
     END,
     '') || CASE WHEN EXISTS (
       SELECT 1 FROM pg_catalog.pg_class
       WHERE "oid" = pg_catalog.to_regclass('api_keys') AND "relkind" IN ('r', 'p')
     ) THEN (
       SELECT pg_catalog.string_agg(pg_catalog.concat_ws(':', "oid", "xmin"), ',' ORDER BY "tgname")
       FROM pg_catalog.pg_trigger
       WHERE "tgrelid" = pg_catalog.to_regclass('api_keys') AND "tgenabled" IN ('O', 'A')
         AND "tgname" IN ('~api_keys_compare', '~api_keys_number', '~api_keys_number_update', '~api_keys_tell',
           '~api_keys_tell_truncated', '~api_keys_tell_update')
         AND NOT EXISTS (
           SELECT 1 FROM pg_catalog.pg_inherits WHERE "inhparent" = pg_catalog.to_regclass('api_keys')
         )
         AND NOT EXISTS (
           SELECT 1 FROM pg_catalog.pg_trigger AS "of_citus"
           WHERE "of_citus"."tgrelid" = pg_catalog.to_regclass('api_keys')
             AND "of_citus"."tgname" LIKE 'truncate\_trigger\_%' AND "of_citus"."tgisinternal"
         )
       HAVING count(*) = 6
     ) ELSE pg_catalog.to_regclass('api_keys')::pg_catalog.oid::pg_catalog.text END, 0) & 9223372036854775807, 0)"#;
