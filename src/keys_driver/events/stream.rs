//! Follows the changes of all tenants' keys, and deletes events that were followed.

use std::string::FromUtf8Error;

use chrono::{DateTime, Utc};
use diesel::deserialize::{self, FromSql, FromSqlRow};
use diesel::pg::{Pg, PgConnection, PgValue};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Binary, Bool, Nullable, Timestamptz};

use super::super::KeysDriver;
use super::position::EPOCH;
use super::{EventPosition, KeyEventSnapshot};
use crate::send::RunStatement;
use crate::time::{MaybeTime, Time};
use crate::{Error, Result};

/// The next events, and what was open on the server when they were read.
pub(crate) struct EventBatch {
    pub(crate) events: Vec<KeyEventSnapshot>,
    /// The position of the event after `events`, if its tenant or key is not UTF-8.
    pub(crate) unreadable: Option<EventPosition>,
    /// Every transaction below this one has ended.
    pub(crate) oldest_open: i64,
    /// No transaction from this one on had ended.
    pub(crate) next: i64,
}

/// What [`KeysDriver::compact_key_events`] did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Compaction {
    /// The number of deleted events.
    pub deleted: i64,
    /// The position after the last event that this call considered, from which the next call continues. `None` at the
    /// end.
    pub next: Option<EventPosition>,
}

