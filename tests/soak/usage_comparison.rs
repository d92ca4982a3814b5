//! Compares every method of usage with the plain sum over the calls, in one snapshot.

use api_keys_driver::{
    BigDecimal, Bucket, Error, KeyId, KeyUsageSnapshot, KeysDriver, Page, Result, TenantId,
};
use chrono::{DateTime, DurationRound, TimeDelta, Utc};
use diesel::prelude::*;
use diesel::sql_types::{BigInt, Nullable, Numeric, Text, Timestamptz};

use super::random::Random;
use super::{Counts, KEYS, add};

/// The plain sums over the calls of a snapshot.
#[derive(Debug, Default, QueryableByName)]
struct Plain {
    #[diesel(sql_type = Nullable<Text>)]
    api_key_id: Option<String>,
    #[diesel(sql_type = BigInt)]
    calls: i64,
    #[diesel(sql_type = Nullable<Numeric>)]
    spend: Option<BigDecimal>,
    #[diesel(sql_type = BigInt)]
    nan: i64,
}

pub(super) struct Snapshot<'a> {
    conn: &'a mut PgConnection,
    counts: &'a Counts,
    deleted_to: DateTime<Utc>,
}

impl<'a> Snapshot<'a> {
    pub(super) fn new(conn: &'a mut PgConnection, counts: &'a Counts) -> Result<Self> {
        let deleted_to = diesel::dsl::sql::<Timestamptz>(
            "SELECT greatest(deleted_to, '1970-01-01 00:00Z') FROM usage_retention",
        );
        let deleted_to = deleted_to.get_result(conn)?;
        Ok(Self { conn, counts, deleted_to })
    }

    fn is_rounded(&self, end: DateTime<Utc>) -> bool {
        end < self.deleted_to && end.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour") != end
    }

    fn moved(&self, end: DateTime<Utc>) -> DateTime<Utc> {
        if self.is_rounded(end) {
            end.duration_trunc(TimeDelta::minutes(15)).expect("a quarter hour")
        } else {
            end
        }
    }

