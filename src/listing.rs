//! Lists and counts of a tenant's keys, newest first. Lists in another order are in `keys_driver/active_by_time.rs`.

#![deny(clippy::disallowed_methods)]

mod form;
mod scope;
mod start;
mod statement;

use diesel::connection::DefaultLoadingMode;
use diesel::deserialize::FromSqlRow;
use diesel::dsl::SqlTypeOf;
use diesel::expression::QueryMetadata;
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::QueryFragment;
use diesel::query_dsl::CompatibleType;

use self::form::{Form, by_scope, by_start};
use self::scope::Scope;
pub(crate) use self::scope::shown;
use self::start::Start;
pub(crate) use self::statement::SelectKeys;
use self::statement::{CountKeys, CountKeysUpTo, OpaqueNumber};
use crate::prepared::Prepared;
use crate::send::{self, RunStatement};
use crate::{KeyCursor, KeyStatus, Page, Result, TenantId};

/// A list of keys: which keys (`scope`), where it starts, and how many keys it has at most.
///
/// A new list starts at the newest key and has no limit.
pub(crate) struct Listing<'a> {
    scope: Scope<'a>,
    start: Start<'a>,
    limit: OpaqueNumber,
}

impl<'a> Listing<'a> {
    /// All keys of a tenant.
    pub(crate) fn all(tenant_id: &'a TenantId) -> Self {
        Self::of(Scope::all(tenant_id))
    }

    /// The keys of a tenant with this name.
    pub(crate) fn named(tenant_id: &'a TenantId, name: &'a str) -> Self {
        Self::of(Scope::named(tenant_id, name))
    }

    /// The keys of a tenant whose `user_id` is this user.
    pub(crate) fn of_user(tenant_id: &'a TenantId, user_id: &'a str) -> Self {
        Self::of(Scope::of_user(tenant_id, user_id))
    }

    /// The keys of a tenant that customers see: all of them, or those with this status.
    pub(crate) fn shown(tenant_id: &'a TenantId, status: Option<&'a KeyStatus>) -> Self {
        Self::of(match status {
            None => Scope::shown(tenant_id),
            Some(status) => Scope::shown_with_status(tenant_id, status),
        })
    }

    fn of(scope: Scope<'a>) -> Self {
        Self { scope, start: Start::Newest, limit: OpaqueNumber::new(u32::MAX) }
    }

    /// One page of the list, by offset.
    pub(crate) fn page(self, Page { limit, offset }: Page) -> Self {
        Self { start: Start::skipping(offset), limit: OpaqueNumber::new(limit), ..self }
    }

    /// One page of the list: the first keys after the cursor, or the first keys of the list.
    pub(crate) fn after(self, cursor: Option<&'a KeyCursor>, limit: u32) -> Self {
        Self { start: Start::after(cursor), limit: OpaqueNumber::new(limit), ..self }
    }

    /// Makes the statement that selects the columns of `Row`, which Diesel checks.
    pub(crate) fn select<Row: Selectable<Pg>>(self) -> SelectKeys<'a, Row::SelectExpression> {
        SelectKeys { columns: Row::construct_selection(), listing: self }
    }

    /// Loads the list, and converts each row to a key.
    #[expect(clippy::disallowed_methods, reason = "it is within `send::read`")]
    pub(crate) fn load<Row, Key>(self, conn: &mut PgConnection, read: impl Fn(Row) -> Key) -> Result<Vec<Key>>
    where
        Row: Selectable<Pg, SelectExpression: QueryFragment<Pg>> + FromSqlRow<SqlTypes<Row>, Pg> + 'static,
        SqlTypes<Row>: CompatibleType<Row, Pg, SqlType = SqlTypes<Row>> + 'static,
        Pg: QueryMetadata<SqlTypes<Row>>,
    {
        send::read(conn, |conn| {
            by_scope!(self.scope, OfScope => by_start!(self.start, FromStart => {
                let keys = Prepared::<(Row, OfScope, FromStart), _>::new(self.select::<Row>());
                collect(keys.load_iter::<Row, DefaultLoadingMode>(conn)?, read)
            }))
        })
    }

    /// Counts the keys of the scope.
    pub(crate) fn count(self, conn: &mut PgConnection) -> Result<i64> {
        struct Count<Scope>(Scope);

        by_scope!(self.scope, OfScope => {
            Prepared::<Count<OfScope>, _>::new(CountKeys(self.scope)).read_one(conn)
        })
    }

    /// Counts the keys of the scope, and stops at `bound`.
    pub(crate) fn count_up_to(self, bound: u32, conn: &mut PgConnection) -> Result<i64> {
        struct CountUpTo<Scope>(Scope);

        let bound = OpaqueNumber::new(bound);
        by_scope!(self.scope, OfScope => {
            Prepared::<CountUpTo<OfScope>, _>::new(CountKeysUpTo { scope: self.scope, bound }).read_one(conn)
        })
    }
}

/// The SQL types of the columns of a row.
type SqlTypes<Row> = SqlTypeOf<<Row as Selectable<Pg>>::SelectExpression>;

/// Collects the keys in one allocation. Diesel's `load` allocates several times, because it ignores the number of rows.
fn collect<Row, Key>(
    rows: impl Iterator<Item = QueryResult<Row>>,
    read: impl Fn(Row) -> Key,
) -> QueryResult<Vec<Key>> {
    let mut keys = Vec::with_capacity(rows.size_hint().0);
    for row in rows {
        keys.push(read(row?));
    }
    Ok(keys)
}