impl KeysDriver<'_> {
    /// Fetches the position after all events that can be followed now. No event will appear before it
    /// later.
    ///
    /// When a cache starts, it fetches this position first, then reads the keys, and then follows from this position:
    /// see [`DeniedKeys`](crate::DeniedKeys).
    ///
    /// # Errors
    ///
    /// [`Error::EventsNotRecorded`] if a trigger is missing or disabled, or if Citus distributes the tables.
    pub fn fetch_key_events_head(&mut self) -> Result<EventPosition> {
        self.fetch_head().map(|(head, _)| head)
    }

    /// Fetches the head as it is before a seed: in a transaction that has written something, the seed would read what
    /// may be rolled back.
    pub(crate) fn fetch_head_to_seed(&mut self) -> Result<EventPosition> {
        match self.fetch_head()? {
            (_, true) => Err(Error::AlreadyInTransaction),
            (head, false) => Ok(head),
        }
    }

    /// The head, and whether the transaction has written something.
    fn fetch_head(&mut self) -> Result<(EventPosition, bool)> {
        let (epoch, oldest_open, has_written): (i64, i64, bool) = FetchHead.read_one(self.conn)?;
        if epoch == 0 {
            return Err(Error::EventsNotRecorded);
        }
        Ok((EventPosition { epoch, transaction_id: oldest_open - 1, id: i64::MAX }, has_written))
    }

    /// Fetches the next events of all tenants' keys after a position, for a follower of all changes.
    ///
    /// `None` is the position before the first event. Start there or from
    /// [`fetch_key_events_head`](Self::fetch_key_events_head), and continue from the position of the last event of each
    /// page. Then no committed event is skipped or returned twice. An empty page means that there are no more events
    /// now.
    ///
    /// Events are in the order of the writers' transaction ids. A page ends before the oldest transaction that is still
    /// open, because that transaction may still commit an event. So a follower waits while a transaction that has
    /// written anything is open, in any database of the server, and skips none of its events. It does not wait for
    /// transactions that only read. Call this outside a transaction, or in one that has written nothing: otherwise the
    /// open transaction is the caller's own.
    ///
    /// Two changes of a key may be in the wrong order, because a transaction that began early may change a key late. So
    /// a follower keeps the event with the highest revision of each key. The revision of an id never decreases: if a
    /// key is deleted and inserted again, its revisions continue after the old ones.
    ///
    /// For the keys that may not be used, [`DeniedKeys`](crate::DeniedKeys) does all this. `docs/events.md` says what a
    /// follower does after a failover and after a restore. On a sharded server, follow each shard separately.
    ///
    /// # Errors
    ///
    /// - [`Error::PositionElsewhere`] if the position is from another server, from before a failover, or from before
    ///   the triggers were created again. The events followed so far may not exist here: start over.
    /// - [`Error::EventsNotRecorded`] if a trigger is missing or disabled, or if Citus distributes the tables.
    /// - [`Error::UnreadableEvent`] if the next event's tenant or key is not UTF-8, as a database in `SQL_ASCII`
    ///   allows. The error holds the event's position: to skip the event, continue from there. Events before it are
    ///   returned first. In the other texts of an event, U+FFFD replaces bytes that are not UTF-8.
    /// - [`Error::InvalidText`] if a text of the page's events has no form in UTF-8, as databases in `WIN1252` and some
    ///   other encodings allow. PostgreSQL then sends none of the page. Correct the text in `api_key_events`.
    pub fn fetch_key_events_after(
        &mut self,
        position: Option<&EventPosition>,
        limit: u32,
    ) -> Result<Vec<KeyEventSnapshot>> {
        let batch = self.follow_key_events(position.copied().unwrap_or(EventPosition::START), limit)?;
        match batch.unreadable {
            Some(position) if batch.events.is_empty() => Err(Error::UnreadableEvent(position)),
            _ => Ok(batch.events),
        }
    }

    pub(crate) fn follow_key_events(&mut self, position: EventPosition, limit: u32) -> Result<EventBatch> {
        self.fetch_event_batch(position, 0, limit)
    }

    /// Fetches the next committed events, also of transactions that are newer than an open one. Others may appear before
    /// them later.
    pub(crate) fn fetch_committed_key_events(
        &mut self,
        position: EventPosition,
        limit: u32,
    ) -> Result<EventBatch> {
        self.fetch_event_batch(position, i64::MAX, limit)
    }

    fn fetch_event_batch(&mut self, position: EventPosition, below: i64, limit: u32) -> Result<EventBatch> {
        let lines: Vec<Line> =
            FollowKeyEvents { position, below, limit: limit.into() }.read_all(self.conn)?;
        let first = lines.first().ok_or(diesel::result::Error::NotFound)?;
        let mut batch =
            EventBatch { events: vec![], unreadable: None, oldest_open: first.oldest_open, next: first.next };
        require_epoch(first.epoch, position)?;
        for line in lines {
            let Some((transaction_id, id)) = line.transaction_id.zip(line.id) else { continue };
            let place = EventPosition { epoch: line.epoch, transaction_id, id };
            let Ok(event) = line.read(place) else {
                batch.unreadable = Some(place);
                break;
            };
            batch.events.push(event);
        }
        Ok(batch)
    }

    /// Deletes old events that every follower has passed, and returns the position to continue from.
    ///
    /// It considers the next `limit` events after `after`, up to `passed`, the position of the slowest follower. It
    /// deletes the events that were recorded before `recorded_before`, except the newest event of each key that exists.
    /// A deleted key loses its history; if its id is inserted again, the revisions continue after the old ones. Start
    /// with `after` as `None`, and continue from [`next`](Compaction::next) until that is `None`. Each call is one
    /// short statement. Do not call it before every follower has a position.
    ///
    /// ```
    /// # use api_keys_driver::{EventPosition, KeysDriver, Result};
    /// # use chrono::{DateTime, TimeDelta, Utc};
    /// # use diesel::PgConnection;
    /// /// Keeps a year of history.
    /// fn compact(conn: &mut PgConnection, passed: &EventPosition, now: DateTime<Utc>) -> Result<i64> {
    ///     let recorded_before = now - TimeDelta::days(365);
    ///     let (mut deleted, mut after) = (0, None);
    ///     loop {
    ///         let done =
    ///             KeysDriver::new(conn).compact_key_events(after.as_ref(), passed, recorded_before, 1000)?;
    ///         deleted += done.deleted;
    ///         after = done.next;
    ///         if after.is_none() {
    ///             return Ok(deleted);
    ///         }
    ///     }
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # let passed = KeysDriver::new(&mut conn).fetch_key_events_head().unwrap();
    /// # assert_eq!(compact(&mut conn, &passed, DateTime::UNIX_EPOCH).unwrap(), 0);
    /// ```
    ///
    /// # Errors
    ///
    /// [`Error::PositionElsewhere`] and [`Error::EventsNotRecorded`] as for
    /// [`fetch_key_events_after`](Self::fetch_key_events_after). Nothing is deleted then.
    pub fn compact_key_events(
        &mut self,
        after: Option<&EventPosition>,
        passed: &EventPosition,
        recorded_before: DateTime<Utc>,
        limit: u32,
    ) -> Result<Compaction> {
        let (after, passed) = (after.copied().unwrap_or(EventPosition::START), *passed);
        let compact =
            CompactKeyEvents { after, passed, recorded_before: recorded_before.into(), limit: limit.into() };
        let (epoch, deleted, transaction_id, id): (i64, i64, Option<i64>, Option<i64>) =
            compact.change_one(self.conn)?;
        require_epoch(epoch, after)?;
        require_epoch(epoch, passed)?;
        let last = transaction_id.zip(id);
        Ok(Compaction {
            deleted,
            next: last.map(|(transaction_id, id)| EventPosition { epoch, transaction_id, id }),
        })
    }
}

