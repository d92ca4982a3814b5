//! Two servers fail over, and the old primary comes back as a standby.

use diesel::prelude::*;
use diesel::sql_query;
use throwaway_postgres::{Pair, PrivateServer, Replication};

diesel::table! {
    /// What is replicated.
    notes (id) {
        /// A number.
        id -> BigInt,
    }
}

fn connect(server: &PrivateServer) -> PgConnection {
    PgConnection::establish(&server.url()).unwrap()
}

fn notes(conn: &mut PgConnection) -> Vec<i64> {
    notes::table.select(notes::id).order(notes::id).load(conn).unwrap()
}

fn insert(conn: &mut PgConnection, id: i64) {
    diesel::insert_into(notes::table).values(notes::id.eq(id)).execute(conn).unwrap();
}

#[test]
fn a_row_that_the_standby_never_received_is_gone_from_both_servers() {
    let mut pair = Pair::start_new(Replication::Asynchronous).unwrap();
    let mut conn = connect(&pair.primary);
    sql_query("CREATE TABLE notes (id bigint PRIMARY KEY)").execute(&mut conn).unwrap();
    insert(&mut conn, 1);
    pair.wait_for_standby().unwrap();
    assert_eq!(notes(&mut connect(&pair.standby)), [1]);

    pair.standby.stop().unwrap();
    insert(&mut conn, 2);
    pair.primary.kill().unwrap();
    pair.standby.start().unwrap();
    pair.promote().unwrap();
    assert_eq!(notes(&mut connect(&pair.primary)), [1]);

    insert(&mut connect(&pair.primary), 3);
    pair.rejoin(Replication::Synchronous).unwrap();
    pair.wait_for_standby().unwrap();
    assert_eq!(notes(&mut connect(&pair.standby)), [1, 3]);
}

#[test]
fn both_urls_lead_to_whichever_server_is_the_primary() {
    let mut pair = Pair::start_new(Replication::Synchronous).unwrap();
    for failed_over in [false, true] {
        for url in [pair.url(), pair.tcp_url()] {
            let mut conn = PgConnection::establish(&url).unwrap();
            sql_query(format!("CREATE TABLE t{}{failed_over} ()", url.len())).execute(&mut conn).unwrap();
        }
        if !failed_over {
            pair.primary.pause().unwrap();
            pair.promote().unwrap();
            pair.rejoin(Replication::Synchronous).unwrap();
        }
    }
}
