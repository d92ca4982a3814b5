//! Finding keys by a name, by a user, or by the first characters of the secret.

use diesel::dsl::SqlTypeOf;
use diesel::pg::{Pg, PgConnection};
use diesel::prelude::*;
use diesel::query_builder::{AstPass, Query, QueryFragment, QueryId};
use diesel::sql_types::{BigInt, Text, Timestamptz};

use super::listed_key::ListedKey;
use super::{KeySnapshot, KeysDriver};
use crate::listing::Listing;
use crate::send::RunStatement;
use crate::time::Time;
use crate::{KeyCursor, Result, TenantId, require};

impl KeysDriver<'_> {
    /// Fetches the tenant's keys with this name, newest first, after a cursor or from the start.
    ///
    /// The whole name must be equal, including its case. The order and the cursor are those of
    /// [`fetch_keys_after`](Self::fetch_keys_after).
    pub fn fetch_keys_by_name(
        &mut self,
        tenant_id: &TenantId,
        name: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let keys = Listing::named(tenant_id, name).after(cursor, limit);
        keys.load(self.conn, |key: ListedKey| key.into_snapshot(tenant_id))
    }

    /// Fetches the tenant's keys whose `user_id` is this user, newest first, after a cursor or from the start.
    ///
    /// The order and the cursor are those of [`fetch_keys_after`](Self::fetch_keys_after).
    pub fn fetch_keys_by_user(
        &mut self,
        tenant_id: &TenantId,
        user_id: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let keys = Listing::of_user(tenant_id, user_id).after(cursor, limit);
        keys.load(self.conn, |key: ListedKey| key.into_snapshot(tenant_id))
    }

    /// Fetches the tenant's keys whose stored prefix starts with `prefix`, newest first, after a cursor or from the
    /// start.
    ///
    /// The comparison includes the case, and `%` and `_` are ordinary characters. An empty `prefix` matches every key.
    /// The order and the cursor are those of [`fetch_keys_after`](Self::fetch_keys_after).
    ///
    /// The server reads all matching keys from an index before it fetches the page, which takes about 0.25
    /// microseconds per key. The first 12 characters of a secret match few keys; `sk-live-` may match all of them.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`](crate::Error::TooLong) before anything is sent, if `prefix` has more than 12 characters. The
    /// column holds no more, and further characters would be part of a secret. Rows that the existing service wrote
    /// before the column was widened hold 10 characters.
    pub fn fetch_keys_by_prefix(
        &mut self,
        tenant_id: &TenantId,
        prefix: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        require::is_at_most("key_prefix", 12, prefix)?;
        SelectKeysByPrefix::new(Some(tenant_id), prefix, cursor, limit).read_all(self.conn)
    }

    /// Fetches the keys of all tenants whose stored prefix starts with `prefix`, newest first, after a cursor or from
    /// the start.
    ///
    /// It is for a person on call who has only the first characters of a leaked key. Do not show the answer to
    /// customers, because it crosses tenants. Apart from the tenant, it works like
    /// [`fetch_keys_by_prefix`](Self::fetch_keys_by_prefix). On a sharded server it queries every shard.
    ///
    /// # Errors
    ///
    /// The errors of [`fetch_keys_by_prefix`](Self::fetch_keys_by_prefix).
    ///
    /// ```
    /// use api_keys_driver::{KeySnapshot, KeysDriver, Result};
    /// use diesel::PgConnection;
    ///
    /// /// The newest keys that may have the leaked secret. Only the prefix of the secret is sent.
    /// fn suspects(conn: &mut PgConnection, leaked: &str) -> Result<Vec<KeySnapshot>> {
    ///     let prefix: String = leaked.chars().take(12).collect();
    ///     KeysDriver::new(conn).fetch_keys_of_any_tenant_by_prefix(&prefix, None, 20)
    /// }
    /// # let database = throwaway_postgres::empty().unwrap().prepare(api_keys_driver::migrate).unwrap();
    /// # let mut conn = database.connect().unwrap();
    /// # assert!(suspects(&mut conn, "sk-live-4f2a9c1e-and-the-rest").unwrap().is_empty());
    /// ```
    pub fn fetch_keys_of_any_tenant_by_prefix(
        &mut self,
        prefix: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        require::is_at_most("key_prefix", 12, prefix)?;
        SelectKeysByPrefix::new(None, prefix, cursor, limit).read_all(self.conn)
    }
}

type Columns = <KeySnapshot as Selectable<Pg>>::SelectExpression;

