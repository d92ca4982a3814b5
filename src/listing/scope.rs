//! The condition of a list: which keys it holds. Each condition has an index. Where a page starts is in `start.rs`.

use diesel::dsl::{And, Eq, not};
use diesel::pg::Pg;
use diesel::prelude::*;
use diesel::query_builder::{AstPass, QueryFragment};

use crate::schema::api_keys;
use crate::{KeyStatus, TenantId};

/// The keys of a tenant that match a condition.
pub(super) enum Scope<'a> {
    All(OfTenant<'a>),
    Shown(shown<'a>),
    Named(And<OfTenant<'a>, Eq<api_keys::name, &'a str>>),
    OfUser(And<OfTenant<'a>, Eq<api_keys::user_id, &'a str>>),
    ShownWithStatus(And<shown<'a>, Eq<api_keys::status, &'a str>>),
}

type OfTenant<'a> = Eq<api_keys::tenant_id, &'a TenantId>;

/// The tenant's keys that customers see. The condition has the same form as the predicate of the partial indexes.
#[diesel::dsl::auto_type]
#[expect(
    clippy::elidable_lifetime_names,
    reason = "the macro names the return type, and asks for the lifetime"
)]
pub(crate) fn shown<'a>(tenant_id: &'a TenantId) -> _ {
    api_keys::tenant_id.eq(tenant_id).and(not(api_keys::is_synthetic))
}

impl<'a> Scope<'a> {
    pub(super) fn all(tenant_id: &'a TenantId) -> Self {
        Self::All(api_keys::tenant_id.eq(tenant_id))
    }

    pub(super) fn named(tenant_id: &'a TenantId, name: &'a str) -> Self {
        Self::Named(api_keys::tenant_id.eq(tenant_id).and(api_keys::name.eq(name)))
    }

    pub(super) fn of_user(tenant_id: &'a TenantId, user_id: &'a str) -> Self {
        Self::OfUser(api_keys::tenant_id.eq(tenant_id).and(api_keys::user_id.eq(user_id)))
    }

    pub(super) fn shown(tenant_id: &'a TenantId) -> Self {
        Self::Shown(shown(tenant_id))
    }

    pub(super) fn shown_with_status(tenant_id: &'a TenantId, status: &'a KeyStatus) -> Self {
        Self::ShownWithStatus(shown(tenant_id).and(api_keys::status.eq(status.as_str())))
    }
}

impl QueryFragment<Pg> for Scope<'_> {
    fn walk_ast<'b>(&'b self, out: AstPass<'_, 'b, Pg>) -> QueryResult<()> {
        match self {
            Self::All(condition) => condition.walk_ast(out),
            Self::Named(condition) => condition.walk_ast(out),
            Self::OfUser(condition) => condition.walk_ast(out),
            Self::Shown(condition) => condition.walk_ast(out),
            Self::ShownWithStatus(condition) => condition.walk_ast(out),
        }
    }
}
