//! `sosplice.h` is the header that cbindgen makes from the sources.
//!
//! `SOSPLICE_BLESS=1 cargo test -p sosplice-c --test header` writes it.

#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;

/// The documentation's section for Rust says what each function's own text says already.
fn without_safety(header: &str) -> String {
    let mut lines = Vec::new();
    let mut skipped = false;
    for line in header.lines() {
        skipped = line.starts_with("// # Safety") || (skipped && line.starts_with("//"));
        if skipped {
            // And the empty line before.
            while lines.last() == Some(&"//") {
                lines.pop();
            }
        } else {
            lines.push(line);
        }
    }
    lines.join("\n") + "\n"
}

#[test]
fn the_header_is_made_from_the_sources() {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    let config = cbindgen::Config::from_file(package.join("cbindgen.toml")).unwrap();
    let mut made = Vec::new();
    cbindgen::Builder::new()
        .with_crate(package)
        .with_config(config)
        .generate()
        .unwrap()
        .write(&mut made);
    let made = without_safety(std::str::from_utf8(&made).unwrap());
    let path = package.join("sosplice.h");
    if std::env::var("SOSPLICE_BLESS").is_ok() {
        fs::write(&path, &made).unwrap();
    }
    let is = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        is == made,
        "sosplice.h is not that of the sources: SOSPLICE_BLESS=1 cargo test -p sosplice-c --test header"
    );
}
