//! Usage: the sums of calls, read from buckets, and the maintenance of the buckets. One file per topic. `docs/usage.md`
//! says how the tables work together. The recording of uses is in `uses`.

mod between;
mod by_key;
mod page;
mod recount;
mod retention;
mod roll_up;
mod series;
mod since;
mod sql;

use bigdecimal::BigDecimal;
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Bool, Nullable, Numeric};

pub use self::recount::{UsageDrift, UsageRecount};
pub use self::roll_up::UsageRollUp;
pub use self::series::{Bucket, UsageBucket};
use crate::{Error, KeyId, Result, TenantId};

/// The number and the cost of the calls of a key or of a tenant.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[non_exhaustive]
pub struct KeyUsageSnapshot {
    /// The number of calls, including blocked and replayed ones.
    pub request_count: i64,
    /// What the calls cost in cents, exact to the fourth decimal.
    pub spend_cents: BigDecimal,
    /// Whether an end of the range lies within a quarter hour whose calls may be deleted
    /// ([`delete_calls_before`](crate::KeysDriver::delete_calls_before)).
    ///
    /// Such an end is moved back to the start of its quarter hour, in UTC. The sum is exact for the resulting range.
    #[cfg_attr(feature = "serde", serde(default))]
    pub is_rounded: bool,
}

/// Sums as a statement returns them. `spend` is `None` if the cost of a call is not a number.
#[derive(Queryable)]
struct Sums {
    calls: i64,
    spend: Option<BigDecimal>,
    is_rounded: bool,
}

/// The usage without calls, for example of an id that no row can hold.
impl Default for Sums {
    fn default() -> Self {
        Self { calls: 0, spend: Some(BigDecimal::default()), is_rounded: false }
    }
}

type SumTypes = (BigInt, Nullable<Numeric>, Bool);

impl Sums {
    fn of_key(self, tenant_id: &TenantId, key_id: &KeyId) -> Result<KeyUsageSnapshot> {
        self.snapshot().ok_or_else(|| Error::CostNotANumber {
            tenant_id: tenant_id.clone(),
            key_id: Some(key_id.clone()),
        })
    }

    fn of_tenant(self, tenant_id: &TenantId) -> Result<KeyUsageSnapshot> {
        self.snapshot().ok_or_else(|| Error::CostNotANumber { tenant_id: tenant_id.clone(), key_id: None })
    }

    fn snapshot(self) -> Option<KeyUsageSnapshot> {
        let Self { calls, spend, is_rounded } = self;
        Some(KeyUsageSnapshot { request_count: calls, spend_cents: spend?, is_rounded })
    }
}