fn require_epoch(epoch: i64, position: EventPosition) -> Result<()> {
    match epoch {
        0 => Err(Error::EventsNotRecorded),
        _ if position.is_from(epoch) => Ok(()),
        _ => Err(Error::PositionElsewhere),
    }
}

/// The bytes of a text. They are UTF-8, except in a database whose encoding is `SQL_ASCII`.
#[derive(Clone, Debug, FromSqlRow)]
pub(super) struct Raw(pub(super) Vec<u8>);

impl FromSql<Binary, Pg> for Raw {
    fn from_sql(value: PgValue<'_>) -> deserialize::Result<Self> {
        Ok(Self(value.as_bytes().to_vec()))
    }
}

/// Pushes a text column as bytes. As a text, one wrong byte would make the statement fail on the server.
pub(super) fn push_bytes(table: &str, column: &str, out: &mut AstPass<'_, '_, Pg>) -> QueryResult<()> {
    out.push_sql("pg_catalog.convert_to(");
    out.push_identifier(table)?;
    out.push_sql(".");
    out.push_identifier(column)?;
    for part in [", ", ENCODING, ")"] {
        out.push_sql(part);
    }
    Ok(())
}

/// The encoding of [`Raw`].
pub(super) const ENCODING: &str = "(CASE pg_catalog.getdatabaseencoding() WHEN 'SQL_ASCII' THEN 'SQL_ASCII' ELSE 'UTF8' END)::pg_catalog.name";

impl Raw {
    pub(super) fn read(self) -> Result<String, FromUtf8Error> {
        String::from_utf8(self.0)
    }

    /// For texts that are not ids: U+FFFD replaces bytes that are not UTF-8.
    pub(super) fn read_lossy(self) -> String {
        String::from_utf8_lossy(&self.0).into_owned()
    }
}

/// The state of the server, and an event or nothing.
#[derive(Debug, Queryable)]
struct Line {
    epoch: i64,
    oldest_open: i64,
    next: i64,
    transaction_id: Option<i64>,
    id: Option<i64>,
    tenant_id: Option<Raw>,
    key_id: Option<Raw>,
    revision: Option<i64>,
    kind: Option<Raw>,
    at: MaybeTime,
    recorded_at: MaybeTime,
    actor: Option<Raw>,
    reason: Option<Raw>,
    status: Option<Raw>,
    is_frozen: Option<bool>,
    expires_at: MaybeTime,
}

