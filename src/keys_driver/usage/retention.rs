//! Retention: deletes calls and keeps their usage.

use chrono::{DateTime, Utc};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};
use diesel::sql_types::{BigInt, Timestamptz};

use super::sql::start_of;
use crate::Result;
use crate::keys_driver::KeysDriver;
use crate::prepared::prepared;
use crate::send::RunStatement;
use crate::time::Time;

impl KeysDriver<'_> {
    /// Deletes calls of all tenants that were made before a time, oldest first and at most `limit`, and keeps their
    /// usage. Returns the number of deleted calls; 0 means that none are left.
    ///
    /// It deletes only counted calls, in whole quarter hours in UTC: the calls before the start of the quarter hour
    /// that contains `moment` or [`counted_to`](crate::UsageRollUp::counted_to), whichever is earlier. Call it until it
    /// returns 0. It skips rows that another transaction has locked.
    ///
    /// From then on, if an end of a range lies within the time of deleted calls, it is moved to the start of its
    /// quarter hour, and [`KeyUsageSnapshot::is_rounded`](crate::KeyUsageSnapshot::is_rounded) is true. A `DELETE` by
    /// the service itself still lowers the usage.
    ///
    /// The deleted rows are locked until the transaction ends. For a partitioned table it is cheaper to drop
    /// partitions: see [`retire_calls_before`](Self::retire_calls_before).
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result};
    /// # use chrono::{DateTime, TimeDelta, Utc};
    /// # use diesel::PgConnection;
    /// /// Keeps the calls of 90 days, and the usage of all time.
    /// fn expire(conn: &mut PgConnection, now: DateTime<Utc>) -> Result<()> {
    ///     while KeysDriver::new(conn).delete_calls_before(now - TimeDelta::days(90), 5_000)? > 0 {}
    ///     Ok(())
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # expire(&mut database.connect().unwrap(), Utc::now()).unwrap();
    /// ```
    pub fn delete_calls_before(&mut self, moment: DateTime<Utc>, limit: u32) -> Result<i64> {
        DeleteCalls { moment: moment.into(), limit: limit.into() }.change_one(self.conn)
    }

    /// Declares that calls before a time may be removed while their usage is kept. Returns the time up to which they
    /// may be removed: the start of the quarter hour, in UTC, that contains `moment` or
    /// [`counted_to`](crate::UsageRollUp::counted_to), whichever is earlier. An earlier declaration for a later time
    /// stays in effect.
    ///
    /// Call it in the transaction that drops or detaches a partition of calls. The partition's range must end at or
    /// before the returned time.
    ///
    /// ```
    /// # use api_keys_driver::{KeysDriver, Result, Transaction};
    /// # use chrono::{DateTime, Utc};
    /// # use diesel::PgConnection;
    /// # use diesel::connection::SimpleConnection;
    /// /// Drops the calls of 2025, unless some are not counted yet.
    /// fn drop_2025(conn: &mut PgConnection) -> Result<bool> {
    ///     let end: DateTime<Utc> = "2026-01-01T00:00:00Z".parse().expect("a time");
    ///     Transaction::attempts(3).run(conn, |conn| {
    ///         if KeysDriver::new(conn).retire_calls_before(end)? < end {
    ///             return Ok(false);
    ///         }
    ///         conn.batch_execute("DROP TABLE proxy_calls_2025")?;
    ///         Ok(true)
    ///     })
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # assert!(!drop_2025(&mut database.connect().unwrap()).unwrap());
    /// ```
    pub fn retire_calls_before(&mut self, moment: DateTime<Utc>) -> Result<DateTime<Utc>> {
        let retired: Time = RetireCalls { moment: moment.into() }.change_one(self.conn)?;
        Ok(retired.into())
    }
}

/// The time before which calls may be deleted. It is stored if it is later than the stored one.
///
/// It is not after the frontier, because the trigger does not record later deletions. After a switch-over, the frontier
/// may be before `counted_to`.
macro_rules! retired {
    () => {
        concat!(
            r#""bound" AS MATERIALIZED (SELECT "#,
            start_of!(
                "15 minutes",
                r#"least("moment", (SELECT "counted_to" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1),
                    to_timestamp(pg_sequence_last_value('usage_frontier')))"#
            ),
            r#" AS "to" FROM "asked"),
            "declared" AS (
                UPDATE "usage_retention" SET "deleted_to" = "to" FROM "bound" WHERE "deleted_to" < "to"
            )"#
        )
    };
}

struct DeleteCalls {
    moment: Time,
    limit: i64,
}

/// The trigger subtracts the deleted calls from the sums, and `kept` adds them again.
///
/// Rows are deleted by id and time, which are unique together in plain and in partitioned tables. `ctid` is not unique
/// across partitions. The volatile expressions are in `RETURNING`, so that Citus refuses the statement: see `Recount`.
impl QueryFragment<Pg> for DeleteCalls {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Timestamptz, _>(&self.moment)?;
        out.push_sql(r#"::timestamptz AS "moment", "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(concat!(
            r#"::bigint AS "limit"), "#,
            retired!(),
            r#", "doomed" AS MATERIALIZED (
                SELECT "id", "created_at" FROM "proxy_calls"
                WHERE "created_at" >= '-infinity' AND "created_at" < (SELECT "to" FROM "bound")
                ORDER BY "created_at" LIMIT (SELECT "limit" FROM "asked") FOR UPDATE SKIP LOCKED
            ), "gone" AS (
                DELETE FROM "proxy_calls" USING "doomed"
                WHERE "proxy_calls"."id" = "doomed"."id" AND "proxy_calls"."created_at" = "doomed"."created_at"
                RETURNING "proxy_calls"."tenant_id", "proxy_calls"."api_key_id", "proxy_calls"."created_at", "proxy_calls"."cost_cents",
                          pg_current_xact_id()::text::bigint AS "own"
            ), "kept" AS (
                INSERT INTO "usage_changes" ("transaction_id", "tenant_id", "api_key_id", "created_at", "calls", "spend", "nan_calls")
                SELECT greatest("own",
                                (SELECT "merged_below" FROM "usage_progress" ORDER BY "generation" DESC LIMIT 1)),
                       "tenant_id", "api_key_id", "#,
            start_of!("15 minutes", r#""created_at""#),
            r#", count(*),
                       coalesce(sum("cost_cents") FILTER (WHERE "cost_cents" < 'Infinity' AND "cost_cents" > '-Infinity'), 0),
                       count(*) FILTER (WHERE "cost_cents" >= 'Infinity' OR "cost_cents" = '-Infinity')
                FROM "gone" GROUP BY 1, 2, 3, 4
            )
            SELECT count(*) FROM "gone""#
        ));
        Ok(())
    }
}

struct RetireCalls {
    moment: Time,
}

impl QueryFragment<Pg> for RetireCalls {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(r#"WITH "asked" AS (SELECT "#);
        out.push_bind_param::<Timestamptz, _>(&self.moment)?;
        out.push_sql(concat!(r#"::timestamptz AS "moment"), "#, retired!(), r#" SELECT "to" FROM "bound""#));
        Ok(())
    }
}

prepared!(DeleteCalls => BigInt);

prepared!(RetireCalls => Timestamptz);