    fn plain(
        &mut self,
        tenant: &str,
        whose: &str,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Vec<Plain>> {
        let (from, to) = (self.moved(from), to.map(|to| self.moved(to)));
        let to = to.map_or("'infinity'".to_owned(), |to| format!("'{to}'"));
        let rows = diesel::sql_query(format!(
            "SELECT {whose} AS api_key_id, count(*) AS calls, count(*) FILTER (WHERE cost_cents = 'NaN') AS nan,
                    sum(cost_cents) FILTER (WHERE cost_cents <> 'NaN') AS spend
             FROM every_call WHERE tenant_id = '{tenant}' AND created_at >= '{from}' AND created_at < {to} GROUP BY 1"
        ));
        Ok(rows.load(self.conn)?)
    }

    fn of_key(
        &mut self,
        tenant: &str,
        key: &str,
        from: DateTime<Utc>,
        to: Option<DateTime<Utc>>,
    ) -> Result<Plain> {
        let (moved, end) = (self.moved(from), to.map(|to| self.moved(to)));
        let end = end.map_or("'infinity'".to_owned(), |to| format!("'{to}'"));
        let row = diesel::sql_query(format!(
            "SELECT NULL AS api_key_id, count(*) AS calls, count(*) FILTER (WHERE cost_cents = 'NaN') AS nan,
                    sum(cost_cents) FILTER (WHERE cost_cents <> 'NaN') AS spend
             FROM every_call WHERE tenant_id = '{tenant}' AND api_key_id = '{key}' AND created_at >= '{moved}' AND created_at < {end}"
        ));
        Ok(row.get_result(self.conn)?)
    }

    pub(super) fn compare(&mut self, random: &mut Random) -> Result<()> {
        let tenant = random.tenant();
        let (tenant_id, key) = (TenantId::from(tenant), format!("{tenant}{}", random.below(KEYS + 1)));
        let key_id = KeyId::from(key.as_str());
        let since = random.moment();
        match random.below(6) {
            0 => {
                let answer = KeysDriver::new(self.conn).fetch_key_usage(&tenant_id, &key_id, since);
                let plain = self.of_key(tenant, &key, since, None)?;
                self.judge(answer, &plain, self.is_rounded(since), &format!("{key} since {since}"))
            }
            1 => {
                let answer = KeysDriver::new(self.conn).fetch_tenant_usage(&tenant_id, since);
                let plain = self.plain(tenant, "NULL", since, None)?;
                let none = Plain::default();
                self.judge(
                    answer,
                    plain.first().unwrap_or(&none),
                    self.is_rounded(since),
                    &format!("{tenant} since {since}"),
                )
            }
            2 => {
                let mut boundaries: Vec<_> = (0..2 + random.below(6)).map(|_| random.moment()).collect();
                boundaries.sort();
                let answer =
                    KeysDriver::new(self.conn).fetch_key_usage_between(&tenant_id, &key_id, &boundaries);
                self.compare_sums(tenant, &key, &boundaries, answer)
            }
            3 => {
                let (bucket, step) =
                    random.of(&[(Bucket::Hour, TimeDelta::hours(1)), (Bucket::Day, TimeDelta::days(1))]);
                let end = since + step * i32::try_from(1 + random.below(5)).expect("small");
                let answer = KeysDriver::new(self.conn).fetch_key_usage_series(
                    &tenant_id,
                    &key_id,
                    since..end,
                    bucket,
                );
                let mut boundaries = vec![since];
                let mut next = since.duration_trunc(step).expect("a bucket") + step;
                while next < end {
                    boundaries.push(next);
                    next += step;
                }
                boundaries.push(end);
                let answer = answer.map(|buckets| buckets.into_iter().map(|bucket| bucket.usage).collect());
                self.compare_sums(tenant, &key, &boundaries, answer)
            }
            4 => {
                let answer =
                    KeysDriver::new(self.conn).fetch_keys_with_usage(&tenant_id, since, Page::default());
                let plain = self.plain(tenant, "api_key_id", since, None)?;
                let own = |id: &str| plain.iter().find(|row| row.api_key_id.as_deref() == Some(id));
                match answer {
                    Ok(page) => {
                        assert_eq!(page.len() as u64, KEYS - 1);
                        for (key, usage) in page {
                            let none = Plain::default();
                            let plain = own(key.id.as_str()).unwrap_or(&none);
                            self.judge(
                                Ok(usage),
                                plain,
                                self.is_rounded(since),
                                &format!("page, {} since {since}", key.id),
                            )?;
                        }
                        Ok(())
                    }
                    Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
                }
            }
            _ => self.compare_keys(tenant, since, since.max(random.moment())),
        }
    }

    fn compare_keys(&mut self, tenant: &str, since: DateTime<Utc>, to: DateTime<Utc>) -> Result<()> {
        let answer =
            KeysDriver::new(self.conn).fetch_tenant_usage_by_key(&TenantId::from(tenant), since..to, 100);
        let plain = self.plain(tenant, "api_key_id", since, Some(to))?;
        let plain: Vec<_> = plain.into_iter().filter(|row| row.api_key_id.is_some()).collect();
        let is_rounded = self.is_rounded(since) || self.is_rounded(to);
        match answer {
            Ok(keys) => {
                let told = format!("keys of {tenant} in {since}..{to}");
                let in_order = keys.is_sorted_by(|one, next| one.1.spend_cents >= next.1.spend_cents);
                if keys.len() != plain.len() || !in_order {
                    self.differ(&format!("{told}: {keys:?}, plain {plain:?}"));
                }
                for (key, usage) in keys {
                    let own = plain.iter().find(|row| row.api_key_id.as_deref() == Some(key.as_str()));
                    let none = Plain::default();
                    self.judge(Ok(usage), own.unwrap_or(&none), is_rounded, &format!("{told}: {key}"))?;
                }
                Ok(())
            }
            Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
        }
    }

    fn compare_sums(
        &mut self,
        tenant: &str,
        key: &str,
        boundaries: &[DateTime<Utc>],
        answer: Result<Vec<KeyUsageSnapshot>>,
    ) -> Result<()> {
        let mut plain = Vec::new();
        for pair in boundaries.windows(2) {
            plain.push(self.of_key(tenant, key, pair[0], Some(pair[1]))?);
        }
        match answer {
            Ok(sums) => {
                assert_eq!(sums.len(), plain.len());
                for ((sum, plain), pair) in sums.into_iter().zip(plain).zip(boundaries.windows(2)) {
                    let is_rounded = self.is_rounded(pair[0]) || self.is_rounded(pair[1]);
                    self.judge(Ok(sum), &plain, is_rounded, &format!("{key} in {}..{}", pair[0], pair[1]))?;
                }
                Ok(())
            }
            Err(error) => self.judge_refusal(error, plain.iter().any(|row| row.nan > 0)),
        }
    }

    fn judge(
        &mut self,
        answer: Result<KeyUsageSnapshot>,
        plain: &Plain,
        is_rounded: bool,
        told: &str,
    ) -> Result<()> {
        let answer = match answer {
            Ok(answer) => answer,
            Err(error) => return self.judge_refusal(error, plain.nan > 0),
        };
        add(&self.counts.compared, 1);
        add(&self.counts.not_zero, u64::from(plain.calls > 0));
        add(&self.counts.rounded, u64::from(is_rounded));
        let spend = plain.spend.clone().unwrap_or_default();
        if (answer.request_count, &answer.spend_cents, answer.is_rounded, 0)
            != (plain.calls, &spend, is_rounded, plain.nan)
        {
            self.differ(&format!("{told}: {answer:?}, plain {plain:?}"));
        }
        Ok(())
    }

    fn judge_refusal(&self, error: Error, has_nan: bool) -> Result<()> {
        if !matches!(error, Error::CostNotANumber { .. }) {
            return Err(error);
        }
        add(&self.counts.compared, 1);
        add(&self.counts.not_a_number, 1);
        if !has_nan {
            self.differ(&format!("{error}, and there is no such call"));
        }
        Ok(())
    }

    fn differ(&self, told: &str) {
        eprintln!("{told}");
        add(&self.counts.differences, 1);
    }
}
