//! How much a call reads for a deep page, a distant cursor, or a bounded count. The index of each statement is tested
//! with its topic, by `plans_of` in `support/plans.rs`.

use api_keys_driver::{KeysDriver, Page};

use crate::every_method::{Input, METHODS};
use crate::support::plans::{LARGE, blocks, explain, input, skewed};

/// The number of blocks that a call reads.
fn cost(name: &str, input: &Input) -> u32 {
    let method = METHODS.iter().find(|method| method.name == name).unwrap();
    blocks(&explain(&mut skewed(), method, input, "force_generic_plan").1)
}

#[test]
fn the_2000th_page_after_a_cursor_reads_as_much_as_the_first() {
    let mut conn = skewed();
    let mut cost_at = |depth| {
        let before = Page { limit: 1, offset: depth };
        let keys = KeysDriver::new(&mut conn).fetch_keys(&LARGE.into(), before).unwrap();
        cost("fetch_keys_after", &Input { cursor: (&keys[0]).into(), ..input(LARGE, "a1") })
    };
    let (first, deep) = (cost_at(0), cost_at(99_900));
    // A page starts and ends within a block, so one or two more blocks do not matter.
    assert!(deep <= first + first / 5 + 2, "{deep} blocks against {first}");
}

#[test]
fn a_bounded_count_stops_at_the_bound() {
    let input = Input { page: Page { limit: 100, offset: 0 }, ..input(LARGE, "a1") };
    for name in ["count_keys_up_to", "count_api_keys_up_to", "count_api_keys_up_to.status"] {
        let blocks = cost(name, &input);
        // All keys would be a thousand blocks. Blocks in which another test changes a key are read too.
        assert!(blocks < 50, "{name}: {blocks}");
    }
}

#[test]
fn the_plans_of_every_statement_are_tested() {
    let mut sources = String::new();
    for file in std::fs::read_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it")).unwrap() {
        let path = file.unwrap().path();
        if path.is_file() {
            sources += &std::fs::read_to_string(path).unwrap();
        }
    }
    for method in METHODS {
        let name = format!("\"{}\"", method.name);
        // Once in the list of methods, and once in a test of plans.
        assert!(sources.matches(&name).count() >= 2, "no test has plans_of({name})");
    }
}