/// Selects a page of the keys whose prefix is in a range of texts.
///
/// `LIKE` with a bind parameter cannot use an index range, because the planner must see the pattern. So the statement
/// binds the range itself and compares by character code (`~>=~`), which is the order of a `text_pattern_ops` index.
/// `OFFSET 0` keeps the order of the page out of the inner select. Without it, the planner would read all keys of the
/// tenant in that order to find a rare prefix.
struct SelectKeysByPrefix<'a> {
    columns: Columns,
    tenant_id: Option<&'a TenantId>,
    from: &'a str,
    /// The upper bound, exclusive. `None` is no bound.
    to: Option<String>,
    cursor: Option<(Time, &'a KeyCursor)>,
    limit: i64,
}

impl<'a> SelectKeysByPrefix<'a> {
    fn new(
        tenant_id: Option<&'a TenantId>,
        prefix: &'a str,
        cursor: Option<&'a KeyCursor>,
        limit: u32,
    ) -> Self {
        Self {
            columns: <KeySnapshot as Selectable<Pg>>::construct_selection(),
            tenant_id,
            from: prefix,
            to: upper_bound(prefix),
            cursor: cursor.map(|cursor| (cursor.created_at.into(), cursor)),
            limit: limit.into(),
        }
    }

    fn push_tenant<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        if let Some(tenant_id) = self.tenant_id {
            out.push_sql(r#""api_keys"."tenant_id" = "#);
            out.push_bind_param::<Text, _>(tenant_id)?;
            out.push_sql(" AND ");
        }
        Ok(())
    }

    /// Pushes the inner select: the ids of the page.
    fn push_ids<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql(
            r#"
                 SELECT "found"."id" FROM (
                   SELECT "api_keys"."created_at", "api_keys"."id" FROM "api_keys" WHERE "#,
        );
        self.push_tenant(out)?;
        out.push_sql(r#""api_keys"."key_prefix" ~>=~ "#);
        out.push_bind_param::<Text, _>(self.from)?;
        if let Some(to) = &self.to {
            out.push_sql(r#" AND "api_keys"."key_prefix" ~<~ "#);
            out.push_bind_param::<Text, _>(to)?;
        }
        out.push_sql(r#" OFFSET 0) AS "found""#);
        if let Some((time, cursor)) = &self.cursor {
            out.push_sql(r#" WHERE ("found"."created_at", "found"."id") < ("#);
            out.push_bind_param::<Timestamptz, _>(time)?;
            out.push_sql(", ");
            out.push_bind_param::<Text, _>(&cursor.id)?;
            out.push_sql(")");
        }
        out.push_sql(r#" ORDER BY "found"."created_at" DESC, "found"."id" DESC LIMIT (SELECT "#);
        out.push_bind_param::<BigInt, _>(&self.limit)?;
        out.push_sql(")");
        Ok(())
    }
}

impl QueryFragment<Pg> for SelectKeysByPrefix<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        let Some(tenant_id) = self.tenant_id else {
            out.push_sql(r#" FROM "api_keys" WHERE "api_keys"."id" = ANY (ARRAY("#);
            self.push_ids(&mut out)?;
            out.push_sql(r#")) ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#);
            return Ok(());
        };
        // `LATERAL` fetches each key by its id. With a list of ids, the planner would read all keys of the tenant.
        out.push_sql(" FROM (");
        self.push_ids(&mut out)?;
        out.push_sql(r#") AS "chosen" CROSS JOIN LATERAL (SELECT "#);
        self.columns.walk_ast(out.reborrow())?;
        out.push_sql(r#" FROM "api_keys" WHERE "api_keys"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(tenant_id)?;
        out.push_sql(r#" AND "api_keys"."id" = "chosen"."id" OFFSET 0) AS "api_keys""#);
        out.push_sql(r#" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#);
        Ok(())
    }
}

/// The smallest text that is greater than every text with this prefix, compared by character code.
fn upper_bound(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

// The SQL text depends on whether there is a tenant, an upper bound and a cursor, so Diesel caches the statement by
// its text.
impl QueryId for SelectKeysByPrefix<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for SelectKeysByPrefix<'_> {
    type SqlType = SqlTypeOf<Columns>;
}

impl RunQueryDsl<PgConnection> for SelectKeysByPrefix<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::upper_bound;

    #[test]
    fn the_upper_bound_of_a_prefix_skips_codes_that_are_no_character() {
        for (prefix, bound) in
            [("sk-live", Some("sk-livf")), ("\u{d7ff}", Some("\u{e000}")), ("a\u{10ffff}", Some("b"))]
        {
            assert_eq!(upper_bound(prefix).as_deref(), bound);
        }
        assert_eq!((upper_bound(""), upper_bound("\u{10ffff}")), (None, None));
    }

    proptest! {
        #[test]
        fn a_text_is_in_the_range_exactly_when_it_starts_with_the_prefix(prefix: String, text: String, rest: String) {
            for text in [text, format!("{prefix}{rest}"), prefix.clone()] {
                let in_range = *text >= *prefix && upper_bound(&prefix).is_none_or(|bound| text < bound);
                prop_assert_eq!(in_range, text.starts_with(&prefix));
            }
        }
    }
}