type LineSql = (
    BigInt,
    BigInt,
    BigInt,
    Nullable<BigInt>,
    Nullable<BigInt>,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<BigInt>,
    Nullable<Binary>,
    Nullable<Timestamptz>,
    Nullable<Timestamptz>,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Binary>,
    Nullable<Bool>,
    Nullable<Timestamptz>,
);

impl Line {
    fn read(self, position: EventPosition) -> Result<KeyEventSnapshot, FromUtf8Error> {
        let id = |raw: Option<Raw>| raw.map_or_else(|| Ok(String::new()), Raw::read);
        let text = |raw: Option<Raw>| raw.map(Raw::read_lossy).unwrap_or_default();
        let moment = |time: MaybeTime| Option::<DateTime<Utc>>::from(time).unwrap_or_default();
        Ok(KeyEventSnapshot {
            position,
            tenant_id: id(self.tenant_id)?.into(),
            key_id: id(self.key_id)?.into(),
            revision: self.revision.unwrap_or_default(),
            kind: text(self.kind).into(),
            at: moment(self.at),
            recorded_at: moment(self.recorded_at),
            actor: self.actor.map(Raw::read_lossy),
            reason: self.reason.map(Raw::read_lossy),
            status: text(self.status).into(),
            is_frozen: self.is_frozen.unwrap_or_default(),
            expires_at: self.expires_at.into(),
        })
    }
}

/// Every transaction below this id has ended.
const OLDEST_OPEN: &str =
    "pg_catalog.pg_snapshot_xmin(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8";
const NEXT: &str =
    "pg_catalog.pg_snapshot_xmax(pg_catalog.pg_current_snapshot())::pg_catalog.text::pg_catalog.int8";

/// Written by hand, as the next ones, because Diesel cannot return the state of the server and the rows in one
/// statement.
#[derive(QueryId)]
struct FetchHead;

impl Query for FetchHead {
    type SqlType = (BigInt, BigInt, Bool);
}

impl RunQueryDsl<PgConnection> for FetchHead {}

impl QueryFragment<Pg> for FetchHead {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        for part in
            ["SELECT ", EPOCH, ", ", OLDEST_OPEN, ", pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL"]
        {
            out.push_sql(part);
        }
        Ok(())
    }
}

#[derive(QueryId)]
struct FollowKeyEvents {
    position: EventPosition,
    /// Events of transactions below this one are returned although an older transaction is open.
    below: i64,
    limit: i64,
}

impl Query for FollowKeyEvents {
    type SqlType = LineSql;
}

impl RunQueryDsl<PgConnection> for FollowKeyEvents {}

