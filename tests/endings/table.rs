//! The table in the documentation names tests that exist.

use std::fs;
use std::path::Path;

fn sources(folder: &Path, all: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, all);
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
}

#[test]
fn every_row_has_a_test_that_exists() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut all = String::new();
    for folder in ["src", "tests"] {
        sources(&root.join(folder), &mut all);
    }
    let page = fs::read_to_string(root.join("src/doc/endings.md")).unwrap();
    let rows = page
        .lines()
        .filter(|line| line.starts_with('|') && !line.starts_with("|-"));
    let mut count = 0;
    for row in rows.skip(1) {
        let last = row.trim_end_matches('|').rsplit('|').next().unwrap();
        let tests: Vec<&str> = last.split('`').skip(1).step_by(2).collect();
        assert!(!tests.is_empty(), "no test: {row}");
        for test in tests {
            assert!(all.contains(&format!("fn {test}(")), "there is no {test}");
            count += 1;
        }
    }
    assert!(count > 20, "{count}");
}
