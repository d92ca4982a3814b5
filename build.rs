//! Writes the list of migrations, with their SQL, for `src/steps/step.rs`. Cargo runs it again when a migration changes.

use std::fmt::Write;
use std::path::Path;
use std::{env, fs};

fn main() {
    println!("cargo::rerun-if-changed=migrations");
    let folder = Path::new(&env::var_os("CARGO_MANIFEST_DIR").expect("set by cargo")).join("migrations");
    let mut names: Vec<String> = fs::read_dir(&folder)
        .expect("the folder of migrations")
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| folder.join(name).join("up.sql").exists())
        .collect();
    names.sort();

    let mut steps = String::from("&[\n");
    for name in &names {
        let file = |file: &str| {
            folder.join(name).join(file).into_os_string().into_string().expect("a path in UTF-8")
        };
        let in_transaction = fs::read_to_string(file("metadata.toml"))
            .map_or(true, |metadata| !metadata.contains("run_in_transaction = false"));
        let (up, down) = (file("up.sql"), file("down.sql"));
        writeln!(
            steps,
            "Step {{ name: {name:?}, up: include_str!({up:?}), down: include_str!({down:?}), \
             in_transaction: {in_transaction} }},"
        )
        .expect("a string takes every text");
    }
    steps.push(']');
    let out = env::var_os("OUT_DIR").expect("set by cargo");
    fs::write(Path::new(&out).join("steps.rs"), steps).expect("the list of steps");
}