impl QueryFragment<Pg> for FollowKeyEvents {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        for part in ["SELECT ", EPOCH, ", ", OLDEST_OPEN, ", ", NEXT] {
            out.push_sql(part);
        }
        for column in [
            "transaction_id",
            "id",
            "tenant_id",
            "key_id",
            "revision",
            "kind",
            "at",
            "recorded_at",
            "actor",
            "reason",
            "status",
            "is_frozen",
            "expires_at",
        ] {
            out.push_sql(", ");
            if ["tenant_id", "key_id", "kind", "actor", "reason", "status"].contains(&column) {
                push_bytes("e", column, &mut out)?;
            } else {
                out.push_sql(r#""e"."#);
                out.push_identifier(column)?;
            }
        }
        out.push_sql(
            r#" FROM (SELECT 1) AS "server" LEFT JOIN LATERAL (
                 SELECT "transaction_id", "id", "tenant_id", "key_id", "revision", "kind", "at", "recorded_at",
                   "actor", "reason", "status", "is_frozen", "expires_at"
                 FROM "api_key_events"
                 WHERE ("transaction_id", "id") > ("#,
        );
        out.push_bind_param::<BigInt, _>(&self.position.transaction_id)?;
        out.push_sql(", ");
        out.push_bind_param::<BigInt, _>(&self.position.id)?;
        for part in [r#") AND "transaction_id" < greatest("#, OLDEST_OPEN, ", "] {
            out.push_sql(part);
        }
        out.push_bind_param::<BigInt, _>(&self.below)?;
        out.push_sql(r#") ORDER BY "transaction_id", "id" LIMIT "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(r#") AS "e" ON true"#);
        Ok(())
    }
}

#[derive(QueryId)]
struct CompactKeyEvents {
    after: EventPosition,
    passed: EventPosition,
    recorded_before: Time,
    limit: i64,
}

impl Query for CompactKeyEvents {
    type SqlType = (BigInt, BigInt, Nullable<BigInt>, Nullable<BigInt>);
}

impl RunQueryDsl<PgConnection> for CompactKeyEvents {}

impl QueryFragment<Pg> for CompactKeyEvents {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        for part in [r#"WITH "server" AS (SELECT "#, EPOCH] {
            out.push_sql(part);
        }
        out.push_sql(
            r#" AS "epoch"), "looked_at" AS (
                 SELECT "transaction_id", "id",
                   NOT EXISTS (
                     SELECT FROM "api_keys"
                     WHERE "api_keys"."tenant_id" = "api_key_events"."tenant_id" AND "api_keys"."id" = "api_key_events"."key_id"
                   ) AS "is_gone"
                 FROM "api_key_events"
                 WHERE ("transaction_id", "id") > ("#,
        );
        out.push_bind_param::<BigInt, _>(&self.after.transaction_id)?;
        out.push_sql(", ");
        out.push_bind_param::<BigInt, _>(&self.after.id)?;
        out.push_sql(r#") AND ("transaction_id", "id") <= ("#);
        out.push_bind_param::<BigInt, _>(&self.passed.transaction_id)?;
        out.push_sql(", ");
        out.push_bind_param::<BigInt, _>(&self.passed.id)?;
        for part in
            [r#") AND "transaction_id" < "#, OLDEST_OPEN, r#" ORDER BY "transaction_id", "id" LIMIT "#]
        {
            out.push_sql(part);
        }
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(
            r#"), "deleted" AS (
                 DELETE FROM "api_key_events" AS "e" USING "looked_at" AS "l"
                 WHERE "e"."transaction_id" = "l"."transaction_id" AND "e"."id" = "l"."id" AND "e"."recorded_at" < "#,
        );
        out.push_bind_param::<Timestamptz, _>(&self.recorded_before)?;
        for position in [&self.after, &self.passed] {
            out.push_sql(r#" AND (SELECT "epoch" FROM "server") IN (nullif("#);
            out.push_bind_param::<BigInt, _>(&position.epoch)?;
            out.push_sql(", 0), CASE ");
            out.push_bind_param::<BigInt, _>(&position.epoch)?;
            out.push_sql(r#" WHEN 0 THEN (SELECT nullif("epoch", 0) FROM "server") END)"#);
        }
        out.push_sql(
            r#" AND ("l"."is_gone" OR EXISTS (
                   SELECT FROM "api_key_events" AS "newer"
                   WHERE "newer"."tenant_id" = "e"."tenant_id" AND "newer"."key_id" = "e"."key_id"
                     AND ("newer"."revision", "newer"."id") > ("e"."revision", "e"."id")
                 ))
                 RETURNING "e"."revision", "l"."is_gone"
               ), "past" AS (
                 UPDATE "api_key_events_compacted" SET "revision" = "gone"."revision"
                 FROM (SELECT max("revision") AS "revision" FROM "deleted" WHERE "is_gone") AS "gone"
                 WHERE "api_key_events_compacted"."revision" < "gone"."revision"
               )
               SELECT "epoch", (SELECT count(*) FROM "deleted"), "last"."transaction_id", "last"."id"
               FROM "server" LEFT JOIN LATERAL (
                 SELECT "transaction_id", "id" FROM "looked_at" ORDER BY "transaction_id" DESC, "id" DESC LIMIT 1
               ) AS "last" ON true"#,
        );
        Ok(())
    }
}
