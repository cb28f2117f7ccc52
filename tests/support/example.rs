//! Compiled examples.

use std::path::PathBuf;
use std::process::Command;

/// The path of one. It is built here, in the profile of the test: `cargo test --test NAME` does not.
pub(crate) fn path(name: &str) -> PathBuf {
    let mut cargo = Command::new(env!("CARGO"));
    // Of the whole workspace: with the features that the library has in tests, so that it is not built anew.
    cargo.args(["build", "--quiet", "--workspace", "--example", name]);
    cargo.current_dir(env!("CARGO_MANIFEST_DIR"));
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let output = cargo.output().unwrap();
    let complaints = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{cargo:?}: {complaints}");
    // This test is TARGET/PROFILE/deps/NAME-HASH.
    let test = std::env::current_exe().unwrap();
    test.ancestors().nth(2).unwrap().join("examples").join(name)
}
