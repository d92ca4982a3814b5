//! Rebuilds when a migration is added: the compiler itself notices only the change of one that it knows.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
