// @generated automatically by Diesel CLI.

diesel::table! {
    api_key_events (transaction_id, id) {
        transaction_id -> Int8,
        id -> Int8,
        tenant_id -> Varchar,
        key_id -> Text,
        revision -> Int8,
        kind -> Text,
        at -> Timestamptz,
        recorded_at -> Timestamptz,
        actor -> Nullable<Text>,
        reason -> Nullable<Text>,
        status -> Text,
        is_frozen -> Bool,
        expires_at -> Nullable<Timestamptz>,
    }
}

diesel::table! {
    api_key_events_compacted (only_row) {
        only_row -> Bool,
        revision -> Int8,
    }
}

diesel::table! {
    api_keys (id) {
        #[max_length = 36]
        id -> Varchar,
        #[max_length = 36]
        tenant_id -> Varchar,
        #[max_length = 36]
        user_id -> Nullable<Varchar>,
        #[max_length = 100]
        name -> Varchar,
        #[max_length = 12]
        key_prefix -> Varchar,
        #[max_length = 128]
        key_hash -> Varchar,
        permissions_json -> Nullable<Text>,
        allowed_workers_json -> Nullable<Text>,
        rate_limit_rpm -> Nullable<Int4>,
        max_concurrent_runs -> Nullable<Int4>,
        #[max_length = 50]
        status -> Varchar,
        expires_at -> Nullable<Timestamptz>,
        revoked_at -> Nullable<Timestamptz>,
        #[max_length = 255]
        revoked_reason -> Nullable<Varchar>,
        last_used_at -> Nullable<Timestamptz>,
        total_requests -> Int8,
        created_at -> Timestamptz,
        frozen_at -> Nullable<Timestamptz>,
        #[max_length = 100]
        frozen_by -> Nullable<Varchar>,
        freeze_reason -> Nullable<Text>,
        is_synthetic -> Bool,
        synthetic_scenario_id -> Nullable<Text>,
        is_frozen -> Bool,
        revision -> Int8,
    }
}

diesel::table! {
    proxy_calls (id) {
        #[max_length = 100]
        id -> Varchar,
        #[max_length = 100]
        tenant_id -> Varchar,
        #[max_length = 100]
        api_key_id -> Nullable<Varchar>,
        #[max_length = 100]
        endpoint -> Varchar,
        #[max_length = 100]
        model -> Varchar,
        #[max_length = 64]
        request_hash -> Varchar,
        request_json -> Text,
        #[max_length = 64]
        response_hash -> Nullable<Varchar>,
        response_json -> Nullable<Text>,
        status_code -> Nullable<Int4>,
        #[max_length = 50]
        error_code -> Nullable<Varchar>,
        input_tokens -> Nullable<Int4>,
        output_tokens -> Nullable<Int4>,
        cost_cents -> Nullable<Numeric>,
        policy_decisions_json -> Nullable<Text>,
        was_blocked -> Nullable<Bool>,
        #[max_length = 100]
        block_reason -> Nullable<Varchar>,
        latency_ms -> Nullable<Int4>,
        upstream_latency_ms -> Nullable<Int4>,
        replay_eligible -> Nullable<Bool>,
        #[max_length = 100]
        replayed_from_id -> Nullable<Varchar>,
        created_at -> Timestamptz,
        #[max_length = 255]
        user_id -> Nullable<Varchar>,
    }
}

diesel::allow_tables_to_appear_in_same_query!(
    api_key_events,
    api_key_events_compacted,
    api_keys,
    proxy_calls,
);
