//! How often a test repeats what has ever other values.

/// `few` times; with `SOSPLICE_LONG` in the environment, as `.ci/test` and `.ci/net` set it, `many` times.
pub(crate) fn times<T>(few: T, many: T) -> T {
    let long = std::env::var_os("SOSPLICE_LONG").is_some();
    if long { many } else { few }
}
