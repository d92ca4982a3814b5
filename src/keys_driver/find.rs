//! Finding keys by what people know of them: a name, a user, the first characters of the secret.

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
    /// Fetches the tenant's keys that have a name, newest first, behind a cursor or from the start.
    ///
    /// The name is compared whole, character by character. Order and cursor are those of
    /// [`fetch_keys_after`](Self::fetch_keys_after).
    pub fn fetch_keys_by_name(
        &mut self,
        tenant_id: &TenantId,
        name: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let keys = Listing::named(tenant_id, name).after(cursor, limit);
        keys.load(self.conn, |key: ListedKey| key.of(tenant_id))
    }

    /// Fetches the tenant's keys that a user asked for, newest first, behind a cursor or from the start.
    ///
    /// Order and cursor are those of [`fetch_keys_after`](Self::fetch_keys_after).
    pub fn fetch_keys_by_user(
        &mut self,
        tenant_id: &TenantId,
        user_id: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        let keys = Listing::of_user(tenant_id, user_id).after(cursor, limit);
        keys.load(self.conn, |key: ListedKey| key.of(tenant_id))
    }

    /// Fetches the tenant's keys whose stored prefix begins with a text, newest first, behind a cursor or from the
    /// start.
    ///
    /// Characters are compared one by one, and none has a meaning of its own. The empty text is the beginning of
    /// every prefix. Order and cursor are those of [`fetch_keys_after`](Self::fetch_keys_after).
    ///
    /// The server looks through all keys that fit, in an index, before it fetches the page: the whole prefix of a
    /// secret fits a few, while `sk-live-` may fit them all, at about a quarter of a microsecond each.
    ///
    /// # Errors
    ///
    /// [`Error::TooLong`](crate::Error::TooLong) before anything is sent, when the text has more characters than the
    /// 12 that a prefix holds: the rest would be part of a secret. Rows that the existing service wrote before the
    /// column was widened hold 10.
    pub fn fetch_keys_by_prefix(
        &mut self,
        tenant_id: &TenantId,
        prefix: &str,
        cursor: Option<&KeyCursor>,
        limit: u32,
    ) -> Result<Vec<KeySnapshot>> {
        require::is_at_most("key_prefix", 12, prefix)?;
        WithPrefix::new(Some(tenant_id), prefix, cursor, limit).read_all(self.conn)
    }

    /// Fetches the keys of any tenant whose stored prefix begins with a text, newest first, behind a cursor or from the
    /// start.
    ///
    /// This is for the person on call who has the first characters of a leaked key and nothing else; nobody else
    /// should be shown the answer, which crosses tenants. It is like
    /// [`fetch_keys_by_prefix`](Self::fetch_keys_by_prefix) but for the tenant. On a sharded server it asks every shard.
    ///
    /// # Errors
    ///
    /// As for [`fetch_keys_by_prefix`](Self::fetch_keys_by_prefix).
    ///
    /// ```
    /// use api_keys_driver::{KeySnapshot, KeysDriver, Result};
    /// use diesel::PgConnection;
    ///
    /// /// The newest keys that a leaked secret may be. No more of it than its prefix is sent.
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
        WithPrefix::new(None, prefix, cursor, limit).read_all(self.conn)
    }
}

type Columns = <KeySnapshot as Selectable<Pg>>::SelectExpression;

/// A page of the keys whose prefix is in a range.
///
/// `LIKE` with a bound pattern is no range of an index: the server would have to see the pattern when it plans. So the
/// range is bound, in the order of the characters' codes (`~>=~`), which is that of a `text_pattern_ops` index. The keys
/// that fit are chosen in the index, behind the `OFFSET 0`, through which the planner does not pull the order of the
/// page: it would walk all keys of the tenant in that order, looking for a rare prefix.
struct WithPrefix<'a> {
    columns: Columns,
    tenant_id: Option<&'a TenantId>,
    from: &'a str,
    to: Option<String>,
    cursor: Option<(Time, &'a KeyCursor)>,
    limit: i64,
}

impl<'a> WithPrefix<'a> {
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
            to: end_of(prefix),
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

    /// Pushes the selection of the ids of the page.
    fn push_chosen<'b>(&'b self, out: &mut AstPass<'_, 'b, Pg>) -> QueryResult<()> {
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

impl QueryFragment<Pg> for WithPrefix<'_> {
    fn walk_ast<'b>(&'b self, mut out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        out.push_sql("SELECT ");
        self.columns.walk_ast(out.reborrow())?;
        let Some(tenant_id) = self.tenant_id else {
            out.push_sql(r#" FROM "api_keys" WHERE "api_keys"."id" = ANY (ARRAY("#);
            self.push_chosen(&mut out)?;
            out.push_sql(r#")) ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#);
            return Ok(());
        };
        // One key at a time, where a list of ids would be looked for among all keys of an average tenant.
        out.push_sql(" FROM (");
        self.push_chosen(&mut out)?;
        out.push_sql(r#") AS "chosen" CROSS JOIN LATERAL (SELECT "#);
        self.columns.walk_ast(out.reborrow())?;
        out.push_sql(r#" FROM "api_keys" WHERE "api_keys"."tenant_id" = "#);
        out.push_bind_param::<Text, _>(tenant_id)?;
        out.push_sql(r#" AND "api_keys"."id" = "chosen"."id" OFFSET 0) AS "api_keys""#);
        out.push_sql(r#" ORDER BY "api_keys"."created_at" DESC, "api_keys"."id" DESC"#);
        Ok(())
    }
}
/// The first text behind all that begin with a prefix, in the order of the characters' codes, if there is one.
fn end_of(prefix: &str) -> Option<String> {
    let mut end = prefix.to_owned();
    while let Some(last) = end.pop() {
        if let Some(next) = (last..=char::MAX).nth(1) {
            end.push(next);
            return Some(end);
        }
    }
    None
}

// Whether there is a tenant, an end and a cursor makes another statement. The text tells them apart.
impl QueryId for WithPrefix<'_> {
    type QueryId = ();
    const HAS_STATIC_QUERY_ID: bool = false;
}

impl Query for WithPrefix<'_> {
    type SqlType = SqlTypeOf<Columns>;
}

impl RunQueryDsl<PgConnection> for WithPrefix<'_> {}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::end_of;

    #[test]
    fn the_end_of_a_prefix_skips_what_is_no_character() {
        for (prefix, end) in
            [("sk-live", Some("sk-livf")), ("\u{d7ff}", Some("\u{e000}")), ("a\u{10ffff}", Some("b"))]
        {
            assert_eq!(end_of(prefix).as_deref(), end);
        }
        assert_eq!((end_of(""), end_of("\u{10ffff}")), (None, None));
    }

    proptest! {
        #[test]
        fn a_text_is_within_the_range_exactly_when_it_begins_with_the_prefix(prefix: String, text: String, rest: String) {
            for text in [text, format!("{prefix}{rest}"), prefix.clone()] {
                let in_range = *text >= *prefix && end_of(&prefix).is_none_or(|end| text < end);
                prop_assert_eq!(in_range, text.starts_with(&prefix));
            }
        }
    }
}
